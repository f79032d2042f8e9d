"""What the families of language models share: a transformer, and how the nats of tokens become losses and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from gen import axis, core
from gen.core import Array, Batch, Key, Params, Spec, Sums
from gen.errors import UserError
from gen.families.learner import LearnedFamily
from gen.networks.positions import places
from gen.networks.transformer import Architecture, Transformer

MAX_NATS = 30.0  # nats a token above which a perplexity is not worth its digits


@dataclass(frozen=True)
class LanguageModel(LearnedFamily):
    """What every language model is made of."""

    network: Architecture = Architecture()
    """The transformer; of an encoder and a decoder, each of them."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits from drifting (Chowdhery et al. 2022: 1e-4)."""

    def __post_init__(self):
        super().__post_init__()
        if self.z_loss < 0:
            raise UserError(f"z_loss is {self.z_loss}; it must be at least 0")

    def tiny(self) -> Self:
        return replace(self, network=self.network.tiny())

    def inherit(self, base: core.Family, spec: Spec) -> Self:
        super().inherit(base, spec)
        assert isinstance(base, LanguageModel)
        return replace(self, network=self.network.inherit(base.network, spec["tokens"].shape[0] - 1))


def begin(network: Transformer, end: int | None) -> Callable[[Key], dict[str, Params]]:
    """key -> the parameters of step 0 of one transformer."""

    def params(key: Key) -> dict[str, Params]:
        tokens = jnp.zeros((1, 1), jnp.int32)
        return {"transformer": network.init(key, tokens, *places(tokens, end))["params"]}

    return params


def dropout_keys(arch: Architecture, key: Key, batch: Batch) -> Batch:
    """{"keys": a key an example, [B]}: its noise is its own, whatever device holds it. {} if nothing is dropped."""
    return {"keys": jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])} if arch.dropout else {}


class Tokens(NamedTuple):
    """What a language model knows of its data."""

    length: int
    """Targets in a window."""
    vocab: int
    end: int | None
    """The token between documents."""


def tokens(spec: Spec) -> Tokens:
    """The tokens of the data. Raises: UserError if there are none."""
    feature = spec.get("tokens")
    if feature is None or feature.vocab is None:
        raise UserError(f"a language model needs tokens, and the data have {', '.join(spec)}")
    return Tokens(feature.shape[0] - 1, feature.vocab, feature.end)


def check_alone(spec: Spec) -> None:
    """Raises: UserError for data with a source apart, which a network without an encoder would not see."""
    if "source" in spec:
        raise UserError(
            "the pairs are separate, and this family has no encoder for their sources; the fix: --data.pairs joined, or a config "
            "of gen.families.language.seq2seq, as seq2seq_docstring"
        )


def context(arch: Architecture, length: int) -> int:
    """The places that a network trained on windows of `length` is used on. Raises: UserError if they are too long for it."""
    if arch.context is not None and arch.positions == "learned" and length > arch.context:
        raise UserError(
            f"the network has learned {arch.context} places, and windows have {length}: --data.length {arch.context}"
        )
    return max(arch.context or 0, length)


def counted(batch: Batch, dtype: Any) -> Array:
    """How much each token counts as a target, [B, T + 1]: not at all if it is padding, or a condition."""
    return batch["counted"].astype(dtype) * batch["weight"].astype(dtype)[:, None]


def shares(weight: Array) -> Array:
    """[B, T] weights of tokens, scaled so that `token_mean` is over all tokens that count in the whole batch."""
    count = axis.mean(weight.sum())  # a mean over devices: below 1 if few tokens count
    return weight * len(weight) / jnp.where(count > 0, count, 1)


def token_mean(nats: Array, share: Array) -> Array:
    """The mean over examples of their tokens' sums. nats, share: [B, T]."""
    return (nats * share).sum(1).mean()


def with_z_loss(config: LanguageModel, nats: Array, log_z: Array, share: Array) -> tuple[Array, Array]:
    """(the mean nats, and config.z_loss times the mean of log(Z)^2; the mean nats alone), over all counted tokens."""
    mean = token_mean(nats, share)
    return mean + config.z_loss * token_mean(jnp.square(log_z), share), mean


def token_sums(nats: Array, weight: Array, batch: Batch) -> Sums:
    """Sums of a batch over "data" for `summarize`: nats by token, and by byte of what the tokens stand for."""
    total = (nats * weight).sum()
    bytes_ = (batch["bytes"] * batch["weight"]).sum().astype(nats.dtype)
    return {"loss": (total, weight.sum()), "bits_per_byte": (total / math.log(2), bytes_)}


def summarize(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """`loss` in nats a token, its `perplexity`, `bits_per_byte`; others are means, vectors too."""
    value = {
        name: np.asarray(total, np.float64) / np.maximum(np.asarray(count, np.float64), 1e-9)
        for name, (total, count) in sums.items()
    }
    metrics: dict[str, Any] = {name: float(v) if v.ndim == 0 else v for name, v in value.items()}
    return metrics | {"perplexity": math.exp(min(metrics["loss"], MAX_NATS))}
