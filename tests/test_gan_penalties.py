"""Penalties on the gradient of a critic against analytic gradients and central differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gan_losses import numerical_gradient

from gen.families.gan.penalties import gradient_penalty, squared_gradient

RNG = np.random.default_rng(0)
N_X, N_HIDDEN = 6, 4
IMAGES = RNG.normal(size=(8, 2, 3, 1)).astype(np.float32)
THETA = RNG.normal(size=N_HIDDEN * (N_X + 2)).astype(np.float32)


def split_theta(theta):
    """The weights, biases and output weights of a critic with one hidden layer."""
    w, b, v = theta[: N_HIDDEN * N_X], theta[N_HIDDEN * N_X : -N_HIDDEN], theta[-N_HIDDEN:]
    return w.reshape(N_HIDDEN, N_X), b, v


def critic(theta: jax.Array, x: jax.Array) -> jax.Array:
    w, b, v = split_theta(theta)
    return jnp.tanh(x.reshape(len(x), -1) @ w.T + b[None]) @ v


def squared_norms(theta: np.ndarray, pack: int = 1) -> np.ndarray:
    """Squared norms of the critic's gradient with respect to each image, summed over the images of a pack."""
    w, b, v = split_theta(theta)
    h = np.tanh(IMAGES.astype(np.float64).reshape(len(IMAGES), -1) @ w.T + b)
    return (((1 - h**2) * v @ w) ** 2).sum(1).reshape(-1, pack).sum(1)


def two_sided(square: np.ndarray) -> np.ndarray:
    return (np.sqrt(square) - 1) ** 2


def one_sided(square: np.ndarray) -> np.ndarray:
    return np.maximum(np.sqrt(square) - 1, 0) ** 2


PENALTIES = {  # ours of a critic and images, and in numpy of squared norms
    "squared": (squared_gradient, np.copy),
    "two-sided": (partial(gradient_penalty, one_sided=False), two_sided),
    "one-sided": (partial(gradient_penalty, one_sided=True), one_sided),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_and_its_gradient_equal_the_analytic_ones(name):
    ours, theirs = PENALTIES[name]
    norms = np.sqrt(squared_norms(THETA.astype(np.float64)))
    assert (norms > 1).any() and (norms < 1).any(), "both sides must occur"

    def penalty(theta: jax.Array) -> jax.Array:
        return ours(partial(critic, theta), jnp.asarray(IMAGES))

    def total(theta: jax.Array) -> jax.Array:
        return penalty(theta).sum()

    def expected(theta: np.ndarray) -> float:
        return theirs(squared_norms(theta)).sum()

    np.testing.assert_allclose(penalty(jnp.asarray(THETA)), theirs(norms**2), rtol=1e-4, atol=1e-6)
    found = jax.grad(total)(jnp.asarray(THETA))
    np.testing.assert_allclose(found, numerical_gradient(expected, THETA), rtol=1e-3, atol=1e-4)


def test_the_gradient_of_the_score_of_a_pack_covers_all_of_its_images():
    def score_pairs(x: jax.Array) -> jax.Array:
        return critic(jnp.asarray(THETA), x).reshape(-1, 2).sum(1)

    found = squared_gradient(score_pairs, jnp.asarray(IMAGES))
    np.testing.assert_allclose(found, squared_norms(THETA.astype(np.float64), pack=2), rtol=1e-4)


def test_a_constant_critic_has_penalty_one_and_a_finite_gradient():
    def penalty(scale: jax.Array) -> jax.Array:
        return gradient_penalty(lambda x: scale * x.sum((1, 2, 3)), jnp.asarray(IMAGES), False).mean()

    value, slope = jax.value_and_grad(penalty)(jnp.float32(0))
    assert float(value) == pytest.approx(1, abs=1e-5)
    assert np.isfinite(slope)
