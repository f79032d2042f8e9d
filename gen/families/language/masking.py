"""Random masks for masked models.

The rate is fixed (Devlin et al. 2019), or drawn for each example (absorbing diffusion: Sahoo et al. 2024).
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
    """Input tokens of the network, some of them replaced, [B, T] each."""

    tokens: Array
    """int32."""
    chosen: Array
    """bool. Whether to predict the original token here."""


class BoundMasks(NamedTuple):
    """Masks for an upper bound on -log p(tokens), see `draw_bound_masks`."""

    chosen: Array
    """bool [B, T]. Whether to mask and predict the token."""
    scale: Array
    """[B, 1]. Weight 1 / t of the nats of each chosen token, where t is the rate of the example."""


def mask_at_rate(x: Array, counts: Array, keys: Key, vocab: int, dtype: DTypeLike, rate: float) -> Shown:
    """Chooses each token of x, int32 [B, T], with probability `rate`, and replaces most of the chosen tokens.

    The replacement is the mask, which is the token `vocab`, or a random token: see MASKED_RATE.

    counts: bool [B, T], whether the token may be chosen. keys: [B]. dtype: of the random numbers.
    """

    def draw(key: Key) -> tuple[Array, Array, Array]:
        _, choose_key, change_key, token_key = jax.random.split(key, 4)
        choice, change = (jax.random.uniform(k, x.shape[1:], dtype) for k in (choose_key, change_key))
        return choice, change, jax.random.randint(token_key, x.shape[1:], 0, vocab, jnp.int32)

    choice, change, random_tokens = jax.vmap(draw)(keys)
    chosen = counts & (choice < rate)
    rest = jnp.where(change < MASKED_RATE + RANDOM_RATE, random_tokens, x)
    shown = jnp.where(change < MASKED_RATE, vocab, rest)
    return Shown(jnp.where(chosen, shown, x), chosen)


def draw_bound_masks(keys: Key, length: int, dtype: DTypeLike) -> BoundMasks:
    """Draws a rate t ~ U[0, 1] for each example, then chooses each of its `length` tokens with probability t.

    The nats of the masked tokens, times 1 / t, are on average an upper bound on -log p(tokens). Sahoo et al. 2024.

    keys: [B]. dtype: of the random numbers and the scale.
    """

    def draw(key: Key) -> tuple[Array, Array]:
        rate_key, choose_key = jax.random.split(key)
        # The weight 1 / t must be bounded, so t is at least 1 / length. At this rate, one token is masked on average.
        t = jnp.maximum(jax.random.uniform(rate_key, (), dtype), 1 / length)
        return jax.random.uniform(choose_key, (length,), dtype) < t, 1 / t

    chosen, scale = jax.vmap(draw)(keys)
    return BoundMasks(chosen, scale[:, None])


def choose_any(unknown: Array, keys: Key, turns: Array) -> Array:
    """Chooses each unknown token with probability 1 / turns, so all of them in the last turn.

    Sahoo et al. 2024, section 3.2.

    unknown: bool [B, T]. keys: [B]. turns: [], number of turns that are left, including this one. Returns bool [B, T].
    """

    def draw(key: Key) -> Array:
        return jax.random.uniform(key, unknown.shape[1:]) * turns < 1

    return unknown & jax.vmap(draw)(keys)
