"""Attention: by cuDNN's fused kernel where it applies, by blocks of rows on a CPU, otherwise by the formula.

Names of axes as in gen/networks/transformer.py.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gen.core import Array
from gen.networks.kernels.attention import by_rows


def attend(
    query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, bias: Array | None, mask: Array | None, causal: bool = False
) -> Array:
    """softmax(q k / sqrt(H) + bias) v where the mask is true, [B, T, N, H]. causal: whether T = S and it hides each s > t."""
    whole = query_BTNH.dtype in (jnp.float32, jnp.float64)
    if causal and bias is None and mask is not None and whole and jax.default_backend() == "cpu":
        return by_rows(query_BTNH, key_BSKH, value_BSKH, mask)
    return formula(query_BTNH, key_BSKH, value_BSKH, bias, mask)


def formula(query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, bias: Array | None, mask: Array | None) -> Array:
    """By cuDNN's fused kernel where it can be used, else by what XLA makes of the formula. That of JAX has its softmax in float32,
    so float64 has one here."""
    if query_BTNH.dtype != jnp.float64:
        half = query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
        (b, t, n, h), s = query_BTNH.shape, key_BSKH.shape[1]
        fits = h % 8 == 0 and h <= 128 and t % 2 == s % 2 == 0
        fused = jax.default_backend() == "gpu" and half and fits
        if fused and mask is not None:  # JAX hands it over with all of its places only, and under vmap with all heads
            mask = jnp.broadcast_to(mask, (b, n, t, s))
        kernel: Any = jax.nn.dot_product_attention
        return kernel(query_BTNH, key_BSKH, value_BSKH, bias, mask, implementation="cudnn" if fused else None)
    each = query_BTNH.shape[2] // key_BSKH.shape[2]
    key_BSNH, value_BSNH = jnp.repeat(key_BSKH, each, axis=2), jnp.repeat(value_BSKH, each, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", query_BTNH, key_BSNH) / math.sqrt(query_BTNH.shape[-1])
    scores = scores if bias is None else scores + bias
    scores = scores if mask is None else jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), value_BSNH)


def attend_cached(query_BTNH: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    """`attend` to keys and values [B K, S, H]; from one place, T = 1, without a transposed copy of them."""
    b, t, n, h = query_BTNH.shape
    k = len(key) // b
    if t > 1:
        key_BSKH, value_BSKH = (x.reshape(b, k, -1, h).swapaxes(1, 2) for x in (key, value))
        return attend(query_BTNH, key_BSKH, value_BSKH, bias, mask)
    whole = jnp.promote_types(query_BTNH.dtype, jnp.float32)
    query = query_BTNH.reshape(b * k, n // k, h)
    scores = jnp.einsum("mgh,msh->mgs", query, key, preferred_element_type=whole) / math.sqrt(h)
    scores_BNTS = scores.reshape(b, n, 1, -1)
    scores_BNTS = scores_BNTS if bias is None else scores_BNTS + bias
    scores_BNTS = scores_BNTS if mask is None else jnp.where(mask, scores_BNTS, jnp.finfo(whole).min)
    shares = jax.nn.softmax(scores_BNTS).reshape(scores.shape).astype(value.dtype)
    return jnp.einsum("mgs,msh->mgh", shares, value).reshape(query_BTNH.shape)
