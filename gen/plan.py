"""What a step will take, before the devices are booked: the real step compiled for them, and nothing allocated.

    python train.py lm_1b --dry-run --devices 256

Bytes of the state are its shapes under its shardings. Bytes of activations and FLOPs are read from the step as it is
traced, with a scan's body as often as it is run. Peak memory is the compiler's, and what is sent is read from the program
that it made: of the fake devices of this processor, or, with `--platform tpu`, of a TPU that need not be there.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np

from gen import config as configs
from gen import core, faults, finetune, hlo, parallel
from gen.config import Config
from gen.core import Dataset, GenerativeModel, UserError
from gen.data import text
from gen.data.preprocess import applied

Platform = Literal["cpu", "tpu"]

TOPOLOGIES = {
    **{1: "v5e:1x1", 2: "v5e:1x2", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 32: "v5e:4x8", 64: "v5e:8x8"},
    **{128: "v5e:8x16", 256: "v5e:16x16", 512: "v5p:8x8x8", 1024: "v5p:8x8x16"},
}
"""Slices of TPUs by the number of their chips; a v5e has up to 256."""


@dataclass(frozen=True)
class Plan:
    """What a step takes. Bytes and FLOPs are of one device."""

    engine: str
    compiler: str
    """What the step was compiled for."""
    seconds: float
    """That compiling took."""
    devices: int
    hosts: int
    examples: int
    """Of a batch, over all devices."""
    each: int
    """Of a batch, on one."""
    numbers: dict[str, int]
    """How many parameters, by player or part, over all devices."""
    held: dict[str, int]
    """Bytes from step to step, by part of the state."""
    stepped: dict[str, int]
    """Bytes in a step beside: gradients, the batch, and activations that the backward pass needs."""
    arguments: int
    """Bytes that the compiled step is given."""
    temporary: int
    """Bytes that it needs beside, as the compiler has it."""
    peak: int
    """Bytes that it needs at most."""
    flops: float
    """Of matrix products and convolutions."""
    sent: dict[str, tuple[int, int, int]]
    """{kind of collective: (how many, their bytes, those of them between hosts)}."""
    unknown: int
    """Loops of unknown length, counted once in `sent`."""
    batch: int
    """Bytes of a step's batch over all devices."""


def dry_run(launch: configs.Launch) -> None:
    """Print the plan of a step; nothing is written or trained. For this machine's devices with the resolved config before it.

    Raises: UserError for what a person got wrong.
    """
    config = finetune.resolved(launch.config)
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
    model = applied(config.model.build(data.spec, config.steps), data.preprocess)
    guard = faults.guards(config.faults)
    engine = parallel.compile(model, config.parallel, config.seed, config.data.batch_size, guard, found)
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


# --- what is planned for ---------------------------------------------------------------------------------------------


def _devices(config: Config, n: int | None, platform: Platform) -> Sequence[Any]:
    """This machine's devices, or n fake ones of its processor, or n chips of a TPU that need not be there."""
    if n is None:
        parallel.start(config.parallel)
        return jax.devices()[: config.parallel.devices]
    core.positive(**{"--devices": n})
    jax.config.update("jax_platforms", "cpu")  # nothing is put on an accelerator, if there is one
    if platform == "tpu":
        parallel.start(replace(config.parallel, devices=None, cpu_devices=None))
        return topology(n)
    parallel.start(replace(config.parallel, devices=None, cpu_devices=n))
    return jax.devices()


def topology(n: int) -> Sequence[Any]:
    """n chips to compile for, of which TPU's compiler knows. Raises: UserError if it isn't installed, or for another n."""
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("TPU's compiler is not installed; the fix: pip install 'gen[tpu-plan]'") from None
    if n not in TOPOLOGIES:
        raise UserError(f"a TPU of {n} chips is not known; there are {', '.join(map(str, TOPOLOGIES))}")
    # Of a machine that has no TPU: else the library asks the network who it is, and writes its complaints and logs.
    quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    quiet |= {"TPU_LOG_DIR": "disabled", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    quiet |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # two plans at once
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[n]).devices


