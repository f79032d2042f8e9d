"""What the families of language models share: a transformer and its optimizer, and how the nats of tokens become losses and
metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from gen import adapters, core
from gen.core import Adapter, Array, Batch, Feature, Key, Params, Spec, State, Sums, UserError
from gen.networks.transformer import Architecture
from gen.optim import OptimConfig

LIKELIEST = 30.0  # nats a token above which a perplexity is not worth its digits


@dataclass(frozen=True)
class Config(core.FamilyConfig):
    """What every language model is made of, and how it is trained."""

    network: Architecture = Architecture()
    """The transformer; of an encoder and a decoder, each of them."""
    ema: float = 0.0
    """Decay of the running average of the parameters, which is evaluated and sampled from; 0: none."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    adapter: Annotated[Adapter | None, tyro.conf.Suppress] = None
    """What is trained beside a base, see --finetune."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of activations."""
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of parameters."""

    def __post_init__(self):
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}; it is a decay in [0, 1)")

    def tiny(self) -> Self:
        return replace(self, network=self.network.tiny())

    def inherit(self, base: core.FamilyConfig, spec: Spec) -> Self:
        super().inherit(base, spec)
        assert isinstance(base, Config)
        return replace(self, network=self.network.inherit(base.network, spec["tokens"].shape[0] - 1))

    def adapted(self, adapter: Adapter | None) -> Self:
        return replace(self, adapter=adapter)

    def dtypes(self) -> dict[str, Any]:
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}


class Learner(NamedTuple):
    """Parameters and their optimizer, whether all of them are trained or an adapter."""

    init: Callable[..., State]
    """As a GenerativeModel's."""
    weights: Callable[[State], dict[str, Params]]
    """What is evaluated and sampled from: the running average if there is one, merged with its base."""
    step: Callable[[State, Callable[[Any], tuple[Array, Any]]], tuple[State, Any, Array]]
    """(state, loss of the parameters -> (scalar, aux)) -> the next state, aux, and the norm of the gradient."""


def learner(config: Config, steps: int, begin: Callable[[Key], dict[str, Params]]) -> Learner:
    """begin: key -> the parameters of step 0."""
    tx = config.optim.build(steps)

    def init(key: Key, base: dict[str, Params] | None = None) -> State:
        trained, frozen = adapters.start(config.adapter, key, base or begin(key))
        return State(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            opt_state={"transformer": tx.init(trained)},
            ema=trained if config.ema else {},
            frozen=frozen,
        )

    def weights(state: State) -> dict[str, Params]:
        return adapters.merge(config.adapter, state.ema or state.params, state.frozen)

    def step(state: State, loss: Callable[[Any], tuple[Array, Any]]) -> tuple[State, Any, Array]:
        of_trained = lambda trained: loss(adapters.merge(config.adapter, trained, state.frozen))
        opt_state = state.opt_state["transformer"]
        params, opt_state, _, aux, grads = core.descend(of_trained, state.params, opt_state, tx)
        ema = core.average(state.ema, params, config.ema, state.step) if config.ema else {}
        state = replace(state, step=state.step + 1, params=params, opt_state={"transformer": opt_state}, ema=ema)
        return state, aux, optax.tree.norm(grads)

    return Learner(init, weights, step)


def dropout_keys(arch: Architecture, key: Key, batch: Batch) -> Array | None:
    """A key an example, [B]: its noise is its own, whatever device holds it. None if nothing is dropped."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"]) if arch.dropout else None


def tokens(spec: Spec) -> Feature:
    """The tokens of the data. Raises: UserError if there are none."""
    feature = spec.get("tokens")
    if feature is None or feature.vocab is None:
        raise UserError(f"a language model needs tokens, and the data have {', '.join(spec)}")
    return feature


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


def token_mean(nats: Array, weight: Array) -> Array:
    """The part of this device in the mean over all counted tokens of the whole batch. nats, weight: [B, T]."""
    count = core.mean(weight.sum())  # of a device: less than 1, where few count on many devices
    return (nats * weight).sum() / jnp.where(count > 0, count, 1)


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
    return metrics | {"perplexity": math.exp(min(metrics["loss"], LIKELIEST))}
