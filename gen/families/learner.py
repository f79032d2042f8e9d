"""The update that families with one optimizer share: all parameters descend one loss, or an adapter of them does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, Self

import jax.numpy as jnp
import tyro

from gen import core
from gen.core import LAUNCH, Adapter, Array, Batch, Key, Params, State
from gen.errors import UserError, check_positive
from gen.networks import dtypes
from gen.optim import Optimizer, adapters, descend


@dataclass(frozen=True)
class LearnedFamily(core.Family):
    """How a family with one optimizer is trained."""

    ema: float = 0.0
    """Decay of the running average of the parameters, which is evaluated and sampled from; 0: none."""
    optim: Optimizer = Optimizer()
    """The optimizer."""
    adapter: Annotated[Adapter | None, tyro.conf.Suppress] = None
    """What is trained beside a base, see --finetune."""
    microbatches: int = field(default=1, metadata=LAUNCH)
    """Parts of a device's batch whose gradients are taken one after the other and averaged: the same update in less memory."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of activations."""
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of parameters."""

    def __post_init__(self):
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}; it is a decay in [0, 1)")
        check_positive(microbatches=self.microbatches)

    def with_adapter(self, adapter: Adapter | None) -> Self:
        return replace(self, adapter=adapter)

    def dtypes(self) -> dict[str, Any]:
        return dtypes.module_dtypes(self.dtype, self.param_dtype)


Loss = Callable[[Any, Batch], tuple[Array, Any]]
"""(parameters, examples) -> (scalar, aux), both of them means over examples."""


class Learner(NamedTuple):
    """Parameters and their optimizer, whether all of them are trained or an adapter."""

    init: Callable[..., State]
    """As a GenerativeModel's."""
    weights: Callable[[State], dict[str, Params]]
    """What is evaluated and sampled from: the running average if there is one, merged with its base."""
    step: Callable[[State, Loss, Batch], tuple[State, Any, Array]]
    """(state, loss, batch) -> the next state, the loss's aux, and the norm of the gradient."""


def make_learner(config: LearnedFamily, steps: int, name: str, begin: Callable[[Key], dict[str, Params]]) -> Learner:
    """name: of the optimizer in the state; begin: key -> the parameters of step 0."""
    tx = config.optim.build(steps)

    def init(key: Key, base: dict[str, Params] | None = None) -> State:
        trained, frozen = adapters.split_trained(config.adapter, key, base or begin(key))
        return State(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            opt_state={name: tx.init(trained)},
            ema=trained if config.ema else {},
            frozen=frozen,
        )

    def weights(state: State) -> dict[str, Params]:
        return adapters.merge_adapter(config.adapter, state.ema or state.params, state.frozen)

    def step(state: State, loss: Loss, batch: Batch) -> tuple[State, Any, Array]:
        of_trained = lambda trained, part: loss(adapters.merge_adapter(config.adapter, trained, state.frozen), part)
        opt_state = state.opt_state[name]
        params, opt_state, _, aux, grads = descend.descend(
            of_trained, state.params, opt_state, tx, batch, config.microbatches
        )
        ema = descend.update_average(state.ema, params, config.ema, state.step) if config.ema else {}
        state = replace(state, step=state.step + 1, params=params, opt_state={name: opt_state}, ema=ema)
        return state, aux, descend.norm(grads)

    return Learner(init, weights, step)
