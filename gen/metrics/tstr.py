"""Train on synthetic, test on real (Esteban et al. 2017); the classification accuracy score of Ravuri and Vinyals 2019."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gen.core import Dataset
from gen.data.cache import cached
from gen.data.digest import sha256
from gen.families import labels
from gen.metrics import images
from gen.metrics.classifier import MOST, Recipe, accuracy, train
from gen.metrics.gaussian import gaussian
from gen.metrics.images import ImageSet

FORMAT = 1
SEEDS = (0, 1, 2)
PERCEPTRON = Recipe((), (256, 256), steps=2000, batch_size=128, learning_rate=2e-3, weight_decay=0.1)
"""On Fashion-MNIST: 86.5% after 10,000 real images, 88.8% after 54,000. Its cost doesn't depend on their number."""


class Score(NamedTuple):
    """Test accuracy over the seeds of the classifier, in [0, 1]."""

    mean: float
    std: float
    """Population standard deviation."""


class Baselines(NamedTuple):
    trtr: float
    """Of real training images."""
    tstr_gaussian: float
    """Of samples of a Gaussian per class, fitted to the training split (60,000 of it at most)."""


def tstr(examples: ImageSet, test: ImageSet, classes: int, recipe: Recipe) -> Score:
    """Accuracy on `test` of classifiers trained on `examples` alone: synthetic ones (TSTR), or real ones (TRTR)."""
    scores = [accuracy(train(examples, classes, recipe, seed), test, classes, recipe) for seed in SEEDS]
    return Score(float(np.mean(scores)), float(np.std(scores)))


def baselines(data: Dataset, n: int, name: str, recipe: Recipe) -> Baselines:
    """What stands beside `tstr` of n images, tested on the split `name`: that of n real ones, and of n samples of Gaussians
    with the same labels. Kept in the user's cache.

    Raises: UserError if the training split has fewer than n.
    """

    def make() -> dict[str, np.ndarray]:
        classes, test = labels.num_classes(data.spec), images.read_split(data, name)
        known = images.read_training(data, max(n, min(MOST, data.sizes["train"])))
        assert known.label is not None
        real = ImageSet(known.image[:n], known.label[:n])
        examples = {"trtr": real, "tstr_gaussian": gaussian(known, known.label[:n], seed=0)}
        return {key: np.array(tstr(x, test, classes, recipe).mean) for key, x in examples.items()}

    spec = repr(sorted(data.spec.items()))
    key = sha256(f"tstr {FORMAT}", data.digest, spec, f"{n} {name} {SEEDS}", repr(recipe))
    return Baselines(**{name: float(value) for name, value in cached(key, make).items()})
