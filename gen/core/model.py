"""Models: a family builds a `GenerativeModel`, and an engine folds its `update` over batches to move a `State`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gen.core.features import Spec
from gen.core.state import Array, Batch, Key, Metrics, Params, Rules, State, Sums
from gen.errors import UserError, check_positive

MAX_SAMPLES = 100_000
"""Largest number of samples in one request. All of them are in memory together."""
LAUNCH = {"launch": True}
"""Metadata of a config field that may change between launches of one run: it is not part of the run's identity."""


@dataclass(frozen=True)
class Adapter:
    """A way to fine-tune a base: a few new parameters are trained and the base's weights stay fixed. Subclass it to add one."""

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        """Returns the new parameters at step 0. With them the networks do what the base does, or nearly."""
        raise NotImplementedError

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        """Returns the parameters that the networks take."""
        raise NotImplementedError


def means(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Returns {metric: total / weight} of a split's sums, in float64: floats, or arrays for sums that are vectors."""
    value = {name: np.asarray(x, np.float64) / np.asarray(n, np.float64) for name, (x, n) in sums.items()}
    return {name: float(v) if v.ndim == 0 else v for name, v in value.items()}


class GenerativeModel(NamedTuple):
    """A generative model as pure functions, as an optax optimizer pairs init with update.

    The training loop folds `update` over batches. The engine runs `update`, `evaluate` and `test` under a mapped axis named
    "data" (the devices, or an axis of size one), each on its part of the batch. gen.axis has the sums over that axis.

    The log writes each metric of `update` and `summarize`. A step is bad if one of its metrics is not finite, or if the sum of
    its `losses` jumps (gen.runtime.faults). Alarms read "gradient" and "gradient/..." as gradient norms, and "saturation" as the
    share of examples on which a discriminator has nothing left to learn (gen.evaluation.alarms).
    """

    init: Callable[..., State]
    """(key) -> the state of step 0. (key, params) -> the same, starting from these parameters, or adapting them."""
    update: Callable[[State, Batch, Key], tuple[State, Metrics]]
    """(state, batch, key) -> (state after one step, metrics). Metrics are scalars, already averaged over "data"."""
    evaluate: Callable[[State, Batch, Key], Sums]
    """(state, batch, key) -> sums of a held-out batch over "data", exact under padding and any sharding. Runs during training."""
    generate: Callable[..., dict[str, Array]]
    """(state, key, given, request) -> {"samples": array, ...}. `given` holds input arrays such as prompts or images to change."""
    request: type
    """The frozen dataclass of `request`. sample.py and gen.evaluate turn its fields into options."""
    losses: tuple[str, ...] = ("loss",)
    """Names of the metrics of `update` that are losses, one per player. Training lowers each of them on a fixed batch. If a family
    has several players, the loss "loss/NAME" belongs to the optimizer in its field NAME_optim. The contract tests rely on it."""
    test: Callable[[State, Batch, Key], Sums] | None = None
    """Like `evaluate`, but it may be slower and more exact, for numbers to publish. Runs once, on the best checkpoint. None: `evaluate`
    is used."""
    summarize: Callable[[Mapping[str, tuple[Any, Any]]], dict[str, Any]] = means
    """Sums of a split -> metrics. Scalars are logged; arrays are kept in the run's reference.npz."""
    protocol: Mapping[str, Mapping[str, Any]] = {}
    """{metric: how it is estimated}, stored next to each number."""
    batches: int | None = None
    """Batches per update, stacked on a leading axis [n, B, ...]. None: one batch, without that axis."""
    together: int = 1
    """Number of examples that must share a device. The batch on each device is a multiple of it."""
    rules: Rules = ()
    """Tensor parallelism (--parallel.tensor): rules that say which axis of which parameters is sharded."""
    inherited: tuple[str, ...] = ()
    """Entries of State.stats without which the weights mean nothing, such as a codebook. A run that starts from another keeps
    them."""


@dataclass(frozen=True)
class Family:
    """A family of models and its hyper-parameters: the `model` of a config. Subclass it to add a family."""

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """Returns the model for data of this spec, trained for `steps` updates (schedules read it)."""
        raise NotImplementedError

    def count_steps(self, field: str, steps: int) -> int:
        """Returns how many steps the schedules in one of its fields count in a run of `steps` updates."""
        return steps

    def tiny(self) -> Family:
        """Returns the same family with the smallest sizes that still exercise it. The contract tests train it."""
        raise NotImplementedError

    def inherit(self, base: Family, spec: Spec) -> Family:
        """Returns a copy for fine-tuning, in which `base` gives all fields that decide the shapes of parameters.

        spec: the spec that the base was trained on. Raises: UserError if the base is of another family.
        """
        # Not isinstance: a subclass may have other parameters.
        if type(self) is not type(base):
            theirs, ours = (f"{type(family).__module__}.{type(family).__name__}" for family in (base, self))
            raise UserError(
                f"the base is a {theirs}, and this config trains a {ours}; choose a config of the base's family"
            )
        return self

    def adopt(self, params: dict[str, Params], like: dict[str, Params]) -> dict[str, Params]:
        """Returns the parameters of a trained model of this family for the start of another one, whose parameters are shaped as `like`.

        A subclass replaces parameters that depend on the data, such as the vectors of classes. By default all are kept. Both trees
        may have shapes instead of arrays.
        """
        return params

    def with_adapter(self, adapter: Adapter | None) -> Family:
        """Returns this family, which keeps its parameters fixed and trains the adapter. None: it trains its parameters.

        Raises: UserError if the family has no adapters.
        """
        raise UserError(f"{type(self).__module__}.{type(self).__name__} has no adapters; the fix: --finetune full")


@dataclass(frozen=True)
class Request:
    """A request for samples. A family adds its fields in a subclass."""

    pictures: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """{value of the field `mode`: names of the pictures that it takes}. sample.py asks for the pictures, and `given` of `generate` has
    them: "image" float32 [1, H, W, C] in [-1, 1], and "mask" float32 [1, H, W, 1], 1 where the image is known. Runs of pairs take a
    "source" instead of an "image", with the same axes. If a user gives none, validation examples are translated."""

    scores: ClassVar[tuple[str, ...]] = ()
    """Values of the field `mode` that take a score: --midi of sample.py. `given` of `generate` has its "tokens", and "known": which of
    them are kept."""

    n: int = 64
    """Number of samples."""

    def __post_init__(self):
        check_positive(n=self.n)
        if self.n > MAX_SAMPLES:
            raise UserError(f"n is {self.n}; a request has at most {MAX_SAMPLES} samples; use other seeds for more")
