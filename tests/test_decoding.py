"""Decoding with a cache against whole passes in numpy, and drawn tokens against their distributions."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike
from scipy import stats
from scipy.special import log_softmax, softmax
from test_transformer import (
    ARCHS,
    CONTEXT,
    END,
    KEY,
    PART,
    SMALL,
    VOCAB,
    A,
    B,
    C,
    build_network,
    inputs,
    make_row,
    quickly,
    reference,
)

from gen.axis import example_keys
from gen.core import Params
from gen.errors import UserError
from gen.families.language import decoding
from gen.families.language.decoding import Decoded, decode
from gen.families.language.sampling import Sampling, filter_logits
from gen.networks.positions import PADDING
from gen.networks.transformer import Architecture, Cache, empty_cache, unstack_layers

WIDTH, N = 6, 6
PROMPTS = np.array([C[1:7], [2, *A], [PADDING, 9, *B, 5], [PADDING] * 5 + [7], [PADDING, PADDING, 1, 1, 8, END]])
KEYS = example_keys(KEY, jnp.arange(len(PROMPTS)))
QUIET = 40.0  # subtracted from the logit of END, so that all samples reach their maximum length
GREEDY = Sampling(temperature=0)


@pytest.mark.parametrize("unstacked", [False, True], ids=["stacked", "unstacked"])
@pytest.mark.parametrize("name", ARCHS)
def test_reading_tokens_one_by_one_with_a_cache_gives_the_logits_of_one_pass(name, unstacked):
    """In rows of several documents and padding."""
    network, params, _ = build_network(ARCHS[name])
    rows = [make_row(1, A, B[:2], C[:4]), make_row(C, 3, B[:2]), make_row(PART)]

    def one_by_one(params: Params) -> jax.Array:
        def step(cache: Cache, part: tuple[jax.Array, ...]) -> tuple[Cache, jax.Array]:
            logits, cache = network.apply({"params": as_read}, *(x[:, None] for x in part), cache=cache)  # pyright: ignore
            return cache, logits[:, 0]

        as_read = unstack_layers(params) if unstacked else params
        empty = empty_cache(network.arch, len(rows), CONTEXT + 3, jnp.float32, unstacked)
        columns = tuple(x.T for x in inputs(np.array([row for row, _ in rows])))
        return jax.lax.scan(step, empty, columns)[1].transpose(1, 0, 2)

    for found, (row, spans) in zip(quickly(one_by_one)(params), rows, strict=True):
        for span in spans:
            np.testing.assert_allclose(found[span], reference(params, network.arch, row[span]), atol=1e-4)


@functools.cache
def decoder(arch: Architecture, sampling: Sampling, n: int, limit: int | None) -> Callable[..., Decoded]:
    """(prompt, keys) -> the continuation by a transformer. Compiled."""
    network, params, _ = build_network(arch)

    @quickly
    def run(params: Params, prompt: jax.Array, keys: jax.Array) -> Decoded:
        def read(
            tokens: jax.Array, segment: jax.Array, position: jax.Array, cache: Cache, begins: bool
        ) -> tuple[jax.Array, Cache]:
            logits, cache = network.apply({"params": params}, tokens, segment, position, cache=cache)  # pyright: ignore
            return logits.at[..., END].add(-QUIET), cache

        def empty(places: int) -> Cache:
            return empty_cache(arch, len(prompt), places, jnp.float32)

        return decode(read, empty, prompt, keys, sampling, n=n, limit=limit, vocab=VOCAB, end=END)

    return lambda prompt, keys: run(params, jnp.asarray(prompt, jnp.int32), keys)


def expected_logits(arch: Architecture, text: np.ndarray) -> np.ndarray:
    """Logits [T, V] of the token after each token of the text's last document."""
    begins = np.flatnonzero((text == END) | (text == PADDING))
    part = text[begins[-1] + (text[begins[-1]] == PADDING) :] if len(begins) else text
    return reference(build_network(arch).params, arch, part.tolist()) - QUIET * np.eye(VOCAB)[END]


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("learned", Sampling(temperature=0.3, top_k=5)),
        ("rotary", Sampling(temperature=1.5, repetition_penalty=1.3)),
        ("relative", GREEDY),
    ],
)
@pytest.mark.slow
def test_log_probs_equal_one_whole_pass_and_samples_do_not_depend_on_the_batch(name, sampling):
    """Whatever the sampling."""
    run = decoder(ARCHS[name], sampling, N, CONTEXT)
    tokens, log_probs = jax.device_get(run(PROMPTS, KEYS))
    assert tokens.shape == log_probs.shape == (5, N) and tokens.dtype == np.int32 and log_probs.dtype == np.float32
    for row, (prompt, said) in enumerate(zip(PROMPTS, tokens, strict=True)):
        logits = expected_logits(ARCHS[name], np.concatenate([prompt, said]))[-N - 1 : -1]
        expected = log_softmax(logits, axis=-1)
        np.testing.assert_allclose(log_probs[row], expected[range(N), said], atol=1e-4)
        if sampling == GREEDY:
            np.testing.assert_array_equal(said, expected.argmax(-1))
        alone = jax.device_get(run(PROMPTS[row : row + 1], KEYS[row : row + 1]))
        np.testing.assert_array_equal(alone.tokens[0], said)
        np.testing.assert_allclose(alone.log_probs[0], log_probs[row], atol=1e-5)


