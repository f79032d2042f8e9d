"""Models of grids of tokens: exact likelihoods, cached decoding, labels and guidance, and the order of a masked model's turns."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import assert_close
from scipy.special import log_softmax
from test_transformer import KEY, quickly, reference

from gen.axis import split_keys
from gen.core import Feature
from gen.data import from_arrays
from gen.errors import UserError
from gen.families.conditions import Condition
from gen.families.grid import GridLM, GridMLM, lm, mlm
from gen.families.grid.grid import GridModel, GridRequest, mean_over_tokens, measure_grids
from gen.families.grid.network import GridNetwork, make_network
from gen.families.language import LM
from gen.families.language.sampling import fold_in
from gen.networks.dtypes import module_dtypes
from gen.networks.positions import grid_rotations, locate_cells, rotate
from gen.networks.transformer import Architecture, InnerHead

CLASSES = 3
SMALL = Architecture(layers=2, width=16, heads=4)
ROTARY = replace(SMALL, positions="rotary", norm="rms", activation="swiglu", kv_heads=2, bias=False, qk_norm=True)
GUIDED = GridLM(network=SMALL, conditional=True, label_dropout=0.3)
INNER = replace(GUIDED, network=ROTARY, inner_layers=1)
MASKED = GridMLM(network=SMALL, conditional=True, label_dropout=0.3)
VOCAB = 5


def spec_of(shape: tuple[int, ...], vocab: int = VOCAB, levels: int | None = None) -> dict[str, Feature]:
    axes = ("row", "column", "book")[: len(shape)]
    tokens = Feature(shape, "int32", vocab=vocab, axes=axes, levels=levels)
    return {"tokens": tokens, "label": Feature((), "int32", classes=CLASSES)}


@cache
def parts_of(config: GridModel, shape: tuple[int, ...], vocab: int = VOCAB) -> tuple[Any, Any]:
    """Returns the functions of a model, and random parameters that are large enough for each of them to matter."""
    network = make_network(config, config.grid(spec_of(shape, vocab)), causal=isinstance(config, GridLM))
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype)

    params = jax.tree.map(draw, jax.eval_shape(network.init, KEY))
    parts = lm.CausalGrids(config, network) if isinstance(config, GridLM) else mlm.MaskedGrids(config, network)  # pyright: ignore
    return parts, params


def made_by(
    config: GridModel, shape: tuple[int, ...], request: Any, given: Mapping[str, Any] = {}
) -> dict[str, np.ndarray]:
    """Returns what a model generates."""
    parts, params = parts_of(config, shape)
    sample = quickly(lambda params, keys, given: parts.sample(params, keys, given, request))
    return jax.device_get(sample(params, jax.random.split(KEY, request.n), given))


def every_grid(shape: tuple[int, ...], vocab: int) -> np.ndarray:
    cells = int(np.prod(shape))
    return np.array(list(itertools.product(range(vocab), repeat=cells))).reshape(-1, *shape)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        pytest.param(GridLM(network=SMALL, conditional=True), (2, 2), id="learned"),
        pytest.param(GridLM(network=ROTARY), (2, 2), id="rotary"),
        pytest.param(GridLM(network=ROTARY, inner_layers=1, conditional=True), (2, 1, 2), id="inner axis"),
        pytest.param(GridLM(network=SMALL, inner_layers=2), (2, 2), id="inner axis of a sequence"),
        # A grid of one cell is always masked whole, so the bound is exact.
        pytest.param(GridMLM(network=SMALL, inner_layers=1, conditional=True), (1, 1, 3), id="masked, one cell"),
    ],
)
def test_the_probabilities_of_all_grids_add_up_to_one(config, shape):
    parts, params = parts_of(config, shape, 3)
    grids = every_grid(shape, 3)
    batch = {"tokens": grids, "label": np.ones(len(grids), np.int32)}
    per_token, metrics = quickly(parts.evaluate)(params, batch, jax.random.split(KEY, len(grids)))
    nats = np.asarray(metrics["nll" if isinstance(config, GridLM) else "nll_bound"], np.float64)
    assert nats.std() > 0.5
    np.testing.assert_allclose(np.exp(-nats).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(per_token * grids[0].size, nats, rtol=1e-5)


def test_a_grid_is_read_after_its_label_with_a_vector_for_each_axis():
    """Against the transformer in numpy, whose one table of positions holds the sums over the axes, and over the places of a period."""
    parts, params = parts_of(replace(GUIDED, network=replace(SMALL, period=2)), (2, 3))
    tokens = np.random.default_rng(1).integers(0, VOCAB, (4, 2, 3))
    label = np.array([0, 2, 1, CLASSES])  # the last one is "no label"
    nats, log_z = quickly(parts.nats)(params, {"tokens": tokens}, Condition(jnp.asarray(label)))
    own = dict(params["transformer"])
    rows, columns, period = (own.pop(name)["embedding"] for name in ("position_0", "position_1", "period"))
    places = [(0, 0), *[(r + 1, c + 1) for r in range(2) for c in range(3)]]
    np.testing.assert_array_equal(locate_cells((2, 3)), places)
    own["position"] = {"embedding": np.array([rows[r] + columns[c] + period[r % 2] for r, c in places])}
    for row, own_label, found, z in zip(tokens.reshape(4, 6), label, nats[..., 0], log_z[..., 0], strict=True):
        logits = reference(own, SMALL, [VOCAB + own_label, *row[:-1]])[:, :VOCAB]
        np.testing.assert_allclose(found, -log_softmax(logits, axis=-1)[range(6), row], atol=1e-4)
        np.testing.assert_allclose(z, np.log(np.exp(logits).sum(-1)), atol=1e-4)
    # The beginning of a grid is read as the whole is, as excerpts are in training.
    begun, _ = quickly(parts.nats)(params, {"tokens": tokens[:, :1]}, Condition(jnp.asarray(label)))
    np.testing.assert_allclose(begun, nats[:, :3], atol=1e-5)


def test_tokens_that_do_not_count_are_left_out():
    rng = np.random.default_rng(4)
    nats, counted = rng.random((3, 4, 2), np.float32), np.ones((3, 2, 2, 2), np.float32)
    counted[1, 1], counted[2] = 0, 0
    facts = INNER.grid(spec_of((2, 2, 2)))
    per_token, metrics = measure_grids(facts, {"counted": jnp.asarray(counted)}, jnp.asarray(nats), "nll")
    np.testing.assert_allclose(metrics["nll"], [nats[0].sum(), nats[1, :2].sum(), 0], rtol=1e-5)
    np.testing.assert_allclose(per_token, [nats[0].mean(), nats[1, :2].mean(), 0], rtol=1e-5)
    # Over a split, each token has the same weight, however many its grid has.
    weight = {"weight": jnp.array([1.0, 1.0, 0.0])}
    sums = {name: (float((value * weight["weight"]).sum()), 2.0) for name, value in metrics.items()}
    found = mean_over_tokens(sums | {"loss": (1.0, 2.0)}, "nll")
    np.testing.assert_allclose(found["loss"], (nats[0].sum() + nats[1, :2].sum()) / 12, rtol=1e-5)
    assert found.keys() == {"nll", "loss"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_place_of_a_cell_sees_itself_not_even_by_what_is_rounded(dtype):
    head = InnerHead(SMALL, VOCAB, 4, 1, module_dtypes(dtype, "float32"))
    rng = np.random.default_rng(3)
    tokens, state = rng.integers(0, VOCAB, (50, 2, 4)), jnp.asarray(rng.normal(size=(50, 2, 16)), dtype)
    shapes = jax.eval_shape(head.init, KEY, state, tokens)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes)
    logits = jax.jit(head.apply)
    before = np.asarray(logits(params, state, tokens))
    for place in range(4):
        changed = tokens.copy()
        changed[..., place] = (changed[..., place] + 1) % VOCAB
        after = np.asarray(logits(params, state, changed))
        np.testing.assert_array_equal(after[:, :, : place + 1], before[:, :, : place + 1])
        assert place == 3 or (after[:, :, place + 1 :] != before[:, :, place + 1 :]).all(-1).any()


def test_masks_do_not_depend_on_which_labels_are_left_out(monkeypatch):
    parts, params = parts_of(MASKED, (2, 3))
    n, read = 4000, []

    def watch(self: GridNetwork, params: Any, cells: jax.Array, *_: Any) -> tuple[jax.Array, None]:
        read.append(np.asarray(cells[..., 0]))
        return jnp.zeros((*cells.shape[:2], VOCAB)), None

    monkeypatch.setattr(GridNetwork, "read", watch)
    batch = {"tokens": jnp.zeros((n, 2, 3), int), "label": jnp.zeros(n, int)}
    parts.loss(params, batch, jax.random.split(KEY, n))
    (cells,) = read
    left_out, masked = cells[:, 0] == VOCAB + CLASSES, cells[:, 1:] == parts.network.grid.mask
    for cell in masked.T:
        # The correlation of 4000 independent pairs has a standard deviation of 0.016.
        assert abs(np.corrcoef(left_out, cell)[0, 1]) < 0.08


def test_rotary_positions_rotate_a_part_of_the_head_for_each_axis():
    rng = np.random.default_rng(2)
    x, position = rng.normal(size=(1, 5, 1, 10)), rng.integers(0, 9, (1, 5, 2))
    rotation = grid_rotations(jnp.asarray(position), 10, jnp.float32)
    found = rotate(jnp.asarray(x, jnp.float32), rotation)
    for i, (row, column) in enumerate(position[0]):
        # Five pairs (i, i + 5): three for the rows and two for the columns.
        angle = np.concatenate([row * 1e4 ** (-np.arange(3) / 3), column * 1e4 ** (-np.arange(2) / 2)])
        z = (x[0, i, 0, :5] + 1j * x[0, i, 0, 5:]) * np.exp(1j * angle)
        np.testing.assert_allclose(found[0, i, 0], np.concatenate([z.real, z.imag]), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "shape", "guidance"),
    [
        (GUIDED, (2, 3), 0.0),
        (GUIDED, (2, 3), 1.0),
        (INNER, (2, 2, 3), 2.5),
        pytest.param(GUIDED, (2, 3), 2.5, marks=pytest.mark.slow),
        pytest.param(INNER, (2, 2, 3), 1.0, marks=pytest.mark.slow),
    ],
)
def test_cached_decoding_draws_from_the_guided_logits_of_whole_passes(config, shape, guidance):
    """Guidance 1 is the model with the label, and 0 the model without."""
    request = GridRequest(n=4, temperature=0, guidance=guidance)
    made = made_by(config, shape, request)
    parts, params = parts_of(config, shape)
    np.testing.assert_array_equal(made["labels"], [0, 1, 2, 0])
    assert made["samples"].shape == made["log_probs"].shape == (4, *shape) and made["samples"].dtype == np.int32

    @quickly
    def logits(samples: jax.Array, label: jax.Array) -> jax.Array:
        """[4, T, J, V] of the samples, in one pass."""
        cells = parts.network.grid.split(samples)
        read = jnp.concatenate([parts.network.grid.front(4, Condition(label)), cells[:, :-1]], axis=1)
        output, _ = parts.network.read(params, read, parts.network.positions[:-1])
        return parts.network.logits(params, output, cells)

    labels = made["labels"], np.full(4, CLASSES, np.int32)
    c, u = (np.asarray(logits(made["samples"], label)) for label in labels)
    tokens = made["samples"].reshape(c.shape[:-1])
    np.testing.assert_array_equal(tokens, (u + guidance * (c - u)).argmax(-1))
    expected = np.take_along_axis(log_softmax(c, axis=-1), tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(made["log_probs"].reshape(expected.shape), expected, atol=1e-4)
    if guidance == 0:
        assert (tokens[0] == tokens[1]).all()


def test_a_sample_depends_only_on_its_key_and_its_label():
    few, many = (made_by(GUIDED, (2, 3), GridRequest(n=n, guidance=1.5)) for n in (2, 4))
    np.testing.assert_array_equal(few["samples"], many["samples"][:2])
    assert (many["samples"][0] != many["samples"][3]).any()
    one = made_by(GUIDED, (2, 3), GridRequest(n=2, label=2))
    np.testing.assert_array_equal(one["labels"], [2, 2])


@pytest.mark.parametrize(
    "config", [GUIDED, MASKED, replace(MASKED, network=ROTARY, inner_layers=1)], ids=lambda c: type(c).__name__
)
def test_known_tokens_are_kept_and_the_others_are_written(config):
    tokens = np.random.default_rng(3).integers(0, VOCAB, (1, 3, 2), np.uint16)
    known = np.array([[[1, 1], [1, 0], [0, 0]]], bool)
    request = GridRequest(n=3) if isinstance(config, GridLM) else mlm.Request(n=3, turns=2, guidance=1.5)
    made = made_by(config, (3, 2), request, {"tokens": tokens, "known": known})
    for sample, log_prob in zip(made["samples"], made["log_probs"], strict=True):
        np.testing.assert_array_equal(sample[known[0]], tokens[0][known[0]])
        assert ((sample >= 0) & (sample < VOCAB)).all()
        assert (log_prob[known[0]] == 0).all() and (log_prob[~known[0]] < 0).all()


@pytest.mark.parametrize("order", ["spread", "confidence", "random"])
def test_a_turn_writes_each_cell_given_the_cells_of_earlier_turns(order):
    """Of three cells in two turns, except in random order: one cell is written in the first turn, and floor(3 cos(pi / 4)) = 2 are left."""
    request = mlm.Request(n=6, turns=2, order=order, label=1)
    made = made_by(MASKED, (1, 3), request)
    parts, params = parts_of(MASKED, (1, 3))
    front = parts.network.grid.front(1, Condition(jnp.array([1])))

    @quickly
    def log_p(tokens: jax.Array, masked: jax.Array) -> jax.Array:
        """log p of the three tokens given those that are not masked, [3]."""
        output = parts.output(params, front, tokens[None, :, None], masked[None], None)
        logits = parts.network.logits(params, output, tokens[None, :, None])[0, :, 0]
        return jax.nn.log_softmax(logits)[jnp.arange(3), tokens]

    counts = []
    for sample, found in zip(made["samples"][:, 0], made["log_probs"][:, 0], strict=True):
        ways = []
        for first in itertools.product([False, True], repeat=3):
            now = np.array(first)
            seen = np.where(now, log_p(sample, np.ones(3, bool)), log_p(sample, ~now))
            ways.append((np.abs(seen - found).max(), now.sum()))
        off, count = min(ways)
        assert off < 1e-4
        counts.append(int(count))
    if order != "random":
        assert counts == [1] * 6


def test_the_most_confident_cells_are_written_first():
    unknown = jnp.array([[True, True, False, True, True], [False, True, False, False, False]])
    log_probs = jnp.array([[-3.0, -1.0, 0.0, -2.0, -4.0], [0.0, -9.0, 0.0, 0.0, 0.0]])
    keys, left = jax.random.split(KEY, 2), jnp.array([2, 7])
    now = mlm.choose_confident(unknown, log_probs, left, keys, jnp.float32(0))
    np.testing.assert_array_equal(now, [[0, 1, 0, 1, 0], [0, 1, 0, 0, 0]])
    # Strong noise makes the order random, but writes as many cells.
    several = (jax.random.split(jax.random.key(i), 2) for i in range(9))
    drawn = [mlm.choose_confident(unknown, log_probs, left, keys, jnp.float32(1e6)) for keys in several]
    noisy = {tuple(np.asarray(now)[0]) for now in drawn}
    assert len(noisy) > 2 and all(sum(row) == 2 and not row[2] for row in noisy)


def test_the_spread_order_begins_with_cells_far_apart():
    # Halton's points in base 2 are 0, 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8.
    np.testing.assert_array_equal(mlm.halton((8,)), [0, 4, 2, 6, 1, 5, 3, 7])
    # In bases 2 and 3: (0, 0), (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), ...
    np.testing.assert_array_equal(mlm.halton((2, 3)), [[0, 4, 2], [3, 1, 5]])
    places = np.asarray(jax.jit(lambda keys: mlm.spread((7, 7), keys))(jax.random.split(KEY, 20))).reshape(-1, 7, 7)
    assert len({tuple(order.ravel()) for order in places}) > 10
    for order in places:
        assert sorted(order.ravel()) == list(range(49))
        row, column = np.nonzero(order < 7)
        apart = abs(np.stack([row[:, None] - row, column[:, None] - column]))
        # Steps from cell to cell, around the edges. No two of the first 7 cells touch.
        assert np.minimum(apart, 7 - apart).sum(0)[~np.eye(7, dtype=bool)].min() >= 2


def test_the_first_turn_writes_the_first_cell_of_the_spread_order():
    request = mlm.Request(n=6, turns=2, label=1)
    parts, params = parts_of(MASKED, (1, 3))
    keys = jax.random.split(KEY, 6)
    made = quickly(lambda params, keys: parts.sample(params, keys, {}, request))(params, keys)
    first = np.asarray(mlm.spread((1, 3), fold_in(keys, request.turns))).argmin(1)
    assert len(set(first)) > 1
    front = parts.network.grid.front(1, Condition(jnp.array([1])))
    for tokens, found, cell in zip(made["samples"][:, 0], made["log_probs"][:, 0], first, strict=True):
        # In the first turn, the model sees only masks.
        output = quickly(parts.output)(params, front, tokens[None, :, None], jnp.ones((1, 3), bool), None)
        logits = parts.network.logits(params, output, tokens[None, :, None])[0, :, 0]
        np.testing.assert_allclose(found[cell], jax.nn.log_softmax(logits)[cell, tokens[cell]], atol=1e-4)


def test_the_bound_of_a_uniform_model_is_the_entropy_on_average():
    parts, params = parts_of(MASKED, (2, 4))
    zeros = jax.tree.map(jnp.zeros_like, params)
    batch = {"tokens": np.zeros((4000, 2, 4), np.int32), "label": np.zeros(4000, np.int32)}
    nats = quickly(parts.evaluate)(zeros, batch, jax.random.split(KEY, 4000))[1]["nll_bound"]
    expected, error = 8 * np.log(VOCAB), np.std(nats) / np.sqrt(4000)
    assert 0 < error < 0.02 * expected
    assert abs(np.mean(nats) - expected) < 4 * error


@pytest.mark.parametrize("config", [GUIDED, MASKED], ids=["causal", "masked"])
def test_the_loss_is_the_nats_and_its_gradient_also_of_the_z_loss(config):
    """So the losses of training and of held-out grids compare, with and without a z-loss."""
    config, rng = replace(config, label_dropout=0.0), np.random.default_rng(8)
    batch = {"tokens": rng.integers(0, VOCAB, (4, 2, 3)), "label": rng.integers(0, CLASSES, 4)}
    keys = jax.random.split(KEY, 4)
    parts, params = parts_of(config, (2, 3))
    weighted, _ = parts_of(replace(config, z_loss=0.1), (2, 3))
    mask_keys = () if isinstance(config, GridLM) else (split_keys(keys, 3)[0],)

    def mean_loss(params: Any) -> jax.Array:
        return weighted.loss(params, batch, keys).mean()

    def expected(params: Any) -> tuple[jax.Array, jax.Array]:
        nats, log_z = parts.nats(params, batch, Condition(jnp.asarray(batch["label"])), *mask_keys)
        return nats.mean() + 0.1 * jnp.square(log_z).mean(), nats.mean()

    value, gradient = quickly(jax.value_and_grad(mean_loss))(params)
    (_, nats), both = quickly(jax.value_and_grad(expected, has_aux=True))(params)
    np.testing.assert_allclose(value, nats, rtol=1e-6)
    assert_close(gradient, both, 1e-4)
    if isinstance(config, GridLM):
        np.testing.assert_allclose(value, quickly(weighted.evaluate)(params, batch, keys)[0].mean(), rtol=1e-6)


def test_labels_are_left_out_at_their_rate():
    parts, _ = parts_of(GUIDED, (2, 3))
    label = np.random.default_rng(4).integers(0, CLASSES, 2000)
    found = GUIDED.drop(parts.network.grid, {"label": jnp.asarray(label)}, jax.random.split(KEY, 2000)).label
    dropped = np.asarray(found) == CLASSES
    assert abs(dropped.mean() - 0.3) < 0.04
    np.testing.assert_array_equal(np.asarray(found)[~dropped], label[~dropped])


def test_bits_per_dimension_count_the_pixels_of_the_tokens():
    """Tokens of 2x2 binary pixels: four pixels each."""
    facts = GridLM(network=SMALL).grid(spec_of((3, 2), 16, levels=2))
    assert facts.pixels == 24
    assert GridLM(network=SMALL).grid(spec_of((3, 2), 16)).pixels is None


TEXT = {"tokens": Feature((9,), "int32", vocab=VOCAB)}


@pytest.mark.parametrize(("model", "metric"), [(GUIDED, "nll"), (MASKED, "nll_bound")], ids=["causal", "masked"])
def test_the_protocol_says_what_is_given(model, metric):
    spec = spec_of((2, 2))
    assert model.build(spec, 10).protocol[metric]["conditional"] == ("label",)
    alone = replace(model, conditional=False, label_dropout=0.0)
    assert alone.build(spec, 10).protocol[metric]["conditional"] == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GUIDED.build(TEXT, 1), "needs grids of tokens, and the data have tokens"),
        (lambda: LM(network=SMALL).build(spec_of((2, 3)), 1), "grids of tokens, with the axes row, column"),
        (lambda: GUIDED.build({"tokens": spec_of((2, 3))["tokens"]}, 1), "needs labels"),
        (lambda: GridLM(label_dropout=0.1), "--model.conditional"),
        (lambda: GridLM(network=replace(SMALL, positions="relative")).build(spec_of((2, 3)), 1), "positions rotary"),
        (lambda: GridLM(network=replace(SMALL, context=9)), "network.context is for texts"),
        (
            lambda: replace(INNER, network=replace(ROTARY, heads=8, kv_heads=None)).build(spec_of((2, 2, 3)), 1),
            "too few pairs",
        ),
        (lambda: GridLM(network=SMALL, inner_layers=1).build(spec_of((4,)), 1), "the only axis is row"),
        (lambda: made_by(GridLM(network=SMALL), (2, 3), GridRequest(guidance=2.0)), "without label dropout"),
        (
            lambda: made_by(replace(MASKED, label_dropout=0.0), (2, 3), mlm.Request(guidance=0.0)),
            "without label dropout",
        ),
        (lambda: made_by(GUIDED, (2, 3), GridRequest(n=2, label=9)), "labels 0 to 2"),
        (lambda: made_by(GUIDED, (2, 3), GridRequest(n=2, mode="inpaint")), "mode inpaint keeps a part"),
        (lambda: made_by(MASKED, (2, 3), mlm.Request(n=2, mode="harmonize")), "mode harmonize keeps a part"),
        (lambda: GridRequest(guidance=-1.0), "guidance is -1"),
    ],
)
def test_wrong_settings_are_one_short_error(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_grids_in_memory_are_a_data_set():
    """Tokens may be uint16, as encoded images are."""
    rng = np.random.default_rng(5)
    splits = {
        split: {"tokens": rng.integers(0, VOCAB, (8, 2, 3), np.uint16), "label": rng.integers(0, CLASSES, 8)}
        for split in ("train", "validation", "test")
    }
    data = from_arrays(splits, 4, spec_of((2, 3)))
    assert data.spec == spec_of((2, 3))
    batch = data.batch(0, 0, range(4))
    assert batch["tokens"].shape == (4, 2, 3)
    parts, params = parts_of(GUIDED, (2, 3))
    loss = quickly(parts.loss)(params, batch, jax.random.split(KEY, 4))
    assert loss.shape == (4,) and np.isfinite(loss).all()
