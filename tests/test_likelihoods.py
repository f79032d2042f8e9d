"""Likelihoods and priors: masses sum to one, samples have the right moments, and mismatched pixels are refused."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from gen.core import Array, Feature, Params
from gen.errors import UserError
from gen.families.vae import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    GaussianMixture,
    Likelihood,
    Prior,
    StandardNormal,
    VampPrior,
)
from gen.families.vae.priors import Encode
from gen.networks.gaussian import Gaussian as Normal

N = 40_000
GREY, COLOUR = (1, 2, 1), (1, 1, 3)

LIKELIHOODS = [
    Bernoulli(),
    ContinuousBernoulli(),
    Gaussian(0.3),
    Gaussian(),
    DiscretizedLogistic(17),
    DiscretizedLogistic(256),
    DiscretizedLogistic(2),
    DiscretizedLogistic(5, components=3),
]


def outputs_for(likelihood: Likelihood, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Returns random decoder outputs. They give narrow and wide distributions."""
    out = (*shape[:-1], likelihood.outputs(shape[-1]))
    return jnp.asarray(np.random.default_rng(seed).normal(size=out), jnp.float32)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_the_mean_is_the_mean_of_samples(likelihood):
    outputs = outputs_for(likelihood, (1, 2, 3))
    x = np.asarray(samples(likelihood, outputs), np.float64)
    assert x.shape == (N, 1, 2, 3)
    mean = likelihood.mean(outputs)
    assert mean.shape == (1, 2, 3)
    assert (np.abs(x.mean(0) - mean) <= 4.5 * x.std(0) / math.sqrt(N) + 1e-4).all(), (x.mean(0), mean)


def samples(likelihood: Likelihood, outputs: Array) -> Array:
    return jax.jit(likelihood.sample)(jnp.broadcast_to(outputs, (N, *outputs.shape)), jax.random.key(1))


@pytest.mark.parametrize(
    ("likelihood", "shape"),
    [
        (Bernoulli(), GREY),
        (Bernoulli(), COLOUR),
        (DiscretizedLogistic(2), COLOUR),
        (DiscretizedLogistic(17), GREY),
        (DiscretizedLogistic(17, components=3), GREY),
        (DiscretizedLogistic(5, components=4), COLOUR),
        (DiscretizedLogistic(256, components=2), (1, 1, 1)),
    ],
    ids=str,
)
def test_masses_sum_to_one_over_all_images(likelihood, shape):
    values = np.linspace(-1, 1, getattr(likelihood, "levels", 2), dtype=np.float32)
    images = np.array(list(itertools.product(values, repeat=math.prod(shape)))).reshape(-1, *shape)
    log_p = jax.jit(likelihood.log_prob)(outputs_for(likelihood, shape)[None], jnp.asarray(images))
    assert log_p.shape == (len(images),)
    assert np.exp(np.asarray(log_p, np.float64)).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("likelihood", [DiscretizedLogistic(5, components=2), Bernoulli()], ids=str)
def test_samples_have_the_frequencies_that_log_prob_gives(likelihood):
    """The channels of a mixture depend on each other, so pairs of channels are compared."""
    outputs, levels = 2 * outputs_for(likelihood, (1, 1, 2), seed=3), getattr(likelihood, "levels", 2)
    x = samples(likelihood, outputs)
    cells = np.rint((np.asarray(x) + 1) / 2 * (levels - 1)).astype(int).reshape(N, 2)
    values = np.linspace(-1, 1, levels, dtype=np.float32)
    np.testing.assert_allclose(values[cells], np.asarray(x).reshape(N, 2), atol=1e-6)
    found = np.histogramdd(cells, [np.arange(levels + 1) - 0.5] * 2)[0] / N
    images = np.stack(np.meshgrid(values, values, indexing="ij"), axis=-1).reshape(-1, 1, 1, 2)
    expected = np.exp(likelihood.log_prob(outputs[None], jnp.asarray(images))).reshape(levels, levels)
    assert (np.abs(found - expected) < 4.5 * np.sqrt(expected / N) + 1e-5).all()


@pytest.mark.parametrize("std", [None, 0.3])
def test_the_gaussian_agrees_with_scipy_summed_over_pixels(std):
    x, mean, log_std = np.random.default_rng(0).normal(size=(3, 3, 2, 2, 1)).astype(np.float32)
    outputs = np.concatenate([mean, log_std], axis=-1) if std is None else mean
    expected = stats.norm.logpdf(x, mean, std or np.exp(log_std)).sum((1, 2, 3))
    np.testing.assert_allclose(Gaussian(std).log_prob(jnp.asarray(outputs), jnp.asarray(x)), expected, rtol=1e-4)


