"""Objectives against scipy, quadrature, brute-force sums and Monte Carlo."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from gen.families.vae import losses
from gen.networks import gaussian
from gen.networks.gaussian import Gaussian

RNG = np.random.default_rng(0)


def random_gaussian(*shape: int) -> Gaussian:
    return Gaussian(jnp.asarray(RNG.normal(size=shape), jnp.float32), jnp.asarray(RNG.normal(size=shape), jnp.float32))


def test_gaussian_log_prob_agrees_with_scipy():
    q, x = random_gaussian(5, 3), RNG.normal(size=(5, 3)).astype(np.float32)
    expected = stats.norm.logpdf(x, q.mean, np.exp(q.log_std))
    np.testing.assert_allclose(gaussian.gaussian_log_prob(jnp.asarray(x), q), expected, rtol=1e-4, atol=1e-5)


def test_a_gaussian_sample_is_the_mean_plus_noise_times_the_standard_deviation():
    q, noise = random_gaussian(4), jnp.asarray([0.0, 1.0, -1.0, 2.0])
    np.testing.assert_allclose(q.sample(noise), q.mean + np.exp(q.log_std) * noise, rtol=1e-6)


def test_gaussian_kl_is_the_monte_carlo_mean_of_the_log_ratio():
    q, p = (Gaussian(jnp.array([m]), jnp.array([s])) for m, s in (([0.5, -1.0], [-0.7, 0.3]), ([0.0, 1.0], [0.4, 0.1])))
    z = q.sample(jnp.asarray(RNG.normal(size=(200_000, 2)), jnp.float32))
    ratio = np.asarray(gaussian.gaussian_log_prob(z, q) - gaussian.gaussian_log_prob(z, p), np.float64)
    error = ratio.std(0) / math.sqrt(len(z))
    assert (np.abs(gaussian.gaussian_kl(q, p)[0] - ratio.mean(0)) < 4 * error).all()


def test_gaussian_kl_is_zero_from_itself_and_positive_from_others():
    q = random_gaussian(20)
    np.testing.assert_allclose(gaussian.gaussian_kl(q, q), 0, atol=1e-6)
    assert (gaussian.gaussian_kl(q, random_gaussian(20)) > 0).all()


@pytest.mark.parametrize("logit", [-100.0, -3.0, 0.0, 0.5, 100.0])
def test_bernoulli_masses_are_sigmoids(logit):
    one, zero = (float(losses.bernoulli_log_prob(jnp.float32(logit), jnp.float32(x))) for x in (1, 0))
    assert one == pytest.approx(-np.logaddexp(0, -logit), abs=1e-6)
    assert zero == pytest.approx(-np.logaddexp(0, logit), abs=1e-6)


LOGITS = [0.0, 1e-6, 5e-3, 0.0099, -0.0101, 0.03, -0.3, 1.0, -5.0, 12.0, 40.0, -40.0]


def test_continuous_bernoulli_integrates_to_one():
    nodes, weights = np.polynomial.legendre.leggauss(200)  # exact enough for exp(40 x)
    x, logits = ((nodes + 1) / 2).astype(np.float32), np.array(LOGITS, np.float32)
    log_p = jax.jit(losses.continuous_bernoulli_log_prob)(jnp.asarray(logits)[:, None], jnp.asarray(x)[None])
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)) @ (weights / 2), 1, atol=2e-5)


def test_the_gradient_of_the_continuous_bernoulli_is_x_minus_its_mean():
    """This is an exponential family: d log p / d logit = x - E[x], which is finite and smooth in the logit."""

    def mean(l: float) -> float:
        def density(x: float) -> float:
            return math.exp(l * x - max(l, 0))

        return integrate.quad(lambda x: x * density(x), 0, 1)[0] / integrate.quad(density, 0, 1)[0]

    gradient = jax.jit(jax.vmap(jax.grad(losses.continuous_bernoulli_log_prob), in_axes=(0, None)))
    found = gradient(jnp.asarray(LOGITS), jnp.float32(0.3))
    np.testing.assert_allclose(found, [0.3 - mean(l) for l in LOGITS], atol=5e-5)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_discretized_logistic_sums_to_one_over_the_levels(levels):
    x = jnp.linspace(-1, 1, levels)[:, None, None]
    mean = jnp.asarray([-3.0, -1.0, -0.2, 0.0, 0.997, 5.0])[None, :, None]
    log_scale = jnp.asarray([-7.0, -4.0, -1.0, 0.0, 3.0, 10.0])[None, None, :]
    log_p = jax.jit(losses.discretized_logistic_log_prob, static_argnums=3)(mean, log_scale, x, levels)
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(0), 1, atol=1e-4)


def test_a_mass_of_the_discretized_logistic_is_the_difference_of_its_distribution_function():
    x, half = 2 * 7 / 16 - 1, 1 / 16
    expected = math.log(np.diff(stats.logistic.cdf([x - half, x + half], 0.3, 0.2)).item())
    found = losses.discretized_logistic_log_prob(jnp.float32(0.3), jnp.log(jnp.float32(0.2)), jnp.float32(x), 17)
    assert float(found) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_discretized_logistic_has_finite_values_and_gradients(levels):
    x, mean, log_scale = np.meshgrid(np.linspace(-1, 1, levels), [-50, 0, 0.99, 50], [-7, 0, 20, 100])

    def log_p(mean: jax.Array, log_scale: jax.Array, x: jax.Array) -> jax.Array:
        return losses.discretized_logistic_log_prob(mean, log_scale, x, levels)

    values = jax.jit(jax.vmap(jax.value_and_grad(log_p, (0, 1))))(
        *(np.float32(a).ravel() for a in (mean, log_scale, x))
    )
    for value in jax.tree.leaves(values):
        bad = ~np.isfinite(value)
        assert not bad.any(), np.stack([mean.ravel()[bad], log_scale.ravel()[bad], x.ravel()[bad]], axis=1)


def test_free_bits_are_the_maximum_of_floor_and_average_with_its_gradient():
    def total(kl):
        return losses.free_bits(kl, kl.mean(0), 0.5).mean(0)

    kl = jnp.asarray([[0.1, 2.0], [0.3, 0.2]])  # averages 0.2 and 1.1; the second has an example below the floor
    np.testing.assert_allclose(total(kl), [0.5, 1.1], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda kl: total(kl).sum())(kl), [[0, 0.5], [0, 0.5]])


def test_the_importance_weighted_bound_is_the_log_of_a_mean_and_does_not_overflow():
    log_w = np.array([[1.0, -500.0], [2.0, -501.0], [3.0, -500.0]], np.float32)
    expected = np.log(np.exp(log_w.astype(np.float64) - log_w.max(0)).mean(0)) + log_w.max(0)
    np.testing.assert_allclose(losses.importance_weighted_bound(jnp.asarray(log_w)), expected, rtol=1e-6)
    np.testing.assert_array_equal(losses.importance_weighted_bound(jnp.asarray(log_w[:1])), log_w[0])


X, N = 1.2, 50_000
PARAMS = {"theta": jnp.float32(0.8), "phi": jnp.float32(0.1), "sigma": jnp.float32(0.1)}


def toy_log_weight(params: dict, z: Sequence[jax.Array], q: Gaussian) -> jax.Array:
    standard = Gaussian(jnp.zeros_like(z[0]), jnp.zeros_like(z[0]))
    log_px = gaussian.gaussian_log_prob(jnp.full_like(z[0], X), Gaussian(params["theta"] * z[0], standard.log_std))
    return (log_px + gaussian.gaussian_log_prob(z[0], standard) - gaussian.gaussian_log_prob(z[0], q))[..., 0]


def toy_posterior(params: dict, eps: jax.Array) -> tuple[list[jax.Array], Gaussian]:
    q = Gaussian(jnp.full_like(eps, X) * params["phi"], jnp.zeros_like(eps) + params["sigma"])
    return [q.sample(eps)], q


def plain(params: dict, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
    z, q = toy_posterior(params, eps)
    bound = losses.importance_weighted_bound(toy_log_weight(params, z, q))
    return bound, bound


def doubly(params: dict, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
    z, q = toy_posterior(params, eps)
    return losses.doubly_reparameterized(lambda z: toy_log_weight(params, z, jax.lax.stop_gradient(q)), z)


def gradients(objective: Callable, k: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the bounds [N] and the gradients {name: [N]} of N independent estimates with k samples each."""
    eps = jax.random.normal(jax.random.key(k), (N, k, 1, 1))

    def one(eps):
        (_, bound), grads = jax.value_and_grad(lambda p: [v.sum() for v in objective(p, eps)][::-1], has_aux=True)(
            PARAMS
        )
        return bound, grads

    return jax.device_get(jax.jit(jax.vmap(one))(eps))


