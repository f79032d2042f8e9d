"""The types that every room shares: features, batches, states, models and data sets. Nothing else lives here.

A `Data` builds a `Dataset`, a `Family` builds a `GenerativeModel`, and an engine folds `update` over `batch` to move a `State`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import optax

from gen.errors import UserError, check_positive

MAX_SIZE = 2**26
"""Upper bound on the numbers in one example, and on classes and vocabularies. Larger sizes come from a damaged spec.json."""
LAUNCH = {"launch": True}
"""Metadata of a config field that may change between launches of one run: it is not part of the run's identity."""

Array = jax.Array
Key = jax.Array
"""A typed key of jax.random."""
Params = Any
"""A pytree of arrays."""
Batch = dict[str, Array]
"""{feature name: array [B, ...]}, plus "row" int32 [B] (position in the global batch) and "weight" [B] (0 for padding)."""
HostBatch = dict[str, np.ndarray]
"""A Batch in host memory, before it is put on devices."""
Metrics = dict[str, Array]
"""{metric: scalar}."""
Sums = dict[str, tuple[Array, Array]]
"""{metric: (total, weight)}. The metric of a split is the sum of its totals over the sum of its weights."""
Rules = tuple[tuple[str, int | None], ...]
"""(regular expression, axis) pairs for tensor parallelism. The first expression found in a parameter's path decides which
of its axes is divided among devices; None: no axis."""


@dataclass(frozen=True)
class Feature:
    """One entry of a batch as a model sees it, after preprocessing: its shape, its dtype, and the meaning of its numbers."""

    shape: tuple[int, ...]
    """Shape of one example, without the batch axis."""
    dtype: str = "float32"
    """Name of the dtype."""
    classes: int | None = None
    """For a label: the number of classes. Labels are in [0, classes)."""
    vocab: int | None = None
    """For tokens: the size of the vocabulary. Tokens are in [0, vocab)."""
    end: int | None = None
    """For tokens: the token that separates documents. Each document begins with it."""
    sample_rate: int | None = None
    """For audio: samples per second, in Hz."""
    levels: int | None = None
    """Number of equally spaced values in [-1, 1] that the feature takes: 256 for bytes, 2 if binarized. None: unknown."""
    dequantized: bool = False
    """Whether uniform noise of one level's width was added, so that a density bounds the probability of the levels."""
    names: tuple[str, ...] | None = field(default=None, compare=False, repr=False)
    """For a label: the name of each class. They describe the data to people: no model depends on them. None: unknown."""


Spec = Mapping[str, Feature]
"""{name: feature} of the data. Names: image, label, tokens, source."""


@dataclass(frozen=True)
class Adapter:
    """A way to fine-tune a base: a few new parameters are trained and the base's weights stay fixed. Subclass it to add one."""

    def begin(self, key: Key, base: dict[str, Params]) -> dict[str, Params]:
        """Returns the new parameters at step 0. With them the networks do what the base does, or nearly."""
        raise NotImplementedError

    def merge(self, trained: dict[str, Params], base: dict[str, Params]) -> dict[str, Params]:
        """Returns the parameters that the networks take."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that training changes and that a checkpoint holds. Arrays only.

    It has no random key: the key of a step is fold_in(key(seed), step), made inside the compiled step.
    """

    step: Array
    """int32 []. Number of updates done. It never decreases."""
    params: dict[str, Params]
    """Trained parameters, by player or part."""
    opt_state: dict[str, optax.OptState]
    """Optimizer states, by optimizer. Moments are at least float32, whatever the dtype of params."""
    ema: dict[str, Params] = field(default_factory=dict)
    """Moving averages of params, at least float32, used for evaluation and sampling. {}: params are used instead."""
    stats: dict[str, Any] = field(default_factory=dict)
    """Values that are estimated and not trained by gradients, such as batch statistics."""
    frozen: dict[str, Params] = field(default_factory=dict)
    """Weights that are read but never changed or saved, such as the base of an adapter."""


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
    """As `evaluate`, but as thorough as published numbers are. Runs once, on the best checkpoint. None: `evaluate` is used."""
    summarize: Callable[[Mapping[str, tuple[Any, Any]]], dict[str, Any]] = means
    """Sums of a split -> metrics. Scalars are logged; arrays are kept in the run's reference.npz."""
    protocol: Mapping[str, Mapping[str, Any]] = {}
    """{metric: how it is estimated}, stored next to each number."""
    batches: int | None = None
    """Batches per update, stacked on a leading axis [n, B, ...]. None: one batch, without that axis."""
    together: int = 1
    """Number of examples that must share a device. The batch on each device is a multiple of it."""
    rules: Rules = ()
    """Tensor parallelism: which axis of which parameters is divided among devices (--parallel.tensor)."""


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
        """Returns this family with every field that decides a parameter's shape copied from `base`, for fine-tuning.

        spec: the spec that the base was trained on. Raises: UserError if the base is of another family.
        """
        # Not isinstance: a subclass may have other parameters.
        if type(self) is not type(base):
            theirs, ours = (f"{type(family).__module__}.{type(family).__name__}" for family in (base, self))
            raise UserError(
                f"the base is a {theirs}, and this config trains a {ours}; choose a config of the base's family"
            )
        return self

    def with_adapter(self, adapter: Adapter | None) -> Family:
        """Returns this family with its parameters as a fixed base and the adapter, if any, trained. Raises: UserError if it can't."""
        raise UserError(f"{type(self).__module__}.{type(self).__name__} has no adapters; the fix: --finetune full")


