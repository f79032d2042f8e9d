"""The transformer: an embedding, a stack of blocks, and logits."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.core import Array, Params
from gen.networks.dtypes import Dtypes
from gen.networks.kernels.attention import store_mask
from gen.networks.layers import dropout
from gen.networks.positions import MAX_DISTANCE, PADDING, PREFIX, RelativeBias, grid_rotations, rotations
from gen.networks.transformer.architecture import Architecture
from gen.networks.transformer.blocks import Block, Shared, Visibility
from gen.networks.transformer.cache import Cache, KeyValue
from gen.networks.transformer.layers import INIT_STD, cap_logits, norm, normal


def unstack_layers(params: Params) -> Params:
    """Returns the parameters with a tuple of L trees in "layers", one per layer, instead of a tree of arrays [L, ...].

    Decoding on a CPU needs this, and `empty_cache(unstacked=True)`: XLA would otherwise copy each layer's slice for
    every token.
    """
    layers = params["layers"]
    count = len(jax.tree.leaves(layers)[0])
    return {**params, "layers": tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count))}


class Embedded(NamedTuple):
    """Embedded tokens [B, T, D], and their segments and positions, int32. A trained prefix, if there is one, comes first."""

    x_BTD: Array
    segment_BT: Array
    position_BT: Array
    """int32 [B, T], or on a grid int32 [B, T, A]."""


class Transformer(nn.Module):
    """A transformer. If its parameters include a trained "prefix" [P, D], the prefix comes before the tokens of each text."""

    arch: Architecture
    vocab: int | None
    """Size of the vocabulary. None: the input is vectors, floats [B, T, C], instead of tokens. A linear layer embeds them, and there are
    no logits."""
    context: int
    """Number of learned positions of a text. Not used on a grid, or without learned positions."""
    causal: bool
    """Whether a position attends only to itself and earlier positions."""
    dtypes: Dtypes
    cross: bool = False
    """Whether each block also attends to the output of an encoder."""
    readout: bool = True
    """True: the output is logits. False: the output is the normalized activations before the logits, as of an encoder."""
    axes: tuple[int, ...] | None = None
    """For a grid: the number of positions on each axis. `tokens` are then int32 [B, T, J], the J tokens of each position, which
    are embedded as a sum, or floats [B, T, C] without a vocabulary, and `position` is int32 [B, T, A], see
    `gen.networks.positions.locate_cells`. None: a text."""

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
        """Returns (logits [B, T, V] in at least float32, cache with the new tokens). Without readout: (activations [B, T, D], cache).

        tokens, segment and position: int32 [B, T], see `gen.networks.positions.locate_tokens`; on a grid see `axes`. A
        position sees only positions of its own segment. keys: dropout keys [B]; None: no dropout. cache: cache of the
        earlier tokens; None: no cache. memory: output of an encoder, [B, S, D]. memory_segment: int32 [B, S], PADDING
        where memory has no token. begins: whether these tokens are the first of their text, so that the prefix comes
        before them.
        """
        width = self.arch.width
        if self.vocab is None:
            embedding = nn.Dense(width, name="vectors", **self.dtypes)
        else:
            embedding = nn.Embed(self.vocab, width, embedding_init=normal(INIT_STD), name="embedding", **self.dtypes)
        x = self.embed(embedding, tokens_BT, position_BT, keys_B)
        # Present only if an adapter added it (gen.optim.adapters.Prompt), so `init` does not create it.
        prefix: Array = self.get_variable("params", "prefix", jnp.zeros((0, self.arch.width))).astype(x.dtype)
        # A prefix comes before the first position of a text. A grid has its own positions, and the prefix is at their origin.
        tokens = Embedded(x, segment_BT, position_BT + (len(prefix) if self.axes is None else 0))
        if begins and len(prefix):
            tokens = prepend(prefix, tokens)
        # The S keys that may be attended to: the tokens themselves, or all slots of the cache with the tokens written into it.
        segment_BS = tokens.segment_BT
        if cache is not None:
            segment_BS = jax.lax.dynamic_update_slice_in_dim(cache.segment, segment_BS, cache.length, axis=1)
        memory_mask = None if memory_segment_BS is None else (memory_segment_BS != PADDING)[:, None, None, :]
        shared = Shared(
            dropout_keys=keys_B,
            visible=self.visibility(tokens, segment_BS, cache, len(prefix)),
            start=None if cache is None else cache.length,
            memory_BSD=memory_BSD,
            memory_visible=Visibility(memory_mask),
        )
        x, cache = self.run_layers(tokens.x_BTD, segment_BS, shared, cache)
        # The prefix is only attended to. It has no output.
        x = norm(self.arch, self.dtypes, "norm")(x[:, -tokens_BT.shape[1] :])
        if not self.readout:
            return x, cache
        assert isinstance(embedding, nn.Embed), "vectors have no logits"
        return self.read_logits(embedding, x), cache

    def embed(self, embedding: nn.Module, tokens_BT: Array, position_BT: Array, keys_B: Array | None) -> Array:
        """Returns the input of the first block, [B, T, D]: embedded tokens, with learned positions, after dropout."""
        x: Array = embedding(tokens_BT)
        if self.axes is not None and self.vocab is not None:
            x = x.sum(2)
        if self.arch.positions == "learned":
            x += self.embed_positions(position_BT)
        if self.arch.period is not None:
            phase_BT = (position_BT if self.axes is None else position_BT[..., 0]) % self.arch.period
            x += nn.Embed(
                self.arch.period, self.arch.width, embedding_init=normal(INIT_STD), name="period", **self.dtypes
            )(phase_BT)
        return dropout(x, keys_B, 0, self.arch.dropout)

    def embed_positions(self, position_BT: Array) -> Array:
        """Returns the learned vector of each position, [B, T, D]. On a grid it is the sum of a vector for each axis."""

        def look_up(name: str, length: int, position: Array) -> Array:
            init = normal(INIT_STD)
            return nn.Embed(length, self.arch.width, embedding_init=init, name=name, **self.dtypes)(position)

        if self.axes is None:
            return look_up("position", self.context, position_BT)
        parts = [look_up(f"position_{i}", n, position_BT[..., i]) for i, n in enumerate(self.axes)]
        return sum(parts[1:], parts[0])

    def visibility(self, tokens: Embedded, segment_BS: Array, cache: Cache | None, prefix: int) -> Visibility:
        """Returns the mask of the self-attention, bool [B, 1, T, S], with the bias of relative or the rotation of rotary positions.

        tokens: the T queries, with the prefix if they begin a text. segment_BS: segment of each of the S keys, which are the queries, or
        all slots of the cache. prefix: length of the trained prefix, which every query sees.
        """
        arch, (x, segment_BT, position_BT) = self.arch, tokens
        # Indices in the row, not positions in a document: a row may hold padding and several documents.
        index_T = jnp.arange(x.shape[1], dtype=jnp.int32)
        index_S = index_T
        if cache is not None:
            index_T += cache.length
            index_S = jnp.arange(cache.segment.shape[1], dtype=jnp.int32)
        distance_TS = index_T[:, None] - index_S[None]
        # A position sees its own document, but with a window only the nearest tokens. Every position sees the prefix. In a causal
        # network no position sees a later one. Padding sees padding, so that no row of the softmax is empty.
        mask = segment_BT[:, None, :, None] == segment_BS[:, None, None, :]
        if arch.window is not None:
            mask &= (jnp.abs(distance_TS) < arch.window)[None, None]
        mask |= (segment_BS == PREFIX)[:, None, None, :]
        if self.causal:
            mask &= (distance_TS >= 0)[None, None]
        if cache is None:
            # All layers read the same mask.
            mask = store_mask(mask)
        bias = rotation = None
        if arch.positions == "relative":
            # The prefix is equally far from every document, however much of the row lies between.
            distance_TS = jnp.where((index_S < prefix)[None], MAX_DISTANCE, distance_TS)
            bias = RelativeBias(arch.heads, self.causal, self.dtypes, name="relative")(distance_TS)[None]
        if arch.positions == "rotary":
            # The angles are at least float32, because bfloat16 can't tell neighbouring positions above 256 apart.
            rotate = rotations if self.axes is None else grid_rotations
            rotation = rotate(position_BT, arch.width // arch.heads, jnp.promote_types(x.dtype, jnp.float32))
        return Visibility(mask, bias, rotation)

    def run_layers(
        self, x: Array, segment_BS: Array, shared: Shared, cache: Cache | None
    ) -> tuple[Array, Cache | None]:
        """Runs all blocks. Returns (output of the last block [B, T, D], cache with the new tokens, None without a cache).

        x: input of the first block, [B, T, D]. segment_BS: segment of each key, which the new cache holds. shared: inputs that
        all blocks read.
        """
        arch = self.arch
        if cache is None:
            (x, _), _ = self.stack(self.causal)((x, None), jnp.arange(arch.layers, dtype=jnp.int32), shared)
            return x, None
        new = x.shape[1]
        if isinstance(cache.key, tuple):
            x, keys, values = self.run_unstacked(x, shared, cache)
        else:
            assert not isinstance(cache.value, tuple)
            carry = x, KeyValue(cache.key, cache.value)
            (x, (keys, values)), _ = self.stack(False)(carry, jnp.arange(arch.layers, dtype=jnp.int32), shared)
        return x, Cache(keys, values, segment_BS, cache.length + new)

    def stack(self, causal: bool) -> Any:
        """Returns the blocks as one loop over stacked parameters: (carry, numbers of the layers, shared) -> (carry, _).

        The compiled program does not grow with the number of blocks. causal: see `Block.causal`.
        """
        # In a loop, XLA can't merge the recomputation with the first computation, so remat need not prevent it (prevent_cse).
        block = nn.remat(Block, prevent_cse=False) if self.arch.remat else Block
        loop = nn.scan(
            block,
            variable_axes={"params": 0},
            # Each layer gets its own key at initialization. Otherwise all layers would begin with the same matrices.
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.arch.layers,
            unroll=min(self.arch.unroll, self.arch.layers),
        )
        return loop(self.arch, self.cross, causal, self.dtypes, name="layers")

    def run_unstacked(
        self, x: Array, shared: Shared, cache: Cache
    ) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
        """Runs the blocks one by one, on an unstacked cache. Returns (output, keys of each block, values of each)."""
        # parent=None, because each call gets its parameters explicitly. causal is False: the mask hides later tokens in the cache.
        block, stored = Block(self.arch, self.cross, False, self.dtypes, parent=None), []
        layers = self.get_variable("params", "layers")
        for params, key, value in zip(layers, cache.key, cache.value, strict=True):
            # A block needs its number for dropout and for a stacked cache. Decoding on an unstacked cache has neither.
            carry, _ = block.apply({"params": params}, (x, KeyValue(key, value)), 0, shared)
            x, of_layer = carry
            stored.append(of_layer)
        keys, values = zip(*stored, strict=True)
        return x, keys, values

    def read_logits(self, embedding: nn.Embed, x: Array) -> Array:
        """Returns logits [B, T, V] for x [B, T, D], accumulated in at least float32."""
        # bfloat16 has 8 significant bits, too few for the logits of a cross-entropy, so products are summed in `real`.
        real = jnp.promote_types(x.dtype, jnp.float32)
        if self.arch.tied:
            table = embedding.embedding.astype(x.dtype)
            logits = jnp.einsum("btd,vd->btv", x, table, preferred_element_type=real)
        else:
            product = partial(jax.lax.dot_general, preferred_element_type=real)
            head = nn.Dense(
                embedding.num_embeddings,
                use_bias=False,
                kernel_init=normal(INIT_STD),
                dot_general=product,  # pyright: ignore[reportArgumentType]
                name="head",
                **self.dtypes,
            )
            logits = head(x)
        return cap_logits(logits, self.arch)


def prepend(prefix_PD: Array, tokens: Embedded) -> Embedded:
    """Returns the tokens with a prefix [P, D] before them, [B, P + T]. All tokens see its segment, PREFIX.

    The positions of the prefix are 0 to P - 1, or on a grid 0 on each axis.
    """
    (x, segment_BT, position_BT), p = tokens, len(prefix_PD)
    x = jnp.concatenate([jnp.broadcast_to(prefix_PD[None], (len(x), *prefix_PD.shape)), x], axis=1)
    if position_BT.ndim == 2:
        before = jnp.broadcast_to(jnp.arange(p, dtype=jnp.int32)[None], (len(x), p))
    else:
        before = jnp.zeros((len(x), p, position_BT.shape[-1]), jnp.int32)
    position_BT = jnp.concatenate([before, position_BT], axis=1)
    segment_BT = jnp.pad(segment_BT, ((0, 0), (p, 0)), constant_values=PREFIX)
    return Embedded(x, segment_BT, position_BT)
