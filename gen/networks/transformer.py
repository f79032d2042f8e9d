"""The transformer (Vaswani et al. 2017): a decoder, an encoder, or both, of the same blocks.

Names of arrays end in their axes: B examples, T places that are computed, S places that are looked at, N heads, K heads of
keys and values, H a head's width, D the model's width, F the hidden layer's, V vocabulary. Layers are stored stacked, [L, ...].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.axis import shard_examples
from gen.core import Array, Params
from gen.errors import UserError, check_positive
from gen.networks.attention import attend, attend_cached
from gen.networks.kernels.attention import once
from gen.networks.kernels.dense import products
from gen.networks.kernels.normalization import by_example
from gen.networks.kernels.sums import to_rows
from gen.networks.layers import dropout
from gen.networks.positions import FARTHEST, PADDING, PREFIX, RelativeBias, rotate, rotations

RULES = ((r"(out|down)/kernel$", -2), (r"embedding/embedding$", 0))
"""How devices divide a layer (Shoeybi et al. 2019): what comes out of the first matrix of each part, the last axis as of any
kernel, is what goes into the second; the embedding by tokens."""


@dataclass(frozen=True)
class Architecture:
    """What a transformer is made of. The defaults are nanoGPT's for characters."""

    layers: int = 6
    """Blocks; of an encoder-decoder, in each of the two."""
    width: int = 384
    """Channels between the blocks."""
    heads: int = 6
    """Attention heads, which share the width."""
    kv_heads: int | None = None
    """Heads of keys and values, each for heads / kv_heads of the queries (Ainslie et al. 2023); None: as many as heads."""
    hidden: int | None = None
    """Units of the feed-forward layers; None: 4 width, or 8/3 width with swiglu."""
    positions: Literal["learned", "rotary", "relative"] = "learned"
    """learned: a vector a place (as far as the training windows go); rotary (Su et al. 2021); relative: a bias by distance
    (Raffel et al. 2020)."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm (Zhang and Sennrich 2019), before each part of a block and at the end."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Of the feed-forward layers: GELU (the tanh form), or SwiGLU (Shazeer 2020)."""
    bias: bool = True
    """Whether dense layers and norms add a bias."""
    tied: bool = True
    """Read the logits with the embedding's matrix."""
    dropout: float = 0.0
    """Share of the units of embeddings and of each part's output that are dropped."""
    qk_norm: bool = False
    """Normalize queries and keys (Dehghani et al. 2023)."""
    logit_cap: float | None = None
    """Bound the logits softly: cap tanh(logits / cap) (Gemma 2)."""
    context: int | None = None
    """Places that are learned, or else that the model is used on; None: as many as the training windows have."""
    window: int | None = None
    """Attend to the last so many places only, which lets contexts grow beyond the training windows."""
    remat: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""
    unroll: int = 1
    """Blocks compiled one after the other in a turn of the loop over layers: more is slower to compile, and on a CPU
    faster."""

    def __post_init__(self):
        check_positive(layers=self.layers, width=self.width, heads=self.heads, unroll=self.unroll)
        for name in ("kv_heads", "hidden", "logit_cap", "context", "window"):
            if (value := getattr(self, name)) is not None:
                check_positive(**{name: value})
        if self.width % self.heads:
            raise UserError(f"width {self.width} can't be shared by {self.heads} heads; make it a multiple")
        if self.heads % (self.kv_heads or self.heads):
            raise UserError(f"{self.heads} heads can't share {self.kv_heads} kv_heads; make it a divisor")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise UserError(f"rotary turns pairs of channels, and a head has {self.width // self.heads}; make it even")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it is a share in [0, 1)")

    def tiny(self) -> Architecture:
        return replace(
            self,
            layers=2,
            width=16,
            heads=4,
            kv_heads=None if self.kv_heads is None else 2,
            hidden=None if self.hidden is None else 32,
            context=None,
            window=None if self.window is None else 4,
            unroll=1,
        )

    def inherit(self, base: Architecture, context: int) -> Architecture:
        """The base's network, which was trained on windows of `context`, run and regularized as this one is."""
        own = {"dropout": self.dropout, "remat": self.remat, "unroll": self.unroll}
        return replace(base, context=base.context or context, **own)


