"""The evaluation of a GAN does not depend on padding, also if its scores or losses depend on the whole batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_gan import KEY, TINY, batches_of, normal, on_one_device, reset, sampler

from gen.core import Batch, Sums
from gen.families.gan import GAN, NonSaturating, RelativisticAverage
from gen.networks import discriminator

REAL, PADDED = 5, 8
MINIBATCH = replace(TINY, discriminator=discriminator.Perceptron((5,), minibatch=2), objective=NonSaturating())
COUPLED = {
    "minibatch discrimination": MINIBATCH,
    "minibatch discrimination of packs": replace(MINIBATCH, pack=2),
    "batch normalization": replace(TINY, discriminator=discriminator.DCGAN((4, 4), kernel=3, norm="batch")),
}


@pytest.fixture(autouse=True)
def seed():
    reset()


def padded(real: int, image: np.ndarray) -> Batch:
    """A batch of images whose first `real` count."""
    n = len(image)
    weight = jnp.where(jnp.arange(n) < real, 1.0, 0.0)
    return {"image": jnp.asarray(image), "row": jnp.arange(n), "label": jnp.arange(n) % 3, "weight": weight}


def measured(config: GAN, batch: Batch, closeness: float = 1.0) -> Sums:
    """The sums of an evaluation. closeness: factor of D's weights of the closeness to other examples."""
    model, state = sampler(config)
    d = state.params["discriminator"]
    if config.discriminator.minibatch:
        d["Dense_1"]["kernel"] = d["Dense_1"]["kernel"].at[-2:].multiply(closeness)
        near = d["MinibatchDiscrimination_0"]["Dense_0"]
        near["kernel"] = 0.1 * near["kernel"]  # so that all examples are close to each other
    return jax.device_get(jax.jit(on_one_device(model.evaluate))(state, batch, KEY))


def images(n: int) -> np.ndarray:
    return np.asarray(batches_of(1, n)["image"][0])


@pytest.mark.parametrize("name", COUPLED)
def test_the_content_of_padding_does_not_matter(name):
    config, real = COUPLED[name], REAL - REAL % COUPLED[name].pack
    x = images(PADDED)
    copies, noise = x.copy(), x.copy()
    copies[real:], noise[real:] = x[0], normal(PADDED - real, *x.shape[1:])
    found = []
    for content in (copies, noise):
        reset()
        found.append(measured(config, padded(real, content)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)
    assert found[0]["score_real"][1] == real // config.pack


def test_padding_changes_nothing_with_running_averages():
    x, found = images(PADDED), []
    for n in (REAL, PADDED):
        reset()
        found.append(measured(COUPLED["batch normalization"], padded(REAL, x[:n])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)


def test_an_objective_compares_with_the_mean_score_of_the_images_that_count():
    """D separates real from generated images by far. The mean with padding, of images that D finds bad, would say the contrary."""
    model, state = sampler(replace(TINY, objective=RelativisticAverage()))
    d, g = state.params["discriminator"], state.params["generator"]
    g["Dense_0"]["bias"] = g["Dense_0"]["bias"] - 20  # images of -1
    params = {"generator": g, "discriminator": jax.tree.map(lambda w: 10 * jnp.abs(w), d)}
    image = np.ones((PADDED, 2, 2, 1), np.float32)
    image[REAL:] = -100
    sums = jax.jit(on_one_device(model.evaluate))(replace(state, params=params), padded(REAL, image), KEY)
    assert jax.device_get(sums["saturation"]) == (REAL, REAL)


def test_the_closeness_to_other_examples_is_scaled_as_if_the_batch_had_no_padding():
    x = images(PADDED)

    def scores(n: int, closeness: float) -> np.ndarray:
        reset()
        sums = measured(MINIBATCH, padded(REAL, x[:n]), closeness)
        return np.array([sums[name][0] for name in ("score_real", "score_fake")])

    without = scores(REAL, 0.0)
    expected = (scores(REAL, 1.0) - without) * (PADDED - 1) / (REAL - 1)
    np.testing.assert_allclose(scores(PADDED, 1.0) - without, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).min() > 0.1
