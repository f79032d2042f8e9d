"""A block of a transformer, and its attention layer."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn

from gen.axis import shard_examples
from gen.core import Array
from gen.networks.attention import attend, attend_cached
from gen.networks.dtypes import Dtypes
from gen.networks.layers import dropout
from gen.networks.positions import rotate
from gen.networks.transformer.architecture import Architecture
from gen.networks.transformer.cache import KeyValue, Slot, read_layer, write_slot
from gen.networks.transformer.layers import FeedForward, Linear, linear, norm, residual_std

# Number of dropout layers of a block: after attention, cross-attention and feed-forward. All dropout layers of a model
# are numbered, so that each has different noise. Number 0 is the dropout of the embedding.
PARTS = 3


class Visibility(NamedTuple):
    """Which positions attend to which, and how their distance changes the scores."""

    mask: Array | None = None
    """bool, broadcasts to [B, N, T, S]. True: query t attends to key s. None: every query attends to every key."""
    bias: Array | None = None
    """Added to the attention scores; broadcasts to [B, N, T, S]. None: no bias."""
    rotation: Array | None = None
    """[2, B, T, 1, H / 2]. Cosines and sines of rotary positions, which rotate queries and keys. None: not rotated."""


class Shared(NamedTuple):
    """Inputs of a `Block` that are the same for all layers."""

    dropout_keys: Array | None
    """[B]. None: no dropout."""
    visible: Visibility
    """Mask, bias and rotation of the self-attention."""
    start: Array | None
    """int32 []. Index of the cache's slot for the first new token. The next tokens follow it. None: no cache."""
    memory_BSD: Array | None
    """Output of an encoder, [B, S, D]. None: no cross-attention."""
    memory_visible: Visibility
    """Mask, bias and rotation of the cross-attention."""


class Block(nn.Module):
    """Computes x + attention(norm(x)), then x + cross_attention(norm(x)) if `cross`, then x + feed_forward(norm(x))."""

    arch: Architecture
    cross: bool
    """Whether the block also attends to the output of an encoder."""
    causal: bool
    """Whether the mask hides all later positions, see `Attention`."""
    dtypes: Dtypes

    @nn.compact
    def __call__(
        self, carry: tuple[Array, KeyValue | None], layer: Array | int, shared: Shared
    ) -> tuple[tuple[Array, KeyValue | None], None]:
        """Returns (carry, None), the form that `nn.scan` needs.

        carry: (x [B, T, D], the cached keys and values or None). layer: number of the block from 0, int32 [].
        """
        (x, stored), arch, dtypes = carry, self.arch, self.dtypes
        # Keeps activations sharded by example in each layer. Otherwise the compiler may choose another sharding.
        x = shard_examples.get()(x)

        def drop(y: Array, part: int) -> Array:
            return dropout(y, shared.dropout_keys, PARTS * layer + part, arch.dropout)  # pyright: ignore[reportArgumentType]

        slot = None if shared.start is None else Slot(layer, shared.start)
        attention = Attention(arch, self.causal, dtypes, name="attention")
        y, stored = attention(norm(arch, dtypes, "attention_norm")(x), shared.visible, stored=stored, slot=slot)
        x += drop(y, 1)
        if self.cross:
            cross = Attention(arch, False, dtypes, name="cross")
            y, _ = cross(norm(arch, dtypes, "cross_norm")(x), shared.memory_visible, shared.memory_BSD)
            x += drop(y, 2)
        y = FeedForward(arch, dtypes, name="feed_forward")(norm(arch, dtypes, "feed_forward_norm")(x))
        return (x + drop(y, 3), stored), None


class Attention(nn.Module):
    """Computes softmax(q k / sqrt(H) + bias) v over visible positions in each head, then a dense layer over heads."""

    arch: Architecture
    causal: bool
    """Whether the mask hides all later positions. The kernel for a CPU can then skip the hidden half of the scores."""
    dtypes: Dtypes

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        visible: Visibility,
        memory_BSD: Array | None = None,
        stored: KeyValue | None = None,
        slot: Slot | None = None,
    ) -> tuple[Array, KeyValue | None]:
        """Returns (output [B, T, D], the cache with the new keys and values added, or None without a cache).

        memory: output of an encoder, which the queries attend to instead of x; None: they attend to x. stored: cached
        keys and values of earlier tokens; None: no cache. With a cache, the keys and values of x are written to it at
        `slot`, and the queries attend to the whole cache.
        """
        arch = self.arch
        query_BTNH, key, value = self.project(x_BTD, memory_BSD, stored is not None)
        # Before the rotation: a trained scale of each channel after it would make scores depend on absolute positions.
        if arch.qk_norm:
            query_BTNH, key = (
                norm(arch, self.dtypes, "query_norm")(query_BTNH),
                norm(arch, self.dtypes, "key_norm")(key),
            )
        if visible.rotation is not None:
            query_BTNH, key = rotate(query_BTNH, visible.rotation), rotate(key, visible.rotation)
        if stored is None:
            y_BTNH = attend(query_BTNH, key, value, visible.bias, visible.mask, self.causal)
        else:
            assert slot is not None
            # The new tokens attend to themselves through the cache: they are written first.
            stored = write_slot(stored, key, value, slot)
            y_BTNH = attend_cached(query_BTNH, *read_layer(stored, slot), visible.bias, visible.mask)
        # Heads are concatenated by the reshape, and mixed by the last matrix.
        into = Linear(arch.width, arch.bias, self.dtypes, residual_std(arch), name="out")
        (out,) = linear(y_BTNH.reshape(*x_BTD.shape[:2], -1), into)
        return out, stored

    def project(self, x_BTD: Array, memory_BSD: Array | None, cached: bool) -> tuple[Array, Array, Array]:
        """Returns queries [B, T, heads, H] of x; keys and values [B, S, kv_heads, H] of the memory, or of x without it.

        cached: whether there is a cache of earlier tokens, so that T is small. It changes only the speed.
        """
        arch, width = self.arch, self.arch.width // self.arch.heads
        n, k = arch.heads, arch.kv_heads or arch.heads
        of_query, of_key, of_value = (
            Linear(count * width, arch.bias, self.dtypes, name=name)
            for name, count in (("query", n), ("key", k), ("value", k))
        )
        if memory_BSD is None and not cached:
            # On a CPU, `linear` computes all three in one product.
            qkv = linear(x_BTD, of_query, of_key, of_value)
        else:
            # With few positions, joining the three kernels would take longer than the products.
            source = x_BTD if memory_BSD is None else memory_BSD
            qkv = linear(x_BTD, of_query) + linear(source, of_key) + linear(source, of_value)
        query, key, value = (x.reshape(*x.shape[:2], -1, width) for x in qkv)
        return query, key, value
