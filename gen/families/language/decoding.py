"""Autoregressive decoding with a cache of keys and values, as one compiled loop.

The random numbers of a sample depend only on its key and the index of the token, not on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import io_callback

from gen.core import Array
from gen.families.language.sampling import Sampling, draw_tokens, filter_logits, fold_in
from gen.networks.positions import PADDING, locate_tokens
from gen.networks.transformer import Cache, grow_cache

# A cache of at least this number of bytes grows in steps (see `cache_sizes`). The number was not tuned.
MIN_GROWING_BYTES = 2**25
Read = Callable[[Array, Array, Array, Cache, bool], tuple[Array, Cache]]
"""Runs the network: (tokens, segment, position, cache, begins) -> (logits [B, T, V], cache with these tokens added).

tokens, segment, position: int32 [B, T]. segment: number of each token's document. position: index in the document.
begins: whether these tokens are the first in the cache."""
Listener = Callable[[Array], Array]
"""(newest token of each sample, int32 [B]; PADDING if the sample has ended) -> bool [B], whether to end the sample.

It runs on the host, after each token."""


class Decoded(NamedTuple):
    """Decoded tokens and their log-probabilities, [B, N] each: N tokens for each of B samples."""

    tokens: Array
    """int32; PADDING after the end of a sample."""
    log_probs: Array
    """float32. Log-probability of each token under the model, in nats, without temperature and filters. 0 after the end
    of a sample."""


class Draft(NamedTuple):
    """B unfinished samples, with prompts of P tokens and up to N drawn tokens: the carry of the compiled loops."""

    drawn: Array
    """int32 []. Number of tokens drawn for each sample."""
    text: Array
    """int32 [B, P + N]: the prompt, the tokens drawn, then PADDING."""
    log_probs: Array
    """float32 [B, N]. Log-probability of each token drawn, in nats, otherwise 0."""
    seen: Array
    """bool [B, V]. Whether each token of the vocabulary occurs in the text. The repetition penalty needs it."""
    done: Array
    """bool [B]. Whether the sample has ended."""


class Cursor(NamedTuple):
    """A draft together with the cache of its text: the carry of the loop over tokens."""

    draft: Draft
    position: Array
    """int32 [B, 1]. Position of the newest token in its document."""
    cache: Cache
    """Keys and values of all tokens before the newest one."""


@dataclass(frozen=True)
class Decoder:
    """The steps of `decode` as methods. A field without a description is an argument of `decode` with the same name."""

    read: Read
    empty: Callable[[int], Cache]
    keys: Array
    sampling: Sampling
    width: int
    """P, the number of tokens of the prompts."""
    n: int
    capacity: int
    """Number of tokens that a full cache holds."""
    vocab: int
    end: int | None
    listen: Listener | None

    def begin(self, prompt: Array) -> Draft:
        """Returns the draft before the first token is drawn. prompt: int32 [B, P]."""
        batch = len(prompt)
        text = jnp.concatenate([prompt, jnp.full((batch, self.n), PADDING, jnp.int32)], axis=1)
        seen = jnp.zeros((batch, self.vocab), bool)
        # Padding is not a token: it is sent to column V, which does not exist, and dropped.
        columns = jnp.where(prompt < 0, self.vocab, prompt)
        seen = seen.at[jnp.arange(batch)[:, None], columns].set(True, mode="drop")
        return Draft(jnp.int32(0), text, jnp.zeros((batch, self.n), jnp.float32), seen, jnp.zeros(batch, bool))

    def unfinished(self, draft: Draft) -> Array:
        """Returns whether any sample needs another token, bool []."""
        return (draft.drawn < self.n) & ~draft.done.all()

    def draw(self, draft: Draft, logits: Array) -> Draft:
        """Returns the draft with one more token for each sample, drawn from logits [B, V]."""
        choice = filter_logits(logits, draft.seen, self.sampling)
        token = draw_tokens(choice, fold_in(self.keys, draft.drawn), self.sampling.temperature)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)
        # Tokens are drawn for ended samples, too, because shapes are fixed. They are replaced by padding.
        log_prob = jnp.where(draft.done[:, None], 0.0, log_prob).astype(jnp.float32)
        shown = jnp.where(draft.done, PADDING, token)
        text = jax.lax.dynamic_update_slice_in_dim(draft.text, shown[:, None], self.width + draft.drawn, axis=1)
        log_probs = jax.lax.dynamic_update_slice_in_dim(draft.log_probs, log_prob, draft.drawn, axis=1)
        seen = draft.seen | jax.nn.one_hot(token, self.vocab, dtype=bool)
        done = draft.done
        if self.end is not None:
            done |= token == self.end
        if self.listen is not None:
            # Ordered: the listener sees the tokens in the order in which they are drawn.
            done |= io_callback(self.listen, jax.ShapeDtypeStruct(done.shape, bool), shown, ordered=True)
        return Draft(draft.drawn + 1, text, log_probs, seen, done)

    def fill(self, draft: Draft, count: int) -> Draft:
        """Reads the last `count` tokens of the text into an empty cache, then draws tokens until the cache is full.

        It stops earlier if all samples have ended or have `n` tokens. If the cache has room for the prompt and `n`
        tokens, one call is enough. Otherwise `decode` calls it again each time the cache is full. Each new call forgets
        the oldest tokens, because it reads only the end of the text.
        """
        # A new cache, because old tokens can't just be removed: the keys and values of later tokens depend on them
        # above the first layer, and on positions in every layer.
        part = jax.lax.dynamic_slice_in_dim(draft.text, self.width + draft.drawn - count, count, axis=1)
        segment, position = locate_tokens(part, self.end)
        sizes = self.sizes(count)
        logits, cache = self.read(jnp.maximum(part, 0), segment, position, self.empty(sizes[0]), True)
        cursor = Cursor(self.draw(draft, logits[:, -1, : self.vocab]), position[:, -1:] + 1, cache)
        # One loop for each size of the cache. The first size is the current one, so the first loop grows it by 0.
        for before, after in pairwise((sizes[0], *sizes)):
            cursor = cursor._replace(cache=grow_cache(cursor.cache, after - before))
            cursor = jax.lax.while_loop(self.has_room, self.extend, cursor)
        return cursor.draft

    def has_room(self, cursor: Cursor) -> Array:
        """Returns whether any sample is unfinished, and the cache has a free slot for the newest token, bool []."""
        return self.unfinished(cursor.draft) & (cursor.cache.length < cursor.cache.segment.shape[1])

    def extend(self, cursor: Cursor) -> Cursor:
        """Reads the newest token of each sample into the cache, and draws the next token."""
        draft, position, cache = cursor
        token = jax.lax.dynamic_slice_in_dim(draft.text, self.width + draft.drawn - 1, 1, axis=1)
        # A new token is in the same document as the token before it. After `end` it is not, but then the sample is
        # done.
        segment = jax.lax.dynamic_index_in_dim(cache.segment, cache.length - 1, axis=1)
        logits, cache = self.read(jnp.maximum(token, 0), segment, position, cache, False)
        return Cursor(self.draw(draft, logits[:, -1, : self.vocab]), position + 1, cache)

    def sizes(self, count: int) -> list[int]:
        """Returns the sizes of the cache during `fill`, in slots: from at least `count` to `capacity`."""
        shapes = jax.tree.leaves(jax.eval_shape(lambda: self.empty(self.capacity)))
        return cache_sizes(count, self.capacity, sum(x.size * x.dtype.itemsize for x in shapes))


def cache_sizes(count: int, capacity: int, nbytes: int) -> list[int]:
    """Returns the increasing sizes of a growing cache, in slots. The first is at least `count`. The last is `capacity`.

    Attention to empty slots takes as long as attention to full ones. On a CPU a large cache therefore grows in
    quarters, and each size has a separate loop. On other backends, and for small caches, there is one size: compiling
    more loops would take more time than it saves.

    nbytes: bytes of the cache at full capacity.
    """
    if jax.default_backend() != "cpu" or nbytes < MIN_GROWING_BYTES:
        return [capacity]
    quarter = -(-capacity // 4)
    return [*range(-(-count // quarter) * quarter, capacity, quarter), capacity]


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
    """Decodes up to n tokens after each prompt. A sample ends early after the token `end`, or if the listener ends it.

    read: runs the network, see `Read`. empty: number of tokens -> an empty cache with room for them.
    prompt: int32 [B, P], with PADDING (-1) on the left of shorter prompts. keys: [B], one per sample.
    sampling: temperature, filters and repetition penalty.
    limit: maximum number of positions that the network can attend to. None: no limit. Each time the text reaches the
        limit, the network forgets all tokens but the last limit / 2, and reads these again.
    vocab: V, the number of tokens to draw from. The network may have more logits, which are ignored.
    end: token that ends a sample. None: no such token.
    listen: called with the new tokens of all samples; may end samples. See `Listener`. None: not called.
    """
    width = prompt.shape[1]
    # Room for all tokens but the last, which is drawn and never read.
    total = width + n - 1
    capacity = total if limit is None else min(total, limit)
    decoder = Decoder(read, empty, keys, sampling, width, n, capacity, vocab, end, listen)
    draft = decoder.fill(decoder.begin(prompt), width)
    if total > capacity:
        # All refills have the same shape, so they are a loop of one program, however long the samples are.
        def refill(draft: Draft) -> Draft:
            # Fewer tokens than half of the context would forget more. More tokens would be refilled more often.
            return decoder.fill(draft, max(1, capacity // 2))

        draft = jax.lax.while_loop(decoder.unfinished, refill, draft)
    return Decoded(draft.text[:, width:], draft.log_probs)
