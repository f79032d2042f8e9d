"""Parts that every language model shares: the transformer's settings, the mean loss over tokens, and the metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gen import axis, core
from gen.core import Array, Batch, GenerativeModel, Key, Metrics, Params, Spec, State, Sums
from gen.errors import UserError, check_not_negative
from gen.families.learner import LearnedFamily, Learner
from gen.networks.positions import locate_tokens
from gen.networks.transformer import RULES, Architecture, Transformer

# Upper limit of the loss, in nats per token, from which the perplexity exp(loss) is computed, so that exp can't overflow.
MAX_NATS = 30.0


@dataclass(frozen=True)
class LanguageModel(LearnedFamily):
    """Hyper-parameters that all language models share."""

    network: Architecture = Architecture()
    """Transformer. In a model with an encoder and a decoder, both have this architecture."""
    z_loss: float = 0.0
    """Weight of the loss term log(Z)^2, where Z is the normalizer of the softmax. It keeps the logits from drifting
    (Chowdhery et al. 2022 use 1e-4). 0: no such term."""

    def __post_init__(self):
        super().__post_init__()
        check_not_negative(z_loss=self.z_loss)

    def tiny(self) -> Self:
        return replace(self, network=self.network.tiny())

    def inherit(self, base: core.Family, spec: Spec) -> Self:
        super().inherit(base, spec)
        assert isinstance(base, LanguageModel)
        return replace(self, network=self.network.inherit(base.network, spec["tokens"].shape[0] - 1))


class TokenModel(Protocol):
    """The parts of a language model that `assemble` puts into a GenerativeModel."""

    @property
    def config(self) -> LanguageModel: ...
    @property
    def learner(self) -> Learner: ...

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]: ...
    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums: ...
    def generate(self, state: State, key: Key, given: Mapping[str, Array], request: Any) -> dict[str, Array]: ...


def assemble(model: TokenModel, request: type, protocol: Mapping[str, Mapping[str, object]]) -> GenerativeModel:
    """Returns the GenerativeModel with the functions of `model`.

    request: the class of `generate`'s argument `request`.
    protocol: {metric: {setting: value}}, how each metric is estimated.
    """
    return GenerativeModel(
        init=model.learner.init,
        update=model.update,
        evaluate=model.evaluate,
        summarize=summarize,
        generate=model.generate,
        request=request,
        together=model.config.microbatches,
        rules=RULES,
        protocol=protocol,
    )


class Tokens(NamedTuple):
    """Facts that a language model needs about its data."""

    length: int
    """T, the number of targets in a window. A window has T + 1 tokens."""
    vocab: int
    """V, the size of the vocabulary."""
    end: int | None
    """Token that separates documents. None: the data have no such token."""


def tokens(spec: Spec) -> Tokens:
    """Returns the number of targets in a window, the size of the vocabulary, and the end token of the data with this spec.

    Raises: UserError if the data have no tokens, or have grids of tokens instead of texts.
    """
    feature = spec.get("tokens")
    if feature is None or feature.vocab is None:
        raise UserError(
            f"a language model needs tokens, and the data have {', '.join(spec)}; "
            "choose a config whose data is gen.data.text.Text"
        )
    if feature.axes is not None:
        raise UserError(
            f"the data are grids of tokens, with the axes {', '.join(feature.axes)}, and this family reads texts; choose a config "
            "of gen.families.grid"
        )
    return Tokens(feature.shape[0] - 1, feature.vocab, feature.end)


def check_no_source(spec: Spec) -> None:
    """Checks that the data have no separate source texts, for models without an encoder.

    Raises: UserError if the data have source texts.
    """
    if "source" in spec:
        raise UserError(
            "the data are pairs with a separate source, and this family has no encoder for their sources; "
            "the fix: --data.pairs joined, or a config of gen.families.language.seq2seq, such as seq2seq_docstring"
        )


def check_axes(arch: Architecture, axes: int) -> None:
    """Checks that the positions of an architecture work on a grid with this number of axes.

    Raises: UserError if they don't.
    """
    if arch.positions == "relative":
        raise UserError(
            "relative positions work for texts only, and the data are grids; the fix: --model.network.positions rotary"
        )
    head = arch.width // arch.heads
    if arch.positions == "rotary" and head // 2 < axes:
        raise UserError(
            f"a head of {head} channels has too few pairs to rotate for {axes} axes; use fewer --model.network.heads"
        )


def context(arch: Architecture, length: int) -> int:
    """Returns the maximum number of positions that the network can read: the larger of `arch.context` and `length`.

    length: T, the number of targets in a training window.

    Raises: UserError if the windows are longer than the network's learned positions.
    """
    if arch.context is not None and arch.positions == "learned" and length > arch.context:
        raise UserError(
            f"the network has {arch.context} learned positions, and windows have {length}; "
            f"the fix: --data.length {arch.context}"
        )
    return max(arch.context or 0, length)


def init_params(network: Transformer, end: int | None, key: Key) -> dict[str, Params]:
    """Returns {"transformer": the parameters of `network` at step 0}. end: token that separates documents, or None."""
    one = jnp.zeros((1, 1), jnp.int32)
    return {"transformer": network.init(key, one, *locate_tokens(one, end))["params"]}


def dropout_keys(arch: Architecture, key: Key, row: Array) -> Array | None:
    """Returns one dropout key per example, [B], or None without dropout. row: int32 [B], see `axis.example_keys`."""
    if not arch.dropout:
        return None
    return axis.example_keys(key, row)


def target_weights(batch: Batch, dtype: DTypeLike) -> Array:
    """Returns the weight of each target, [B, T]: 0 for padding and for tokens that do not count in the loss, or 1."""
    weight = batch["counted"].astype(dtype) * batch["weight"].astype(dtype)[:, None]
    return weight[:, 1:]


def count_tokens(weight: Array) -> Array:
    """Returns the number of tokens that count in the loss, averaged over devices, [].

    weight: [B, T], see `target_weights`.

    Runs under the axis "data".
    """
    return axis.mean(weight.sum())


def normalize_weights(weight: Array, count: Array) -> Array:
    """Returns weights [B, T], scaled so that the average of `token_mean` over devices is the mean over counted tokens.

    Devices may have different numbers of tokens that count, so the average of the devices' means would be wrong.

    count: `count_tokens(weight)`, [].
    """
    # Not max(count, 1): the average is between 0 and 1 if fewer tokens count than there are devices.
    return weight * len(weight) / jnp.where(count > 0, count, 1)


def token_mean(nats: Array, weight: Array) -> Array:
    """Returns the weighted sum over tokens, averaged over examples, [].

    nats: [B, T]. weight: [B, T], from `normalize_weights`.
    """
    return (nats * weight).sum(1).mean()


def token_sums(nats: Array, weight: Array, batch: Batch) -> Sums:
    """Returns the `Sums` of a batch for "loss" (nats per token) and "bits_per_byte" (bits per byte of text).

    nats, weight: [B, T].
    """
    total = (nats * weight).sum()
    # Bytes of text do not depend on the tokenizer, so bits per byte compare models with different tokenizers.
    bytes_ = (batch["bytes"] * batch["weight"]).sum().astype(nats.dtype)
    return {"loss": (total, weight.sum()), "bits_per_byte": (total / math.log(2), bytes_)}


def summarize(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Returns the metrics of a split: total / weight of each of the `Sums`, and "perplexity", exp of "loss".

    Vectors are divided entry by entry. An entry of weight 0 gives 0.
    """
    value = {
        name: np.asarray(total, np.float64) / np.maximum(np.asarray(count, np.float64), 1e-9)
        for name, (total, count) in sums.items()
    }
    # A split may have no token at some position, so the weight of a vector's entry may be 0.
    metrics: dict[str, Any] = {name: float(v) if v.ndim == 0 else v for name, v in value.items()}
    return metrics | {"perplexity": math.exp(min(metrics["loss"], MAX_NATS))}
