"""The media of gen, and the choice among them."""

from __future__ import annotations

from gen.core import Data, Medium, Spec
from gen.media.arrays import ARRAYS
from gen.media.audio import SOUND
from gen.media.image import IMAGE
from gen.media.text import TEXT

MEDIA: tuple[Medium, ...] = (TEXT, IMAGE, SOUND)
"""Media that are found by the names of their features, in this order."""


def find_medium(data: Data, spec: Spec) -> Medium:
    """Returns the medium of a run's samples: the one that its data name, otherwise the first of MEDIA that fits the spec.

    If none fits, samples are shown as plain arrays.
    """
    named = data.medium()
    if named is not None:
        return named
    # Tokens of a grid are no text. What they mean is up to the data.
    fitting = (
        medium for medium in MEDIA if next(iter(medium.features)) in spec and not (medium is TEXT and is_grid(spec))
    )
    return next(fitting, ARRAYS)


def is_grid(spec: Spec) -> bool:
    """Returns whether the data have grids of tokens."""
    return "tokens" in spec and spec["tokens"].axes is not None


def find_axes(feature: str) -> int | None:
    """Returns the number of axes that one example of a feature has. None: any number."""
    return next((medium.features[feature] for medium in MEDIA if feature in medium.features), None)