@pytest.mark.parametrize("logit", [-30.0, 1e-3, 0.5])
def test_the_continuous_bernoulli_integrates_to_one_and_its_samples_follow_it(logit):
    x, weights = np.polynomial.legendre.leggauss(200)
    outputs = jnp.full((200, 1, 1, 1), logit)
    likelihood = ContinuousBernoulli()
    log_p = jax.jit(likelihood.log_prob)(outputs, jnp.asarray(x, jnp.float32)[:, None, None, None])
    density = np.exp(np.asarray(log_p, np.float64))
    assert density @ weights == pytest.approx(1, abs=1e-4)
    assert float(likelihood.mean(outputs[0]).squeeze()) == pytest.approx((density * x) @ weights, abs=1e-4)
    sample = samples(likelihood, jnp.float32(logit))[:5000]

    def distribution(v: np.ndarray) -> np.ndarray:
        return np.expm1(logit * (np.asarray(v, np.float64) + 1) / 2) / np.expm1(logit)

    assert stats.kstest(sample, distribution).pvalue > 1e-3


def test_samples_of_a_saturated_pixel_are_finite(monkeypatch):
    """jax.random.uniform draws 0 once in 2^23 numbers."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    x = ContinuousBernoulli().sample(jnp.asarray([-200.0, -50.0, 0.0, 50.0, 200.0]), jax.random.key(0))
    assert (np.abs(x) <= 1).all(), x


BYTES, DIGITS = Feature((2, 2, 1), levels=256), Feature((2, 2, 1), levels=17)
DEQUANTIZED = Feature((2, 2, 1), levels=256, dequantized=True)
BINARY, UNKNOWN = Feature((2, 2, 1), levels=2), Feature((2, 2, 1))


@pytest.mark.parametrize(
    ("likelihood", "image", "reason"),
    [
        (Bernoulli(), BINARY, None),
        (Bernoulli(), BYTES, "--data.binarize"),
        (Bernoulli(), DEQUANTIZED, "--data.binarize"),
        (Bernoulli(), UNKNOWN, "--data.binarize"),
        (ContinuousBernoulli(), DEQUANTIZED, None),
        (ContinuousBernoulli(), UNKNOWN, None),
        (ContinuousBernoulli(), BYTES, "ContinuousBernoulli is a density.*--data.dequantize"),
        (Gaussian(), DEQUANTIZED, None),
        (Gaussian(0.1), BYTES, "Gaussian is a density"),
        (Gaussian(), BINARY, "Gaussian is a density"),
        (DiscretizedLogistic(256), BYTES, None),
        (DiscretizedLogistic(17), DIGITS, None),
        (DiscretizedLogistic(256), DIGITS, "pixels of 17 levels"),
        (DiscretizedLogistic(256), DEQUANTIZED, "dequantized pixels"),
        (DiscretizedLogistic(256), UNKNOWN, "pixels of None levels"),
    ],
)
def test_a_likelihood_says_why_it_does_not_match_the_pixels(likelihood, image, reason):
    mismatch = likelihood.mismatch(image)
    assert mismatch is None if reason is None else re.search(reason, str(mismatch))


def test_a_discretized_logistic_of_other_levels_is_refused_with_the_fix():
    with pytest.raises(UserError, match=r"--model.likelihood.levels 17"):
        DiscretizedLogistic(256).check(DIGITS)
    DiscretizedLogistic(17).check(DIGITS)
    Bernoulli().check(BYTES)  # not a likelihood of these pixels, but a usual loss


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_uniform_density_of_dequantized_pixels_has_the_bits_of_uniform_levels(levels):
    image = Feature((3, 2, 1), levels=levels, dequantized=True)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, image.shape), jnp.float32)
    nats = ContinuousBernoulli().log_prob(jnp.zeros(image.shape), x) + image.log_cell
    assert -float(nats) / 6 / math.log(2) == pytest.approx(math.log2(levels), abs=1e-5)


def test_the_cell_of_discrete_pixels_has_no_volume_term():
    assert BYTES.log_cell == UNKNOWN.log_cell == 0


def no_encoder(x: Array) -> Normal:
    raise AssertionError("this prior must not call the encoder")


def test_the_standard_normal_prior_agrees_with_scipy():
    prior, z = StandardNormal(), np.float32(np.random.default_rng(0).normal(size=(4, 3, 2)))
    log_p = prior.log_prob({}, no_encoder, jnp.asarray(z))
    np.testing.assert_allclose(log_p, stats.norm.logpdf(z).sum(-1), rtol=1e-5)
    m, s = np.array([0.3, -2.0], np.float32), np.array([0.5, 1.5], np.float32)
    expected = 0.5 * (s**2 + m**2 - 1) - np.log(s)
    np.testing.assert_allclose(prior.kl({}, Normal(jnp.asarray(m), jnp.log(s))), expected, rtol=1e-5)


def draw(prior: Prior, params: Params, encode: Encode, temperature: float) -> np.ndarray:
    def sample(key: Array) -> Array:
        return prior.sample(params, encode, key, 2, temperature)

    return np.asarray(jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), N)), np.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_temperature_is_the_standard_deviation_of_standard_normal_samples(temperature):
    z = draw(StandardNormal(), {}, no_encoder, temperature)
    np.testing.assert_allclose(z.mean(0), 0, atol=4.5 * temperature / math.sqrt(N))
    np.testing.assert_allclose(np.cov(z.T), temperature**2 * np.eye(2), atol=0.03 * temperature**2)


RANDOM = np.random.default_rng(0)
LOGITS = np.array([1.0, 0.0, -1.0, 0.5, 2.0, 0.0, 0.3], np.float32)


def mixture(kind: str, mean: np.ndarray, std: np.ndarray) -> tuple[Prior, Params, Encode, np.ndarray]:
    """Returns a prior with these components, its parameters, its encoder and the weights of the components.

    The VampPrior's encoder is a table: the one pixel of pseudo-input k maps to component k.
    """
    k, means, log_std = len(mean), jnp.asarray(mean, jnp.float32), jnp.log(jnp.asarray(std, jnp.float32))
    if kind == "gaussians":
        params = {"mean": means, "log_std": log_std, "logits": jnp.asarray(LOGITS[:k])}
        return GaussianMixture(k), params, no_encoder, np.exp(LOGITS[:k]) / np.exp(LOGITS[:k]).sum()

    def encode(x: Array) -> Normal:
        index = jnp.rint((x.ravel() + 1) / 2 * (k - 1)).astype(int)
        return Normal(means[index], log_std[index])

    return VampPrior(k), {"pseudo_inputs": jnp.linspace(-1, 1, k).reshape(-1, 1, 1, 1)}, encode, np.full(k, 1 / k)


@pytest.mark.parametrize("kind", ["gaussians", "posteriors"])
@pytest.mark.parametrize("size", [1.0, 0.1, math.exp(-8)])
def test_a_mixture_prior_agrees_with_scipy(kind, size):
    """exp(-8) is the smallest standard deviation of an encoder's head. Each z is near a component, as in training."""
    mean, std = RANDOM.normal(size=(7, 20)).astype(np.float32), size * RANDOM.uniform(1, 1.5, (7, 20))
    z = (mean[RANDOM.integers(0, 7, (3, 5))] + size * RANDOM.normal(size=(3, 5, 20))).astype(np.float32)
    prior, params, encode, weights = mixture(kind, mean, std)
    found = jax.jit(lambda z: prior.log_prob(params, encode, z))(z)
    log_p = stats.norm.logpdf(z.astype(float)[..., None, :], mean.astype(float), std).sum(-1) + np.log(weights)
    np.testing.assert_allclose(found, logsumexp(log_p, axis=-1), atol=0.01)


