"""Scores how recognisable and diverse the digits of a run are: python -m benchmarks.digits RUN [--n 256] [--seed 0]

RUN was trained on scikit-learn's digits. Three scores are printed: the mean confidence of a k-nearest-neighbour classifier of
real digits, the number of classes that it finds, and the fraction of 256 held-out digits that the samples cover (coverage of
PRDC on pixels, k = 5). For comparison, training digits and the ten class means, repeated, are scored too. The class means are an
example of collapse.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from sklearn.neighbors import KNeighborsClassifier

from gen.data.images import Images
from gen.errors import run_command
from gen.metrics.prdc import prdc
from gen.runs.trained import open_run


class Score(NamedTuple):
    """Scores of a set of digits."""

    confidence: float
    """Mean probability of the most likely class, in [0, 1]."""
    classes: int
    """Number of classes that the classifier finds."""
    coverage: float
    """Fraction of real digits near a sample, in [0, 1]."""


def score(images: np.ndarray, real: np.ndarray, train: np.ndarray, labels: np.ndarray) -> Score:
    """Returns the scores of images. images, real, train: pixels [N, D]; labels: classes of train, [N]."""
    knn = KNeighborsClassifier(5).fit(train, labels)
    probabilities = knn.predict_proba(images)
    classes = len(np.unique(probabilities.argmax(axis=1)))
    return Score(float(probabilities.max(axis=1).mean()), classes, prdc(real, images).coverage)


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels and labels of the training digits, and the pixels of 256 held-out digits, in [-1, 1]."""
    data = Images(train="train").build()
    pixels = lambda x: x.reshape(len(x), -1) / 8.0 - 1
    train = data.batch(0, 0, range(data.sizes["train"]))
    held_out = next(iter(data.evaluation("test", 256)))
    return pixels(train["image"]), train["label"], pixels(held_out["image"])


def samples(workdir: Path, n: int, seed: int) -> np.ndarray:
    """Returns samples of a run's best checkpoint as pixels [n, D]."""
    run = open_run(workdir)
    return run.generate(run.choose_step(), seed, run.model.request(n=n))["samples"].reshape(n, -1)


def main(workdir: tyro.conf.Positional[Path], n: int = 256, seed: int = 0) -> None:
    """Prints the scores of a run that was trained on digits."""
    train, labels, real = digits()
    means = np.stack([train[labels == c].mean(axis=0) for c in range(10)])
    candidates = {
        "samples": samples(workdir, n, seed),
        "training digits": train[:n],
        "ten class means": means[np.arange(n) % 10],
    }
    for name, images in candidates.items():
        confidence, classes, coverage = score(images, real, train, labels)
        print(f"{name:20s} confidence {confidence:.3f}  classes {classes:2d}  coverage {coverage:.3f}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
