"""The language models' losses against numpy, what counts in them and what doesn't, and what they write."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, logsumexp, softmax
from test_contract import assert_close
from test_transformer import ARCHS, END, KEY, SMALL, VOCAB, quickly, random_like, reference

from gen import core
from gen.config import Parallel
from gen.core import Feature, GenerativeModel, State
from gen.errors import UserError
from gen.families.language import LM, MLM, Seq2Seq, lm, mlm
from gen.networks.positions import PADDING
from gen.networks.transformer import Architecture
from gen.optim import Optimizer
from gen.runtime import engine as runtime_engine

T, SOURCE = 12, 6
SPEC = {"tokens": Feature((T + 1,), "int32", vocab=VOCAB, end=END)}
PAIRS = SPEC | {"source": Feature((SOURCE,), "int32", vocab=VOCAB, end=END)}
SGD = Optimizer(rule="sgd", lr=0.5, b1=0.0)
QUIET = LM(network=ARCHS["rotary"], z_loss=0.1, optim=SGD)
NOISE = {"ema": 0.9, "optim": SGD}
TINY = LM(network=replace(SMALL, dropout=0.2, tied=False), fill_in_the_middle=0.9, **NOISE)
WINDOW = replace(TINY, network=ARCHS["rotary"])
MASKED = MLM(network=replace(SMALL, dropout=0.2), rate=None, **NOISE)
SEQ2SEQ = Seq2Seq(network=replace(SMALL, dropout=0.2), **NOISE)

rearranged = jax.jit(lm.middle_last, static_argnums=(2, 3, 4))


def batch_of(n: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of some documents each, of which few tokens count in the first and none in the last two."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCAB, (n, T + 1)) * (rng.random((n, T + 1)) > 0.15)
    counted = rng.random((n, T + 1)) < np.linspace(0.1, 1, n)[:, None]
    counted[:, 0] = counted[-2] = False
    weight = np.arange(n) < n - 1
    source = rng.integers(1, VOCAB, (n, SOURCE))
    source[np.arange(SOURCE) >= rng.integers(1, SOURCE + 1, n)[:, None]] = END
    return {
        "tokens": tokens.astype(np.int32),
        "counted": counted.astype(np.uint8),
        "bytes": rng.integers(5, 50, n, dtype=np.int32),
        "source": source.astype(np.int32),
        "row": np.arange(n, dtype=np.int32),
        "index": np.arange(n, dtype=np.int32),
        "weight": weight.astype(np.float32),
    }


def sparse() -> dict[str, np.ndarray]:
    """A batch of which two tokens count, fewer than there are devices."""
    batch = batch_of(seed=1)
    counted = np.zeros_like(batch["counted"])
    counted[1, 4] = counted[5, 7] = 1
    return batch | {"counted": counted}


@functools.cache
def model_of(config: core.Family) -> GenerativeModel:
    """The model, with parameters of which each one matters, and averages unlike them."""
    model = config.build(PAIRS if isinstance(config, Seq2Seq) else SPEC, 100)

    def init(key: jax.Array) -> State:
        state = first(model)
        return replace(state, params=random_like(state.params), ema=random_like(state.ema, seed=1))

    return model._replace(init=init)


def first(model: GenerativeModel) -> State:
    """A state of zeros."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(model.init, KEY))


@functools.cache
def engine_of(config: core.Family, devices: int = 4) -> runtime_engine.Engine:
    return runtime_engine.compile_engine(model_of(config), Parallel(devices=devices), 0, 8)


def on_one_device(function: Callable) -> Callable:
    """The function of (state, batch, key) under an axis "data" of size one."""
    mapped = jax.vmap(function, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=1)
    return quickly(lambda state, batch, key: mapped(state, jax.tree.map(lambda x: x[None], batch), key))


def by_document(params: Any, arch: Architecture, row: np.ndarray) -> np.ndarray:
    """Logits [T, V] of a row of documents, each alone."""
    begins = [at for at in np.flatnonzero(row == END).tolist() if at]
    return np.concatenate([reference(params, arch, part) for part in np.split(row, begins)])


