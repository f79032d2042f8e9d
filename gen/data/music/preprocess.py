"""Preprocesses scores inside the compiled step: draws excerpts and transpositions for training, and marks padding."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, Key
from gen.data.music.roll import REST

EXCERPT_STEP = 16
"""An excerpt begins at a multiple of this number of frames: at a bar, in four-four time with a sixteenth per frame. So a position in an
excerpt tells a model the beat."""


def preprocess(batch: Batch, key: Key, training: bool, *, excerpt: int) -> Batch:
    """Returns the batch with "counted", float32 of the shape of "tokens": 0 on padding, otherwise 1.

    If `training`, "tokens" int32 [B, frames, voices] become an excerpt of each window, [B, excerpt, voices], transposed
    by a random number of semitones within "limits" int32 [B, 2]. Excerpt and transposition are drawn uniformly from
    (key, row). An excerpt begins at a multiple of EXCERPT_STEP, and has no padding if the window has at least `excerpt`
    frames of its piece. Otherwise "tokens" are unchanged. The entries "limits" and "frames", int32 [B], the length of
    each window without padding, are removed.
    """
    tokens, frames = batch["tokens"], batch["frames"]
    if training:
        draw = partial(draw_excerpt, excerpt=excerpt)
        start_key, shift_key = jax.random.split(key)
        start = draw(frames, axis.example_keys(start_key, batch["row"]))
        tokens = jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=excerpt))(tokens, start)
        frames = frames - start
        # The excerpt is cut before it is transposed, so that fewer tokens are transposed. The limits are valid for the whole piece.
        tokens = transpose(tokens, draw_shift(batch["limits"], axis.example_keys(shift_key, batch["row"])))
    # The padding of a window comes after its piece.
    counted = jnp.arange(tokens.shape[1])[None] < frames[:, None]
    counted = jnp.broadcast_to(counted[..., None], tokens.shape).astype(jnp.float32)
    return {name: x for name, x in batch.items() if name not in ("frames", "limits")} | {
        "tokens": tokens,
        "counted": counted,
    }


def draw_excerpt(frames: Array, keys: Key, *, excerpt: int) -> Array:
    """Draws the first frame of the excerpt of each window, a multiple of EXCERPT_STEP, int32 [B].

    frames: number of frames of each window without padding, int32 [B]. excerpt: number of frames of an excerpt. keys:
    [B].
    """
    # The last place leaves at least `excerpt` frames if there are that many.
    places = jnp.maximum(frames - excerpt, 0) // EXCERPT_STEP + 1

    def draw(key: Key, places: Array) -> Array:
        return jax.random.randint(key, (), 0, places)

    return EXCERPT_STEP * jax.vmap(draw)(keys, places)


def draw_shift(limits: Array, keys: Key) -> Array:
    """Draws a transposition of each example, in semitones, int32 [B]. limits: lowest and highest, int32 [B, 2]. keys: [B]."""

    def draw(key: Key, limits: Array) -> Array:
        return jax.random.randint(key, (), limits[0], limits[1] + 1)

    return jax.vmap(draw)(keys, limits)


def transpose(tokens: Array, shift: Array) -> Array:
    """Returns tokens int32 [B, frames, voices] with all notes moved by `shift`, int32 [B], semitones. Rests stay."""
    return jnp.where(tokens == REST, tokens, tokens + shift[:, None, None])
