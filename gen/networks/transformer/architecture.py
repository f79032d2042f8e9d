"""The hyper-parameters of a transformer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gen.errors import UserError, check_decay, check_positive

RULES = ((r"(out|down)/kernel$", -2), (r"embedding/embedding$", 0))
"""Sharding rules of tensor parallelism (Shoeybi et al. 2019): (pattern of a parameter's path, axis to shard).

The first matrices of attention and of the feed-forward layer are sharded by output channels (the default, the last axis). The
second matrices are sharded by input channels, so the activations between them are not communicated. The embedding is sharded
over the vocabulary."""


@dataclass(frozen=True)
class Architecture:
    """The hyper-parameters of a transformer. By default layers, width and heads are nanoGPT's for characters."""

    layers: int = 6
    """Number of blocks. A model with an encoder and a decoder has this many in each."""
    width: int = 384
    """Number of channels of each position between the blocks. A multiple of heads."""
    heads: int = 6
    """Number of attention heads. Each head has width / heads channels."""
    kv_heads: int | None = None
    """Number of heads of keys and values. Each serves heads / kv_heads heads of queries (Ainslie et al. 2023). None: heads."""
    hidden: int | None = None
    """Hidden units of the feed-forward layers. None: 4 width, or 8/3 width with swiglu."""
    positions: Literal["learned", "rotary", "relative"] = "learned"
    """learned: a learned vector per position, up to the length of the training windows. rotary: rotated queries and keys (Su et
    al. 2021). relative: a learned bias per distance (Raffel et al. 2020)."""
    period: int | None = None
    """Adds a learned vector that depends on the position modulo this period, such as the beat in a bar. On a grid, the position is on the
    first axis. None: no such vector."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm (Zhang and Sennrich 2019), before each attention and feed-forward layer and the logits."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Activation of the feed-forward layers: GELU (tanh form), or SwiGLU (Shazeer 2020)."""
    bias: bool = True
    """Whether dense layers and LayerNorms add a bias."""
    tied: bool = True
    """Whether the logits use the matrix of the embedding. Otherwise they have their own matrix."""
    dropout: float = 0.0
    """Dropout rate, in [0, 1), of the embeddings and of the output of each attention or feed-forward layer."""
    qk_norm: bool = False
    """Whether queries and keys are normalized (Dehghani et al. 2023)."""
    logit_cap: float | None = None
    """Soft bound on the logits: cap tanh(logits / cap) (Gemma 2). None: no bound."""
    context: int | None = None
    """Largest number of positions that the model can read, and number of learned positions. None: the length of the training windows."""
    window: int | None = None
    """Positions attend only to positions at a distance below this number. Texts of a language model may then be longer
    than the training windows, unless positions are learned. None: no such limit."""
    remat: bool = False
    """Whether the backward pass computes the activations of each block again, instead of storing them. This takes less memory and
    more time."""
    unroll: int = 1
    """Number of blocks in each iteration of the compiled loop over layers. Larger numbers take longer to compile, and run faster
    on a CPU."""

    def __post_init__(self):
        check_positive(layers=self.layers, width=self.width, heads=self.heads, unroll=self.unroll)
        for name in ("kv_heads", "hidden", "logit_cap", "context", "window", "period"):
            if (value := getattr(self, name)) is not None:
                check_positive(**{name: value})
        if self.width % self.heads:
            raise UserError(f"width {self.width} can't be shared by {self.heads} heads; make it a multiple")
        if self.heads % (self.kv_heads or self.heads):
            raise UserError(f"{self.heads} heads can't share {self.kv_heads} kv_heads; make it a divisor")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise UserError(
                f"rotary positions rotate pairs of channels, and a head has {self.width // self.heads}; make it even"
            )
        check_decay(dropout=self.dropout)

    def tiny(self) -> Architecture:
        """Returns the smallest architecture of the same kind, for tests."""
        return replace(
            self,
            layers=2,
            width=16,
            heads=4,
            kv_heads=None if self.kv_heads is None else 2,
            hidden=None if self.hidden is None else 32,
            context=None,
            period=None if self.period is None else 4,
            window=None if self.window is None else 4,
            unroll=1,
        )

    def inherit(self, base: Architecture, context: int | None) -> Architecture:
        """Returns the architecture `base`, but with dropout, remat and unroll of this architecture.

        The shapes of the parameters do not depend on these three, so a model with the parameters of a base run can choose them.
        context: length of the windows that the base was trained on, or None if it was trained on grids.
        """
        own = {"dropout": self.dropout, "remat": self.remat, "unroll": self.unroll}
        return replace(base, context=base.context or context, **own)
