"""Data sets, and the medium of samples: how samples are shown, and how a user's inputs become arrays for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gen.core.features import Spec
from gen.core.state import Array, Batch, HostBatch, Key
from gen.errors import UserError


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
    """(split, batch size[, rows]) -> the split in order, in batches, or these rows of each batch. The last batch is filled up with
    examples of "weight" 0."""
    preprocess: Callable[[Batch, Key, bool], Batch]
    """(batch, key, training) -> what the model sees. Runs in the compiled step. Its noise is drawn from (key, row)."""
    files: Mapping[str, bytes] = {}
    """{file name: content} that a run keeps next to its spec, such as a tokenizer."""
    protocol: Mapping[str, Any] = {}
    """How the held-out splits are read, stored next to each number."""
    baselines: Callable[[], dict[str, float]] = dict
    """() -> {metric: score of a trivial model on the test split}, stored next to the model's scores."""
    images: Dataset | None = None
    """For data of codes: the data set of images that the codes encode. Decoded samples are compared with these images."""
    older: tuple[str, ...] = ()
    """Digests that older versions of gen computed for the same examples, without the content of large sets. They are accepted with a
    warning."""


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
    """A kind of samples: shows them, and turns a user's inputs into arrays for a model. gen.media says how to add one."""

    features: ClassVar[Mapping[str, int]] = {}
    """{feature: number of axes of one example}. Data with the first of these features has this medium."""
    options: ClassVar[type] = NoOptions
    """A frozen dataclass. sample.py turns its fields into options. Fields marked LAUNCH don't change the samples."""

    def read_options(self, options: Any) -> Any:
        """Returns the options with the content of the files that they name, so that a manifest holds everything."""
        return options

    def complete(self, options: Any, request: Any, run: RunView) -> Any:
        """Returns the options with those that the request decides, for `check`, `give` and `show`. request: of the family."""
        return options

    def check(self, options: Any, request: Any, run: RunView) -> None:
        """Raises: UserError if the options have an input that the request does not use, or lack one that it needs. request: of the family.

        By default a mode that takes a picture or a score is refused, because the options have neither.
        """
        mode = getattr(request, "mode", "generate")
        if mode != "generate" and (mode in request.pictures or mode in request.scores):
            raise UserError(f"mode {mode} changes a picture or a score, and the samples are neither; leave --mode out")

    def give(self, options: Any, run: RunView) -> Given:
        """Returns the input that the options ask for. Raises: UserError if the run can't take it."""
        return Given(run.reference())

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        """Returns the samples, arrays from `generate`, as files, which training and sample.py write. options: None: the defaults."""
        raise NotImplementedError

    def to_images(self, samples: Mapping[str, Array], run: RunView) -> Mapping[str, Array]:
        """Decodes samples that encode images or sound, such as codes. Other samples are returned unchanged.

        The result has "samples" as images float32 [n, H, W, C] in [-1, 1], or as sound float32 [n, T, C]. This may run inside of a
        compiled function.
        """
        return samples

    def describe(self, files: Mapping[str, bytes], options: Any) -> str | None:
        """Returns the text that sample.py prints for the files of `show`. None: nothing."""
        return None


@dataclass(frozen=True)
class Data:
    """A kind of data and its settings: the `data` of a config. Subclass it to add a kind."""

    keeps_tokenizer: ClassVar[bool] = False
    """Whether `tokenizer` is a run directory. Each run on these data then keeps a copy of that tokenizer, from which it reads them."""

    batch_size: int = 128
    """Examples per step, over all devices and hosts."""

    def resolve(self) -> Data:
        """Returns these settings, where choices that depend on the data are filled in. Raises: UserError if the data are missing."""
        return self

    def build(self) -> Dataset:
        """Returns the data set. Raises: UserError for anything that the user got wrong."""
        raise NotImplementedError

    def medium(self) -> Medium | None:
        """Returns the medium of this data's samples. None: gen.media chooses one by the spec."""
        return None
