"""Two ways to bind the mapped axis "data" of an update to devices (pmap and jit), and the sharding of arrays.

With `pmap`, the axis is bound to the devices, and each device holds a replica of the state. With `jit`, the axis is
bound to a vmap of size one, and the compiler divides the arrays over the devices. Because of the vmap, an update that
forgets to average over "data" is an error at trace time, as with pmap. With jit, the state can be sharded as well: over
the devices that divide a batch among them (FSDP, Zhao et al. 2023), and each layer's matrices over a second axis of
devices (tensor parallelism, Shoeybi et al. 2019).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gen.axis import shard_examples
from gen.core import Array, Batch, HostBatch, Metrics, Rules, State, Sums
from gen.errors import UserError
from gen.runtime.backend import Device

MIN_SHARDED = 2**12
"""Minimum number of elements of a sharded array. Holding a smaller array on every device is cheaper than gathering it."""

Control = dict[str, Array]
"""Inputs of a step besides the batch, {name: float32 [devices]}, the same number for each device. "notice": 1 if the
host has received a signal to stop, otherwise 0. "limit/loss", "limit/gradient": limits above which a step is bad."""
Update = Callable[[State, Batch, Control], tuple[State, Metrics]]
"""(state, batch, control) -> (state after the step, metrics). Written for the axis "data"."""
Evaluate = Callable[[State, Batch], Sums]
"""(state, batch) -> sums over the examples of the batch. Written for the axis "data"."""
Function = Callable[..., Any]
Lowered = jax.stages.Lowered


class Step(Protocol):
    """A compiled update."""

    def __call__(self, state: State, batch: Batch, control: Batch, /) -> tuple[State, Metrics]: ...

    def lower(self, state: State, batch: Batch, control: Batch, /) -> Lowered: ...


class Binding(Protocol):
    """A way to bind the axis "data" to devices."""

    def step(self, update: Update, axis: int) -> Step:
        """Compiles an update. axis: the axis of the batch's arrays on which its examples are.

        The compiled update reuses the memory of the given state, which can't be used afterwards.
        """
        ...

    def sums(self, evaluate: Evaluate) -> Evaluate:
        """Compiles an evaluation: a function of (state, batch) that returns sums over the examples of the batch."""
        ...

    def place(self, batch: HostBatch, axis: int) -> Batch:
        """Returns this host's part of a batch in the form that compiled functions take. axis: the axis of the examples."""
        ...

    def compiled(self, function: Function) -> Function:
        """Compiles a function of a state. Every host gets the whole result, not only its shards."""
        ...

    def whole(self, state: State) -> State:
        """Returns the state as arrays over the devices of all hosts, as a checkpoint needs them."""
        ...


@dataclass(frozen=True)
class PmapBinding:
    """Binds "data" to the devices with pmap. Each device holds a replica of the state. processes: number of hosts."""

    mesh: Mesh
    processes: int

    def step(self, update: Update, axis: int) -> Step:
        # The state is donated: the next state reuses its buffers, so that the memory holds one state and not two.
        return self._map(update, (None, axis, 0), donate=0)  # pyright: ignore[reportReturnType]

    def sums(self, evaluate: Evaluate) -> Evaluate:
        return self._map(evaluate, (None, 0))

    def _map(self, function: Function, in_axes: tuple[int | None, ...], donate: int | tuple[()] = ()) -> Function:
        if self.mesh.size == 1:
            # On one device, a vmap of size one binds "data" instead. With pmap, XLA would copy each array that it averages.
            function = jax.vmap(function, in_axes=None, out_axes=None, axis_name="data", axis_size=1)  # pyright: ignore
        # With several hosts, pmap finds all devices itself; it accepts a list only for one host.
        devices = None if self.processes > 1 else list(self.mesh.devices.flat)
        return jax.pmap(
            function, axis_name="data", in_axes=in_axes, out_axes=None, donate_argnums=donate, devices=devices
        )

    def place(self, batch: HostBatch, axis: int) -> Batch:
        """Reshapes arrays [..., B / hosts, ...] to [..., devices of this host, B / devices, ...]."""
        n = self.mesh.shape["data"] // self.processes

        def split(x: np.ndarray) -> np.ndarray:
            return x.reshape(*x.shape[:axis], n, x.shape[axis] // n, *x.shape[axis + 1 :])

        # pmap itself puts each part on its device.
        return {name: split(x) for name, x in batch.items()}  # pyright: ignore[reportReturnType]

    def compiled(self, function: Function) -> Function:
        return jax.jit(function)

    def whole(self, state: State) -> State:
        if self.processes == 1:
            return state
        # pmap returns arrays of this host's devices only. All hosts hold the same values, so they are one replicated array.
        replicated = NamedSharding(self.mesh, P())

        def join(x: Array) -> Array:
            shards = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, replicated, shards)

        return jax.tree.map(join, state)