class Cache(NamedTuple):
    """What was read before: keys and values of each layer."""

    key: Array | tuple[Array, ...]
    """[L, B K, S, H]; of layers that are apart, L times [B K, S, H]."""
    value: Array | tuple[Array, ...]
    segment: Array
    """int32 [B, S]."""
    length: Array
    """int32 []: how many of the S places are filled."""


def empty_cache(arch: Architecture, batch: int, places: int, dtype: Any, apart: bool = False) -> Cache:
    """A cache with room for so many places. apart: for `layers_apart`."""
    shape = (batch * (arch.kv_heads or arch.heads), places, arch.width // arch.heads)
    kept = (jnp.zeros(shape, dtype),) * arch.layers if apart else jnp.zeros((arch.layers, *shape), dtype)
    segment = jnp.full((batch, places), PADDING, jnp.int32)
    return Cache(kept, kept, segment, jnp.zeros((), jnp.int32))


def unstack_layers(params: Params) -> Params:
    """The parameters with a tree for each layer instead of stacked ones, for a loop over tokens with a cache that is apart too: on
    a CPU, it would copy its slice of the stack for each token."""
    layers = params["layers"]
    layer = lambda i: jax.tree.map(lambda x: x[i], layers)
    return {**params, "layers": tuple(map(layer, range(len(jax.tree.leaves(layers)[0]))))}


class Transformer(nn.Module):
    """A stack of blocks between an embedding and logits."""

    arch: Architecture
    vocab: int
    context: int
    """Number of learned positions."""
    causal: bool
    """Whether a place sees only itself and what is before it."""
    dtypes: dict[str, Any]
    cross: bool = False
    """Whether each block also attends to an encoder's output."""
    readout: bool = True
    """Whether logits come out, or (an encoder) what they would be read from."""

    @nn.compact
    def __call__(
        self,
        tokens_BT: Array,
        segment_BT: Array,
        position_BT: Array,
        keys_B: Array | None = None,
        cache: Cache | None = None,
        memory_BSD: Array | None = None,
        memory_segment_BS: Array | None = None,
        begins: bool = True,
    ) -> tuple[Array, Cache | None]:
        """tokens, segment (PADDING: to be ignored) and position: int32 [B, T]. keys: [B] of dropout's noise, which belongs
        to the example; None for no dropout. With a cache, the tokens are the places after those that it holds.
        Parameters "prefix" [P, D], if there are any, stand before tokens that begin a text.

        -> logits [B, T, V], at least float32 (without readout: [B, T, D]), and the longer cache.
        """
        arch, dtypes = self.arch, self.dtypes
        embedding = nn.Embed(self.vocab, arch.width, embedding_init=normal(0.02), name="embedding", **dtypes)
        x = embedding(tokens_BT)
        if arch.positions == "learned":
            learned = nn.Embed(self.context, arch.width, embedding_init=normal(0.02), name="position", **dtypes)
            x += learned(position_BT)
        x = dropout(x, keys_B, 0, arch.dropout)

        prefix: Array = self.get_variable("params", "prefix", jnp.zeros((0, arch.width))).astype(x.dtype)
        position_BT += len(prefix)
        if begins and len(prefix):
            x = jnp.concatenate([jnp.broadcast_to(prefix[None], (len(x), *prefix.shape)), x], axis=1)
            before = jnp.arange(len(prefix), dtype=jnp.int32)[None]
            position_BT = jnp.concatenate([jnp.broadcast_to(before, (len(x), len(prefix))), position_BT], axis=1)
            segment_BT = jnp.pad(segment_BT, ((0, 0), (len(prefix), 0)), constant_values=PREFIX)
        index_T = jnp.arange(x.shape[1], dtype=jnp.int32)
        index_S, segment_BS = index_T, segment_BT
        if cache is not None:
            index_T += cache.length
            index_S = jnp.arange(cache.segment.shape[1], dtype=jnp.int32)
            segment_BS = jax.lax.dynamic_update_slice_in_dim(cache.segment, segment_BT, cache.length, axis=1)
        distance_TS = index_T[:, None] - index_S[None]
        mask = segment_BT[:, None, :, None] == segment_BS[:, None, None, :]
        if arch.window is not None:
            mask &= (jnp.abs(distance_TS) < arch.window)[None, None]
        mask |= (segment_BS == PREFIX)[:, None, None, :]
        if self.causal:
            mask &= (distance_TS >= 0)[None, None]
        if cache is None:
            mask = once(mask)
        bias = rotation = None
        if arch.positions == "relative":  # the prefix is as far from all, however much padding is between
            distance_TS = jnp.where((index_S < len(prefix))[None], FARTHEST, distance_TS)
            bias = RelativeBias(arch.heads, self.causal, dtypes, name="relative")(distance_TS)[None]
        if arch.positions == "rotary":
            rotation = rotations(position_BT, arch.width // arch.heads, jnp.promote_types(x.dtype, jnp.float32))
        memory_mask = None if memory_segment_BS is None else (memory_segment_BS != PADDING)[:, None, None, :]

        block = nn.remat(Block, prevent_cse=False) if arch.remat else Block
        same: Any = nn.broadcast
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, same, same, same, same, same, same, same),  # pyright: ignore[reportArgumentType]
            length=arch.layers,
            unroll=min(arch.unroll, arch.layers),
        )(arch, self.cross, self.causal and cache is None, dtypes, name="layers")
        kept = None if cache is None else (cache.key, cache.value)
        at = None if cache is None else cache.length
        layer = jnp.arange(arch.layers, dtype=jnp.int32)
        shared = (keys_B, mask, bias, rotation, at, memory_BSD, memory_mask)
        if cache is not None and isinstance(cache.key, tuple):
            alone, each = Block(arch, self.cross, False, dtypes, parent=None), []
            for own, *of_layer in zip(self.get_variable("params", "layers"), cache.key, cache.value, strict=True):
                (x, of_layer), _ = alone.apply({"params": own}, (x, of_layer), 0, *shared)
                each.append(of_layer)
            keys, values = zip(*each, strict=True)
            kept = keys, values
        else:
            (x, kept), _ = stack((x, kept), layer, *shared)
        if cache is not None:
            assert kept is not None
            cache = Cache(kept[0], kept[1], segment_BS, cache.length + x.shape[1])
        x = norm(arch, dtypes, "norm")(x[:, -tokens_BT.shape[1] :])
        if not self.readout:
            return x, cache
        whole = jnp.promote_types(x.dtype, jnp.float32)
        if arch.tied:
            table = embedding.embedding.astype(x.dtype)
            logits = jnp.einsum("btd,vd->btv", x, table, preferred_element_type=whole)
        else:
            into = partial(jax.lax.dot_general, preferred_element_type=whole)
            how: Any = {"use_bias": False, "kernel_init": normal(0.02), "dot_general": into, **dtypes}
            logits = nn.Dense(self.vocab, name="head", **how)(x)
        if arch.logit_cap is not None:
            logits = arch.logit_cap * jnp.tanh(logits / arch.logit_cap)
        return logits, cache


