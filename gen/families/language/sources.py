"""Encoders of sources: the input from which a sequence-to-sequence model writes a text.

A source is a text, a grid of tokens, or a grid of vectors. Pictures in patches and log-mel frames are grids of vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from gen.core import Array, Feature, Params
from gen.errors import UserError
from gen.families.language.language import check_axes
from gen.networks.dit import to_patches
from gen.networks.dtypes import Dtypes
from gen.networks.positions import PADDING, locate_cells
from gen.networks.transformer import Architecture, Transformer

SHARED = ("book", "part")
"""Names of last axes of a grid of tokens. The tokens along such an axis describe the same place of the grid, so they
share one position of the transformer. "book": the codes of a vector. "part": the patches of a square of an image."""


class Memory(NamedTuple):
    """Encoded sources, to which the decoder attends."""

    output: Array
    """[B, S, D]. The encoder's output."""
    segment: Array
    """int32 [B, S]. 0 at tokens, and PADDING elsewhere."""


class Inputs(NamedTuple):
    """Input of the encoder."""

    tokens: Array
    """int32 [B, S] for texts, int32 [B, S, J] for grids of J tokens per position, or floats [B, S, C] for vectors."""
    segment: Array
    """int32 [B, S]. 0 at tokens and vectors, and PADDING elsewhere."""
    position: Array
    """int32 [B, S], or on a grid with A axes int32 [B, S, A]."""


@dataclass(frozen=True)
class Reader:
    """A transformer that encodes sources. `make_reader` chooses the subclass for the kind of source.

    A subclass defines `prepare`, which converts arrays of sources to the transformer's input, and `check`.
    """

    encoder: Transformer
    source: Feature
    """Shape and dtype of the sources."""

    def prepare(self, source: Array) -> Inputs:
        """Returns the encoder's input for sources [B, ...]."""
        raise NotImplementedError

    def check(self, source: Array) -> None:
        """Raises: UserError if the model can't read sources of this shape, [B, ...]."""
        raise NotImplementedError

    def init(self, key: Array) -> Params:
        """Returns the encoder's parameters at step 0."""
        one = jnp.zeros((1, *self.source.shape), self.source.dtype)
        return self.encoder.init(key, *self.prepare(one))["params"]

    def encode(self, params: Params, source: Array, keys: Array | None) -> Memory:
        """Returns the outputs of the encoder for sources [B, ...]. keys: dropout keys [B]. None: no dropout."""
        inputs = self.prepare(source)
        output, _ = self.encoder.apply({"params": params}, *inputs, keys)
        return Memory(output, inputs.segment)


@dataclass(frozen=True)
class TextReader(Reader):
    """Encodes texts, int32 [B, S]. Tokens below 0 are padding, and so are the first `end` and all tokens after it."""

    end: int | None
    """Token that ends a text."""

    def prepare(self, source: Array) -> Inputs:
        # A source may be padded on the left (prompts, by PADDING) and on the right (training data, by `end`).
        padding = source < 0
        if self.end is not None:
            padding |= jnp.cumsum(source == self.end, axis=1) > 0
        # Positions count tokens only, so that padding on the left does not move a source.
        position = jnp.maximum(jnp.cumsum(~padding, axis=1, dtype=jnp.int32) - 1, 0)
        return Inputs(jnp.maximum(source, 0), jnp.where(padding, PADDING, 0), position)

    def check(self, source: Array) -> None:
        if source.shape[1] > self.encoder.context:
            raise UserError(
                f"a source has {source.shape[1]} tokens, and the model reads {self.encoder.context}; shorten it"
            )


@dataclass(frozen=True)
class GridReader(Reader):
    """Encodes grids of tokens, int32 [B, *axes], or of vectors, floats [B, *axes, C].

    If the name of the last axis of a grid of tokens is in SHARED, the tokens along this axis share one position.
    """

    cells: tuple[int, ...]
    """Number of positions on each axis."""
    patch: tuple[int, ...]
    """Sides of a patch of vectors, one for each axis. (): the source is a grid of tokens."""

    def prepare(self, source: Array) -> Inputs:
        if self.source.vocab is None:
            tokens = to_patches(source, self.patch)
        else:
            cells = source.reshape(len(source), math.prod(self.cells), -1)
            # The same number at another index j is another token, so each index has separate rows of the embedding.
            tokens = cells + self.source.vocab * jnp.arange(cells.shape[2], dtype=jnp.int32)[None, None]
        # locate_cells counts from 1, since it leaves 0 to a label.
        position = locate_cells(self.cells)[1:] - 1
        segment = jnp.zeros(tokens.shape[:2], jnp.int32)
        return Inputs(tokens, segment, jnp.broadcast_to(position[None], (len(source), *position.shape)))

    def check(self, source: Array) -> None:
        if source.shape[1:] != self.source.shape:
            found, wanted = ("x".join(map(str, shape)) for shape in (source.shape[1:], self.source.shape))
            raise UserError(f"a source has the shape {found}, and the model reads {wanted}; give it that shape")


def make_reader(
    arch: Architecture, source: Feature, vocab: int, end: int | None, patch: tuple[int, ...], dtypes: Dtypes
) -> Reader:
    """Returns the encoder for a kind of source: a TextReader for texts, otherwise a GridReader.

    arch: of the encoder. source: the feature of the sources. vocab, end: vocabulary size and end token of texts, which
    grids do not use. patch: sides of a patch of vectors, one for each axis, or one for all axes.

    Raises: UserError if `patch` does not have one side, or one for each axis, or if `arch.positions` does not work on
        the grid (see `check_axes`).
    """
    if source.axes is None and len(source.shape) == 1:
        encoder = Transformer(arch, vocab, source.shape[0], causal=False, dtypes=dtypes, readout=False)
        return TextReader(encoder, source, end)
    if source.vocab is None:
        sizes = source.shape[:-1]
        if len(patch) not in (1, len(sizes)):
            raise UserError(
                f"patch has {len(patch)} sides, and a source of shape {source.shape} has {len(sizes)} axes and channels; give one "
                "side, or one for each axis"
            )
        patch = patch * (len(sizes) // len(patch))
        # Rounded up, because `to_patches` pads each axis to whole patches.
        cells, rows = tuple(-(-size // side) for size, side in zip(sizes, patch, strict=True)), None
    else:
        assert source.axes is not None
        cells = source.shape[:-1] if source.axes[-1] in SHARED else source.shape
        # Tokens that share a position have separate rows of the embedding (see `GridReader.prepare`).
        patch, rows = (), source.vocab * (math.prod(source.shape) // math.prod(cells))
    check_axes(arch, len(cells))
    encoder = Transformer(arch, rows, math.prod(cells), causal=False, dtypes=dtypes, readout=False, axes=cells)
    return GridReader(encoder, source, cells, patch)
