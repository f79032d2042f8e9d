"""A baseline for models of scores. It predicts each token from counts of tokens after the same musical context, in all twelve keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gen.data.music.roll import PITCHES, REST, pitches_of

KEYS = range(-5, 7)
"""Transpositions of the training pieces, in semitones. Each piece is counted once in each of the twelve keys."""
BEAT = 4
"""Number of frames in a quarter note, if a frame is a sixteenth. The position of a frame in its quarter note is a context."""
BAR = 16
"""Number of frames in a bar of four quarter notes."""
START = -1
"""Token of the frames before the beginning of a window."""
MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number with irregular bits, for hashes (Knuth's multiplicative hashing)."""


class Counts(NamedTuple):
    """Counts of the tokens that followed each context, for one kind of context (see `contexts_of`)."""

    contexts: np.ndarray
    """Hashes of the contexts, sorted, uint64 [C]."""
    totals: np.ndarray
    """Number of tokens that followed each context, int64 [C]."""
    kinds: np.ndarray
    """Number of different tokens that followed each context, int64 [C]."""
    pairs: np.ndarray
    """Hashes of the pairs (context, token after it), sorted, uint64 [P]."""
    counts: np.ndarray
    """Number of times that each pair occurred, int64 [P]."""


def count_nats(
    train: Sequence[np.ndarray], test: Sequence[np.ndarray], vocab: int, keys: Sequence[int] = KEYS
) -> np.ndarray:
    """Returns -log p of each token of the test windows, in nats, float64 [tokens], in raster order: the
    voices of a frame, then the next frame.

    A token is predicted from the tokens before it: p_k(x | c_k) = (n(c_k, x) + d(c_k) p_{k-1}(x)) / (n(c_k) + d(c_k)), where n(c, x)
    is the count of x after the context c, n(c) is the sum over x, d(c) is the number of different tokens after c, and c_1, c_2, ... are
    contexts of more and more detail (`contexts_of`). p_0 is uniform. Witten and Bell 1991, method C.

    train, test: windows, int [frames, voices] each. vocab: number of tokens. keys: transpositions of the training windows.
    """
    # All keys are counted together, so a phrase that occurs in one key is known in every key.
    moved = [move(window, semitones) for window in train for semitones in keys]
    tokens, asked = join_tokens(moved), join_tokens(test)
    # Contexts with the least detail come first, because each kind is mixed with the kind before it.
    p = np.full(len(asked), 1 / vocab)
    of_train, of_test = contexts_of(moved), contexts_of(test)
    for context, asked_context in zip(of_train, of_test, strict=True):
        p = interpolate(count(context, tokens), asked_context, asked, p)
    return -np.log(p)


def move(window: np.ndarray, semitones: int) -> np.ndarray:
    """Returns a window, int [frames, voices], transposed by `semitones`. Notes that leave the range of MIDI become rests."""
    pitch = pitches_of(window) + semitones
    sounding = (window != REST) & (pitch >= 0) & (pitch < PITCHES)
    return np.where(sounding, window + semitones, REST)


