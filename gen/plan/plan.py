"""Plans a training step: its memory, FLOPs and communication, before any device is booked.

    python train.py lm_1b --dry-run --plan.devices 256

The real step is compiled, but not run, and no arrays are allocated. Bytes of the state are computed from its shapes and
shardings. Bytes of activations and FLOPs come from the traced step. Peak memory and communication come from the
compiled program. Without --plan.devices, the step is compiled for this machine. Otherwise it is compiled for fake CPU
devices, or with `--plan.platform tpu` for TPUs, which need not exist.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import jax

from gen import config as configs
from gen.config import Config, Parallel
from gen.core import Params, State
from gen.data.preprocess import with_preprocess
from gen.errors import say, show
from gen.plan import hlo
from gen.plan.count import bytes_per_device, count_step
from gen.plan.devices import TOPOLOGIES, Platform, assign_hosts, explain_out_of_memory, find_devices
from gen.plan.inputs import batch_shapes, open_data
from gen.plan.report import Plan, Sent, report
from gen.runs import base
from gen.runtime import engine as runtime_engine
from gen.runtime import faults


def dry_run(launch: configs.Launch) -> None:
    """Prints the plan of a training step, without training or writing files.

    Without --plan.devices, it first prints the identity of the run and the resolved config, as JSON.

    Raises: UserError for a mistake in the config, or as `plan`.
    """
    configs.check_new_run(launch.config)
    config, target = base.resolve_config(launch.config), launch.plan
    if target.devices is None:
        show(json.dumps({"identity": configs.digest(config), "config": configs.encode(config)}, indent=1))
    made, note = plan(config, target.devices, target.hosts, target.platform)
    say(*report(made, note))


def plan(
    config: Config, devices: int | None = None, hosts: int | None = None, platform: Platform = "cpu"
) -> tuple[Plan, str]:
    """Returns (plan of a training step, note). The note is "", or says that a stand-in replaced missing data.

    devices: number of devices to plan for. None: the devices of this machine. hosts: number of hosts that the devices
    are divided among. None: the hosts that the devices have. platform: for which to compile, if `devices` is not None.

    Raises: UserError if the data are missing and can't be replaced, the devices can't be planned for, or the step does
    not fit on them.
    """
    found = find_devices(config, devices, platform)
    host = assign_hosts(found, hosts)
    data, note = open_data(config)
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    # The same guard against bad steps as in training, because it may hold a second copy of the state.
    guard = faults.guards(config.faults)
    engine = runtime_engine.compile_engine(model, config.parallel, config.seed, config.data.batch_size, guard, found)
    batch = batch_shapes(config, data, model, config.data.batch_size)
    # Memory and communication are only known after compiling.
    start = time.perf_counter()
    with explain_out_of_memory(len(found)):
        compiled = engine.lower(batch).compile()
    seconds = time.perf_counter() - start

    n, tensor, state = len(found), config.parallel.tensor, engine.abstract
    # With tensor parallelism, each part of the batch has `tensor` devices, which divide its FLOPs among them.
    flops, activations = count_step(config, data, model, n // tensor)
    memory = compiled.memory_analysis()
    assert memory is not None
    # An output that reuses the memory of a donated argument (an alias) must not be counted twice.
    lasting = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    traffic = hlo.traffic(compiled.as_text() or "")
    held = {name: bytes_per_device(tree) for name, tree in _parts(state).items()}
    made = Plan(
        engine=_engine_name(config.parallel),
        compiler=TOPOLOGIES[n] if platform == "tpu" else found[0].platform,
        seconds=seconds,
        devices=n,
        hosts=len(set(host)),
        examples=config.data.batch_size,
        each=config.data.batch_size // (n // tensor),
        numbers={name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in _params(state).items()},
        held={name: bytes_ for name, bytes_ in held.items() if bytes_},
        stepped={
            "gradients": bytes_per_device(state.params),
            "batch": bytes_per_device(batch) * tensor // n,
            "activations": activations,
        },
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=max(memory.peak_memory_in_bytes, lasting + memory.temp_size_in_bytes),
        flops=flops / tensor,
        sent=_sum_by_kind(traffic.collectives, host),
        unknown=traffic.unknown,
        batch=bytes_per_device(batch),
    )
    return made, note


def _params(state: State) -> dict[str, Params]:
    return {f"params/{name}": tree for name, tree in state.params.items()}


def _parts(state: State) -> dict[str, object]:
    """Returns the parts of the state by name. A device holds them from step to step."""
    others = {"optimizer": state.opt_state, "averages": state.ema, "statistics": state.stats, "frozen": state.frozen}
    return _params(state) | others


def _engine_name(config: Parallel) -> str:
    fsdp = " with FSDP" if config.fsdp else ""
    tensor = f", tensors divided among {config.tensor}" if config.tensor > 1 else ""
    return f"{config.engine}{fsdp}{tensor}"


def _sum_by_kind(collectives: Sequence[hlo.Collective], host: Sequence[int]) -> dict[str, Sent]:
    """Returns {kind: total communication} of the kinds that occur. host: the host of each device."""
    sent = {}
    for kind in hlo.KINDS:
        # A program may have collectives whose groups are single devices. They send nothing, so they are left out.
        found = [c for c in collectives if c.kind == kind and c.crosses(range(len(host)))]
        if found:
            between = sum(c.count * c.bytes for c in found if c.crosses(host))
            sent[kind] = Sent(sum(c.count for c in found), sum(c.count * c.bytes for c in found), between)
    return sent
