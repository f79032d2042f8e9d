"""Losses of the language models against numpy, the tokens that count in them, and the texts that the models write."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import assert_close
from scipy.special import log_softmax, logsumexp
from test_transformer import ARCHS, END, KEY, SMALL, VOCAB, quickly, random_like, reference

from gen import core
from gen.config import Parallel
from gen.core import Feature, GenerativeModel, Params, State
from gen.errors import UserError
from gen.families.language import LM, MLM, Seq2Seq, lm, middle, mlm
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

rearrange = jax.jit(middle.move_middles, static_argnums=(2, 3, 4))


def batch_of(n: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of several documents. Few tokens count in the first row, and none in the last two."""
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
    """A batch in which two tokens count, fewer than there are devices."""
    batch = batch_of(seed=1)
    counted = np.zeros_like(batch["counted"])
    counted[1, 4] = counted[5, 7] = 1
    return batch | {"counted": counted}


@cache
def model_of(config: core.Family) -> GenerativeModel:
    """The model, with random parameters, so that each one matters, and other averages."""
    model = config.build(PAIRS if isinstance(config, Seq2Seq) else SPEC, 100)

    def init(key: jax.Array) -> State:
        state = first(model)
        return replace(state, params=random_like(state.params), ema=random_like(state.ema, seed=1))

    return model._replace(init=init)


def first(model: GenerativeModel) -> State:
    """A state of zeros."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(model.init, KEY))


@cache
def engine_of(config: core.Family, devices: int = 4) -> runtime_engine.Engine:
    return runtime_engine.compile_engine(model_of(config), Parallel(devices=devices), 0, 8)


def on_one_device(function: Callable) -> Callable:
    """The function of (state, batch, key) under an axis "data" of size one."""
    mapped = jax.vmap(function, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=1)

    def on_one(state: State, batch: Any, key: jax.Array) -> Any:
        return mapped(state, jax.tree.map(lambda x: x[None], batch), key)

    return quickly(on_one)


def by_document(params: Params, arch: Architecture, row: np.ndarray) -> np.ndarray:
    """Logits [T, V] of a row of documents, each read alone."""
    begins = [at for at in np.flatnonzero(row == END).tolist() if at]
    return np.concatenate([reference(params, arch, part) for part in np.split(row, begins)])


def logits_of(config: Any, params: Params, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Logits [B, T, V] of the targets."""
    arch, said = config.network, batch["tokens"][:, :-1]
    if isinstance(config, LM):
        return np.stack([by_document(params["transformer"], arch, row) for row in said])
    read = [row[np.cumsum(row == END) == 0] for row in batch["source"]]
    memory = [reference(params["encoder"], arch, row, causal=False, readout=False) for row in read]
    return np.stack([reference(params["decoder"], arch, x, memory=m) for x, m in zip(said, memory, strict=True)])


