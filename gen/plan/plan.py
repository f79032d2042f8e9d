"""What a step will take, before the devices are booked: the real step compiled for them, and nothing allocated.

    python train.py lm_1b --dry-run --devices 256

Bytes of the state are its shapes under its shardings. Bytes of activations and FLOPs are read from the step as it is
traced, with a scan's body as often as it is run. Peak memory is the compiler's, and what is sent is read from the program
that it made: of the fake devices of this processor, or, with `--platform tpu`, of a TPU that need not be there.
"""

from __future__ import annotations

import json
import time

import jax

from gen import config as configs
from gen.config import Config
from gen.data.preprocess import with_preprocess
from gen.plan import hlo
from gen.plan.count import on_each, traced
from gen.plan.devices import TOPOLOGIES, Platform, _devices, _fitting, _hosts
from gen.plan.inputs import opened, shapes
from gen.plan.report import Plan, report
from gen.runs import base
from gen.runtime import engine as runtime_engine
from gen.runtime import faults


def dry_run(launch: configs.Launch) -> None:
    """Print the plan of a step; nothing is written or trained. For this machine's devices with the resolved config before it.

    Raises: UserError for what a person got wrong.
    """
    config = base.resolve_config(launch.config)
    if launch.devices is None:
        print(json.dumps({"identity": configs.digest(config), "config": configs.encode(config)}, indent=1))
    made, note = plan(config, launch.devices, launch.hosts, launch.platform)
    print("\n".join(report(made, note)))


def plan(
    config: Config, devices: int | None = None, hosts: int | None = None, platform: Platform = "cpu"
) -> tuple[Plan, str]:
    """The plan for so many devices (None: this machine's), and what is to be said about its data.

    Raises: UserError if they can't be had, or the step doesn't fit them.
    """
    found = _devices(config, devices, platform)
    host = _hosts(found, hosts)
    data, note = opened(config)
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    guard = faults.guards(config.faults)
    engine = runtime_engine.compile_engine(model, config.parallel, config.seed, config.data.batch_size, guard, found)
    batch = shapes(config, data, model, config.data.batch_size)
    start = time.perf_counter()
    with _fitting(len(found)):
        compiled = engine.lower(batch).compile()
    seconds = time.perf_counter() - start

    state, n = engine.abstract, len(found)
    params = {f"params/{name}": tree for name, tree in state.params.items()}
    parts = {"optimizer": state.opt_state, "averages": state.ema, "statistics": state.stats, "frozen": state.frozen}
    tensor = config.parallel.tensor
    flops, activations = traced(config, data, model, n // tensor)
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    traffic, sent = hlo.traffic(compiled.as_text()), {}
    for kind in hlo.KINDS:
        of = [c for c in traffic.collectives if c.kind == kind and c.crosses(range(n))]
        total = lambda cs: sum(c.count * c.bytes for c in cs)
        if of:
            sent[kind] = (sum(c.count for c in of), total(of), total(c for c in of if c.crosses(host)))
    return (
        Plan(
            engine=f"{config.parallel.engine}{' with FSDP' if config.parallel.fsdp else ''}"
            + (f", tensors among {tensor}" if tensor > 1 else ""),
            compiler=TOPOLOGIES[n] if platform == "tpu" else found[0].platform,
            seconds=seconds,
            devices=n,
            hosts=len(set(host)),
            examples=config.data.batch_size,
            each=config.data.batch_size // (n // tensor),
            numbers={name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()},
            held={name: bytes_ for name, tree in (params | parts).items() if (bytes_ := on_each(tree))},
            stepped={
                "gradients": on_each(state.params),
                "batch": on_each(batch) * tensor // n,
                "activations": activations,
            },
            arguments=memory.argument_size_in_bytes,
            temporary=memory.temp_size_in_bytes,
            peak=max(memory.peak_memory_in_bytes, needed + memory.temp_size_in_bytes),
            flops=flops / tensor,
            sent=sent,
            unknown=traffic.unknown,
            batch=on_each(batch),
        ),
        note,
    )