def logits_of(config: Any, params: Any, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """[B, T, V]."""
    arch, said = config.network, batch["tokens"][:, :-1]
    if isinstance(config, LM):
        functions = [reference if one else by_document for one in batch.get("rearranged", np.zeros(len(said)))]
        return np.stack([f(params["transformer"], arch, row) for f, row in zip(functions, said, strict=True)])
    read = [row[np.cumsum(row == END) == 0] for row in batch["source"]]
    memory = [reference(params["encoder"], arch, row, causal=False, readout=False) for row in read]
    return np.stack([reference(params["decoder"], arch, x, memory=m) for x, m in zip(said, memory, strict=True)])


def nats_of(logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each target, and how much it counts: [B, T]."""
    nats = -np.take_along_axis(log_softmax(logits, axis=-1), batch["tokens"][:, 1:, None], axis=-1)[..., 0]
    return nats, batch["counted"][:, 1:] * batch["weight"][:, None]


def batch_for(config: core.Family) -> dict[str, np.ndarray]:
    """Of a causal model with some rows of which the middle comes last."""
    return jax.device_get(rearranged(batch_of(), KEY, 0.5, VOCAB, END)) if config is TINY else batch_of()


@pytest.mark.parametrize("config", [TINY, SEQ2SEQ], ids=["lm", "seq2seq"])
def test_what_is_evaluated_is_that_of_numpy_by_the_averages(config):
    """Documents are each alone, and a text of which the middle comes last is one, whatever it was cut from."""
    model, engine, batch = model_of(config), engine_of(config), batch_for(config)
    if config is TINY:
        moved = batch["tokens"][batch["rearranged"]]
        assert 0 < len(moved) < 7 and (moved[:, 1:-1] == END).any()
    state = engine.init()
    found = model.summarize(jax.device_get(engine.evaluate(state, batch)))
    logits = logits_of(config, state.ema, batch)
    nats, weight = nats_of(logits, batch)
    loss = (nats * weight).sum() / weight.sum()
    bits = (nats * weight).sum() / math.log(2) / batch["bytes"][:-1].sum()
    expected = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": bits}
    if config is TINY:
        expected["loss_by_place"] = (nats * weight).sum(0) / np.maximum(weight.sum(0), 1)
    else:
        right = logits.argmax(-1) == batch["tokens"][:, 1:]
        expected["accuracy"] = (right * weight).sum() / weight.sum()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert model.summarize({"loss": (1e6, 10), "bits_per_byte": (1, 1)})["perplexity"] == math.exp(30)


@pytest.mark.parametrize("batch", [batch_of(), sparse()], ids=["uneven", "sparse"])
def test_an_update_descends_the_mean_over_all_tokens_that_count(batch):
    """On four devices as on one. Its gradient along a direction is that by differences in float64."""
    engine = engine_of(QUIET)
    before = jax.device_get(engine.init().params)
    after, metrics = engine.update(engine.init(), batch)

    def objective(params: Any) -> tuple[float, float]:
        logits = logits_of(QUIET, params, batch)
        nats, weight = nats_of(logits, batch)
        mean = lambda x: (x * weight).sum() / weight.sum()
        return mean(nats), mean(nats) + 0.1 * mean(np.asarray(logsumexp(logits, axis=-1)) ** 2)

    assert float(metrics["loss"]) == pytest.approx(objective(before)[0], rel=1e-5)
    rng = np.random.default_rng(7)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), before)
    along = lambda h: objective(jax.tree.map(lambda p, d: p.astype(np.float64) + h * d, before, direction))[1]
    dots = jax.tree.map(lambda a, b, d: ((a - np.asarray(b)) / 0.5 * d).sum(), before, after.params, direction)
    assert sum(jax.tree.leaves(dots)) == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=1e-3)
    one = engine_of(QUIET, devices=1)
    state, same = one.update(one.init(), batch)
    assert_close((after.params, metrics), (state.params, same), 1e-5)


@pytest.mark.parametrize("config", [TINY, MASKED, SEQ2SEQ], ids=["lm", "mlm", "seq2seq"])
def test_an_update_does_not_depend_on_which_device_has_which_row(config):
    """Dropout, masks and middles belong to the row, and the mean is of all: four devices, on which few tokens count, do as
    with the rows in any other order."""
    engine, batch = engine_of(config), batch_of()
    order = np.array([7, 2, 5, 0, 6, 3, 1, 4])
    first, second = (
        jax.device_get(engine.update(engine.init(), {name: value[rows] for name, value in batch.items()}))
        for rows in (np.arange(8), order)
    )
    assert_close((first[0].params, first[1]), (second[0].params, second[1]), 1e-5)
    unlike = jax.device_get(engine.update(engine.init(), batch | {"row": batch["row"] + 8}))
    assert abs(unlike[1]["loss"] - first[1]["loss"]) > 1e-3, "other rows have other noise"
    if config is TINY:
        before = engine.init().params["transformer"]["embedding"]["embedding"]
        moved = np.abs(first[0].params["transformer"]["embedding"]["embedding"] - before).max(1)
        assert (moved[VOCAB:] > 1e-4).all(), "the words of the middle were read"


@pytest.mark.parametrize("config", [TINY, MASKED, SEQ2SEQ], ids=["lm", "mlm", "seq2seq"])
def test_padded_rows_and_targets_that_do_not_count_change_nothing(config):
    engine = engine_of(config)
    batch, other = ({name: value.copy() for name, value in batch_for(config).items()} for _ in range(2))
    batch["counted"][:, -1] = other["counted"][:, -1] = 0
    other["tokens"][-1], other["source"][-1], other["bytes"][-1], other["counted"][-1] = 3, 4, 99, 1
    if config is not MASKED:  # which sees it
        other["tokens"][:, -1] = 5 + (batch["tokens"][:, -1] == 5)
    state = engine.init()
    first, second, more = (
        jax.device_get(engine.evaluate(state, x)) for x in (batch, other, other | {"weight": np.ones(8, np.float32)})
    )
    assert_close(first, second, 1e-6)
    assert more["loss"][0] > first["loss"][0] + 1 and more["loss"][1] > first["loss"][1]


WORDS = {"prefix": 100, "suffix": 101, "middle": 102, "end": 0}


def rows_of(n: int, length: int) -> dict[str, np.ndarray]:
    """Rows of which each token is there once, and counts or not."""
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.permutation(99)[:length] + 1 for _ in range(n)]).astype(np.int32)
    counted = (rng.random((n, length)) < 0.5).astype(np.uint8)
    return {"tokens": tokens, "counted": counted, "row": np.arange(n, dtype=np.int32)}


def parts_of(row: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """(before, middle, after) of a rearranged row."""
    suffix, middle = (row.tolist().index(WORDS[name]) for name in ("suffix", "middle"))
    assert row[0] == WORDS["prefix"] and row[-1] == WORDS["end"] and suffix < middle
    return row[1:suffix].tolist(), row[middle + 1 : -1].tolist(), row[suffix + 1 : middle].tolist()


def test_the_middle_comes_last_and_counts_as_before_with_its_end():
    batch = rows_of(3000, 9)
    out = jax.device_get(rearranged(batch, KEY, 0.3, WORDS["prefix"], WORDS["end"]))
    chosen, cuts = out["rearranged"], []
    assert stats.binomtest(int(chosen.sum()), 3000, 0.3).pvalue > 1e-3
    for name in ("tokens", "counted"):
        np.testing.assert_array_equal(out[name][~chosen], batch[name][~chosen])
    for i in np.flatnonzero(chosen):
        before, middle, after = parts_of(out["tokens"][i])
        assert before + middle + after == batch["tokens"][i, :5].tolist()
        count = dict(zip(batch["tokens"][i].tolist(), batch["counted"][i].tolist(), strict=True))
        count |= {100: 0, 101: 0, 102: 0, 0: 1}
        assert out["counted"][i].tolist() == [count[token] for token in out["tokens"][i].tolist()]
        cuts.append((len(before), len(before) + len(middle)))
    expected = {(a, b): (2 - (a == b)) / 36 for a in range(6) for b in range(a, 6)}  # of two uniform draws, sorted
    counts = [cuts.count(pair) for pair in expected]
    assert sum(counts) == len(cuts)
    assert stats.chisquare(counts, [p * len(cuts) for p in expected.values()]).pvalue > 1e-3


def test_what_is_rearranged_depends_on_the_rate_and_the_row_alone():
    batch = rows_of(64, 13)
    every, none, some = (jax.device_get(rearranged(batch, KEY, rate, 100, 0)) for rate in (1.0, 0.0, 0.5))
    assert every["rearranged"].all() and not none["rearranged"].any()
    np.testing.assert_array_equal(none["tokens"], batch["tokens"])
    np.testing.assert_array_equal(none["counted"], batch["counted"])
    order = np.random.default_rng(1).permutation(64)
    other = jax.device_get(rearranged({k: v[order] for k, v in batch.items()}, KEY, 0.5, 100, 0))
    np.testing.assert_array_equal(other["tokens"], some["tokens"][order])
    assert not np.array_equal(
        jax.device_get(rearranged(batch, jax.random.key(1), 0.5, 100, 0))["tokens"], some["tokens"]
    )


READER = Architecture(layers=1, width=16, heads=4, norm="rms", bias=False, tied=False)
MASK = VOCAB


def reader(config: MLM, of_mask: np.ndarray) -> tuple[GenerativeModel, State]:
    """A model that says what it sees at each place, and `of_mask`, logits [V], where it sees the mask. Compiled."""
    model = config.build(SPEC, 100)
    state = first(model)
    table = np.zeros((16, VOCAB + 1), np.float32)
    table[:VOCAB, :VOCAB], table[MASK, :VOCAB] = 20 * np.eye(VOCAB), of_mask
    params = state.params["transformer"] | {
        "embedding": {"embedding": jnp.eye(VOCAB + 1, 16)},
        "norm": {"scale": jnp.full(16, 1 / 4)},  # of vectors that RMSNorm makes four times as long
        "head": {"kernel": jnp.asarray(table)},
    }
    compiled = {"update": on_one_device(model.update), "evaluate": on_one_device(model.evaluate)}
    return model._replace(**compiled), replace(state, params={"transformer": params})


def plain_batch(tokens: np.ndarray, start: int = 0) -> dict[str, np.ndarray]:
    """Tokens [B, T] after a first that doesn't count."""
    n = len(tokens)
    whole = np.concatenate([np.full((n, 1), 1), tokens], axis=1).astype(np.int32)
    counted = np.ones((n, T + 1), np.uint8)
    counted[:, 0] = 0
    row = np.arange(start, start + n, dtype=np.int32)
    ones = {"weight": np.ones(n, np.float32), "bytes": np.full(n, 2 * T, np.int32)}
    return {"tokens": whole, "counted": counted, "row": row, "index": row} | ones


def test_a_share_of_what_counts_is_asked_for_as_a_mask_another_token_or_itself():
    config = MLM(network=READER)
    model, state = reader(config, 40.0 * np.eye(VOCAB)[3])
    batch: Any = plain_batch(np.full((16000, T), 5))
    batch["counted"][:, 4:6], batch["weight"][12000:] = 0, 0
    sums = jax.device_get(model.evaluate(state, batch, KEY))
    assert "bits_per_byte" not in sums and "bits_per_byte" not in model.protocol
    asked, right, nats = int(sums["loss"][1]), int(sums["accuracy"][0]), float(sums["loss"][0])
    assert sums["accuracy"][1] == asked
    assert stats.binomtest(asked, 12000 * (T - 2), 0.15).pvalue > 1e-3
    masks = round(nats / 20) - (asked - right)  # of which each costs 40 nats, and another token 20
    others = asked - right - masks
    assert nats == pytest.approx(40 * masks + 20 * others, rel=1e-4)
    assert stats.chisquare([masks, others, right], np.array([0.8, 0.1 * 10 / 11, 0.1 + 0.1 / 11]) * asked).pvalue > 1e-3


P = softmax(np.random.default_rng(4).normal(size=VOCAB))


@pytest.fixture(scope="module")
def unigram() -> tuple[GenerativeModel, State]:
    """Tells each masked token by its frequency P."""
    return reader(MLM(network=READER, rate=None, optim=SGD), np.log(P))


def test_the_bound_of_independent_tokens_is_their_entropy(unigram):
    """On average; and an update's loss is an estimate of it too."""
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


def test_every_place_that_can_be_written_is_a_target(unigram):
    model, state = unigram
    after, _ = model.update(state, plain_batch(np.full((200, T), 5)), KEY)
    moved = np.abs(after.params["transformer"]["position"]["embedding"]).max(1)
    assert moved.shape == (T,) and (moved > 0).all()


def test_tokens_that_do_not_count_are_always_seen():
    """But the first of a row, which is no place of this model."""
    engine, batch = engine_of(MASKED), plain_batch(np.tile(np.arange(1, 7), (8, 2)))
    state, told = engine.init(), 0
    batch["counted"][:, 5] = 0
    for row in range(8):

        def nats(place: int, token: int, row: int = row) -> float:
            tokens, weight = batch["tokens"].copy(), np.eye(8, dtype=np.float32)[row]
            tokens[row, place] = token
            return float(engine.evaluate(state, batch | {"tokens": tokens, "weight": weight})["loss"][0])

        assert nats(5, 5) == nats(0, 9)
        if nats(5, 5) > 0:
            told += 1
            assert abs(nats(5, 5) - nats(5, 9)) > 1e-4
    assert told > 4


@functools.cache
def writer(config: core.Family, request: Any) -> Callable[[Any], dict[str, np.ndarray]]:
    """given -> what is generated."""
    model = model_of(config)
    run = quickly(lambda state, given: model.generate(state, KEY, given, request))
    return lambda given: jax.device_get(run(model.init(KEY), given))


def averages(config: core.Family) -> Any:
    """The parameters that texts are written with."""
    return model_of(config).init(KEY).ema


PROMPTS = np.array([[PADDING, PADDING, 3, 4], [5, 9, 2, 1]], np.int32)


def test_masked_tokens_are_written_in_turns_between_what_is_given():
    """Of two tokens in two turns, half the time both in the same one, else either before the other."""
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
    """Each has the probability that it has given the prompt and those before, in some order."""
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


def test_written_tokens_have_the_frequencies_of_the_model_and_those_of_a_sample_are_its_own(unigram):
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


def check_text(params: Any, arch: Architecture, before: list[int], said: np.ndarray, found: np.ndarray, **given: Any):
    """The log-probabilities are those of one whole pass, until the end."""
    n = int((said != PADDING).sum())
    assert (said[n:] == PADDING).all() and (found[n:] == 0).all() and END not in said[: n - 1]
    assert n == len(said) or said[n - 1] == END
    logits = reference(params, arch, [*before, *said[: n - 1].tolist()], **given)[len(before) - 1 :, :VOCAB]
    np.testing.assert_allclose(found[:n], log_softmax(logits, axis=-1)[range(n), said[:n]], atol=1e-4)


def test_a_causal_model_goes_on_from_each_prompt_and_through_a_window_beyond_its_context():
    made, params = writer(WINDOW, lm.Request(n=12, tokens=14))({"prompt": PROMPTS}), averages(WINDOW)
    np.testing.assert_array_equal(made["prompt"], np.repeat(PROMPTS, 12, axis=0))
    for prompt, said, found in zip(made["prompt"], made["samples"], made["log_probs"], strict=True):
        check_text(params["transformer"], WINDOW.network, prompt[prompt >= 0].tolist(), said, found)
    assert (made["samples"] >= 0).sum(1).max() > T, "one at least is longer than the context"
    assert made["samples"].max() < VOCAB
    assert len(np.unique(made["samples"], axis=0)) > 20


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ({}, [END]),
        ({"prefix": [[3, 4, 5]], "suffix": [[7, 8]]}, [VOCAB, 3, 4, 5, VOCAB + 1, 7, 8, VOCAB + 2]),
    ],
    ids=["a document", "a middle"],
)
def test_a_causal_model_begins_as_in_training(given, prompt):
    model = model_of(TINY)
    asked = lambda key, given: model.generate(model.init(KEY), key, given, lm.Request(n=2, tokens=3))["prompt"]
    given = {name: np.array(value, np.int32) for name, value in given.items()}
    np.testing.assert_array_equal(jax.jit(asked)(KEY, given), [prompt] * 2)


