"""Formulas that are only faster on a CPU have the values and gradients of the plain formulas."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.networks import attention, layers
from gen.networks.kernels import attention as kernels_attention
from gen.networks.kernels import dense, normalization, sums

B, T, N, H = 2, 300, 4, 8  # T makes three blocks of rows, the last of them short
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def values_and_gradients(form, given, weight):
    """Values of form(*given), and the gradients of their sum with this weight by both arguments."""

    def total(*given):
        return (form(*given) * weight).sum()

    return form(*given), jax.grad(total, argnums=(0, 1))(*given)


def lowered(function, *given, platform: str) -> str:
    """The program of a function for a platform, which need not be here."""
    return jax.jit(function).trace(*given).lower(lowering_platforms=(platform,)).as_text()


def masks() -> dict[str, np.ndarray]:
    distance = np.arange(T)[:, None] - np.arange(T)[None]
    causal = np.broadcast_to(distance >= 0, (B, 1, T, T))
    segment = np.array([[0] * 50 + [1] * 250, [0] * 200 + [1] * 100])
    same = segment[:, None, :, None] == segment[:, None, None, :]
    return {"causal": causal, "documents": causal & same, "window": causal & (distance < 20)[None, None]}


@pytest.mark.parametrize("heads", [N, 2])
@pytest.mark.parametrize("mask", masks().values(), ids=masks())
@pytest.mark.slow
def test_attention_by_rows_equals_attention_at_once(mask, heads):
    query, key, value = normal(0, B, T, N, H), normal(1, B, T, heads, H), normal(2, B, T, heads, H)
    weight, seen = normal(3, B, T, N, H), jnp.asarray(mask)

    def plain(q, k, v):
        return attention.attend_at_once(q, k, v, None, seen)

    def by_rows(q, k, v):
        return attention.attend(q, k, v, None, seen, causal=True)

    def gradients(form):
        return jax.grad(lambda *qkv: (form(*qkv) * weight).sum(), argnums=(0, 1, 2))(query, key, value)

    assert "custom_vjp" in str(jax.make_jaxpr(by_rows)(query, key, value))
    close(by_rows(query, key, value), plain(query, key, value))
    jax.tree.map(close, gradients(by_rows), gradients(plain))


@pytest.mark.parametrize("rows", [1, 64, 65, 1000, 5000])
def test_row_blocks_cover_all_rows_in_at_most_16_blocks(rows):
    blocks = kernels_attention.row_blocks(rows)
    assert [i for block in blocks for i in range(rows)[block]] == list(range(rows))
    assert len(blocks) <= 16


@pytest.mark.parametrize("size", [5, 16, 48])
def test_the_maximum_by_lanes_equals_the_maximum(size):
    x = normal(0, 3, 7, size)
    np.testing.assert_array_equal(kernels_attention.max_last(x), x.max(-1, keepdims=True))


@pytest.mark.parametrize(("platform", "loop"), [("cpu", True), ("cuda", False)])
def test_store_mask_changes_no_mask_and_makes_a_loop_only_on_a_cpu(platform, loop):
    mask = jnp.asarray(masks()["documents"])
    np.testing.assert_array_equal(kernels_attention.store_mask(mask), mask)
    assert ("while" in lowered(kernels_attention.store_mask, mask, platform=platform)) == loop


@pytest.mark.parametrize("widths", [(3,), (3, 5, 4)])
def test_joined_products_equal_separate_products(widths):
    x, kernels = normal(0, 2, 7, 6), tuple(normal(1, 6, width) for width in widths)
    weights = [normal(2, 2, 7, width) for width in widths]

    def plain(x, kernels):
        return [jnp.einsum("btd,df->btf", x, kernel) for kernel in kernels]

    def gradients(form):
        def total(x, kernels):
            return sum((y * w).sum() for y, w in zip(form(x, kernels), weights, strict=True))

        return jax.grad(total, argnums=(0, 1))(x, kernels)

    for a, b in zip(dense.products(x, kernels), plain(x, kernels), strict=True):
        close(a, b)
    jax.tree.map(close, gradients(dense.products), gradients(plain))


@pytest.mark.parametrize(("platform", "joined"), [("cpu", True), ("cuda", False)])
def test_kernels_are_joined_only_on_a_cpu(platform, joined):
    def total(x, kernels):
        return sum(y.sum() for y in dense.products(x, kernels))

    given = normal(0, 2, 7, 6), (normal(1, 6, 3), normal(2, 6, 5))
    assert ("concatenate" in lowered(jax.grad(total, argnums=1), *given, platform=platform)) == joined


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_equals_flax_in_values_and_derivatives_of_both_orders(bias, in_float64):
    """From the same key, and for rows of any shape. The second order is the gradient of a gradient penalty."""
    x, weights = normal(0, 150, 2, 60), normal(1, 150, 2, 64)
    options = {"use_bias": bias, "dtype": x.dtype, "param_dtype": x.dtype}
    ours, theirs = layers.Dense(64, **options), nn.Dense(64, **options)
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(close, params, theirs.init(jax.random.key(0), x))

    def derivatives(layer):
        def total(params, x):
            return (jnp.tanh(layer.apply(params, x)) * weights).sum()

        def penalty(params, x):
            return jnp.square(jax.grad(total, 1)(params, x)).sum()

        return layer.apply(params, x), jax.grad(total, (0, 1))(params, x), jax.grad(penalty, (0, 1))(params, x)

    jax.tree.map(close, derivatives(ours), derivatives(theirs))


@pytest.mark.parametrize("centered", [True, False])
def test_normalization_of_examples_equals_flax(centered):
    x, scale, weight = 3 + normal(0, 6, 50, 64), 1 + normal(1, 64), normal(2, 6, 50, 64)
    assert x.size > sums.MIN_SIZE
    layer = nn.LayerNorm(epsilon=1e-5, use_bias=False) if centered else nn.RMSNorm(epsilon=1e-5)

    def ours(x, scale):
        return normalization.normalize_examples(x, scale, centered)

    def theirs(x, scale):
        return layer.apply({"params": {"scale": scale}}, x)

    found, expected = (values_and_gradients(form, (x, scale), weight) for form in (ours, theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.slow
def test_normalization_of_channels_equals_flax_over_devices_and_in_derivatives_of_both_orders(in_float64):
    x, scale, weight = 2 + normal(0, 2, 90, 4, 4, 16), 1 + normal(1, 16), normal(2, 2, 90, 4, 4, 16)
    assert x.dtype == jnp.float64
    assert x[0].size > sums.MIN_SIZE
    layer = nn.BatchNorm(use_running_average=False, axis_name="data", epsilon=1e-5, use_bias=False, momentum=0.0)
    begun = {"mean": jnp.zeros(16), "var": jnp.ones(16)}

    def theirs(x, scale):
        y, new = layer.apply({"params": {"scale": scale}, "batch_stats": begun}, x, mutable=["batch_stats"])
        return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]

    def on_two_devices(function):
        return jax.vmap(function, in_axes=(0, None, 0), axis_name="data")(x, scale, weight)

    def loss(form, x, scale, weight):
        return (jnp.tanh(form(x, scale)[0]) * weight).sum()

    def penalty(form, *given):  # like the gradient penalty of a discriminator
        return jnp.square(jax.grad(loss, argnums=1)(form, *given)).sum()

    forms = normalization.normalize_channels, theirs
    jax.tree.map(close, *(on_two_devices(lambda x, scale, _, form=form: form(x, scale)) for form in forms))
    for objective in (loss, penalty):
        gradients = [on_two_devices(partial(jax.grad(objective, argnums=(1, 2)), form)) for form in forms]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8), *gradients)


@pytest.mark.parametrize("shape", [(3, 4), (100, 7, 33)])
def test_sums_by_products_equal_sums(shape):
    x, row = normal(0, *shape), normal(1, shape[-1])
    axes = tuple(range(len(shape) - 1))
    close(sums.sum_rows(x), x.sum(axes), atol=1e-4)
    close(sums.sum_channels(x), x.sum(-1, keepdims=True), atol=1e-4)
    close(sums.sum_channels(x, row), (x @ row)[..., None], atol=1e-4)
    close(jax.grad(lambda x: (sums.sum_rows(x) * row).sum())(x), np.broadcast_to(row, shape))
    close(jax.grad(lambda row: (sums.to_rows(row, shape) * x).sum())(row), x.sum(axes), atol=1e-4)


@pytest.mark.parametrize(("platform", "product"), [("cpu", True), ("cuda", False)])
def test_sums_are_products_only_on_a_cpu(platform, product):
    assert ("dot_general" in lowered(sums.sum_rows, normal(0, 2000, 16), platform=platform)) == product
