"""A velocity network on the features of a data set, as pure functions of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.axis import split_keys
from gen.core import Array, Batch, Feature, Key, Params, Spec
from gen.errors import UserError
from gen.families.chunks import map_chunks
from gen.families.flow.objectives import Objective, draw_normal
from gen.families.flow.samplers import Velocity
from gen.families.flow.sampling import Request, generate
from gen.families.labels import drop_labels, labels_to_generate
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
    label_dropout: float
    dtype: DTypeLike
    """Dtype of examples, noise, times and losses."""

    @property
    def classes(self) -> int | None:
        """Number of classes. None: unconditional."""
        return self.network.classes

    def init(self, key: Key) -> dict[str, Params]:
        """Returns the parameters at step 0."""
        time = jnp.zeros(1, self.dtype)
        label = None if self.classes is None else jnp.zeros(1, jnp.int32)
        return {
            "velocity": self.network.init(key, jnp.zeros((1, *self.shape), self.dtype), time, time, label)["params"]
        }

    def apply(self, params: Params, label: Array | None, x: Array, r: Array, t: Array) -> Array:
        """Returns the mean velocities from the times r to t [B], shaped as x [B, ...]. label: int32 [B], or None."""
        return self.network.apply({"params": params["velocity"]}, x, r, t, label).astype(self.dtype)  # pyright: ignore

    def inputs(self, batch: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """Returns the examples [B, ...] of a batch and their labels int32 [B], or None if unconditional."""
        return batch[self.name].astype(self.dtype), None if self.classes is None else batch["label"]

    def loss(self, objective: Objective, params: Params, batch: Batch, keys: Key) -> Array:
        """Returns the objective of each example, [B], with some labels left out. keys: [B]."""
        noise_keys, label_keys = split_keys(keys, 2)
        x, label = self.inputs(batch)
        if label is not None and self.classes is not None:
            label = drop_labels(label, label_keys, self.label_dropout, self.classes)

        def u(params: Params, x: Array, r: Array, t: Array) -> Array:
            return self.apply(params, label, x, r, t)

        return objective.loss(u, params, x, noise_keys)

    def velocity(self, params: Params, label: Array | None, request: Request = Request()) -> Velocity:
        """Returns the velocity that samplers follow, with the request's guidance.

        label: int32 [B], or None. Raises: UserError for guidance of a model that can't have it.
        """
        self.check_guidance(request)
        plain = partial(self.apply, params, label)
        guided = plain if label is None else partial(self.apply_guided, request.guidance, params, label)

        def at(x: Array, t: Array, s: Array) -> Array:
            # Mean velocities are known from earlier times to x alone, so on the way to noise it is the velocity at x.
            times = jnp.full(len(x), jnp.minimum(s, t)), jnp.full(len(x), t)
            if request.guidance == 1:
                return plain(x, *times)
            # Guidance takes a second evaluation, so the program branches instead of choosing between two results.
            inside = (request.guidance_from <= t) & (t <= request.guidance_to)
            return jax.lax.cond(inside, guided, plain, x, *times)

        return at

    def apply_guided(self, guidance: float, params: Params, label: Array, x: Array, r: Array, t: Array) -> Array:
        """Returns velocities as `apply`, guided by the label. Ho and Salimans 2022, equation 6, with w = guidance - 1."""
        assert self.classes is not None
        # One call of the network for both, on a batch of twice the size.
        labels = jnp.concatenate([label, jnp.full_like(label, self.classes)])
        v, base = jnp.split(self.apply(params, labels, *(jnp.concatenate([a, a]) for a in (x, r, t))), 2)
        return base + guidance * (v - base)

    def check_guidance(self, request: Request) -> None:
        """Raises: UserError if the request asks for guidance, and the model has no labels or was trained without dropping them."""
        if request.guidance == 1:
            return
        if self.classes is None:
            raise UserError("guidance needs labels, and the model is not conditional; the fix: leave --guidance out")
        if not self.label_dropout:
            raise UserError("guidance needs a model that was trained with label_dropout above 0; leave --guidance out")

    def sample(self, params: Params, keys: Key, given: Batch, request: Request) -> dict[str, Array]:
        """Returns samples [n, *axes, C], float32, and "labels" int32 [n] if the model is conditional. keys: [n].

        Raises: UserError for guidance or a label that the model does not have.
        """
        label = labels_to_generate(request.n, request.label, self.classes, given)
        noise = draw_normal(keys, jnp.zeros((request.n, *self.shape), self.dtype))

        def follow(inputs: tuple[Array, Array | None]) -> Array:
            noise, label = inputs
            return generate(self.velocity(params, label, request), noise, request)

        samples = map_chunks(follow, (noise, label), GENERATE_CHUNK).astype(jnp.float32)
        if self.name == "image":
            # Solvers end near the data, and may leave the range of pixels.
            samples = samples.clip(-1, 1)
        return {"samples": samples} if label is None else {"samples": samples, "labels": label}


def find_feature(spec: Spec) -> tuple[str, Feature]:
    """Returns the name of the feature to model, and the feature. Raises: UserError if the data have none of FEATURES."""
    for name in FEATURES:
        if name in spec:
            return name, spec[name]
    raise UserError(f"a flow models images or latents, and the data have {', '.join(spec)}; choose data with images")
