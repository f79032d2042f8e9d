"""Attention. It uses cuDNN's fused kernel on a GPU, blocks of rows on a CPU, and the plain formula where neither applies.

Axes are named as in gen.networks.transformer.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from gen.core import Array
from gen.networks.kernels.attention import attend_by_rows


def attend(
    query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, bias: Array | None, mask: Array | None, causal: bool = False
) -> Array:
    """Returns softmax(q k / sqrt(H) + bias) v, [B, T, N, H], over the positions where the mask is true.

    bias, mask (bool): broadcast to [B, N, T, S]. None: no bias, and every position is attended to. N query heads share K
    heads of keys and values: query head n uses head n // (N / K). causal: True promises that T = S and that the mask hides
    each s > t. It then allows a faster form on a CPU, with the same result.
    """
    # The form by rows computes the softmax in the dtype of its inputs, and half precision is too coarse for that.
    exact = query_BTNH.dtype in (jnp.float32, jnp.float64)
    if causal and bias is None and mask is not None and exact and jax.default_backend() == "cpu":
        return attend_by_rows(query_BTNH, key_BSKH, value_BSKH, mask)
    return attend_at_once(query_BTNH, key_BSKH, value_BSKH, bias, mask)


def attend_at_once(
    query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, bias: Array | None, mask: Array | None
) -> Array:
    """Returns the same as `attend`, but always computes all scores [B, N, T, S] at once.

    It calls `jax.nn.dot_product_attention`, or for float64 computes the formula itself.
    """
    if query_BTNH.dtype == jnp.float64:
        return _attend_float64(query_BTNH, key_BSKH, value_BSKH, bias, mask)
    half = query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    (b, t, n, h), s = query_BTNH.shape, key_BSKH.shape[1]
    # The shapes and dtypes that cuDNN's fused kernel takes.
    fits = h % 8 == 0 and h <= 128 and t % 2 == s % 2 == 0
    fused = jax.default_backend() == "gpu" and half and fits
    if fused and mask is not None:
        # JAX passes a mask on to cuDNN only if it has all positions, and under vmap only if it has all heads.
        mask = jnp.broadcast_to(mask, (b, n, t, s))
    how: Literal["cudnn"] | None = "cudnn" if fused else None
    return jax.nn.dot_product_attention(query_BTNH, key_BSKH, value_BSKH, bias, mask, implementation=how)


def _attend_float64(
    query_BTNH: Array, key_BSKH: Array, value_BSKH: Array, bias: Array | None, mask: Array | None
) -> Array:
    """Returns the same as `attend_at_once`, in float64. JAX's own attention would compute the softmax in float32."""
    groups = query_BTNH.shape[2] // key_BSKH.shape[2]
    key_BSNH, value_BSNH = jnp.repeat(key_BSKH, groups, axis=2), jnp.repeat(value_BSKH, groups, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", query_BTNH, key_BSNH) / math.sqrt(query_BTNH.shape[-1])
    scores = scores if bias is None else scores + bias
    # The least finite number and not -inf: a query whose keys are all hidden would give NaN.
    scores = scores if mask is None else jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), value_BSNH)


def attend_cached(query_BTNH: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    """Returns the same as `attend`, [B, T, N, H], for keys and values [B K, S, H] from a cache.

    The first axis of keys and values has the K heads of each of B examples. For a single query, T = 1, it does not
    transpose the keys and values: the copy would take longer than the attention.
    """
    b, t, n, h = query_BTNH.shape
    k = len(key) // b
    if t > 1:
        key_BSKH, value_BSKH = (x.reshape(b, k, -1, h).swapaxes(1, 2) for x in (key, value))
        return attend(query_BTNH, key_BSKH, value_BSKH, bias, mask)
    real = jnp.promote_types(query_BTNH.dtype, jnp.float32)
    # All queries that share a head of keys become the rows of one product, with m = B K products in a batch.
    query = query_BTNH.reshape(b * k, n // k, h)
    scores = jnp.einsum("mgh,msh->mgs", query, key, preferred_element_type=real) / math.sqrt(h)
    scores_BNTS = scores.reshape(b, n, 1, -1)
    scores_BNTS = scores_BNTS if bias is None else scores_BNTS + bias
    scores_BNTS = scores_BNTS if mask is None else jnp.where(mask, scores_BNTS, jnp.finfo(real).min)
    weights = jax.nn.softmax(scores_BNTS).reshape(scores.shape).astype(value.dtype)
    return jnp.einsum("mgs,msh->mgh", weights, value).reshape(query_BTNH.shape)
