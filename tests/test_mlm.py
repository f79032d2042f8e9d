"""The masked language model: its masks, its bound on the likelihood, and the texts that it writes."""

import itertools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, softmax
from test_lm import MASKED, PROMPTS, SGD, SPEC, T, averages, engine_of, first, on_one_device, writer
from test_transformer import END, KEY, SMALL, VOCAB, quickly, reference

from gen.core import GenerativeModel, State
from gen.families.language import MLM, mlm
from gen.networks.transformer import Architecture

READER = Architecture(layers=1, width=16, heads=4, norm="rms", bias=False, tied=False)
MASK = VOCAB


def reader(config: MLM, of_mask: np.ndarray) -> tuple[GenerativeModel, State]:
    """A model that predicts the token that it sees, and where it sees the mask has the logits `of_mask` [V]. Compiled."""
    model = config.build(SPEC, 100)
    state = first(model)
    table = np.zeros((16, VOCAB + 1), np.float32)
    table[:VOCAB, :VOCAB], table[MASK, :VOCAB] = 20 * np.eye(VOCAB), of_mask
    params = state.params["transformer"] | {
        "embedding": {"embedding": jnp.eye(VOCAB + 1, 16)},
        "norm": {"scale": jnp.full(16, 1 / 4)},  # RMSNorm makes the vectors of the embedding four times as long
        "head": {"kernel": jnp.asarray(table)},
    }
    compiled = {"update": on_one_device(model.update), "evaluate": on_one_device(model.evaluate)}
    return model._replace(**compiled), replace(state, params={"transformer": params})


def plain_batch(tokens: np.ndarray, start: int = 0) -> dict[str, np.ndarray]:
    """Windows of the tokens [B, T], after a first token that does not count."""
    n = len(tokens)
    whole = np.concatenate([np.full((n, 1), 1), tokens], axis=1).astype(np.int32)
    counted = np.ones((n, T + 1), np.uint8)
    counted[:, 0] = 0
    row = np.arange(start, start + n, dtype=np.int32)
    ones = {"weight": np.ones(n, np.float32), "bytes": np.full(n, 2 * T, np.int32)}
    return {"tokens": whole, "counted": counted, "row": row, "index": row} | ones


def test_chosen_tokens_are_shown_as_the_mask_a_random_token_or_themselves():
    config = MLM(network=READER)
    model, state = reader(config, 40.0 * np.eye(VOCAB)[3])
    batch: Any = plain_batch(np.full((16000, T), 5))
    batch["counted"][:, 4:6], batch["weight"][12000:] = 0, 0
    sums = jax.device_get(model.evaluate(state, batch, KEY))
    assert "bits_per_byte" not in sums and "bits_per_byte" not in model.protocol
    chosen, right, nats = int(sums["loss"][1]), int(sums["accuracy"][0]), float(sums["loss"][0])
    assert sums["accuracy"][1] == chosen
    assert stats.binomtest(chosen, 12000 * (T - 2), 0.15).pvalue > 1e-3
    masks = round(nats / 20) - (chosen - right)  # a mask costs 40 nats here, and a random token 20
    others = chosen - right - masks
    assert nats == pytest.approx(40 * masks + 20 * others, rel=1e-4)
    assert (
        stats.chisquare([masks, others, right], np.array([0.8, 0.1 * 10 / 11, 0.1 + 0.1 / 11]) * chosen).pvalue > 1e-3
    )


def test_ends_of_documents_are_never_masked_at_a_fixed_rate():
    """Positions restart there, which would show them. The rate is the fraction of the other tokens that count."""
    rng = np.random.default_rng(6)
    batch: Any = plain_batch(np.where(rng.random((16000, T)) < 0.4, END, 5))
    batch["counted"][:, 4:6] = 0
    others = int((batch["counted"] * (batch["tokens"] != END)).sum())
    for rate in (0.15, 1.0):
        model, state = reader(MLM(network=READER, rate=rate), 40.0 * np.eye(VOCAB)[3])
        sums = jax.device_get(model.evaluate(state, batch, KEY))
        assert sums["accuracy"][1] == sums["loss"][1]
        assert stats.binomtest(int(sums["loss"][1]), others, rate).pvalue > 1e-3
        assert "ends are not masked" in model.protocol["loss"]["tokens"]
    hidden = {"tokens": np.full_like(batch["tokens"], END)}
    assert model.evaluate(state, batch | hidden, KEY)["loss"][1] == 0
    bound, state = reader(MLM(network=READER, rate=None), np.zeros(VOCAB))
    assert bound.evaluate(state, batch | hidden, KEY)["accuracy"][1] > 0, "the bound has the nats of ends too"


P = softmax(np.random.default_rng(4).normal(size=VOCAB))


@pytest.fixture(scope="module")
def unigram() -> tuple[GenerativeModel, State]:
    """A model that predicts each masked token with the frequencies P."""
    return reader(MLM(network=READER, rate=None, optim=SGD), np.log(P))


