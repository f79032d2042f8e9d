"""Ablation of the techniques of "Improved Techniques for Training GANs" (Salimans et al. 2016), each alone and all together:
python -m benchmarks.improved_gan [--seeds 5] [--steps 3000] [--out improved_gan.json]

Conditional perceptrons are trained on scikit-learn's digits, all for the same number of steps. Each run generates one image
for each training digit, all classes in turn. The images are compared with held-out digits: the accuracy on these digits of a
classifier that was trained on the images (TSTR), coverage and density (in pixels), and the Fréchet distance (in the features of
a classifier). The table also has two references: the training digits, and a Gaussian per class.

Results are written to the file after each run, so an interrupted command continues where it stopped.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.modes import collapses, samples
from benchmarks.study import Numbers, run_missing, table, train_silently
from gen.config import Alarms, Config
from gen.core import Dataset
from gen.data.images import Images
from gen.data.images.pixels import to_bytes
from gen.errors import run_command
from gen.families.gan import GAN, NonSaturating
from gen.metrics import classifier, images
from gen.metrics.frechet import Moments, frechet, moments
from gen.metrics.gaussian import gaussian
from gen.metrics.prdc import prdc
from gen.metrics.tstr import PERCEPTRON, tstr
from gen.networks import discriminator, generator
from gen.optim import Optimizer

OPTIM = Optimizer(lr=1e-3, b1=0.5, b2=0.99)
BASELINE = GAN(
    latent=32,
    generator=generator.Perceptron(widths=(256, 256), norm="batch"),
    discriminator=discriminator.Perceptron(widths=(256, 256)),
    conditioning="concatenation",
    ema=0.0,
    generator_optim=OPTIM,
    discriminator_optim=OPTIM,
)
REMEMBERED = replace(OPTIM, historical=1e-3)
SWITCHES = {
    "feature matching": {"feature_matching": 0.1},
    "minibatch discrimination": {"discriminator": replace(BASELINE.discriminator, minibatch=16)},
    "historical averaging": {"generator_optim": REMEMBERED, "discriminator_optim": REMEMBERED},
    "one-sided label smoothing": {"objective": NonSaturating(smoothing=0.1)},
    "virtual batch normalization": {"generator": replace(BASELINE.generator, norm="virtual")},
}
METHODS = {
    "baseline": BASELINE,
    **{name: replace(BASELINE, **switch) for name, switch in SWITCHES.items()},
    "all five": replace(BASELINE, **{field: value for switch in SWITCHES.values() for field, value in switch.items()}),
}
COLUMNS = {
    "tstr": ("TSTR", "{:.3f}"),
    "coverage": ("coverage", "{:.3f}"),
    "density": ("density", "{:.2f}"),
    "frechet": ("Fréchet", "{:.2f}"),
}


def score(data: Dataset, examples: images.ImageSet) -> Numbers:
    """Returns the numbers of labelled images, compared with the test split."""
    held_out, features = images.read_split(data, "test"), classifier.classifier_features(data)

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1) / 255

    def fit(x: np.ndarray) -> Moments:
        return moments(images.extract_features(features, x)[0], np.ones(len(x)))

    near = prdc(flat(held_out.image), flat(examples.image))
    return {
        "tstr": tstr(examples, held_out, 10, PERCEPTRON).mean,
        "coverage": near.coverage,
        "density": near.density,
        "frechet": frechet(fit(held_out.image), fit(examples.image)),
    }


def references(data: Dataset) -> dict[str, Numbers]:
    """Returns the numbers of the training digits, and of samples of a Gaussian per class."""
    real = images.read_training(data, data.sizes["train"])
    assert real.label is not None
    return {
        "training digits": score(data, real),
        "Gaussian per class": score(data, gaussian(real, real.label, seed=0)),
    }


def measure(data: Dataset, model: GAN, steps: int, seed: int) -> Numbers:
    """Trains one run, and returns its numbers and its alarms."""
    with train_silently(Config(model, Images(batch_size=64), steps, seed, alarms=Alarms("warn"))) as workdir:
        arrays = samples(workdir, data.sizes["train"])
        examples = images.ImageSet(to_bytes(arrays["samples"]), arrays["labels"])
        return score(data, examples) | {"alarms": collapses(workdir)}


def main(seeds: int = 5, steps: int = 3000, out: Path = Path("improved_gan.json")) -> None:
    """Train the runs that are not in the file yet, and print the table."""
    data = Images().build()
    protocol = {"benchmark": "improved_gan", "steps": steps, "samples": data.sizes["train"]}

    def run(name: str, seed: int) -> Numbers:
        return measure(data, METHODS[name], steps, seed)

    print(table(COLUMNS, references(data), run_missing(out, protocol, list(METHODS), seeds, run)))
    print(
        f"\n{data.sizes['train']:,} images per run after {steps:,} steps, compared with {data.sizes['test']} held-out digits; "
        f"{seeds} seeds, 95% intervals.\nTSTR, coverage: higher is better; Fréchet distance: lower is better."
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
