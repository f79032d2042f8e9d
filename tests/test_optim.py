"""Optimizers against optax and numpy; schedules at chosen steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen.core import Params
from gen.errors import UserError
from gen.optim import Group, Optimizer, Piecewise, Rule, Schedule, Warmup, WarmupCosine, WarmupLinear, descend, schedule
from gen.optim.rules import At

RNG = np.random.default_rng(0)


def normal_tree(rng: np.random.Generator, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> Params:
    """Returns normal numbers in arrays of these shapes."""
    return {
        part: {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in leaves.items()}
        for part, leaves in shapes.items()
    }


def tree(seed: int) -> Params:
    shapes = {"decoder": {"kernel": (3, 2), "scale": (2,)}, "encoder": {"bias": (3,), "kernel": (4, 3)}}
    return normal_tree(np.random.default_rng(seed), shapes)


PARAMS = tree(0)


def gradient(step: int) -> Params:
    return jax.tree.map(lambda g: g / (1 + step), tree(step + 1))


def train(tx: optax.GradientTransformation, steps: int = 4, params: Params = PARAMS) -> list[Params]:
    """Returns the parameters after each of some steps."""
    state, seen, update = tx.init(params), [], jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradient(step), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def subtract(a: Params, b: Params) -> Params:
    return jax.tree.map(jnp.subtract, a, b)


def assert_close(a: Params, b: Params, rtol: float = 1e-5) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=1e-6)


def test_adam_with_weight_decay_equals_adamw_of_optax():
    config = Optimizer(lr=0.1, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.2)
    kernels = {part: {name: name == "kernel" for name in leaves} for part, leaves in PARAMS.items()}
    theirs = optax.adamw(0.1, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.2, mask=kernels)
    assert_close(train(config.build(4)), train(theirs))


def test_sgd_has_momentum():
    assert_close(train(Optimizer(rule="sgd", lr=0.1, b1=0.5).build(4)), train(optax.sgd(0.1, momentum=0.5)))


def test_groups_have_their_own_rule_learning_rate_and_decay_and_the_first_match_wins():
    groups = (
        Group("encoder/bias", rule="frozen"),
        Group("encoder", rule="sgd", lr_factor=0.5, weight_decay=0.3),
        Group("kernel$", lr_factor=3.0),
    )
    found = train(Optimizer(lr=0.1, b1=0.0, b2=0.9, weight_decay=0.2, groups=groups).build(4))[-1]
    decayed = optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.05))
    assert_close(found["encoder"]["bias"], PARAMS["encoder"]["bias"], rtol=0)
    assert_close(found["encoder"]["kernel"], train(decayed)[-1]["encoder"]["kernel"])

    def adam(lr: float, decay: float) -> Params:
        return train(optax.adamw(lr, b1=0.0, b2=0.9, weight_decay=decay))[-1]["decoder"]

    assert_close(found["decoder"]["kernel"], adam(0.3, 0.2)["kernel"])
    assert_close(found["decoder"]["scale"], adam(0.1, 0.0)["scale"])


def test_gradients_are_clipped_to_their_global_norm():
    config = Optimizer(rule="sgd", lr=1.0, b1=0.0, clip=0.5)
    moved = subtract(train(config.build(1), 1)[0], PARAMS)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.5, rel=1e-5)
    grads = gradient(0)
    assert_close(moved, jax.tree.map(lambda g: -0.5 * g / optax.tree.norm(grads), grads))


def test_frozen_parameters_do_not_count_in_the_norm_that_is_clipped():
    config = Optimizer(rule="sgd", lr=1.0, b1=0.0, clip=0.5, groups=(Group("encoder", rule="frozen"),))
    moved = subtract(train(config.build(1), 1)[0], PARAMS)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.5, rel=1e-5)


def test_accumulation_equals_one_large_batch():
    config = Optimizer(lr=WarmupLinear(0.1, 0, 0.0), clip=0.1, weight_decay=0.1, accumulate=3)
    micro = train(config.build(6), 6)
    assert_close(micro[:2], [PARAMS, PARAMS], rtol=0)
    assert_close(micro[3:5], [micro[2], micro[2]], rtol=0)

    large = Optimizer(lr=WarmupLinear(0.1, 0, 0.0), clip=0.1, weight_decay=0.1).build(2)
    state, params = large.init(PARAMS), PARAMS
    for update in range(2):
        mean = jax.tree.map(lambda *g: sum(g) / 3, *(gradient(3 * update + i) for i in range(3)))
        updates, state = large.update(mean, state, params)
        params = optax.apply_updates(params, updates)
    assert_close(micro[-1], params)


def test_accumulation_weighs_each_gradient():
    config = Optimizer(rule="sgd", lr=0.5, b1=0.0, accumulate=3)
    tx, weights = config.build(6, weighted=True), [1.0, 0.0, 5.0, 0.0, 0.0, 0.0]
    state, params = tx.init(PARAMS), PARAMS
    for step, weight in enumerate(weights):
        updates, state = tx.update(gradient(step), state, params, weight=jnp.float32(weight))  # pyright: ignore
        params = optax.apply_updates(params, updates)
        if step == 1:
            assert_close(params, PARAMS, rtol=0)
    # Nothing counts in the second update.
    mean = jax.tree.map(lambda a, b: (a + 5 * b) / 6, gradient(0), gradient(2))
    assert_close(params, jax.tree.map(lambda p, g: p - 0.5 * g, PARAMS, mean))


def test_equal_weights_accumulate_like_none():
    config = Optimizer(lr=WarmupLinear(0.1, 0, 0.0), clip=0.1, accumulate=3)
    first, second = config.build(6), config.build(6, weighted=True)
    assert_close(train(first, 6)[-1], train(second, 6)[-1], rtol=1e-6)


def test_every_scalar_may_be_a_schedule_and_is_read_at_its_step():
    """Compares with AdamW written in numpy, with hyper-parameters that jump at step 2."""
    values = {"lr": (0.1, 0.3), "b1": (0.5, 0.9), "b2": (0.9, 0.5), "eps": (1e-2, 1.0), "weight_decay": (0.0, 0.4)}
    schedules = {name: Piecewise((2,), pair) for name, pair in values.items()}
    config = replace(Optimizer(), **schedules)
    found = train(config.build(4))
    p = np.asarray(PARAMS["encoder"]["kernel"], np.float64)
    m = v = np.zeros_like(p)
    for step in range(4):
        lr, b1, b2, eps, decay = (pair[step >= 2] for pair in values.values())
        g = np.asarray(gradient(step)["encoder"]["kernel"], np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        p = p - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * p)
        np.testing.assert_allclose(found[step]["encoder"]["kernel"], p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["sgd", "muon"])
def test_momentum_may_be_a_schedule(rule):
    """A schedule with equal values must act like the number, and one with different values must not."""
    constant, steady, changing = (
        train(Optimizer(rule=rule, lr=0.1, b1=b1).build(3), 3)[-1]
        for b1 in (0.5, Piecewise((1,), (0.5, 0.5)), Piecewise((1,), (0.5, 0.9)))
    )
    assert_close(constant, steady)
    assert np.abs(constant["encoder"]["kernel"] - changing["encoder"]["kernel"]).max() > 1e-3


MATRICES = {
    "dense": {"kernel": (24, 6), "bias": (6,)},
    "wide": {"kernel": (5, 30)},
    "conv": {"kernel": (3, 3, 4, 8)},
    "sound": {"kernel": (3, 8, 8)},
    "video": {"kernel": (2, 3, 3, 2, 8)},
    "layers": {"kernel": (3, 16, 8)},
    "token": {"embedding": (9, 4)},
}


def test_muon_orthogonalizes_matrices_and_leaves_the_rest_to_adam():
    params = normal_tree(RNG, MATRICES)
    tx = Optimizer(rule="muon", lr=1.0).build(1)
    moved = jax.tree.map(np.asarray, jax.jit(lambda grads: tx.update(grads, tx.init(grads), grads)[0])(params))

    # A convolution's kernel is one matrix [*window in, out], and kernels of stacked layers are a matrix each.
    def split(tree: Params) -> list[np.ndarray]:
        single = [tree[name]["kernel"] for name in ("dense", "wide", "conv", "sound", "video")]
        return [np.asarray(x).reshape(-1, x.shape[-1]) for x in (*single, *tree["layers"]["kernel"])]

    matrices = split(moved)
    for matrix in matrices:
        size = np.linalg.svd(matrix, compute_uv=False) / (0.2 * math.sqrt(max(matrix.shape)))
        assert size.min() > 0.5 and size.max() < 1.3, size
    # The singular vectors must stay, so that the update descends.
    for gradient, matrix in zip(split(params), matrices, strict=True):
        u, _, v = np.linalg.svd(gradient, full_matrices=False)
        expected = -0.2 * math.sqrt(max(matrix.shape)) * u @ v
        assert (expected * matrix).sum() / np.linalg.norm(expected) / np.linalg.norm(matrix) > 0.97
    for part, name in (("dense", "bias"), ("token", "embedding")):
        np.testing.assert_allclose(
            moved[part][name], -np.sign(params[part][name]), rtol=1e-4
        )  # Adam's first step is the sign


def test_a_group_may_use_muon():
    config = Optimizer(lr=0.1, groups=(Group("encoder", rule="muon", lr_factor=2.0),))
    found, muon = train(config.build(2), 2)[-1], train(Optimizer(rule="muon", lr=0.2).build(2), 2)[-1]
    assert_close(found["encoder"], muon["encoder"])
    assert_close(found["decoder"], train(optax.adam(0.1), 2)[-1]["decoder"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"groups": (Group("("),)}, "not a regular expression"),
        ({"undecayed": "("}, "not a regular expression"),
        ({"clip": 0.0}, "clip"),
        ({"lr": -1e-3}, "lr is -0.001; it must be at least 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": WarmupCosine(-1e-3, warmup=2)}, "the smallest value of lr is -0.001"),
        ({"lr": WarmupLinear(1e-3, end=-1e-4)}, "the smallest value of lr is -0.0001"),
        ({"b1": 1.5}, "b1 is 1.5; it must be at least 0 and below 1"),
        ({"b1": Warmup(1.0, warmup=5)}, "the largest value of b1 is 1.0"),
        ({"b2": 1.0}, "b2 is 1.0"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": Piecewise((3,), (0.1, -0.1))}, "the smallest value of weight_decay is -0.1"),
        ({"historical": -1.0}, "historical is -1.0"),
    ],
)
def test_an_impossible_optimizer_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Optimizer(**fields)


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        (WarmupCosine(2.0, 10, 0.5), {0: 0, 5: 1.0, 10: 2.0, 55: 1.25, 100: 0.5, 200: 0.5}),
        (WarmupCosine(2.0), {0: 2.0, 25: 1 + math.cos(math.pi / 4), 50: 1.0, 100: 0.0}),
        (WarmupLinear(2.0, 10, 0.5), {0: 0, 5: 1.0, 10: 2.0, 55: 1.25, 100: 0.5, 200: 0.5}),
        (WarmupLinear(2.0), {0: 2.0, 50: 1.0, 100: 0.0}),
        (Warmup(3.0, 10, start=1.0), {0: 1.0, 5: 2.0, 10: 3.0, 100: 3.0}),
        (Warmup(3.0, 0), {0: 3.0, 50: 3.0}),
        (Piecewise((10, 20), (1.0, 2.0, 0.5)), {0: 1.0, 9: 1.0, 10: 2.0, 19: 2.0, 20: 0.5, 100: 0.5}),
        (Piecewise((), (1.0,)), {0: 1.0, 100: 1.0}),
        (WarmupCosine(2.0, 100), {50: 1.0, 99: 1.98}),
        (WarmupCosine(0.0), {0: 0.0, 50: 0.0}),
        (0.3, {0: 0.3, 100: 0.3}),
    ],
    ids=str,
)
def test_a_schedule_has_its_values(shape, points):
    value = schedule(shape, 100)
    for step, expected in points.items():
        assert np.asarray(value(jnp.int32(step))) == pytest.approx(expected, abs=1e-6), step


def test_reads_steps_says_whether_values_depend_on_the_length_of_the_run():
    for shape in (WarmupCosine(2.0, 1), WarmupLinear(2.0, 1), Warmup(2.0, 9), Piecewise((5,), (1.0, 2.0))):
        assert isinstance(shape, Schedule)
        differs = shape.build(10)(7) != shape.build(20)(7)
        assert differs == shape.reads_steps, shape


@pytest.mark.parametrize(
    ("boundaries", "values"), [((5,), (1.0,)), ((5, 4), (1.0, 2.0, 3.0)), ((5, 5), (1.0, 2.0, 3.0)), ((), (1.0, 2.0))]
)
def test_boundaries_that_do_not_ascend_or_fit_are_refused(boundaries, values):
    with pytest.raises(UserError, match="must ascend"):
        Piecewise(boundaries, values)


@pytest.mark.parametrize("kind", [WarmupCosine, WarmupLinear, Warmup])
def test_a_negative_warm_up_is_refused(kind):
    with pytest.raises(UserError, match="warmup"):
        kind(1.0, -5)


def test_the_norm_counts_all_numbers():
    grads = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.float32(2), "c": jnp.ones(3, jnp.bfloat16)}
    assert float(descend.norm(grads)) == pytest.approx(math.sqrt(55 + 4 + 3))
    assert float(descend.norm({})) == 0


@dataclass(frozen=True)
class Factored(Rule):
    """Adafactor's second moments, as a fork would add them."""

    def build(self, at: At) -> optax.GradientTransformation:
        return optax.scale_by_factored_rms(min_dim_size_to_factor=2)


