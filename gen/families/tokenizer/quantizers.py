"""Bottlenecks whose codes are tokens: their base class, finite scalar quantization, and residual quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array, Feature, Key
from gen.errors import UserError, check_positive
from gen.families.tokenizer.bottlenecks import BatchFacts, Bottleneck, Coded, Stats
from gen.networks.kernels.sums import as_row

MAX_VOCAB = 2**16
"""Maximum number of codes, because encoded data are stored as uint16."""


@dataclass(frozen=True)
class Quantizer(Bottleneck):
    """A bottleneck that gives each position of the grid one of `vocab` codes. Subclass it to add one.

    The encoder's output h is bounded to x = bound(h), x is given the code assign(x), and the decoder reads the vector
    of the code, embed(assign(x)).
    """

    @property
    def vocab(self) -> int:
        """Number of codes."""
        raise NotImplementedError

    @property
    def inputs(self) -> int:
        return self.channels

    @property
    def spacing(self) -> Array | float:
        """Range of the remainder x - embed(assign(x)), divided by the range of x: [channels], or one number for all.

        It is at most 1. `Residual` divides the remainder by it, so that the next book gets vectors in the range of x.
        """
        return 1.0

    def feature(self, grid: tuple[int, ...], axes: tuple[str, ...]) -> Feature:
        if self.vocab > MAX_VOCAB:
            raise UserError(f"{self} has {self.vocab:,} codes, and at most {MAX_VOCAB:,} can be stored; use fewer")
        return Feature(grid, "int32", vocab=self.vocab, axes=axes)

    def bound(self, h: Array) -> Array:
        """Maps the encoder's outputs h [..., channels] to the range of the codes' vectors. By default the identity."""
        return h

    def assign(self, stats: Stats, x: Array) -> Array:
        """Returns the codes int32 [...] of vectors x [..., channels]."""
        raise NotImplementedError

    def embed(self, stats: Stats, codes: Array) -> Array:
        """Returns the vectors [..., channels] of codes int32 [...]."""
        raise NotImplementedError

    def commit(self, x: Array, embedded: Array) -> Array:
        """Returns the loss of each example, [B], that pulls vectors x to the vectors of their codes. By default 0.

        x, embedded: [B, ..., channels].
        """
        return jnp.zeros(len(x), x.dtype)

    def tiny(self) -> Quantizer:
        raise NotImplementedError

    def observe(self, x: Array, codes: Array, batch: BatchFacts) -> Stats:
        """Returns means over the examples of this device, from which `learn` updates the statistics. By default {}.

        x: [B, ..., channels]; codes: int32 [B, ...].
        """
        return {}

    def encode(self, stats: Stats, h: Array, keys: Key | None, batch: BatchFacts | None) -> Coded:
        x = self.bound(h)
        # The choice of a code has no gradient, so it needs no memory for the backward pass.
        codes = self.assign(stats, jax.lax.stop_gradient(x))
        embedded = self.embed(stats, codes).astype(x.dtype)
        seen = {} if batch is None else self.observe(jax.lax.stop_gradient(x), codes, batch)
        return Coded(straight_through(x, embedded), codes, self.commit(x, embedded), seen)

    def decode(self, stats: Stats, codes: Array) -> Array:
        return self.embed(stats, codes)

    def draw(self, grid: tuple[int, ...], key: Key) -> Array:
        return jax.random.randint(key, grid, 0, self.vocab, jnp.int32)


def straight_through(x: Array, quantized: Array) -> Array:
    """Returns `quantized`, in the shape of x, but with the gradient of x: quantization has none. Bengio et al. 2013."""
    return x + jax.lax.stop_gradient(quantized - x)


@dataclass(frozen=True)
class FSQ(Quantizer):
    """Finite scalar quantization rounds each dimension to one of a few levels. Mentzer et al. 2023, section 3.

    A code is a combination of levels, so no codebook has to be learned, or can collapse. Levels are equally spaced from
    -1 to 1 (the paper shifts them by half a level if their number is even). With two levels per dimension it is
    lookup-free quantization (Yu et al. 2024).
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Number of levels of each dimension, at least 2. Their product is the number of codes."""

    def __post_init__(self):
        if min(self.levels, default=0) < 2:
            raise UserError(f"levels is {self.levels}; it needs at least one number, and each must be at least 2")

    @property
    def vocab(self) -> int:
        return math.prod(self.levels)

    @property
    def channels(self) -> int:
        return len(self.levels)

    @property
    def spacing(self) -> Array:
        return 1 / (jnp.array(self.levels) - 1)

    def bound(self, h: Array) -> Array:
        return jnp.tanh(h)

    def assign(self, stats: Stats, x: Array) -> Array:
        top = as_row(jnp.array(self.levels) - 1, x.ndim)
        # A `Residual` scales remainders to [-1, 1], and rounding errors may lead out of this range.
        level = jnp.clip(jnp.round((x + 1) / 2 * top), 0, top).astype(jnp.int32)
        return (level * as_row(self._places(), x.ndim)).sum(-1)

    def embed(self, stats: Stats, codes: Array) -> Array:
        levels, places = (as_row(x, codes.ndim + 1) for x in (jnp.array(self.levels), self._places()))
        return 2 * (codes[..., None] // places % levels) / (levels - 1) - 1

    def _places(self) -> Array:
        """Returns the place value of each dimension's level in a code: 1, levels[0], levels[0] * levels[1], ..."""
        return jnp.array([math.prod(self.levels[:i]) for i in range(len(self.levels))])

    def tiny(self) -> FSQ:
        return FSQ((3, 2) if len(self.levels) > 1 else (3,))


