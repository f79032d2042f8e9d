"""Parts that all models of token grids share: the grids' sizes, hyper-parameters, metrics, and the sampling request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax.numpy as jnp

from gen import core
from gen.core import Array, Batch, Feature, Key, Metrics, Spec
from gen.errors import UserError, check_fraction
from gen.families.conditions import Condition, Conditions, find_conditions
from gen.families.labels import LabelRequest
from gen.families.language.language import LanguageModel, check_axes
from gen.families.language.sampling import Filters
from gen.networks.positions import PADDING


@dataclass(frozen=True)
class Grid:
    """Sizes of the token grids of a data set, and conversions between grids and the sequences that the network reads.

    A sequence (row) is the caption (L tokens, if there are captions), then the label, then the grid as T cells in
    raster order. A cell is a position of the transformer, and has J tokens. The network's vocabulary begins with the V
    tokens of grids. From V on it has the labels, "no label", the mask, and the tokens of captions.
    """

    shape: tuple[int, ...]
    """Shape of a grid of tokens."""
    cells: tuple[int, ...]
    """Number of cells on each axis. It is the shape of the grid. With `inner_layers` it lacks the last axis, because
    the tokens along that axis are one cell."""
    vocab: int
    """V, the size of the vocabulary of grids."""
    classes: int
    """Number of classes of the label. 0: the model reads no labels."""
    pixels: int | None
    """Number of pixel values in a grid whose tokens are patches of pixels. None: the tokens are something else."""
    caption: Feature | None = None
    """The feature of captions. None: the model reads no captions."""

    @property
    def length(self) -> int:
        """T, the number of cells."""
        return math.prod(self.cells)

    @property
    def count(self) -> int:
        """J, the number of tokens in a cell."""
        return math.prod(self.shape) // self.length

    @property
    def mask(self) -> int:
        """The mask, the token that replaces a masked token, in the network's vocabulary."""
        return self.vocab + self.classes + 1

    @property
    def rows(self) -> int:
        """Size of the network's vocabulary: tokens of grids, labels, "no label", the mask, and tokens of captions."""
        return self.mask + 1 + ((self.caption.vocab or 0) if self.caption else 0)

    @property
    def padding(self) -> int | None:
        """The token that fills a short caption up to L tokens, in the network's vocabulary. Attention ignores it.

        None: the model reads no captions.
        """
        return None if self.caption is None else self.mask + 1 + self.end

    @property
    def conditions(self) -> Conditions:
        """The conditions (label, caption) that the model reads."""
        return Conditions(self.classes or None, self.caption)

    @property
    def end(self) -> int:
        """The token that ends a caption, in the vocabulary of captions."""
        return self.conditions.end

    @property
    def words(self) -> int:
        """L, the number of tokens of a caption. 0: the model reads none."""
        return self.caption.shape[0] if self.caption else 0

    def split(self, tokens: Array) -> Array:
        """Reshapes grids of tokens [B, *shape] to T cells (positions) of J tokens, int32 [B, T, J].

        The grids may be cut on their first axis. T is then smaller.
        """
        return tokens.reshape(len(tokens), -1, self.count).astype(jnp.int32)

    def weights(self, batch: Batch) -> Array:
        """Returns batch["counted"] (1 for tokens that count in the loss, otherwise 0), [B, T, J], at least float32."""
        counted = batch["counted"]
        weights = counted.reshape(len(counted), -1, self.count)
        return weights.astype(jnp.promote_types(counted.dtype, jnp.float32))

    def join(self, cells: Array) -> Array:
        """Returns cells [B, T, J] as grids [B, *shape], the inverse of `split`."""
        return cells.reshape(len(cells), *self.shape)

    def front(self, n: int, condition: Condition) -> Array:
        """Returns the tokens that the network reads before each of n grids: L of the caption, then the label.

        The result is int32 [n, L + 1, J], with J equal tokens at each position. A label that is None becomes "no
        label", and a caption that is None becomes an empty caption.
        """
        label, caption = condition
        if label is None:
            label = jnp.full(n, self.classes, jnp.int32)
        front = self.vocab + label[:, None, None]
        # The label comes last, because the output there predicts the first cell.
        if self.caption is not None:
            if caption is None:
                # Only end tokens, which attention ignores: see `padding`.
                caption = jnp.full((n, self.words), self.end, jnp.int32)
            front = jnp.concatenate([self.mask + 1 + caption[..., None], front], axis=1)
        return jnp.broadcast_to(front, (n, self.words + 1, self.count))

    def known(self, given: Mapping[str, Array], request: GridRequest) -> Array:
        """Returns the tokens of n grids that sampling keeps, int32 [n, T, J], with PADDING (-1) at tokens to draw.

        given: "tokens" [1, *shape] or [n, *shape], and "known" bool of the same shape, which of them to keep. Without
        "known", all tokens are to be drawn. Raises: UserError if the mode needs "known": any mode but "generate".
        """
        n = request.n
        if "known" not in given:
            if request.mode != "generate":
                raise UserError(
                    f"mode {request.mode} keeps a part of a picture or a score, and none is given; give one, or leave "
                    "--mode out"
                )
            return jnp.full((n, self.length, self.count), PADDING, jnp.int32)
        # int32, because tokens may be unsigned, and PADDING is negative.
        tokens = jnp.asarray(given["tokens"], jnp.int32)
        found = self.split(jnp.where(jnp.asarray(given["known"], bool), tokens, PADDING))
        return jnp.broadcast_to(found, (n, *found.shape[1:]))