ALL_PARTS = Optimizer(
    lr=0.1, b2=Piecewise((1,), (0.999, 0.99)), weight_decay=0.1, clip=1.0, historical=0.1, accumulate=2
)


@pytest.mark.parametrize(
    "config",
    [Optimizer(), Optimizer(rule="sgd"), Optimizer(rule="muon"), Optimizer(rule=Factored()), ALL_PARTS],
    ids=["adam", "sgd", "muon", "factored", "all parts"],
)
@pytest.mark.slow
def test_the_moments_of_bfloat16_parameters_are_those_of_float32(config):
    """Gradients are the same numbers in both dtypes, so the moments must be the same too, and the parameters nearly."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), normal_tree(np.random.default_rng(3), MATRICES))
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    tx = config.build(3)
    states = {"half": tx.init(half), "whole": tx.init(whole)}
    for step in range(3):
        grads = jax.tree.map(lambda x, step=step: (x * jnp.bfloat16(0.5**step)).astype(jnp.bfloat16), half)
        exact = jax.tree.map(lambda x: x.astype(jnp.float32), grads)
        # Both see the parameters of step 0, so that the moments depend on the gradients alone.
        of_half, states["half"] = tx.update(grads, states["half"], half)
        of_whole, states["whole"] = tx.update(exact, states["whole"], whole)
    jax.tree.map(np.testing.assert_array_equal, states["half"], states["whole"])
    jax.tree.map(np.testing.assert_array_equal, of_half, of_whole)
    moved = optax.apply_updates(half, of_half)
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype(jnp.bfloat16)}


def test_an_average_of_bfloat16_parameters_follows_them():
    """The parameters stand still from step 0 on, so the average has gone 1 - prod_s decay_s of the way."""
    start, end, decay, steps = jnp.ones(64, jnp.bfloat16), jnp.full(64, 1.25, jnp.bfloat16), 0.99, 400
    average = descend.begin_average({"w": start})

    def move(step, average):
        return descend.update_average(average, {"w": end}, decay, step)

    found = np.asarray(jax.lax.fori_loop(0, steps, move, average)["w"])
    left = np.prod(np.minimum(decay, (1 + np.arange(steps)) / (10 + np.arange(steps))))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 1.25 - 0.25 * left, rtol=1e-5)
