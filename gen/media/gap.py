"""Parses the option --gap of sample.py: the part of a recording or a score of music that a model writes, as FROM:TO."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from gen.errors import UserError

FORM = re.compile(r"(?P<start>\d+\.?\d*|\.\d+)?:(?P<end>\d+\.?\d*|\.\d+)?")


class Gap(NamedTuple):
    """A part of a recording, in seconds, or of a score of music, in quarter notes."""

    start: float
    end: float
    """Infinity: up to the end of the recording or score."""


def parse_gap(text: str, what: str, example: str) -> Gap:
    """Parses a text FROM:TO, such as "8:16". Without FROM the part begins at 0, and without TO it goes up to the end.

    what, example: name of the unit, such as "seconds", and an example of a text, for error messages.

    Raises: UserError if the text is not FROM:TO, if both numbers are missing, or if TO is not after FROM.
    """
    found = FORM.fullmatch(text)
    if found is None or text == ":":
        raise UserError(f"--gap {text!r} is not FROM:TO; give both in {what}, such as {example}")
    gap = Gap(float(found["start"] or 0), float(found["end"] or math.inf))
    if gap.end <= gap.start:
        raise UserError(f"--gap {text!r} ends before it begins; give FROM:TO in {what}, such as {example}")
    return gap
