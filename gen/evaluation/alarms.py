"""Alarms while a run trains: a generator that collapses, a discriminator that has won, gradients that vanish or explode.

At each evaluation and each save as many generated images as real ones are compared; the numbers go to telemetry.jsonl, and what passes a
limit is said aloud. gen/metrics/collapse.py says what the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gen.config import Alarms
from gen.core import Dataset, GenerativeModel, State
from gen.errors import UserError
from gen.metrics import images as metrics_images
from gen.metrics.classifier import trained
from gen.metrics.collapse import collapse
from gen.metrics.images import to_float

MIN_IMAGES = 64  # images, fewer of which are little to compare with
MIN_DUPLICATES = 10  # images with a duplicate, fewer of which may be chance

Watch = Callable[[State, Mapping[str, float]], tuple[dict[str, float], list[str]]]
"""(state, the last metrics) -> numbers for the telemetry, and a text for each alarm."""


def watch(config: Alarms, data: Dataset, model: GenerativeModel, compiled: Callable[..., Any] = jax.jit) -> Watch:
    """The check of a run's states. Learns the classes first, if there are labels (kept in the user's cache). A validation
    split smaller than `samples` is compared with as many; one smaller than FEW leaves its place to training images."""
    if "image" not in data.spec:
        raise UserError("alarms watch images; the fix: --alarms.action off")
    enough = data.sizes["validation"] >= min(MIN_IMAGES, config.samples)
    n = min(config.samples, data.sizes["validation" if enough else "train"])
    if n < 2:
        raise UserError(f"alarms compare images with each other, and there is {n}; the fix: --alarms.action off")
    real = to_float(
        metrics_images.read_split(data, "validation").image[:n]
        if enough
        else metrics_images.read_training(data, n).image
    )
    classify = trained(data).extract if "label" in data.spec else None
    expected = None if classify is None else np.asarray(classify(real)[1])
    request = model.request(n=n)
    generate = compiled(lambda state: model.generate(state, jax.random.key(0), {}, request)["samples"])
    flat = lambda images: np.asarray(images).reshape(n, -1)

    def check(state: State, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        fake = generate(state)
        found = collapse(flat(real), flat(fake), expected, None if classify is None else classify(fake)[1])
        finite = {name: value for name, value in found.items() if np.isfinite(value)}
        return finite, check_limits(config, {**metrics, **found}, n)

    return check


def check_limits(config: Alarms, found: Mapping[str, float], n: int) -> list[str]:
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
    if has("duplicates") and found["duplicates"] > max(config.duplicates, MIN_DUPLICATES / n):
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
