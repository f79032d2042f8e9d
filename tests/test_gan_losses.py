"""Adversarial objectives against their formulas in numpy, their optima, and an objective from outside of gen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import build as parts
from scipy import special

from gen import axis, config
from gen.config import Config
from gen.data.images import Images
from gen.errors import UserError
from gen.families.gan import (
    GAN,
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Objective,
    Relativistic,
    RelativisticAverage,
    Wasserstein,
)
from gen.families.gan.losses import Smoothed, feature_matching
from gen.networks import discriminator, generator
from gen.optim import Optimizer

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(scale=2, size=(2, 16)).astype(np.float32)

log_sigmoid = special.log_expit  # and log(1 - sigmoid(s)) is log_sigmoid(-s)


class Formula(NamedTuple):
    """The losses of an objective in numpy: D's of real scores, fake scores and the target; G's of real and fake scores."""

    discriminator: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    generator: Callable[[np.ndarray, np.ndarray], np.ndarray]


def logistic(r: np.ndarray, f: np.ndarray, t: float) -> np.ndarray:
    return -t * log_sigmoid(r) - (1 - t) * log_sigmoid(-r) - log_sigmoid(-f)


def squares(r: np.ndarray, f: np.ndarray, t: float) -> np.ndarray:
    return ((r - t) ** 2 + f**2) / 2


def difference(r: np.ndarray, f: np.ndarray, t: float) -> np.ndarray:
    return f - r


def hinge(r: np.ndarray, f: np.ndarray, t: float) -> np.ndarray:
    return -np.minimum(0, r - 1) - np.minimum(0, -f - 1)


def pairs(r: np.ndarray, f: np.ndarray, t: float) -> np.ndarray:
    return -log_sigmoid(r - f)


def averages(above: np.ndarray, below: np.ndarray, t: float = 1.0) -> np.ndarray:
    return -log_sigmoid(above - below.mean()) - log_sigmoid(above.mean() - below)


def negated(r: np.ndarray, f: np.ndarray) -> np.ndarray:
    return -f


FORMULAS: dict[type[Objective], Formula] = {
    Minimax: Formula(logistic, lambda r, f: log_sigmoid(-f)),
    NonSaturating: Formula(logistic, lambda r, f: -log_sigmoid(f)),
    LeastSquares: Formula(squares, lambda r, f: (f - 1) ** 2 / 2),
    Wasserstein: Formula(difference, negated),
    Hinge: Formula(hinge, negated),
    Relativistic: Formula(pairs, lambda r, f: -log_sigmoid(f - r)),
    RelativisticAverage: Formula(averages, lambda r, f: averages(f, r)),
}


def with_target(objective: type[Objective], target: float) -> Objective:
    """The objective with this target for real images; without smoothing if the target is 1."""
    return objective() if target == 1 else objective(smoothing=1 - target)  # pyright: ignore[reportCallIssue]


def by_shards(function: Callable, n: int) -> Callable:
    """The mean over n devices of a function of arrays [B, ...], of which each device holds B / n examples."""

    def on_device(*parts: jax.Array) -> jax.Array:
        return axis.mean(function(*parts))

    mapped = jax.pmap(on_device, "data", out_axes=None, devices=jax.devices()[:n])

    def call(*arrays: np.ndarray) -> jax.Array:
        return mapped(*(a.reshape(n, -1, *a.shape[1:]) for a in arrays))

    return call


def on_one_device(function: Callable, real: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """The loss of a batch on one device. Objectives need an axis "data" even there."""
    mapped = jax.vmap(function, axis_name="data")
    return np.asarray(mapped(jnp.asarray(real)[None], jnp.asarray(fake)[None])[0])


@pytest.mark.parametrize("kind", FORMULAS)
def test_an_objective_equals_its_formula(kind):
    real, fake = REAL.astype(np.float64), FAKE.astype(np.float64)
    for target in (1.0, 0.7) if issubclass(kind, Smoothed) else (1.0,):
        expected = FORMULAS[kind].discriminator(real, fake, target)
        found = on_one_device(with_target(kind, target).discriminator, REAL, FAKE)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    found = on_one_device(kind().generator, REAL, FAKE)
    np.testing.assert_allclose(found, FORMULAS[kind].generator(real, fake), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_an_objective_has_finite_gradients_at_large_scores(kind, player):
    large, loss = jnp.asarray([-1e4, -50.0, 0.0, 50.0, 1e4]), getattr(kind(), player)

    def total(real: jax.Array, fake: jax.Array) -> jax.Array:
        return loss(real, fake).sum()

    grads = jax.vmap(jax.grad(total, (0, 1)), axis_name="data")
    assert np.isfinite(grads(jnp.repeat(large, 5)[:, None], jnp.tile(large, 5)[:, None])).all()


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_facts_of_an_objective_are_true(kind):
    ours = kind()
    scores = on_one_device(ours.discriminator, REAL, FAKE)
    if kind is not Wasserstein:  # its loss is unbounded, so it has no saturation
        at_zero = on_one_device(ours.discriminator, 0 * REAL, 0 * FAKE)
        np.testing.assert_allclose(at_zero, ours.loss_at_zero, rtol=1e-6)
    shifted = on_one_device(ours.discriminator, REAL + 1, FAKE + 1)
    assert ours.shift_invariant == np.allclose(shifted, scores, rtol=1e-4)
    alone = np.concatenate([on_one_device(ours.discriminator, REAL[i : i + 1], FAKE[i : i + 1]) for i in range(16)])
    assert ours.couples == (not np.allclose(alone, scores, rtol=1e-4))


@pytest.mark.parametrize("kind", [kind for kind in FORMULAS if issubclass(kind, Smoothed)])
def test_smoothing_must_be_a_fraction(kind):
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match=f"smoothing is {smoothing}; it must be at least 0 and below 1"):
            kind(smoothing=smoothing)


# Images of three kinds, 8 real and 8 generated: p = (4, 3, 1) / 8 and q = (1, 2, 5) / 8.
KINDS_REAL, KINDS_FAKE = np.repeat([0, 1, 2], [4, 3, 1]), np.repeat([0, 1, 2], [1, 2, 5])
P, Q = np.bincount(KINDS_REAL) / 8, np.bincount(KINDS_FAKE) / 8
OPTIMA = {  # the optimal score of each kind
    (Minimax, 1.0): np.log(P / Q),  # Goodfellow et al. 2014, proposition 1
    (Minimax, 0.9): np.log(0.9 * P / (0.1 * P + Q)),
    (LeastSquares, 1.0): P / (P + Q),  # Mao et al. 2017, equation 3
    (LeastSquares, 0.9): 0.9 * P / (P + Q),
    (Relativistic, 1.0): np.log(P / Q) + 3,  # over all pairs; only differences count
}


@pytest.mark.parametrize(("kind", "target"), OPTIMA)
def test_the_gradient_of_the_discriminator_is_zero_only_at_its_optimum(kind, target):
    real, fake = (k.ravel() for k in np.meshgrid(KINDS_REAL, KINDS_FAKE))

    def loss(scores: jax.Array) -> jax.Array:
        return with_target(kind, target).discriminator(scores[real], scores[fake]).mean()

    best = jnp.asarray(OPTIMA[kind, target], jnp.float32)
    np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-6)
    assert (np.abs(jax.grad(loss)(best + jnp.asarray([0.3, -0.3, 0.3]))) > 1e-2).all()


def test_the_hinge_is_minimal_at_the_sign_of_the_difference():
    def loss(scores: np.ndarray) -> float:
        return float(Hinge().discriminator(jnp.asarray(scores[KINDS_REAL]), jnp.asarray(scores[KINDS_FAKE])).mean())

    best = np.sign(P - Q)
    for off in 0.1 * np.concatenate([np.eye(3), -np.eye(3)]):
        assert loss(best + off) > loss(best) + 1e-3


def test_scores_of_zero_are_the_optimum_of_relativistic_averages_between_equal_distributions():
    def loss(scores: jax.Array) -> jax.Array:
        return RelativisticAverage().discriminator(scores[KINDS_REAL], scores[KINDS_REAL]).mean()

    gradient = jax.vmap(jax.grad(loss), axis_name="data")(jnp.zeros((1, 3)))
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("target", [0.5, 0.7, 0.9])
def test_the_loss_of_a_real_image_is_minimal_at_the_smoothed_target(target):
    def slope(kind: type[Objective], score: float) -> float:
        return float(jax.grad(with_target(kind, target).discriminator)(score, 0.0))

    assert slope(NonSaturating, special.logit(target)) == pytest.approx(0, abs=1e-6)
    assert slope(LeastSquares, target) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("target", [1.0, 0.9, 0.6])
@pytest.mark.parametrize("kind", [NonSaturating, LeastSquares])
def test_the_minimal_loss_is_the_smallest_over_a_grid_of_scores(kind, target):
    objective, scores = with_target(kind, target), jnp.linspace(-20, 20, 4001)
    found = objective.discriminator(scores[:, None], scores[None]).min()
    assert float(found) == pytest.approx(objective.min_loss, abs=1e-4)


def numerical_gradient(function: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """The gradient by central differences, float64."""
    x, h = np.asarray(x, np.float64), 1e-5
    steps = h * np.eye(x.size).reshape(-1, *x.shape)
    return np.array([(function(x + step) - function(x - step)) / (2 * h) for step in steps]).reshape(x.shape)


class Coupled(NamedTuple):
    """A scalar of features [B, F] of real and generated images: ours on a shard, and its value on the global batch."""

    ours: Callable
    expected: Callable


def average_loss(player: str) -> Callable:
    def loss(r: jax.Array, f: jax.Array) -> jax.Array:
        return getattr(RelativisticAverage(), player)(r.sum(1), f.sum(1)).mean()

    return loss


COUPLED = {
    "relativistic averages, D": Coupled(
        average_loss("discriminator"), lambda r, f: averages(r.sum(1), f.sum(1)).mean()
    ),
    "relativistic averages, G": Coupled(average_loss("generator"), lambda r, f: averages(f.sum(1), r.sum(1)).mean()),
    "feature matching": Coupled(feature_matching, lambda r, f: ((r.mean(0) - f.mean(0)) ** 2).sum()),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_a_loss_that_couples_the_batch_couples_the_global_batch_on_any_number_of_devices(name, shards):
    real, fake = RNG.normal(size=(2, 8, 5)).astype(np.float32)
    weights = RNG.normal(size=(5, 3)).astype(np.float32)

    def gradient(r: jax.Array, f: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda w: COUPLED[name].ours(jnp.tanh(r @ w), jnp.tanh(f @ w)))(weights)

    def expected(w: np.ndarray) -> float:
        r, f = (np.tanh(a.astype(np.float64) @ w) for a in (real, fake))
        return COUPLED[name].expected(r, f)

    value = by_shards(gradient, shards)(real, fake)
    np.testing.assert_allclose(value[0], expected(weights.astype(np.float64)), rtol=1e-5)
    np.testing.assert_allclose(value[1], numerical_gradient(expected, weights), rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Tempered(Objective):
    """An objective from outside of gen: logistic losses of scores divided by a temperature."""

    temperature: float = 2.0

    def discriminator(self, real: jax.Array, fake: jax.Array) -> jax.Array:
        return jax.nn.softplus(-real / self.temperature) + jax.nn.softplus(fake / self.temperature)

    def generator(self, real: jax.Array, fake: jax.Array) -> jax.Array:
        return jax.nn.softplus(-fake / self.temperature)


TINY = GAN(
    latent=3,
    generator=generator.Perceptron((8,), norm="none"),
    discriminator=discriminator.Perceptron((8,)),
    discriminator_optim=Optimizer(lr=1e-2),
    objective=Tempered(0.5),
)


def test_an_objective_from_outside_of_gen_trains_a_gan():
    _, _, engine, batch = parts(Config(model=TINY, data=Images(name="digits", batch_size=32), steps=30))
    state, seen = engine.init(), []
    for step in range(30):
        state, metrics = engine.update(state, batch(step))
        seen.append(float(metrics["loss/discriminator"]))
    assert np.isfinite(seen).all()
    assert np.mean(seen[-5:]) < 0.9 * np.mean(seen[:5])


def test_an_objective_from_outside_of_gen_is_part_of_the_config():
    assert config.decode(GAN, config.encode(TINY)) == TINY
    assert config.encode(TINY)["objective"] == {"type": f"{__name__}.Tempered", "temperature": 0.5}
    other = replace(TINY, objective=Tempered(1.0))
    data = Images(name="digits")
    assert config.digest(Config(TINY, data, 1)) != config.digest(Config(other, data, 1))
