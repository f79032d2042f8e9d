"""Draws tokens from logits, with temperature, top-k, top-p, min-p and a repetition penalty.

The filters keep the same tokens as Hugging Face transformers. If a probability is exactly at a limit, the result does
not depend on float32 rounding (see ROUNDING).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from gen.core import Array, Key
from gen.errors import UserError, check_positive

# Relative error of sums of float32 probabilities. A probability that differs from a limit by less counts as equal to
# it.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Filters:
    """Settings for drawing a token from the model's distribution, for texts and for grids of codes."""

    temperature: float = 1.0
    """Divides the logits. 0: always take the most likely token (greedy)."""
    top_k: int | None = None
    """Draw from the k most likely tokens only. Tokens as likely as the last of these are kept, too (Fan et al. 2018).
    None: no limit."""
    top_p: float | None = None
    """Draw from the smallest set of tokens with at least this probability in total (Holtzman et al. 2020). 1 or None:
    all tokens."""
    min_p: float | None = None
    """Draw from tokens whose probability is at least this fraction of the most likely token's (Nguyen et al. 2024).
    None: from all tokens."""

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be at least 0")
        if self.top_k is not None:
            check_positive(top_k=self.top_k)
        for name in ("top_p", "min_p"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}; it must be above 0 and at most 1")


@dataclass(frozen=True)
class Sampling(Filters):
    """Settings for drawing the next token of a text: those of `Filters`, and one that depends on the text so far."""

    repetition_penalty: float = 1.0
    """Lowers the logits of tokens that already occur in the text: positive logits are divided by this factor, and
    negative logits are multiplied by it (Keskar et al. 2019). 1: no penalty."""

    def __post_init__(self):
        check_positive(repetition_penalty=self.repetition_penalty)
        super().__post_init__()


def filter_logits(logits: Array, seen: Array, sampling: Sampling) -> Array:
    """Returns the logits [..., V] after the repetition penalty, the temperature and the filters (see `keep_likely`).

    seen: bool, broadcasts to [..., V]. Whether the token already occurs in the text.
    """
    if sampling.repetition_penalty != 1:
        worse = jnp.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = jnp.where(seen, worse, logits)
    return keep_likely(logits, sampling)


def keep_likely(logits: Array, sampling: Filters) -> Array:
    """Returns the logits [..., V] divided by the temperature, with -inf for tokens that top_k, top_p or min_p exclude.

    If equally likely tokens are at the limit, top_p keeps only as many as it needs, those with the smallest numbers,
    and top_k and min_p keep all of them. With temperature 0 the logits are returned unchanged.
    """
    if sampling.temperature == 0:
        return logits
    # The temperature comes first, because top_p and min_p compare the probabilities that it gives.
    logits /= sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        last = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < last, -jnp.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = _keep_nucleus(logits, sampling.top_p)
    if sampling.min_p is not None:
        p = jax.nn.softmax(logits)
        least = sampling.min_p * (1 - ROUNDING) * p.max(axis=-1, keepdims=True)
        logits = jnp.where(p < least, -jnp.inf, logits)
    return logits


def draw_tokens(logits: Array, keys: Key, temperature: float) -> Array:
    """Draws tokens, int32 [B, ...], from logits [B, ..., V] of `keep_likely`. keys: [B].

    temperature: 0 means the most likely token. Other values have no effect, because the logits already include them.
    """
    if temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def fold_in(keys: Key, number: Array | int) -> Key:
    """Returns jax.random.fold_in(key, number) of each of the keys [B]. number: for instance the index of a token."""
    return jax.vmap(partial(jax.random.fold_in, data=number))(keys)


def _keep_nucleus(logits: Array, top_p: float) -> Array:
    """Returns logits [..., V], with -inf outside of the smallest set of tokens of total probability `top_p` or more."""
    order = jnp.argsort(logits, axis=-1, descending=True)
    p = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    # Leaves out the least likely tokens, up to 1 - top_p in total. Summing from the smallest is more precise.
    tail = jax.lax.cumsum(p, axis=p.ndim - 1, reverse=True)
    keep = tail > (1 - top_p) * (1 + ROUNDING)
    # The most likely token is always kept.
    keep = keep.at[..., 0].set(True)
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), order, keep, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)
