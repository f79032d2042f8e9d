"""Causal attention by blocks of rows, which is faster on a CPU."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gen.core import Array
from gen.networks.kernels.sums import over_channels


def once(mask: Array) -> Array:
    """The mask [B, ...] from a loop on a CPU, so that it is in memory: XLA would compute it again for each score of each layer."""
    return jax.lax.platform_dependent(
        ~mask, cpu=lambda hidden: jax.lax.map(jnp.logical_not, hidden), default=jnp.logical_not
    )


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