class Block(nn.Module):
    """x + attention(norm(x)), the same with an encoder's output if there is one, then x + feed_forward(norm(x))."""

    arch: Architecture
    cross: bool
    causal: bool
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, carry, layer, keys, mask, bias, rotation, at, memory, memory_mask):
        (x, kept), arch, dtypes = carry, self.arch, self.dtypes
        x = shard_examples.get()(x)
        after = lambda y, part: dropout(y, keys, 3 * layer + part, arch.dropout)
        y, kept = Attention(arch, self.causal, dtypes, name="attention")(
            norm(arch, dtypes, "attention_norm")(x), None, mask, bias, rotation, kept, (layer, at)
        )
        x += after(y, 1)
        if self.cross:
            y, _ = Attention(arch, False, dtypes, name="cross")(
                norm(arch, dtypes, "cross_norm")(x), memory, memory_mask, None, None, None, None
            )
            x += after(y, 2)
        y = FeedForward(arch, dtypes, name="feed_forward")(norm(arch, dtypes, "feed_forward_norm")(x))
        return (x + after(y, 3), kept), None


class Attention(nn.Module):
    """softmax(q k / sqrt(H)) v over the places that the mask shows."""

    arch: Architecture
    causal: bool
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        memory_BSD: Array | None,
        mask: Array | None,
        bias: Array | None,
        rotation: Array | None,
        kept: tuple[Array, Array] | None,
        at: tuple[Array, Any] | None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """mask: bool, and bias: added to what the softmax sees; both broadcast to [B, N, T, S]. kept: the cached keys and
        values [L, B K, S, H] of all layers, or [B K, S, H] of this one, of which `at`, (layer, place), is written in place;
        returned with it."""
        arch, width = self.arch, self.arch.width // self.arch.heads
        n, k = arch.heads, arch.kv_heads or arch.heads
        of_query, of_key, of_value = (
            Linear(count * width, arch.bias, self.dtypes, name=name)
            for name, count in (("query", n), ("key", k), ("value", k))
        )
        source = x_BTD if memory_BSD is None else memory_BSD
        if memory_BSD is None and kept is None:
            qkv = linear(x_BTD, of_query, of_key, of_value)
        else:  # joining the kernels would cost more than products with few places
            qkv = linear(x_BTD, of_query) + linear(source, of_key) + linear(source, of_value)
        query, key, value = (x.reshape(*x.shape[:2], -1, width) for x in qkv)
        if arch.qk_norm:
            query, key = norm(arch, self.dtypes, "query_norm")(query), norm(arch, self.dtypes, "key_norm")(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if kept is not None:
            assert at is not None
            (layer, place), zero = at, jnp.zeros((), jnp.int32)
            stacked = kept[0].ndim == 4

            def written(old: Array, new: Array) -> Array:
                new = new.swapaxes(1, 2).reshape(-1, new.shape[1], width).astype(old.dtype)
                new, start = (new[None], (layer, zero, place, zero)) if stacked else (new, (zero, place, zero))
                return jax.lax.dynamic_update_slice(old, new, start)

            own = lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) if stacked else x
            kept = written(kept[0], key), written(kept[1], value)
            y_BTNH = attend_cached(query, own(kept[0]), own(kept[1]), bias, mask)
        else:
            y_BTNH = attend(query, key, value, bias, mask, self.causal)
        into = Linear(arch.width, arch.bias, self.dtypes, 0.02 / math.sqrt(2 * arch.layers), name="out")
        (out,) = linear(y_BTNH.reshape(*x_BTD.shape[:2], -1), into)
        return out, kept


