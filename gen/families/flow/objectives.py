"""Training losses of a flow along the line x_t = (1 - t) x + t e from an example x to noise e, whose velocity is e - x.

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
"""(parameters, x, r, t) -> the mean velocity of the path through x, from the time r to the time t, shaped as x [B, ...]."""
MEAN_FLOW_C = 1e-3
"""c of MeanFlow's adaptive weight. Geng et al. 2025 give it as an example. It is small next to a squared norm."""


@dataclass(frozen=True)
class Objective:
    """A training loss, and the request of models that are trained on it."""

    request: ClassVar[type[Request]] = Request
    """Class of the requests to a model that is trained with this loss. Its defaults suit the loss."""
    intervals: ClassVar[bool] = False
    """Whether the loss trains mean velocities over intervals, r < t. Otherwise samplers ask for velocities alone, r = t."""

    def loss(self, u: Network, params: Params, x: Array, keys: Key) -> Array:
        """Returns the loss of each example, [B]. All noise of an example is drawn from its key.

        x: examples [B, *axes, C]; keys: [B].
        """
        raise NotImplementedError


@dataclass(frozen=True)
class FlowMatching(Objective):
    """|u(x_t, t) - (e - x)|^2, averaged over dimensions. Lipman et al. 2023, equation 23; Liu et al. 2023, equation 1."""

    mean: float = 0.0
    """Mean of logit(t), which has a normal distribution (Esser et al. 2024, equation 19). Higher: more noise."""
    std: float = 1.0
    """Standard deviation of logit(t)."""
    weight: Literal["velocity", "data", "noise", "likelihood"] = "velocity"
    """Quantity whose squared error is the loss. velocity: e - x. data: x. noise: e. likelihood: x, and the error is multiplied by the
    derivative of the signal-to-noise ratio. The integral of that loss over t bounds the likelihood (Kingma et al. 2021, equation 17)."""

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
        """Returns the weight of the velocity's squared error at the times t [B]."""
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
    """Learns the mean velocity between two times, so that one step leads from noise to an example. Geng et al. 2025, algorithm 1.

    Training is stable in small models if most pairs of times have r = t, and if it starts from a flow that was trained with
    FlowMatching (--init-from).
    """

    request = OneStepRequest
    intervals = True

    mean: float = -0.4
    """Mean of logit(r) and logit(t), which have normal distributions."""
    std: float = 1.0
    """Standard deviation of logit(r) and logit(t)."""
    equal: float = 0.75
    """Fraction of the pairs of times with r = t. Their loss is the loss of flow matching."""
    power: float = 1.0
    """Exponent p of the adaptive weight 1 / (error + 0.001)^p, which keeps an example from dominating a gradient. The
    error is the squared L2 norm, a sum over dimensions. 0: no weight."""

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
        # du/dt along the path. The target is a constant, so no gradient flows through these parameters.
        fixed = partial(u, jax.lax.stop_gradient(params))
        _, du_dt = jvp(fixed, (x_t, r, t), (v, jnp.zeros_like(r), jnp.ones_like(t)))
        mean = mean_square(u(params, x_t, r, t) - jax.lax.stop_gradient(v - expand(t - r, x) * du_dt))
        error = mean * x[0].size
        weight = jax.lax.stop_gradient((error + MEAN_FLOW_C) ** -self.power)
        # This has the value of the mean square, as in FlowMatching, and the gradient of the weighted error. The weighted error itself
        # would be a useless value: with p = 1 it is always about 1.
        return jax.lax.stop_gradient(mean) + weight * (error - jax.lax.stop_gradient(error))

    def draw_times(self, x: Array, first: Key, second: Key, equal: Key) -> tuple[Array, Array]:
        """Draws r <= t of each example, [B]. A fraction `equal` of the pairs has r = t."""
        a, b = (draw_time(keys, x, self.mean, self.std) for keys in (first, second))
        t, r = jnp.maximum(a, b), jnp.minimum(a, b)
        same = jax.vmap(partial(jax.random.bernoulli, p=self.equal))(equal)
        return jnp.where(same, t, r), t


def interpolate(x: Array, e: Array, t: Array) -> Array:
    """Returns x_t = (1 - t) x + t e, for examples x and noise e [B, ...] and times t [B]."""
    return (1 - expand(t, x)) * x + expand(t, x) * e


def draw_normal(keys: Key, x: Array) -> Array:
    """Draws standard normal noise shaped as x [B, ...]. The noise of an example is drawn from its key. keys: [B]."""
    return jax.vmap(partial(jax.random.normal, shape=x.shape[1:], dtype=x.dtype))(keys)


def draw_time(keys: Key, x: Array, mean: float, std: float) -> Array:
    """Draws a time in (0, 1) for each key [B], in the dtype of x. Its logit is N(mean, std^2)."""
    return jax.nn.sigmoid(mean + std * jax.vmap(partial(jax.random.normal, shape=(), dtype=x.dtype))(keys))


def expand(t: Array, x: Array) -> Array:
    """Returns t [B] with axes of size 1, so that it broadcasts to x [B, ...]."""
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def mean_square(x: Array) -> Array:
    """Returns the mean square of each example of x [B, ...], [B]."""
    return jnp.square(x).mean(tuple(range(1, x.ndim)))