@dataclass(frozen=True)
class GridModel(LanguageModel):
    """Hyper-parameters that all models of grids share."""

    inner_layers: int = 0
    """Number of feed-forward layers of a small head. Above 0, the tokens along the last axis of the grid are one
    position of the transformer, and the head predicts them one after the other (Lee et al. 2022). 0: each token is a
    position."""
    conditional: bool = False
    """Condition on the label and on the caption, if the data have them. The model reads the caption, then the label as
    one token, then the grid."""
    label_dropout: float = 0.0
    """Probability that a training example's label and caption are left out. Guided sampling needs a value above 0."""

    def __post_init__(self):
        super().__post_init__()
        check_fraction(label_dropout=self.label_dropout)
        if self.inner_layers < 0:
            raise UserError(f"inner_layers is {self.inner_layers}; it must be at least 0")
        if self.label_dropout and not self.conditional:
            raise UserError("label_dropout needs a model that reads labels; the fix: --model.conditional")
        if self.network.context is not None:
            raise UserError("network.context is for texts, and the data decide the size of a grid; leave it out")

    def tiny(self) -> Self:
        return replace(super().tiny(), inner_layers=min(1, self.inner_layers))

    def inherit(self, base: core.Family, spec: Spec) -> Self:
        # Not LanguageModel.inherit, which sets the context length: for grids, the data decide it.
        core.Family.inherit(self, base, spec)
        assert isinstance(base, GridModel)
        network = self.network.inherit(base.network, None)
        return replace(self, network=network, inner_layers=base.inner_layers, conditional=base.conditional)

    def grid(self, spec: Spec) -> Grid:
        """Returns the sizes of this spec's token grids. Raises: UserError if the data don't fit this config."""
        feature = spec.get("tokens")
        if feature is None or feature.vocab is None or feature.axes is None:
            raise UserError(
                f"the model needs grids of tokens, and the data have {', '.join(spec)}; the fix: images with --data.patch, or "
                "images through a trained tokenizer"
            )
        if self.inner_layers and len(feature.shape) < 2:
            raise UserError(
                f"inner_layers predict the tokens along the last axis, and the only axis is {feature.axes[0]}; the fix: "
                "--model.inner-layers 0"
            )
        # With `inner_layers` the last axis needs no positions, because the head predicts all of its tokens in one step.
        cells = feature.shape[:-1] if self.inner_layers else feature.shape
        check_axes(self.network, len(cells))
        read = find_conditions(spec) if self.conditional else Conditions()
        return Grid(feature.shape, cells, feature.vocab, read.classes or 0, count_pixels(feature), read.caption)

    def check_guidance(self, guidance: float) -> None:
        """Raises: UserError if guidance is not 1, and the model was trained without label dropout."""
        if guidance != 1 and not self.label_dropout:
            raise UserError(
                f"guidance is {guidance:g}, and the model was trained without label dropout; the fix: --guidance 1, or train with "
                "--model.conditional --model.label-dropout 0.1"
            )

    def drop(self, grid: Grid, batch: Batch, keys: Key) -> Condition:
        """Returns labels and captions of a training batch. An example loses both with probability `label_dropout`.

        keys: random keys of the examples, [B]. Lost labels become "no label", and lost captions become empty.
        """
        return grid.conditions.drop(grid.conditions.of(batch), keys, self.label_dropout)

    def condition(self, grid: Grid, request: GridRequest, given: Mapping[str, Array]) -> Condition:
        """Returns the label and caption of each of request.n samples, from request.label and `given`.

        See `Conditions.to_generate`. Raises: UserError for a label or guidance that the model does not support.
        """
        self.check_guidance(request.guidance)
        return grid.conditions.to_generate(request.n, request.label, given)


