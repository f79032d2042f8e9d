"""Alarms of a run in training: a validation metric that gets far worse, gradients that vanish or explode, a discriminator that
has won, a collapsed generator or codebook.

A run checks its metrics at each evaluation and each save. With --alarms.action warn or stop, it also generates images and
compares them with the same number of real images (gen.metrics.collapse). A conditional model gets the labels, captions
or source images of the real images. The numbers of the comparison go to telemetry.jsonl. Each number beyond its limit
prints a warning.

gen.runtime.faults checks the loss and the gradient of every single step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from gen.config import Alarm, Alarms
from gen.core import Array, Dataset, GenerativeModel, State
from gen.data.images.patches import show_samples
from gen.errors import UserError
from gen.evaluation.progress import Progress
from gen.evaluation.request import parse_request
from gen.families import captions, labels
from gen.metrics.classifier import OneClassError, classifier_features, untrainable
from gen.metrics.collapse import collapse
from gen.metrics.images import ImageSet, read_split, read_training, to_float

log = logging.getLogger(__name__)

MIN_IMAGES = 64
"""Training images are used for comparisons if there are fewer validation images than this and --alarms.samples."""
MIN_DUPLICATES = 10
"""`NearDuplicates` gives no alarm if at most this number of images have a near duplicate: that may be chance."""


@dataclass(frozen=True)
class FewClasses(Alarm):
    """Warns if the predicted classes of the generated images are too few, compared with real images."""

    least: float
    """Minimum number of different predicted classes, divided by the number for real images."""

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        if "classes_fake" not in numbers:
            return []
        fake, real = numbers["classes_fake"], numbers["classes_real"]
        if fake < self.least * real:
            return [
                f"collapse: the generated images cover {fake:.0f} classes, and the same number of real images {real:.0f}"
            ]
        return []


@dataclass(frozen=True)
class LowEntropy(Alarm):
    """Warns if the generated images are spread too unevenly over the predicted classes, compared with real images."""

    least: float
    """Minimum entropy of the mean predicted distribution of classes, divided by the entropy for real images."""

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        if "class_entropy_fake" not in numbers:
            return []
        fake, real = numbers["class_entropy_fake"], numbers["class_entropy_real"]
        if fake < self.least * real:
            return [f"collapse: the generated classes have an entropy of {fake:.2f} nats, the real ones {real:.2f}"]
        return []


@dataclass(frozen=True)
class NearDuplicates(Alarm):
    """Warns if too many generated images have a near duplicate among the other generated images."""

    most: float
    """Maximum fraction of generated images with a near duplicate."""

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        share = numbers.get("duplicates", 0.0)
        return [f"collapse: {share:.0%} of the generated images have a near duplicate"] if share > self.most else []


@dataclass(frozen=True)
class LowSpread(Alarm):
    """Warns if the generated images are too close to each other, compared with real images."""

    least: float
    """Minimum of the mean distance between generated images, divided by the mean distance between real images."""

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        spread = numbers.get("spread", float("inf"))
        if spread < self.least:
            return [
                f"collapse: the mean distance between generated images is {spread:.2f} times as large as between real images"
            ]
        return []


@dataclass(frozen=True)
class Saturation(Alarm):
    """Warns if the discriminator has won: its loss is so low that it no longer teaches the generator."""

    most: float
    """Maximum fraction of held-out examples on which the discriminator has nothing left to learn: the metric "saturation"."""

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        share = numbers.get("saturation", 0.0)
        if share > self.most:
            return [f"the discriminator has won: it has nothing left to learn on {share:.0%} of the held-out examples"]
        return []


@dataclass(frozen=True)
class UnusedCodes(Alarm):
    """Warns if a tokenizer's codebook has collapsed: the validation split uses too few of its codes."""

    least: float
    """Minimum fraction of the codes that occur in the validation split."""

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        used = numbers.get("codes_used", 1.0)
        return [f"collapse: the validation split uses {used:.0%} of the codes"] if used < self.least else []


@dataclass(frozen=True)
class GradientNorm(Alarm):
    """Warns if a metric "gradient" or "gradient/PLAYER", a norm, is outside of [least, most] or not finite."""

    least: float
    most: float

    def check(self, numbers: Mapping[str, float]) -> list[str]:
        norms = {name: norm for name, norm in numbers.items() if name.split("/")[0] == "gradient"}
        return [
            f"the {name.replace('/', ' of the ')} has a norm of {norm:.3g}, outside [{self.least:g}, {self.most:g}]"
            for name, norm in norms.items()
            # A nan is outside too: every comparison with it is false.
            if not self.least <= norm <= self.most
        ]


def build_alarms(config: Alarms, n: int) -> tuple[Alarm, ...]:
    """Returns the alarms of a config. n: number of generated images that are compared. 0: only the alarms that need no images."""
    # The alarms of `config.extra` come last, so that gen's messages are always in the same order.
    least, most = config.gradient
    if not n:
        return Saturation(config.saturation), UnusedCodes(config.codes), GradientNorm(least, most), *config.extra
    return (
        FewClasses(config.classes),
        LowEntropy(config.entropy),
        NearDuplicates(max(config.duplicates, MIN_DUPLICATES / n)),
        LowSpread(config.spread),
        Saturation(config.saturation),
        UnusedCodes(config.codes),
        GradientNorm(least, most),
        *config.extra,
    )


