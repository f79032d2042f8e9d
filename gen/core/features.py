"""Features: the shape and dtype of each array of an example, and the meaning of its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_SIZE = 2**26
"""Limit on the count of numbers in one example, and on `classes`, `vocab`, `levels` and `sample_rate`. gen reports a
spec.json above the limit as damaged."""


@dataclass(frozen=True)
class Feature:
    """Describes one array of a batch after preprocessing, as the model sees it: shape, dtype, and the meaning of its numbers."""

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
    """Number of equally spaced values in [-1, 1] that the feature can take: 256 for bytes, 2 for binarized images. None: unknown."""
    dequantized: bool = False
    """Whether uniform noise, as wide as the distance between neighbouring levels, was added. Then the density of a
    continuous model gives a lower bound on the probability of the levels (see `log_cell`)."""
    axes: tuple[str, ...] | None = None
    """For tokens, latents or sources on a grid: the name of each axis of `shape`, such as ("row", "column") for an
    image. If each cell of the grid has several tokens, they are along one more axis: "book" for one token per codebook,
    "part" for the patches of a square. None: a sequence, such as text."""
    names: tuple[str, ...] | None = field(default=None, compare=False, repr=False)
    """For a label: the name of each class, for people to read. No model depends on them. None: unknown."""

    @property
    def log_cell(self) -> float:
        """Log volume of the cube of noise around one example, in nats: D log(2 / levels), for D numbers in an example.

        0 if `dequantized` is False, or `levels` is None. log density(dequantized example) + log_cell is, in expectation
        over the noise, a lower bound on the log probability of the example's levels (Theis et al. 2016, section 3.1).
        """
        if not self.dequantized or not self.levels:
            return 0.0
        return math.prod(self.shape) * math.log(2 / self.levels)


Spec = Mapping[str, Feature]
"""{name: feature} of the data. gen uses the names image, audio, tokens, latent, source, label and caption."""