def count_pixels(tokens: Feature) -> int | None:
    """Returns the number of pixel values in a grid whose tokens are patches of pixels, or None for other tokens."""
    if tokens.levels is None or tokens.vocab is None:
        return None
    # A token is a number in base `levels` with one digit for each pixel value of a patch: V = levels^(digits).
    return math.prod(tokens.shape) * round(math.log(tokens.vocab) / math.log(tokens.levels))


COUNTED = "counted_tokens"
"""Name of an auxiliary metric: the number of tokens of a grid that count in the loss. `measure_grids` adds it if some
tokens do not count, and `mean_over_tokens` removes it, so it is never reported."""


def weigh_tokens(grid: Grid, batch: Batch, nats: Array) -> Array:
    """Returns the nats [B, T, J], with 0 where batch["counted"] is 0. Without "counted", they are unchanged."""
    return nats * grid.weights(batch) if "counted" in batch else nats


def mean_tokens(grid: Grid, batch: Batch, nats: Array) -> Array:
    """Returns the mean of nats [B, T, J] over the counted tokens of each example, [B], or 0 if there are none.

    Counted tokens have batch["counted"] 1. Without "counted", all tokens are counted.
    """
    if "counted" not in batch:
        return nats.mean((1, 2))
    weights = grid.weights(batch)
    return (nats * weights).sum((1, 2)) / jnp.maximum(weights.sum((1, 2)), 1)


def measure_grids(grid: Grid, batch: Batch, nats: Array, name: str) -> tuple[Array, Metrics]:
    """Returns (the mean nats per counted token of each grid, [B]; metrics of each grid, {metric: [B]}).

    The metrics are `name`, the sum of its nats; "bits_per_dim", the sum in bits per pixel value, if the tokens are
    pixels; and COUNTED, the number of counted tokens, if the batch has "counted" (see `mean_tokens`).

    nats: [B, T, J], -log p of each token, or a bound of it.
    """
    total = weigh_tokens(grid, batch, nats).sum((1, 2))
    metrics = {name: total}
    if grid.pixels is not None:
        metrics["bits_per_dim"] = total / (math.log(2) * grid.pixels)
    if "counted" in batch:
        metrics[COUNTED] = grid.weights(batch).sum((1, 2))
    return mean_tokens(grid, batch, nats), metrics


def mean_over_tokens(sums: Mapping[str, tuple[Any, Any]], name: str) -> dict[str, Any]:
    """Returns the metrics of a split: means over its grids, but "loss" is the mean over all its counted tokens.

    So in "loss" a grid with few counted tokens has less weight. If all tokens are counted, both means are the same.

    sums: {metric: (total, weight)}, with the metrics of `measure_grids`. name: see `measure_grids`.
    """
    metrics = core.means(sums)
    counted = metrics.pop(COUNTED, None)
    return metrics if counted is None else metrics | {"loss": metrics[name] / counted}


@dataclass(frozen=True)
class GridRequest(LabelRequest, Filters):
    """Settings for generating grids."""

    pictures: ClassVar[Mapping[str, tuple[str, ...]]] = {"inpaint": ("image", "mask")}
    scores: ClassVar[tuple[str, ...]] = ("continue", "harmonize", "inpaint")

    mode: Literal["generate", "continue", "harmonize", "inpaint"] = "generate"
    """generate: write whole grids. continue: write the continuation of the score of --midi. harmonize: keep the first
    voice of --midi, and write the others. inpaint: write the cells of --image that have a white pixel in --mask, or the
    part of --midi that --write and --gap name. To write a token, a masked model reads all tokens that are kept, and a
    causal model only the tokens before it."""
    guidance: float = 1.0
    """Strength of the label and the caption. 1: no guidance. Above 1: towards the label or caption, so samples are more
    typical of it and less varied. 0: the label and the caption are ignored. Tokens are drawn from the logits u +
    guidance (c - u), where c has the conditions and u does not (Ho and Salimans 2022, with w = guidance - 1)."""

    def __post_init__(self):
        super().__post_init__()
        Filters.__post_init__(self)
        if not 0 <= self.guidance < float("inf"):
            raise UserError(f"guidance is {self.guidance}; it must be at least 0")
