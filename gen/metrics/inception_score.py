"""The inception score (Salimans et al. 2016) of predicted class probabilities, computed in float64 on the host."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError, check_positive


class Predictions(NamedTuple):
    """Sums over images from which the inception score is computed, in float64."""

    count: float
    """Number of images."""
    p: np.ndarray
    """Sum of the class probabilities p over images, [K]."""
    p_log_p: float
    """Sum of p log p over images and classes, in nats."""


def predictions(probabilities: ArrayLike, weight: ArrayLike) -> Predictions:
    """Returns the sums of a batch of class probabilities [B, K]. Rows with weight 0 (padding) are left out. weight: [B]."""
    p = np.asarray(probabilities)[np.asarray(weight) > 0].astype(np.float64)
    return Predictions(np.float64(len(p)), p.sum(axis=0), p_log_p(p))


def merge(a: Predictions, b: Predictions) -> Predictions:
    """Adds the sums of two sets of images."""
    return Predictions(a.count + b.count, a.p + b.p, a.p_log_p + b.p_log_p)


def inception_score(sums: Predictions) -> float:
    """Returns the inception score exp(E_x KL(p(y | x) || p(y))), in [1, K] for K classes.

    Raises: UserError if there are no images.

    Source: Salimans et al. 2016, section 4.
    """
    if sums.count < 1:
        raise UserError("the inception score needs at least one image, and there are no images")
    # The mean of KL(p_x || mean p) is the mean of sum p_x log p_x, minus sum mean p log mean p.
    return float(np.exp(sums.p_log_p / sums.count - p_log_p(sums.p / sums.count)))


def inception_score_by_split(probabilities: ArrayLike, splits: int = 10) -> tuple[float, float]:
    """Returns the mean and population standard deviation of the score over `splits` successive parts, as papers report it.

    probabilities: [N, K]. Shuffle images that are sorted by class first: otherwise a part has only some classes.

    Raises: UserError for fewer images than splits.
    """
    p = np.asarray(probabilities)
    check_positive(splits=splits)
    if len(p) < splits:
        raise UserError(f"{len(p)} images can't be divided into {splits} splits; use more images")
    # Integer bounds, so that parts differ by at most one image.
    bounds = np.arange(splits + 1) * len(p) // splits
    scores = [inception_score(predictions(p[start:end], np.ones(end - start))) for start, end in pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))


def p_log_p(p: np.ndarray) -> float:
    """Returns the sum of p log p over all elements, in nats, with 0 log 0 = 0."""
    return np.sum(p * np.log(np.where(p > 0, p, 1)))