@pytest.fixture(scope="module")
def estimates():
    return {k: (gradients(plain, k), gradients(doubly, k)) for k in (1, 4, 16)}


def test_the_bound_rises_with_the_number_of_samples_and_stays_below_the_likelihood(estimates):
    means = [plain[0].mean(dtype=np.float64) for plain, _ in estimates.values()]
    exact = stats.norm.logpdf(X, 0, math.sqrt(1 + float(PARAMS["theta"]) ** 2))
    assert means == sorted(means)
    assert means[0] < means[1] - 0.01 < means[2]
    assert 0 < exact - means[-1] < 0.02


def test_the_bound_of_one_sample_is_the_elbo(estimates):
    theta, phi, sigma = (float(PARAMS[name]) for name in ("theta", "phi", "sigma"))
    variance = math.exp(2 * sigma)
    log_px = -0.5 * (gaussian.LOG_2PI + (X - theta * phi * X) ** 2 + theta**2 * variance)
    kl = 0.5 * (variance + (phi * X) ** 2 - 1 - 2 * sigma)
    bounds = estimates[1][0][0].astype(np.float64)
    assert abs(bounds.mean() - (log_px - kl)) < 4 * bounds.std() / math.sqrt(N)


@pytest.mark.parametrize("k", [1, 4, 16])
def test_doubly_reparameterized_gradients_are_unbiased_and_vary_less_in_the_encoder(estimates, k):
    (bound, reference), (same_bound, found) = estimates[k]
    np.testing.assert_allclose(same_bound, bound, rtol=1e-5, atol=1e-5)
    for name in PARAMS:
        difference = found[name].astype(np.float64) - reference[name]
        assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(N) + 1e-5, name
        assert abs(reference[name].mean(dtype=np.float64)) > 1e-4, f"{name}: nothing to compare"
    np.testing.assert_allclose(found["theta"], reference["theta"], rtol=1e-3, atol=1e-3)
    for name in ("phi", "sigma"):
        assert found[name].var() < reference[name].var(), name
