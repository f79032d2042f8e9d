"""What text costs a model that only counts: modified Kneser-Ney n-grams, and xz. The baselines beside a language model's
loss; float64 on the host."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from gen.errors import UserError

LARGEST_WINDOW = 3 * 2**29  # bytes: liblzma encodes with no larger one


def baselines(train: bytes, test: bytes) -> dict[str, float]:
    """What test costs after train: by n-grams of bytes of the best order, and which that is, and by xz.

    Raises: UserError for fewer than 2 bytes of either.
    """
    nats, order = kneser_ney(np.frombuffer(train, np.uint8), np.frombuffer(test, np.uint8), vocab=256)
    found = {"kneser_ney_bits_per_byte": nats / math.log(2), "kneser_ney_order": float(order)}
    return found | {"xz_bits_per_byte": xz(train, test)}


def xz(train: bytes, test: bytes) -> float:
    """Bits per byte that test, appended to train, adds to the compressed size: xz -9e, its window as long as both (at most
    1.5 GiB; compression takes about eleven times the window in memory).

    Raises: UserError for an empty test.
    """
    if not test:
        raise UserError("an empty test text has no cost per byte; hold out more text")
    window = min(max(len(train) + len(test), 4096), LARGEST_WINDOW)
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    size = lambda text: len(lzma.compress(text, filters=chain))
    return 8 * (size(train + test) - size(train)) / len(test)


def kneser_ney(
    train: np.ndarray, test: np.ndarray, vocab: int, orders: Sequence[int] = range(2, 33)
) -> tuple[float, int]:
    """(nats per token of test, order) of the best order of interpolated modified Kneser-Ney.

    train: int [T], test: int [N], in [0, vocab). Each token of test but the first counts, predicted from those before it
    in test. The order is chosen among orders by the test loss itself, which favours the baseline; they are tried from the
    lowest, until one is no better than the last. 4 million characters take about a second an order, and half a GiB.

    Raises: UserError for a train shorter than the lowest order, a test of fewer than 2 tokens, a token outside of vocab.
    """
    best = (math.inf, 0)
    for order, nats in enumerate(islice(_by_order(train, test, vocab), max(orders)), start=1):
        if order in orders:
            if (loss := float(nats.mean())) >= best[0]:
                break
            best = (loss, order)
    if best[1] == 0:
        raise _too_short(train, min(orders))
    return best


def per_token(train: np.ndarray, test: np.ndarray, vocab: int, order: int) -> np.ndarray:
    """Nats of each token of test but the first, float64 [N - 1], under the model of `kneser_ney` of one order.

    Raises: as `kneser_ney`.
    """
    nats = next(islice(_by_order(train, test, vocab), order - 1, None), None)
    if nats is None:
        raise _too_short(train, order)
    return nats


def _too_short(train: np.ndarray, order: int) -> UserError:
    return UserError(f"{len(train)} tokens to count in hold no {order}-gram; use a longer training text")


class _Grams(NamedTuple):
    """The different n-grams of train, numbered in sorted order. A context is an (n-1)-gram, by its number among those."""

    context: np.ndarray
    """[G]: the context of each."""
    contexts: int
    """Number of different (n-1)-grams."""
    train: np.ndarray
    """[T + 1 - n]: the n-gram that ends at each token of train from the n-th on."""
    test: np.ndarray
    """[N + 1 - n]: the same of test; -1 where train has it not."""
    test_context: np.ndarray
    """[N + 1 - n]: the context of each of test; -1 where train has it not."""


def _by_order(train: np.ndarray, test: np.ndarray, vocab: int) -> Iterator[np.ndarray]:
    """Nats of each token of test but the first, [N - 1], under the models of order 1, 2, ..., T (Chen and Goodman 1999,
    section 3).

    Model n counts n-grams and interpolates with the lower orders, which count how many different tokens come before an
    n-gram (the start of train is one more). Below them all lies the uniform distribution. A history that is shorter than
    n - 1, or that train has not, leaves the prediction to a lower order.
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
        grams = _longer(below, train[order - 1 :], test[order - 1 :], vocab)
        if order > 1:
            lower[order - 2 :] = _interpolate(below, _continuations(below, grams), lower[order - 2 :])
        highest = lower.copy()
        highest[order - 1 :] = _interpolate(grams, np.bincount(grams.train), lower[order - 1 :])
        yield -np.log(highest[1:])
        below = grams


def _longer(below: _Grams, train: np.ndarray, test: np.ndarray, vocab: int) -> _Grams:
    """n-grams of (n-1)-grams and the tokens that follow them."""
    grams, numbers = np.unique(below.train[:-1] * vocab + train, return_inverse=True)
    context = below.test[:-1]
    asked = context * vocab + test  # negative of an unknown context, so it is not found either
    at = np.minimum(np.searchsorted(grams, asked), len(grams) - 1)
    return _Grams(grams // vocab, len(below.context), numbers, np.where(grams[at] == asked, at, -1), context)


def _continuations(below: _Grams, grams: _Grams) -> np.ndarray:
    """How many different tokens come before each (n-1)-gram: of how many n-grams it is the end."""
    end = np.empty(len(grams.context), np.int64)
    end[grams.train] = below.train[1:]
    counts = np.bincount(end, minlength=len(below.context))
    counts[below.train[0]] += 1
    return counts


def _interpolate(grams: _Grams, counts: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """(count - discount) / total + (discounts of the context) / total * lower, of each n-gram of test."""
    discounts = np.append(0, _discounts(counts))[np.minimum(counts, 3)]
    of_test = lambda values, number: np.append(values, 0)[number]  # number -1 is the last: nothing known
    kept = of_test(counts - discounts, grams.test)
    total = of_test(np.bincount(grams.context, counts, grams.contexts), grams.test_context)
    freed = of_test(np.bincount(grams.context, discounts, grams.contexts), grams.test_context)
    return np.where(total > 0, (kept + freed * lower) / np.maximum(total, 1), lower)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Of n-grams counted once, twice, more often, [3] (Chen and Goodman 1999, equation 17); half the count where counts
    of counts are too few for an estimate inside (0, count)."""
    k = np.arange(1, 4)
    n = np.bincount(np.minimum(counts, 5), minlength=5)[1:5]
    with np.errstate(divide="ignore", invalid="ignore"):
        discounts = k - (k + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:-1]
    return np.where((discounts > 0) & (discounts < k), discounts, k / 2)