class Linear(nn.Module):
    """The parameters of a dense layer, by the names that flax's has."""

    features: int
    bias: bool
    dtypes: dict[str, Any]
    scale: float = 0.02
    """The standard deviation that the kernel begins with."""

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array | None]:
        """Kernel [width, features], and bias [features]."""
        dtype, param_dtype = self.dtypes["dtype"], self.dtypes["param_dtype"]
        kernel = self.param("kernel", normal(self.scale), (width, self.features), param_dtype).astype(dtype)
        if not self.bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), param_dtype).astype(dtype)


def linear(x: Array, *layers: Linear) -> tuple[Array, ...]:
    """[B, S, D] -> of each layer [B, S, F]."""
    kernels, biases = zip(*(layer(x.shape[-1]) for layer in layers), strict=True)
    return tuple(
        y if bias is None else y + to_rows(bias, y.shape) for y, bias in zip(products(x, kernels), biases, strict=True)
    )


class FeedForward(nn.Module):
    arch: Architecture
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, T, D] -> [B, T, D]."""
        arch = self.arch
        swiglu = arch.activation == "swiglu"
        hidden = arch.hidden or (-(-8 * arch.width // 3) if swiglu else 4 * arch.width)
        of = lambda features, name, *scale: Linear(features, arch.bias, self.dtypes, *scale, name=name)
        (h,) = linear(x, of(hidden, "up"))
        h = nn.silu(*linear(x, of(hidden, "gate"))) * h if swiglu else nn.gelu(h)
        (y,) = linear(h, of(arch.width, "down", 0.02 / math.sqrt(2 * arch.layers)))
        return y


class Norm(nn.Module):
    """LayerNorm or RMSNorm of the last axis, by the names of parameters that flax's have, in at least float32."""

    centered: bool
    bias: bool
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., D]."""
        dtype, param_dtype = self.dtypes["dtype"], self.dtypes["param_dtype"]
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        of = lambda name, begin: self.param(name, begin, x.shape[-1:], param_dtype).astype(x.dtype)
        y: Any = by_example(x, of("scale", nn.initializers.ones), self.centered)
        if self.bias:
            y += to_rows(of("bias", nn.initializers.zeros), y.shape)
        return y.astype(dtype)


def normal(scale: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(scale)


def norm(arch: Architecture, dtypes: dict[str, Any], name: str) -> Norm:
    layer = arch.norm == "layer"
    return Norm(layer, layer and arch.bias, dtypes, name=name)
