"""Counts the modes that a GAN covers: python -m benchmarks.modes [--seeds 5] [--steps 4000] [--out modes.json]

An image is three digits, stacked as its channels. The 1000 combinations of digits are the modes (data set `stacked_digits`; Lin
et al. 2018, PacGAN, section 4.2, with MNIST). Every method trains the same perceptrons for the same number of steps. The
discriminator is so small that the plain GAN loses modes (as in Metz et al. 2017). The last two rows change the momentum and
the size of the discriminator. 26,000 samples are classified digit by digit, by nearest neighbours.

The table also has two references: real examples, and a Gaussian fitted to the pixels of one digit. The Gaussian covers every
mode with blurred images, so the number of modes alone proves little. So the benchmark also counts the digits that are near to a
real digit.

Results are written to the file after each run, so an interrupted command continues where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from benchmarks.study import Numbers, run_missing, table, train_silently
from gen.config import Alarms, Config
from gen.core import Family
from gen.data.images import Images
from gen.errors import run_command
from gen.families.gan import GAN, Relativistic
from gen.networks import discriminator, generator
from gen.optim import Optimizer
from gen.runs.trained import open_run

SAMPLES = 26_000
MODES = 1000
NEAR = 0.95
"""Fraction of held-out digits that count as near to a training digit. It sets the limit of the distance."""
MIN_COVERAGE = 0.5
"""A run has collapsed if it covers less than this fraction of the modes that real examples cover."""
ALARM_SAMPLES = 2048
"""Number of samples that an alarm reads. 256 would be too few: they show 200 classes of 500 modes, and 226 of all 1000."""

OPTIM = Optimizer(lr=1e-3, b1=0.5, b2=0.99)
PLAIN = GAN(
    latent=64,
    generator=generator.Perceptron(widths=(256, 256), norm="none"),
    discriminator=discriminator.Perceptron(widths=(64, 64)),
    ema=0.0,
    generator_optim=OPTIM,
    discriminator_optim=OPTIM,
)
# The usual momentum of Adam, which is known to make GANs unstable.
HASTY = replace(OPTIM, b1=0.9, b2=0.999)
METHODS = {
    "plain": PLAIN,
    "minibatch discrimination": replace(PLAIN, discriminator=replace(PLAIN.discriminator, minibatch=16)),
    "packing, 2": replace(PLAIN, pack=2),
    "packing, 4": replace(PLAIN, pack=4),
    "R3GAN's loss": replace(PLAIN, objective=Relativistic(), r1=0.5, r2=0.5),
    "plain, b1 = 0.9": replace(PLAIN, generator_optim=HASTY, discriminator_optim=HASTY),
    "plain, D of 256-256": replace(PLAIN, discriminator=discriminator.Perceptron(widths=(256, 256))),
}
COLUMNS = {
    "modes": ("modes", "{:.0f}"),
    "reverse_kl": ("reverse KL", "{:.2f}"),
    "near": ("near", "{:.3f}"),
    "near_modes": ("near modes", "{:.0f}"),
}


def coverage(modes: np.ndarray, of: int) -> Numbers:
    """Returns the number of different modes, and KL(distribution of the modes || uniform) in nats, from 0 to log(of).

    modes: int [N] in [0, of).
    """
    p = np.bincount(modes, minlength=of) / max(len(modes), 1)
    covered = p[p > 0]
    return {"modes": len(covered), "reverse_kl": float((covered * np.log(covered * of)).sum())}


class Judge(NamedTuple):
    """A nearest-neighbour classifier of digits."""

    classify: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Digits [N, 64] in [-1, 1] -> classes int [N], by majority of 5 neighbours among the training digits, and bool [N]:
    whether the nearest neighbour is within the distance that `NEAR` of the held-out digits have."""
    accuracy: float
    """Fraction of held-out digits that it classifies correctly."""


