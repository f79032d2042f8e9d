"""How recognisable and how diverse the digits of a run are: python -m benchmarks.digits RUN [--n 256] [--seed 0]

Prints, for the run's samples, for held-out digits, and for the ten class means repeated (what collapse looks like):
the mean confidence and the classes of a k-nearest-neighbour classifier trained on the real ones, and the share of 256
real ones that the samples cover (PRDC, k = 5, pixels).
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
from gen.runs.trained import choose_step, generate, load_model


class Score(NamedTuple):
    confidence: float
    classes: int
    coverage: float


def score(images: np.ndarray, real: np.ndarray, train: np.ndarray, labels: np.ndarray) -> Score:
    """images, real, train: [N, D] pixels; labels: [N] of train."""
    knn = KNeighborsClassifier(5).fit(train, labels)
    probabilities = knn.predict_proba(images)
    classes = len(np.unique(probabilities.argmax(axis=1)))
    return Score(float(probabilities.max(axis=1).mean()), classes, float(prdc(real, images)["coverage"]))


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training pixels and labels, and 256 held-out ones, in [-1, 1]."""
    data = Images(train="train").build()
    pixels = lambda x: x.reshape(len(x), -1) / 8.0 - 1
    train = data.batch(0, 0, range(data.sizes["train"]))
    held_out = next(iter(data.evaluation("test", 256)))
    return pixels(train["image"]), train["label"], pixels(held_out["image"])


def samples(workdir: Path, n: int, seed: int) -> np.ndarray:
    """[n, D] pixels of a run's best checkpoint."""
    config, model = load_model(workdir, ())
    request = model.request(n=n)
    return generate(workdir, model, choose_step(workdir, config, None), seed, request)["samples"].reshape(n, -1)


def main(workdir: tyro.conf.Positional[Path], n: int = 256, seed: int = 0) -> None:
    """Print the scores of a run on digits."""
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
