"""The networks of flows: sizes that are not powers of two, patches, conditions, and derivatives along a direction."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import Array
from gen.networks.dit import DiT, from_patches, to_patches
from gen.networks.dtypes import module_dtypes
from gen.networks.kernels.forward import jvp
from gen.networks.unet import UNet, depth_to_space, space_to_depth
from gen.networks.velocity import Velocity

NETWORKS = {
    "unet 7x5": (UNet((4, 4, 4), attention=(3,), heads=2), (7, 5, 1)),
    "unet in patches": (UNet((4, 8), patch=2, fourier=(1, 2)), (7, 6, 3)),
    "dit of sound": (DiT(1, 8, 2, (4,)), (10, 1)),
    "dit of images": (DiT(1, 8, 2, (2,)), (5, 4, 2)),
    "dit of video": (DiT(1, 12, 2, (1, 2, 2)), (2, 3, 4, 1)),
}


@cache
def build(name: str, dtype: str = "float32") -> tuple[Velocity, dict, Callable[..., Array]]:
    """Returns a network, parameters away from the zeros that many of them begin with, and the compiled network."""
    architecture, shape = NETWORKS[name]
    dtypes = module_dtypes(dtype, dtype)
    network = Velocity(architecture.trunk(shape, dtypes), architecture.condition, 3, dtypes)

    def init(key: Array) -> dict:
        zeros = jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, jnp.int32)
        params = network.init(key, *zeros)
        return jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params)

    return network, jax.jit(init)(jax.random.key(0)), jax.jit(network.apply)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "dit of images" else pytest.mark.slow) for name in NETWORKS],
)
def test_a_velocity_depends_on_everything_that_the_network_sees(name):
    _, shape = NETWORKS[name]
    _, params, apply = build(name)
    rng = np.random.default_rng(0)
    x, r, t = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32), jnp.full(2, 0.3), jnp.full(2, 0.6)
    label = jnp.zeros(2, jnp.int32)
    v = apply(params, x, r, t, label)
    assert v.shape == x.shape
    for change in (
        (x.at[..., -1, :].add(1), r, t, label),
        (x, r + 0.1, t, label),
        (x, r, t + 0.1, label),
        (x, r, t, label + 1),
    ):
        assert jnp.abs(apply(params, *change) - v).max() > 1e-3
    # Examples do not see each other.
    other = apply(params, x.at[1].add(1), r, t, label)
    np.testing.assert_array_equal(other[0], v[0])


@pytest.mark.parametrize("side", [1, 2, 3])
def test_squares_of_pixels_become_positions_and_pixels_again(side):
    x = jnp.arange(2 * 6 * 6 * 2.0).reshape(2, 6, 6, 2)
    positions = space_to_depth(x, side)
    assert positions.shape == (2, 6 // side, 6 // side, 2 * side**2)
    np.testing.assert_array_equal(positions[1, -1, 0], x[1, -side:, :side].reshape(-1))
    np.testing.assert_array_equal(depth_to_space(positions, side), x)


@pytest.mark.parametrize(("shape", "patch"), [((5, 1), (2,)), ((5, 4, 2), (2, 3)), ((2, 3, 4, 1), (1, 2, 2))])
def test_patches_and_back(shape, patch):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)), jnp.float32)
    patches = to_patches(x, patch)
    first = x[(slice(None), *map(slice, patch))]
    np.testing.assert_array_equal(patches[:, 0], first.reshape(2, -1))
    np.testing.assert_array_equal(from_patches(patches, patch, shape), x)


def test_the_derivative_along_a_direction_is_that_of_jax():
    def function(x: Array, y: Array) -> Array:
        return jnp.sin(x) * y + jnp.square(y)

    at, along = (jnp.arange(3.0), jnp.ones(3)), (jnp.ones(3), jnp.arange(3.0))
    for found, expected in zip(jvp(function, at, along), jax.jvp(function, at, along), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet 7x5", "dit of images"])
def test_the_derivative_of_a_network_along_a_direction(name):
    """In double precision, by finite differences."""
    with jax.enable_x64(True):
        network, params, apply = build(name, "float64")
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *NETWORKS[name][1])))
        r, t, label, direction = jnp.full(2, 0.1), jnp.full(2, 0.5), jnp.zeros(2, jnp.int32), jnp.cos(x)

        def u(x: Array, t: Array) -> Array:
            return network.apply(params, x, r, t, label)  # pyright: ignore

        value, found = jax.jit(lambda: jvp(u, (x, t), (direction, jnp.ones(2))))()
        np.testing.assert_allclose(value, apply(params, x, r, t, label), rtol=1e-9)
        ahead, behind = (apply(params, x + h * direction, r, t + h, label) for h in (1e-6, -1e-6))
        np.testing.assert_allclose(found, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-4)
