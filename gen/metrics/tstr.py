"""Train on synthetic, test on real (TSTR): the accuracy on real images of a classifier that is trained on generated images only.

Source: Esteban et al. 2017. Ravuri and Vinyals 2019 call it the classification accuracy score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gen.core import Dataset
from gen.data.cache import load_or_make
from gen.data.digest import sha256
from gen.families.labels import num_classes
from gen.metrics.classifier import MAX_TRAINING_IMAGES, Recipe, accuracy, train
from gen.metrics.gaussian import gaussian
from gen.metrics.images import ImageSet, read_split, read_training

FORMAT = 1
"""Part of the cache key: raise it if a baseline below is computed differently, so that old scores are not reused."""
SEEDS = (0, 1, 2)
"""Seeds of the classifiers whose accuracies are averaged."""
PERCEPTRON = Recipe((), (256, 256), steps=2000, batch_size=128, learning_rate=2e-3, weight_decay=0.1)
"""The recipe of the classifiers. On Fashion-MNIST it reaches a test accuracy of 86.5% with 10,000 real training images, and 88.8% with
54,000. Its cost does not depend on the number of images."""


class Score(NamedTuple):
    """Accuracy on real test images, in [0, 1], of classifiers that are trained on generated images with different seeds."""

    mean: float
    """Mean over the seeds."""
    std: float
    """Population standard deviation over the seeds."""


class Baselines(NamedTuple):
    """Test accuracies of classifiers that are not trained on samples of the model, in [0, 1]."""

    trtr: float
    """Accuracy after training on real images."""
    tstr_gaussian: float
    """Accuracy after training on samples of one Gaussian per class, fitted to at most MAX_TRAINING_IMAGES training images."""


def tstr(examples: ImageSet, test: ImageSet, classes: int, recipe: Recipe) -> Score:
    """Returns the accuracy on `test` of classifiers that are trained on `examples` only, one classifier for each seed in SEEDS.

    If the examples are generated, this is TSTR. If they are real, it is TRTR (train on real, test on real), the score to reach.
    """
    scores = [accuracy(train(examples, classes, recipe, seed), test, classes, recipe) for seed in SEEDS]
    return Score(float(np.mean(scores)), float(np.std(scores)))


def baselines(data: Dataset, n: int, split: str, recipe: Recipe) -> Baselines:
    """Returns baselines for the score `tstr` of n generated images. They are kept in the user's cache.

    A baseline trains classifiers on n real images, or on n samples of Gaussians with the same labels, and tests them on `split`.

    Raises: UserError if the training split has fewer than n images.
    """

    def make() -> dict[str, np.ndarray]:
        classes, test = num_classes(data.spec), read_split(data, split)
        # The Gaussians are fitted to more images than n: a strong baseline.
        known = read_training(data, max(n, min(MAX_TRAINING_IMAGES, data.sizes["train"])))
        assert known.label is not None
        # Both use the same n labels, so that the frequencies of the classes are equal.
        real = ImageSet(known.image[:n], known.label[:n])
        examples = {"trtr": real, "tstr_gaussian": gaussian(known, known.label[:n], seed=0)}
        return {name: np.array(tstr(images, test, classes, recipe).mean) for name, images in examples.items()}

    spec = repr(sorted(data.spec.items()))
    key = sha256(f"tstr {FORMAT}", data.digest, spec, f"{n} {split} {SEEDS}", repr(recipe))
    scores = load_or_make(key, make, "baselines of TSTR")
    return Baselines(float(scores["trtr"]), float(scores["tstr_gaussian"]))
