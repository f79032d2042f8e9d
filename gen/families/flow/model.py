"""A velocity network on the features of a data set, as pure functions of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.axis import split_keys
from gen.core import Array, Batch, Feature, Key, Params, Spec
from gen.errors import UserError
from gen.families.chunks import map_chunks
from gen.families.conditions import Condition, Conditions
from gen.families.flow.objectives import Objective, draw_normal
from gen.families.flow.samplers import Velocity
from gen.families.flow.sampling import Request, generate
from gen.networks import velocity

FEATURES = ("image", "latent")
"""Names of the features that a flow can model. The first one that the data have is modelled."""
GENERATE_CHUNK = 256
"""Number of examples that are generated at once. It bounds the memory of a large request."""


@dataclass(frozen=True)
class FlowModel:
    """A flow from noise to one feature of the data. Its parameters are {"velocity": ...}."""

    network: velocity.Velocity
    name: str
    """Name of the feature."""
    shape: tuple[int, ...]
    """(*axes, channels) of one example."""
    conditions: Conditions
    """What the network reads in addition to the example and the times."""
    label_dropout: float
    dtype: DTypeLike
    """Dtype of examples, noise, times and losses."""

    def init(self, key: Key) -> dict[str, Params]:
        """Returns the parameters at step 0."""
        x, time = jnp.zeros((1, *self.shape), self.dtype), jnp.zeros(1, self.dtype)
        return {"velocity": self.network.init(key, x, time, time, *self.conditions.none(1))["params"]}

    def apply(self, params: Params, condition: Condition, x: Array, r: Array, t: Array) -> Array:
        """Returns the mean velocities from the times r to t [B], shaped as x [B, ...]."""
        variables = {"params": params["velocity"]}
        return self.network.apply(variables, x, r, t, *condition).astype(self.dtype)  # pyright: ignore

    def inputs(self, batch: Batch) -> tuple[Array, Condition]:
        """Returns the examples [B, ...] of a batch, and their conditions."""
        return batch[self.name].astype(self.dtype), self.conditions.of(batch)

    def loss(self, objective: Objective, params: Params, batch: Batch, keys: Key) -> Array:
        """Returns the objective of each example, [B], with some labels and captions left out. keys: [B]."""
        noise_keys, drop_keys = split_keys(keys, 2)
        x, condition = self.inputs(batch)
        condition = self.conditions.drop(condition, drop_keys, self.label_dropout)

        def u(params: Params, x: Array, r: Array, t: Array) -> Array:
            return self.apply(params, condition, x, r, t)

        return objective.loss(u, params, x, noise_keys)

    def velocity(self, params: Params, condition: Condition, request: Request = Request()) -> Velocity:
        """Returns the velocity that samplers follow, with the request's guidance.

        Raises: UserError for guidance of a model that can't have it.
        """
        self.check_guidance(request)
        plain, guided = partial(self.apply, params, condition), partial(self.apply_guided, request, params, condition)

        def at(x: Array, t: Array, s: Array) -> Array:
            # Mean velocities are known from earlier times to x alone, so on the way to noise it is the velocity at x.
            times = jnp.full(len(x), jnp.minimum(s, t)), jnp.full(len(x), t)
            if request.guidance == 1:
                return plain(x, *times)
            # Guidance takes a second evaluation, so the program branches instead of choosing between two results.
            inside = (request.guidance_from <= t) & (t <= request.guidance_to)
            return jax.lax.cond(inside, guided, plain, x, *times)

        return at

    def apply_guided(
        self, request: Request, params: Params, condition: Condition, x: Array, r: Array, t: Array
    ) -> Array:
        """Returns velocities as `apply`, guided by the condition. Ho and Salimans 2022, equation 6, with w = guidance - 1."""
        # One call of the network for both, on a batch of twice the size.
        both = jax.tree.map(twice, condition, self.conditions.none(len(x)))
        v, base = jnp.split(self.apply(params, both, *(twice(a, a) for a in (x, r, t))), 2)
        return base + request.guidance * (v - base)

    def check_guidance(self, request: Request) -> None:
        """Raises: UserError if the request asks for guidance, and the model has no condition or was trained without dropping it."""
        if request.guidance == 1:
            return
        if self.conditions == Conditions():
            raise UserError("guidance needs labels, and the model is not conditional; the fix: leave --guidance out")
        if not self.label_dropout:
            raise UserError("guidance needs a model that was trained with label_dropout above 0; leave --guidance out")

    def sample(self, params: Params, keys: Key, given: Batch, request: Request) -> dict[str, Array]:
        """Returns samples [n, *axes, C], float32, and the conditions that the model reads: "labels" int32 [n], "captions" int32
        [n, L]. keys: [n].

        given: may hold labels and prompts (see labels_to_generate and captions_to_generate).

        Raises: UserError for guidance or a label that the model does not have.
        """
        condition = self.conditions.to_generate(request.n, request.label, given)
        noise = draw_normal(keys, jnp.zeros((request.n, *self.shape), self.dtype))

        def follow(inputs: tuple[Array, Condition]) -> Array:
            noise, condition = inputs
            return generate(self.velocity(params, condition, request), noise, request)

        samples = map_chunks(follow, (noise, condition), GENERATE_CHUNK).astype(jnp.float32)
        if self.name == "image":
            # Solvers end near the data, and may leave the range of pixels.
            samples = samples.clip(-1, 1)
        return {"samples": samples} | condition.arrays()


def twice(a: Array, b: Array) -> Array:
    """Returns two batches [B, ...] as one, [2 B, ...]."""
    return jnp.concatenate([a, b])


def find_feature(spec: Spec) -> tuple[str, Feature]:
    """Returns the name of the feature to model, and the feature. Raises: UserError if the data have none of FEATURES."""
    for name in FEATURES:
        if name in spec:
            return name, spec[name]
    raise UserError(f"a flow models images or latents, and the data have {', '.join(spec)}; choose data with images")
