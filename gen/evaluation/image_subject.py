"""The inputs that all metrics of images share: a run's generated images, real images, and the features of both."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from gen.core import Array, Dataset, Key, State
from gen.data.images.pixels import to_bytes
from gen.errors import UserError
from gen.evaluation.labels import LabelRule, draw_labels
from gen.evaluation.request import encode_request
from gen.evaluation.score import Subject
from gen.families import captions, labels
from gen.files import expand_user
from gen.metrics.classifier import OneClassError, classifier_features, untrainable
from gen.metrics.features import Features, pixels
from gen.metrics.images import ImageSet, extract_features, read_split, read_training
from gen.metrics.inception import inception
from gen.runs import checkpoint

log = logging.getLogger(__name__)

MAX_DEFAULT_IMAGES = 10_000
"""Upper bound on the number of images that are generated if --n is not given."""
GENERATE_CHUNK = 1000
"""Number of images per call of `generate`. The images depend on it, because each call has its own random key."""


@dataclass(frozen=True, eq=False)
class ImageSubject(Subject):
    """A run that generates n images. Each array is computed once, when needed. In shapes: D features, K classes."""

    medium = "images"

    def check(self) -> None:
        """Raises: UserError if a sample is not one image of the data's shape, or if --labels would have no effect."""
        # Reconstructions and interpolations are grids of images, which metrics can't read.
        made, image = self.generated_shapes["samples"].shape, (1, *self.data.spec["image"].shape)
        if made != image:
            changes = ", ".join(f"{name}={value}" for name, value in self.request.items())
            raise UserError(
                f"{f'with --request {changes}, ' if changes else ''}{self.workdir} generates an array of shape {made} where "
                f"one image, {image}, is expected; metrics compare single images, so "
                f"{'leave --request out' if changes else 'its family needs another request: --request FIELD=VALUE'}"
            )
        if self.options.labels != "training" and self.label_rule is None:
            reason = (
                "--request label chooses the class" if "label" in self.request else f"{self.workdir} has no classes"
            )
            raise UserError(f"--labels {self.options.labels} has no effect, since {reason}; leave one of them out")

    @property
    def summary(self) -> str:
        return f"checkpoint {self.step}{self._features_note}"

    @property
    def _features_note(self) -> str:
        # Nothing is noted for data without labels: there a user expects that pixels are compared.
        if self.options.features is not None or "label" not in self.data.spec or not (reason := untrainable(self.data)):
            return ""
        return f"; images are compared by their pixels, since {reason}"

    @cached_property
    def labelled(self) -> bool:
        """Whether the generated images have labels."""
        return "labels" in self.generated_shapes

    @property
    def unlabelled_reason(self) -> str:
        """Why the generated images have no labels, for messages."""
        return f"{self.workdir} is not conditional"

    @cached_property
    def label_rule(self) -> LabelRule | None:
        """How the classes of the generated images are drawn. None: the model is unconditional, or --request names a class."""
        drawn = self.labelled and "label" in self.data.spec and "label" not in self.request
        return self.options.labels if drawn else None

    @cached_property
    def n(self) -> int:
        """Number of generated images, and of training images that baselines use."""
        return self.options.n or min(MAX_DEFAULT_IMAGES, self.data.sizes["train"])

    def given(self, rows: np.ndarray) -> Mapping[str, Array]:
        """Returns more inputs of `generate`, {name: [B, ...]}. rows: int [B], positions of the generated images."""
        return {}

    @property
    def n_held_out(self) -> int:
        return self.data.sizes[self.options.split]

    @property
    def fewest(self) -> str:
        """For messages, the smaller set and its size: "there are 50 generated images (--n)", or the held-out split."""
        if self.n < self.n_held_out:
            return f"there are {self.n} generated images (--n)"
        return f"the {self.options.split} split has {self.n_held_out}"

    @cached_property
    def features(self) -> Features:
        """The extractor of --features. Default: a classifier of the labels, or pixels. Raises: as `load_features`."""
        if self.options.features is not None:
            return load_features(self.options.features, self.data)
        if untrainable(self.data):
            return pixels()
        try:
            return classifier_features(self.data)
        except OneClassError as error:
            log.warning("%s: images are compared by their pixels: %s", self.workdir, error)
            return pixels()

    @cached_property
    def feature_shapes(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | None]:
        """Shapes of the features [1, D], and of the class probabilities [1, K] or None. Nothing is computed."""
        image = jax.ShapeDtypeStruct((1, *self.data.spec["image"].shape), np.float32)
        return jax.eval_shape(self.features.extract, image)

    @cached_property
    def generated_shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """{name: shape and dtype} of the arrays that the model generates for n = 1, after `to_images`. Nothing is computed."""
        model, key = self.run.model, jax.random.key(0)

        def generate(state: State, given: dict[str, np.ndarray]) -> Mapping[str, Array]:
            return self.to_images(model.generate(state, key, given, model.request(n=1, **self.request)))

        return jax.eval_shape(generate, jax.eval_shape(model.init, key), self.run.reference())

    def conditions(self, n: int) -> dict[str, np.ndarray]:
        """Returns the inputs of `generate` that condition n images, {name: [n, ...]}: labels, or {} for none."""
        if self.label_rule is None:
            return {}
        return {labels.GIVEN: draw_labels(self.data, n, self.label_rule, self.options.seed)}

    def to_images(self, made: Mapping[str, Array]) -> Mapping[str, Array]:
        """Returns the arrays of `generate` with "samples" converted to the images that are scored. It must work under jax.jit."""
        return self.run.to_images(made)

    @cached_property
    def generated(self) -> ImageSet:
        """n generated images, and their labels and captions if the model is conditional."""
        return generate_images(self, self.n)

    @cached_property
    def held_out(self) -> ImageSet:
        """All images of the held-out split."""
        return read_split(self.data, self.options.split)

    @cached_property
    def training(self) -> ImageSet:
        """n training images for baselines: the first n in the order in which training with seed 0 reads them."""
        return read_training(self.data, self.n)

    @cached_property
    def real_features(self) -> np.ndarray:
        """Features of the held-out images, [N, D]."""
        return extract_features(self.features, self.held_out.image)[0]

    @cached_property
    def fake_features(self) -> np.ndarray:
        """Features of the generated images, [n, D]."""
        return self._extracted[0]

    @cached_property
    def fake_probabilities(self) -> np.ndarray:
        """Class probabilities of the generated images, [n, K]."""
        probabilities = self._extracted[1]
        assert probabilities is not None, "Metric.unsuited has checked feature_shapes"
        return probabilities

    @cached_property
    def training_features(self) -> np.ndarray:
        """Features of the images in `training`, [n, D]."""
        return extract_features(self.features, self.training.image)[0]

    @cached_property
    def _extracted(self) -> tuple[np.ndarray, np.ndarray | None]:
        return extract_features(self.features, self.generated.image)

    @cached_property
    def _data_protocol(self) -> dict[str, object]:
        image = self.data.spec["image"]
        images = {"shape": image.shape, "levels": image.levels, "dequantized": image.dequantized}
        # Features that resize images replace the last entry.
        return {"data": self.data.digest, "images": images, "resize": "none"}

    @cached_property
    def generated_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that depend on the generated images alone."""
        images = {"n_fake": self.n, "seed": self.options.seed, "checkpoint": self.step}
        run = {"run": self.run.digest(self.step)}
        drawn = {} if self.label_rule is None else {"labels": self.label_rule}
        return self._data_protocol | images | run | drawn | encode_request(self.request)

    @property
    def compared_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that compare generated with held-out images."""
        return self.generated_protocol | self._split_protocol

    @property
    def training_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of baselines, which don't depend on the run."""
        return self._data_protocol | {"n_train": self.n} | self._split_protocol

    @property
    def feature_protocol(self) -> dict[str, object]:
        """The protocol's entries about the feature extractor. Merge them last, because they replace "resize"."""
        return dict(self.features.protocol)

    @property
    def _split_protocol(self) -> dict[str, object]:
        return {"split": self.options.split, "n": self.n_held_out}

    @property
    def too_few_training_images(self) -> str | None:
        """Reason why there can be no baseline of n training images, and the fix. None: there are n training images."""
        if self.n <= (most := self.data.sizes["train"]):
            return None
        return f"n is {self.n}, and there are only {most} real training images; the fix: --n {most}"