@pytest.mark.parametrize(("name", "limit", "refills"), [("learned", WIDTH, 5), ("relative", 8, 3)])
@pytest.mark.slow
def test_beyond_the_context_the_last_half_of_it_is_read_again(name, limit, refills):
    """Also if the prompt fills the context."""
    n = 17
    tokens, log_probs = jax.device_get(decoder(ARCHS[name], Sampling(), n, limit)(PROMPTS, KEYS))
    for prompt, said, found in zip(PROMPTS, tokens, log_probs, strict=True):
        text, start, refilled = np.concatenate([prompt, said]), 0, 0
        for i in range(WIDTH, WIDTH + n):
            expected = log_softmax(expected_logits(ARCHS[name], text[start:i])[-1])
            assert found[i - WIDTH] == pytest.approx(expected[text[i]], abs=1e-4), (i, start)
            if i - start == limit:  # the cache has no place for this token
                start, refilled = i + 1 - limit // 2, refilled + 1
        assert refilled == refills


@pytest.mark.slow
def test_a_cache_that_grows_changes_no_sample(monkeypatch):
    """Through every size of the cache, with and without refills."""

    def run(limit: int | None) -> Decoded:
        return jax.device_get(decoder.__wrapped__(ARCHS["rotary"], Sampling(), 17, limit)(PROMPTS, KEYS))

    fixed = [run(limit) for limit in (None, 12)]
    monkeypatch.setattr(decoding, "MIN_GROWING_BYTES", 0)
    assert decoding.cache_sizes(WIDTH, WIDTH + 16, 0) == [6, 12, 18, 22]
    for before, grown in zip(fixed, [run(limit) for limit in (None, 12)], strict=True):
        np.testing.assert_array_equal(grown.tokens, before.tokens)
        np.testing.assert_allclose(grown.log_probs, before.log_probs, atol=1e-5)


