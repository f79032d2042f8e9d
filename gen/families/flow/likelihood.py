"""The likelihood of held-out examples, by the change of variables along the flow's differential equation."""

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
"""(index of the step, int32 []) -> vectors v [K, B, ...] with E[v v^T] = I, or the vectors of a basis, for tests."""
WARP = 8.0
"""Log of the ratio of the last step's length to the first one's. Steps are short near t = 0: on dequantized bytes the divergence
grows like 1 / t until t is about 0.002, the standard deviation of the dequantization noise."""


def log_density(velocity: Velocity, x: Array, steps: int, probes: Probes) -> Array:
    """Returns one estimate of log p(x) in nats for each probe, [K, B]. Chen et al. 2018, equation 8.

    log p(x) = log N(x_1; 0, I) + integral of div v(x_t, t) over t from 0 to 1, where x_t starts at x and follows v. The divergence
    is estimated by v^T (dv/dx) v (Grathwohl et al. 2019, equation 7). x_t is computed by Heun's method, in steps that grow with t,
    and the integral by the trapezoidal rule over u of t = warp(u), in which it is smooth. Both have order 2.

    x: [B, ...].
    """

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        x, total = carry
        u = jnp.asarray([i, jnp.minimum(i + 1, steps)]).astype(x.dtype) / steps
        (t, s), (rate, _) = warp(u)
        v, div = divergence(lambda x: velocity(x, t, t), x, probes(i))
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
    """Maps u in [0, 1] to (t in [0, 1], dt/du). dt/du is e^WARP times larger at u = 1 than at u = 0."""
    return jnp.expm1(WARP * u) / jnp.expm1(WARP), WARP * jnp.exp(WARP * u) / jnp.expm1(WARP)


def divergence(function: Callable[[Array], Array], x: Array, probes: Array) -> tuple[Array, Array]:
    """Returns function(x) [B, ...], and v^T J v [K, B] for each probe v [K, B, ...], where J is the Jacobian at an example of x."""
    value, pullback = jax.vjp(function, x)
    pulled = jax.vmap(lambda v: pullback(v)[0])(probes)
    return value, (probes * pulled).sum(tuple(range(2, probes.ndim)))


def draw_probes(keys: Key, probes: int, like: Array, step: Array) -> Array:
    """Draws vectors of random signs for each example, [probes, B, ...]. keys: [B]; like: [B, ...]."""

    def draw(key: Key) -> Array:
        return jax.random.rademacher(jax.random.fold_in(key, step), (probes, *like.shape[1:]), like.dtype)

    return jax.vmap(draw, out_axes=1)(keys)


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a split's examples: its estimates on a batch, and its report."""

    model: FlowModel
    feature: Feature
    weights: Callable[[State], dict[str, Params]]
    """Parameters to evaluate."""
    steps: int
    """Steps of the differential equation."""
    probes: int
    """Number of estimates of each example's likelihood, at least 2. Their spread gives the error."""

    @property
    def mismatch(self) -> str | None:
        """Why the density of these examples is not reported. None: it is."""
        if self.model.name == "latent":
            return "a density of latents depends on the units of their tokenizer, and says nothing of the images"
        if self.feature.levels is not None and not self.feature.dequantized:
            return "a flow is a density, and the pixels are discrete; --data.dequantize makes them continuous"
        return None

    def evaluate(self, state: State, batch: Batch, key: Key) -> Sums:
        """Returns sums over the axis "data" of -log p(x) in nats, and of the variance of the estimates of log p(x)."""
        x, condition = self.model.inputs(batch)
        # The likelihood of whole examples: no pixels are given. A model of pairs still reads the source.
        velocity = self.model.velocity(self.weights(state), condition, context=self.model.context(x, batch))
        probes = partial(draw_probes, axis.example_keys(key, batch["row"]), self.probes, x)
        nll = -log_density(velocity, x, self.steps, probes) - self.feature.log_cell
        return axis.mean_sums(batch, {"nll_bound": nll.mean(0), "variance": nll.var(0, ddof=1) / self.probes})

    def summarize(self, sums: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        """Returns the metrics of a split from its sums. If the sums have a likelihood of pixels, adds it in bits per dimension."""
        value = means({name: sums[name] for name in sums if name != "variance"})
        if "variance" in sums and self.feature.levels is not None:
            total, count = (float(x) for x in sums["variance"])
            nats = math.prod(self.feature.shape) * math.log(2)
            value["bits_per_dim"] = value["nll_bound"] / nats
            value["bits_per_dim_error"] = math.sqrt(total) / count / nats
        return value

    def protocol(self) -> dict[str, dict[str, object]]:
        """Returns how each metric is estimated, or the reason why it is not reported."""
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