@dataclass(frozen=True)
class JitBinding:
    """Binds "data" to a vmap of size one under jit. The compiler divides the batch over the mesh.

    processes: number of hosts. shardings: sharding of each array of the state. fsdp: whether the state is sharded over
    the axis "data" of the mesh, and activations by example.
    """

    mesh: Mesh
    processes: int
    shardings: State
    fsdp: bool

    def step(self, update: Update, axis: int) -> Step:
        return jax.jit(
            self._bound(update, axis, 0),
            # The new state may take over the memory of the old one, which nothing reads after the step.
            donate_argnums=0,
            in_shardings=(self.shardings, self._rows(axis), self._rows(0)),
            out_shardings=(self.shardings, self._replicated),
        )

    def sums(self, evaluate: Evaluate) -> Evaluate:
        # None: the state keeps its shardings. So a state without its optimizer can be given as well.
        return jax.jit(self._bound(evaluate, 0), in_shardings=(None, self._rows(0)), out_shardings=self._replicated)

    def _bound(self, function: Function, *axes: int) -> Function:
        """Wraps a function of (state, *dicts of arrays) in a vmap that binds "data".

        axes: for each of the dicts, the axis of size one of its arrays, which the vmap removes. With FSDP, activations
        are sharded by example.
        """
        f = jax.vmap(function, in_axes=(None, *axes), axis_name="data", axis_size=1, out_axes=None)  # pyright: ignore
        by_example = NamedSharding(self.mesh, P("data"))

        # While f is traced, the networks ask `shard_examples` for the sharding of their activations.
        @wraps(f)
        def run(*args: object) -> object:
            token = shard_examples.set(partial(jax.lax.with_sharding_constraint, shardings=by_example))
            try:
                return f(*args)
            finally:
                shard_examples.reset(token)

        return run if self.fsdp else f

    def _rows(self, axis: int) -> NamedSharding:
        """Returns the sharding by example of arrays [..., 1, B, ...]. axis: the axis of size one."""
        return NamedSharding(self.mesh, P(*[None] * (axis + 1), "data"))

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def place(self, batch: HostBatch, axis: int) -> Batch:
        """Places arrays [..., B / hosts, ...] of each host as one array [..., 1, B, ...], sharded by example."""
        local = {k: v.reshape(*v.shape[:axis], 1, *v.shape[axis:]) for k, v in batch.items()}
        if self.processes == 1:
            return jax.device_put(local, self._rows(axis))
        return {k: jax.make_array_from_process_local_data(self._rows(axis), v) for k, v in local.items()}

    def compiled(self, function: Function) -> Function:
        return jax.jit(function, out_shardings=self._replicated)

    def whole(self, state: State) -> State:
        return state


def data_axis(devices: int, processes: int, tensor: int) -> int:
    """Returns devices / tensor, the size of the axis "data". Each group of `tensor` devices shares the layers' matrices.

    devices: number of devices of all hosts. processes: number of hosts.

    Raises: UserError if hosts have different numbers of devices, or if the devices of a host cannot be divided into
    such groups.
    """
    local = jax.local_device_count() if processes > 1 else devices
    if devices != processes * local:
        raise UserError(
            f"{processes} hosts have {devices} devices, and this host has {local}; each host needs the same number"
        )
    if local % tensor:
        # Several hosts always use all of their devices.
        other = ", or --parallel.devices" if processes == 1 else ""
        raise UserError(
            f"the {local} devices of a host can't be divided by --parallel.tensor {tensor}; the fix: a divisor of "
            f"{local}{other}"
        )
    return devices // tensor


def make_mesh(devices: Sequence[Device], data: int, tensor: int | None) -> Mesh:
    """Returns the devices as a mesh with the axes "data" and "model", of sizes `data` and `tensor`. tensor None: only "data"."""
    axes = {"data": data} if tensor is None else {"data": data, "model": tensor}  # pmap replicates, and has one axis
    shape = np.array(devices).reshape(*axes.values())
    return Mesh(shape, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def shard_state(shapes: State, mesh: Mesh, data: int, tensor: int, rules: Rules) -> State:
    """Adds a sharding to each shape of a state.

    data: number of devices for FSDP. tensor: number of devices for tensor parallelism. 1: no sharding of this kind.
    rules: (regular expression of a parameter's path, axis that is divided among `tensor` devices).
    """

    def place(path: tuple[object, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(
            mesh, _split(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, data, tensor, rules)
        )
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def _split(path: str, shape: tuple[int, ...], data: int, tensor: int, rules: Rules) -> P:
    """Returns how an array is sharded: "model", "data" or None for each axis. Small arrays are not sharded.

    The axis that is divided among `tensor` devices ("model") is the axis of the first rule whose pattern is found in
    the path. Without such a rule, it is the last axis of a kernel. Its size must be a multiple of `tensor`, otherwise
    it is not divided. Then, among the other axes whose size is a multiple of `data`, the largest is divided among
    `data` devices ("data").
    """
    axes: list[str | None] = [None] * len(shape)
    # Gathering a small array costs more than holding it on every device.
    if np.prod(shape, dtype=int) < MIN_SHARDED:
        return P()
    if tensor > 1:
        axis = next((axis for rule, axis in rules if re.search(rule, path)), -1 if path.endswith("kernel") else None)
        if axis is not None and shape[axis] % tensor == 0:
            axes[axis] = "model"
    # FSDP may divide any axis, because arrays are gathered before they are used.
    free = [i for i, size in enumerate(shape) if axes[i] is None and size % data == 0]
    if data > 1 and free:
        axes[max(free, key=lambda i: shape[i])] = "data"
    return P(*axes)
