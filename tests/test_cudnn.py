"""Attention by cuDNN's fused kernel, lowered for a GPU. No GPU is needed, because JAX refuses wrong shapes while it lowers."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as binding

from gen.networks.attention import attend

B, T, S, N, H = 4, 6, 8, 4, 8
MASKS = {"per position": (B, 1, T, S), "per example": (B, 1, 1, S), "none": None}


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """JAX believes that it runs on a GPU with a recent cuDNN."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(binding, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(binding, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(binding, "is_cuda_compute_capability_equal", lambda capability: False)


def gradient(query, key, value, bias, mask):
    """Gradients, as the engine pmap computes them."""
    argnums = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    return jax.grad(lambda q, k, v, b: attend(q, k, v, b, mask).sum(), argnums=argnums)(query, key, value, bias)


def gradient_on_an_axis(query, key, value, bias, mask):
    """Gradients, as the engine jit computes them: mapped over an axis of size one. Parameters such as the bias are not mapped."""

    def one(x):
        return None if x is None else x[None]

    axes = (0, 0, 0, None, None if mask is None else 0)
    return jax.vmap(gradient, in_axes=axes)(one(query), one(key), one(value), bias, one(mask))


def one_by_one(query, key, value, bias, mask):
    """Values, mapped over examples."""

    def alone(q, k, v, m):
        return attend(q[None], k[None], v[None], bias, None if m is None else m[None])

    return jax.vmap(alone, in_axes=(0, 0, 0, None if mask is None else 0))(query, key, value, mask)


def shape_of(*shape: int, dtype=jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("heads", [N, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("function", [gradient, gradient_on_an_axis, one_by_one])
def test_the_fused_kernel_takes_every_mask(function, shape, biased, heads):
    mask = None if shape is None else shape_of(*shape, dtype=bool)
    bias = shape_of(1, N, T, S) if biased else None
    given = shape_of(B, T, N, H), shape_of(B, S, heads, H), shape_of(B, S, heads, H), bias, mask
    text = jax.jit(function).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn$fmha" in text


@pytest.mark.parametrize(("t", "h", "dtype"), [(T - 1, H, jnp.bfloat16), (T, 12, jnp.bfloat16), (T, H, jnp.float32)])
def test_xla_computes_shapes_and_dtypes_that_the_fused_kernel_does_not_take(t, h, dtype):
    keys, mask = shape_of(B, S, N, h, dtype=dtype), shape_of(B, 1, t, S, dtype=bool)
    given = shape_of(B, t, N, h, dtype=dtype), keys, keys, None, mask
    text = jax.jit(attend).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn" not in text