@dataclass(frozen=True)
class Request:
    """What to generate. A family adds its own fields in a subclass."""

    n: int = 64
    """Number of samples."""

    def __post_init__(self):
        check_positive(n=self.n)


class Dataset(NamedTuple):
    """Examples as pure functions of (seed, step, row): random access, no iterator state to save."""

    spec: Spec
    """Features that the model sees, after `preprocess`."""
    sizes: dict[str, int]
    """Number of examples in "train", "validation" and "test"."""
    digest: str
    """SHA-256 of everything that the examples are made from."""
    batch: Callable[[int, int, range], HostBatch]
    """(seed, step, rows) -> these rows of a training batch: uint8 and integers, with "row" and "index"."""
    evaluation: Callable[..., Iterator[HostBatch]]
    """(split, batch size[, rows]) -> the split in order, in batches (these rows of each). The last has padding of "weight" 0."""
    preprocess: Callable[[Batch, Key, bool], Batch]
    """(batch, key, training) -> what the model sees. Runs in the compiled step. Its noise is drawn from (key, row)."""
    files: Mapping[str, bytes] = {}
    """{file name: content} that a run keeps next to its spec, such as a tokenizer."""
    protocol: Mapping[str, Any] = {}
    """How the held-out splits are read, stored next to each number."""
    baselines: Callable[[], dict[str, float]] = dict
    """() -> {metric: score of a trivial model on the test split}, stored next to the model's scores."""
    older: tuple[str, ...] = ()
    """Digests of the same examples that older versions gave, without the content of large sets. They are accepted with a warning."""


class RunView(NamedTuple):
    """The parts of a run that a medium may read, during training and afterwards."""

    data: Data
    """The kind of data and its settings, from the run's config."""
    spec: Spec
    read_file: Callable[[str], bytes]
    """(file name) -> content of one of `Dataset.files`. Raises: UserError if it is missing."""
    reference: Callable[[], Mapping[str, np.ndarray]]
    """() -> {feature: validation examples [n, ...]}, as the model sees them."""
    build_data: Callable[..., Dataset]
    """(data_dir=None) -> the data set."""


class Given(NamedTuple):
    """The input of one call of `generate`."""

    arrays: Mapping[str, np.ndarray] = {}
    """`given` of GenerativeModel.generate: prompts, or images to change."""
    functions: Mapping[str, Callable[..., Any]] = {}
    """{argument of `generate`: function}, such as one that receives each token as soon as it is drawn."""
    finish: Callable[[Mapping[str, np.ndarray]], None] | None = None
    """(arrays from `generate`) -> None. Runs once after them. None: nothing to do."""


class Shown(NamedTuple):
    """Samples in the form that people look at."""

    files: Mapping[str, bytes]
    """{file name: content}."""
    arrays: Mapping[str, np.ndarray] = {}
    """More arrays for samples.npz, such as the distances to the nearest training examples."""


@dataclass(frozen=True)
class NoOptions:
    """The options of a medium that has none."""


@dataclass(frozen=True)
class Medium:
    """A kind of samples: how people see them, and what they give to a model. gen.media says how to add one."""

    features: ClassVar[Mapping[str, int]] = {}
    """{feature: number of axes of one example}. Data with the first of these features has this medium."""
    options: ClassVar[type] = NoOptions
    """A frozen dataclass. sample.py turns its fields into options. Fields marked LAUNCH don't change the samples."""

    def read_options(self, options: Any) -> Any:
        """Returns the options with the content of the files that they name, so that a manifest holds everything."""
        return options

    def give(self, options: Any, run: RunView) -> Given:
        """Returns the input that the options ask for. Raises: UserError if the run can't take it."""
        return Given(run.reference())

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        """Returns the samples, arrays from `generate`, as files, which training and sample.py write. options: None: the defaults."""
        raise NotImplementedError

    def describe(self, files: Mapping[str, bytes], options: Any) -> str | None:
        """Returns the text that sample.py prints for the files of `show`. None: nothing."""
        return None


@dataclass(frozen=True)
class Data:
    """A kind of data and its settings: the `data` of a config. Subclass it to add a kind."""

    batch_size: int = 128
    """Examples per step, over all devices and hosts."""

    def resolve(self) -> Data:
        """Returns these settings with the choices that they leave to the data. Raises: UserError if the data are missing."""
        return self

    def build(self) -> Dataset:
        """Returns the data set. Raises: UserError for anything that the user got wrong."""
        raise NotImplementedError

    def medium(self) -> Medium | None:
        """Returns the medium of this data's samples. None: gen.media chooses one by the names of the features."""
        return None
