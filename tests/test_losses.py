"""Objectives against scipy, quadrature, brute-force sums and Monte Carlo."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from gen import axis
from gen.families.gan import losses as gan_losses
from gen.families.vae import losses
from gen.networks import gaussian
from gen.networks.gaussian import Gaussian

RNG = np.random.default_rng(0)


def random_gaussian(*shape: int) -> Gaussian:
    return Gaussian(jnp.asarray(RNG.normal(size=shape), jnp.float32), jnp.asarray(RNG.normal(size=shape), jnp.float32))


def test_gaussian_log_prob_is_that_of_scipy():
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
def test_bernoulli_masses_are_those_of_the_sigmoid(logit):
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
    """An exponential family: d log p / d logit = x - E[x], which is finite and smooth in the logit."""

    def mean(l: float) -> float:
        density = lambda x: math.exp(l * x - max(l, 0))
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
    log_p = lambda m, s, x: losses.discretized_logistic_log_prob(m, s, x, levels)
    values = jax.jit(jax.vmap(jax.value_and_grad(log_p, (0, 1))))(
        *(np.float32(a).ravel() for a in (mean, log_scale, x))
    )
    for value in jax.tree.leaves(values):
        bad = ~np.isfinite(value)
        assert not bad.any(), np.stack([mean.ravel()[bad], log_scale.ravel()[bad], x.ravel()[bad]], axis=1)


def test_free_bits_are_the_larger_of_floor_and_average_with_its_gradient():
    def total(kl):
        return losses.free_bits(kl, kl.mean(0), 0.5).mean(0)

    kl = jnp.asarray([[0.1, 2.0], [0.3, 0.2]])  # averages 0.2 and 1.1; the second holds an example below the floor
    np.testing.assert_allclose(total(kl), [0.5, 1.1], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda kl: total(kl).sum())(kl), [[0, 0.5], [0, 0.5]])


def test_the_importance_weighted_bound_is_a_log_of_a_mean_and_does_not_overflow():
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
    """Bounds [N] and gradients {name: [N]} of N independent estimates with k samples each."""
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
def test_doubly_reparameterized_gradients_are_unbiased_and_the_encoders_vary_less(estimates, k):
    (bound, reference), (same_bound, found) = estimates[k]
    np.testing.assert_allclose(same_bound, bound, rtol=1e-5, atol=1e-5)
    for name in PARAMS:
        difference = found[name].astype(np.float64) - reference[name]
        assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(N) + 1e-5, name
        assert abs(reference[name].mean(dtype=np.float64)) > 1e-4, f"{name}: nothing to compare"
    np.testing.assert_allclose(found["theta"], reference["theta"], rtol=1e-3, atol=1e-3)
    for name in ("phi", "sigma"):
        assert found[name].var() < reference[name].var(), name


log_sigmoid = special.log_expit  # and log(1 - sigmoid(s)) is log_sigmoid(-s)


def relativistic_average(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return -log_sigmoid(above - below.mean()) - log_sigmoid(above.mean() - below)


LOGISTIC = lambda r, f, t: -t * log_sigmoid(r) - (1 - t) * log_sigmoid(-r) - log_sigmoid(-f)
FORMULAS = {  # D's loss of real scores, fake scores and the target; G's of real and fake scores
    "minimax": (LOGISTIC, lambda r, f: log_sigmoid(-f)),
    "non_saturating": (LOGISTIC, lambda r, f: -log_sigmoid(f)),
    "least_squares": (lambda r, f, t: ((r - t) ** 2 + f**2) / 2, lambda r, f: (f - 1) ** 2 / 2),
    "wasserstein": (lambda r, f, t: f - r, lambda r, f: -f),
    "hinge": (lambda r, f, t: -np.minimum(0, r - 1) - np.minimum(0, -f - 1), lambda r, f: -f),
    "relativistic": (lambda r, f, t: -log_sigmoid(r - f), lambda r, f: -log_sigmoid(f - r)),
    "relativistic_average": (lambda r, f, t: relativistic_average(r, f), lambda r, f: relativistic_average(f, r)),
}
SMOOTH = ["minimax", "non_saturating", "least_squares"]
REAL, FAKE = RNG.normal(scale=2, size=(2, 16)).astype(np.float32)


def by_shards(function: Callable, n: int) -> Callable:
    """The function of arrays [B, ...], on n devices that hold B / n of them each: its mean over the devices."""
    mapped = jax.pmap(lambda *parts: axis.mean(function(*parts)), "data", out_axes=None, devices=jax.devices()[:n])
    return lambda *arrays: mapped(*(a.reshape(n, -1, *a.shape[1:]) for a in arrays))


def alone(function: Callable, real: np.ndarray, fake: np.ndarray, *target: float) -> np.ndarray:
    """An objective of a batch on one device, which needs an axis "data" all the same."""
    mapped = jax.vmap(lambda r, f: function(r, f, *target), axis_name="data")
    return np.asarray(mapped(jnp.asarray(real)[None], jnp.asarray(fake)[None])[0])


@pytest.mark.parametrize("name", FORMULAS)
def test_an_adversarial_objective_is_its_formula(name):
    discriminator, generator, *_ = gan_losses.ADVERSARIAL[name]
    real, fake = REAL.astype(np.float64), FAKE.astype(np.float64)
    for target in (1.0, 0.7) if name in SMOOTH else (1.0,):
        expected = FORMULAS[name][0](real, fake, target)
        np.testing.assert_allclose(alone(discriminator, REAL, FAKE, target), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone(generator, REAL, FAKE), FORMULAS[name][1](real, fake), rtol=1e-5, atol=1e-6)


def test_every_adversarial_objective_has_finite_gradients_at_large_scores():
    large = jnp.asarray([-1e4, -50.0, 0.0, 50.0, 1e4])
    for name, ours in gan_losses.ADVERSARIAL.items():
        for loss in (ours.discriminator, ours.generator):
            grads = jax.vmap(jax.grad(lambda r, f, l=loss: l(r, f).sum(), (0, 1)), axis_name="data")(
                jnp.repeat(large, 5)[:, None], jnp.tile(large, 5)[:, None]
            )
            assert np.isfinite(grads).all(), name


@pytest.mark.parametrize("name", FORMULAS)
def test_what_an_adversarial_objective_says_of_itself(name):
    ours = gan_losses.ADVERSARIAL[name]
    d = lambda real, fake, target=1.0: alone(ours.discriminator, real, fake, target)
    np.testing.assert_allclose(d(0 * REAL, 0 * FAKE), ours.indifferent, rtol=1e-6)
    assert ours.smooth == (not np.allclose(d(REAL, FAKE, 0.8), d(REAL, FAKE)))
    assert ours.shift == (not np.allclose(d(REAL + 1, FAKE + 1), d(REAL, FAKE), rtol=1e-4))


# Three kinds of images, of which 8 real and 8 generated ones are these: p = (4, 3, 1) / 8 and q = (1, 2, 5) / 8.
KINDS_REAL, KINDS_FAKE = np.repeat([0, 1, 2], [4, 3, 1]), np.repeat([0, 1, 2], [1, 2, 5])
P, Q = np.bincount(KINDS_REAL) / 8, np.bincount(KINDS_FAKE) / 8
OPTIMA = {  # D's best score of each kind
    ("minimax", 1.0): np.log(P / Q),  # Goodfellow et al. 2014, proposition 1
    ("minimax", 0.9): np.log(0.9 * P / (0.1 * P + Q)),
    ("least_squares", 1.0): P / (P + Q),  # Mao et al. 2017, equation 3
    ("least_squares", 0.9): 0.9 * P / (P + Q),
    ("relativistic", 1.0): np.log(P / Q) + 3,  # of all pairs; only differences count
}


@pytest.mark.parametrize(("name", "target"), OPTIMA)
def test_the_discriminators_gradient_is_zero_at_its_optimum_and_nowhere_near(name, target):
    real, fake = (k.ravel() for k in np.meshgrid(KINDS_REAL, KINDS_FAKE))
    loss = lambda s: gan_losses.ADVERSARIAL[name].discriminator(s[real], s[fake], target).mean()
    best = jnp.asarray(OPTIMA[name, target], jnp.float32)
    np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-6)
    assert (np.abs(jax.grad(loss)(best + jnp.asarray([0.3, -0.3, 0.3]))) > 1e-2).all()


def test_the_hinge_is_least_at_the_sign_of_the_difference():
    loss = lambda s: gan_losses.ADVERSARIAL["hinge"].discriminator(s[KINDS_REAL], s[KINDS_FAKE]).mean()
    best = np.sign(P - Q)
    for off in 0.1 * np.concatenate([np.eye(3), -np.eye(3)]):
        assert loss(best + off) > loss(best) + 1e-3


def test_indifference_is_the_optimum_of_relativistic_averages_between_equal_distributions():
    loss = jax.vmap(lambda s: gan_losses.average_discriminator(s[KINDS_REAL], s[KINDS_REAL]).mean(), axis_name="data")
    np.testing.assert_allclose(jax.grad(lambda s: loss(s[None])[0])(jnp.zeros(3)), 0, atol=1e-7)


@pytest.mark.parametrize("target", [0.5, 0.7, 0.9])
def test_a_smoothed_target_is_where_the_real_part_is_least(target):
    slope = lambda name, s: float(jax.grad(lambda s: gan_losses.ADVERSARIAL[name].discriminator(s, 0.0, target))(s))
    assert slope("non_saturating", special.logit(target)) == pytest.approx(0, abs=1e-6)
    assert slope("least_squares", target) == pytest.approx(0, abs=1e-6)


def numerical_gradient(function: Callable[[np.ndarray], float], x: np.ndarray) -> np.ndarray:
    """By central differences, float64."""
    x, h = np.asarray(x, np.float64), 1e-5
    steps = h * np.eye(x.size).reshape(-1, *x.shape)
    return np.array([(function(x + step) - function(x - step)) / (2 * h) for step in steps]).reshape(x.shape)


COUPLED = {  # of features [B, F] of real and generated images: ours on a shard, and what it is on the whole
    "relativistic_average discriminator": (
        lambda r, f: gan_losses.average_discriminator(r.sum(1), f.sum(1)).mean(),
        lambda r, f: relativistic_average(r.sum(1), f.sum(1)).mean(),
    ),
    "relativistic_average generator": (
        lambda r, f: gan_losses.average_generator(r.sum(1), f.sum(1)).mean(),
        lambda r, f: relativistic_average(f.sum(1), r.sum(1)).mean(),
    ),
    "feature matching": (gan_losses.feature_matching, lambda r, f: ((r.mean(0) - f.mean(0)) ** 2).sum()),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_what_couples_a_batch_is_of_the_whole_batch_however_it_is_divided(name, shards):
    ours, theirs = COUPLED[name]
    real, fake = RNG.normal(size=(2, 8, 5)).astype(np.float32)
    weights = RNG.normal(size=(5, 3)).astype(np.float32)
    of_weights = lambda loss, tanh, r, f: lambda w: loss(tanh(r @ w), tanh(f @ w))
    value = by_shards(lambda r, f: jax.value_and_grad(of_weights(ours, jnp.tanh, r, f))(weights), shards)(real, fake)
    expected = of_weights(theirs, np.tanh, *(a.astype(np.float64) for a in (real, fake)))
    np.testing.assert_allclose(value[0], expected(weights.astype(np.float64)), rtol=1e-5)
    np.testing.assert_allclose(value[1], numerical_gradient(expected, weights), rtol=1e-4, atol=1e-6)


N_X, N_HIDDEN = 6, 4
IMAGES = RNG.normal(size=(8, 2, 3, 1)).astype(np.float32)
THETA = RNG.normal(size=N_HIDDEN * (N_X + 2)).astype(np.float32)


def divided(theta):
    w, b, v = theta[: N_HIDDEN * N_X], theta[N_HIDDEN * N_X : -N_HIDDEN], theta[-N_HIDDEN:]
    return w.reshape(N_HIDDEN, N_X), b, v


def critic(theta: jax.Array, x: jax.Array) -> jax.Array:
    w, b, v = divided(theta)
    return jnp.tanh(x.reshape(len(x), -1) @ w.T + b[None]) @ v


def squared_norms(theta: np.ndarray, pack: int = 1) -> np.ndarray:
    """Of the gradients by each image, summed over the images of a pack."""
    w, b, v = divided(theta)
    h = np.tanh(IMAGES.astype(np.float64).reshape(len(IMAGES), -1) @ w.T + b)
    return (((1 - h**2) * v @ w) ** 2).sum(1).reshape(-1, pack).sum(1)


PENALTIES = {
    "squared": (gan_losses.squared_gradient, lambda square: square),
    "two-sided": (lambda d, x: gan_losses.gradient_penalty(d, x, False), lambda square: (np.sqrt(square) - 1) ** 2),
    "one-sided": (
        lambda d, x: gan_losses.gradient_penalty(d, x, True),
        lambda square: np.maximum(np.sqrt(square) - 1, 0) ** 2,
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_is_of_the_analytic_gradient_and_so_is_its_own_by_the_critics_parameters(name):
    ours, theirs = PENALTIES[name]
    norms = np.sqrt(squared_norms(THETA.astype(np.float64)))
    assert (norms > 1).any() and (norms < 1).any(), "the two sides would be one"
    penalty = lambda theta: ours(lambda x: critic(theta, x), jnp.asarray(IMAGES))
    np.testing.assert_allclose(penalty(THETA), theirs(norms**2), rtol=1e-4, atol=1e-6)
    expected = numerical_gradient(lambda theta: theirs(squared_norms(theta)).sum(), THETA)
    np.testing.assert_allclose(jax.grad(lambda t: penalty(t).sum())(jnp.asarray(THETA)), expected, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_a_packs_score_is_by_all_of_its_images():
    of_pairs = lambda x: critic(jnp.asarray(THETA), x).reshape(-1, 2).sum(1)
    found = gan_losses.squared_gradient(of_pairs, jnp.asarray(IMAGES))
    np.testing.assert_allclose(found, squared_norms(THETA.astype(np.float64), pack=2), rtol=1e-4)


def test_a_constant_critic_is_penalized_by_one_and_has_a_finite_gradient():
    penalty = lambda scale: gan_losses.gradient_penalty(
        lambda x: scale * x.sum((1, 2, 3)), jnp.asarray(IMAGES), False
    ).mean()
    value, slope = jax.value_and_grad(penalty)(jnp.float32(0))
    assert float(value) == pytest.approx(1, abs=1e-5)
    assert np.isfinite(slope)


@pytest.mark.parametrize("target", [1.0, 0.9, 0.6])
@pytest.mark.parametrize("name", ["non_saturating", "least_squares"])
def test_the_least_loss_of_a_perfect_discriminator_is_the_least_of_any_scores(name, target):
    objective, scores = gan_losses.ADVERSARIAL[name], jnp.linspace(-20, 20, 4001)
    found = objective.discriminator(scores[:, None], scores[None], target).min()
    assert float(found) == pytest.approx(objective.least(target), abs=1e-4)
