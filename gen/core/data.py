"""The types of data sets and media. A medium shows samples as files, and turns a user's inputs into arrays for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gen.core.features import Spec
from gen.core.state import Array, Batch, HostBatch, Key
from gen.errors import UserError


class Dataset(NamedTuple):
    """Training, validation and test examples, and the functions that read batches of them.

    A training batch is a pure function of seed and step, so a checkpoint need not hold a position in the data."""

    spec: Spec
    """Features that the model sees, after `preprocess`."""
    sizes: dict[str, int]
    """Number of examples in "train", "validation" and "test"."""
    digest: str
    """SHA-256 of everything that the examples are made from."""
    batch: Callable[[int, int, range], HostBatch]
    """(seed, step, rows) -> {feature: array [len(rows), ...]}, a part of the training batch of a step, before
    `preprocess`. Steps count from 0. rows: positions in the global batch; each host reads only its own. The result also
    has "row" int32 (position in the global batch), "index" int32 (position in the training split) and "weight" float32
    (1), each [len(rows)]."""
    evaluation: Callable[..., Iterator[HostBatch]]
    """(split, batch size[, rows]) -> the batches of a split, in order, with the same arrays as `batch`, except that
    "row" is the position in the split, like "index". rows: positions in each batch to read; all by default. The last
    batch is padded with examples of "weight" 0."""
    preprocess: Callable[[Batch, Key, bool], Batch]
    """(batch, key, training) -> the batch with the features of `spec`. training: False for evaluation, without
    augmentation. Runs in the compiled step. The noise of each example is drawn from (key, "row"), so it does not depend
    on the number of devices."""
    files: Mapping[str, bytes] = {}
    """{file name: content} that each run on these data writes into its run directory, such as tokenizer.json."""
    protocol: Mapping[str, Any] = {}
    """{setting: value} of how held-out splits are read, such as the tokenizer. Stored next to each score."""
    baselines: Callable[[], dict[str, float]] = dict
    """() -> {metric: score of a trivial model on the test split}, stored next to the model's scores."""
    images: Dataset | None = None
    """For codes (tokens or latents of a trained encoder): the data set of the images or sound that were encoded. Decoded samples are
    compared with these images or sounds. None: the data are not codes."""
    older: tuple[str, ...] = ()
    """Digests that older versions of gen computed for the same examples. They hash the names and sizes of large files instead of
    the content. A run with such a digest is continued with a warning."""


class RunView(NamedTuple):
    """The parts of a run that a medium may read, while the run trains and when sample.py reads it."""

    data: Data
    """The kind of data and its settings, from the run's config."""
    spec: Spec
    read_file: Callable[[str], bytes]
    """(file name) -> content of one of `Dataset.files`. Raises: UserError if it is missing."""
    reference: Callable[[], Mapping[str, np.ndarray]]
    """() -> {feature: array [n, ...]} of up to 64 validation examples, after `preprocess`. Arrays of the last
    evaluation, under other names, may be in the result as well."""
    build_data: Callable[..., Dataset]
    """(data_dir=None) -> the data set. data_dir: folder of its files, if it was moved. Raises: UserError if the files
    have changed since training."""


class Given(NamedTuple):
    """The inputs that a medium passes to one call of GenerativeModel.generate."""

    arrays: Mapping[str, np.ndarray] = {}
    """The argument `given` of `generate`: prompts, or images to change."""
    functions: Mapping[str, Callable[..., Any]] = {}
    """More keyword arguments of `generate`: functions, such as one that prints each token as soon as it is sampled."""
    finish: Callable[[Mapping[str, np.ndarray]], None] | None = None
    """(arrays from `generate`) -> None. Called once after `generate`, for instance to end a printed line. None: nothing to do."""


class Shown(NamedTuple):
    """Samples as files that people can open, such as PNG or text."""

    files: Mapping[str, bytes]
    """{file name: content}."""
    arrays: Mapping[str, np.ndarray] = {}
    """Arrays to write to samples.npz next to the samples, such as the distances to the nearest training examples."""


@dataclass(frozen=True)
class NoOptions:
    """The options class of a medium without options."""


@dataclass(frozen=True)
class Medium:
    """A kind of samples, such as images or text. It shows samples as files, and turns a user's inputs into arrays for a model.

    gen.media says how to add a medium. In `check` and `complete`, `request` is a Request of the model's family.
    """

    features: ClassVar[Mapping[str, int]] = {}
    """{feature: number of axes of one example} of the features that the medium can show. gen.media chooses the medium
    for data that have the first of these features."""
    options: ClassVar[type] = NoOptions
    """A frozen dataclass whose fields are command-line options of sample.py. A field with the metadata LAUNCH must not change the
    samples."""

    def read_options(self, options: Any) -> Any:
        """Returns the options with each path of an input file replaced by the file's content.

        sample.py stores the result in manifest.json next to the samples, so that the manifest holds all inputs. By
        default nothing is replaced.
        """
        return options

    def complete(self, options: Any, request: Any, run: RunView) -> Any:
        """Returns the options, with the fields that depend on the request filled in. By default there are none.

        `check`, `give` and `show` get the result.
        """
        return options

    def check(self, options: Any, request: Any, run: RunView) -> None:
        """Raises: UserError if the options have an input that the request does not use, or lack an input that it needs.

        By default, raises it if `request.mode` takes a picture or a score of music, because NoOptions has neither.
        """
        mode = getattr(request, "mode", "generate")
        if mode != "generate" and (mode in request.pictures or mode in request.scores):
            raise UserError(f"mode {mode} changes a picture or a score, and the samples are neither; leave --mode out")

    def give(self, options: Any, run: RunView) -> Given:
        """Returns the inputs for the model's `generate` that the options ask for. By default: `run.reference`.

        Raises: UserError if the run's model can't use them.
        """
        return Given(run.reference())

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        """Returns files that show the samples. Training and sample.py write them.

        samples: the arrays from `generate`, {"samples": [n, ...], ...}. options: None means the defaults.
        """
        raise NotImplementedError

    def to_images(self, samples: Mapping[str, Array], run: RunView) -> Mapping[str, Array]:
        """Decodes samples that encode images or sound, such as codes. Other samples are returned unchanged.

        The result has "samples" as images float32 [n, H, W, C] in [-1, 1], or as sound float32 [n, T, C]. An
        implementation must also work under jax.jit.
        """
        return samples

    def describe(self, files: Mapping[str, bytes], options: Any) -> str | None:
        """Returns the text that sample.py prints after it wrote the files of `show`. None: it prints none."""
        return None


@dataclass(frozen=True)
class Data:
    """The settings of a data set: the field `data` of a config. Subclass it to add a kind of data."""

    keeps_tokenizer: ClassVar[bool] = False
    """Whether the field `tokenizer` is the run directory of a trained tokenizer. Each run on these data then copies the
    tokenizer into its own directory, and sampling and evaluation read the data with this copy."""

    batch_size: int = 128
    """Examples per step, over all devices and hosts."""

    def resolve(self) -> Data:
        """Returns a copy in which None is replaced in fields whose default depends on the files of the data.

        For instance, data of images fill in the slices `train`, `validation` and `test`. By default nothing is changed.

        Raises: UserError if the data are missing.
        """
        return self

    def build(self) -> Dataset:
        """Returns the data set. Raises: UserError if files are missing or damaged, or a setting does not fit them."""
        raise NotImplementedError

    def medium(self) -> Medium | None:
        """Returns the medium that shows samples of models of these data. None: gen.media chooses it by the spec."""
        return None
