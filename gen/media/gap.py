"""A part of a recording or a score that a user names, as FROM:TO."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from gen.errors import UserError

FORM = re.compile(r"(?P<start>\d+\.?\d*|\.\d+)?:(?P<end>\d+\.?\d*|\.\d+)?")


class Gap(NamedTuple):
    """A part of a recording or a score."""

    start: float
    end: float
    """Infinite: up to the end."""


def parse_gap(text: str, what: str, example: str) -> Gap:
    """Returns the part that FROM:TO names. Without FROM it begins at 0, and without TO it goes up to the end.

    what: the unit, for errors. example: a part that makes sense.

    Raises: UserError if the text is not FROM:TO, if both numbers are missing, or if TO is not after FROM.
    """
    found = FORM.fullmatch(text)
    if found is None or text == ":":
        raise UserError(f"--gap {text!r} is not FROM:TO; give both in {what}, such as {example}")
    gap = Gap(float(found["start"] or 0), float(found["end"] or math.inf))
    if gap.end <= gap.start:
        raise UserError(f"--gap {text!r} ends before it begins; give FROM:TO in {what}, such as {example}")
    return gap
