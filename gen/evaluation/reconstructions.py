"""Scores of a tokenizer's reconstructions: the scores that a model of its codes would reach if it learned the codes perfectly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import jax
import numpy as np

from gen.core import Array, State
from gen.data.images.pixels import to_bytes
from gen.errors import UserError
from gen.evaluation.image_subject import GENERATE_CHUNK, ImageSubject
from gen.evaluation.labels import LabelRule
from gen.metrics.images import ImageSet, to_float


@dataclass(frozen=True, eq=False)
class ReconstructionSubject(ImageSubject):
    """Reconstructions of n training images, with the labels of these images.

    They are compared with held-out images, like samples. A model that generates exactly the codes of the training images would have
    these scores.
    """

    feature: ClassVar[str] = "image"
    """Name of the feature that the tokenizer encodes."""

    @property
    def summary(self) -> str:
        return f"reconstructions of {self.n:,} training examples by checkpoint {self.step}{self._features_note}"

    def check(self) -> None:
        """Raises: UserError if there are fewer training images than --n, or if --labels or --request is set."""
        if reason := self.too_few_training_images:
            raise UserError(reason)
        if self.options.labels != "training" or self.options.request:
            raise UserError(
                f"--labels and --request change samples, and {self.workdir} is a tokenizer, whose reconstructions are scored; leave "
                "them out"
            )

    @property
    def labelled(self) -> bool:
        return "label" in self.data.spec

    @property
    def unlabelled_reason(self) -> str:
        return f"the data of {self.workdir} have no labels"

    @property
    def label_rule(self) -> LabelRule | None:
        return None

    @property
    def request(self) -> dict[str, object]:
        """Returns {}. Samples have the settings of their generation here, and reconstructions have no such settings."""
        return {}

    def originals(self, rows: np.ndarray) -> Array:
        """Returns training examples as the tokenizer reads them, float32 [B, ...].

        rows: int [B], ascending positions in `training`.
        """
        return to_float(self.training.image[rows])

    def to_pictures(self, made: Array) -> Array:
        """Converts reconstructions [B, ...] to the images that are scored, float32 [B, H, W, C] in [-1, 1]."""
        return made

    @cached_property
    def generated(self) -> ImageSet:
        """Reconstructions of n training images, with the labels of these images. Raises: UserError if they are not finite."""
        model, key = self.run.model, jax.random.key(0)

        @jax.jit
        def reconstruct(state: State, x: Array) -> Array:
            pairs = model.generate(state, key, {self.feature: x}, model.request(n=GENERATE_CHUNK))["samples"]
            # In `pairs`, a row of examples is followed by the row of their reconstructions.
            return self.to_pictures(pairs[1::2].reshape(x.shape))

        made: list[np.ndarray] = []
        for start in range(0, self.n, GENERATE_CHUNK):
            # The last chunk is filled up with its last image, so that all chunks have the same shape and compile once.
            rows = np.minimum(np.arange(start, start + GENERATE_CHUNK), self.n - 1)
            chunk = np.asarray(reconstruct(self.state, self.originals(rows)))
            if not np.isfinite(chunk).all():
                raise UserError(
                    f"reconstructions of checkpoint {self.step} of {self.workdir} are not finite; choose --step"
                )
            made.append(to_bytes(chunk))
        return ImageSet(np.concatenate(made)[: self.n], self.training.label)

    @cached_property
    def generated_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that depend on the reconstructions alone."""
        facts = {"n_fake": self.n, "seed": self.options.seed, "checkpoint": self.step, "reconstructions": "train"}
        return self._data_protocol | facts | {"run": self.run.digest(self.step)}
