"""Engines: one update, written for a mapped axis "data", on one device or many. The only file that names pmap, mesh or sharding.

`pmap` binds the axis to the devices. `jit` binds it by a vmap of size one and shards the arrays inside, so that a
forgotten average is an error when it is traced, and the state can be sharded too (FSDP, Zhao et al. 2023).
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from gen.core import Batch, GenerativeModel, HostBatch, Metrics, State, Sums, UserError, cache_folder, positive

EVALUATION = np.uint32(2**32 - 1)  # the "step" that evaluation folds into the key; no training reaches it
SMALL = 2**12  # elements; a smaller array is cheaper to copy than to gather


@dataclass(frozen=True)
class Config:
    """Engine and devices."""

    engine: Literal["pmap", "jit"] = "pmap"
    """pmap: data parallel, one replica a device; jit: one program over a mesh, which can shard the state."""
    fsdp: bool = False
    """Shard parameters, averages and optimizer state over the devices (engine jit)."""
    devices: int | None = None
    """Number of devices to use; None: all."""
    cpu_devices: int | None = None
    """Split the processor into so many JAX devices."""

    def __post_init__(self):
        if self.fsdp and self.engine != "jit":
            raise UserError("fsdp shards the state, and pmap replicates it; the fix: --parallel.engine jit")
        positive(**{f"parallel.{k}": v for k in ("devices", "cpu_devices") if (v := getattr(self, k)) is not None})


class Engine(NamedTuple):
    """A compiled model over placed states and host batches."""

    init: Callable[..., State]
    """The state of step 0, placed; given parameters, the one that starts from them."""
    update: Callable[[State, HostBatch], tuple[State, Metrics]]
    """One step on a batch, or on as many stacked as the model takes; the given state is consumed."""
    evaluate: Callable[[State, HostBatch], Sums]
    """Sums of one batch."""
    test: Callable[[State, HostBatch], Sums]
    abstract: State
    """Shapes, dtypes and shardings of a placed state."""
    lower: Callable[[HostBatch], Any]
    """The update, lowered and not run, for batches like this one."""
    devices: int


def start(config: Config) -> None:
    """Settings of the backend; call it before the first array is made. Compiled programs are kept in the user's cache.

    Raises: UserError if there are fewer devices than asked for.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / f"compiled-{_instructions()}"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if config.cpu_devices is not None:
        try:
            jax.config.update("jax_num_cpu_devices", config.cpu_devices)
        except RuntimeError:
            raise UserError("cpu_devices is set once, before JAX starts, and it has started") from None
    if config.devices is not None and config.devices > jax.device_count():
        raise UserError(
            f"{config.devices} devices asked for, {jax.device_count()} {jax.default_backend()} there; "
            f"on a CPU: --parallel.cpu-devices {config.devices}"
        )


def compile(model: GenerativeModel, config: Config, seed: int, batch_size: int) -> Engine:
    """The model's functions, mapped and compiled. The key of a step is fold_in(key(seed), step); evaluation has the
    key of step -1, so that it draws the same noise for an example each time.

    Raises: UserError if the batch can't be divided among the devices.
    """
    devices = jax.devices()[: config.devices]
    n = len(devices)
    if batch_size % (unit := n * model.together):
        packs = f" in packs of {model.together}" if model.together > 1 else ""
        raise UserError(
            f"a batch of {batch_size} can't be divided among {n} devices{packs}; "
            f"the fix: --data.batch-size {max(unit, batch_size // unit * unit)}, or --parallel.devices"
        )

    def init(*params: Any) -> State:
        return model.init(jax.random.key(seed), *params)

    def update(state: State, batch: Batch) -> tuple[State, Metrics]:
        return model.update(state, batch, jax.random.fold_in(jax.random.key(seed), state.step))

    def keyed(evaluate: Any) -> Any:
        return lambda state, batch: evaluate(state, batch, jax.random.fold_in(jax.random.key(seed), EVALUATION))

    axis = 0 if model.batches is None else 1  # of the examples in what an update takes
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    shapes = jax.eval_shape(init)
    split = (lambda x: _fsdp(x.shape, n)) if config.fsdp else (lambda _: P())
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, split(x)), shapes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    if config.engine == "pmap":
        bind: Any = {"axis_name": "data", "out_axes": None, "devices": devices}
        step = jax.pmap(update, in_axes=(None, axis), donate_argnums=0, **bind)
        evaluate, test = (jax.pmap(keyed(f), in_axes=(None, 0), **bind) for f in (model.evaluate, model.test))

        def place(batch: HostBatch, axis: int) -> Any:
            split = lambda v: v.reshape(*v.shape[:axis], n, v.shape[axis] // n, *v.shape[axis + 1 :])
            return {k: split(v) for k, v in batch.items()}
    else:
        bind: Any = {"axis_name": "data", "axis_size": 1, "out_axes": None}
        replicated = NamedSharding(mesh, P())
        spread = lambda axis: NamedSharding(mesh, P(*[None] * (axis + 1), "data"))
        step = jax.jit(
            jax.vmap(update, in_axes=(None, axis), **bind),
            donate_argnums=0,
            in_shardings=(shardings, spread(axis)),
            out_shardings=(shardings, replicated),
        )
        evaluate, test = (
            jax.jit(
                jax.vmap(keyed(f), in_axes=(None, 0), **bind),
                in_shardings=(None, spread(0)),  # the state's as it lies, also without its optimizer
                out_shardings=replicated,
            )
            for f in (model.evaluate, model.test)
        )

        def place(batch: HostBatch, axis: int) -> Any:
            return jax.device_put({k: np.expand_dims(v, axis) for k, v in batch.items()}, spread(axis))

    return Engine(
        # Compiled, so that params and their averages don't share buffers: a donated one would take the other with it.
        init=jax.jit(init, out_shardings=shardings),
        update=lambda state, batch: step(state, place(batch, axis)),
        evaluate=lambda state, batch: evaluate(state, place(batch, 0)),
        test=lambda state, batch: test(state, place(batch, 0)),
        abstract=abstract,
        lower=lambda batch: step.lower(abstract, place(batch, axis)),
        devices=n,
    )


def processor() -> str:
    """The processor's name, as the system has it."""
    found = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return found.group(1) if found else platform.processor() or platform.machine()


def _instructions() -> str:
    """A short digest of the processor's instruction set: a program compiled for another may not run on this one."""
    flags = re.search(r"(?:flags|Features)\s*:\s*(.+)", _cpuinfo())
    return hashlib.sha256((flags.group(1) if flags else processor()).encode()).hexdigest()[:8]


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def on_one_device(shapes: Any) -> Any:
    """The same shapes, to be placed on the first device: where sampling is done."""
    place = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _fsdp(shape: tuple[int, ...], n: int) -> P:
    """Shard the largest axis that divides among n devices; keep small arrays whole."""
    axes = [i for i, size in enumerate(shape) if size % n == 0]
    if np.prod(shape, dtype=int) < SMALL or not axes:
        return P()
    largest = max(axes, key=lambda i: shape[i])
    return P(*("data" if i == largest else None for i in range(len(shape))))
