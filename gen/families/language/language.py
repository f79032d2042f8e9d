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

# Upper limit of the loss, in nats per token, from which the perplexity exp(loss) is computed: exp must not overflow.
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
    """Interface of the object from which `assemble` makes a GenerativeModel. GenerativeModel describes the methods."""

    @property
    def config(self) -> LanguageModel: ...
    @property
    def learner(self) -> Learner: ...

    def update(self, state: State, batch: Batch, key: Key) -> tuple[State, Metrics]: ...
    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums: ...
    def generate(self, state: State, key: Key, given: Mapping[str, Array], request: Any) -> dict[str, Array]: ...


def assemble(model: TokenModel, request: type, protocol: Mapping[str, Mapping[str, object]]) -> GenerativeModel:
    """Returns the GenerativeModel whose functions are the methods of `model`. The training loop calls these functions.

    request: the class of the argument `request` of `model.generate`.
    protocol: {metric: {setting: value}}, how each metric is estimated. It is stored next to each score.
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
    """Length, vocabulary and end token of the texts that a language model is trained on."""

    length: int
    """T, the number of target tokens of an example. An example has T + 1 tokens, and the first is never a target."""
    vocab: int
    """V, the size of the vocabulary."""
    end: int | None
    """Token that separates documents. None: the data have no such token."""


def tokens(spec: Spec) -> Tokens:
    """Reads the length, the vocabulary and the end token of the data's texts from the spec of the data.

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
    """Checks that the data are not pairs with a separate source, such as a text to translate.

    Only models with an encoder can read a source. Raises: UserError if `spec` has the feature "source".
    """
    if "source" in spec:
        raise UserError(
            "the data are pairs with a separate source, and this family has no encoder for their sources; "
            "the fix: --data.pairs joined, or a config of gen.families.language.seq2seq, such as seq2seq_docstring"
        )


def check_axes(arch: Architecture, axes: int) -> None:
    """Checks that the position encoding of `arch` works on a grid of tokens with this number of axes.

    Raises: UserError if positions are relative, or if they are rotary and a head has fewer pairs of channels than axes.
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
    """Returns random initial parameters, {"transformer": parameters of `network`}.

    end: token that separates documents, or None. The parameters do not depend on it.
    """
    one = jnp.zeros((1, 1), jnp.int32)
    return {"transformer": network.init(key, one, *locate_tokens(one, end))["params"]}


def dropout_keys(arch: Architecture, key: Key, row: Array) -> Array | None:
    """Returns one random key per example for dropout, [B], or None if `arch` has no dropout.

    row: int32 [B], positions of the examples in the global batch. Each key depends on (key, row) alone.
    """
    if not arch.dropout:
        return None
    return axis.example_keys(key, row)


def target_weights(batch: Batch, dtype: DTypeLike) -> Array:
    """Returns the weight in the loss of each token of an example but the first, [B, T].

    A weight is 1 if the token counts in the loss. It is 0 if the token does not count, or if the example is padding.

    batch: "counted" [B, T + 1], 1 for tokens that count, otherwise 0; "weight" [B], 0 for padding, otherwise 1.
    """
    weight = batch["counted"].astype(dtype) * batch["weight"].astype(dtype)[:, None]
    return weight[:, 1:]


def count_tokens(weight: Array) -> Array:
    """Returns how many tokens of a device's batch count in the loss, as the average over all devices, a scalar.

    weight: [B, T], 1 for tokens that count, otherwise 0, such as from `target_weights`.

    Must run under the mapped axis "data" (see gen.axis).
    """
    return axis.mean(weight.sum())


def normalize_weights(weight: Array, count: Array) -> Array:
    """Returns weight * B / count, [B, T], the weights for `token_mean`.

    With these weights, the average of `token_mean` over devices is the mean over all tokens of the global batch that
    count. Devices may have different numbers of tokens that count, so the average of the devices' means would be wrong.

    weight: [B, T], 1 for tokens that count, otherwise 0. count: `count_tokens(weight)`, a scalar.
    """
    # Not max(count, 1): the average is between 0 and 1 if fewer tokens count than there are devices.
    return weight * len(weight) / jnp.where(count > 0, count, 1)


def token_mean(nats: Array, weight: Array) -> Array:
    """Returns sum(nats * weight) / B, a scalar. Its average over devices is the mean over all tokens that count.

    nats: [B, T], a value per token, such as its loss in nats. weight: [B, T], from `normalize_weights`.
    """
    return (nats * weight).sum(1).mean()


def token_sums(nats: Array, weight: Array, batch: Batch) -> Sums:
    """Returns {metric: (total, weight)} of a batch. A metric of a split is the sum of totals / the sum of weights.

    The metrics are "loss" (nats per token) and "bits_per_byte" (bits per byte of text).

    nats: [B, T], loss of each token. weight: [B, T], 1 for tokens that count, otherwise 0.
    batch: "bytes" [B], bytes of text that the tokens that count represent; "weight" [B], 0 for padding, otherwise 1.
    """
    total = (nats * weight).sum()
    # Bytes of text do not depend on the tokenizer, so bits per byte compare models with different tokenizers.
    bytes_ = (batch["bytes"] * batch["weight"]).sum().astype(nats.dtype)
    return {"loss": (total, weight.sum()), "bits_per_byte": (total / math.log(2), bytes_)}


def summarize(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Returns {metric: total / weight} of a split, and "perplexity": exp of "loss", but at most exp(MAX_NATS).

    Vectors are divided entry by entry. An entry of weight 0 gives 0.

    sums: {metric: (total, weight)}, summed over all batches of the split. It must have "loss".
    """
    value = {
        name: np.asarray(total, np.float64) / np.maximum(np.asarray(count, np.float64), 1e-9)
        for name, (total, count) in sums.items()
    }
    # A split may have no token at some position, so the weight of a vector's entry may be 0.
    metrics: dict[str, Any] = {name: float(v) if v.ndim == 0 else v for name, v in value.items()}
    return metrics | {"perplexity": math.exp(min(metrics["loss"], MAX_NATS))}
