"""Baselines for language models: modified Kneser-Ney n-grams and xz. They run in float64 on the CPU."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from gen.errors import UserError

MAX_WINDOW = 3 * 2**29  # number of bytes of the largest window that liblzma allows for compression
MIN_WINDOW = 4096  # number of bytes of the smallest window


class Score(NamedTuple):
    """Loss of the n-gram model with the best order."""

    nats: float
    """Mean loss in nats per token."""
    order: int
    """Length n of its n-grams."""


def baselines(train: bytes, test: bytes) -> dict[str, float]:
    """Returns the scores of n-grams of bytes and of xz on the text `test`, with `train` as the training text.

    The names are "kneser_ney_bits_per_byte" (for the best order), "kneser_ney_order" (the best order) and "xz_bits_per_byte".

    Raises: UserError if one of the texts has fewer than 2 bytes.
    """
    score = kneser_ney(np.frombuffer(train, np.uint8), np.frombuffer(test, np.uint8), vocab=256)
    found = {"kneser_ney_bits_per_byte": score.nats / math.log(2), "kneser_ney_order": float(score.order)}
    return found | {"xz_bits_per_byte": xz(train, test)}


def xz(train: bytes, test: bytes) -> float:
    """Returns the bits per byte of `test` that xz -9e needs: the growth of the compressed size when `test` is appended to `train`.

    The window of xz covers both texts together, up to 1.5 GiB. Compression needs about 11 times the window in memory.

    Raises: UserError if the test text is empty.
    """
    if not test:
        raise UserError("the test text is empty, so it has no bits per byte; the fix: hold out more of the text")
    window = min(max(len(train) + len(test), MIN_WINDOW), MAX_WINDOW)
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]

    def compressed_size(text: bytes) -> int:
        return len(lzma.compress(text, filters=chain))

    return 8 * (compressed_size(train + test) - compressed_size(train)) / len(test)


def kneser_ney(train: np.ndarray, test: np.ndarray, vocab: int, orders: Sequence[int] = range(2, 33)) -> Score:
    """Returns the score of interpolated modified Kneser-Ney n-grams of the best order.

    train: integers [T], test: integers [N], both in [0, vocab). Each token of `test` but the first is predicted from the
    tokens before it in `test`. The order is chosen among `orders` by the loss on `test`, which favours the baseline. Orders
    are tried from the lowest on, until the loss does not fall any more. An order takes about a second for 4 million
    characters, and half a GiB of memory.

    Raises: UserError if `train` is shorter than the lowest order, `test` has fewer than 2 tokens, or a token is not in
    [0, vocab).
    """
    best = Score(math.inf, 0)
    for order, nats in enumerate(islice(_losses_by_order(train, test, vocab), max(orders)), start=1):
        if order in orders:
            if (loss := float(nats.mean())) >= best.nats:
                break
            best = Score(loss, order)
    if best.order == 0:
        raise _too_short(train, min(orders))
    return best


def per_token(train: np.ndarray, test: np.ndarray, vocab: int, order: int) -> np.ndarray:
    """Returns the loss of each token of `test` but the first, in nats, float64 [N - 1], for the model of this order.

    Raises: UserError for the same inputs as `kneser_ney`.
    """
    nats = next(islice(_losses_by_order(train, test, vocab), order - 1, None), None)
    if nats is None:
        raise _too_short(train, order)
    return nats


def _too_short(train: np.ndarray, order: int) -> UserError:
    return UserError(f"{len(train)} tokens of training text hold no {order}-gram; use a longer training text")


class _Grams(NamedTuple):
    """The G different n-grams of `train`, numbered in sorted order. Their contexts are the numbered (n-1)-grams."""

    context: np.ndarray
    """[G]: number of the context of each n-gram."""
    contexts: int
    """Number of different (n-1)-grams."""
    train: np.ndarray
    """[T + 1 - n]: number of the n-gram that ends at each token of `train`, from the n-th token on."""
    test: np.ndarray
    """[N + 1 - n]: the same for `test`. -1: `train` does not have the n-gram."""
    test_context: np.ndarray
    """[N + 1 - n]: number of the context of each n-gram of `test`. -1: `train` does not have the context."""


def _losses_by_order(train: np.ndarray, test: np.ndarray, vocab: int) -> Iterator[np.ndarray]:
    """Yields the loss of each token of `test` but the first, in nats [N - 1], for the models of order 1, 2, ..., T.

    The model of order n counts n-grams and interpolates with the lower orders. These count how many different tokens come
    before an n-gram, where the start of `train` counts as one more token. Order 0 is the uniform distribution. If fewer than
    n - 1 tokens come before a token, or these n - 1 tokens do not occur in `train`, only the lower orders predict it.

    Source: Chen and Goodman 1999, section 3.
    """
    if len(test) < 2:
        raise UserError(f"a test text of {len(test)} tokens has none to predict; hold out more text")
    train, test = train.astype(np.int64), test.astype(np.int64)
    for tokens in (train, test):
        outside = tokens[(tokens < 0) | (tokens >= vocab)]
        if outside.size:
            raise UserError(f"token {outside[0]} is outside the vocabulary of {vocab}; encode with its own tokenizer")

    before_train, before_test = (np.zeros(len(tokens) + 1, np.int64) for tokens in (train, test))
    below = _Grams(np.zeros(1, np.int64), 1, before_train, before_test, before_test)  # the empty n-gram, everywhere
    lower = np.full(len(test), 1 / vocab)
    for order in range(1, len(train) + 1):
        grams = _extend(below, train[order - 1 :], test[order - 1 :], vocab)
        # `lower` holds the probabilities of order - 1 by continuation counts, `highest` of this order by plain counts.
        if order > 1:
            lower[order - 2 :] = _interpolate(below, _continuations(below, grams), lower[order - 2 :])
        highest = lower.copy()
        highest[order - 1 :] = _interpolate(grams, np.bincount(grams.train), lower[order - 1 :])
        yield -np.log(highest[1:])
        below = grams


def _extend(below: _Grams, train: np.ndarray, test: np.ndarray, vocab: int) -> _Grams:
    """Returns the n-grams, made of the (n-1)-grams `below` and the token that follows each of them.

    train, test: the tokens from the n-th token on, int64.
    """
    grams, numbers = np.unique(below.train[:-1] * vocab + train, return_inverse=True)
    context = below.test[:-1]
    # An unknown context has the number -1, so its n-grams are negative and are not found either.
    asked = context * vocab + test
    at = np.minimum(np.searchsorted(grams, asked), len(grams) - 1)
    return _Grams(grams // vocab, len(below.context), numbers, np.where(grams[at] == asked, at, -1), context)


def _continuations(below: _Grams, grams: _Grams) -> np.ndarray:
    """Returns the continuation count of each (n-1)-gram: the number of different tokens that come before it.

    below: the (n-1)-grams. grams: the n-grams. The count is the number of n-grams that end with the (n-1)-gram.
    """
    end = np.empty(len(grams.context), np.int64)
    end[grams.train] = below.train[1:]
    counts = np.bincount(end, minlength=len(below.context))
    # The start of the text counts as one more token before its first (n-1)-gram.
    counts[below.train[0]] += 1
    return counts


def _interpolate(grams: _Grams, counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Returns the probability of the last token of each n-gram of `test`, interpolated with the lower order.

    It is (count - discount + (sum of the discounts in the context) * lower) / (sum of the counts in the context), or
    `lower` if the context does not occur in `train`.

    counts: of each n-gram of `train`, [G]. lower: probabilities by the order n - 1, float64 [N + 1 - n].
    """
    discounts = np.append(0, _discounts(counts))[np.minimum(counts, 3)]

    def of_test(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        # Number -1 means unknown. It reads the 0 at the end.
        return np.append(values, 0)[numbers]

    kept = of_test(counts - discounts, grams.test)
    total = of_test(np.bincount(grams.context, counts, grams.contexts), grams.test_context)
    freed = of_test(np.bincount(grams.context, discounts, grams.contexts), grams.test_context)
    return np.where(total > 0, (kept + freed * lower) / np.maximum(total, 1), lower)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Returns the discounts of n-grams whose count is 1, 2, and 3 or more, [3].

    The discount of count k is estimated from the numbers of n-grams with counts 1 to 4. If the estimate is not in (0,
    k), the discount is k / 2.

    counts: of each n-gram, [G].

    Source: Chen and Goodman 1999, equation 17.
    """
    k = np.arange(1, 4)
    n = np.bincount(np.minimum(counts, 5), minlength=5)[1:5]
    with np.errstate(divide="ignore", invalid="ignore"):
        discounts = k - (k + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:-1]
    return np.where((discounts > 0) & (discounts < k), discounts, k / 2)
