"""Autoregressive decoding with a cache of keys and values: one compiled loop.

The draws of a sample depend on its own key and the place of the token alone, so not on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import io_callback

from gen.core import Array, Key
from gen.errors import UserError, check_positive
from gen.networks.positions import PADDING, places
from gen.networks.transformer import Cache

MIN_GROWING_BYTES = 2**25  # bytes of a cache that is worth programs for several rooms; not tuned
Read = Callable[[Array, Array, Array, Cache, bool], tuple[Array, Cache]]
"""(tokens, segment, position: int32 [B, T], cache, whether they begin it) -> (logits [B, T, V], the longer cache)."""
Listener = Callable[[Array], Array]
"""Tokens [B] as they come -> bool [B], which samples have enough. Runs on the host."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from the model's distribution."""

    temperature: float = 1.0
    """Divides the logits; 0: always the most likely token (greedy)."""
    top_k: int | None = None
    """Draw from the k most likely tokens only (Fan et al. 2018)."""
    top_p: float | None = None
    """Draw from the fewest tokens that together have this probability (Holtzman et al. 2020)."""
    min_p: float | None = None
    """Draw from tokens with at least this share of the most likely one's probability (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Makes the logits of tokens that were there before so many times worse (Keskar et al. 2019)."""

    def __post_init__(self):
        check_positive(repetition_penalty=self.repetition_penalty)
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be at least 0")
        if self.top_k is not None:
            check_positive(top_k=self.top_k)
        for name in ("top_p", "min_p"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise UserError(f"{name} is {value}; it must be above 0 and at most 1")


class Decoded(NamedTuple):
    """What was decoded, [B, N]."""

    tokens: Array
    """int32; PADDING after the end of a sample."""
    log_probs: Array
    """float32, nats: of each token under the model itself, whatever the sampling; 0 after the end."""


def filtered(logits: Array, seen: Array, sampling: Sampling) -> Array:
    """Logits [B, V] of the distribution to draw from; of equally likely tokens, the first are kept. seen: bool [B, V], which
    tokens were there before."""
    if sampling.repetition_penalty != 1:
        worse = jnp.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = jnp.where(seen, worse, logits)
    if sampling.temperature == 0:
        return logits
    logits /= sampling.temperature
    only = lambda order, keep: jnp.where(
        jnp.put_along_axis(jnp.zeros(logits.shape, bool), order, keep, axis=-1, inplace=False), logits, -jnp.inf
    )
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits = only(jax.lax.top_k(logits, sampling.top_k)[1], True)
    if sampling.top_p is not None:
        order = jnp.argsort(logits, axis=-1, descending=True)
        p = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
        logits = only(order, jnp.cumsum(p, axis=-1) - p < sampling.top_p)
    if sampling.min_p is not None:
        best = logits.max(axis=-1, keepdims=True)
        logits = jnp.where(logits < best + jnp.log(sampling.min_p), -jnp.inf, logits)
    return logits


def decode(
    read: Read,
    empty: Callable[[int], Cache],
    prompt: Array,
    keys: Array,
    sampling: Sampling,
    *,
    n: int,
    limit: int | None,
    vocab: int,
    end: int | None,
    listen: Listener | None = None,
) -> Decoded:
    """Up to n tokens after each prompt: until the token `end`, or the listener has enough.

    prompt: int32 [B, P], PADDING on the left of the shorter ones; keys: [B]; empty: number of places -> a cache.
    limit: the places that the model can look at, or None. Where prompt and tokens are more, it reads the last limit / 2 of
    them anew whenever it has come to the limit.
    """
    batch, width = prompt.shape
    room = width + n - 1 if limit is None else min(width + n - 1, limit)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(lambda: empty(room))))

    def draw(drawn: Any, logits: Array) -> Any:
        i, text, log_probs, seen, done = drawn
        choice = filtered(logits, seen, sampling)
        if sampling.temperature == 0:
            token = choice.argmax(-1).astype(jnp.int32)
        else:
            one = lambda key, row: jax.random.categorical(jax.random.fold_in(key, i), row)
            token = jax.vmap(one)(keys, choice).astype(jnp.int32)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)
        log_prob = jnp.where(done[:, None], 0.0, log_prob).astype(jnp.float32)
        shown = jnp.where(done, PADDING, token)
        text = jax.lax.dynamic_update_slice_in_dim(text, shown[:, None], width + i, axis=1)
        log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, log_prob, i, axis=1)
        seen |= jax.nn.one_hot(token, vocab, dtype=bool)
        if end is not None:
            done |= token == end
        if listen is not None:
            done |= io_callback(listen, jax.ShapeDtypeStruct(done.shape, bool), shown, ordered=True)
        return i + 1, text, log_probs, seen, done

    def going(drawn: Any) -> Array:
        return (drawn[0] < n) & ~drawn[-1].all()

    def filled(drawn: Any, count: int) -> Any:
        """What is drawn after the last `count` tokens, read into an empty cache, until the cache is full."""
        part = jax.lax.dynamic_slice_in_dim(drawn[1], width + drawn[0] - count, count, axis=1)
        segment, position = places(part, end)
        rooms = stages(count, room, size)
        logits, cache = read(jnp.maximum(part, 0), segment, position, empty(rooms[0]), True)
        drawn = draw(drawn, logits[:, -1, :vocab])

        def body(carry: Any) -> Any:
            drawn, position, cache = carry
            token = jax.lax.dynamic_slice_in_dim(drawn[1], width + drawn[0] - 1, 1, axis=1)
            segment = jax.lax.dynamic_index_in_dim(cache.segment, cache.length - 1, axis=1)
            logits, cache = read(jnp.maximum(token, 0), segment, position, cache, False)
            return draw(drawn, logits[:, -1, :vocab]), position + 1, cache

        roomy = lambda carry: going(carry[0]) & (carry[2].length < carry[2].segment.shape[1])
        carry = drawn, position[:, -1:] + 1, cache
        for before, after in pairwise((rooms[0], *rooms)):
            carry = jax.lax.while_loop(roomy, body, (*carry[:2], longer(carry[2], after - before)))
        return carry[0]

    text = jnp.concatenate([prompt, jnp.full((batch, n), PADDING, jnp.int32)], axis=1)
    seen = jnp.zeros((batch, vocab), bool)
    seen = seen.at[jnp.arange(batch)[:, None], jnp.where(prompt < 0, vocab, prompt)].set(True, mode="drop")
    drawn = (jnp.int32(0), text, jnp.zeros((batch, n), jnp.float32), seen, jnp.zeros(batch, bool))
    drawn = filled(drawn, width)
    if width + n - 1 > room:
        drawn = jax.lax.while_loop(going, lambda drawn: filled(drawn, max(1, room // 2)), drawn)
    return Decoded(drawn[1][:, width:], drawn[2])


def stages(count: int, room: int, size: int) -> list[int]:
    """The rooms of a cache of `count` places on its way to `room`, where it has so many bytes. On a CPU, a large one grows in
    quarters: attention to places that are still empty takes as long as to others."""
    if jax.default_backend() != "cpu" or size < MIN_GROWING_BYTES:
        return [room]
    quarter = -(-room // 4)
    return [*range(-(-count // quarter) * quarter, room, quarter), room]


def longer(cache: Cache, more: int) -> Cache:
    """The cache with room for so many more places."""
    grow = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)])
    segment = jnp.pad(cache.segment, ((0, 0), (0, more)), constant_values=PADDING)
    key, value = jax.tree.map(grow, (cache.key, cache.value))
    return Cache(key, value, segment, cache.length)


def row_keys(key: Key, n: int) -> Array:
    """A key for each of n samples, from its number alone."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
