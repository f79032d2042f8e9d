"""Random masks for masked models.

The rate, which is the probability that a token is masked, is fixed (Devlin et al. 2019), or drawn for each example
(absorbing diffusion: Sahoo et al. 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array, Key

# Fractions of the chosen tokens that are replaced by the mask, and by a random token. The rest are not replaced, so
# that the model must also predict tokens that it sees. Devlin et al. 2019, section 3.1.
MASKED_RATE, RANDOM_RATE = 0.8, 0.1


class Shown(NamedTuple):
    """Input of a masked model, and which tokens it predicts, [B, T] each."""

    tokens: Array
    """int32. The text, with most of the chosen tokens replaced."""
    chosen: Array
    """bool. Whether to predict the original token here."""


class BoundMasks(NamedTuple):
    """Masks for an upper bound on -log p(tokens), see `draw_bound_masks`."""

    chosen: Array
    """bool [B, T]. Whether to mask and predict the token."""
    scale: Array
    """[B, 1]. Weight 1 / t of the nats of chosen tokens. t: probability with which the example's tokens are chosen."""


def mask_at_rate(x: Array, counts: Array, keys: Key, vocab: int, dtype: DTypeLike, rate: float) -> Shown:
    """Chooses each token of x, int32 [B, T], with probability `rate`, and replaces most of the chosen tokens.

    Of the chosen tokens, 80% become the mask, which is the token `vocab`. 10% become a random token below `vocab`, and
    10% are not replaced.

    counts: bool [B, T], whether the token may be chosen. keys: [B], one per example. dtype: of the random numbers.
    """

    def draw(key: Key) -> tuple[Array, Array, Array]:
        # The first key drew the rate in older versions. It is still split off, so that older runs draw the same masks.
        _, choose_key, change_key, token_key = jax.random.split(key, 4)
        choice, change = (jax.random.uniform(k, x.shape[1:], dtype) for k in (choose_key, change_key))
        return choice, change, jax.random.randint(token_key, x.shape[1:], 0, vocab, jnp.int32)

    choice, change, random_tokens = jax.vmap(draw)(keys)
    chosen = counts & (choice < rate)
    rest = jnp.where(change < MASKED_RATE + RANDOM_RATE, random_tokens, x)
    shown = jnp.where(change < MASKED_RATE, vocab, rest)
    return Shown(jnp.where(chosen, shown, x), chosen)


def draw_bound_masks(keys: Key, length: int, dtype: DTypeLike) -> BoundMasks:
    """Draws t ~ U[0, 1] for each example, then chooses each of its `length` tokens with probability max(t, 1 / length).

    If a model predicts the chosen tokens from the others, the sum of -log p over the chosen tokens, divided by this
    probability, is on average an upper bound on -log p(tokens). Sahoo et al. 2024.

    keys: [B], one per example. dtype: of the random numbers and the scale.
    """

    def draw(key: Key) -> tuple[Array, Array]:
        rate_key, choose_key = jax.random.split(key)
        # The weight 1 / t must be bounded, so t is at least 1 / length. At this rate, one token is masked on average.
        t = jnp.maximum(jax.random.uniform(rate_key, (), dtype), 1 / length)
        return jax.random.uniform(choose_key, (length,), dtype) < t, 1 / t

    chosen, scale = jax.vmap(draw)(keys)
    return BoundMasks(chosen, scale[:, None])


def choose_any(unknown: Array, keys: Key, turns: Array) -> Array:
    """Returns which tokens a turn (one pass of the sampler over the text) writes, bool [B, T].

    Each unknown token is chosen with probability 1 / turns, so the last turn chooses all that are left. Sahoo et al.
    2024, section 3.2.

    unknown: bool [B, T], whether the token is still to be written. keys: [B], one per example.
    turns: scalar, number of turns that are left, including this one.
    """

    def draw(key: Key) -> Array:
        return jax.random.uniform(key, unknown.shape[1:]) * turns < 1

    return unknown & jax.vmap(draw)(keys)
