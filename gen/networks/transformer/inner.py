"""Prediction of the J tokens of one position of a grid: a small network predicts them one after the other.

The J tokens are called the inner axis, and a position of the grid is called a step.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.networks.dtypes import Dtypes
from gen.networks.transformer.architecture import Architecture
from gen.networks.transformer.layers import INIT_STD, FeedForward, cap_logits, norm, normal


class InnerHead(nn.Module):
    """p(token j | state, tokens before j) for each of the J tokens of a step, which is one position of a grid.

    The state is the output of a transformer over the steps. The depth transformer of Lee et al. 2022 (RQ-Transformer),
    section 3.2.2, reads z_j = state + position_j + sum_{i < j} E_i(token_i). That sum already has all tokens before j,
    each from its own table, so feed-forward layers replace the paper's attention: no cache, and a fraction of the time.
    """

    arch: Architecture
    vocab: int
    """V, the size of the vocabulary. It is the same for each of the J tokens."""
    count: int
    """J, the number of tokens of a step."""
    layers: int
    """Number of feed-forward layers."""
    dtypes: Dtypes

    @nn.compact
    def __call__(self, state_BTD: Array, tokens_BTJ: Array, only: int | None = None) -> Array:
        """Returns logits [B, T, J, V] in at least float32. The logits of token j depend only on the tokens before j.

        state: [B, T, D], the output of a `Transformer` with readout=False. tokens: int32 [B, T, J], the tokens of
        these steps. only: compute only the logits of this token j, [B, T, 1, V]. None: of all tokens.
        """
        width, dtypes = self.arch.width, self.dtypes
        index_J = jnp.arange(self.count, dtype=jnp.int32)
        table = nn.Embed(self.count * self.vocab, width, embedding_init=normal(INIT_STD), name="embedding", **dtypes)
        position = nn.Embed(self.count, width, embedding_init=normal(INIT_STD), name="position", **dtypes)
        shape = (self.count, width, self.vocab)
        readout = self.param("head", normal(INIT_STD), shape, dtypes["param_dtype"]).astype(dtypes["dtype"])
        # The same number at another index j is another token, such as a code of another codebook. So each index has its own rows.
        e_BTJD = table(tokens_BTJ + self.vocab * index_J[None, None])
        # Each token gets the sum of the vectors before it. Not cumsum(e) - e: its rounding error depends on e_j, so in bfloat16 token j
        # would see itself.
        before_BTJD = jnp.pad(e_BTJD[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
        z_BTJD = state_BTD[:, :, None] + position(index_J)[None, None] + jnp.cumsum(before_BTJD, axis=2)
        if only is not None:
            # Decoding needs one token at a time.
            z_BTJD, readout = z_BTJD[:, :, only : only + 1], readout[only : only + 1]
        for i in range(self.layers):
            y = norm(self.arch, dtypes, f"norm_{i}")(z_BTJD)
            z_BTJD += FeedForward(self.arch, dtypes, name=f"feed_forward_{i}")(y)
        z_BTJD = norm(self.arch, dtypes, "norm")(z_BTJD)
        real = jnp.promote_types(z_BTJD.dtype, jnp.float32)
        # One product for each index: XLA has no product of bfloat16 over a batch of matrices on a CPU that gives float32.
        logits = [
            jnp.einsum("btd,dv->btv", z_BTJD[:, :, j], matrix, preferred_element_type=real)
            for j, matrix in enumerate(readout)
        ]
        return cap_logits(jnp.stack(logits, axis=2), self.arch)
