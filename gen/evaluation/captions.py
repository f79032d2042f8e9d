"""Scores of runs that generate images from captions. Baselines: real images, and the nearest training images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gen.core import Dataset
from gen.data.order import permute
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.score import Metric, Score
from gen.families.captions import GIVEN
from gen.metrics.captions import Fit, Scorer, fit, halves, load_scorer
from gen.metrics.images import ImageSet, read_split, to_float
from gen.metrics.neighbours import nearest


@dataclass(frozen=True, eq=False)
class CaptionedSubject(ImageSubject):
    """A run on images with captions. If its model reads captions, the generated images are for captions of the held-out split."""

    medium = "images of captions"

    @cached_property
    def captioned(self) -> bool:
        """Whether the model reads captions."""
        return "captions" in self.generated_shapes

    @cached_property
    def own(self) -> np.ndarray:
        """Caption of each generated image, int64 [n]: index into captions[0], the different held-out captions."""
        return self.captions[1][self.order(self.n)]

    def order(self, n: int) -> np.ndarray:
        """Returns the held-out example whose caption each of n generated images gets, as a position in the split, int64 [n].

        The examples are taken in rounds over the split, each in a new random order. So captions are as frequent as in the
        split, and the first positions don't depend on n.
        """
        return permute(self.n_held_out)(self.options.seed, range(n))

    def conditions(self, n: int) -> dict[str, np.ndarray]:
        conditions = super().conditions(n)
        if not self.captioned:
            return conditions
        # Captions of the held-out split, which the model has never seen.
        captions = self.held_out.caption
        assert captions is not None
        return conditions | {GIVEN: captions[self.order(n)]}

    @cached_property
    def generated_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that depend on the generated images alone."""
        drawn = {"captions": self.options.split} if self.captioned else {}
        return super().generated_protocol | drawn

    @property
    def held_out_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that depend on held-out images, not on the run."""
        return self._data_protocol | self._split_protocol

    @cached_property
    def scorer(self) -> Scorer:
        """The networks that measure the similarity of images and captions. They are trained on the run's data."""
        return load_scorer(self.data)

    @cached_property
    def captions(self) -> tuple[np.ndarray, np.ndarray]:
        """The M different captions of the held-out split, int32 [M, L], and each image's caption as a position in them, int64 [N]."""
        assert self.held_out.caption is not None
        return np.unique(self.held_out.caption, axis=0, return_inverse=True)

    @cached_property
    def known(self) -> ImageSet:
        """All images of the training split, with their captions."""
        return read_split(self.data, "train")

    @cached_property
    def nearest(self) -> np.ndarray:
        """For each of captions[0], the training image whose caption is the most similar by `scorer`: int64 [M],
        positions in the training split.
        """
        assert self.known.caption is not None
        return self.scorer.nearest(self.captions[0], self.known.caption)

    @cached_property
    def generated_neighbours(self) -> Neighbours:
        """The training images nearest to the generated ones."""
        return find_neighbours(self.data, self.generated.image)

    @cached_property
    def held_out_neighbours(self) -> Neighbours:
        """The training images nearest to the held-out ones."""
        return find_neighbours(self.data, self.held_out.image)

    def fit(self, images: np.ndarray, own: np.ndarray, near: np.ndarray) -> Fit:
        """Returns how well uint8 images [N, H, W, C] fit their captions.

        own: int [N], caption of each image, as a position in captions[0]. near: int [N], training image nearest to each image,
        as a position in the training split. Networks that were not trained on the nearest image judge the image.
        """
        return fit(self.scorer.similarity(images, self.captions[0], halves(self.known)[near]), own)


class Neighbours(NamedTuple):
    """The training image nearest to each of N images, by their pixels in [-1, 1]."""

    distance: np.ndarray
    """float32 [N]. Euclidean."""
    index: np.ndarray
    """int32 [N]. Positions in the training split."""


def find_neighbours(data: Dataset, images: np.ndarray) -> Neighbours:
    """Finds the nearest training image of each image, by Euclidean distance. images: uint8 [N, H, W, C]."""
    distance, index = nearest(data, np.asarray(to_float(images)))
    return Neighbours(distance[:, 0], index[:, 0])


@dataclass(frozen=True)
class Captions(Metric[CaptionedSubject]):
    """How well generated images fit their captions, and how near they are to training images.

    Baselines: held-out images with their own captions (names end with "_real"), and for each held-out caption the
    training image with the most similar caption (names end with "_nearest").
    """

    name: str = "captions"

    subject = CaptionedSubject

    def unsuited(self, subject: CaptionedSubject) -> str | None:
        return None if subject.captioned else "the model reads no captions (--model.conditional)"

    def plan(self, subject: CaptionedSubject) -> list[Score]:
        def score() -> Iterable[float]:
            return subject.fit(subject.generated.image, subject.own, subject.generated_neighbours.index)

        # The references use each held-out example once, so they don't depend on the run, --n and --seed.
        def score_real() -> Iterable[float]:
            return subject.fit(subject.held_out.image, subject.captions[1], subject.held_out_neighbours.index)

        def score_nearest() -> Iterable[float]:
            own = subject.captions[1]
            near = subject.nearest[own]
            return subject.fit(subject.known.image[near], own, near)

        def distance() -> Iterable[float]:
            return [float(subject.generated_neighbours.distance.mean())]

        def distance_real() -> Iterable[float]:
            return [float(subject.held_out_neighbours.distance.mean())]

        scorer, neighbours = dict(subject.scorer.protocol), {"distance": "pixels in [-1, 1], Euclidean"}
        return [
            Score(names(""), subject.compared_protocol | scorer, score),
            Score(names("_real"), subject.held_out_protocol | scorer, score_real),
            Score(names("_nearest"), subject.held_out_protocol | scorer | {"nearest": "by the scorer"}, score_nearest),
            Score(
                ("train_distance",),
                subject.generated_protocol | neighbours,
                distance,
            ),
            Score(
                ("train_distance_real",),
                subject.held_out_protocol | neighbours,
                distance_real,
            ),
        ]


def names(end: str) -> tuple[str, ...]:
    """Returns the names of the fields of `Fit` in evaluation.json, such as "caption_similarity". end: suffix, such as "_real"."""
    return tuple(f"caption_{name}{end}" for name in Fit._fields)


METRICS: tuple[Metric[CaptionedSubject], ...] = (Captions(),)
"""The metrics that are only computed for a run on images with captions."""