def load_features(name: str, data: Dataset) -> Features:
    """Returns the feature extractor that --features names: classifier, pixels, or a file with the weights of Inception.
    Raises: UserError if the file lacks these weights, or if the data can't train a classifier.
    """
    if name == "classifier":
        return classifier_features(data)
    return pixels() if name == "pixels" else inception(expand_user(name))


def generate_images(subject: ImageSubject, n: int) -> ImageSet:
    """Returns n generated images, and their labels and captions if the model is conditional.

    `subject.conditions` draws the labels and captions. Images are generated in chunks of GENERATE_CHUNK. The key of a chunk is
    made from the seed and the chunk's number, so the first images don't depend on n.

    Raises: UserError if an image is not finite, or if the model does not generate the classes or captions that it is given.
    """
    model, state, given = subject.run.model, subject.state, subject.run.reference()
    request = model.request(n=GENERATE_CHUNK, **subject.request)

    @jax.jit
    def generate(state: State, key: Key, chosen: dict[str, np.ndarray]) -> dict[str, Array]:
        # Other arrays, such as latents, are dropped to save memory.
        made = subject.to_images(model.generate(state, key, {**given, **chosen}, request))
        return {name: made[name] for name in ("samples", "labels", "captions") if name in made}

    # The last chunk is generated in full, too. So `generate` compiles once, and an image does not depend on n.
    seed, chunks = jax.random.key(subject.options.seed), _split_chunks(subject.conditions(n), n)

    def make(i: int) -> dict[str, np.ndarray]:
        rows = np.arange(i * GENERATE_CHUNK, (i + 1) * GENERATE_CHUNK)
        made = jax.device_get(generate(state, jax.random.fold_in(seed, i), {**chunks[i], **subject.given(rows)}))
        checked = _check_chunk(subject, made, chunks[i])
        # Bytes take a quarter of the memory of floats.
        return {**checked, "samples": to_bytes(checked["samples"])}

    arrays = _concatenate(map(make, range(len(chunks))), n)
    return ImageSet(arrays["samples"], arrays.get("labels"), arrays.get("captions"))


