"""Estimates the likelihood of held-out examples, by the change of variables along the flow's differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, Feature, Key, Params, State, Sums, means
from gen.families.flow.model import FlowModel
from gen.families.flow.samplers import Velocity
from gen.networks.gaussian import LOG_2PI

Probes = Callable[[Array], Array]
"""Index of a solver's step, int32 [] -> K random vectors v for each example, [K, B, ...], with E[v v^T] = I.

Tests pass the vectors of a basis instead, whose sum gives the exact divergence."""
WARP = 8.0
"""Log of the ratio between the lengths of the last step (at t = 1) and the first step (at t = 0). Steps must be short near t = 0:
on dequantized bytes, the divergence grows like 1 / t as t falls to 0.002, the standard deviation of the dequantization noise."""


def log_density(velocity: Velocity, x: Array, steps: int, probes: Probes) -> Array:
    """Returns one estimate of log p(x) in nats for each probe, [K, B]. Chen et al. 2018, equation 8.

    log p(x) = log N(x_1; 0, I) + integral of div w(x_t, t) over t from 0 to 1, where w is the velocity and x_t starts at x and
    follows w. The divergence is estimated by v^T (dw/dx) v for each probe v (Grathwohl et al. 2019, equation 7). x_t is
    computed by Heun's method, at times t = warp(u) for equally spaced u. The integral is computed by the trapezoidal rule over
    u, because the integrand is smooth in u. Both methods have order 2.

    x: [B, ...]; steps: number of solver steps.
    """

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        x, total = carry
        u = jnp.asarray([i, jnp.minimum(i + 1, steps)]).astype(x.dtype) / steps
        (t, s), (rate, _) = warp(u)
        v, div = divergence(lambda x: velocity(x, t, t), x, probes(i))
        # The trapezoidal rule gives the first and the last point half of the weight.
        inner = (i > 0) & (i < steps)
        total += jnp.where(inner, 1.0, 0.5) * rate / steps * div
        # In the last iteration s = t, so x does not move: only the divergence is needed.
        w = velocity(x + (s - t) * v, s, s)
        return (x + (s - t) * (v + w) / 2, total), None

    start = x, jnp.zeros(jax.eval_shape(probes, jnp.int32(0)).shape[:2], x.dtype)
    (e, total), _ = jax.lax.scan(step, start, jnp.arange(steps + 1))
    log_normal = -(jnp.square(e) + LOG_2PI).sum(tuple(range(1, e.ndim))) / 2
    return log_normal[None] + total


def warp(u: Array) -> tuple[Array, Array]:
    """Maps u in [0, 1] to the time t in [0, 1], and returns (t, dt/du). dt/du is e^WARP times larger at u = 1 than at u = 0."""
    return jnp.expm1(WARP * u) / jnp.expm1(WARP), WARP * jnp.exp(WARP * u) / jnp.expm1(WARP)


def divergence(function: Callable[[Array], Array], x: Array, probes: Array) -> tuple[Array, Array]:
    """Returns function(x) [B, ...], and K estimates of the trace of its Jacobian at each example, [K, B].

    The estimate of a probe v is v^T J v, where J is the Jacobian at the example (Hutchinson's estimator).

    x: [B, ...]; probes: [K, B, ...], see `Probes`. The function must treat examples independently of each other.
    """
    value, pullback = jax.vjp(function, x)
    pulled = jax.vmap(lambda v: pullback(v)[0])(probes)
    return value, (probes * pulled).sum(tuple(range(2, probes.ndim)))


def draw_probes(keys: Key, probes: int, like: Array, step: Array) -> Array:
    """Draws vectors of random signs, -1 or 1, for each example: [probes, B, ...], in the dtype of `like` [B, ...].

    `divergence` reads them. keys: one per example, [B]. probes: number of vectors for each example. step: index of the
    solver's step, int32 []. The vectors differ between steps.
    """

    def draw(key: Key) -> Array:
        return jax.random.rademacher(jax.random.fold_in(key, step), (probes, *like.shape[1:]), like.dtype)

    return jax.vmap(draw, out_axes=1)(keys)


@dataclass(frozen=True)
class Likelihood:
    """Estimates the log-likelihood of the examples of a batch under a flow, and reports its mean over a split."""

    model: FlowModel
    feature: Feature
    """The feature that the flow models."""
    weights: Callable[[State], dict[str, Params]]
    """State -> the parameters to evaluate."""
    steps: int
    """Number of steps of the differential equation's solver."""
    probes: int
    """Number of estimates of each example's likelihood, at least 2. The standard error is computed from their spread."""

    @property
    def mismatch(self) -> str | None:
        """The reason why the density of these examples is not reported. None: it is reported."""
        if self.model.name == "latent":
            return "a density of latents depends on the units of their tokenizer, and says nothing of the images"
        if self.feature.levels is not None and not self.feature.dequantized:
            return "a flow is a density, and the pixels are discrete; --data.dequantize makes them continuous"
        return None

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns {name: (sum over examples, number of examples)} over the mapped axis "data" (see gen.axis).

        The names are "nll_bound", the estimate of -log p(x) in nats, a mean over the probes; and "variance", the
        squared standard error of this mean. For dequantized pixels, p(x) is a lower bound of the levels' probability.
        """
        x, condition = self.model.inputs(batch)
        # The likelihood of whole examples: no pixels are given. A model of pairs still reads the source.
        velocity = self.model.velocity(self.weights(state), condition, context=self.model.context(x, batch))
        probes = partial(draw_probes, axis.example_keys(key, batch["row"]), self.probes, x)
        nll = -log_density(velocity, x, self.steps, probes) - self.feature.log_cell
        return axis.mean_sums(batch, {"nll_bound": nll.mean(0), "variance": nll.var(0, ddof=1) / self.probes})

    def summarize(self, sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        """Returns the metrics of a split, {metric: sum / number of examples}, from its sums.

        If the sums contain the result of `evaluate`, and the pixels have a known number of levels, "bits_per_dim" and
        its standard error "bits_per_dim_error" are added, in bits per pixel and channel.
        """
        value = means({name: sums[name] for name in sums if name != "variance"})
        if "variance" in sums and self.feature.levels is not None:
            total, count = (float(x) for x in sums["variance"])
            nats = math.prod(self.feature.shape) * math.log(2)
            value["bits_per_dim"] = value["nll_bound"] / nats
            # The estimates of different examples are independent, so their variances add up.
            value["bits_per_dim_error"] = math.sqrt(total) / count / nats
        return value

    def protocol(self) -> dict[str, dict[str, object]]:
        """Returns {metric: how it is estimated}. If a metric is not reported, its entry "refused" holds the reason."""
        if self.mismatch is not None:
            return {"bits_per_dim": {"refused": self.mismatch}}
        solver = {"solver": "heun", "steps": self.steps, "warp": WARP, "probes": self.probes}
        # A likelihood given the label can't be compared with one without it.
        solver |= {"conditional": self.model.given}
        return {
            "nll_bound": {**solver, "unit": "nats", "source": "Chen et al. 2018, equation 8"},
            "bits_per_dim": {**solver, "of": "nll_bound"},
            "bits_per_dim_error": {"of": "bits_per_dim", "meaning": "standard error of Hutchinson's estimator"},
        }
