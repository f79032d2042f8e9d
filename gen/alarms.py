"""Alarms while a run trains: a generator that collapses, a discriminator that has won, gradients that vanish or explode.

At each evaluation and each save as many generated images as real ones are compared; the numbers go to telemetry.jsonl, and what passes a
limit is said aloud. gen/metrics/collapse.py says what the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from gen.core import Dataset, GenerativeModel, State, UserError, positive
from gen.metrics import split
from gen.metrics.classifier import seen, trained
from gen.metrics.collapse import collapse

FEW = 64  # images, fewer of which are little to compare with
TWINS = 10  # images with a duplicate, fewer of which may be chance

Watch = Callable[[State, Mapping[str, float]], tuple[dict[str, float], list[str]]]
"""(state, the last metrics) -> numbers for the telemetry, and a text for each alarm."""


@dataclass(frozen=True)
class Config:
    """What is watched while training, and what an alarm does."""

    action: Literal["off", "warn", "stop"] = "off"
    """warn: say it and go on; stop: end the run, with the checkpoints from before kept and none saved after."""
    samples: int = 256
    """Images generated at each evaluation, and held-out ones that they are compared with."""
    classes: float = 0.6
    """Least share of classes covered, of those that as many real images cover (data with labels; by a classifier)."""
    entropy: float = 0.6
    """Least entropy of the predicted classes, as a share of the real images'."""
    duplicates: float = 0.25
    """Largest share of images that have a near duplicate among the others (birthday test)."""
    spread: float = 0.6
    """Least mean distance between two images, as a share of the real images'."""
    saturation: float = 0.95
    """Largest share of held-out examples on which the discriminator has nothing left to learn."""
    gradient: tuple[float, float] = (1e-7, 1e4)
    """Least and largest norm of each player's gradient."""

    def __post_init__(self):
        positive(**{"alarms.samples": self.samples - 1})


def watch(config: Config, data: Dataset, model: GenerativeModel, compiled: Callable[..., Any] = jax.jit) -> Watch:
    """The check of a run's states. Learns the classes first, if there are labels (kept in the user's cache). A validation
    split smaller than `samples` is compared with as many; one smaller than FEW leaves its place to training images."""
    if "image" not in data.spec:
        raise UserError("alarms watch images; the fix: --alarms.action off")
    enough = data.sizes["validation"] >= min(FEW, config.samples)
    n = min(config.samples, data.sizes["validation" if enough else "train"])
    if n < 2:
        raise UserError(f"alarms compare images with each other, and there is {n}; the fix: --alarms.action off")
    real = seen(split.whole(data, "validation").image[:n] if enough else split.training(data, n).image)
    classify = trained(data).extract if "label" in data.spec else None
    expected = None if classify is None else np.asarray(classify(real)[1])
    request = model.request(n=n)
    generate = compiled(lambda state: model.generate(state, jax.random.key(0), {}, request)["samples"])
    flat = lambda images: np.asarray(images).reshape(n, -1)

    def check(state: State, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        fake = generate(state)
        found = collapse(flat(real), flat(fake), expected, None if classify is None else classify(fake)[1])
        finite = {name: value for name, value in found.items() if np.isfinite(value)}
        return finite, alarms(config, {**metrics, **found}, n)

    return check


def alarms(config: Config, found: Mapping[str, float], n: int) -> list[str]:
    """A text for each limit that the numbers, of n images, pass."""
    has = found.keys().__contains__
    texts = []
    if has("classes_fake") and found["classes_fake"] < config.classes * found["classes_real"]:
        texts.append(
            f"collapse: {found['classes_fake']:.0f} classes generated, {found['classes_real']:.0f} among as many real"
        )
    if has("class_entropy_fake") and found["class_entropy_fake"] < config.entropy * found["class_entropy_real"]:
        ours, theirs = found["class_entropy_fake"], found["class_entropy_real"]
        texts.append(f"collapse: the generated classes have an entropy of {ours:.2f} nats, the real ones {theirs:.2f}")
    if has("duplicates") and found["duplicates"] > max(config.duplicates, TWINS / n):
        texts.append(f"collapse: {found['duplicates']:.0%} of the generated images have a near duplicate")
    if has("spread") and found["spread"] < config.spread:
        texts.append(f"collapse: generated images are {found['spread']:.2f} times as far apart as real ones")
    if has("saturation") and found["saturation"] > config.saturation:
        texts.append(
            f"the discriminator has won: nothing left to learn on {found['saturation']:.0%} of held-out examples"
        )
    least, most = config.gradient
    for name, norm in found.items():
        if name.split("/")[0] == "gradient" and not least <= norm <= most:
            texts.append(f"{name.replace('/', ' of the ')} has a norm of {norm:.3g}, outside [{least:g}, {most:g}]")
    return texts