def _split_chunks(conditions: Mapping[str, np.ndarray], n: int) -> list[dict[str, np.ndarray]]:
    """Splits the conditions [n, ...] into chunks [GENERATE_CHUNK, ...]. The last chunk is padded."""
    starts = range(0, n, GENERATE_CHUNK)
    # Images that are generated for the padding are cut off.
    missing = len(starts) * GENERATE_CHUNK - n
    padded = {name: np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)]) for name, x in conditions.items()}
    return [{name: x[start : start + GENERATE_CHUNK] for name, x in padded.items()} for start in starts]


def _check_chunk(
    subject: ImageSubject, made: dict[str, np.ndarray], chosen: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Checks and returns `made`. Raises: UserError if not finite, or if labels or captions differ from `chosen`."""
    if not np.isfinite(made["samples"]).all():
        others = [str(step) for step in checkpoint.steps(subject.run.checkpoints) if step != subject.step]
        fix = f"choose another with --step ({', '.join(others)})" if others else "train with a lower learning rate"
        raise UserError(f"images of checkpoint {subject.step} of {subject.workdir} are not finite; {fix}")
    # A family from outside gen may ignore the labels or captions that it is given.
    if labels.GIVEN in chosen and not np.array_equal(made["labels"], chosen[labels.GIVEN]):
        raise UserError(
            f"{subject.workdir} does not generate the classes that it is given; the fix, in the `generate` of its family: "
            "gen.families.labels.labels_to_generate(request.n, request.label, classes, given)"
        )
    if captions.GIVEN in chosen and not np.array_equal(made["captions"], chosen[captions.GIVEN]):
        raise UserError(
            f"{subject.workdir} does not generate the captions that it is given; the fix, in the `generate` of its family: "
            "gen.families.captions.captions_to_generate(request.n, caption, given)"
        )
    return made


def _concatenate(chunks: Iterable[dict[str, np.ndarray]], n: int) -> dict[str, np.ndarray]:
    chunks = list(chunks)
    return {name: np.concatenate([chunk[name] for chunk in chunks])[:n] for name in chunks[0]}