@pytest.mark.slow
def test_the_bound_for_independent_tokens_is_their_entropy_on_average(unigram):
    """In evaluation and in the loss of an update."""
    model, state = unigram
    tokens = np.random.default_rng(5).choice(VOCAB, (40, 200, T), p=P)
    entropies, bounds, losses = [], [], []
    for i, some in enumerate(tokens):
        batch = plain_batch(some, start=200 * i)
        sums = jax.device_get(model.evaluate(state, batch, KEY))
        metrics = model.summarize(sums)
        assert sums["loss"][1] == some.size and 0 < sums["accuracy"][1] < some.size
        assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2) / 2, rel=1e-5)
        bounds.append(metrics["loss"])
        losses.append(float(model.update(state, batch, jax.random.key(i))[1]["loss"]))
        entropies.append(-np.log(P)[some].mean())
    for found in (bounds, losses):
        off = np.array(found) - entropies
        error = off.std(ddof=1) / math.sqrt(len(off))
        assert error < 0.02
        assert abs(off.mean()) < 4 * error


def test_every_position_that_can_be_written_is_a_target(unigram):
    model, state = unigram
    after, _ = model.update(state, plain_batch(np.full((200, T), 5)), KEY)
    moved = np.abs(after.params["transformer"]["position"]["embedding"]).max(1)
    assert moved.shape == (T,) and (moved > 0).all()


def test_tokens_that_do_not_count_are_never_masked():
    """Except the first of a row, which is not a position of this model."""
    engine, batch = engine_of(MASKED), plain_batch(np.tile(np.arange(1, 7), (8, 2)))
    state, rows = engine.init(), 0
    batch["counted"][:, 5] = 0
    for row in range(8):

        def nats(place: int, token: int, row: int = row) -> float:
            tokens, weight = batch["tokens"].copy(), np.eye(8, dtype=np.float32)[row]
            tokens[row, place] = token
            return float(engine.evaluate(state, batch | {"tokens": tokens, "weight": weight})["loss"][0])

        assert nats(5, 5) == nats(0, 9)
        if nats(5, 5) > 0:
            rows += 1
            assert abs(nats(5, 5) - nats(5, 9)) > 1e-4
    assert rows > 4


def test_masked_tokens_are_written_in_turns_between_prefix_and_suffix():
    """Two tokens are written in the same one of two turns half of the time. Otherwise either of them may be the first."""
    given = {"prefix": PROMPTS[1:], "suffix": PROMPTS[1:, :2]}
    made = writer(MASKED, mlm.Request(n=400, tokens=2, turns=2, temperature=0.7, top_k=6))(given)
    assert made["samples"].shape == made["log_probs"].shape == (400, 2)
    assert ((made["samples"] >= 0) & (made["samples"] < VOCAB)).all()
    params = averages(MASKED)["transformer"]

    def log_p(a: int, b: int) -> np.ndarray:
        logits = reference(params, SMALL, [5, 9, 2, 1, a, b, 5, 9], causal=False)
        return log_softmax(logits[4:6, :VOCAB], axis=-1)

    alone, counts = log_p(MASK, MASK), np.zeros(3)
    after_a = [log_p(a, MASK)[1] for a in range(VOCAB)]
    after_b = [log_p(MASK, b)[0] for b in range(VOCAB)]
    for (a, b), found in zip(made["samples"].tolist(), made["log_probs"], strict=True):
        ways = [(alone[0, a], alone[1, b]), (alone[0, a], after_a[a][b]), (after_b[b][a], alone[1, b])]
        off = np.abs(np.array(ways) - found).max(1)
        assert off.min() < 1e-4
        counts[off.argmin()] += 1
    assert stats.chisquare(counts, [200, 100, 100]).pvalue > 1e-3


def test_many_turns_write_one_token_after_the_other():
    """Each token has the probability given the prompt and the tokens written before, in some order."""
    made, params = writer(MASKED, mlm.Request(n=2, tokens=3, turns=500))({"prompt": PROMPTS}), averages(MASKED)
    np.testing.assert_array_equal(made["prompt"], np.repeat(PROMPTS, 2, axis=0))
    for prompt, said, found in zip(made["prompt"], made["samples"], made["log_probs"], strict=True):
        assert ((said >= 0) & (said < VOCAB)).all()
        before, off = prompt[prompt >= 0].tolist(), []
        for order in itertools.permutations(range(3)):
            text, log_probs = [*before, *[MASK] * 3], np.zeros(3)
            for i in order:
                place = len(before) + i
                logits = reference(params["transformer"], SMALL, text, causal=False)[place, :VOCAB]
                text[place] = int(said[i])
                log_probs[i] = log_softmax(logits)[said[i]]
            off.append(np.abs(log_probs - found).max())
        assert min(off) < 1e-4 < max(off)


def test_written_tokens_have_the_frequencies_of_the_model_and_depend_only_on_their_sample(unigram):
    model, state = unigram
    request = mlm.Request(n=1500, tokens=4, turns=3, temperature=0.7, top_k=5)
    said, few = (
        jax.device_get(quickly(lambda s, n=n: model.generate(s, KEY, {}, replace(request, n=n)))(state))["samples"]
        for n in (1500, 3)
    )
    np.testing.assert_array_equal(few, said[:3])
    kept = np.sort(np.argsort(-P)[:5])
    expected = P[kept] ** (1 / 0.7)
    counts = [(said == token).sum() for token in kept]
    assert sum(counts) == said.size == 6000
    assert stats.chisquare(counts, 6000 * expected / expected.sum()).pvalue > 1e-3