def check_limits(alarms: Iterable[Alarm], numbers: Mapping[str, float]) -> list[str]:
    """Returns the messages of all alarms for these numbers. [] if no alarm has one."""
    return [text for alarm in alarms for text in alarm.check(numbers)]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Compares generated images with the same number of real images."""

    real: Array
    """The real images, float32 [n, H, W, C] in [-1, 1]."""
    generate: Callable[[State], Array]
    """state -> n generated images, float32 [n, H, W, C] in [-1, 1]."""
    classify: Callable[[Array], Array | None] | None
    """images -> class probabilities [n, K]. None: the data have no labels, or one class only, so classes are not compared."""
    real_probabilities: np.ndarray | None
    """Class probabilities of the real images, [n, K]. None if `classify` is None."""

    def compare(self, state: State) -> dict[str, float]:
        """Returns {name: value} of the numbers that reveal mode collapse (gen.metrics.collapse)."""
        fake = self.generate(state)
        probabilities = None if self.classify is None else self.classify(fake)
        return collapse(_flatten(self.real), _flatten(fake), self.real_probabilities, probabilities)


@dataclass(frozen=True, eq=False)
class Watch:
    """Checks a run while it trains. Call it with the state and the metrics at each evaluation and each save."""

    alarms: tuple[Alarm, ...]
    comparison: Comparison | None
    """Compares generated with real images. None: only metrics are checked."""
    progress: Progress
    """The alarm for a validation metric that gets far worse."""

    def __call__(
        self, state: State, step: int, metrics: Mapping[str, float], validation: Mapping[str, float]
    ) -> tuple[dict[str, float], list[str]]:
        """Returns the finite numbers of the comparison, {name: value}, and a list with a message for each alarm.

        step: the current step. metrics: {metric: value} of the last logged training step. validation: {metric: value} of the
        evaluation at this step; {} if there was none.
        """
        compared = {} if self.comparison is None else self.comparison.compare(state)
        # Telemetry is JSON, which has no infinity. `support` is infinite if there are no duplicates.
        finite = {name: value for name, value in compared.items() if np.isfinite(value)}
        worse = self.progress.check(step, validation)
        return finite, worse + check_limits(self.alarms, {**metrics, **validation, **compared})


def watch(
    config: Alarms,
    data: Dataset,
    model: GenerativeModel,
    compiled: Callable[..., Any] = jax.jit,
    progress: Progress | None = None,
) -> Watch:
    """Returns the object that checks a run while it trains. For labelled images, a classifier is trained first, or read
    from the user's cache.

    compiled: compiles a function of the state, as `jax.jit`. progress: the evaluations so far. None: there were none.

    A comparison needs two different real images. Otherwise a warning is logged, and only metrics are checked.

    Raises: UserError for a wrong or unused `config.request`. Also if images can't be compared, and `config.action` is
    stop.
    """
    progress = progress or Progress(None, [])
    if "image" not in data.spec and config.request:
        raise UserError("alarms.request changes generated images, and the data have no images; leave it out")
    if "image" not in data.spec or config.action == "off":
        return Watch(build_alarms(config, 0), None, progress)
    real = _read_real(config, data)
    # Before a classifier is trained, so that a wrong request costs no time.
    request = parse_request(model.request, config.request, "--alarms.samples", data.spec)
    if reason := _incomparable(real.image):
        if config.action == "stop":
            raise UserError(
                f"alarms compare generated images with real ones, and {reason}; the fix: --alarms.action warn"
            )
        log.warning("no generated images are compared with real ones, since %s; alarms check the metrics alone", reason)
        return Watch(build_alarms(config, 0), None, progress)
    comparison = _build_comparison(real, model.request(n=len(real.image), **request), data, model, compiled)
    return Watch(build_alarms(config, len(real.image)), comparison, progress)


def _read_real(config: Alarms, data: Dataset) -> ImageSet:
    """Returns the real images to compare with, at most `config.samples`."""
    # Validation images are better than training images, unless there are too few of them.
    split = "validation" if data.sizes["validation"] >= min(MIN_IMAGES, config.samples) else "train"
    n = min(config.samples, data.sizes[split])
    if split == "train":
        return read_training(data, n)
    image, *others = read_split(data, split)
    return ImageSet(image[:n], *(None if x is None else x[:n] for x in others))


def _incomparable(images: np.ndarray) -> str | None:
    """Returns the reason why generated images can't be compared with these real images. None: they can."""
    if len(images) < 2:
        return "there is only one real image"
    # If all real images are equal, their spread is 0, and a good model generates duplicates.
    return f"all {len(images)} real images are equal" if (images == images[:1]).all() else None


def _build_comparison(
    images: ImageSet, request: Any, data: Dataset, model: GenerativeModel, compiled: Callable[..., Any]
) -> Comparison:
    real = to_float(images.image)
    # The model gets the classes, captions and sources of the real images. If it generated other classes, the comparison could
    # report a collapse where there is none, or miss one.
    conditions = {labels.GIVEN: images.label, captions.GIVEN: images.caption}
    given = {name: np.asarray(x, np.int32) for name, x in conditions.items() if x is not None}
    if images.source is not None:
        given["source"] = np.asarray(to_float(images.source))

    # The key is the same at each check, so changes between checks come from the model alone.
    def generate(state: State) -> Array:
        return show_samples(model.generate(state, jax.random.key(0), given, request), data.spec)["samples"]

    # Without classes there is no classifier, and only pixels are compared.
    if untrainable(data):
        return Comparison(real, compiled(generate), None, None)
    try:
        extract = classifier_features(data).extract
    except OneClassError as error:
        log.warning("%s", error)
        return Comparison(real, compiled(generate), None, None)

    def classify(images: Array) -> Array | None:
        return extract(images)[1]

    return Comparison(real, compiled(generate), classify, np.asarray(classify(real)))


def _flatten(images: Array) -> np.ndarray:
    return np.asarray(images).reshape(len(images), -1)
