"""n-grams against their definition, written with dictionaries; xz on repeated text and on noise."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from gen.data.text.ngram import baselines, kneser_ney, per_token, xz
from gen.errors import UserError


def kneser_ney_by_dictionaries(train: list[int], test: list[int], vocab: int, order: int) -> list[float]:
    """Returns the loss of each token but the first in nats, by the recursion of Chen and Goodman, one token at a time."""

    def windows(n):
        return [tuple(train[i : i + n]) for i in range(len(train) - n + 1)]

    def table(n):
        if n == order:
            return Counter(windows(n))
        before = defaultdict(set)
        for longer in windows(n + 1):
            before[longer[1:]].add(longer[0])
        before[tuple(train[:n])].add("start")
        return {gram: len(tokens) for gram, tokens in before.items()}

    def discounts(counts):
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        found = {}
        for k, (n, following) in enumerate([(n1, n2), (n2, n3), (n3, n4)], start=1):
            d = k - (k + 1) * n1 / (n1 + 2 * n2) * following / n if n1 and n else 0
            found[k] = d if 0 < d < k else k / 2
        return found

    tables = {n: table(n) for n in range(1, order + 1)}
    discount = {n: discounts(tables[n]) for n in tables}

    def probability(token, history, n):
        if n == 0:
            return 1 / vocab
        lower = probability(token, history[1:], n - 1)
        followers = {gram[-1]: count for gram, count in tables[n].items() if gram[:-1] == history}
        # Training does not have the history.
        if not followers:
            return lower
        taken = {w: discount[n][min(count, 3)] for w, count in followers.items()}
        kept = followers[token] - taken[token] if token in followers else 0
        return (kept + sum(taken.values()) * lower) / sum(followers.values())

    nats = []
    for i in range(1, len(test)):
        n = min(order, i + 1)
        nats.append(-math.log(probability(test[i], tuple(test[i - n + 1 : i]), n)))
    return nats


def chain(length: int, vocab: int, seed: int) -> np.ndarray:
    """Returns int32 tokens of a second-order Markov chain: some n-grams are frequent, many are rare, some never occur."""
    rng = np.random.default_rng(seed)
    odds = rng.dirichlet(np.full(vocab, 0.3), (vocab, vocab))
    tokens = [0, 0]
    for u in rng.random(length - 2):
        tokens.append(min(int(np.searchsorted(np.cumsum(odds[tokens[-2], tokens[-1]]), u)), vocab - 1))
    return np.array(tokens, np.int32)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("size", "held", "alphabet"), [(400, 60, 5), (150, 40, 12), (12, 30, 3), (9, 4, 2)])
def test_losses_equal_the_definition_of_modified_kneser_ney(order, size, held, alphabet):
    tokens = chain(size + held, alphabet, seed=size)
    train, test = tokens[:size], tokens[size:]
    found = per_token(train, test, alphabet + 2, order)
    assert found.dtype == np.float64
    expected = kneser_ney_by_dictionaries(train.tolist(), test.tolist(), alphabet + 2, order)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_the_discount_is_half_if_there_are_too_few_counts():
    """Computed by hand: one 1-gram occurs twice. One of its 2 counts is kept, and two tokens share the other."""
    found = per_token(np.array([0, 0]), np.array([1, 0, 1]), 2, order=1)
    np.testing.assert_allclose(np.exp(-found), [0.75, 0.25], rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_each_context_sum_to_1(order):
    train, vocab = chain(300, 6, seed=1), 9
    contexts = [train[:4], train[-5:], train[100:107], np.array([8, 7]), np.array([0, 8, 0]), np.array([8])]
    for context in contexts:
        each = [per_token(train, np.append(context, token), vocab, order)[-1] for token in range(vocab)]
        assert np.exp(-np.array(each)).sum() == pytest.approx(1, abs=1e-12)


def test_unseen_tokens_have_a_large_and_finite_loss():
    train = chain(500, 5, seed=2)
    nats = per_token(train, np.array([0, 1, 700, 2, 999, 999, 0]), 1000, order=4)
    assert np.isfinite(nats).all()
    assert nats[[1, 3, 4]].min() > math.log(1000)


def test_a_loss_depends_on_earlier_tokens_alone():
    tokens = chain(700, 5, seed=3)
    train, test = tokens[:600], tokens[600:]
    whole = per_token(train, test, 5, order=4)
    np.testing.assert_array_equal(per_token(train, test[:41], 5, order=4), whole[:40])
    np.testing.assert_array_equal(
        per_token(train, test[30:], 5, order=4)[2:], whole[32:]
    )  # a trigram of context is all
    assert not np.array_equal(per_token(train, test[30:], 5, order=4)[:2], whole[30:32])


def test_the_best_order_is_the_one_before_the_loss_rises():
    tokens = chain(3000, 6, seed=4)
    train, test = tokens[:2500], tokens[2500:]
    losses = {order: per_token(train, test, 6, order).mean() for order in range(1, 7)}
    # The chain has contexts of two tokens.
    assert min(losses, key=losses.__getitem__) == 3
    assert kneser_ney(train, test, 6) == pytest.approx((losses[3], 3))
    assert kneser_ney(train, test, 6, orders=[5]) == pytest.approx((losses[5], 5))
    assert kneser_ney(train, test, 6, orders=[1, 2]) == pytest.approx((losses[2], 2))
    assert kneser_ney(train[:4], test, 6, orders=[4, 5])[1] == 4  # training has no 5-gram


def test_the_dtype_of_tokens_does_not_matter():
    rng = np.random.default_rng(5)
    train, test = rng.integers(200, 256, (2, 400))
    expected = per_token(train, test, 256, 3)
    for dtype in (np.uint8, np.uint64):
        np.testing.assert_array_equal(per_token(train.astype(dtype), test.astype(dtype), 256, 3), expected)


def test_a_repeating_text_has_almost_no_loss():
    period = np.random.default_rng(6).permutation(20)
    loss, order = kneser_ney(np.tile(period, 500), np.tile(period, 50), vocab=20)
    assert 0 < loss < 0.02
    assert order >= 2


def test_known_text_needs_no_bits_and_noise_needs_all():
    rng = np.random.default_rng(7)
    train, noise = rng.bytes(60_000), rng.bytes(20_000)
    text = chain(60_000, 26, seed=7).astype(np.uint8).tobytes()
    assert xz(text, text[10_000:40_000]) < 0.02
    assert xz(train, noise) == pytest.approx(8, abs=0.02)
    found = baselines(train, noise)
    assert found["xz_bits_per_byte"] == xz(train, noise)
    assert found["kneser_ney_bits_per_byte"] == pytest.approx(8, abs=0.1)
    assert (
        0 < baselines(b"to be or not to be, " * 500, b"to be or not to be, " * 100)["kneser_ney_bits_per_byte"] < 0.05
    )


def test_the_window_of_xz_is_longer_than_8_mebibytes():
    first = np.random.default_rng(8).bytes(20_000)
    assert xz(first + bytes(2**23), first) < 0.1


def test_texts_without_a_score_are_an_error():
    with pytest.raises(UserError, match=r"1 tokens has none to predict"):
        kneser_ney(np.arange(5), np.arange(1), 5)
    with pytest.raises(UserError, match=r"3 tokens of training text hold no 4-gram"):
        kneser_ney(np.arange(3), np.arange(5), 5, orders=[4, 5])
    with pytest.raises(UserError, match=r"3 tokens of training text hold no 4-gram"):
        per_token(np.arange(3), np.arange(5), 5, order=4)
    for train, test in ([1, 5, 2], [1, 2]), ([1, 2], [1, -1, 2]):
        with pytest.raises(UserError, match=r"token (5|-1) is outside the vocabulary of 5"):
            kneser_ney(np.array(train), np.array(test), 5)
    with pytest.raises(UserError, match="empty"):
        xz(b"text", b"")
