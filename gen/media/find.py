"""The list of media, and the choice of the medium that shows the samples of a run."""

from __future__ import annotations

from gen.core import Data, Medium, Spec
from gen.media.arrays import ARRAYS
from gen.media.audio import SOUND
from gen.media.image import IMAGE
from gen.media.music import SCORES, is_score
from gen.media.text import TEXT

MEDIA: tuple[Medium, ...] = (TEXT, IMAGE, SOUND, SCORES)
"""Media that are chosen by the features of the data. The first medium that fits is taken."""


def find_medium(data: Data, spec: Spec) -> Medium:
    """Returns the medium of a run's samples.

    It is the medium that the data name, otherwise the first of MEDIA that fits the spec, otherwise ARRAYS.
    """
    named = data.medium()
    if named is not None:
        return named
    fitting = (medium for medium in MEDIA if next(iter(medium.features)) in spec and is_meant(medium, spec))
    return next(fitting, ARRAYS)


def is_meant(medium: Medium, spec: Spec) -> bool:
    """Returns whether a medium fits data with this spec, by the axes of the feature "tokens".

    Tokens without axes are a text, and tokens of a roll are scores of music. The other media fit any spec.
    """
    axes = spec["tokens"].axes if "tokens" in spec else None
    # Tokens with axes are a grid and not a text. `is_score` decides whether the tokens of a grid are notes.
    if medium is TEXT:
        return axes is None
    return medium is not SCORES or is_score(spec)


def find_axes(feature: str) -> int | None:
    """Returns the number of axes that an example of a feature must have, such as 3 for "image". None: any number."""
    return next((medium.features[feature] for medium in MEDIA if feature in medium.features), None)
