"""The two ways to bind an update's mapped axis "data" to devices, and how arrays are sharded over them.

`pmap` binds the axis to the devices, one replica each. `jit` binds it by a vmap of size one, and the compiler divides the arrays
inside. The vmap makes a forgotten average an error at trace time, as under pmap. Under jit, the state can be sharded as well:
over the devices that share a batch (FSDP, Zhao et al. 2023), and each layer's matrices over a second axis of devices (tensor
parallelism, Shoeybi et al. 2019).
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
"""Number of elements from which an array is sharded. Copying a smaller one is cheaper than gathering it."""

Control = dict[str, Array]
"""Input of a step besides the batch, one number per device: "notice" and the limits of bad steps, float32 [devices]."""
Update = Callable[[State, Batch, Control], tuple[State, Metrics]]
Evaluate = Callable[[State, Batch], Sums]
Function = Callable[..., Any]
Lowered = jax.stages.Lowered


class Step(Protocol):
    """A compiled update."""

    def __call__(self, state: State, batch: Batch, control: Batch, /) -> tuple[State, Metrics]: ...

    def lower(self, state: State, batch: Batch, control: Batch, /) -> Lowered: ...


class Binding(Protocol):
    """How an engine binds the axis "data"."""

    def step(self, update: Update, axis: int) -> Step:
        """Compiles an update whose batch has its examples on `axis`. Its state is consumed."""
        ...

    def sums(self, evaluate: Evaluate) -> Evaluate:
        """Compiles a function of (state, batch)."""
        ...

    def place(self, batch: HostBatch, axis: int) -> Batch:
        """Returns the arrays of this host as the compiled functions take them. axis: the axis of their examples."""
        ...

    def compiled(self, function: Function) -> Function:
        """Compiles a function of a state. Every host gets its whole result."""
        ...

    def whole(self, state: State) -> State:
        """Returns the state as arrays that all hosts share."""
        ...


@dataclass(frozen=True)
class PmapBinding:
    """Binds "data" to the devices: one replica on each."""

    mesh: Mesh
    processes: int

    def step(self, update: Update, axis: int) -> Step:
        # The state is donated: its buffers become the next state's, so memory holds one state and not two.
        return self._map(update, (None, axis, 0), donate=0)  # pyright: ignore[reportReturnType]

    def sums(self, evaluate: Evaluate) -> Evaluate:
        return self._map(evaluate, (None, 0))

    def _map(self, function: Function, in_axes: tuple[int | None, ...], donate: int | tuple[()] = ()) -> Function:
        if self.mesh.size == 1:
            # A vmap of size one inside takes over the name "data": XLA would copy an array to average it over one device.
            function = jax.vmap(function, in_axes=None, out_axes=None, axis_name="data", axis_size=1)  # pyright: ignore
        # With several hosts, pmap finds all devices itself; it accepts a list only for one host.
        devices = None if self.processes > 1 else list(self.mesh.devices.flat)
        return jax.pmap(
            function, axis_name="data", in_axes=in_axes, out_axes=None, donate_argnums=donate, devices=devices
        )

    def place(self, batch: HostBatch, axis: int) -> Batch:
        """[..., B / hosts, ...] -> [..., devices of this host, B / devices, ...]."""
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
    """Binds "data" to an axis of size one. The compiler divides the batch on that axis over the mesh."""

    mesh: Mesh
    processes: int
    shardings: State
    fsdp: bool

    def step(self, update: Update, axis: int) -> Step:
        return jax.jit(
            self._bound(update, axis, 0),
            donate_argnums=0,
            in_shardings=(self.shardings, self._rows(axis), self._rows(0)),
            out_shardings=(self.shardings, self._replicated),
        )

    def sums(self, evaluate: Evaluate) -> Evaluate:
        # None: the state is used as it lies, so that a state without its optimizer fits as well.
        return jax.jit(self._bound(evaluate, 0), in_shardings=(None, self._rows(0)), out_shardings=self._replicated)

    def _bound(self, function: Function, *axes: int) -> Function:
        """Maps (state, arrays with an axis of size one on `axes`). Under FSDP, activations stay sharded by example."""
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
        """The sharding of arrays [..., 1, B, ...] by example. axis: the axis of size one."""
        return NamedSharding(self.mesh, P(*[None] * (axis + 1), "data"))

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def place(self, batch: HostBatch, axis: int) -> Batch:
        """[..., B / hosts, ...] -> [..., 1, B, ...]."""
        local = {k: v.reshape(*v.shape[:axis], 1, *v.shape[axis:]) for k, v in batch.items()}
        if self.processes == 1:
            return jax.device_put(local, self._rows(axis))
        return {k: jax.make_array_from_process_local_data(self._rows(axis), v) for k, v in local.items()}

    def compiled(self, function: Function) -> Function:
        return jax.jit(function, out_shardings=self._replicated)

    def whole(self, state: State) -> State:
        return state


def data_axis(devices: int, processes: int, tensor: int) -> int:
    """Returns the number of groups of `tensor` devices. Raises: UserError if devices cannot be divided."""
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
    """Returns the devices as a mesh with the axes "data" and "model" of sizes `data` and `tensor`. None: without "model"."""
    axes = {"data": data} if tensor is None else {"data": data, "model": tensor}  # pmap replicates, and has one axis
    shape = np.array(devices).reshape(*axes.values())
    return Mesh(shape, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def shard_state(shapes: State, mesh: Mesh, data: int, tensor: int, rules: Rules) -> State:
    """Returns the shapes with the sharding of each array: among `data` devices (1: whole) and among `tensor` devices."""

    def place(path: tuple[object, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(
            mesh, _split(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, data, tensor, rules)
        )
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def _split(path: str, shape: tuple[int, ...], data: int, tensor: int, rules: Rules) -> P:
    """Returns how an array is sharded. Small arrays stay whole.

    The first rule whose expression is found in the path names the axis that is divided among `tensor` devices. Without such a
    rule, it is the last axis of a kernel. Then the largest other axis that `data` divides is divided among `data` devices.
    """
    axes: list[str | None] = [None] * len(shape)
    # Gathering a small array costs more than holding it on every device.
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
