"""The media of gen, and the choice among them."""

from __future__ import annotations

from gen.core import Data, Medium, Spec
from gen.media.arrays import ARRAYS
from gen.media.audio import SOUND
from gen.media.image import IMAGE
from gen.media.music import SCORES, is_score
from gen.media.text import TEXT

MEDIA: tuple[Medium, ...] = (TEXT, IMAGE, SOUND, SCORES)
"""Media that are chosen by the features of the data. The first one that fits is taken."""


def find_medium(data: Data, spec: Spec) -> Medium:
    """Returns the medium of a run's samples: the one that its data name, otherwise the first of MEDIA that fits the spec.

    If none fits, samples are shown as plain arrays.
    """
    named = data.medium()
    if named is not None:
        return named
    fitting = (medium for medium in MEDIA if next(iter(medium.features)) in spec and is_meant(medium, spec))
    return next(fitting, ARRAYS)


def is_meant(medium: Medium, spec: Spec) -> bool:
    """Returns whether the tokens of the data, if they have any, can be those of a medium."""
    axes = spec["tokens"].axes if "tokens" in spec else None
    # Tokens of a grid are no text. What they mean is up to the data, and the axes of scores have names of their own.
    if medium is TEXT:
        return axes is None
    return medium is not SCORES or is_score(spec)


def find_axes(feature: str) -> int | None:
    """Returns the number of axes that one example of a feature has. None: any number."""
    return next((medium.features[feature] for medium in MEDIA if feature in medium.features), None)
