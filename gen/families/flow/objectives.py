"""Training losses of a flow.

All use the line x_t = (1 - t) x + t e from an example x (t = 0) to noise e (t = 1), whose velocity is e - x.

A config names one: `objective=MeanFlow()`. Subclass `Objective` to add one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from gen.axis import split_keys
from gen.core import Array, Key, Params
from gen.errors import check_finite, check_fraction, check_not_negative, check_positive
from gen.families.flow.sampling import OneStepRequest, Request
from gen.networks.kernels.forward import jvp

Network = Callable[[Params, Array, Array, Array], Array]
"""(parameters, x_t [B, ...], r [B], t [B]) -> the mean velocity between the times r <= t of the path through x_t at the time t, in
the shape of x_t."""
MEAN_FLOW_C = 1e-3
"""Constant c of MeanFlow's weight 1 / (error + c)^p, as suggested by Geng et al. 2025. It only matters for tiny errors."""


@dataclass(frozen=True)
class Objective:
    """Base class of the training losses of a flow. Subclass it to add a loss."""

    request: ClassVar[type[Request]] = Request
    """Class of the sampling requests to a model with this loss. Its defaults, such as the number of steps, suit the loss."""
    intervals: ClassVar[bool] = False
    """Whether the loss trains mean velocities between two times r < t. Otherwise it only trains velocities at a single
    time, r = t."""

    def loss(self, u: Network, params: Params, x: Array, keys: Key) -> Array:
        """Returns the loss of each example, [B]. All noise of an example is drawn from its key.

        u: the network. x: examples, [B, *axes, C] with positions on *axes. keys: one per example, [B].
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FlowMatching(Objective):
    """The squared error of the velocity, |u(x_t, t) - (e - x)|^2, averaged over dimensions and weighted by a function of t.

    Lipman et al. 2023, equation 23; Liu et al. 2023, equation 1.
    """

    mean: float = 0.0
    """Mean of logit(t), which is drawn from a normal distribution (Esser et al. 2024, equation 19). Higher values train on noisier
    examples."""
    std: float = 1.0
    """Standard deviation of logit(t)."""
    weight: Literal["velocity", "data", "noise", "likelihood"] = "velocity"
    """Quantity whose squared error is the loss: the velocity e - x, the data x, or the noise e. likelihood: the data x, where the
    error is multiplied by the derivative of the signal-to-noise ratio. The integral of this loss over t bounds the likelihood
    (Kingma et al. 2021, equation 17)."""

    def __post_init__(self):
        check_finite(mean=self.mean)
        check_positive(std=self.std)

    def loss(self, u: Network, params: Params, x: Array, keys: Key) -> Array:
        e_keys, t_keys = split_keys(keys, 2)
        e = draw_normal(e_keys, x)
        t = draw_time(t_keys, x, self.mean, self.std)
        v = u(params, interpolate(x, e, t), t, t)
        return self.weigh(t) * mean_square(v - (e - x))

    def weigh(self, t: Array) -> Array:
        """Returns the factor of the velocity's squared error in the loss, [B], at the times t [B]. See `weight`."""
        match self.weight:
            case "data":  # x = x_t - t v
                return t**2
            case "noise":  # e = x_t + (1 - t) v
                return (1 - t) ** 2
            case "likelihood":  # -d/dt ((1 - t) / t)^2 / 2 = (1 - t) / t^3, times the weight of the data
                return (1 - t) / t
        return jnp.ones_like(t)


@dataclass(frozen=True)
class MeanFlow(Objective):
    """Trains the mean velocity between two times r <= t, so that one step leads from noise to an example.

    Geng et al. 2025, algorithm 1. Training is stable in small models if most pairs of times have r = t (`equal`), and if it starts
    from a flow that was trained with FlowMatching (--init-from).
    """

    request = OneStepRequest
    intervals = True

    mean: float = -0.4
    """Mean of the normal distribution from which the logits of two times are drawn. r is the smaller time, and t the larger."""
    std: float = 1.0
    """Standard deviation of this normal distribution."""
    equal: float = 0.75
    """Probability that r is set to t, in [0, 1]. The loss is then the loss of flow matching."""
    power: float = 1.0
    """Exponent p of the weight 1 / (error + 0.001)^p of an example, which keeps large errors from dominating the gradient. The
    error is the squared L2 norm, a sum over dimensions. 0: all weights are 1."""

    def __post_init__(self):
        check_finite(mean=self.mean)
        check_positive(std=self.std)
        check_fraction(equal=self.equal)
        check_not_negative(power=self.power)

    def loss(self, u: Network, params: Params, x: Array, keys: Key) -> Array:
        e_keys, *pair_keys = split_keys(keys, 4)
        e = draw_normal(e_keys, x)
        r, t = self.draw_times(x, *pair_keys)
        x_t, v = interpolate(x, e, t), e - x
        # du/dt along the path is part of the target. The target is a constant, so no gradient flows through these parameters.
        fixed = partial(u, jax.lax.stop_gradient(params))
        _, du_dt = jvp(fixed, (x_t, r, t), (v, jnp.zeros_like(r), jnp.ones_like(t)))
        mean = mean_square(u(params, x_t, r, t) - jax.lax.stop_gradient(v - expand(t - r, x) * du_dt))
        error = mean * x[0].size
        weight = jax.lax.stop_gradient((error + MEAN_FLOW_C) ** -self.power)
        # The result has the value of the mean squared error, as in FlowMatching, and the gradient of the weighted error. The value
        # of the weighted error would be useless to report: with p = 1 it is always about 1.
        return jax.lax.stop_gradient(mean) + weight * (error - jax.lax.stop_gradient(error))

    def draw_times(self, x: Array, first: Key, second: Key, choice: Key) -> tuple[Array, Array]:
        """Draws the times r <= t of each example. Returns (r, t), [B] each. With probability `self.equal`, r = t.

        x: examples [B, ...]; the times have its dtype. first, second, choice: random keys [B], for the two times and for
        the choice of r = t.
        """
        a, b = (draw_time(keys, x, self.mean, self.std) for keys in (first, second))
        t, r = jnp.maximum(a, b), jnp.minimum(a, b)
        same = jax.vmap(partial(jax.random.bernoulli, p=self.equal))(choice)
        return jnp.where(same, t, r), t


def interpolate(x: Array, e: Array, t: Array) -> Array:
    """Returns x_t = (1 - t) x + t e, for examples x and noise e [B, ...] and times t [B]."""
    return (1 - expand(t, x)) * x + expand(t, x) * e


def draw_normal(keys: Key, x: Array) -> Array:
    """Draws standard normal noise in the shape and dtype of x [B, ...]. keys: [B], one for each example."""
    return jax.vmap(partial(jax.random.normal, shape=x.shape[1:], dtype=x.dtype))(keys)


def draw_time(keys: Key, x: Array, mean: float, std: float) -> Array:
    """Draws a time in (0, 1) for each key [B], in the dtype of x. The logit of the time is drawn from N(mean, std^2)."""
    return jax.nn.sigmoid(mean + std * jax.vmap(partial(jax.random.normal, shape=(), dtype=x.dtype))(keys))


def expand(t: Array, x: Array) -> Array:
    """Returns t [B] as [B, 1, ..., 1], so that it broadcasts to x [B, ...]."""
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def mean_square(x: Array) -> Array:
    """Returns the mean square of each example, [B]. x: [B, ...]."""
    return jnp.square(x).mean(tuple(range(1, x.ndim)))
