"""Fill in the middle (Bavarian et al. 2022): training on texts whose middle was moved to their end.

A causal model that has seen such texts can write a middle between a given prefix and suffix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, Key

# Number of tokens that are added to the vocabulary, numbered from `vocab`: [prefix], [suffix] and [middle]. Each marks
# the beginning of its part.
SENTINELS = 3


class Rearranged(NamedTuple):
    """Rows of tokens, one per example. In some rows, the middle of the text was moved to the end."""

    tokens: Array
    """int32 [B, T + 1]."""
    counted: Array
    """uint8 [B, T + 1]. 1 if the loss counts the token as a target, otherwise 0."""
    moved: Array
    """bool [B]. Whether the middle of the row was moved."""


def prompt(prefix: Array, suffix: Array, vocab: int) -> Array:
    """Returns the prompt to write a middle for: [prefix] prefix [suffix] suffix [middle], int32 [1, W + X + 3].

    prefix: int32 [1, W]. suffix: int32 [1, X]. vocab: number of tokens without the sentinels.
    """

    def sentinel(i: int) -> Array:
        return jnp.full((1, 1), vocab + i, jnp.int32)

    return jnp.concatenate([sentinel(0), prefix, sentinel(1), suffix, sentinel(2)], axis=1)


def move_middles(batch: Batch, key: Key, rate: float, vocab: int, end: int | None) -> Rearranged:
    """Moves the middle of each row to the row's end, with probability `rate`. Bavarian et al. 2022, section 3 (PSM).

    A row is cut into a, b and c at two uniformly random points, and becomes [prefix] a [suffix] c [middle] b [end]. To
    keep its length, its last 4 tokens are dropped first. The loss counts the inserted `end`, but none of the sentinels.

    batch: "tokens" int32 [B, T + 1]; "counted" [B, T + 1], 1 for tokens that count in the loss, otherwise 0; "row"
        int32 [B], positions of the examples in the global batch. The draws of an example depend on (key, "row") alone.
    vocab: number of tokens without the sentinels. end: token that ends a text.
    """
    tokens, counted = batch["tokens"], batch["counted"]
    kept = tokens.shape[1] - SENTINELS - 1

    def draw(key: Key) -> tuple[Array, Array]:
        choose_key, cut_key = jax.random.split(key)
        return jax.random.uniform(choose_key) < rate, jnp.sort(jax.random.randint(cut_key, (2,), 0, kept + 1))

    chosen, cuts = axis.per_example(draw, key, batch["row"])
    a, b = cuts[:, :1], cuts[:, 1:]
    # Columns of the inserted tokens in the new row. `source` is the column in the old row of each other token.
    suffix, middle, last = a + 1, a + 2 + kept - b, kept + SENTINELS
    column = jnp.arange(kept + SENTINELS + 1, dtype=jnp.int32)[None]
    source = jnp.where(
        column < suffix, column - 1, jnp.where(column < middle, column - suffix - 1 + b, column - middle - 1 + a)
    )
    source = jnp.clip(source, 0, kept - 1)
    # A gather instead of slices: cuts differ between rows, and shapes must not depend on them.
    new_tokens, new_counted = (jnp.take_along_axis(x, source, axis=1) for x in (tokens, counted))
    # Columns and tokens of the insertions: prefix, suffix, middle, end.
    inserted = [(jnp.zeros_like(a), vocab), (suffix, vocab + 1), (middle, vocab + 2), (jnp.full_like(a, last), end)]
    for index, token in inserted:
        new_tokens = jnp.where(column == index, token, new_tokens)
        new_counted = jnp.where(column == index, column == last, new_counted)
    return Rearranged(
        tokens=jnp.where(chosen[:, None], new_tokens, tokens),
        counted=jnp.where(chosen[:, None], new_counted, counted),
        moved=chosen,
    )
