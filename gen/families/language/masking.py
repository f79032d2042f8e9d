"""Random masks of masked models: at a fixed rate (Devlin et al. 2019), or at every rate (absorbing diffusion: Sahoo et al. 2024)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array, Key

# Of the chosen tokens, the fractions that are shown as the mask and as a random token. The rest are shown as they are, so that
# the model must also predict tokens that it sees. Devlin et al. 2019, section 3.1.
MASKED_RATE, RANDOM_RATE = 0.8, 0.1


class Shown(NamedTuple):
    """Tokens as the network sees them, with some to predict, [B, T] each."""

    tokens: Array
    """int32."""
    chosen: Array
    """bool. Tokens to predict."""


class BoundMasks(NamedTuple):
    """Masks for a bound on the likelihood."""

    chosen: Array
    """bool [B, T]. Tokens to mask and predict."""
    scale: Array
    """[B, 1]. Weight of the nats of a chosen token, 1 / t."""


def mask_at_rate(x: Array, counts: Array, keys: Key, vocab: int, dtype: DTypeLike, rate: float) -> Shown:
    """Chooses a fraction `rate` of the tokens x, int32 [B, T], and shows most of them as the mask, the token `vocab`.

    counts: bool [B, T], tokens that may be chosen. keys: [B].
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
    """Chooses a random fraction t ~ U[0, 1] of the `length` tokens of each example. keys: [B].

    The nats of the masked tokens, weighted with 1 / t, are on average an upper bound on -log p(tokens). Sahoo et al. 2024.
    """

    def draw(key: Key) -> tuple[Array, Array]:
        rate_key, choose_key = jax.random.split(key)
        # t is at least 1 / length: then one token is masked on average. This bounds the weight 1 / t.
        t = jnp.maximum(jax.random.uniform(rate_key, (), dtype), 1 / length)
        return jax.random.uniform(choose_key, (length,), dtype) < t, 1 / t

    chosen, scale = jax.vmap(draw)(keys)
    return BoundMasks(chosen, scale[:, None])


def choose_any(unknown: Array, keys: Key, turns: Array) -> Array:
    """Chooses each unknown token with probability 1 / turns, so that none is left after `turns` turns. Sahoo et al. 2024, section 3.2.

    unknown: bool [B, T]. keys: [B]. turns: [], number of turns that are left, including this one. Returns bool [B, T].
    """

    def draw(key: Key) -> Array:
        return jax.random.uniform(key, unknown.shape[1:]) * turns < 1

    return unknown & jax.vmap(draw)(keys)
