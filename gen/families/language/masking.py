"""Random masks of a masked language model: at a fixed rate (Devlin et al. 2019), or at every rate (Sahoo et al. 2024)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen import axis
from gen.core import Array, Key

# Of the chosen tokens, the fractions that are shown as the mask and as a random token. The rest are shown as they are, so that
# the model must also predict tokens that it sees. Devlin et al. 2019, section 3.1.
MASKED_RATE, RANDOM_RATE = 0.8, 0.1


class Masks(NamedTuple):
    """Inputs of the network and the tokens it has to predict."""

    shown: Array
    """int32 [B, T]. Tokens that the network sees. The mask is the token `vocab`."""
    chosen: Array
    """bool [B, T]. Tokens to predict."""
    scale: Array
    """[B, 1]. Weight of the nats of a chosen token."""


class Noise(NamedTuple):
    """Random numbers of the masks of each row."""

    rate: Array
    """[B], in [0, 1)."""
    choice: Array
    """[B, T], in [0, 1). A token is chosen if this is below the rate."""
    change: Array
    """[B, T], in [0, 1). How a chosen token is shown."""
    tokens: Array
    """int32 [B, T]. Random tokens."""


def draw_masks(x: Array, counts: Array, key: Key, row: Array, vocab: int, dtype: DTypeLike, *, rate: float) -> Masks:
    """Chooses a fraction `rate` of the tokens x, int32 [B, T]. counts: bool [B, T], tokens that may be chosen; row: [B]."""
    noise = _draw_noise(key, row, x.shape[1], vocab, dtype)
    chosen = jnp.where(counts, noise.choice, 1) < rate
    rest = jnp.where(noise.change < MASKED_RATE + RANDOM_RATE, noise.tokens, x)
    shown = jnp.where(noise.change < MASKED_RATE, vocab, rest)
    return Masks(jnp.where(chosen, shown, x), chosen, jnp.ones_like(noise.rate)[:, None])


def draw_bound_masks(x: Array, counts: Array, key: Key, row: Array, vocab: int, dtype: DTypeLike) -> Masks:
    """Masks a random fraction t ~ U[0, 1] of the tokens of each row. See `draw_masks` for the arguments.

    The nats of the masked tokens, weighted with 1 / t, are on average an upper bound on -log p(text).
    """
    noise = _draw_noise(key, row, x.shape[1], vocab, dtype)
    # t is at least 1 / T: then one token of a row is masked on average. This bounds the weight 1 / t.
    t = jnp.maximum(noise.rate, 1 / x.shape[1])[:, None]
    # Tokens that do not count get the number 1, which is above every t, so they are never masked.
    chosen = jnp.where(counts, noise.choice, 1) < t
    return Masks(jnp.where(chosen, vocab, x), chosen, 1 / t)


def _draw_noise(key: Key, row: Array, length: int, vocab: int, dtype: DTypeLike) -> Noise:
    """Draws T = `length` numbers of each kind for each row, from the key and the row alone."""

    def draw(key: Key) -> Noise:
        rate_key, choose_key, change_key, token_key = jax.random.split(key, 4)
        tokens = jax.random.randint(token_key, (length,), 0, vocab, jnp.int32)
        rate = jax.random.uniform(rate_key, (), dtype)
        choice, change = (jax.random.uniform(k, (length,), dtype) for k in (choose_key, change_key))
        return Noise(rate, choice, change, tokens)

    return axis.per_example(draw, key, row)
