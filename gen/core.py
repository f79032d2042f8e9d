"""The types that every room shares: features, batches, states, models, data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from gen.errors import UserError

MAX_SIZE = 2**26
"""Numbers of an example at most, and classes or tokens to choose from."""
LAUNCH = {"launch": True}
"""Metadata of a config's field that may change between launches of one run: it is no part of the run's identity."""

Array = jax.Array
Key = jax.Array
Params = Any
Batch = dict[str, Array]
HostBatch = dict[str, np.ndarray]
Metrics = dict[str, Array]
Sums = dict[str, tuple[Array, Array]]
Rules = tuple[tuple[str, int | None], ...]
"""(regular expression, axis; None: none) pairs; the first that is found in an array's path counts."""


@dataclass(frozen=True)
class Feature:
    """What one entry of a batch holds, as a model sees it (after preprocessing)."""

    shape: tuple[int, ...]
    """Shape of one example, without the batch axis."""
    dtype: str = "float32"
    """Its dtype by name."""
    classes: int | None = None
    """Number of classes, if it is a label in [0, classes)."""
    vocab: int | None = None
    """Size of the vocabulary, if it is tokens in [0, vocab)."""
    end: int | None = None
    """The token that stands between documents, if it is tokens: each document begins with it."""
    sample_rate: int | None = None
    """Samples per second in Hz, if it is audio."""
    levels: int | None = None
    """Number of equally spaced values in [-1, 1] that the feature takes: 256 for bytes, 2 if binarized; None if unknown."""
    dequantized: bool = False
    """Whether uniform noise of one level's width was added, so that a density bounds the mass of the levels."""


Spec = Mapping[str, Feature]


@dataclass(frozen=True)
class Adapter:
    """How a base is adapted: a few parameters are trained beside weights that stay as they are. Subclass it to add a way."""

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        """What is trained, as it is before the first step: with it, the networks do what the base does, or nearly."""
        raise NotImplementedError

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        """The parameters that the networks take."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that training changes, and all that a checkpoint holds: arrays only. No random key: a step's key is
    fold_in(key(seed), step)."""

    step: Array
    """int32[]. The number of updates done; never goes back."""
    params: dict[str, Params]
    """What is trained, by player or part."""
    opt_state: dict[str, optax.OptState]
    """By optimizer."""
    ema: dict[str, Params] = field(default_factory=dict)
    """Running averages of params that samples are drawn from; {} = use params."""
    stats: dict[str, Any] = field(default_factory=dict)
    """What is estimated rather than descended: batch statistics, codebook averages."""
    frozen: dict[str, Params] = field(default_factory=dict)
    """Read, never written, nor saved: a fine-tuning base, another run's tokenizer."""


class GenerativeModel(NamedTuple):
    """A generative model as pure functions, as optax pairs init with update.

    `update`, `evaluate` and `test` run under a mapped axis named "data" (the devices, or an axis of size one) on a part
    of the batch; every example carries its position `row` in the whole batch and its `weight` (0 = padding).
    """

    init: Callable[..., State]
    """(key) -> the state of step 0; (key, params) -> the same that starts from these, or stands on them if it is adapted."""
    update: Callable[[State, Batch, Key], tuple[State, Metrics]]
    """One training step; metrics are scalars, already averaged over "data"."""
    evaluate: Callable[[State, Batch, Key], Sums]
    """{name: (total, count)} of a batch, summed over "data": exact under padding and any sharding. Run during training."""
    test: Callable[[State, Batch, Key], Sums]
    """As `evaluate`, as thorough as published numbers are. Run once, on the best checkpoint."""
    summarize: Callable[[Mapping[str, tuple[Any, Any]]], dict[str, Any]]
    """Sums of a split -> metrics. Scalars are logged; vectors are kept in the run's reference.npz."""
    generate: Callable[..., dict[str, Array]]
    """(state, key, given, request) -> {"samples": ...}. `given` holds arrays (images to change, prompts); `request` is
    the family's frozen dataclass, of which sample.py makes its command line."""
    request: type
    """The class of `request`."""
    protocol: Mapping[str, Mapping[str, Any]]
    """{metric: how it is estimated}; stored beside the number."""
    batches: int | None = None
    """Batches that an update takes, stacked on a leading axis [n, B, ...]; None: one, without that axis."""
    together: int = 1
    """Examples that must be on one device: a batch there is a multiple of it."""
    rules: Rules = ()
    """Which axis of which parameters devices divide that share an example (--parallel.tensor)."""


@dataclass(frozen=True)
class Family:
    """A config's `model`: hyper-parameters that build a family. Subclass it to add one."""

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """The model for examples of `spec`, trained for `steps` (schedules read it)."""
        raise NotImplementedError

    def tiny(self) -> Family:
        """The same model, as small as the contract tests want it."""
        raise NotImplementedError

    def inherit(self, base: Family, spec: Spec) -> Family:
        """This config with what decides the shapes of parameters taken from the base's, which has examples of `spec`.

        Raises: UserError if it is another family's.
        """
        if type(self) is not type(base):
            family = lambda config: type(config).__module__
            raise UserError(f"the base is of {family(base)}, and this config of {family(self)}; choose a config of it")
        return self

    def adapted(self, adapter: Adapter | None) -> Family:
        """The config of this model with its parameters as a fixed base, and the adapter trained; None: without one again.

        Raises: UserError if the family has no adapters.
        """
        raise UserError(f"{type(self).__module__} has no adapters; the fix: --finetune full")


class Dataset(NamedTuple):
    """Examples as pure functions of (seed, step, row): random access, no iterator state."""

    spec: Spec
    """What the model sees: features after `preprocess`."""
    sizes: dict[str, int]
    """Number of examples of "train", "validation" and "test"."""
    digest: str
    """SHA-256 over what the examples are made from."""
    batch: Callable[[int, int, range], HostBatch]
    """(seed, step, rows) -> those rows of a training batch: uint8 and integers, with "row" and "index"."""
    evaluation: Callable[..., Iterator[HostBatch]]
    """(split, batch size) -> the split in order, the last batch padded; "weight" is 0 on padding. (split, batch size, rows) ->
    those rows of each batch."""
    preprocess: Callable[[Batch, Key, bool], Batch]
    """(batch, key, training) -> what the model sees. Runs in the compiled step; its noise belongs to (key, row)."""
    files: Mapping[str, bytes] = {}
    """What a run keeps of the data beside their spec, by file name: a tokenizer."""
    protocol: Mapping[str, Any] = {}
    """How the evaluation splits are read, stored beside each number."""
    baselines: Callable[[], dict[str, float]] = dict
    """() -> {metric: what a trivial model reaches on the test split}, stored beside the model's own."""


@dataclass(frozen=True)
class Data:
    """A config's `data`. Subclass it to add a kind of data."""

    batch_size: int = 128
    """Examples a step, over all devices and hosts."""

    def build(self) -> Dataset:
        raise NotImplementedError
