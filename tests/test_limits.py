"""Functions that limit network outputs: they change nothing in the useful range, and are bounded and differentiable outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import Feature
from gen.families.vae import VAE, DiscretizedLogistic, Gaussian, GaussianMixture
from gen.networks import gaussian
from gen.networks.limits import limit_above, limit_size
from gen.networks.vae import MAX_MEAN, Perceptron
from gen.optim import Optimizer

EXTREME = jnp.array([-1e30, -1e6, -21.0, -20.0, -1e-3, 0.0, 3.0, 19.999, 20.0, 20.1, 1e3, 1e30])


def test_numbers_within_the_limit_are_exact_and_larger_ones_stay_below_twice_the_limit_in_their_order():
    for limited, within in ((limit_size, jnp.abs(EXTREME) <= 20), (limit_above, EXTREME <= 20)):
        found = limited(EXTREME, 20.0)
        np.testing.assert_array_equal(found[within], EXTREME[within])
        assert (found <= 40).all()
        assert (jnp.diff(found) >= 0).all()
    np.testing.assert_array_equal(limit_size(EXTREME, 20.0), -limit_size(-EXTREME, 20.0))


def test_the_slope_is_one_within_the_limit_and_positive_outside():
    slope = jax.vmap(jax.grad(lambda x: limit_size(x, 20.0)))(jnp.array([-1e6, -30.0, -19.0, 0.0, 19.0, 20.5, 1e6]))
    np.testing.assert_array_equal(slope[2:5], 1)
    assert (slope > 0).all()
    np.testing.assert_allclose(slope[1], (20 / 30) ** 2, rtol=1e-6)


@pytest.mark.parametrize("likelihood", [Gaussian(), DiscretizedLogistic(256)])
@pytest.mark.parametrize("scale", [-1e4, 1e4])
@pytest.mark.slow
def test_extreme_scales_of_pixels_give_finite_losses_gradients_and_samples(likelihood, scale):
    x = jnp.array([-1.0, -1 + 200 / 255, 1.0]).reshape(1, 3, 1, 1)

    def log_prob(outputs):
        return likelihood.log_prob(outputs, x).sum()

    outputs = jnp.full((1, 3, 1, likelihood.outputs(1)), 0.1).at[..., -1].set(scale)
    assert np.isfinite(log_prob(outputs))
    assert np.isfinite(jax.grad(log_prob)(outputs)).all()
    assert np.isfinite(likelihood.sample(outputs, jax.random.key(0))).all()
    assert np.isfinite(likelihood.mean(outputs)).all()


def test_too_wide_pixels_can_become_narrow_again():
    """A clipped scale would have no gradient, so nothing could bring it back."""
    outputs = jnp.full((1, 1, 1, 2), 0.1).at[..., -1].set(30.0)
    gradient = jax.grad(lambda outputs: Gaussian().log_prob(outputs, jnp.zeros((1, 1, 1, 1))).sum())(outputs)
    assert gradient[..., -1] < 0


@pytest.mark.parametrize("log_std", [-1e3, 1e3])
def test_extreme_deviations_of_a_learned_mixture_give_a_finite_density(log_std):
    prior = GaussianMixture(3)
    params = prior.init(jax.random.key(0), 2, Feature((4, 4, 1)), jnp.float32)
    params["log_std"] = params["log_std"].at[1].set(log_std)

    def log_prob(params):
        return prior.log_prob(params, lambda x: gaussian.Gaussian(x, x), jnp.full((5, 2), 3.0)).sum()

    assert np.isfinite(log_prob(params))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.grad(log_prob)(params)))
    assert np.isfinite(prior.sample(params, lambda x: gaussian.Gaussian(x, x), jax.random.key(0), 2, 1.0)).all()


@pytest.mark.slow
def test_means_of_latents_are_bounded_in_every_group():
    model = VAE(latents=(2, 3), network=Perceptron((8,))).latent_model({"image": Feature((4, 4, 1), levels=2)})
    params = jax.tree.map(lambda x: 1e4 * (x + 1), model.init(jax.random.key(0), jnp.float32))
    x = jnp.ones((1, 4, 4, 1))
    noise = [jnp.zeros((1, 1, size)) for size in model.latents]
    draw = model.infer(params, model.encode(params, x, None), noise)
    top, lower = draw.q
    assert (jnp.abs(top.mean) > MAX_MEAN).any()
    assert (jnp.abs(top.mean) <= 2 * MAX_MEAN).all()
    change = (lower.mean - draw.p[0].mean) / jnp.exp(draw.p[0].log_std)
    assert (jnp.abs(change) <= 2 * MAX_MEAN * 1.001).all()
    assert all(np.isfinite(kl).all() for kl in model.terms(params, x, None, draw).kl)


def test_every_vae_config_clips_its_gradients(tiny):
    for name in ("vae_digits", "vae_fashion", "vae_folder", "vae_mnist", "vae_mnist_best"):
        optim = tiny(name).model.optim
        assert isinstance(optim, Optimizer) and optim.clip is not None, name
