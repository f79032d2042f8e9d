"""Fill in the middle (Bavarian et al. 2022): training on texts whose middle was moved to their end.

A causal model that has seen such texts can write a middle between a given prefix and suffix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, Key

SENTINELS = 3  # tokens added to the vocabulary, from `vocab` on: before the prefix, the suffix and the middle


class Rearranged(NamedTuple):
    """Rows of tokens. In some of them, the middle of the text was moved to the end."""

    tokens: Array
    """int32 [B, T + 1]."""
    counted: Array
    """uint8 [B, T + 1]. Whether each token counts as a target."""
    moved: Array
    """bool [B]. Rows whose middle was moved."""


def prompt(prefix: Array, suffix: Array, vocab: int) -> Array:
    """Returns the prompt for a middle: [prefix token] prefix [suffix token] suffix [middle token]. All int32 [1, W]."""

    def sentinel(i: int) -> Array:
        return jnp.full((1, 1), vocab + i, jnp.int32)

    return jnp.concatenate([sentinel(0), prefix, sentinel(1), suffix, sentinel(2)], axis=1)


def move_middles(batch: Batch, key: Key, rate: float, vocab: int, end: int | None) -> Rearranged:
    """Moves the middle of a random `rate` of the rows to the end. Bavarian et al. 2022, section 3 (PSM).

    A row a b c, cut at two uniformly random points, becomes [prefix] a [suffix] c [middle] b [end]. A row keeps its length:
    its last tokens, one for each inserted token, are lost. The sentinels never count as targets; the end always does.

    batch: "tokens" and "counted" [B, T + 1], and "row" [B].
    """
    tokens, counted = batch["tokens"], batch["counted"]
    kept = tokens.shape[1] - SENTINELS - 1

    def draw(key: Key) -> tuple[Array, Array]:
        choose_key, cut_key = jax.random.split(key)
        return jax.random.uniform(choose_key) < rate, jnp.sort(jax.random.randint(cut_key, (2,), 0, kept + 1))

    chosen, cuts = axis.per_example(draw, key, batch["row"])
    a, b = cuts[:, :1], cuts[:, 1:]
    # Columns of the inserted tokens in the new row. `source` has the column of the old row that each other column comes from.
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
