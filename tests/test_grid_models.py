"""Models of grids of tokens: exact likelihoods, cached decoding, labels and guidance, and the order of a masked model's turns."""

import itertools
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax
from test_transformer import KEY, quickly

from gen.core import Feature, GenerativeModel, State
from gen.errors import UserError
from gen.families.grid import GridLM, GridMLM, grid, lm, mlm
from gen.families.grid.grid import GridModel
from gen.families.grid.network import choose, fold_in
from gen.networks.positions import PADDING, grid_rotations, locate_cells, rotate, rotations
from gen.networks.transformer import Architecture

SMALL = Architecture(layers=2, width=16, heads=4)
ROTARY = replace(SMALL, positions="rotary", norm="rms", activation="swiglu", kv_heads=2, bias=False, qk_norm=True)
CLASSES = 3


def spec_of(shape: tuple[int, ...], vocab: int, levels: int | None = None) -> dict[str, Feature]:
    axes = ("row", "column", "book")[: len(shape)]
    tokens = Feature(shape, "int32", vocab=vocab, axes=axes, levels=levels)
    return {"tokens": tokens, "label": Feature((), "int32", classes=CLASSES)}


SPACES = {  # tiny spaces of grids, and the models that are summed over all of their grids
    "learned": (GridLM(network=SMALL, conditional=True), (2, 2), 3),
    "rotary": (GridLM(network=ROTARY), (2, 2), 3),
    "inner axis": (GridLM(network=ROTARY, inner_layers=1, conditional=True), (2, 1, 2), 3),
    "inner axis of a sequence": (GridLM(network=SMALL, inner_layers=2), (2, 2), 3),
}
GUIDED = GridLM(network=SMALL, conditional=True, label_dropout=0.3)
INNER = replace(GUIDED, network=ROTARY, inner_layers=1)
MASKED = GridMLM(network=SMALL, conditional=True, label_dropout=0.3)
MASKED_INNER = replace(MASKED, network=ROTARY, inner_layers=1)


@cache
def trained(config: GridModel, shape: tuple[int, ...], vocab: int, levels: int | None = None) -> tuple[GenerativeModel, State]:
    """A model with random parameters, large enough for each of them to matter."""
    model = config.build(spec_of(shape, vocab, levels), 100)
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.5, x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else np.zeros(x.shape), x.dtype)

    return model, jax.tree.map(draw, jax.eval_shape(model.init, KEY))


def every_grid(shape: tuple[int, ...], vocab: int) -> np.ndarray:
    cells = int(np.prod(shape))
    return np.array(list(itertools.product(range(vocab), repeat=cells))).reshape(-1, *shape)


def batch_of(tokens: np.ndarray, label: int | np.ndarray = 1) -> dict[str, np.ndarray]:
    n = len(tokens)
    row = np.arange(n, dtype=np.int32)
    return {"tokens": tokens, "label": np.broadcast_to(label, n).astype(np.int32), "row": row, "weight": np.ones(n, np.float32)}


def sums_of(model: GenerativeModel, state: State, batch: dict, key: jax.Array = KEY) -> dict[str, tuple[float, float]]:
    mapped = jax.vmap(model.evaluate, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=1)
    return jax.device_get(quickly(mapped)(state, jax.tree.map(lambda x: x[None], batch), key))


def parts_of(config: GridModel, shape: tuple[int, ...], vocab: int):
    """Returns the functions of a model, and its parameters."""
    _, state = trained(config, shape, vocab)
    own = grid_of(config, shape, vocab)
    return own, state.params


def grid_of(config: GridModel, shape: tuple[int, ...], vocab: int):
    from gen.families.grid.network import make_network

    facts = config.grid(spec_of(shape, vocab))
    if isinstance(config, GridLM):
        return lm.CausalGrids(config, make_network(config, facts, causal=True))
    assert isinstance(config, GridMLM)
    return mlm.MaskedGrids(config, make_network(config, facts, causal=False))


@pytest.mark.parametrize("name", SPACES)
def test_the_probabilities_of_all_grids_add_up_to_one(name):
    config, shape, vocab = SPACES[name]
    parts, params = parts_of(config, shape, vocab)
    grids = every_grid(shape, vocab)
    _, metrics = quickly(parts.evaluate)(params, batch_of(grids), jax.random.split(KEY, len(grids)))
    nats = np.asarray(metrics["nll"], np.float64)
    assert nats.std() > 0.5
    np.testing.assert_allclose(np.exp(-nats).sum(), 1, rtol=1e-5)
