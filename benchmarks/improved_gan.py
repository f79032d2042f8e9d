"""What each technique of "Improved Techniques for Training GANs" (Salimans et al. 2016) does, by itself and with the others:
python -m benchmarks.improved_gan [--seeds 5] [--steps 3000] [--out improved_gan.json]

Conditional perceptrons on scikit-learn's digits, in one budget. As many images as there are training digits, with their
share of classes, are compared with the held-out digits: how well a classifier trained on them does (TSTR), their coverage
and density (pixels), and the Fréchet distance in the features of a classifier. Beside them: the training digits, and a
Gaussian per class. Finished runs are kept in the file; a command that was stopped goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.modes import collapses, samples
from benchmarks.study import Numbers, finished, table, trained
from gen.config import Alarms, Config
from gen.core import Dataset
from gen.data.images import Images
from gen.data.images.pixels import to_bytes
from gen.errors import run_command
from gen.families.gan import GAN
from gen.metrics import classifier, images
from gen.metrics.frechet import frechet, moments
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
    "one-sided label smoothing": {"smoothing": 0.1},
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


def scored(data: Dataset, examples: images.ImageSet) -> Numbers:
    """Labelled images beside the test split."""
    held_out, features = images.read_split(data, "test"), classifier.trained(data)
    flat = lambda x: x.reshape(len(x), -1) / 255
    fitted = lambda x: moments(images.extract_features(features, x)[0], np.ones(len(x)))
    near = prdc(flat(held_out.image), flat(examples.image))
    return {
        "tstr": tstr(examples, held_out, 10, PERCEPTRON).mean,
        "coverage": float(near["coverage"]),
        "density": float(near["density"]),
        "frechet": frechet(fitted(held_out.image), fitted(examples.image)),
    }


def references(data: Dataset) -> dict[str, Numbers]:
    real = images.read_training(data, data.sizes["train"])
    assert real.label is not None
    return {
        "training digits": scored(data, real),
        "Gaussian per class": scored(data, gaussian(real, real.label, seed=0)),
    }


def measure(data: Dataset, model: GAN, steps: int, seed: int) -> Numbers:
    """One run: `scored`, and its alarms."""
    with trained(Config(model, Images(batch_size=64), steps, seed, alarms=Alarms("warn"))) as workdir:
        arrays = samples(workdir, data.sizes["train"])
        examples = images.ImageSet(to_bytes(arrays["samples"]), arrays["labels"])
        return scored(data, examples) | {"alarms": collapses(workdir)}


def main(seeds: int = 5, steps: int = 3000, out: Path = Path("improved_gan.json")) -> None:
    """Train what isn't in the file yet, and print the table."""
    data = Images().build()
    protocol = {"benchmark": "improved_gan", "steps": steps, "samples": data.sizes["train"]}
    run = lambda name, seed: measure(data, METHODS[name], steps, seed)
    print(table(COLUMNS, references(data), finished(out, protocol, list(METHODS), seeds, run)))
    print(
        f"\n{data.sizes['train']:,} images a run after {steps:,} steps, beside {data.sizes['test']} held-out digits; "
        f"{seeds} seeds, 95% intervals.\nTSTR, coverage: higher is better; Fréchet distance: lower is better."
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
