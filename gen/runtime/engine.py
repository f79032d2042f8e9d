"""Engines: one update, written for a mapped axis "data", on one device or many. The only file that names pmap, mesh or sharding.

`pmap` binds the axis to the devices. `jit` binds it by a vmap of size one and shards the arrays inside, so that a
forgotten average is an error when it is traced, and the state can be sharded too: over the examples' devices (FSDP, Zhao
et al. 2023), and each layer's matrices over a second axis of devices (Shoeybi et al. 2019).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from gen.axis import shard_examples
from gen.config import Parallel
from gen.core import Batch, GenerativeModel, HostBatch, Metrics, Rules, State, Sums
from gen.errors import UserError
from gen.optim.paths import path_name
from gen.runtime import hosts

EVALUATION = np.uint32(2**32 - 1)  # the "step" that evaluation folds into the key; no training reaches it
MIN_SHARDED = 2**12  # elements; a smaller array is cheaper to copy than to gather


class Engine(NamedTuple):
    """A compiled model over placed states and host batches. On several hosts, each gives its `rows` of a batch, and all call
    the same functions in the same order."""

    init: Callable[..., State]
    """The state of step 0, placed; given parameters, the one that starts from them."""
    update: Callable[..., tuple[State, Metrics]]
    """(state, batch, notice, limit) -> one step on a batch, or on as many stacked as the model takes; the given state is
    consumed. `notice` of any host is "notice" among the metrics of all, 0 or 1. If guarded, a step whose metrics are not
    finite, or whose losses add up to more than `limit`, changes nothing but the step's number, and "skipped" is 1. If
    several, it takes what so many steps take, stacked, and its metrics are of each of them."""
    evaluate: Callable[[State, HostBatch], Sums]
    """Sums of one batch."""
    test: Callable[[State, HostBatch], Sums]
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
    """A function of a state, compiled; each host has all of what it returns."""
    whole: Callable[[State], State]
    """The state as one of all hosts, as a checkpoint takes it."""
    abstract: State
    """Shapes, dtypes and shardings of a placed state."""
    lower: Callable[[Mapping[str, Any]], Any]
    """The update, lowered and not run, for batches like this one; shapes and dtypes will do."""
    rows: range
    """Of each batch, what this host reads."""


def compile_engine(
    model: GenerativeModel,
    config: Parallel,
    seed: int,
    batch_size: int,
    guard: bool = False,
    devices: Sequence[Any] | None = None,
    several: bool = False,
) -> Engine:
    """The model's functions, mapped and compiled. The key of a step is fold_in(key(seed), step); evaluation has the
    key of step -1, so that it draws the same noise for an example each time. guard: whether bad steps are skipped;
    devices: others than those that are here, to plan for; for those the update is lowered, and nothing is run. several:
    whether an update makes several steps.

    Raises: UserError if the batch or the devices can't be divided.
    """
    here = devices is None
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))[: config.devices] if here else devices
    processes = hosts.count() if here else 1
    data = _data_axis(len(devices), processes, config.tensor)
    if batch_size % (unit := data * model.together):
        packs = f" in packs of {model.together}" if model.together > 1 else ""
        raise UserError(
            f"a batch of {batch_size} can't be divided among {data} devices{packs}; "
            f"the fix: --data.batch-size {max(unit, batch_size // unit * unit)}, or --parallel.devices"
        )
    part, first = batch_size // processes, hosts.index() if here else 0
    axis = int(model.batches is not None) + several  # of the examples in what an update takes

    def init(*params: Any) -> State:
        return model.init(jax.random.key(seed), *params)

    def update(state: State, batch: Batch, control: dict[str, Any]) -> tuple[State, Metrics]:
        new, metrics = model.update(state, batch, jax.random.fold_in(jax.random.key(seed), state.step))
        if guard:
            skipped = ~_is_sound(metrics, model.losses, jax.lax.pmax(control["limit"].max(), "data"))
            kept = jax.tree.map(lambda old, new: jnp.where(skipped, old, new), state, new)
            new = replace(kept, step=new.step)
            metrics = metrics | {"skipped": skipped.astype(jnp.float32)}
        if "notice" in control:
            metrics = metrics | {"notice": jax.lax.pmax(control["notice"].max(), "data")}
        return new, metrics

    def updates(state: State, batches: Batch, control: dict[str, Any]) -> tuple[State, Metrics]:
        """A step on each of the batches: in a loop, but for convolutions on a processor, which take 17 times as long there."""
        step = lambda state, batch: update(state, batch, control)
        first = jax.tree.map(lambda x: x[0], batches)
        apart = devices[0].platform == "cpu" and "conv_general_dilated" in str(jax.make_jaxpr(step)(state, first))
        return jax.lax.scan(step, state, batches, unroll=apart)

    def keyed(evaluate: Any) -> Any:
        return lambda state, batch: evaluate(state, batch, jax.random.fold_in(jax.random.key(seed), EVALUATION))

    def controls(notice: bool, limit: float) -> HostBatch:
        given = {"notice": float(notice)} if processes > 1 else {}
        given |= {"limit": limit} if guard else {}
        return {k: np.full(data // processes, v, np.float32) for k, v in given.items()}

    axes = {"data": data} if config.engine == "pmap" else {"data": data, "model": config.tensor}  # pmap has no other
    mesh = Mesh(np.array(devices).reshape(*axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    shapes = jax.eval_shape(init)
    split = lambda path, x: _split(path_name(path), x.shape, data if config.fsdp else 1, config.tensor, model.rules)
    shardings = jax.tree_util.tree_map_with_path(lambda path, x: NamedSharding(mesh, split(path, x)), shapes)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    bind = _pmap(mesh, processes) if config.engine == "pmap" else _jit(mesh, processes, shardings, config.fsdp)
    step = bind.step(updates if several else update, axis)
    evaluate, test = (bind.sums(keyed(f)) for f in (model.evaluate, model.test or model.evaluate))

    def run(state: State, batch: HostBatch, notice: bool = False, limit: float = math.inf) -> tuple[State, Metrics]:
        state, metrics = step(state, bind.place(batch, axis), bind.place(controls(notice, limit), 0))
        return state, metrics if processes > 1 else metrics | {"notice": float(notice)}  # pyright: ignore

    def lower(batch: Mapping[str, Any]) -> Any:
        placed = [(batch, axis), (controls(False, 0), 0)]
        return step.lower(abstract, *(jax.eval_shape(partial(bind.place, axis=axis), x) for x, axis in placed))

    return Engine(
        # Compiled, so that params and their averages don't share buffers: a donated one would take the other with it.
        init=jax.jit(init, out_shardings=shardings),
        update=run,
        evaluate=lambda state, batch: evaluate(state, bind.place(batch, 0)),
        test=lambda state, batch: test(state, bind.place(batch, 0)),
        compiled=bind.compiled,
        whole=bind.whole,
        abstract=abstract,
        lower=lower,
        rows=range(first * part, (first + 1) * part),
    )


class _Binding(NamedTuple):
    """How an engine binds the axis "data"."""

    step: Callable[[Callable[..., Any], int], Any]
    """(update of (state, batch, control), the batch's axis of examples) -> compiled; the state is consumed."""
    sums: Callable[[Callable[..., Any]], Any]
    """A function of (state, batch), compiled."""
    place: Callable[..., Any]
    """(arrays of this host, their axis of examples) -> as the compiled functions take them."""
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
    whole: Callable[[State], State]


def _pmap(mesh: Mesh, processes: int) -> _Binding:
    """To the devices: one replica on each."""
    bound: Any = {"axis_name": "data", "out_axes": None, "devices": None if processes > 1 else list(mesh.devices.flat)}
    n = mesh.shape["data"] // processes
    replicated = NamedSharding(mesh, P())

    def place(batch: HostBatch, axis: int) -> Any:
        """[..., B / hosts, ...] -> [..., own devices, B / devices, ...]."""
        split = lambda v: v.reshape(*v.shape[:axis], n, v.shape[axis] // n, *v.shape[axis + 1 :])
        return {k: split(v) for k, v in batch.items()}

    def joined(x: Any) -> Any:
        return jax.make_array_from_single_device_arrays(x.shape, replicated, [s.data for s in x.addressable_shards])

    def alone(f: Any) -> Any:
        """f, to whom one device is all of "data": XLA would copy what it averages over one."""
        return jax.vmap(f, in_axes=None, out_axes=None, axis_name="data", axis_size=1) if mesh.size == 1 else f

    return _Binding(
        step=lambda update, axis: jax.pmap(alone(update), in_axes=(None, axis, 0), donate_argnums=0, **bound),
        sums=lambda evaluate: jax.pmap(alone(evaluate), in_axes=(None, 0), **bound),
        place=place,
        compiled=jax.jit,
        # What pmap returns is each host's own.
        whole=lambda state: jax.tree.map(joined, state) if processes > 1 else state,
    )


def _jit(mesh: Mesh, processes: int, shardings: State, fsdp: bool) -> _Binding:
    """To an axis of size one, of which the batch is spread over the mesh."""
    replicated, by_example = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    rows = lambda axis: NamedSharding(mesh, P(*[None] * (axis + 1), "data"))

    def bound(f: Any, *axes: int) -> Any:
        """f for arrays on an axis of size one, and its activations by example, however the state is sharded."""
        f = jax.vmap(f, in_axes=(None, *axes), axis_name="data", axis_size=1, out_axes=None)

        @wraps(f)
        def run(*args: Any) -> Any:
            token = shard_examples.set(lambda x: jax.lax.with_sharding_constraint(x, by_example))
            try:
                return f(*args)
            finally:
                shard_examples.reset(token)

        return run if fsdp else f

    def place(batch: HostBatch, axis: int) -> Any:
        """[..., B / hosts, ...] -> [..., 1, B, ...]."""
        local = {k: v.reshape(*v.shape[:axis], 1, *v.shape[axis:]) for k, v in batch.items()}
        if processes == 1:
            return jax.device_put(local, rows(axis))
        return {k: jax.make_array_from_process_local_data(rows(axis), v) for k, v in local.items()}

    return _Binding(
        step=lambda update, axis: jax.jit(
            bound(update, axis, 0),
            donate_argnums=0,
            in_shardings=(shardings, rows(axis), rows(0)),
            out_shardings=(shardings, replicated),
        ),
        sums=lambda evaluate: jax.jit(
            bound(evaluate, 0),
            in_shardings=(None, rows(0)),  # the state's as it lies, also without its optimizer
            out_shardings=replicated,
        ),
        place=place,
        compiled=lambda function: jax.jit(function, out_shardings=replicated),
        whole=lambda state: state,
    )


def _data_axis(devices: int, processes: int, tensor: int) -> int:
    """How many devices, or groups of `tensor` of them, share a batch. Raises: UserError if they can't be divided."""
    own = jax.local_device_count() if processes > 1 else devices
    if devices != processes * own:
        raise UserError(f"{processes} hosts have {devices} devices, and this one {own}; each needs as many")
    if own % tensor:
        raise UserError(
            f"{own} devices of a host can't be divided by --parallel.tensor {tensor}; the fix: a divisor of them, or "
            "--parallel.devices"
        )
    return devices // tensor


def on_one_device(shapes: Any) -> Any:
    """The same shapes, to be placed on the first device: where sampling is done."""
    place = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def _split(path: str, shape: tuple[int, ...], data: int, tensor: int, rules: Rules) -> P:
    """How an array is sharded. The first rule whose expression is found in the path names the axis that is divided among
    `tensor` devices; without one it is the last of a kernel. Then the largest other axis that can be is divided among `data`
    devices. Small arrays stay whole."""
    axes: list[str | None] = [None] * len(shape)
    if np.prod(shape, dtype=int) < MIN_SHARDED:
        return P()
    if tensor > 1:
        axis = next((axis for rule, axis in rules if re.search(rule, path)), -1 if path.endswith("kernel") else None)
        if axis is not None and shape[axis] % tensor == 0:
            axes[axis] = "model"
    free = [i for i, size in enumerate(shape) if axes[i] is None and size % data == 0]
    if data > 1 and free:
        axes[max(free, key=lambda i: shape[i])] = "data"
    return P(*axes)


def _is_sound(metrics: Metrics, losses: Sequence[str], limit: Any) -> Any:
    """Returns whether all metrics are finite, and the losses add up to at most `limit`. bool []."""
    finite = jnp.stack([jnp.isfinite(value) for value in metrics.values()]).all()
    return finite & (sum((metrics[name] for name in losses), jnp.zeros(())) <= limit)
