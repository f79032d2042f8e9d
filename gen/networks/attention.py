"""Attention: by cuDNN's fused kernel where it can be used, by rows on a CPU where that saves half of it, else by the formula.

Names of axes as in gen/networks/transformer.py.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from gen.core import Array
from gen.networks.sums import over_channels


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


def once(mask: Array) -> Array:
    """The mask [B, ...] from a loop on a CPU, so that it is in memory: XLA would compute it again for each score of each layer."""
    return jax.lax.platform_dependent(
        ~mask, cpu=lambda hidden: jax.lax.map(jnp.logical_not, hidden), default=jnp.logical_not
    )


# --- by rows ---


def by_rows(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, mask_BNTT: Array) -> Array:
    """`formula` under a mask that hides all places s > t."""
    each = query_BTNH.shape[2] // key_BTKH.shape[2]
    q = query_BTNH.swapaxes(1, 2) / math.sqrt(query_BTNH.shape[-1])
    k, v = (jnp.repeat(x, each, axis=2).swapaxes(1, 2) for x in (key_BTKH, value_BTKH))
    return triangle(q, k, v, mask_BNTT).swapaxes(1, 2)


@jax.custom_vjp
def triangle(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """softmax(q k) v, [B, N, T, H], of a few places t at a time, which see the keys up to the last of them."""
    return forward(q, k, v, mask)[0]


def forward(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, tuple]:
    """Its value; and for the gradient also, of each part, the softmax's numerators and one over their sums."""
    ys, kept = [], []
    k_H = turned(k)
    for rows in parts(q.shape[2]):
        seen = slice(0, rows.stop)
        s = q[:, :, rows] @ k_H[..., seen]
        s = jnp.where(mask[:, :, rows, seen], s, jnp.finfo(s.dtype).min)
        e = jnp.exp(s - largest(s))
        over = 1 / over_channels(e)
        ys.append(e @ v[:, :, seen] * over)
        kept.append((e, over))
    y = jnp.concatenate(ys, axis=2)
    return y, (q, k, v, y, kept)


def backward(residuals: tuple, g: Array) -> tuple[Array, Array, Array, None]:
    """With p = softmax(q k): dv = p^T g; ds = p (g v - y g), since sum_s p (g v) = y g; dq = ds k; dk = ds^T q."""
    q, k, v, y, kept = residuals
    q_H, v_H = turned(q), turned(v)
    dq, dk_H, dv_H = [], jnp.zeros_like(q_H), jnp.zeros_like(v_H)
    for rows, (e, over) in zip(parts(q.shape[2]), kept, strict=True):
        seen = slice(0, rows.stop)
        g_over = g[:, :, rows] * over
        mean = (g_over * y[:, :, rows]).sum(-1, keepdims=True)
        ds = e * (g_over @ v_H[..., seen] - mean)
        dq.append(ds @ k[:, :, seen])
        dk_H = dk_H.at[..., seen].add(q_H[..., rows] @ ds)
        dv_H = dv_H.at[..., seen].add(turned(g_over) @ e)
    return jnp.concatenate(dq, axis=2), dk_H.swapaxes(2, 3), dv_H.swapaxes(2, 3), None


def turned(x: Array) -> Array:
    """[..., T, H] -> [..., H, T] in memory, so that products need no transposed scores: they are half as fast, or less."""
    return jax.lax.optimization_barrier(x.swapaxes(-1, -2))


def largest(x: Array) -> Array:
    """The maximum over the last axis, kept: of 16 lanes first, which XLA makes vectors of."""
    if x.shape[-1] % 16:
        return x.max(-1, keepdims=True)
    lanes = x.reshape(*x.shape[:-1], -1, 16).max(-2)
    return jax.lax.optimization_barrier(lanes).max(-1, keepdims=True)


triangle.defvjp(forward, backward)


def parts(places: int) -> list[slice]:
    """At least 128 at a time, and not more than 16 times."""
    size = max(128, math.ceil(places / 16))
    return [slice(start, min(start + size, places)) for start in range(0, places, size)]
