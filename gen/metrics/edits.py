"""Edit distances between texts, and the word and character error rates of recognized texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Errors(NamedTuple):
    """Error rates of recognized texts. They are at least 0, and can exceed 1 if recognized texts are longer than the true texts."""

    word: float
    """Edits of words, divided by the number of words of the true texts."""
    character: float
    """Edits of characters, divided by the number of characters of the true texts."""


def edit_distance(found: Sequence[object], true: Sequence[object]) -> int:
    """Returns the smallest number of insertions, deletions and substitutions that turn one sequence into the other.

    Source: Wagner and Fischer 1974.
    """
    # row[j]: distance of the items of `found` that were read so far to the first j items of `true`.
    # A single row of the table of distances is enough, because it is updated in place.
    row = list(range(len(true) + 1))
    for i, item in enumerate(found, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(true, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (item != other))
    return row[-1]


def error_rates(found: Sequence[str], true: Sequence[str]) -> Errors:
    """Returns the error rates over all texts. found: recognized texts. true: true texts, with at least one word in total.

    Words are separated by spaces.
    """
    words = [(a.split(), b.split()) for a, b in zip(found, true, strict=True)]
    characters = list(zip(found, true, strict=True))
    return Errors(*(rate(pairs) for pairs in (words, characters)))


def rate(pairs: Sequence[tuple[Sequence[object], Sequence[object]]]) -> float:
    """Returns the sum of the edit distances of all pairs (found, true), divided by the sum of the lengths of the true sequences."""
    edits = [edit_distance(found, true) for found, true in pairs]
    return float(np.sum(edits) / sum(len(true) for _, true in pairs))