def nats_of(logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(nats of each target, its weight), [B, T] each."""
    nats = -np.take_along_axis(log_softmax(logits, axis=-1), batch["tokens"][:, 1:, None], axis=-1)[..., 0]
    return nats, batch["counted"][:, 1:] * batch["weight"][:, None]


@pytest.mark.parametrize("config", [TINY, SEQ2SEQ], ids=["lm", "seq2seq"])
def test_evaluation_equals_numpy_with_the_averaged_parameters(config):
    """Each document is read alone."""
    model, engine, batch = model_of(config), engine_of(config), batch_of()
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


def test_a_rearranged_row_is_read_as_a_single_text():
    """Even if it was cut from a window of several documents."""
    some = jax.device_get(rearrange(batch_of(), KEY, 0.5, VOCAB, END))
    assert 0 < some.moved.sum() < 7 and (some.tokens[some.moved][:, 1:-1] == END).any()
    params = averages(TINY)
    nats, log_z = quickly(TINY.model(SPEC, 100).nats)(params, lm.Examples(some.tokens, some.counted, some.moved))
    for row, moved, found, normalizer in zip(some.tokens, some.moved, nats, log_z, strict=True):
        logits = (reference if moved else by_document)(params["transformer"], TINY.network, row[:-1])
        np.testing.assert_allclose(found, -log_softmax(logits, axis=-1)[range(T), row[1:]], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(normalizer, logsumexp(logits, axis=-1), rtol=1e-4, atol=1e-4)  # pyright: ignore


@pytest.mark.parametrize("batch", [batch_of(), sparse()], ids=["uneven", "sparse"])
def test_an_update_descends_the_mean_over_all_tokens_that_count(batch):
    """On four devices as on one. The gradient along a direction is checked by finite differences in float64."""
    engine = engine_of(QUIET)
    before = jax.device_get(engine.init().params)
    after, metrics = engine.update(engine.init(), batch)

    def objective(params: Params) -> tuple[float, float]:
        logits = logits_of(QUIET, params, batch)
        nats, weight = nats_of(logits, batch)
        share = weight / weight.sum()
        squares = np.asarray(logsumexp(logits, axis=-1)) ** 2
        return (nats * share).sum(), (nats * share).sum() + 0.1 * (squares * share).sum()

    def along(h: float) -> float:
        moved = jax.tree.map(lambda p, d: p.astype(np.float64) + h * d, before, direction)
        return objective(moved)[1]

    assert float(metrics["loss"]) == pytest.approx(objective(before)[0], rel=1e-5)
    rng = np.random.default_rng(7)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), before)
    dots = jax.tree.map(lambda a, b, d: ((a - np.asarray(b)) / 0.5 * d).sum(), before, after.params, direction)
    assert sum(jax.tree.leaves(dots)) == pytest.approx((along(1e-5) - along(-1e-5)) / 2e-5, rel=1e-3)
    one = engine_of(QUIET, devices=1)
    state, same = one.update(one.init(), batch)
    assert_close((after.params, metrics), (state.params, same), 1e-5)


@pytest.mark.parametrize("config", [TINY, MASKED, SEQ2SEQ], ids=["lm", "mlm", "seq2seq"])
@pytest.mark.slow
def test_accumulated_steps_are_weighted_by_their_tokens(config):
    """Two steps on the halves of a batch, which have few tokens and many, are a step on the whole and one on nothing."""
    batch, first_half = batch_of(), np.arange(8) < 4
    counted = batch["counted"].sum(1) * batch["weight"]
    assert counted[~first_half].sum() > 1.5 * counted[first_half].sum()
    config = replace(config, network=replace(config.network, layers=1), optim=replace(SGD, accumulate=2))
    model = model_of(config)
    update = on_one_device(model.update)

    def train(*rows: np.ndarray) -> Params:
        state = model.init(KEY)
        for each in rows:
            state, _ = update(state, batch | {"weight": batch["weight"] * each}, KEY)
        return state.params

    whole = train(np.ones(8, np.float32), np.zeros(8, np.float32))
    assert_close(whole, train(first_half, ~first_half), 1e-5)


@pytest.mark.parametrize("config", [TINY, MASKED, SEQ2SEQ], ids=["lm", "mlm", "seq2seq"])
@pytest.mark.slow
def test_an_update_does_not_depend_on_which_device_has_which_row(config):
    """Dropout, masks and middles depend on the row alone, and the mean is over all devices, so the order of rows is irrelevant."""
    engine, batch = engine_of(config), batch_of()
    order = np.array([7, 2, 5, 0, 6, 3, 1, 4])
    first, second = (
        jax.device_get(engine.update(engine.init(), {name: value[rows] for name, value in batch.items()}))
        for rows in (np.arange(8), order)
    )
    assert_close((first[0].params, first[1]), (second[0].params, second[1]), 1e-5)
    unlike = jax.device_get(engine.update(engine.init(), batch | {"row": batch["row"] + 8}))
    assert abs(unlike[1]["loss"] - first[1]["loss"]) > 1e-3, "other rows must have other noise"
    if config is TINY:
        before = engine.init().params["transformer"]["embedding"]["embedding"]
        moved = np.abs(first[0].params["transformer"]["embedding"]["embedding"] - before).max(1)
        assert (moved[VOCAB:] > 1e-4).all(), "the sentinel tokens must have been read"


@pytest.mark.parametrize("config", [TINY, MASKED, SEQ2SEQ], ids=["lm", "mlm", "seq2seq"])
def test_padded_rows_and_targets_that_do_not_count_change_no_metric(config):
    engine = engine_of(config)
    batch, other = ({name: value.copy() for name, value in batch_of().items()} for _ in range(2))
    batch["counted"][:, -1] = other["counted"][:, -1] = 0
    other["tokens"][-1], other["source"][-1], other["bytes"][-1], other["counted"][-1] = 3, 4, 99, 1
    if config is not MASKED:  # a masked model sees its last token
        other["tokens"][:, -1] = 5 + (batch["tokens"][:, -1] == 5)
    state = engine.init()
    first, second, more = (
        jax.device_get(engine.evaluate(state, x)) for x in (batch, other, other | {"weight": np.ones(8, np.float32)})
    )
    assert_close(first, second, 1e-6)
    assert more["loss"][0] > first["loss"][0] + 1 and more["loss"][1] > first["loss"][1]


@cache
def writer(config: core.Family, request: Any) -> Callable[[Any], dict[str, np.ndarray]]:
    """given -> the generated arrays. Compiled."""
    model = model_of(config)
    run = quickly(lambda state, given: model.generate(state, KEY, given, request))

    def write(given: Any) -> dict[str, np.ndarray]:
        return jax.device_get(run(model.init(KEY), given))

    return write


def averages(config: core.Family) -> Params:
    """The parameters that a model writes with."""
    return model_of(config).init(KEY).ema


PROMPTS = np.array([[PADDING, PADDING, 3, 4], [5, 9, 2, 1]], np.int32)


def check_text(
    params: Params, arch: Architecture, before: list[int], said: np.ndarray, found: np.ndarray, **given: Any
):
    """Checks that the log-probabilities equal one whole pass, until the end of the sample."""
    n = int((said != PADDING).sum())
    assert (said[n:] == PADDING).all() and (found[n:] == 0).all() and END not in said[: n - 1]
    assert n == len(said) or said[n - 1] == END
    logits = reference(params, arch, [*before, *said[: n - 1].tolist()], **given)[len(before) - 1 :, :VOCAB]
    np.testing.assert_allclose(found[:n], log_softmax(logits, axis=-1)[range(n), said[:n]], atol=1e-4)


def test_a_causal_model_continues_each_prompt_and_with_a_window_beyond_its_context():
    made, params = writer(WINDOW, lm.Request(n=12, tokens=14))({"prompt": PROMPTS}), averages(WINDOW)
    np.testing.assert_array_equal(made["prompt"], np.repeat(PROMPTS, 12, axis=0))
    for prompt, said, found in zip(made["prompt"], made["samples"], made["log_probs"], strict=True):
        check_text(params["transformer"], WINDOW.network, prompt[prompt >= 0].tolist(), said, found)
    assert (made["samples"] >= 0).sum(1).max() > T, "at least one sample must be longer than the context"
    assert made["samples"].max() < VOCAB
    assert len(np.unique(made["samples"], axis=0)) > 20


@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ({}, [END]),
        ({"prefix": [[3, 4, 5]], "suffix": [[7, 8]]}, [VOCAB, 3, 4, 5, VOCAB + 1, 7, 8, VOCAB + 2]),
    ],
    ids=["document", "middle"],
)
def test_prompts_look_like_the_texts_of_training(given, prompt):
    model = model_of(TINY)

    def prompt_of(key: jax.Array, given: Any) -> jax.Array:
        return model.generate(model.init(KEY), key, given, lm.Request(n=2, tokens=3))["prompt"]

    given = {name: np.array(value, np.int32) for name, value in given.items()}
    np.testing.assert_array_equal(jax.jit(prompt_of)(KEY, given), [prompt] * 2)


def ask(config: core.Family, request: Any, **given: Any) -> Callable[[], Any]:
    """A function that generates from arrays of these shapes."""
    model = model_of(config)
    state = jax.eval_shape(model.init, KEY)
    arrays = {name: np.ones(shape, np.int32) for name, shape in given.items()}
    return lambda: jax.eval_shape(lambda s: model.generate(s, KEY, arrays, request), state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(replace, TINY, fill_in_the_middle=1.5), "fill_in_the_middle is 1.5"),
        (partial(replace, TINY, fill_in_the_middle=-0.1), "fill_in_the_middle is -0.1"),
        (partial(replace, TINY, ema=1.0), "ema is 1.0"),
        (partial(replace, TINY, z_loss=-1.0), "z_loss is -1.0"),
        (partial(replace, MASKED, rate=0.0), "rate is 0.0"),
        (partial(replace, MASKED, rate=1.1), "rate is 1.1"),
        (partial(replace, MASKED, ema=-0.1), "ema is -0.1"),
        (partial(replace, SEQ2SEQ, ema=1.0), "ema is 1.0"),
        (partial(replace, SEQ2SEQ, z_loss=-1.0), "z_loss is -1.0"),
        (partial(lm.Request, tokens=0), "tokens is 0"),
        (partial(lm.Request, n=0), "n is 0"),
        (partial(lm.Request, n=100_001), "at most 100000 samples"),
        (partial(lm.Request, top_k=0), "top_k is 0"),
        (partial(lm.Request, repetition_penalty=0.0), "repetition_penalty is 0"),
        (partial(mlm.Request, n=100_001), "at most 100000 samples"),
        (partial(mlm.Request, min_p=2.0), "min_p is 2"),
        (partial(mlm.Request, turns=0), "turns is 0"),
        (partial(mlm.Request, tokens=0), "tokens is 0"),
        (partial(TINY.build, {"image": Feature((2, 2, 1))}, 1), "needs tokens, and the data have image"),
        (partial(SEQ2SEQ.build, SPEC, 1), "--data.pairs separate"),
        (partial(TINY.build, {"tokens": Feature((9,), "int32", vocab=5)}, 1), "the data have none"),
        (ask(TINY, lm.Request(), prompt=(1, T + 1)), "a prompt has 13 tokens, and the model's context is 12"),
        (ask(QUIET, lm.Request(), prefix=(1, 2), suffix=(1, 2)), "not trained to fill in the middle"),
        (
            ask(MASKED, mlm.Request(tokens=9), prompt=(1, 4)),
            "the prompt has 4 tokens and 9 more are requested, but the context is 12",
        ),
        (ask(MASKED, mlm.Request(), prompt=(1, T)), "12 tokens and 0 more are requested"),
        (ask(SEQ2SEQ, lm.Request()), "--source"),
        (ask(SEQ2SEQ, lm.Request(), source=(1, SOURCE + 1)), "a source has 7 tokens, and the model reads 6"),
    ],
)
def test_impossible_configs_and_requests_raise_errors_that_name_the_fix(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_tiny_models_keep_their_family_and_their_kind_of_positions():
    for config in (TINY, MASKED, SEQ2SEQ):
        small = config.tiny()
        assert (small.network.layers, small.network.width) == (2, 16)
        assert type(small) is type(config) and small.network.positions == config.network.positions


def test_families_without_an_encoder_refuse_separate_sources():
    source = {"source": Feature((4,), "int32", vocab=8, end=0), "tokens": Feature((9,), "int32", vocab=8, end=0)}
    for family in (LM(), MLM()):
        with pytest.raises(UserError, match="no encoder for their sources"):
            family.build(source, 10)


@pytest.mark.slow
def test_a_model_in_float64_generates():
    spec = {"tokens": Feature((9,), "int32", vocab=8, end=0)}
    with jax.enable_x64(True):
        model = LM(dtype="float64", param_dtype="float64").tiny().build(spec, 10)
        state = model.init(jax.random.key(0))
        request = model.request(n=2, tokens=5)
        made = jax.jit(lambda s: model.generate(s, jax.random.key(1), {}, request))(state)
    assert made["samples"].shape == (2, 5)
