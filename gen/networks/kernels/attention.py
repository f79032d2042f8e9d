"""Causal attention by blocks of rows (queries), which is faster on a CPU: it skips most scores that the mask hides."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen.core import Array
from gen.networks.kernels.sums import sum_channels

# Minimum number of rows of a block. Smaller blocks would skip more hidden scores, but multiply less efficiently.
MIN_ROWS = 128
# Every block is written out in the compiled program, so this bounds the length of the program.
MAX_BLOCKS = 16
# Numbers that a vector instruction takes at once: 16 float32 with AVX-512.
LANES = 16


def store_mask(mask: Array) -> Array:
    """Returns the mask, bool [B, ...], unchanged, but makes a CPU compute it once and keep it in memory.

    XLA would otherwise fuse the formula of the mask into every use, and compute it again for each score of each layer. A loop
    that negates the negated mask prevents that. On other backends the two negations cancel.
    """

    def loop(hidden: Array) -> Array:
        return jax.lax.map(jnp.logical_not, hidden)

    return jax.lax.platform_dependent(~mask, cpu=loop, default=jnp.logical_not)


def attend_by_rows(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, mask_BNTT: Array) -> Array:
    """Returns the same as `gen.networks.attention.attend_at_once` without a bias, [B, T, N, H].

    mask: bool, broadcasts to [B, N, T, T]. It must hide each key s > t from query t.
    """
    groups = query_BTNH.shape[2] // key_BTKH.shape[2]
    # Scaling a query changes H numbers, and scaling its scores would change T.
    q = query_BTNH.swapaxes(1, 2) / math.sqrt(query_BTNH.shape[-1])
    k, v = (jnp.repeat(x, groups, axis=2).swapaxes(1, 2) for x in (key_BTKH, value_BTKH))
    return causal_attention(q, k, v, mask_BNTT).swapaxes(1, 2)


class Kept(NamedTuple):
    """Values of the forward pass that the gradient needs. q, k, v and the output y: [B, N, T, H]."""

    q: Array
    k: Array
    v: Array
    y: Array
    blocks: list[tuple[Array, Array]]
    """Softmax of each block of rows in two factors: e = exp(s - max s) [B, N, rows, seen], 1 / sum(e) [B, N, rows, 1].
    s: scores. seen: number of keys up to the last row of the block."""


@jax.custom_vjp
def causal_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Returns softmax(where(mask, q k^T, -inf)) v, [B, N, T, H]. q, k, v: [B, N, T, H]; mask: bool, broadcasts to [B, N, T, T].

    The mask must hide each key s > t from query t. So each block of queries is only multiplied with the keys up to its
    last query. The scores are not scaled: the caller divides q by sqrt(H).
    """
    return _forward(q, k, v, mask)[0]


def _forward(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Kept]:
    # Python's loop, not XLA's: each block has its own number of keys, and XLA needs fixed shapes.
    ys, blocks = [], []
    k_transposed = transpose_in_memory(k)
    for rows in row_blocks(q.shape[2]):
        seen = slice(0, rows.stop)
        s = q[:, :, rows] @ k_transposed[..., seen]
        s = jnp.where(mask[:, :, rows, seen], s, jnp.finfo(s.dtype).min)
        e = jnp.exp(s - max_last(s))
        inverse = 1 / sum_channels(e)
        # Dividing after the product divides H numbers per row instead of all scores.
        ys.append(e @ v[:, :, seen] * inverse)
        blocks.append((e, inverse))
    y = jnp.concatenate(ys, axis=2)
    return y, Kept(q, k, v, y, blocks)


def _backward(kept: Kept, g: Array) -> tuple[Array, Array, Array, None]:
    """Returns the gradients (dq, dk, dv, None for the mask), given the gradient g of the output y.

    With p = softmax(q k): dv = p^T g; ds = p (g v - y g), since sum_s p (g v) = y g; dq = ds k; dk = ds^T q.
    """
    q, k, v, y, blocks = kept
    q_transposed, v_transposed = transpose_in_memory(q), transpose_in_memory(v)
    dq, dk_transposed, dv_transposed = [], jnp.zeros_like(q_transposed), jnp.zeros_like(v_transposed)
    for rows, (e, inverse) in zip(row_blocks(q.shape[2]), blocks, strict=True):
        seen = slice(0, rows.stop)
        g_inverse = g[:, :, rows] * inverse
        # sum_s p (g v) = y g, which sums H numbers per row instead of all scores.
        mean = (g_inverse * y[:, :, rows]).sum(-1, keepdims=True)
        ds = e * (g_inverse @ v_transposed[..., seen] - mean)
        dq.append(ds @ k[:, :, seen])
        # Each block adds to the gradients of all keys that it has seen.
        dk_transposed = dk_transposed.at[..., seen].add(q_transposed[..., rows] @ ds)
        dv_transposed = dv_transposed.at[..., seen].add(transpose_in_memory(g_inverse) @ e)
    return jnp.concatenate(dq, axis=2), dk_transposed.swapaxes(2, 3), dv_transposed.swapaxes(2, 3), None


causal_attention.defvjp(_forward, _backward)


def transpose_in_memory(x: Array) -> Array:
    """Returns x [..., T, H] as [..., H, T], copied to memory in that order.

    A matrix product is fastest if its factors lie in memory in the order in which it reads them. Without this copy, the products of
    `causal_attention` take at least twice as long. The optimization barrier keeps XLA from merging the transpose into a product.
    """
    return jax.lax.optimization_barrier(x.swapaxes(-1, -2))


def max_last(x: Array) -> Array:
    """Returns x.max(-1, keepdims=True). First takes the maximum in each of LANES lanes, which XLA can vectorize."""
    if x.shape[-1] % LANES:
        return x.max(-1, keepdims=True)
    # The barrier keeps XLA from merging both steps into one reduction again.
    lanes = x.reshape(*x.shape[:-1], -1, LANES).max(-2)
    return jax.lax.optimization_barrier(lanes).max(-1, keepdims=True)


def row_blocks(rows: int) -> list[slice]:
    """Divides range(rows) into at most MAX_BLOCKS slices of at least MIN_ROWS indices (the last may be shorter)."""
    size = max(MIN_ROWS, math.ceil(rows / MAX_BLOCKS))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
