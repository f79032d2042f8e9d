"""The layers of generators and discriminators against numpy."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tiny_gan import DTYPES, KEY, apply, normal, one_hot, random_like, reset

from gen.networks import generator
from gen.networks.discriminator import downsample
from gen.networks.generator import upsample
from gen.networks.layers import Conv, Dense, MinibatchDiscrimination, Norm, SelfAttention, dropout, spectral_norm
from gen.networks.virtual_batch_norm import REFERENCES, virtual_batch_norm


@pytest.fixture(autouse=True)
def seed():
    reset()


def over_devices(function: Callable, n: int) -> Callable:
    """The function of [B, ...] under the axis "data" of n devices: its outputs, one per device."""
    mapped = jax.pmap(function, "data", devices=jax.devices()[:n])

    def call(x: np.ndarray) -> Any:
        return mapped(x.reshape(n, -1, *x.shape[1:]))

    return call


@pytest.mark.parametrize("devices", [1, 4])
def test_batch_normalization_uses_the_moments_of_the_global_batch(devices):
    x = 3 * normal(8, 3, 2, 2) + 2
    norm = Norm("batch", DTYPES)
    variables = norm.init(KEY, x[:1], None, False)

    def step(x: jax.Array) -> Any:
        return norm.apply(variables, x, None, True, mutable=["batch_stats"])

    y, new = over_devices(step, devices)(x)
    mean, var = x.astype(np.float64).mean((0, 1, 2)), x.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(np.reshape(y, x.shape), (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    for device in range(devices):
        seen = jax.tree.map(lambda a, device=device: a[device], new["batch_stats"]["BatchNorm_0"])
        np.testing.assert_allclose(seen["mean"], 0.1 * mean, rtol=1e-5)
        np.testing.assert_allclose(seen["var"], 0.9 + 0.1 * var, rtol=1e-5)


def test_batch_normalization_uses_running_averages_when_not_training():
    x = 3 * normal(8, 3, 2, 2) + 2
    norm = Norm("batch", DTYPES)
    variables = norm.init(KEY, x[:1], None, False)
    running = {"BatchNorm_0": {"mean": jnp.asarray([1.0, -1.0]), "var": jnp.asarray([4.0, 0.25])}}
    y: Any = norm.apply({**variables, "batch_stats": running}, x, None, False)
    np.testing.assert_allclose(y, (x - [1, -1]) / np.sqrt(np.add([4, 0.25], 1e-5)), rtol=1e-4, atol=1e-5)


def test_layer_normalization_uses_the_moments_of_the_example():
    x = 3 * normal(4, 3, 2, 2) + 2
    y, _ = Norm("layer", DTYPES).init_with_output(KEY, x, None, True)
    each = x.reshape(4, -1).astype(np.float64)
    expected = (each - each.mean(1, keepdims=True)) / np.sqrt(each.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-5)


@pytest.mark.parametrize("shape", [(2,), (3, 2, 2)])
def test_virtual_normalization_uses_the_references_and_the_example_itself(shape):
    n, x = REFERENCES, 3 * normal(REFERENCES + 3, *shape) + 2
    y, _ = Norm("virtual", DTYPES).init_with_output(KEY, x, None, True)
    axes = tuple(range(len(shape)))  # all axes of a batch except the channels
    for i in range(len(x)):
        by = x[:n] if i < n else np.concatenate([x[:n], x[i : i + 1]])
        expected = (x[i] - by.mean(axes, np.float64)) / np.sqrt(by.var(axes, np.float64) + 1e-5)
        np.testing.assert_allclose(y[i], expected, atol=1e-4)


@pytest.mark.parametrize(("dtype", "mean", "std"), [(jnp.float32, 300, 0.1), (jnp.bfloat16, 10, 0.3)])
def test_virtual_normalization_is_exact_where_the_mean_is_much_larger_than_the_deviation(dtype, mean, std):
    n, x = REFERENCES, jnp.asarray(mean + std * normal(REFERENCES + 3, 4, 4, 8), dtype)
    found = virtual_batch_norm(x)
    assert found.dtype == dtype
    by = np.asarray(x, np.float64)
    expected = (by[:n] - by[:n].mean((0, 1, 2))) / by[:n].std((0, 1, 2))
    np.testing.assert_allclose(np.asarray(found[:n], np.float64), expected, rtol=0.01, atol=0.02)
    assert np.asarray(found[n:], np.float64).std() == pytest.approx(1, abs=0.1)


def test_a_virtually_normalized_generator_makes_each_image_independently_of_the_others():
    module = generator.Perceptron((5,), norm="virtual").build((2, 2, 1), "concatenation", DTYPES)
    z, label = normal(3, 4), one_hot(2, 0, 1)
    every, variables = module.init_with_output(KEY, z, label, True)
    assert "batch_stats" not in variables
    assert np.asarray(every).shape == (3, 2, 2, 1)
    alone = apply(module, variables["params"], z[1:2], label[1:2], True)
    np.testing.assert_allclose(alone, np.asarray(every)[1:2], atol=1e-6)


def test_conditional_normalization_scales_and_shifts_by_the_label():
    x, labels = normal(6, 2, 2, 4), [0, 2, 1, 1, 2, 0]
    norm = Norm("layer", DTYPES)
    plain, variables = norm.init_with_output(KEY, x, one_hot(*labels), True)
    params = random_like(variables["params"])
    np.testing.assert_array_equal(variables["params"]["scale"]["kernel"], 1)
    np.testing.assert_array_equal(variables["params"]["shift"]["kernel"], 0)
    scale, shift = (np.asarray(params[name]["kernel"])[labels][:, None, None] for name in ("scale", "shift"))
    y = apply(norm, params, x, one_hot(*labels), True)
    np.testing.assert_allclose(y, np.asarray(plain) * scale + shift, rtol=1e-5, atol=1e-5)


class Spectral(nn.Module):
    """A dense layer or a convolution without bias, with spectral normalization."""

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return spectral_norm(plain_layer(self.kind), True, train)(x)


def plain_layer(kind: str) -> Dense | Conv:
    return Dense(4, use_bias=False) if kind == "dense" else Conv(4, 3, 2, use_bias=False)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_spectral_normalization_divides_by_the_largest_singular_value(kind):
    x, layer = normal(2, 5) if kind == "dense" else normal(2, 6, 6, 3), Spectral(kind)
    variables = layer.init(KEY, x, False)
    variables = {**variables, "params": random_like(variables["params"])}
    step = jax.jit(lambda v: {**v, **layer.apply(v, x, True, mutable=["batch_stats"])[1]})
    for _ in range(60):
        variables = step(variables)
    ((name, params),) = variables["params"].items()
    norm = np.linalg.norm(np.asarray(params["kernel"], np.float64).reshape(-1, 4), ord=2)
    assert float(variables["batch_stats"]["SpectralNorm_0"][f"{name}/kernel/sigma"]) == pytest.approx(norm, rel=1e-5)
    y, same = layer.apply(variables, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, apply(plain_layer(kind), params, x) / norm, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("devices", [1, 4])
def test_minibatch_discrimination_sums_the_closeness_to_the_rest_of_the_global_batch(devices):
    x, layer = normal(8, 5), MinibatchDiscrimination(3, 2, DTYPES)
    params = layer.init(KEY, x)
    m = (x @ np.asarray(params["params"]["Dense_0"]["kernel"])).reshape(8, 3, 2).astype(np.float64)
    near = np.zeros((8, 3))
    for i in range(8):
        for j in set(range(8)) - {i}:
            near[i] += np.exp(-np.abs(m[i] - m[j]).sum(-1))
    found = over_devices(functools.partial(layer.apply, params), devices)(x)
    np.testing.assert_allclose(found.reshape(8, -1), np.concatenate([x, near], axis=1), rtol=1e-4, atol=1e-6)


def test_minibatch_discrimination_of_a_padded_batch_on_several_devices():
    x, layer, weight = normal(8, 5), MinibatchDiscrimination(3, 2, DTYPES), np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
    params = layer.init(KEY, x)
    alone = over_devices(functools.partial(layer.apply, params), 1)(x[weight])[0]

    def pair(both: jax.Array) -> Any:
        return layer.apply(params, both[:, :5], both[:, 5])

    found = over_devices(pair, 4)(np.concatenate([x, weight[:, None]], axis=1, dtype=np.float32)).reshape(8, -1)
    np.testing.assert_allclose(found[weight][:, 5:], alone[:, 5:] * 7 / 4, rtol=1e-4, atol=1e-6)


def test_dropout_belongs_to_the_example_and_keeps_the_mean():
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(400))
    x = np.ones((400, 10, 10), np.float32)
    y = np.asarray(dropout(jnp.asarray(x), keys, 0, 0.3))
    np.testing.assert_array_equal(np.unique(y), np.array([0, 1 / 0.7], np.float32))
    assert stats.binomtest(y.size - np.count_nonzero(y), y.size, 0.3).pvalue > 1e-3
    some = np.array([7, 3, 300])
    np.testing.assert_array_equal(dropout(jnp.asarray(x[some]), keys[some], 0, 0.3), y[some])
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(dropout(jnp.asarray(x), keys, 1, 0.3), y), "the noise of each layer differs"
    np.testing.assert_array_equal(dropout(jnp.asarray(x), None, 0, 0.3), x)


@pytest.mark.parametrize("size", [(4, 6), (3, 2)])
def test_attention_reads_from_every_position_and_starts_as_the_identity(size):
    x, layer = normal(2, *size, 16), SelfAttention(False, DTYPES)
    y, variables = layer.init_with_output(KEY, x, True)
    np.testing.assert_array_equal(y, x)
    params = {**random_like(variables["params"], 0.5), "gamma": jnp.float32(0.7)}
    query, key, value, out = (np.asarray(params[f"Conv_{i}"]["kernel"], np.float64)[0, 0] for i in range(4))
    assert [k.shape for k in (query, key, value, out)] == [(16, 2), (16, 2), (16, 8), (8, 16)]

    def pool(a: np.ndarray) -> np.ndarray:
        return a.reshape(2, size[0] // 2, 2, size[1] // 2, 2, -1).max((2, 4)) if min(size) >= 4 else a

    q, k, v = (a.reshape(2, -1, a.shape[-1]) for a in (x @ query, pool(x @ key), pool(x @ value)))
    weights = np.exp(q @ k.transpose(0, 2, 1))
    weights /= weights.sum(-1, keepdims=True)
    expected = x + 0.7 * (weights @ v @ out).reshape(x.shape)
    np.testing.assert_allclose(apply(layer, params, x, True), expected, rtol=1e-3, atol=1e-4)


def test_images_are_enlarged_by_repeating_pixels_and_shrunk_by_averaging_them():
    x = normal(2, 3, 4, 2)
    np.testing.assert_array_equal(upsample(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(downsample(upsample(jnp.asarray(x))), x, atol=1e-6)
    expected = np.stack([x[:, :2].mean(1), x[:, 2]], axis=1)  # the last row of an odd side has no neighbour
    np.testing.assert_allclose(downsample(jnp.asarray(x)), expected.reshape(2, 2, 2, 2, 2).mean(3), atol=1e-6)
