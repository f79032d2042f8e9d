"""The types of models: a `Family` builds a `GenerativeModel`, whose functions train a `State`, score it and sample from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gen.core.features import Spec
from gen.core.state import Array, Batch, Key, Metrics, Params, Rules, State, Sums
from gen.errors import UserError, check_positive

MAX_SAMPLES = 100_000
"""Largest number of samples in one request. All samples of a request are in memory at the same time."""
LAUNCH = {"launch": True}
"""Metadata of a config field that may change each time a run is started. Such a field is not part of the run's identity."""


@dataclass(frozen=True)
class Adapter:
    """A method of fine-tuning that trains a few new parameters, while the weights of the base run stay fixed.

    Subclass it to add a method, as gen.optim.adapters does.
    """

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        """Returns the adapter's own parameters at step 0, {name: pytree}.

        base: parameters of the base run. After `merge`, the networks compute (nearly) the same as with `base`.
        """
        raise NotImplementedError

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        """Returns the networks' parameters: `base`, changed or extended by the adapter's `trained` parameters."""
        raise NotImplementedError


def means(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Returns {metric: total / weight} of a split's sums {metric: (total, weight)}. Scalars become floats, vectors float64 arrays."""
    value = {name: np.asarray(x, np.float64) / np.asarray(n, np.float64) for name, (x, n) in sums.items()}
    return {name: float(v) if v.ndim == 0 else v for name, v in value.items()}


class GenerativeModel(NamedTuple):
    """A generative model: pure functions that create a `State`, train it, evaluate it, and generate samples from it.

    The engine (gen.runtime) calls `update`, `evaluate` and `test` inside a mapped axis named "data". Under pmap the
    axis has one index per device, and each call sees the device's part of the batch. Under jit the axis has size 1.
    gen.axis has the sums and means over this axis.

    The log writes each metric of `update` and `summarize`. Some names of metrics have a meaning: "gradient" and
    "gradient/PLAYER" are gradient norms, and "saturation" is the fraction of examples on which the discriminator's loss
    is nearly minimal. A step is bad if one of its metrics is not finite, or if the sum of its `losses` or a gradient
    norm jumps (gen.runtime.faults).
    """

    init: Callable[..., State]
    """(key) -> the state of step 0, with random parameters. (key, params) -> the state of step 0 with these parameters.
    If the family has an adapter, the state has these parameters in `State.frozen`, and the adapter's new parameters in
    `State.params`."""
    update: Callable[[State, Batch, Key], tuple[State, Metrics]]
    """(state, batch, key) -> (state after one step, metrics). Metrics are scalars, already averaged over the axis "data"."""
    evaluate: Callable[[State, Batch, Key], Sums]
    """(state, batch, key) -> {metric: (total, weight)} of a held-out batch, summed over the axis "data". Padding has
    weight 0. The number of devices does not change the sums. Runs at each evaluation during training."""
    generate: Callable[..., dict[str, Array]]
    """(state, key, given, request) -> {"samples": array [n, ...], ...}. `given` holds input arrays, such as prompts or images to
    change."""
    request: type
    """The class of the argument `request` of `generate`: a frozen dataclass. Its fields are options of sample.py and
    gen.evaluate."""
    losses: tuple[str, ...] = ("loss",)
    """Names of the metrics of `update` that are losses, one per player (a network with its own optimizer). If a family has several
    players, the optimizer of the loss "loss/NAME" is in its field NAME_optim. The contract tests check that training with only this
    optimizer lowers its loss on a fixed batch."""
    test: Callable[[State, Batch, Key], Sums] | None = None
    """Like `evaluate`, but it may be slower and more exact, for numbers to publish. Runs once, on the best checkpoint. None: the
    same as `evaluate`."""
    summarize: Callable[[Mapping[str, tuple[Any, Any]]], dict[str, Any]] = means
    """{metric: (total, weight)} of a whole split -> {metric: value}. Scalars are logged; arrays are kept in the run's
    reference.npz."""
    protocol: Mapping[str, Mapping[str, Any]] = {}
    """{metric: {setting: value}}: how a metric is estimated, such as the number of noise samples. Stored next to each score, so that
    only comparable scores are compared."""
    batches: int | None = None
    """Number n of batches that one `update` takes, for instance for n updates of a discriminator. They are stacked on a
    leading axis: [n, B, ...]. None: one batch [B, ...], without this axis."""
    together: int = 1
    """The batch size per device must be a multiple of this number: the number of microbatches, times the number of
    images that a discriminator sees at once."""
    rules: Rules = ()
    """Rules for tensor parallelism (--parallel.tensor): which axis of which parameters is sharded."""
    inherited: tuple[str, ...] = ()
    """Names of the entries of State.stats that fine-tuning takes from the base run, such as a codebook. Other entries
    start as `init` makes them."""


@dataclass(frozen=True)
class Family:
    """The hyper-parameters of a model: the field `model` of a config. Subclass it to add a family of models, such as VAEs."""

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """Returns the model for data with this spec. steps: updates of the whole run, which schedules such as a cosine read."""
        raise NotImplementedError

    def count_steps(self, field: str, steps: int) -> int:
        """Returns the number of steps that schedules in the field `field`, such as a learning rate, count in a run.

        steps: number of updates of the run. The result is larger if one update makes several steps of the optimizer in
        `field`, as for a discriminator that is trained more often. By default it is `steps`.
        """
        return steps

    def tiny(self) -> Family:
        """Returns a copy with the smallest sizes that still run all code of the family, for the contract tests to train."""
        raise NotImplementedError

    def inherit(self, base: Family, spec: Spec) -> Family:
        """Returns a copy of this family for fine-tuning. The fields that decide the shapes of parameters are copied from `base`.

        base: the family of the base run. spec: the spec of the data that the base was trained on. A subclass names the
        fields; by default, no field is copied. Raises: UserError if the base is of another family.
        """
        # Types are compared instead of isinstance, because a subclass may have other parameters.
        if type(self) is not type(base):
            theirs, ours = (f"{type(family).__module__}.{type(family).__name__}" for family in (base, self))
            raise UserError(
                f"the base is a {theirs}, and this config trains a {ours}; choose a config of the base's family"
            )
        return self

    def adopt(self, params: dict[str, Params], like: dict[str, Params]) -> dict[str, Params]:
        """Returns the parameters with which a run that is fine-tuned from this family begins.

        params: parameters of the trained base. like: parameters of the new run's model, for their shapes. Both may hold
        jax.ShapeDtypeStruct instead of arrays. A subclass replaces parameters that depend on the data, such as the
        embeddings of classes, if their shapes differ. By default `params` is returned unchanged.
        """
        return params

    def with_adapter(self, adapter: Adapter | None) -> Family:
        """Returns a copy of this family that trains only the adapter, and keeps its other parameters fixed.

        adapter: None means a copy that trains all parameters. Raises: UserError if the family can't be trained with
        adapters, which is the default.
        """
        raise UserError(f"{type(self).__module__}.{type(self).__name__} has no adapters; the fix: --finetune full")


@dataclass(frozen=True)
class Request:
    """The settings of one call of `generate`. A family adds fields in a subclass, such as a temperature."""

    pictures: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """{value of the field `mode`, such as "inpaint": names of the input pictures of this mode}. The user names their
    files in options of sample.py. `generate` gets them in `given`: "image" float32 [1, H, W, C] in [-1, 1], and "mask"
    float32 [1, H, W, 1], 1 where the image is known. A model that translates images takes "source" instead of "image",
    with the same shape. If the user gives no source, sample.py translates validation examples."""

    scores: ClassVar[tuple[str, ...]] = ()
    """Values of the field `mode` for which `generate` takes a score of music, from the option --midi of sample.py.
    `given` then has "tokens" int32 [1, frames, voices], and "known" bool of the same shape: which tokens to keep."""

    n: int = 64
    """Number of samples."""

    def __post_init__(self):
        check_positive(n=self.n)
        if self.n > MAX_SAMPLES:
            raise UserError(f"n is {self.n}; a request has at most {MAX_SAMPLES} samples; use other seeds for more")
