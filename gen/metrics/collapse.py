"""Measures signs of a collapsed generator, on a small set of generated images and an equally large set of real images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError
from gen.metrics.inception_score import p_log_p
from gen.metrics.prdc import check_pair


class Duplicates(NamedTuple):
    """Result of the birthday paradox test."""

    duplicates: float
    """Fraction of generated images that have a duplicate among the other generated images, in [0, 1]."""
    support: float
    """Estimated number of different images that the generator makes. inf: no duplicates were found."""


class ClassCover(NamedTuple):
    """Number of different predicted classes, and entropy of the mean predicted distribution in nats, in [0, log(number of classes)].

    "real" is for real images, and "fake" for generated images.
    """

    classes_real: float
    class_entropy_real: float
    classes_fake: float
    class_entropy_fake: float


def collapse(
    real: ArrayLike,
    fake: ArrayLike,
    probabilities_real: ArrayLike | None = None,
    probabilities_fake: ArrayLike | None = None,
) -> dict[str, float]:
    """Returns {name: value} of all signs of a collapsed generator.

    The names are the fields of `Duplicates`, "spread" (see `relative_spread`), and the fields of `ClassCover`. Without
    class probabilities, the fields of `ClassCover` are left out. If all real images are equal, "spread" is left out.

    real, fake: features [N, D]. probabilities_real, probabilities_fake: class probabilities [N, K].

    Raises: UserError as `find_duplicates` does.
    """
    numbers: dict[str, float] = find_duplicates(real, fake)._asdict()
    # A usual first test of a model is to learn a single image. Then the real images have no spread to compare with.
    x = np.asarray(real)
    if (x != x[:1]).any():
        numbers["spread"] = relative_spread(real, fake)
    if probabilities_real is not None and probabilities_fake is not None:
        numbers |= class_cover(probabilities_real, probabilities_fake)._asdict()
    return numbers


def class_cover(probabilities_real: ArrayLike, probabilities_fake: ArrayLike) -> ClassCover:
    """Returns how many classes are predicted for real and for generated images, and how evenly.

    probabilities_real, probabilities_fake: predicted class probabilities, [N, K] and [M, K].
    """
    return ClassCover(*_cover(probabilities_real), *_cover(probabilities_fake))


def find_duplicates(real: ArrayLike, fake: ArrayLike) -> Duplicates:
    """Runs the birthday paradox test on features [N, D] of real and generated images, with distances in place of a human judge.

    Two generated images are duplicates if they are equal, or nearer to each other than the closest pair of real images.
    If a generator drew uniformly from S images, N draws would contain about N (N - 1) / (2 S) equal pairs. So `support` is
    N (N - 1) / 2 divided by the number of duplicate pairs.

    Raises: UserError for sets of different sizes or of fewer than 2 images, and for features of different lengths.

    Source: Arora and Zhang 2017.
    """
    # SciPy is slow to import, and training without alarms doesn't need it.
    from scipy.spatial.distance import pdist, squareform

    x, y = _check_pairs(real, fake)
    if len(x) != len(y):
        raise UserError(
            f"{len(y)} generated images are compared with {len(x)} real ones; closest pairs need sets of equal size"
        )
    # `pdist` returns the distance of each pair once, so its length is N (N - 1) / 2.
    distance = pdist(y)
    # Equal images count as duplicates even if the real set also has equal images: its smallest distance is 0 then.
    near = (distance < pdist(x).min()) | (distance == 0)
    pairs = int(near.sum())
    return Duplicates(
        duplicates=float(squareform(near).any(axis=1).mean()),
        support=len(near) / pairs if pairs else float("inf"),
    )


def relative_spread(real: ArrayLike, fake: ArrayLike) -> float:
    """Returns the mean Euclidean distance between two generated images, divided by the mean distance between two real images.

    real, fake: features, [N, D] and [M, D].

    Raises: UserError for sets of fewer than 2 images, real images that are all equal, or features of different lengths.
    """
    from scipy.spatial.distance import pdist

    # A ratio, because a distance between pixels or features has no scale of its own.
    x, y = _check_pairs(real, fake)
    between_reals = pdist(x).mean()
    if between_reals == 0:
        raise UserError("the real images are all equal, so generated images can't be compared with their spread")
    return float(pdist(y).mean() / between_reals)


def _cover(probabilities: ArrayLike) -> tuple[float, float]:
    """Returns the number of predicted classes, and the entropy of the mean predicted distribution."""
    p = np.asarray(probabilities, np.float64)
    return float(len(np.unique(p.argmax(axis=1)))), -float(p_log_p(p.mean(axis=0)))


def _check_pairs(real: ArrayLike, fake: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = check_pair(real, fake)
    if (fewest := min(len(x), len(y))) < 2:
        raise UserError(f"a set of {fewest} has no pair of images to compare; use at least 2 images")
    return x, y
