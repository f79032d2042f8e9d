"""Runs on pairs of images, which translate sources into targets, and the PSNR of their translations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from gen.core import Array
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.score import Metric, Score
from gen.metrics.images import to_float
from gen.metrics.psnr import colors_of_levels, nearest_targets, psnr


@dataclass(frozen=True, eq=False)
class PairSubject(ImageSubject):
    """A run on pairs of a source and a target image. Its generated image i is the translation of held-out source i,
    modulo the number of sources.
    """

    medium = "translations"

    def given(self, rows: np.ndarray) -> Mapping[str, Array]:
        source = self.held_out.source
        assert source is not None
        return {"source": to_float(source[rows % len(source)])}

    @property
    def generated_protocol(self) -> dict[str, object]:
        """The protocol (the settings stored with a score) of scores that depend on the translations alone."""
        return super().generated_protocol | {"sources": self.options.split}


@dataclass(frozen=True)
class SignalToNoise(Metric[PairSubject]):
    """PSNR in dB of translations, compared with the true targets.

    Baselines are three trivial translations:

    - "psnr_source": the source itself.
    - "psnr_nearest": the target of the training pair with the nearest source.
    - "psnr_levels": each source pixel is replaced by the mean target colour of its brightness.
    """

    name: str = "psnr"

    subject = PairSubject

    def unsuited(self, subject: PairSubject) -> str | None:
        if "source" not in subject.generated_shapes:
            return f"it compares translations with their targets, and the model of {subject.workdir} reads no sources"
        return None

    def plan(self, subject: PairSubject) -> list[Score]:
        def score() -> Iterable[float]:
            # With more samples than sources, several samples are compared with one target.
            targets = subject.held_out.image[np.arange(subject.n) % subject.n_held_out]
            return [psnr(subject.generated.image, targets)]

        def score_baselines() -> Iterable[float]:
            known, pairs = subject.training, subject.held_out
            assert pairs.source is not None
            trivial = pairs.source, nearest_targets(known, pairs), colors_of_levels(known, pairs)
            return [psnr(images, pairs.image) for images in trivial]

        names = ("psnr_source", "psnr_nearest", "psnr_levels")
        return [
            Score(("psnr",), subject.compared_protocol, score),
            Score(names, subject.training_protocol, score_baselines, subject.too_few_training_images),
        ]


METRICS: tuple[Metric[PairSubject], ...] = (SignalToNoise(),)
"""The metrics that are only computed for a run of pairs."""
