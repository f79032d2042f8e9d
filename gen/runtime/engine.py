"""Engines: compile a model for one device or many. `gen.runtime.binding` has the differences between pmap and jit.

Only these two files call pmap, and make meshes and shardings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from gen.config import Parallel
from gen.core import Array, Batch, GenerativeModel, HostBatch, Metrics, Params, State, Sums
from gen.errors import UserError
from gen.runtime import agreement, hosts
from gen.runtime.backend import Device
from gen.runtime.binding import (
    Binding,
    Control,
    Evaluate,
    Function,
    JitBinding,
    Lowered,
    PmapBinding,
    Step,
    data_axis,
    make_mesh,
    shard_state,
)
from gen.runtime.faults import Limits, is_gradient

EVALUATION = np.uint32(2**32 - 1)
"""The number that evaluation folds into the key in place of a step. Training never reaches this step, so the noise of evaluation differs
from the noise of every step."""


T = TypeVar("T")


class Engine(NamedTuple):
    """A compiled model. Its functions take states that are placed on the devices, and batches in host memory.

    With several hosts, each host passes its `rows` of a batch, and all hosts must call the same functions in the same order.
    """

    init: Callable[..., State]
    """() -> the placed state of step 0. With an argument, (params) -> the state of step 0 with these parameters."""
    update: Callable[..., tuple[State, Metrics]]
    """(state, batch, notice, limits) -> (state after the step, metrics). The given state can't be used afterwards.

    notice: bool, whether this host has received a signal to stop. The metric "notice" is 1 if any host passed True,
    otherwise 0. limits: gen.runtime.faults.Limits. With a guard, a step whose metrics are not finite, or above the
    limits, changes only the step number, and its metric "skipped" is 1. If a model takes several batches per update,
    they are stacked on a leading axis. If an engine makes `several` steps per call, the batches of the steps are
    stacked on a leading axis, and so are the metrics."""
    evaluate: Callable[[State, HostBatch], Sums]
    """(state, batch) -> sums of one batch. See `GenerativeModel.evaluate`."""
    test: Callable[[State, HostBatch], Sums]
    """(state, batch) -> sums of one batch. See `GenerativeModel.test`. A model without a test is evaluated instead."""
    compiled: Callable[[Function], Function]
    """Compiles a function of a state. Every host gets the whole result, not only its shards."""
    whole: Callable[[State], State]
    """Returns the state as arrays over the devices of all hosts, as a checkpoint needs them."""
    abstract: State
    """Shapes, dtypes and shardings of a placed state."""
    lower: Callable[[Mapping[str, object]], Lowered]
    """(batch) -> the update, lowered to a program but not run. The batch has arrays, or only shapes and dtypes."""
    rows: range
    """The rows of each batch that this host reads."""


def compile_engine(
    model: GenerativeModel,
    config: Parallel,
    seed: int,
    batch_size: int,
    guard: bool = False,
    devices: Sequence[Device] | None = None,
    several: bool = False,
) -> Engine:
    """Returns the model's functions, mapped over devices and compiled on their first call.

    batch_size: examples of a global batch. guard: whether the updates of bad steps are discarded (gen.runtime.faults).
    devices: the devices to compile for. They need not exist, and then the update can only be lowered. None: the devices
    of all hosts. several: whether a call of the update makes several steps.

    The key of a step is fold_in(key(seed), step). Evaluation always uses the same key, so that the noise of an example is the
    same each time.

    Raises: UserError if the batch cannot be divided among the devices, or the devices into groups of `config.tensor`.
    """
    planned = devices is not None
    if devices is None:
        # Sorted by host: host h reads the h-th part of each batch, and its devices must get these rows.
        devices = sorted(jax.devices(), key=attrgetter("process_index", "id"))[: config.devices]
    processes = 1 if planned else hosts.count()
    program = _Program(model, config, seed, guard, several, tuple(devices), processes)
    _check_batch(batch_size, program.data, model.together)
    part, first = batch_size // processes, 0 if planned else hosts.index()
    return program.engine(range(first * part, (first + 1) * part))


@dataclass(frozen=True)
class _Program:
    """The functions of one engine, and the devices that they run on."""

    model: GenerativeModel
    config: Parallel
    seed: int
    guard: bool
    several: bool
    devices: tuple[Device, ...]
    processes: int

    def engine(self, rows: range) -> Engine:
        """Returns the compiled functions. rows: the rows of each batch that this host reads."""
        model, binding = self.model, self.binding
        step = binding.step(self.updates if self.several else self.update, self.example_axis)
        evaluate = binding.sums(self.with_evaluation_key(model.evaluate))
        test = binding.sums(self.with_evaluation_key(model.test or model.evaluate))
        if self.processes > 1:
            step = agreement.check_program("update", step)
            evaluate = agreement.check_program("evaluation", evaluate)
            test = agreement.check_program("test", test)

        return Engine(
            # Compiled, so that the parameters and their averages have separate buffers. Donating a shared buffer would delete both.
            init=jax.jit(self.init, out_shardings=self.shardings),
            update=partial(self.run, step),
            evaluate=partial(self.sum_batch, evaluate),
            test=partial(self.sum_batch, test),
            compiled=binding.compiled,
            whole=binding.whole,
            abstract=self.abstract,
            lower=partial(self.lower, step),
            rows=rows,
        )

    # Functions of the model, written for the axis "data".

    def init(self, *params: Params) -> State:
        return self.model.init(jax.random.key(self.seed), *params)

    def update(self, state: State, batch: Batch, control: Control) -> tuple[State, Metrics]:
        """Makes one step. With a guard, keeps the old state if the step is bad, except for its step number."""
        new, metrics = self.model.update(state, batch, jax.random.fold_in(jax.random.key(self.seed), state.step))
        if self.guard:
            # Metrics are the same on all devices. pmax makes the limits the same too, so all devices decide alike.
            limits = Limits(*(jax.lax.pmax(control[f"limit/{name}"].max(), "data") for name in Limits._fields))
            skipped = ~_is_sound(metrics, self.model.losses, limits)
            # `where` and not `cond`: both states are in memory in any case.
            kept = jax.tree.map(partial(jnp.where, skipped), state, new)
            new = replace(kept, step=new.step)
            metrics = metrics | {"skipped": skipped.astype(jnp.float32)}
        if "notice" in control:
            # All hosts must stop at the same step, whichever of them got the signal.
            metrics = metrics | {"notice": jax.lax.pmax(control["notice"].max(), "data")}
        return new, metrics

    def updates(self, state: State, batches: Batch, control: Control) -> tuple[State, Metrics]:
        """Makes one step on each of the stacked batches [n, ...]. The metrics of the steps are stacked, too: [n]."""

        def step(state: State, batch: Batch) -> tuple[State, Metrics]:
            return self.update(state, batch, control)

        # In a loop on a CPU, XLA runs convolutions 17 times slower. So models that convolve are unrolled there.
        first = jax.tree.map(itemgetter(0), batches)
        on_cpu = self.devices[0].platform == "cpu"
        unroll = on_cpu and "conv_general_dilated" in str(jax.make_jaxpr(step)(state, first))
        return jax.lax.scan(step, state, batches, unroll=unroll)

    def with_evaluation_key(self, evaluate: Callable[..., Sums]) -> Evaluate:
        def with_key(state: State, batch: Batch) -> Sums:
            return evaluate(state, batch, jax.random.fold_in(jax.random.key(self.seed), EVALUATION))

        return with_key

    # Functions that the training loop calls.

    def run(
        self, step: Step, state: State, batch: HostBatch, notice: bool = False, limits: Limits = Limits()
    ) -> tuple[State, Metrics]:
        """Makes the steps of one call on this host's rows of the batch."""
        place = self.binding.place
        state, metrics = step(state, place(batch, self.example_axis), place(self.control(notice, limits), 0))
        # A single host knows its notice, so the notice does not need to pass through the compiled step.
        noticed = metrics if self.processes > 1 else {**metrics, "notice": float(notice)}
        return state, noticed  # pyright: ignore[reportReturnType]

    def sum_batch(self, compiled: Evaluate, state: State, batch: HostBatch) -> Sums:
        """Returns {metric: (total, weight)} of one batch, summed over the rows of all hosts. batch: this host's rows."""
        return compiled(state, self.binding.place(batch, 0))

    def lower(self, step: Step, batch: Mapping[str, object]) -> Lowered:
        """Lowers the update to a program for batches with the shapes and dtypes of this batch."""
        # Only shapes are placed, so the devices need not exist.
        place = self.binding.place
        batches = jax.eval_shape(partial(place, axis=self.example_axis), batch)
        control = jax.eval_shape(partial(place, axis=0), self.control(False, Limits()))
        return step.lower(self.abstract, batches, control)

    def control(self, notice: bool, limits: Limits) -> HostBatch:
        """Returns the control inputs of a step on this host, {name: float32 [data-parallel devices of this host]}.

        Each number is repeated for each device, so that it is divided like a batch.
        """
        given: dict[str, float] = {"notice": float(notice)} if self.processes > 1 else {}
        given |= {f"limit/{name}": value for name, value in limits._asdict().items()} if self.guard else {}
        return {k: np.full(self.data // self.processes, v, np.float32) for k, v in given.items()}

    # Devices and shardings.

    @cached_property
    def data(self) -> int:
        """Number of parts into which a batch is divided: number of devices, or of groups of `tensor` devices."""
        return data_axis(len(self.devices), self.processes, self.config.tensor)

    @property
    def example_axis(self) -> int:
        """Axis of the examples in the arrays that an update takes. The axes of stacked steps and stacked batches come before it."""
        return int(self.model.batches is not None) + self.several

    @cached_property
    def abstract(self) -> State:
        """Shapes, dtypes and shardings of a placed state."""
        data = self.data if self.config.fsdp else 1
        return shard_state(jax.eval_shape(self.init), self.mesh, data, self.config.tensor, self.model.rules)

    @property
    def shardings(self) -> State:
        """The sharding of each array of the state."""
        return jax.tree.map(attrgetter("sharding"), self.abstract)

    @cached_property
    def mesh(self) -> Mesh:
        return make_mesh(self.devices, self.data, None if self.config.engine == "pmap" else self.config.tensor)

    @cached_property
    def binding(self) -> Binding:
        if self.config.engine == "pmap":
            return PmapBinding(self.mesh, self.processes)
        return JitBinding(self.mesh, self.processes, self.shardings, self.config.fsdp)


def on_one_device(shapes: T) -> T:
    """Returns a pytree of shapes with the sharding "whole on the first device of this host", where sampling runs."""
    place = SingleDeviceSharding(jax.local_devices()[0])

    def place_shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    return jax.tree.map(place_shape, shapes)


def _check_batch(batch_size: int, data: int, together: int) -> None:
    """Raises: UserError if a batch cannot be divided into `data` equal parts that each consist of packs of `together` examples."""
    unit = data * together
    if batch_size % unit:
        packs = f" in packs of {together}" if together > 1 else ""
        raise UserError(
            f"a batch of {batch_size} can't be divided among {data} devices{packs}; "
            f"the fix: --data.batch-size {max(unit, batch_size // unit * unit)}, or another --parallel.devices"
        )


def _is_sound(metrics: Metrics, losses: Sequence[str], limits: Limits) -> Array:
    """Returns whether all metrics are finite, and the sum of losses and the gradient norm are within the limits, bool []."""
    finite = jnp.stack([jnp.isfinite(value) for value in metrics.values()]).all()
    # The same two numbers as in `faults.after`, from which the limits are computed.
    loss = sum((metrics[name] for name in losses), jnp.zeros(()))
    squares = sum((jnp.square(value) for name, value in metrics.items() if is_gradient(name)), jnp.zeros(()))
    return finite & (loss <= limits.loss) & (jnp.sqrt(squares) <= limits.gradient)