@pytest.mark.parametrize("kind", ["gaussians", "posteriors"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_of_a_mixture_prior_have_its_moments(kind, temperature):
    mean, std = np.array([[0.0, 3.0], [1.0, -3.0], [2.0, 0.0]]), np.array([[1.0, 0.1], [0.5, 2.0], [0.2, 1.0]])
    prior, params, encode, weights = mixture(kind, mean, std)
    z = draw(prior, params, encode, temperature)
    np.testing.assert_allclose(z.mean(0), weights @ mean, atol=0.06)
    covariance = np.cov(mean.T, aweights=weights, bias=True) + np.diag(weights @ np.square(temperature * std))
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.12)


def test_pseudo_inputs_are_images_and_are_clipped_to_their_range():
    params = VampPrior(4).init(jax.random.key(0), 2, Feature((3, 2, 1)), "float32")
    assert params["pseudo_inputs"].shape == (4, 3, 2, 1)
    seen = []

    def spy(x: Array) -> Normal:
        seen.append(x)
        return Normal(jnp.zeros((4, 2)), jnp.zeros((4, 2)))

    VampPrior(4).log_prob({"pseudo_inputs": 9 * params["pseudo_inputs"]}, spy, jnp.zeros((1, 2)))
    assert np.abs(seen[0]).max() <= 1