def plain(logits: np.ndarray, seen: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The filters as in their papers, on one row. Of equally likely tokens at the edge of top_p the first are kept."""
    x, penalty = np.array(logits, np.float64), sampling.repetition_penalty
    for token in np.flatnonzero(seen):
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    if sampling.temperature == 0:
        return x
    x /= sampling.temperature

    def keep(x: np.ndarray, tokens: np.ndarray | list[int]) -> np.ndarray:
        return np.where(np.isin(np.arange(len(x)), tokens), x, -np.inf)

    if sampling.top_k is not None:
        x = np.where(x < np.sort(x)[-min(sampling.top_k, len(x))], -np.inf, x)
    if sampling.top_p is not None:
        order, kept, mass = np.argsort(-x, kind="stable"), [], 0.0
        while mass < sampling.top_p - 1e-9 and len(kept) < len(x):
            kept.append(order[len(kept)])
            mass += softmax(x)[kept[-1]]
        x = keep(x, kept)
    if sampling.min_p is not None:
        x = keep(x, np.flatnonzero(softmax(x) >= sampling.min_p * softmax(x).max()))
    return x


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.3),
        Sampling(temperature=0, repetition_penalty=1.5),
        Sampling(top_k=1),
        Sampling(top_k=4),
        Sampling(top_k=50),
        Sampling(top_p=0.3),
        Sampling(top_p=0.9),
        Sampling(top_p=1.0),
        Sampling(min_p=0.1),
        Sampling(min_p=1.0),
        Sampling(repetition_penalty=1.8),
        Sampling(repetition_penalty=0.5),
        Sampling(temperature=1.7, top_k=6, top_p=0.8, min_p=0.2, repetition_penalty=1.2),
        Sampling(temperature=0.5, top_p=0.95, min_p=0.05),
    ],
    ids=str,
)
def test_filtered_logits_equal_the_filters_of_the_papers(sampling):
    rng = np.random.default_rng(0)
    logits, seen = rng.normal(0, 2, (40, VOCAB)).astype(np.float32), rng.random((40, VOCAB)) < 0.3
    found = filter_logits(jnp.asarray(logits), jnp.asarray(seen), sampling)
    expected = np.stack([plain(row, was, sampling) for row, was in zip(logits, seen, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(top_k=3), Sampling(top_p=0.5), Sampling(top_k=1), Sampling(top_p=0.1)])
def test_of_equally_likely_tokens_top_p_keeps_the_first_and_top_k_all(sampling):
    logits = np.array([[1.0] * VOCAB, [0.0, 2, 1, 2, 2, 0, 2, 2, 2, 1, 0]], np.float32)
    nothing = np.zeros(logits.shape, bool)
    expected = np.stack([plain(row, was, sampling) for row, was in zip(logits, nothing, strict=True)])
    found = filter_logits(jnp.asarray(logits), jnp.asarray(nothing), sampling)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


def kept(probabilities: list[float], sampling: Sampling) -> list[int]:
    """Returns the tokens that the filters keep of these probabilities."""
    logits = jnp.log(jnp.asarray([probabilities], jnp.float32))
    return np.flatnonzero(np.isfinite(filter_logits(logits, jnp.zeros(logits.shape, bool), sampling))).tolist()


@pytest.mark.parametrize(
    ("probabilities", "top_p", "expected"),
    [
        ([0.3, 0.1, 0.1, 0.5], 0.8, [0, 3]),
        ([0.5, 0.3, 0.1, 0.1], 0.9, [0, 1, 2]),
        ([0.4, 0.3, 0.2, 0.1], 0.7, [0, 1]),
        ([0.25] * 4, 0.75, [0, 1, 2]),
        ([0.7, 0.2, 0.1], 0.7, [0]),
        ([0.9, 0.05, 0.05], 0.95, [0, 1]),
        ([0.1] * 10, 0.3, [0, 1, 2]),
        ([0.1] * 10, 0.7, [0, 1, 2, 3, 4, 5, 6]),
        ([0.3, 0.1, 0.1, 0.5], 1e-9, [3]),
    ],
)
def test_a_nucleus_that_adds_up_to_top_p_exactly_is_the_smallest(probabilities, top_p, expected):
    """As in Hugging Face transformers: the rounding of float32 must not add a token."""
    assert kept(probabilities, Sampling(top_p=top_p)) == expected


def test_limits_that_are_met_exactly_keep_the_token():
    assert kept([0.5, 0.25, 0.25], Sampling(min_p=0.5)) == [0, 1, 2]
    assert kept([6 / 11, 3 / 11, 2 / 11], Sampling(min_p=1 / 3)) == [0, 1, 2]
    assert kept([0.7, 0.07, 0.23], Sampling(min_p=0.1)) == [0, 1, 2]


def test_a_top_p_of_one_leaves_no_token_out():
    """Sums of float32 reach 1 before the last tokens of a large vocabulary."""
    probabilities = np.random.default_rng(0).dirichlet(np.ones(50_257)).tolist()
    assert len(kept(probabilities, Sampling(top_p=1.0))) == 50_257


def bigram(
    table: np.ndarray,
    prompt: ArrayLike | list[list[int]],
    sampling: Sampling,
    n: int,
    limit: int | None = None,
    **kwargs: Any,
) -> Decoded:
    """Decodes from the logits table[last token]."""
    logits, prompt = jnp.asarray(table, jnp.float32), jnp.asarray(prompt, jnp.int32)

    def read(
        tokens: jax.Array, segment: jax.Array, position: jax.Array, cache: Cache, begins: bool
    ) -> tuple[jax.Array, Cache]:
        longer = jax.lax.dynamic_update_slice_in_dim(cache.segment, segment, cache.length, axis=1)
        return logits[tokens], cache._replace(segment=longer, length=cache.length + tokens.shape[1])

    def empty(places: int) -> Cache:
        return empty_cache(replace(SMALL, layers=1, width=4), len(prompt), places, jnp.float32)

    def run(prompt: jax.Array, keys: jax.Array) -> Decoded:
        options = {"end": None, **kwargs}
        return decode(read, empty, prompt, keys, sampling, n=n, limit=limit, vocab=len(table), **options)

    return jax.device_get(quickly(run)(prompt, example_keys(KEY, jnp.arange(len(prompt)))))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.6, top_k=3, repetition_penalty=1.5)], ids=str)
def test_draws_have_the_frequencies_of_the_softmax(sampling):
    table, n = np.random.default_rng(2).normal(size=(5, 5)), 4000
    tokens = bigram(table, np.full((n, 1), 1), sampling, 2).tokens
    expected = np.zeros((5, 5))
    for first, p in enumerate(softmax(plain(table[1], np.eye(5)[1], sampling))):
        seen = np.eye(5)[1] + np.eye(5)[first]
        expected[first] = p * softmax(plain(table[first], seen, sampling))
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(tokens.T), 1)
    assert counts[expected == 0].sum() == 0
    possible = expected > 1e-3
    observed, mass = [np.append(x[possible], x[~possible].sum()) for x in (counts, expected)]
    some = mass > 0
    assert stats.chisquare(observed[some], n * mass[some] / mass.sum()).pvalue > 1e-3


def test_padding_of_a_prompt_changes_no_draw():
    table = np.random.default_rng(2).normal(size=(VOCAB, VOCAB))
    padded = bigram(table, [[PADDING, PADDING, 4], [1, 2, 7]], Sampling(), 8)
    np.testing.assert_array_equal(padded.tokens, bigram(table, [[4], [7]], Sampling(), 8).tokens)


def test_the_penalty_applies_to_tokens_of_the_prompt_and_of_the_sample():
    rng, sampling = np.random.default_rng(3), Sampling(temperature=0, repetition_penalty=3.0)
    table, prompt = rng.normal(size=(VOCAB, VOCAB)), np.array([[3, 1, 4], [PADDING, PADDING, 0], [PADDING, 5, 9]])
    table[:, PADDING] += 2  # column -1 is the last token: padding must not count as that token
    tokens, log_probs = bigram(table, prompt, sampling, 9)
    for row, said, found in zip(prompt, tokens, log_probs, strict=True):
        text = row.tolist()
        for token, log_prob in zip(said, found, strict=True):
            logits = table[text[-1]]
            assert token == plain(logits, np.isin(np.arange(VOCAB), text), sampling).argmax()
            assert log_prob == pytest.approx(log_softmax(logits)[token], abs=1e-5)
            text.append(token)
    assert (bigram(table, prompt, GREEDY, 9).tokens != tokens).any(axis=1).all()


CHAIN = 6 * np.roll(np.eye(VOCAB), 1, axis=0)  # 3, 2, 1, 0, 10, 9, ...


@pytest.mark.parametrize("limit", [None, 4])
def test_a_sample_ends_at_the_end_token_and_the_loop_ends_with_the_last_sample(limit):
    calls = []

    def listen(tokens: np.ndarray) -> np.ndarray:
        calls.append(np.asarray(tokens).tolist())
        return np.zeros(4, bool)

    prompt = [[PADDING, 3], [9, 1], [PADDING, 7], [END, 5]]
    tokens, log_probs = bigram(CHAIN, prompt, GREEDY, 20, limit, end=END, listen=listen)
    for row, (_, last) in enumerate(prompt):
        np.testing.assert_array_equal(tokens[row, :last], np.arange(last)[::-1])
        np.testing.assert_array_equal(tokens[row, last:], PADDING)
        np.testing.assert_allclose(log_probs[row, :last], 6 - np.log(np.exp(6) + 10), atol=1e-5)
        np.testing.assert_array_equal(log_probs[row, last:], 0)
    assert calls == tokens[:, :7].T.tolist()


@pytest.mark.parametrize("limit", [None, 4])
def test_a_listener_can_end_samples(limit):

    def listen(tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens, [9, 4])

    def pad(*row: int) -> list[int]:
        return [*row, *[PADDING] * (6 - len(row))]

    tokens = bigram(CHAIN, [[7], [2], [10], [5]], GREEDY, 6, limit, listen=listen).tokens
    np.testing.assert_array_equal(tokens, [pad(6, 5, 4), pad(1, 0, 10, 9), pad(9), pad(4)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 0.0}, "min_p is 0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_an_impossible_sampling_raises_an_error_that_names_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        Sampling(**fields)
