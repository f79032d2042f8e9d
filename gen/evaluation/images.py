"""Metrics of generated images: accuracies of classifiers trained on them, and comparisons of their features with real ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.score import Metric, Score
from gen.families.labels import class_names, num_classes
from gen.metrics.classifier import untrainable
from gen.metrics.frechet import frechet, moments
from gen.metrics.inception_score import inception_score_by_split
from gen.metrics.kid import kid
from gen.metrics.prdc import Prdc, prdc
from gen.metrics.tstr import PERCEPTRON, SEEDS, baselines, tstr

KID_SUBSETS = 100
"""Number of random subsets over which KID is averaged."""
MAX_KID_SUBSET = 1000
"""Upper bound on the number of images in a subset of KID. A subset is smaller if there are fewer images."""
MIN_KID_SUBSET = 2
"""Minimum number of images in a subset of KID, because the kernel is averaged over pairs of different images."""
INCEPTION_SPLITS = 10
"""Number of parts of the generated images. The Inception score is the mean over the parts."""
NEIGHBOURS = 5
"""The k of precision, recall, density and coverage (gen.metrics.prdc)."""


@dataclass(frozen=True)
class ImageMetric(Metric[ImageSubject]):
    """A metric of runs that generate images."""

    subject = ImageSubject


@dataclass(frozen=True)
class Tstr(ImageMetric):
    """TSTR (train on synthetic, test on real): classifiers are trained on generated images, and tested on held-out images.

    The score is their mean accuracy. Baselines: the accuracy after training on real images ("trtr": train on real, test on
    real), and on samples of one Gaussian per class ("tstr_gaussian").
    """

    name: str = "tstr"

    def unsuited(self, subject: ImageSubject) -> str | None:
        if not subject.labelled:
            return f"it trains a classifier on labelled images, and {subject.unlabelled_reason}"
        if reason := untrainable(subject.data):
            return f"it trains a classifier, and {reason}"
        return None

    def plan(self, subject: ImageSubject) -> list[Score]:
        # The accuracy depends on the classifier, so its recipe is part of the protocol.
        rule = {"classifier": asdict(PERCEPTRON), "seeds": SEEDS}
        if names := class_names(subject.data.spec):
            rule["classes"] = names

        def score() -> Iterable[float]:
            return tstr(subject.generated, subject.held_out, num_classes(subject.data.spec), PERCEPTRON)

        def score_baselines() -> Iterable[float]:
            return baselines(subject.data, subject.n, subject.options.split, PERCEPTRON)

        return [
            Score(("tstr", "tstr_std"), subject.compared_protocol | rule, score),
            Score(
                ("trtr", "tstr_gaussian"),
                subject.training_protocol | rule,
                score_baselines,
                subject.too_few_training_images,
            ),
        ]


@dataclass(frozen=True)
class Frechet(ImageMetric):
    """Fréchet distance between generated and held-out images, and between training and held-out images as a baseline."""

    name: str = "frechet"

    def unsuited(self, subject: ImageSubject) -> str | None:
        fewest, dimensions = min(subject.n, subject.n_held_out), subject.feature_shapes[0].shape[1]
        if fewest <= dimensions:
            needed = f"{dimensions} features need more than {dimensions} images"
            return f"{needed}, and {subject.fewest}" + ("; kid needs fewer" if fewest >= MIN_KID_SUBSET else "")
        return None

    def plan(self, subject: ImageSubject) -> list[Score]:
        def distance(features: np.ndarray) -> list[float]:
            # All rows have weight 1, because padding was cut off before.
            real, other = (moments(x, np.ones(len(x))) for x in (subject.real_features, features))
            return [frechet(real, other)]

        def score() -> Iterable[float]:
            return distance(subject.fake_features)

        def score_baseline() -> Iterable[float]:
            return distance(subject.training_features)

        return [
            Score(("frechet",), subject.compared_protocol | subject.feature_protocol, score),
            Score(
                ("frechet_real",),
                subject.training_protocol | subject.feature_protocol,
                score_baseline,
                subject.too_few_training_images,
            ),
        ]


@dataclass(frozen=True)
class KernelDistance(ImageMetric):
    """KID: kernel distance between generated and held-out images."""

    name: str = "kid"

    def unsuited(self, subject: ImageSubject) -> str | None:
        if min(subject.n, subject.n_held_out) < MIN_KID_SUBSET:
            return f"it compares pairs of images, and {subject.fewest}"
        return None

    def plan(self, subject: ImageSubject) -> list[Score]:
        # A subset is drawn without replacement, so it can't be larger than a set.
        size = min(MAX_KID_SUBSET, subject.n, subject.n_held_out)
        rule = {"subsets": KID_SUBSETS, "subset": size}

        def score() -> Iterable[float]:
            return kid(subject.real_features, subject.fake_features, KID_SUBSETS, size)

        return [Score(("kid", "kid_std"), subject.compared_protocol | subject.feature_protocol | rule, score)]


@dataclass(frozen=True)
class InceptionScore(ImageMetric):
    """Inception score of the generated images, from the class probabilities that the feature extractor gives."""

    name: str = "inception"

    def unsuited(self, subject: ImageSubject) -> str | None:
        if subject.feature_shapes[1] is None:
            return f"{subject.options.features or 'pixels'} give no class probabilities"
        if subject.n < INCEPTION_SPLITS:
            return f"it needs at least {INCEPTION_SPLITS} generated images, and there are {subject.n}"
        return None

    def plan(self, subject: ImageSubject) -> list[Score]:
        def score() -> Iterable[float]:
            # Generated images may be sorted by class. Without shuffling, a split would have only some classes.
            shuffled = np.random.default_rng(0).permutation(subject.fake_probabilities)
            return inception_score_by_split(shuffled, INCEPTION_SPLITS)

        names = ("inception_score", "inception_score_std")
        protocol = subject.generated_protocol | subject.feature_protocol | {"splits": INCEPTION_SPLITS}
        return [Score(names, protocol, score)]


@dataclass(frozen=True)
class Manifold(ImageMetric):
    """Precision, recall, density and coverage of the generated images."""

    name: str = "prdc"

    def unsuited(self, subject: ImageSubject) -> str | None:
        if min(subject.n, subject.n_held_out) <= NEIGHBOURS:
            return f"an image needs {NEIGHBOURS} neighbours in its set, and {subject.fewest}"
        return None

    def plan(self, subject: ImageSubject) -> list[Score]:
        def score() -> Iterable[float]:
            return prdc(subject.real_features, subject.fake_features, NEIGHBOURS)

        return [
            Score(Prdc._fields, subject.compared_protocol | subject.feature_protocol | {"k": NEIGHBOURS}, score),
        ]


METRICS: tuple[ImageMetric, ...] = (Tstr(), Frechet(), KernelDistance(), InceptionScore(), Manifold())
"""The metrics that are computed for a run that generates images, in the order of the table."""
