"""Parts that all models of grids share: the facts about a grid, the hyper-parameters, and the request."""

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
    """Facts about the grids of a data set. A model reads a grid as T cells of J tokens each, in raster order.

    The network's embedding also has tokens that never occur in a grid, numbered from V: the labels, "no label", the mask, and the
    tokens of captions.
    """

    shape: tuple[int, ...]
    """Shape of a grid."""
    cells: tuple[int, ...]
    """Number of cells on each axis: the shape of the grid, without its last axis if a cell is that axis (`inner_layers`)."""
    vocab: int
    """V, the size of the vocabulary."""
    classes: int
    """Number of labels. 0: the model has none."""
    pixels: int | None
    """Number of pixel values in a grid, if its tokens are patches of pixels. None: they are not."""
    caption: Feature | None = None
    """The captions. None: the model reads none."""

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
        """The token that replaces a masked token."""
        return self.vocab + self.classes + 1

    @property
    def rows(self) -> int:
        """Number of rows of the network's embedding: all tokens, of grids and others."""
        return self.mask + 1 + ((self.caption.vocab or 0) if self.caption else 0)

    @property
    def padding(self) -> int | None:
        """The token that fills a caption up to its full length. Attention ignores it. None: the model reads no captions."""
        return None if self.caption is None else self.mask + 1 + self.end

    @property
    def conditions(self) -> Conditions:
        """The label and the caption, if the model reads them."""
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
        """Returns grids [B, *shape], or the beginnings of grids along the first axis, as cells, int32 [B, T, J]."""
        return tokens.reshape(len(tokens), -1, self.count).astype(jnp.int32)

    def weights(self, batch: Batch) -> Array:
        """Returns batch["counted"] as weights of cells, at least float32 [B, T, J]."""
        counted = batch["counted"]
        weights = counted.reshape(len(counted), -1, self.count)
        return weights.astype(jnp.promote_types(counted.dtype, jnp.float32))

    def join(self, cells: Array) -> Array:
        """Returns cells [B, T, J] as grids, [B, *shape]."""
        return cells.reshape(len(cells), *self.shape)

    def front(self, n: int, condition: Condition) -> Array:
        """Returns the beginnings of n rows, int32 [n, L + 1, J]: the caption if the model reads captions, then the label."""
        label, caption = condition
        if label is None:
            label = jnp.full(n, self.classes, jnp.int32)
        front = self.vocab + label[:, None, None]
        # The label comes last: the output there predicts the first cell. A short caption ends with masked tokens.
        if self.caption is not None:
            if caption is None:
                caption = jnp.full((n, self.words), self.end, jnp.int32)
            front = jnp.concatenate([self.mask + 1 + caption[..., None], front], axis=1)
        return jnp.broadcast_to(front, (n, self.words + 1, self.count))

    def known(self, given: Mapping[str, Array], request: GridRequest) -> Array:
        """Returns the cells that `given` prescribes, int32 [n, T, J], with PADDING at unknown tokens.

        given: "tokens" [1, *shape] or [n, *shape], and "known" bool of the same shape. Without "known", nothing is known.

        Raises: UserError if nothing is known, and the request's mode keeps a part of a grid.
        """
        n = request.n
        if "known" not in given:
            if request.mode != "generate":
                raise UserError(f"mode {request.mode} keeps a part of a picture or a score, and none is given")
            return jnp.full((n, self.length, self.count), PADDING, jnp.int32)
        # int32, because tokens may be unsigned, and PADDING is negative.
        tokens = jnp.asarray(given["tokens"], jnp.int32)
        found = self.split(jnp.where(jnp.asarray(given["known"], bool), tokens, PADDING))
        return jnp.broadcast_to(found, (n, *found.shape[1:]))


