"""What a processor computes otherwise than it is written, against as it is written."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.networks import attention, layers
from gen.networks.kernels import attention as kernels_attention
from gen.networks.kernels import dense, normalization, sums

B, T, N, H = 2, 300, 4, 8  # three parts, of which the last is short
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def masks() -> dict[str, np.ndarray]:
    distance = np.arange(T)[:, None] - np.arange(T)[None]
    causal = np.broadcast_to(distance >= 0, (B, 1, T, T))
    segment = np.array([[0] * 50 + [1] * 250, [0] * 200 + [1] * 100])
    same = segment[:, None, :, None] == segment[:, None, None, :]
    return {"causal": causal, "documents": causal & same, "window": causal & (distance < 20)[None, None]}


@pytest.mark.parametrize("heads", [N, 2])
@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_attention_by_rows_is_attention_in_values_and_gradients(mask, heads):
    given = normal(0, B, T, N, H), normal(1, B, T, heads, H), normal(2, B, T, heads, H)
    seen = jnp.asarray(mask)
    plain = lambda q, k, v: attention.formula(q, k, v, None, seen)
    by_rows = lambda q, k, v: attention.attend(q, k, v, None, seen, causal=True)
    assert "custom_vjp" in str(jax.make_jaxpr(by_rows)(*given))
    weight = normal(3, B, T, N, H)
    for f in (lambda form: form, lambda form: jax.grad(lambda *qkv: (form(*qkv) * weight).sum(), argnums=(0, 1, 2))):
        jax.tree.map(close, f(by_rows)(*given), f(plain)(*given))


@pytest.mark.parametrize("places", [1, 64, 65, 1000, 5000])
def test_parts_are_all_places_in_few_pieces(places):
    parts = kernels_attention.parts(places)
    assert [i for part in parts for i in range(places)[part]] == list(range(places))
    assert len(parts) <= 16


@pytest.mark.parametrize("widths", [(3,), (3, 5, 4)])
def test_products_are_products_in_values_and_gradients(widths):
    x, kernels = normal(0, 2, 7, 6), tuple(normal(1, 6, width) for width in widths)
    weights = [normal(2, 2, 7, width) for width in widths]
    total = lambda ys: sum((y * w).sum() for y, w in zip(ys, weights, strict=True))
    plain = lambda x, kernels: [jnp.einsum("btd,df->btf", x, kernel) for kernel in kernels]
    for a, b in zip(dense.products(x, kernels), plain(x, kernels), strict=True):
        close(a, b)
    gradients = lambda form: jax.grad(lambda *args: total(form(*args)), argnums=(0, 1))(x, kernels)
    jax.tree.map(close, gradients(dense.products), gradients(plain))


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_is_flax_s_in_values_gradients_and_theirs(bias, in_float64):
    """From the same key, for rows of any shape; the gradients of a gradient penalty too."""
    x, weights = normal(0, 150, 2, 60), normal(1, 150, 2, 64)
    options = {"use_bias": bias, "dtype": x.dtype, "param_dtype": x.dtype}
    ours, theirs = layers.Dense(64, **options), nn.Dense(64, **options)
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(close, params, theirs.init(jax.random.key(0), x))

    def derivatives(layer):
        total = lambda params, x: (jnp.tanh(layer.apply(params, x)) * weights).sum()
        penalty = lambda params, x: jnp.square(jax.grad(total, 1)(params, x)).sum()
        return layer.apply(params, x), jax.grad(total, (0, 1))(params, x), jax.grad(penalty, (0, 1))(params, x)

    jax.tree.map(close, derivatives(ours), derivatives(theirs))


@pytest.mark.parametrize(("platform", "joined"), [("cpu", True), ("cuda", False)])
def test_only_a_processor_joins_kernels(platform, joined):
    x, kernels = normal(0, 2, 7, 6), (normal(1, 6, 3), normal(2, 6, 5))
    gradient = jax.jit(jax.grad(lambda x, kernels: sum(y.sum() for y in dense.products(x, kernels)), argnums=1))
    text = gradient.trace(x, kernels).lower(lowering_platforms=(platform,)).as_text()
    assert ("concatenate" in text) == joined


@pytest.mark.parametrize("centered", [True, False])
def test_normalization_of_an_example_is_flax_s_in_values_and_gradients(centered):
    x, scale, weight = 3 + normal(0, 6, 50, 64), 1 + normal(1, 64), normal(2, 6, 50, 64)
    assert x.size > sums.FEW
    plain = nn.LayerNorm(epsilon=1e-5, use_bias=False) if centered else nn.RMSNorm(epsilon=1e-5)
    forms = (
        lambda x, s: normalization.by_example(x, s, centered),
        lambda x, s: plain.apply({"params": {"scale": s}}, x),
    )
    ours, flax_s = (values_and_gradients(form, (x, scale), weight) for form in forms)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, flax_s)


def test_normalization_of_channels_is_flax_s_over_devices_in_values_gradients_and_theirs(in_float64):
    x, scale, weight = 2 + normal(0, 2, 90, 4, 4, 16), 1 + normal(1, 16), normal(2, 2, 90, 4, 4, 16)
    assert x.dtype == jnp.float64
    assert x[0].size > sums.FEW
    plain = nn.BatchNorm(use_running_average=False, axis_name="data", epsilon=1e-5, use_bias=False, momentum=0.0)
    begun = {"mean": jnp.zeros(16), "var": jnp.ones(16)}

    def flax_s(x, scale):
        y, new = plain.apply({"params": {"scale": scale}, "batch_stats": begun}, x, mutable=["batch_stats"])
        return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]

    over = lambda f: jax.vmap(f, in_axes=(0, None, 0), axis_name="data")(x, scale, weight)
    forms = normalization.by_channel, flax_s
    jax.tree.map(close, *(over(lambda x, scale, _, form=form: form(x, scale)) for form in forms))

    def loss(form, x, scale, weight):
        return (jnp.tanh(form(x, scale)[0]) * weight).sum()

    def penalty(form, *given):  # as of a discriminator's gradient
        return jnp.square(jax.grad(loss, argnums=1)(form, *given)).sum()

    for f in (loss, penalty):
        gradients = [over(partial(jax.grad(f, argnums=(1, 2)), form)) for form in forms]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8), *gradients)


def values_and_gradients(form, given, weight):
    total = lambda *given: (form(*given) * weight).sum()
    return form(*given), jax.grad(total, argnums=(0, 1))(*given)


@pytest.mark.parametrize("shape", [(3, 4), (100, 7, 33)])
def test_sums_are_sums_in_values_and_gradients(shape):
    x, row = normal(0, *shape), normal(1, shape[-1])
    axes = tuple(range(len(shape) - 1))
    close(sums.over_rows(x), x.sum(axes), atol=1e-4)
    close(sums.over_channels(x), x.sum(-1, keepdims=True), atol=1e-4)
    close(sums.over_channels(x, row), (x @ row)[..., None], atol=1e-4)
    close(jax.grad(lambda x: (sums.over_rows(x) * row).sum())(x), np.broadcast_to(row, shape))
    close(jax.grad(lambda row: (sums.to_rows(row, shape) * x).sum())(row), x.sum(axes), atol=1e-4)


@pytest.mark.parametrize(("platform", "product"), [("cpu", True), ("cuda", False)])
def test_only_a_processor_sums_by_products(platform, product):
    text = jax.jit(sums.over_rows).trace(normal(0, 2000, 16)).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) == product


@pytest.mark.parametrize(("platform", "loop"), [("cpu", True), ("cuda", False)])
def test_a_mask_is_the_same_and_once_in_memory_of_a_processor(platform, loop):
    mask = jnp.asarray(masks()["documents"])
    np.testing.assert_array_equal(kernels_attention.once(mask), mask)
    text = jax.jit(kernels_attention.once).trace(mask).lower(lowering_platforms=(platform,)).as_text()
    assert ("while" in text) == loop
