"""Inception score (Salimans et al. 2016) of predicted class probabilities. float64 on the host."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError, check_positive


class Predictions(NamedTuple):
    """Sums over images; float64."""

    count: float
    p: np.ndarray
    """[K]."""
    p_log_p: float
    """Summed over classes too, scalar. nats."""


def predictions(probabilities: ArrayLike, weight: ArrayLike) -> Predictions:
    """Sums of a batch, [B, K], without the rows whose weight [B] is 0 (padding)."""
    p = np.asarray(probabilities)[np.asarray(weight) > 0].astype(np.float64)
    return Predictions(np.float64(len(p)), p.sum(axis=0), p_log_p(p))


def merge(a: Predictions, b: Predictions) -> Predictions:
    """Sums over both."""
    return Predictions(a.count + b.count, a.p + b.p, a.p_log_p + b.p_log_p)


def inception_score(sums: Predictions) -> float:
    """exp(E KL(p(y | x) || p(y))), in [1, K]. Salimans et al. 2016, section 4.

    Raises: UserError if there is no image.
    """
    if sums.count < 1:
        raise UserError("no images to score")
    return float(np.exp(sums.p_log_p / sums.count - p_log_p(sums.p / sums.count)))


def inception_score_by_split(probabilities: ArrayLike, splits: int = 10) -> tuple[float, float]:
    """Mean and (population) standard deviation of the score of `splits` successive parts of [N, K], as published. Images in
    order of class must be shuffled first.

    Raises: UserError for fewer images than splits.
    """
    p = np.asarray(probabilities)
    check_positive(splits=splits)
    if len(p) < splits:
        raise UserError(f"{len(p)} images can't be divided into {splits} splits; use more images")
    bounds = np.arange(splits + 1) * len(p) // splits
    scores = [inception_score(predictions(p[start:end], np.ones(end - start))) for start, end in pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))


def p_log_p(p: np.ndarray) -> float:
    """Sum of p log p, with 0 log 0 = 0. nats."""
    return np.sum(p * np.log(np.where(p > 0, p, 1)))