def join_tokens(windows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the tokens of all windows in raster order, int64 [tokens]."""
    return np.concatenate([window.reshape(-1) for window in windows]).astype(np.int64)


def contexts_of(windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns one array for each kind of context: the hash of each token's context, uint64 [tokens].

    A context consists of facts about a token's surroundings, such as the previous token of its voice (see `_describe`).
    Each kind of context has all facts of the kind before it, and more (see ORDER).
    """
    parts = [_describe(window) for window in windows]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # Contexts are represented by hashes of 64 bits. Among millions of contexts, collisions are very unlikely.
    found, state = [], np.full(len(joined["voice"]), MIX)
    for names in ORDER:
        for name in names:
            state = _mix(state, joined[name])
        found.append(state)
    return found


ORDER = (("voice", "own"), ("beat", "age"), ("above",), ("others",), ("before",))
"""The facts that each kind of context adds, by the names in `_describe`."""


def _describe(window: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {fact: its value for each token of a window, int64 [tokens]}. Contexts are made of these facts.

    voice: number of the token's voice. own: token of this voice in the previous frame. above: tokens of the
    lower-numbered voices in this frame. beat: position of the frame in its quarter note. age: number of frames for
    which the pitch of `own` had sounded before the previous frame, at most BEAT. others: tokens of all voices in the
    previous frame. before: token of this voice in the frame before the pitch of `own` began.
    """
    frames, voices = window.shape
    tokens = window.astype(np.int64)
    last = np.concatenate([np.full((1, voices), START), tokens[:-1]])
    # Several tokens are encoded as digits of one number. + 2 makes all digits positive, START included. 1009 is a prime above all tokens.
    above = np.zeros((frames, voices), np.int64)
    for voice in range(1, voices):
        above[:, voice] = above[:, voice - 1] * 1009 + tokens[:, voice - 1] + 2
    others = np.zeros(frames, np.int64)
    for voice in range(voices):
        others = others * 1009 + last[:, voice] + 2
    changed = np.ones((frames, voices), bool)
    changed[1:] = pitches_of(last[1:]) != pitches_of(np.concatenate([np.full((1, voices), START), last[:-1]])[1:])
    # The frame after the pitch of the previous frame began, because `last` is one frame late.
    index = np.arange(frames)[:, None]
    since = np.maximum.accumulate(np.where(changed, index, 0), axis=0)
    age = np.minimum(index - since, BEAT)
    # The token before that pitch began.
    earlier = np.take_along_axis(last, np.maximum(since - 1, 0), axis=0)
    earlier = np.where(since > 0, earlier, START)
    shape = (frames, voices)
    return {
        "voice": np.broadcast_to(np.arange(voices), shape).reshape(-1),
        "own": last.reshape(-1),
        "above": above.reshape(-1),
        "beat": np.broadcast_to(index % BAR % BEAT, shape).reshape(-1),
        "age": age.reshape(-1),
        "others": np.broadcast_to(others[:, None], shape).reshape(-1),
        "before": earlier.reshape(-1),
    }


def _mix(state: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns hashes, uint64 [N]: each of a hash in `state`, uint64 [N], together with an integer in `values`, [N]."""
    # Products wrap around, and the shift brings the high bits, which depend on all others, to the low ones.
    mixed = (state ^ values.astype(np.uint64)) * MIX
    return mixed ^ (mixed >> np.uint64(29))


def count(contexts: np.ndarray, tokens: np.ndarray) -> Counts:
    """Counts which tokens, int64 [N], occur after which contexts.

    contexts: hash of each token's context, uint64 [N].
    """
    pairs, first, counts = np.unique(_mix(contexts, tokens), return_index=True, return_counts=True)
    # The context of each different pair, so that the pairs of a context can be counted.
    found, number = np.unique(contexts[first], return_inverse=True)
    totals = np.bincount(number, counts, len(found)).astype(np.int64)
    return Counts(found, totals, np.bincount(number, minlength=len(found)), pairs, counts)


def interpolate(seen: Counts, contexts: np.ndarray, tokens: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Returns the probability p_k of each token, float64 [N], by the formula of `count_nats`.

    seen: counts of the training tokens for contexts of kind k. contexts: hash of each token's context, uint64 [N].
    tokens: int64 [N]. lower: probability p_{k-1} of each token, float64 [N].
    """
    # For a context without counts, the result is `lower`.
    total, kinds = _look_up(seen.contexts, seen.totals, contexts), _look_up(seen.contexts, seen.kinds, contexts)
    n = _look_up(seen.pairs, seen.counts, _mix(contexts, tokens))
    return np.where(total > 0, (n + kinds * lower) / np.maximum(total + kinds, 1), lower)


def _look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Returns the value of each key in `asked`, or 0 if it is not in `keys`. values: of each of the sorted `keys`."""
    # searchsorted returns len(keys) for keys above the last one, which is no valid index.
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)
