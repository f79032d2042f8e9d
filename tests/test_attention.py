"""What a processor computes otherwise than it is written, against as it is written."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.networks import attention, linear

B, T, N, H = 2, 130, 4, 8  # three parts, of which the last is short
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def masks() -> dict[str, np.ndarray]:
    distance = np.arange(T)[:, None] - np.arange(T)[None]
    causal = np.broadcast_to(distance >= 0, (B, 1, T, T))
    segment = np.array([[0] * 50 + [1] * 80, [0] * 100 + [1] * 30])
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
    parts = attention.parts(places)
    assert [i for part in parts for i in range(places)[part]] == list(range(places))
    assert len(parts) <= 16


@pytest.mark.parametrize("widths", [(3,), (3, 5, 4)])
def test_products_are_products_in_values_and_gradients(widths):
    x, kernels = normal(0, 2, 7, 6), tuple(normal(1, 6, width) for width in widths)
    weights = [normal(2, 2, 7, width) for width in widths]
    total = lambda ys: sum((y * w).sum() for y, w in zip(ys, weights, strict=True))
    plain = lambda x, kernels: [jnp.einsum("btd,df->btf", x, kernel) for kernel in kernels]
    for a, b in zip(linear.products(x, kernels), plain(x, kernels), strict=True):
        close(a, b)
    gradients = lambda form: jax.grad(lambda *args: total(form(*args)), argnums=(0, 1))(x, kernels)
    jax.tree.map(close, gradients(linear.products), gradients(plain))


@pytest.mark.parametrize(("platform", "joined"), [("cpu", True), ("cuda", False)])
def test_only_a_processor_joins_kernels(platform, joined):
    x, kernels = normal(0, 2, 7, 6), (normal(1, 6, 3), normal(2, 6, 5))
    gradient = jax.jit(jax.grad(lambda x, kernels: sum(y.sum() for y in linear.products(x, kernels)), argnums=1))
    text = gradient.trace(x, kernels).lower(lowering_platforms=(platform,)).as_text()
    assert ("concatenate" in text) == joined
