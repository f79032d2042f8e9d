"""Attention by cuDNN's fused kernel, lowered for a GPU that isn't there: JAX refuses shapes when it lowers."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as binding

from gen.networks.attention import attend

B, T, S, N, H = 4, 6, 8, 4, 8
MASKS = {"a place": (B, 1, T, S), "an example's keys": (B, 1, 1, S), "none": None}


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(binding, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(binding, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(binding, "is_cuda_compute_capability_equal", lambda capability: False)


def gradient(query, key, value, bias, mask):
    """As the engine pmap has it."""
    learned = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    return jax.grad(lambda q, k, v, b: attend(q, k, v, b, mask).sum(), argnums=learned)(query, key, value, bias)


def on_an_axis(query, key, value, bias, mask):
    """As the engine jit has it: mapped over an axis of size one, parameters such as the bias not."""
    one = lambda x: None if x is None else x[None]
    axes = (0, 0, 0, None, None if mask is None else 0)
    return jax.vmap(gradient, in_axes=axes)(one(query), one(key), one(value), bias, one(mask))


def each_alone(query, key, value, bias, mask):
    """As labels are scored: an example at a time, mapped over them."""
    alone = lambda q, k, v, m: attend(q[None], k[None], v[None], bias, None if m is None else m[None])
    return jax.vmap(alone, in_axes=(0, 0, 0, None if mask is None else 0))(query, key, value, mask)


@pytest.mark.parametrize("heads", [N, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("bound", [gradient, on_an_axis, each_alone])
def test_every_mask_is_one_that_the_kernel_takes(bound, shape, biased, heads):
    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    mask = None if shape is None else jax.ShapeDtypeStruct(shape, bool)
    given = of(B, T, N, H), of(B, S, heads, H), of(B, S, heads, H), of(1, N, T, S) if biased else None, mask
    text = jax.jit(bound).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn$fmha" in text


@pytest.mark.parametrize(("t", "h", "dtype"), [(T - 1, H, jnp.bfloat16), (T, 12, jnp.bfloat16), (T, H, jnp.float32)])
def test_what_the_kernel_has_not_is_left_to_xla(t, h, dtype):
    of = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    given = of(B, t, N, h), of(B, S, N, h), of(B, S, N, h), None, jax.ShapeDtypeStruct((B, 1, t, S), bool)
    text = jax.jit(attend).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    assert "cudnn" not in text
