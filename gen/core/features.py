"""Features: the shape of one example's entries and the meaning of their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_SIZE = 2**26
"""Upper bound on the numbers in one example, and on classes and vocabularies. Larger sizes come from a damaged spec.json."""


@dataclass(frozen=True)
class Feature:
    """One entry of a batch as a model sees it, after preprocessing: its shape, its dtype, and the meaning of its numbers."""

    shape: tuple[int, ...]
    """Shape of one example, without the batch axis."""
    dtype: str = "float32"
    """Name of the dtype."""
    classes: int | None = None
    """For a label: the number of classes. Labels are in [0, classes)."""
    vocab: int | None = None
    """For tokens: the size of the vocabulary. Tokens are in [0, vocab)."""
    end: int | None = None
    """For tokens: the token that separates documents. Each document begins with it."""
    sample_rate: int | None = None
    """For audio: samples per second, in Hz."""
    levels: int | None = None
    """Number of equally spaced values in [-1, 1] that the feature takes: 256 for bytes, 2 if binarized. None: unknown."""
    dequantized: bool = False
    """Whether uniform noise of one level's width was added, so that a density bounds the probability of the levels."""
    axes: tuple[str, ...] | None = None
    """For tokens, latents or sources on a grid: the name of each axis of `shape`, such as ("row", "column") of an image. A last axis
    "book" numbers the tokens of one place of the grid. None: a sequence, as text is."""
    names: tuple[str, ...] | None = field(default=None, compare=False, repr=False)
    """For a label: the name of each class. They describe the data to people: no model depends on them. None: unknown."""

    @property
    def log_cell(self) -> float:
        """Log volume of the cell of an example's levels, in nats. 0 if the feature is not dequantized, or its levels are unknown.

        Added to the log density of dequantized examples, it bounds the log probability of the levels (Theis et al. 2016,
        section 3.1).
        """
        if not self.dequantized or not self.levels:
            return 0.0
        return math.prod(self.shape) * math.log(2 / self.levels)


Spec = Mapping[str, Feature]
"""{name: feature} of the data. Names: image, audio, tokens, latent, source, label, caption."""
