"""Bottlenecks whose codes are tokens: their base class, finite scalar quantization, and several codes for one place."""

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
"""Upper bound on the vocabulary. Encoded data are stored as uint16."""


@dataclass(frozen=True)
class Quantizer(Bottleneck):
    """A bottleneck that gives each place of the grid one of `vocab` codes. Subclass it to add one.

    Each vector x = bound(h) is replaced by the vector of its code, embed(assign(x)).
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
        """Ratio of the range of the remainder x - embed(assign(x)) to the range of x, [channels] or one number. `Residual` uses it."""
        return 1.0

    def feature(self, grid: tuple[int, ...], axes: tuple[str, ...]) -> Feature:
        if self.vocab > MAX_VOCAB:
            raise UserError(f"{self} has {self.vocab:,} codes, and at most {MAX_VOCAB:,} can be stored; use fewer")
        return Feature(grid, "int32", vocab=self.vocab, axes=axes)

    def bound(self, h: Array) -> Array:
        """Maps h to the range of the codes' vectors."""
        return h

    def assign(self, stats: Stats, x: Array) -> Array:
        """Returns the codes int32 [...] of vectors x [..., channels]."""
        raise NotImplementedError

    def embed(self, stats: Stats, codes: Array) -> Array:
        """Returns the vectors [..., channels] of codes int32 [...]."""
        raise NotImplementedError

    def commit(self, x: Array, embedded: Array) -> Array:
        """Returns a loss of each example, [B], which draws vectors x [B, ..., channels] to the vectors of their codes."""
        return jnp.zeros(len(x), x.dtype)

    def tiny(self) -> Quantizer:
        raise NotImplementedError

    def observe(self, x: Array, codes: Array, batch: BatchFacts) -> Stats:
        """Returns means over the examples x [B, ..., channels] of this device, from which `learn` updates the statistics."""
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
    """Returns the quantized vectors, with the gradient of x. Bengio et al. 2013."""
    return x + jax.lax.stop_gradient(quantized - x)


@dataclass(frozen=True)
class FSQ(Quantizer):
    """Finite scalar quantization: each number of a vector is rounded to one of a few levels. Mentzer et al. 2023, section 3.

    A code is a combination of levels, so there is no codebook that could collapse. Levels are spaced equally from -1 to 1 (the
    paper shifts even numbers of levels by half a level). With all levels 2 it is lookup-free quantization (Yu et al. 2024).
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Number of levels of each number of a vector. Their product is the number of codes."""

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
        # A `Residual` scales remainders to [-1, 1], and rounding errors may lead out of it.
        level = jnp.clip(jnp.round((x + 1) / 2 * top), 0, top).astype(jnp.int32)
        return (level * as_row(self._places(), x.ndim)).sum(-1)

    def embed(self, stats: Stats, codes: Array) -> Array:
        levels, places = (as_row(x, codes.ndim + 1) for x in (jnp.array(self.levels), self._places()))
        return 2 * (codes[..., None] // places % levels) / (levels - 1) - 1

    def _places(self) -> Array:
        """Returns the factor of each level in a code, as 1, 10, 100 are the factors of the digits of a number."""
        return jnp.array([math.prod(self.levels[:i]) for i in range(len(self.levels))])

    def tiny(self) -> FSQ:
        return FSQ((3, 2) if len(self.levels) > 1 else (3,))


@dataclass(frozen=True)
class Residual(Bottleneck):
    """Several codes for each place: each one quantizes what the codes before it left over. Zeghidour et al. 2021, algorithm 1.

    The codes of a place are the last axis of the grid, "book".
    """

    n: int = 4
    """Number of codes for each place."""
    of: Quantizer = FSQ()
    """Quantizer of every code. Its statistics are kept separately for each code."""

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
            # An FSQ's remainder is smaller than the distance between levels, so it is scaled up to the range of the next book.
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
        """Returns the factor by which the vectors of a book are scaled down, with `rank` axes."""
        return as_row(jnp.atleast_1d(self.of.spacing) ** book, rank)

    def draw(self, grid: tuple[int, ...], key: Key) -> Array:
        return self.of.draw((*grid, self.n), key)

    def learn(self, stats: Stats, seen: Stats, batch: BatchFacts) -> Stats:
        own = [self.of.learn(_book(stats, i), _book(seen, i), _facts_of_book(batch, i)) for i in range(self.n)]
        return _stack(own)

    def tiny(self) -> Residual:
        return Residual(min(self.n, 2), self.of.tiny())


def _facts_of_book(batch: BatchFacts, i: int) -> BatchFacts:
    """Returns the facts of a batch with the key of book i."""
    return batch._replace(key=jax.random.fold_in(batch.key, i))


def _book(stats: Stats, i: int) -> Stats:
    return {name: array[i] for name, array in stats.items()}


def _stack(stats: list[Stats]) -> Stats:
    """Returns the statistics of all books with a leading axis of books. {}: there are none."""
    return {name: jnp.stack([own[name] for own in stats]) for name in stats[0]} if stats else {}