@dataclass(frozen=True)
class Residual(Bottleneck):
    """Residual quantization: n codes for each position. Each code quantizes the remainder of the codes before it.

    Zeghidour et al. 2021, algorithm 1. The n codes are called books. They are the last axis of the codes, "book".
    """

    n: int = 4
    """Number of codes (books) for each position of the grid."""
    of: Quantizer = FSQ()
    """Quantizer of each book. Every book has separate statistics."""

    def __post_init__(self):
        check_positive(n=self.n)

    @property
    def inputs(self) -> int:
        return self.of.inputs

    @property
    def channels(self) -> int:
        return self.of.channels

    def feature(self, grid: tuple[int, ...], axes: tuple[str, ...]) -> Feature:
        return self.of.feature((*grid, self.n), (*axes, "book"))

    def begin(self, key: Key, dtype: DTypeLike) -> Stats:
        return _stack([self.of.begin(k, dtype) for k in jax.random.split(key, self.n)])

    def encode(self, stats: Stats, h: Array, keys: Key | None, batch: BatchFacts | None) -> Coded:
        x = self.of.bound(h)
        rest, total, loss = x, jnp.zeros_like(x), jnp.zeros(len(x), x.dtype)
        codes: list[Array] = []
        seen: list[Stats] = []
        # A Python loop and not a scan: there are few books.
        for i in range(self.n):
            own, scale = _book(stats, i), self._scale(i, x.ndim)
            # An FSQ's remainder is smaller than the distance between levels, so it is scaled up for the next book.
            scaled = rest / scale
            found = self.of.assign(own, jax.lax.stop_gradient(scaled))
            embedded = self.of.embed(own, found).astype(x.dtype)
            loss += self.of.commit(scaled, embedded)
            if batch is not None:
                seen.append(self.of.observe(jax.lax.stop_gradient(scaled), found, _facts_of_book(batch, i)))
            codes.append(found)
            total += embedded * scale
            # Codes get no gradient, so the remainder has the gradient of x.
            rest -= jax.lax.stop_gradient(embedded * scale)
        return Coded(straight_through(x, total), jnp.stack(codes, -1), loss, _stack(seen))

    def decode(self, stats: Stats, codes: Array) -> Array:
        vectors = [self.of.embed(_book(stats, i), codes[..., i]) * self._scale(i, codes.ndim) for i in range(self.n)]
        return sum(vectors[1:], vectors[0])

    def _scale(self, book: int, rank: int) -> Array:
        """Returns spacing^book, the factor on the vectors of a book: [1, ..., 1, channels or 1], with `rank` axes."""
        return as_row(jnp.atleast_1d(self.of.spacing) ** book, rank)

    def draw(self, grid: tuple[int, ...], key: Key) -> Array:
        return self.of.draw((*grid, self.n), key)

    def learn(self, stats: Stats, seen: Stats, batch: BatchFacts) -> Stats:
        own = [self.of.learn(_book(stats, i), _book(seen, i), _facts_of_book(batch, i)) for i in range(self.n)]
        return _stack(own)

    def tiny(self) -> Residual:
        return Residual(min(self.n, 2), self.of.tiny())


def _facts_of_book(batch: BatchFacts, i: int) -> BatchFacts:
    """Returns the batch with a key for book i, so that each book draws different random vectors to revive its codes."""
    return batch._replace(key=jax.random.fold_in(batch.key, i))


def _book(stats: Stats, i: int) -> Stats:
    return {name: array[i] for name, array in stats.items()}


def _stack(stats: list[Stats]) -> Stats:
    """Stacks the statistics of all books along a new first axis: {name: [books, ...]}. An empty list gives {}."""
    return {name: jnp.stack([own[name] for own in stats]) for name in stats[0]} if stats else {}
