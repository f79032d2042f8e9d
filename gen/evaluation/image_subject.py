"""A run that generates images, with the inputs that metrics of images share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import numpy as np

from gen.core import Array, Dataset, Key, State
from gen.data.images.pixels import to_bytes
from gen.errors import UserError
from gen.evaluation.request import encode_request
from gen.evaluation.score import Subject
from gen.files import expand_user
from gen.metrics.classifier import classifier_features
from gen.metrics.features import Features, pixels
from gen.metrics.images import ImageSet, extract_features, read_split, read_training
from gen.metrics.inception import inception

MAX_DEFAULT_IMAGES = 10_000
"""Upper bound on the images that are generated without --n."""
GENERATE_CHUNK = 1000
"""Images per call of `generate`. The numbers depend on it, since each chunk has its own key."""


@dataclass(frozen=True, eq=False)
class ImageSubject(Subject):
    """A run that generates images. Arrays and features are computed once, when a metric first needs them."""

    medium = "images"

    def check(self) -> None:
        """Raises: UserError if the request makes the model generate something else than single images."""
        # Reconstructions or interpolations are grids of images, which no metric can read.
        made, image = self.generated_shapes["samples"].shape, (1, *self.data.spec["image"].shape)
        if made != image:
            changes = ", ".join(f"{name}={value}" for name, value in self.request.items())
            raise UserError(
                f"with --request {changes or 'n=1'}, {self.workdir} generates an array of shape {made} where one image, "
                f"{image}, is expected; metrics compare single images, so leave --request out"
            )

    @cached_property
    def n(self) -> int:
        """Number of generated images, and of training images that baselines use."""
        return self.options.n or min(MAX_DEFAULT_IMAGES, self.data.sizes["train"])

    @property
    def n_held_out(self) -> int:
        return self.data.sizes[self.options.split]

    @cached_property
    def features(self) -> Features:
        """How images are compared. Raises: UserError if --features names a file without Inception's weights."""
        by_default = "classifier" if "label" in self.data.spec else "pixels"
        return load_features(self.options.features or by_default, self.data)

    @cached_property
    def feature_shapes(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | None]:
        """Shapes of the features [1, D], and of the class probabilities [1, K] or None. Nothing is computed."""
        image = jax.ShapeDtypeStruct((1, *self.data.spec["image"].shape), np.float32)
        return jax.eval_shape(self.features.extract, image)

    @cached_property
    def generated_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the arrays that the model generates for n = 1. Nothing is computed."""
        model, key = self.run.model, jax.random.key(0)
        generate = partial(model.generate, request=model.request(n=1, **self.request))
        return jax.eval_shape(generate, jax.eval_shape(model.init, key), key, self.run.reference())

    @cached_property
    def generated(self) -> ImageSet:
        """n generated images, and their labels if the model is conditional."""
        return generate_images(self, self.n)

    @cached_property
    def held_out(self) -> ImageSet:
        """All images of the held-out split."""
        return read_split(self.data, self.options.split)

    @cached_property
    def training(self) -> ImageSet:
        """n training images."""
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
        """Features of n training images, [n, D]."""
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
        """Protocol of a number that depends on the generated images alone."""
        images = {"n_fake": self.n, "seed": self.options.seed, "checkpoint": self.step}
        run = {"run": self.run.digest(self.step)}
        return self._data_protocol | images | run | encode_request(self.request)

    @property
    def compared_protocol(self) -> dict[str, object]:
        """Protocol of a number that compares generated images with held-out ones."""
        return self.generated_protocol | self._split_protocol

    @property
    def training_protocol(self) -> dict[str, object]:
        """Protocol of a number that compares training images with held-out ones. It does not depend on the run."""
        return self._data_protocol | {"n_train": self.n} | self._split_protocol

    @property
    def feature_protocol(self) -> dict[str, object]:
        """Protocol of the features. Merge it after the protocol of the data, because it replaces its "resize"."""
        return dict(self.features.protocol)

    @property
    def _split_protocol(self) -> dict[str, object]:
        return {"split": self.options.split, "n": self.n_held_out}

    def check_enough_training_images(self) -> None:
        """Raises: UserError if there are fewer than n training images, which a metric compares with."""
        if self.n > (most := self.data.sizes["train"]):
            raise UserError(
                f"n is {self.n}, and there are only {most} real training images to compare with; the fix: --n {most}"
            )


def load_features(name: str, data: Dataset) -> Features:
    """Returns the features that --features names. Raises: UserError for a file without Inception's weights."""
    if name == "classifier":
        return classifier_features(data)
    return pixels() if name == "pixels" else inception(expand_user(name))


def generate_images(subject: ImageSubject, n: int) -> ImageSet:
    """Returns n generated images, and their labels if the model is conditional.

    They are generated in chunks. The key of a chunk is folded from the seed and the chunk's number, so the first images don't
    depend on n.

    Raises: UserError if an image is not finite.
    """
    model, state, given = subject.run.model, subject.state, subject.run.reference()
    request = model.request(n=GENERATE_CHUNK, **subject.request)

    @jax.jit
    def generate(state: State, key: Key) -> dict[str, Array]:
        # Other arrays, such as latents, would only take memory.
        made = model.generate(state, key, given, request)
        return {name: made[name] for name in ("samples", "labels") if name in made}

    # The last chunk is a full one too: one shape compiles once, and an image does not depend on the number of images.
    seed = jax.random.key(subject.options.seed)
    keys = (jax.random.fold_in(seed, i) for i in range(-(-n // GENERATE_CHUNK)))
    arrays = _concatenate((jax.device_get(generate(state, key)) for key in keys), n)
    if not np.isfinite(arrays["samples"]).all():
        raise UserError(
            f"images of checkpoint {subject.step} of {subject.workdir} are not finite; choose another with --step"
        )
    return ImageSet(to_bytes(arrays["samples"]), arrays.get("labels"))


def _concatenate(chunks: Iterable[dict[str, np.ndarray]], n: int) -> dict[str, np.ndarray]:
    chunks = list(chunks)
    return {name: np.concatenate([chunk[name] for chunk in chunks])[:n] for name in chunks[0]}