def _hosts(devices: Sequence[Any], n: int | None) -> list[int]:
    """The host of each device: as they are, or n with as many devices each."""
    if n is None:
        return [device.process_index for device in devices]
    core.positive(**{"--hosts": n})
    if len(devices) % n:
        raise UserError(f"{len(devices)} devices can't be shared by {n} hosts; choose a divisor")
    return [i // (len(devices) // n) for i in range(len(devices))]


@contextmanager
def _fitting(n: int) -> Iterator[None]:
    """Raises: UserError if a compiler finds that the step needs more memory than a device has."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).removeprefix("RESOURCE_EXHAUSTED: ").split("\n")[0].strip()
        raise UserError(
            f"the step doesn't fit on {n} devices: {reason}\nmore --devices, a smaller --data.batch-size, "
            "--parallel.engine jit --parallel.fsdp, or a transformer's --model.network.remat may help"
        ) from None


def opened(config: Config) -> tuple[Dataset, str]:
    """The data, or what the config says that they are like if they aren't here, and a line that says so."""
    try:
        return finetune.data(config), ""
    except UserError as error:
        if config.init_from is not None or (known := implied(config.data)) is None:
            raise
        reason = str(error).splitlines()[0]
    shown = ", ".join(f"{name} {'x'.join(map(str, f.shape))} of {f.vocab}" for name, f in known.spec.items())
    return known, f"planned without the data ({reason}); as the config has them: {shown}"


def implied(data: core.DataConfig) -> Dataset | None:
    """Data of the spec that a config implies, with batches of zeros; None if it takes the data to tell.

    Of texts, the tokens that a bpe is asked for, or a byte's; a prompt of its own if pairs are to be separate.
    """
    if not isinstance(data, text.Config) or data.tokenizer not in ("byte", "bpe"):
        return None
    vocab = text.SMALLEST if data.tokenizer == "byte" else data.vocabulary
    lengths = {"tokens": data.length + 1}
    if data.pairs == "separate" or data.source_length:
        lengths["source"] = data.source_length or data.length

    def batch(seed: int, step: int, rows: range) -> core.HostBatch:
        n = len(rows)
        made = {name: np.zeros((n, length), np.int32) for name, length in lengths.items()}
        made |= {"counted": np.zeros((n, data.length + 1), np.uint8), "weight": np.ones(n, np.float32)}
        return made | {name: np.zeros(n, np.int32) for name in ("bytes", "row", "index")}

    return Dataset(
        spec={name: core.Feature((n,), "int32", vocab=vocab, end=0) for name, n in lengths.items()},
        sizes={"train": 0, "validation": 0, "test": 0},
        digest="",
        batch=batch,
        evaluation=lambda split, batch_size: iter(()),
        preprocess=lambda batch, key, training: batch,
    )


def shapes(config: Config, data: Dataset, model: GenerativeModel, examples: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What an update takes; one example is read for it."""
    one = data.batch(config.seed, 0, range(1))
    before = () if model.batches is None else (model.batches,)
    return {name: jax.ShapeDtypeStruct((*before, examples, *x.shape[1:]), x.dtype) for name, x in one.items()}


# --- what is counted -------------------------------------------------------------------------------------------------


def on_each(tree: Any) -> int:
    """Bytes of a tree of shapes on one device, under their shardings."""
    shape = lambda x: x.shape if getattr(x, "sharding", None) is None else x.sharding.shard_shape(x.shape)
    return sum(math.prod(shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def traced(config: Config, data: Dataset, model: GenerativeModel, n: int) -> tuple[float, int]:
    """FLOPs of one device's part of a step whose batch n share, and bytes of the activations that are kept of it for the backward
    pass: of the player that keeps most. They are what `core.descend` keeps and what is larger the more examples there are; the rest are
    parameters, or made of them."""
    state = jax.eval_shape(model.init, jax.random.key(config.seed))
    examples = config.data.batch_size // n

    def trace(examples: int) -> tuple[Any, list[list[Any]]]:
        kept: list[list[Any]] = []

        def keep(backward: Any) -> None:
            tracers = {id(x): x for x in jax.tree.leaves(backward)}
            kept.append([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in tracers.values()])

        token = core.descending.set(keep)
        try:
            batch = shapes(config, data, model, examples)
            return jax.make_jaxpr(model.update, axis_env=[("data", n)])(state, batch, jax.random.key(0)), kept
        finally:
            core.descending.reset(token)

    (jaxpr, kept), (_, more) = trace(examples), trace(2 * examples)
    grows = lambda now, then: sum(on_each(x) for x, y in zip(now, then, strict=True) if x.shape != y.shape)
    return flops(jaxpr), max((grows(now, then) for now, then in zip(kept, more, strict=True)), default=0)


def flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr, two for a multiplication and addition. A scan's body counts
    as often as it is run, that of a loop of unknown length once; of branches the dearest, but of a platform's own form and the
    plain one the plain; of two vectors, whose product is a sum, nothing."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # of a closed one
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            out = eqn.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[i] for i in contracted) if out else 0
        elif name == "conv_general_dilated":
            kernel, numbers = eqn.invars[1].aval.shape, params["dimension_numbers"]
            each = math.prod(kernel) // kernel[numbers.rhs_spec[0]]  # multiplications for one number that comes out
            spread = math.prod(params["lhs_dilation"]) * params["batch_group_count"]
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * each / spread
        else:
            platforms = params.get("branches_platforms")
            given = [params["branches"][platforms.index(None)]] if platforms else params.values()
            inner = [flops(j) for value in given for j in _jaxprs(value)]
            times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
            total += times * (max(inner, default=0) if name == "cond" else sum(inner))
    return total


def _jaxprs(value: Any) -> Iterator[Any]:
    for x in value if isinstance(value, tuple | list) else [value]:
        if hasattr(getattr(x, "jaxpr", x), "eqns"):
            yield x


# --- what is said ----------------------------------------------------------------------------------------------------


def report(plan: Plan, note: str = "") -> list[str]:
    """The lines of a plan."""
    n = plan.devices
    hosts = f" of {plan.hosts} hosts" if plan.hosts > 1 else ""
    lines = [
        "",
        f"{n} device{'s' * (n > 1)}{hosts}, engine {plan.engine}, {plan.examples:,} examples a step, {plan.each:,} a device; "
        f"compiled for {plan.compiler} in {plan.seconds:.0f} s",
        *([note] if note else []),
        "",
        "of each device",
    ]
    row = lambda name, value, more="": f"  {name:<24s} {value:>12s}  {more}".rstrip()
    for name, bytes_ in plan.held.items():
        lines.append(row(name, binary(bytes_), f"of {plan.numbers[name]:,} numbers" if name in plan.numbers else ""))
    about = {
        "gradients": "as the parameters",
        "batch": f"{binary(plan.batch // plan.hosts)} a host" if plan.hosts > 1 else "",
        "activations": "that the backward pass needs",
    }
    lines += [row(name, binary(bytes_), about[name]) for name, bytes_ in plan.stepped.items()]
    more = f"{binary(plan.arguments)} given, {binary(plan.temporary)} temporary: the compiler's"
    lines += [row("peak memory", binary(plan.peak), more), row("a step", decimal(plan.flops) + "FLOPs")]
    for kind, (count, bytes_, between) in plan.sent.items():
        across = f", {binary(between)} between hosts" if plan.hosts > 1 else ""
        lines.append(row(kind, binary(bytes_), f"in {count:,}{across}"))
    if not plan.sent:
        lines.append(row("sent", "nothing"))
    if plan.unknown:
        lines.append(f"  {plan.unknown} loops of unknown length are counted once")
    return lines


def binary(n: float) -> str:
    """Bytes for a person: "1.50 GiB"."""
    if n < 1000:
        return f"{n:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        if n < 1000:
            return f"{n:.{0 if n >= 100 else 1 if n >= 10 else 2}f} {unit}"
    return f"{n / 1024:,.1f} TiB"


def decimal(n: float) -> str:
    """A number for a person, with room for a unit: "1.50 T"."""
    for unit in ("", "k", "M", "G", "T"):
        if n < 1000:
            return f"{n:.0f} " if not unit else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.0f} P"