def test_a_target_is_of_its_source_and_of_what_was_said_before():
    engine, batch = engine_of(SEQ2SEQ), batch_of()
    batch["counted"][:] = np.arange(T + 1) == 5
    batch["source"][:, 3:] = [END, 4, 4]
    state = engine.init()
    loss = lambda **arrays: float(engine.evaluate(state, batch | arrays)["loss"][0])

    def changed(name: str, places: Any, token: int) -> float:
        other = batch[name].copy()
        other[:, places] = token
        return loss(**{name: other})

    base = loss()
    assert changed("source", slice(4, None), 9) == base, "after the end of the source"
    assert changed("source", slice(3, None), END) == base
    assert changed("tokens", slice(6, None), 9) == base, "later targets"
    left = np.concatenate([np.full((8, 3), PADDING), batch["source"][:, :3]], axis=1).astype(np.int32)
    assert loss(source=left) == pytest.approx(base, rel=1e-6)
    for name, place in (("source", 0), ("source", 2), ("tokens", 4), ("tokens", 0)):
        assert abs(changed(name, place, 9) - base) > 1e-3, (name, place)


def test_targets_of_sources_of_different_lengths_are_those_of_each_alone():
    sources, left, right = [[3], [4, 5, 6, 7, 8, 9], [9, 1, 2]], [], []
    for source in sources:
        more = SOURCE - len(source)
        left.append([PADDING] * more + source)
        right.append(source + [END] * more)
    write, params = writer(SEQ2SEQ, lm.Request(n=2, tokens=20)), averages(SEQ2SEQ)
    made, again = (write({"source": np.array(rows, np.int32)}) for rows in (left, right))
    np.testing.assert_array_equal(made["samples"], again["samples"])
    np.testing.assert_array_equal(made["source"], np.repeat(left, 2, axis=0))
    assert made["samples"].shape == (6, T - 1)
    for i, (said, found) in enumerate(zip(made["samples"], made["log_probs"], strict=True)):
        memory = reference(params["encoder"], SMALL, sources[i // 2], causal=False, readout=False)
        check_text(params["decoder"], SMALL, [END], said, found, memory=memory)


def asked(config: core.Family, request: Any, **given: Any) -> Callable[[], Any]:
    model = model_of(config)
    state = jax.eval_shape(model.init, KEY)
    arrays = {name: np.ones(shape, np.int32) for name, shape in given.items()}
    return lambda: jax.eval_shape(lambda s: model.generate(s, KEY, arrays, request), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(TINY, fill_in_the_middle=1.5), "fill_in_the_middle is 1.5"),
        (lambda: replace(TINY, fill_in_the_middle=-0.1), "fill_in_the_middle is -0.1"),
        (lambda: replace(TINY, ema=1.0), "ema is 1.0"),
        (lambda: replace(TINY, z_loss=-1.0), "z_loss is -1.0"),
        (lambda: replace(MASKED, rate=0.0), "rate is 0.0"),
        (lambda: replace(MASKED, rate=1.1), "rate is 1.1"),
        (lambda: replace(MASKED, ema=-0.1), "ema is -0.1"),
        (lambda: replace(SEQ2SEQ, ema=1.0), "ema is 1.0"),
        (lambda: replace(SEQ2SEQ, z_loss=-1.0), "z_loss is -1.0"),
        (lambda: lm.Request(tokens=0), "tokens is 0"),
        (lambda: lm.Request(n=0), "n is 0"),
        (lambda: mlm.Request(turns=0), "turns is 0"),
        (lambda: mlm.Request(tokens=0), "tokens is 0"),
        (lambda: TINY.build({"image": Feature((2, 2, 1))}, 1), "needs tokens, and the data have image"),
        (lambda: SEQ2SEQ.build(SPEC, 1), "--data.pairs separate"),
        (lambda: TINY.build({"tokens": Feature((9,), "int32", vocab=5)}, 1), "the data have none"),
        (asked(TINY, lm.Request(), prompt=(1, T + 1)), "a prompt has 13 tokens, and the model's context is 12"),
        (asked(QUIET, lm.Request(), prefix=(1, 2), suffix=(1, 2)), "not trained to fill in the middle"),
        (asked(MASKED, mlm.Request(tokens=9), prompt=(1, 4)), "4 tokens are given and 9 asked for"),
        (asked(MASKED, mlm.Request(), prompt=(1, T)), "12 tokens are given and 0 asked for"),
        (asked(SEQ2SEQ, lm.Request()), "--source"),
        (asked(SEQ2SEQ, lm.Request(), source=(1, SOURCE + 1)), "a source has 7 tokens, and the model reads 6"),
    ],
)
def test_what_can_not_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_tiny_models_keep_their_kind():
    for config in (TINY, MASKED, SEQ2SEQ):
        small = config.tiny()
        assert (small.network.layers, small.network.width) == (2, 16)
        assert type(small) is type(config) and small.network.positions == config.network.positions


def test_a_source_apart_is_refused_by_what_would_not_see_it():
    source = {"source": Feature((4,), "int32", vocab=8, end=0), "tokens": Feature((9,), "int32", vocab=8, end=0)}
    for family in (lm, mlm):
        with pytest.raises(UserError, match="no encoder for their sources"):
            family.Config().build(source, 10)


def test_a_model_in_double_precision_writes():
    spec = {"tokens": Feature((9,), "int32", vocab=8, end=0)}
    with jax.enable_x64(True):
        model = LM(dtype="float64", param_dtype="float64").tiny().build(spec, 10)
        state = model.init(jax.random.key(0))
        made = jax.jit(lambda s: model.generate(s, jax.random.key(1), {}, model.request(n=2, tokens=5)))(state)
    assert made["samples"].shape == (2, 5)
