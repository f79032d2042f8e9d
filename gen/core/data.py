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
    """Training, validation and test examples. A batch is a pure function of (seed, step, rows), so a checkpoint need not
    hold a position in the data."""

    spec: Spec
    """Features that the model sees, after `preprocess`."""
    sizes: dict[str, int]
    """Number of examples in "train", "validation" and "test"."""
    digest: str
    """SHA-256 of everything that the examples are made from."""
    batch: Callable[[int, int, range], HostBatch]
    """(seed, step, rows) -> these rows of the training batch of a step: {feature: array [len(rows), ...]} before `preprocess`, such
    as uint8 images. Also "row" int32 (position in the global batch), "index" int32 (position in the training split) and "weight"
    float32 (1), each [len(rows)]. Steps count from 0."""
    evaluation: Callable[..., Iterator[HostBatch]]
    """(split, batch size[, rows]) -> the batches of a split, in order, with the entries of `batch`. rows: rows of each batch to read;
    all by default. The last batch is padded with examples of "weight" 0. Here "row" is the position in the split, too."""
    preprocess: Callable[[Batch, Key, bool], Batch]
    """(batch, key, training) -> the batch with the features of `spec`. Runs in the compiled step. The noise of each example is drawn
    from (key, "row"), so it does not depend on the number of devices."""
    files: Mapping[str, bytes] = {}
    """{file name: content} that a run keeps next to its spec, such as a tokenizer."""
    protocol: Mapping[str, Any] = {}
    """{setting: value} of how the held-out splits are read, stored next to each score."""
    baselines: Callable[[], dict[str, float]] = dict
    """() -> {metric: score of a trivial model on the test split}, stored next to the model's scores."""
    images: Dataset | None = None
    """For codes (tokens or latents of a trained encoder): the data set of the images or sound that were encoded. Decoded samples are
    compared with it. None: the data are not codes."""
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
    """() -> {feature: array [n, ...]} of up to 64 validation examples, after `preprocess`."""
    build_data: Callable[..., Dataset]
    """(data_dir=None) -> the data set. data_dir: where its files are now. Raises: UserError if they have changed since training."""


class Given(NamedTuple):
    """The inputs that a medium passes to one call of GenerativeModel.generate."""

    arrays: Mapping[str, np.ndarray] = {}
    """The argument `given` of `generate`: prompts, or images to change."""
    functions: Mapping[str, Callable[..., Any]] = {}
    """More keyword arguments of `generate`: functions, such as one that prints each token as soon as it is drawn."""
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
    """{feature: number of axes of one example} that the medium can show. It is chosen for data that have the first of these."""
    options: ClassVar[type] = NoOptions
    """A frozen dataclass whose fields are command-line options of sample.py. A field with the metadata LAUNCH must not change the
    samples."""

    def read_options(self, options: Any) -> Any:
        """Returns the options with the content of the files that they name. So the manifest of the samples holds all inputs."""
        return options

    def complete(self, options: Any, request: Any, run: RunView) -> Any:
        """Returns the options, with the fields that depend on the request filled in. `check`, `give` and `show` get the result."""
        return options

    def check(self, options: Any, request: Any, run: RunView) -> None:
        """Raises: UserError if the options have an input that the request does not use, or lack an input that it needs.

        By default a mode that takes a picture or a score is refused, because NoOptions has neither.
        """
        mode = getattr(request, "mode", "generate")
        if mode != "generate" and (mode in request.pictures or mode in request.scores):
            raise UserError(f"mode {mode} changes a picture or a score, and the samples are neither; leave --mode out")

    def give(self, options: Any, run: RunView) -> Given:
        """Returns the inputs of `generate` that the options ask for; by default the validation examples of `run.reference`.

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

        The result has "samples" as images float32 [n, H, W, C] in [-1, 1], or as sound float32 [n, T, C]. It must also work under
        jax.jit.
        """
        return samples

    def describe(self, files: Mapping[str, bytes], options: Any) -> str | None:
        """Returns the text that sample.py prints after it wrote the files of `show`. None: it prints none."""
        return None


@dataclass(frozen=True)
class Data:
    """The settings of a data set: the field `data` of a config. Subclass it to add a kind of data."""

    keeps_tokenizer: ClassVar[bool] = False
    """Whether the field `tokenizer` names a run directory. Each run on these data then copies that tokenizer, and later reads the
    data with its copy."""

    batch_size: int = 128
    """Examples per step, over all devices and hosts."""

    def resolve(self) -> Data:
        """Returns a copy of these settings, in which choices that depend on the files of the data are made.

        Raises: UserError if the data are missing.
        """
        return self

    def build(self) -> Dataset:
        """Returns the data set. Raises: UserError if files are missing or damaged, or a setting does not fit them."""
        raise NotImplementedError

    def medium(self) -> Medium | None:
        """Returns the medium that shows samples of models of these data. None: gen.media chooses it by the spec."""
        return None
