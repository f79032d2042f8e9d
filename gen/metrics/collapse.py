"""Signs of a collapsed generator, from a small set of its images beside an equally large set of real ones."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError
from gen.metrics.inception_score import p_log_p
from gen.metrics.prdc import pair


def collapse(
    real: ArrayLike,
    fake: ArrayLike,
    probabilities_real: ArrayLike | None = None,
    probabilities_fake: ArrayLike | None = None,
) -> dict[str, float]:
    """`duplicates` and `spread` of features [N, D], and `class_cover` of probabilities [N, K] if there are any.

    Raises: UserError as they do.
    """
    found = duplicates(real, fake) | spread(real, fake)
    if probabilities_real is not None and probabilities_fake is not None:
        found |= class_cover(probabilities_real, probabilities_fake)
    return found


def class_cover(probabilities_real: ArrayLike, probabilities_fake: ArrayLike) -> dict[str, float]:
    """Classes that some image of [N, K] is predicted to be, and entropy of the mean predicted distribution (nats, at most
    log K), of the real images and of the generated ones."""
    found = {}
    for name, probabilities in (("real", probabilities_real), ("fake", probabilities_fake)):
        p = np.asarray(probabilities, np.float64)
        found[f"classes_{name}"] = float(len(np.unique(p.argmax(axis=1))))
        found[f"class_entropy_{name}"] = -float(p_log_p(p.mean(axis=0)))
    return found


def duplicates(real: ArrayLike, fake: ArrayLike) -> dict[str, float]:
    """The birthday paradox test (Arora and Zhang 2017) of [N, D] features, by machine: two fakes are duplicates if equal, or
    nearer to each other than the closest two of as many reals.

    duplicates: share of fakes that have one; support: that of a uniform distribution in which so many pairs of N draws
    would be equal, (N (N - 1) / 2) / pairs; inf if there is none.

    Raises: UserError for sets of different size, or of fewer than 2; for features of different length.
    """
    from scipy.spatial.distance import pdist, squareform

    x, y = _with_pairs(real, fake)
    if len(x) != len(y):
        raise UserError(f"{len(y)} fakes beside {len(x)} reals: closest pairs compare between sets of equal size")
    distance = pdist(y)
    near = (distance < pdist(x).min()) | (distance == 0)
    pairs = int(near.sum())
    return {
        "duplicates": float(squareform(near).any(axis=1).mean()),
        "support": len(near) / pairs if pairs else float("inf"),
    }


def spread(real: ArrayLike, fake: ArrayLike) -> dict[str, float]:
    """Mean Euclidean distance between two fakes, over that between two reals, of [N, D] and [M, D] features.

    Raises: UserError for sets of fewer than 2, reals that are all equal, or features of different length.
    """
    from scipy.spatial.distance import pdist

    x, y = _with_pairs(real, fake)
    between_reals = pdist(x).mean()
    if between_reals == 0:
        raise UserError("the real images are all equal; fakes can't be compared with their spread")
    return {"spread": float(pdist(y).mean() / between_reals)}


def _with_pairs(real: ArrayLike, fake: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = pair(real, fake)
    if (least := min(len(x), len(y))) < 2:
        raise UserError(f"{least} images have no pair; use at least 2")
    return x, y
