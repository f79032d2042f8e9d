"""How many modes a GAN covers: python -m benchmarks.modes [--seeds 5] [--steps 4000] [--out modes.json]

Three digits as the channels of one image have 1000 classes, the modes (`stacked_digits`; PacGAN, Lin et al. 2018, section
4.2, there of MNIST). Each method trains the same perceptrons for as many steps, with a discriminator as small as it takes
for the plain GAN to lose modes (as Metz et al. 2017), and two rows show what becomes of it otherwise. 26,000 samples are
told apart digit by digit, by their nearest neighbours. Beside them stand real examples, and a Gaussian fitted to the pixels
of one digit: it covers every mode with blur, so that modes alone are no bar, and what is near to a real digit is counted too.

Finished runs are kept in the file; a command that was stopped goes on.
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

from benchmarks.study import Numbers, finished, table, trained
from gen.config import Alarms, Config
from gen.core import Family
from gen.data.images import Images
from gen.errors import run_command
from gen.families.gan import GAN
from gen.networks import discriminator, generator
from gen.optim import Optimizer
from gen.runs.trained import choose_step, generate, load_model

SAMPLES = 26_000
MODES = 1000
NEAR = 0.95  # share of held-out digits that count as near to a training digit
COLLAPSED = 0.5  # of the modes that real examples cover; fewer are a collapse
WATCHED = 2048  # samples an alarm looks at: of 500 modes 256 would show 200, and 226 of all 1000

OPTIM = Optimizer(lr=1e-3, b1=0.5, b2=0.99)
PLAIN = GAN(
    latent=64,
    generator=generator.Perceptron(widths=(256, 256), norm="none"),
    discriminator=discriminator.Perceptron(widths=(64, 64)),
    ema=0.0,
    generator_optim=OPTIM,
    discriminator_optim=OPTIM,
)
HASTY = replace(OPTIM, b1=0.9, b2=0.999)
METHODS = {
    "plain": PLAIN,
    "minibatch discrimination": replace(PLAIN, discriminator=replace(PLAIN.discriminator, minibatch=16)),
    "packing, 2": replace(PLAIN, pack=2),
    "packing, 4": replace(PLAIN, pack=4),
    "R3GAN's loss": replace(PLAIN, objective="relativistic", r1=0.5, r2=0.5),
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
    """Of modes [N], integers in [0, of): how many there are, and KL(theirs || uniform) in nats, from 0 to log(of)."""
    p = np.bincount(modes, minlength=of) / max(len(modes), 1)
    there = p[p > 0]
    return {"modes": len(there), "reverse_kl": float((there * np.log(there * of)).sum())}


class Judge(NamedTuple):
    classify: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Digits [N, 64] in [-1, 1] -> their classes, the majority's of 5 neighbours among the training digits, int [N]; and
    whether the first of them is as near as it is to the nearer `NEAR` of the held-out digits, bool [N]."""
    accuracy: float
    """Of the classes of held-out digits."""


@cache
def judge() -> Judge:
    from sklearn.neighbors import KNeighborsClassifier

    (known, labels), (held_out, truth) = digits("train"), digits("test")
    knn = KNeighborsClassifier(5, algorithm="brute").fit(known, labels)
    limit = np.quantile(knn.kneighbors(held_out)[0][:, 0], NEAR)

    def classify(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distance, index = knn.kneighbors(x)
        return np.eye(10)[labels[index]].sum(axis=1).argmax(axis=1), distance[:, 0] <= limit

    return Judge(classify, float((classify(held_out)[0] == truth).mean()))


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 64] in [-1, 1] and labels [N] of scikit-learn's "train" or "test" digits."""
    return examples("digits", split, None)


def examples(name: str, split: str, n: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first n (None: all) of a split in the order of seed 0: pixels [n, H W C] in [-1, 1], and labels [n]."""
    data = Images(name=name, train=split).build()
    batch = data.batch(0, 0, range(n or data.sizes["train"]))
    return batch["image"].reshape(len(batch["image"]), -1) / 8.0 - 1, batch["label"]


def scored(images: np.ndarray) -> Numbers:
    """`coverage` of images [N, 8, 8, 3] in [-1, 1]; the share of their digits that is `near` to a real one; and the modes
    of the images with three such digits."""
    found, near = judge().classify(images.transpose(0, 3, 1, 2).reshape(-1, 64))
    modes = found.reshape(-1, 3) @ np.array([100, 10, 1])
    good = modes[near.reshape(-1, 3).all(axis=1)]
    return {**coverage(modes, MODES), "near": float(near.mean()), "near_modes": coverage(good, MODES)["modes"]}


def references() -> dict[str, Numbers]:
    """Numbers of real examples, and of a Gaussian's."""
    known, _ = digits("train")
    rng = np.random.default_rng(0)
    blur = rng.multivariate_normal(known.mean(axis=0), np.cov(known.T), SAMPLES * 3).clip(-1, 1)
    return {
        "real training examples": scored(examples("stacked_digits", "train", SAMPLES)[0].reshape(-1, 8, 8, 3)),
        "Gaussian of a digit's pixels": scored(blur.reshape(-1, 3, 8, 8).transpose(0, 2, 3, 1)),
    }


def measure(model: Family, steps: int, seed: int) -> Numbers:
    """One run: `scored`, and its alarms."""
    data = Images(name="stacked_digits", batch_size=64)
    with trained(Config(model, data, steps, seed, alarms=Alarms("warn", samples=WATCHED))) as workdir:
        return scored(samples(workdir, SAMPLES)["samples"]) | {"alarms": collapses(workdir)}


def samples(workdir: Path, n: int) -> dict[str, np.ndarray]:
    """What a trained run generates, with seed 0."""
    config, model = load_model(workdir, ())
    return generate(workdir, model, choose_step(workdir, config, None), 0, model.request(n=n))


def collapses(workdir: Path) -> list[str]:
    """The alarms of a collapse that a run raised."""
    records = map(json.loads, (workdir / "telemetry.jsonl").read_text().splitlines())
    return [record["alarm"] for record in records if record.get("alarm", "").startswith("collapse")]


def main(seeds: int = 5, steps: int = 4000, out: Path = Path("modes.json")) -> None:
    """Train what isn't in the file yet, and print the table."""
    protocol = {"benchmark": "modes", "steps": steps, "samples": SAMPLES}
    results = finished(out, protocol, list(METHODS), seeds, lambda name, seed: measure(METHODS[name], steps, seed))
    real = references()
    print(table(COLUMNS, real, results))
    collapsed = [
        run
        for runs in results.values()
        for run in runs.values()
        if run["modes"] < COLLAPSED * real["real training examples"]["modes"]
    ]
    print(
        f"\n{SAMPLES:,} samples a run after {steps:,} steps; {seeds} seeds, 95% intervals; reverse KL in nats. The classes of digits are told "
        f"with an accuracy of {judge().accuracy:.1%}.\nnear: share of digits as near to a real one as {NEAR:.0%} of held-out "
        f"digits; near modes: those of images whose digits all are.\nBelow {COLLAPSED:.0%} of the real modes were "
        f"{len(collapsed)} runs, with an alarm in {sum(map(bool, (run['alarms'] for run in collapsed)))} of them."
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