@cache
def judge() -> Judge:
    """Returns the judge, fitted once per process."""
    from sklearn.neighbors import KNeighborsClassifier

    (known, labels), (held_out, truth) = digits("train"), digits("test")
    knn = KNeighborsClassifier(5, algorithm="brute").fit(known, labels)
    # The limit comes from held-out digits, because training digits are at distance 0 from themselves.
    limit = np.quantile(knn.kneighbors(held_out)[0][:, 0], NEAR)

    def classify(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distance, index = knn.kneighbors(x)
        return np.eye(10)[labels[index]].sum(axis=1).argmax(axis=1), distance[:, 0] <= limit

    return Judge(classify, float((classify(held_out)[0] == truth).mean()))


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels [N, 64] in [-1, 1] and labels int [N] of scikit-learn's digits. split: "train" or "test"."""
    return examples("digits", split, None)


def examples(name: str, split: str, n: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first n examples of a split in the order of seed 0: pixels [n, H W C] in [-1, 1] and labels int [n].

    n: None for all.
    """
    data = Images(name=name, train=split).build()
    batch = data.batch(0, 0, range(n or data.sizes["train"]))
    return batch["image"].reshape(len(batch["image"]), -1) / 8.0 - 1, batch["label"]


def score(images: np.ndarray) -> Numbers:
    """Returns the numbers of images [N, 8, 8, 3] in [-1, 1].

    They are `coverage`, "near" (the fraction of digits near to a real one), and "near_modes" (the number of modes of the
    images with three such digits).
    """
    found, near = judge().classify(images.transpose(0, 3, 1, 2).reshape(-1, 64))
    modes = found.reshape(-1, 3) @ np.array([100, 10, 1])
    # One digit that is far from every real one spoils an image.
    good = modes[near.reshape(-1, 3).all(axis=1)]
    return {**coverage(modes, MODES), "near": float(near.mean()), "near_modes": coverage(good, MODES)["modes"]}


def references() -> dict[str, Numbers]:
    """Returns the numbers of real examples, and of samples of a Gaussian."""
    known, _ = digits("train")
    rng = np.random.default_rng(0)
    blur = rng.multivariate_normal(known.mean(axis=0), np.cov(known.T), SAMPLES * 3).clip(-1, 1)
    return {
        "real training examples": score(examples("stacked_digits", "train", SAMPLES)[0].reshape(-1, 8, 8, 3)),
        "Gaussian of a digit's pixels": score(blur.reshape(-1, 3, 8, 8).transpose(0, 2, 3, 1)),
    }


def measure(model: Family, steps: int, seed: int) -> Numbers:
    """Trains one run, and returns its numbers and its alarms."""
    data = Images(name="stacked_digits", batch_size=64)
    with train_silently(Config(model, data, steps, seed, alarms=Alarms("warn", samples=ALARM_SAMPLES))) as workdir:
        return score(samples(workdir, SAMPLES)["samples"]) | {"alarms": collapses(workdir)}


def samples(workdir: Path, n: int) -> dict[str, np.ndarray]:
    """Returns the arrays that a trained run generates for n samples with seed 0."""
    run = open_run(workdir)
    return run.generate(run.choose_step(), 0, run.model.request(n=n))


def collapses(workdir: Path) -> list[str]:
    """Returns the alarms of a collapse that a run raised."""
    records = map(json.loads, (workdir / "telemetry.jsonl").read_text().splitlines())
    return [record["alarm"] for record in records if record.get("alarm", "").startswith("collapse")]


def main(seeds: int = 5, steps: int = 4000, out: Path = Path("modes.json")) -> None:
    """Train the runs that are not in the file yet, and print the table."""
    protocol = {"benchmark": "modes", "steps": steps, "samples": SAMPLES}

    def run(name: str, seed: int) -> Numbers:
        return measure(METHODS[name], steps, seed)

    results, real = run_missing(out, protocol, list(METHODS), seeds, run), references()
    print(table(COLUMNS, real, results))
    collapsed = [
        run
        for runs in results.values()
        for run in runs.values()
        if run["modes"] < MIN_COVERAGE * real["real training examples"]["modes"]
    ]
    print(
        f"\n{SAMPLES:,} samples per run after {steps:,} steps; {seeds} seeds, 95% intervals; reverse KL in nats.\n"
        f"Digits are classified with an accuracy of {judge().accuracy:.1%}.\n"
        f"near: fraction of digits as near to a real one as {NEAR:.0%} of held-out digits.\n"
        "near modes: modes of the images whose three digits are all near.\n"
        f"{len(collapsed)} runs cover less than {MIN_COVERAGE:.0%} of the real modes; "
        f"{sum(bool(run['alarms']) for run in collapsed)} of them raised an alarm."
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
