"""Generators and discriminators: their shapes, and how they read labels."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_gan import DTYPES, KEY, apply, normal, one_hot, random_like, reset

from gen.errors import UserError
from gen.networks import discriminator, generator
from gen.networks.discriminator import Discriminator

GENERATORS = {
    8: (generator.Perceptron((8, 8)), generator.DCGAN((4, 4), (2, 2)), generator.Residual((4, 4))),
    28: (generator.DCGAN((4, 4, 4)), generator.Residual((4, 4, 4), attention=(1,))),
    32: (generator.DCGAN((4, 4, 4), (2, 2, 2), kernel=4), generator.Residual((4,) * 4, attention=(2, 3))),
    64: (generator.DCGAN((4,) * 4, (2,) * 4), generator.Residual((4,) * 5, attention=(3,))),
}
NORMS = {None: ("batch", "none"), "concatenation": ("virtual",), "projection": ("batch", "layer", "virtual")}
DISCRIMINATORS = (
    discriminator.Perceptron((8, 8), spectral=True, minibatch=2),
    discriminator.DCGAN((4, 4), norm="batch"),
    discriminator.DCGAN((4, 4), norm="layer", spectral=True),
    discriminator.Residual((4, 4, 6), attention=(1,), spectral=True),
)


@pytest.fixture(autouse=True)
def seed():
    reset()


@pytest.mark.parametrize("size", GENERATORS)
@pytest.mark.parametrize("conditioning", [None, "concatenation", "projection"])
@pytest.mark.slow
def test_every_network_fits_the_shape_of_its_images(size, conditioning):
    shape, label = (size, size, 1 if size < 32 else 3), None if conditioning is None else one_hot(0, 1)
    for arch in GENERATORS[size]:
        for norm in NORMS[conditioning]:
            module = replace(arch, norm=norm).build(shape, conditioning, DTYPES)

            def make(module: Any = module) -> Any:
                return module.init_with_output(KEY, jnp.zeros((2, 5)), label, False)

            images, variables = jax.eval_shape(make)
            assert images.shape == (2, *shape), arch
            assert ("batch_stats" in variables) == (norm == "batch")
    for arch in DISCRIMINATORS:
        module = Discriminator(arch, conditioning, True, DTYPES)

        def judge(module: Any = module) -> Any:
            return module.init_with_output(KEY, jnp.zeros((2, *shape)), label, None, False)[0]

        scores, features = jax.eval_shape(judge)
        assert (scores.shape, features.shape[0], features.ndim) == ((2,), 2, 2), arch


@pytest.mark.parametrize(
    ("arch", "shape", "message"),
    [
        (generator.DCGAN(), (30, 30, 1), "enlarges by 4, so it cannot make 30x30 images; the fix: --data.size 32"),
        (generator.Residual((4, 4)), (9, 8, 1), "enlarges by 2, so it cannot make 9x8"),
    ],
)
def test_a_generator_that_cannot_make_the_images_names_a_size_that_it_can_make(arch, shape, message):
    with pytest.raises(UserError, match=message):
        arch.build(shape, None, {})


@pytest.mark.parametrize("name", ["Perceptron", "DCGAN"])
def test_a_concatenated_label_is_read_like_pixels(name):
    """The discriminator has no hidden layers, so its score is linear in pixels and label."""
    x, hot = normal(3, 2, 2, 1), np.asarray(one_hot(2, 0, 2))
    module = Discriminator(getattr(discriminator, name)(()), "concatenation", True, DTYPES)
    params = random_like(module.init(KEY, x, hot, None, False)["params"])
    (read,) = params.values()
    scores, _ = apply(module, params, x, hot, None, False)
    planes = np.broadcast_to(hot[:, None, None], (3, 2, 2, 3))
    seen = (x.reshape(3, 4), hot) if name == "Perceptron" else (x, planes)
    expected = np.concatenate(seen, axis=-1).reshape(3, -1) @ read["kernel"][:, 0] + read["bias"]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_projected_label_adds_its_inner_product_with_the_features_to_the_score():
    x, labels = normal(4, 2, 2, 1), [2, 0, 2, 1]
    module = Discriminator(discriminator.Perceptron((5,)), "projection", True, DTYPES)
    params = random_like(module.init(KEY, x, one_hot(*labels), None, False)["params"])
    scores, features = apply(module, params, x, one_hot(*labels), None, False)
    read, embedding = params["Dense_1"], params["Dense_2"]["kernel"]
    expected = features @ read["kernel"][:, 0] + read["bias"] + (embedding[np.array(labels)] * features).sum(1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_concatenated_label_is_joined_to_the_latents_of_a_generator():
    z, label = normal(3, 4), one_hot(2, 0, 1)
    arch = generator.Perceptron((5,))
    joined, variables = arch.build((2, 2, 1), "concatenation", DTYPES).init_with_output(KEY, z, label, False)
    unconditional = arch.build((2, 2, 1), None, DTYPES)
    alone = unconditional.apply(variables, np.concatenate([z, label], axis=1), None, False)
    np.testing.assert_array_equal(joined, alone)