@dataclass(frozen=True)
class GridModel(LanguageModel):
    """Hyper-parameters of every model of grids."""

    inner_layers: int = 0
    """Feed-forward layers of the head that predicts the tokens of the last axis one after the other, inside of one step of the
    transformer (Lee et al. 2022). 0: every token is a step of the transformer."""
    conditional: bool = False
    """Condition on the label and on the caption, if the data have them. Both are read before the grid: first the caption, then the
    label as one token."""
    label_dropout: float = 0.0
    """Probability that a training example's label and caption are left out, so that samples can be guided."""

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
        # As LanguageModel.inherit, but without a context length: the data decide the size of a grid.
        core.Family.inherit(self, base, spec)
        assert isinstance(base, GridModel)
        network = self.network.inherit(base.network, None)
        return replace(self, network=network, inner_layers=base.inner_layers, conditional=base.conditional)

    def grid(self, spec: Spec) -> Grid:
        """Returns the facts about the grids of this spec. Raises: UserError if the data don't fit this config."""
        feature = spec.get("tokens")
        if feature is None or feature.vocab is None or feature.axes is None:
            raise UserError(
                f"the model needs grids of tokens, and the data have {', '.join(spec)}; the fix: images with --data.patch, or "
                "images through a trained tokenizer"
            )
        if self.inner_layers and len(feature.shape) < 2:
            raise UserError(
                f"inner_layers predict the last axis of a grid inside each step, and the only axis is {feature.axes[0]}; the fix: "
                "--model.inner-layers 0"
            )
        # With `inner_layers` the last axis needs no positions, because the head predicts all of its tokens in one step.
        cells = feature.shape[:-1] if self.inner_layers else feature.shape
        check_axes(self.network, len(cells))
        read = find_conditions(spec) if self.conditional else Conditions()
        return Grid(feature.shape, cells, feature.vocab, read.classes or 0, count_pixels(feature), read.caption)

    def check_guidance(self, guidance: float) -> None:
        """Raises: UserError for guidance that the model was not trained for."""
        if guidance != 1 and not self.label_dropout:
            raise UserError(
                f"guidance is {guidance:g}, and the model was trained without label dropout; the fix: --guidance 1, or train with "
                "--model.conditional --model.label-dropout 0.1"
            )

    def drop(self, grid: Grid, batch: Batch, keys: Key) -> Condition:
        """Returns the conditions of training examples, left out with probability `label_dropout`. keys: [B]."""
        return grid.conditions.drop(grid.conditions.of(batch), keys, self.label_dropout)

    def condition(self, grid: Grid, request: GridRequest, given: Mapping[str, Array]) -> Condition:
        """Returns the conditions of samples. Raises: UserError for a label or guidance that the model does not support."""
        self.check_guidance(request.guidance)
        return grid.conditions.to_generate(request.n, request.label, given)


def count_pixels(tokens: Feature) -> int | None:
    """Returns the number of pixel values in a grid, if its tokens are patches of pixels. None: they are not."""
    if tokens.levels is None or tokens.vocab is None:
        return None
    # A token encodes a patch as a number in base `levels`, one digit for each pixel, so V = levels^(pixels of a patch).
    return math.prod(tokens.shape) * round(math.log(tokens.vocab) / math.log(tokens.levels))


COUNTED = "counted_tokens"
"""Name of the number of tokens of a grid that count, for `mean_over_tokens`. No metric has it."""


def weigh_tokens(grid: Grid, batch: Batch, nats: Array) -> Array:
    """Returns the nats [B, T, J], with 0 for tokens that do not count: batch["counted"] is 0 there, if the data have it."""
    return nats * grid.weights(batch) if "counted" in batch else nats


def mean_tokens(grid: Grid, batch: Batch, nats: Array) -> Array:
    """Returns the mean of nats [B, T, J] over the tokens of each example that count, [B]."""
    if "counted" not in batch:
        return nats.mean((1, 2))
    weights = grid.weights(batch)
    return (nats * weights).sum((1, 2)) / jnp.maximum(weights.sum((1, 2)), 1)


def measure_grids(grid: Grid, batch: Batch, nats: Array, name: str) -> tuple[Array, Metrics]:
    """Returns each grid's nats per token [B], and {name: its nats [B], "bits_per_dim": the same per pixel if it has pixels}.

    nats: [B, T, J]. If only some tokens count, the metrics also have their number, COUNTED.
    """
    total = weigh_tokens(grid, batch, nats).sum((1, 2))
    metrics = {name: total}
    if grid.pixels is not None:
        metrics["bits_per_dim"] = total / (math.log(2) * grid.pixels)
    if "counted" in batch:
        metrics[COUNTED] = grid.weights(batch).sum((1, 2))
    return mean_tokens(grid, batch, nats), metrics


def mean_over_tokens(sums: Mapping[str, tuple[Any, Any]], name: str) -> dict[str, Any]:
    """Returns the metrics of a split. "loss" is the mean over all of its tokens that count, however they are divided among grids.

    name: metric with the nats of a whole grid.
    """
    metrics = core.means(sums)
    counted = metrics.pop(COUNTED, None)
    return metrics if counted is None else metrics | {"loss": metrics[name] / counted}


@dataclass(frozen=True)
class GridRequest(LabelRequest, Filters):
    """Which grids to generate."""

    pictures: ClassVar[Mapping[str, tuple[str, ...]]] = {"inpaint": ("image", "mask")}
    scores: ClassVar[tuple[str, ...]] = ("continue", "harmonize", "inpaint")

    mode: Literal["generate", "continue", "harmonize", "inpaint"] = "generate"
    """generate: whole grids. continue: what follows the score of --midi. harmonize: the other voices to the first one of --midi. inpaint:
    the cells of --image that have a white pixel of --mask, or the part of --midi that --write and --gap name. A causal model does not
    see what follows a gap. A masked one does."""
    guidance: float = 1.0
    """Weight of the label and the caption: tokens are drawn from the logits u + guidance (c - u), where c has them and u does not (Ho and
    Salimans 2022, with w = guidance - 1). Above 1, samples are more typical of their class and less varied. 0: no effect."""

    def __post_init__(self):
        super().__post_init__()
        Filters.__post_init__(self)
        if not 0 <= self.guidance < float("inf"):
            raise UserError(f"guidance is {self.guidance}; it must be at least 0")
