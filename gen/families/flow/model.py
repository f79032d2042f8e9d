"""The velocity network of a flow on batches of data: its loss, guidance and samples, as pure functions of its parameters."""

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
from gen.families.conditions import Condition, Conditions
from gen.families.flow.editing import read_known, read_picture
from gen.families.flow.masks import Known, Mask, draw_known, nothing
from gen.families.flow.objectives import Objective, draw_normal, interpolate
from gen.families.flow.samplers import Velocity
from gen.families.flow.sampling import Request, generate
from gen.networks import velocity

FEATURES = ("image", "latent")
"""Names of the features that a flow can model. If the data have both, it models the first."""
GENERATE_CHUNK = 256
"""Number of examples that are generated at once. This bounds the memory of a large request."""


@dataclass(frozen=True)
class FlowModel:
    """A flow from noise to one feature of the data. Its parameters are {"velocity": ...}."""

    network: velocity.Velocity
    name: str
    """Name of the feature."""
    shape: tuple[int, ...]
    """(*axes, channels) of one example."""
    conditions: Conditions
    """The labels and captions that the network reads."""
    label_dropout: float
    """Probability that a training example's label and caption are left out."""
    dtype: DTypeLike
    """Dtype of examples, noise, times and losses."""
    mask: Mask | None = None
    """Mask that shows the network a part of each training example. None: the network has no inputs for known values."""
    source: tuple[int, ...] | None = None
    """For data of pairs (source, example): shape (*axes, channels) of a source, which the network reads. None: no pairs."""
    intervals: bool = False
    """Whether the network was trained on mean velocities between two times r < t (MeanFlow). Otherwise it was only
    trained on velocities at a single time, r = t."""

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the features that the network reads next to the noisy example: some of label, caption and source.

        They are stored with each metric, because metrics of models that read different features can't be compared.
        """
        return (*self.conditions.names, *(() if self.source is None else ("source",)))

    def init(self, key: Key) -> dict[str, Params]:
        """Returns the parameters at step 0."""
        x, time = jnp.zeros((1, *self.shape), self.dtype), jnp.zeros(1, self.dtype)
        source = {} if self.source is None else {"source": jnp.zeros((1, *self.source), self.dtype)}
        read = add_channels(x, self.context(x, source))
        return {"velocity": self.network.init(key, read, time, time, *self.conditions.none(1))["params"]}

    def apply(self, params: Params, condition: Condition, context: Array | None, x: Array, r: Array, t: Array) -> Array:
        """Returns the mean velocities from the time r [B] to the time t [B] at x [B, ...], in the shape of x.

        0 <= r <= t <= 1, where t = 0 is an example and t = 1 is noise. If r = t, they are the velocities at t.
        condition: labels and captions. context: returned by the method `context`.
        """
        variables, read = {"params": params["velocity"]}, add_channels(x, context)
        return self.network.apply(variables, read, r, t, *condition).astype(self.dtype)  # pyright: ignore

    def context(self, x: Array, batch: Mapping[str, Array], known: Known | None = None) -> Array | None:
        """Returns the channels that the network reads in addition to the noisy example's, [B, *axes, D].

        They are the known values and their mask, if the model was trained with masks, and the source, if it is a model
        of pairs. Returns None if the model reads no such channels.

        x: [B, *axes, C]; only its shape and dtype are used. batch: has "source" [B, *axes, S] if the data are pairs.
        known: the known values of the examples. None: nothing is known.
        """
        read = [] if self.mask is None else list(known or nothing(x))
        if self.source is not None:
            read.append(batch["source"].astype(x.dtype))
        return jnp.concatenate(read, axis=-1) if read else None

    def inputs(self, batch: Batch) -> tuple[Array, Condition]:
        """Returns the examples [B, *axes, C] of a batch, and their labels and captions."""
        return batch[self.name].astype(self.dtype), self.conditions.of(batch)

    def loss(self, objective: Objective, params: Params, batch: Batch, keys: Key, training: bool = True) -> Array:
        """Returns the loss of each example under the objective, [B]. keys: one per example, [B].

        training: whether labels and captions are left out at random, with probability `label_dropout`. A model with
        masks draws a mask for each example, in training and in evaluation.
        """
        noise_keys, drop_keys = split_keys(keys, 2)
        x, condition = self.inputs(batch)
        known = None
        if self.mask is not None:
            # Keys are split once more only if there is a mask, so that the noise of older runs without masks stays the same.
            drop_keys, mask_keys = split_keys(drop_keys, 2)
            known = draw_known(self.mask, mask_keys, x)
        context = self.context(x, batch, known)
        if training:
            condition = self.conditions.drop(condition, drop_keys, self.label_dropout)

        def u(params: Params, x: Array, r: Array, t: Array) -> Array:
            return self.apply(params, condition, context, x, r, t)

        return objective.loss(u, params, x, noise_keys)

    def velocity(
        self, params: Params, condition: Condition, request: Request = Request(), context: Array | None = None
    ) -> Velocity:
        """Returns the velocity that samplers follow, a function (x, t, s) with the request's guidance.

        condition: labels and captions of the samples. context: returned by the method `context`. A model with masks or
        sources needs it.

        Raises: UserError if the request asks for guidance and the model can't be guided.
        """
        self.check_guidance(request)
        plain = partial(self.apply, params, condition, context)
        guided = partial(self.apply_guided, request, params, condition, context)

        def at(x: Array, t: Array, s: Array) -> Array:
            # A sampler steps from t to s, and the network takes r <= t. On the way to an example (s < t), a network that knows mean
            # velocities gets r = s. In all other cases, r = t gives the velocity at t.
            r = jnp.minimum(s, t) if self.intervals else t
            times = jnp.full(len(x), r), jnp.full(len(x), t)
            if request.guidance == 1:
                return plain(x, *times)
            # `cond` and not `where`: outside of the interval, the second evaluation of the network is not computed.
            return jax.lax.cond(request.guided(t), guided, plain, x, *times)

        return at

    def apply_guided(
        self,
        request: Request,
        params: Params,
        condition: Condition,
        context: Array | None,
        x: Array,
        r: Array,
        t: Array,
    ) -> Array:
        """Returns the guided velocities, u + guidance * (v - u), where v is computed with the condition, and u without.

        Ho and Salimans 2022, equation 6, with w = guidance - 1. request: has the guidance. All other arguments: see
        `apply`.
        """
        # One call computes both velocities, on a batch of twice the size: first with the condition, then without.
        both = jax.tree.map(twice, condition, self.conditions.none(len(x)))
        context, x, r, t = jax.tree.map(lambda a: twice(a, a), (context, x, r, t))
        v, base = jnp.split(self.apply(params, both, context, x, r, t), 2)
        return base + request.guidance * (v - base)

    def check_guidance(self, request: Request) -> None:
        """Checks that the model supports the request's guidance.

        Raises: UserError if guidance is not 1, and the model reads no conditions or was trained with label_dropout 0.
        """
        if request.guidance == 1:
            return
        if self.conditions == Conditions():
            raise UserError("guidance needs labels, and the model is not conditional; the fix: leave --guidance out")
        if not self.label_dropout:
            raise UserError("guidance needs a model that was trained with label_dropout above 0; leave --guidance out")

    def check_mode(self, request: Request) -> None:
        """Checks that the model supports the request's mode, such as "inpaint". Raises: UserError if it does not.

        All modes except "generate" need a flow of images without sources. All modes except "generate" and "edit" also
        need a model that was trained with masks.
        """
        if request.mode == "generate":
            return
        if self.name != "image":
            raise UserError(
                f"mode {request.mode} changes pictures, and this flow generates latents; the fix: use a flow of images"
            )
        if self.source is not None:
            raise UserError(
                f"mode {request.mode} is for flows without sources, and this flow translates pairs; leave --mode out"
            )
        if request.mode != "edit" and self.mask is None:
            raise UserError(
                f"mode {request.mode} needs a model that was trained with masks; the fix: train one with given=AnyOf()"
            )

    def sample(self, params: Params, keys: Key, given: Batch, request: Request) -> dict[str, Array]:
        """Returns {"samples": float32 [n, *axes, C]}, in [-1, 1] for images.

        Also returns "labels" int32 [n] and "captions" int32 [n, L] if the model reads them, and "source" [n, *axes, S] if it is a
        model of pairs. In the mode "inpaint", samples keep the known pixels.

        keys: one per sample, [n].
        given: may hold labels and prompts (see labels_to_generate and captions_to_generate). It must hold the pictures that the
            request's mode needs (see `editing.read_known`), and for a model of pairs "source" [m, *axes, S]: sample i translates
            source i modulo m.

        Raises: UserError for guidance, a label or a mode that the model does not support, or for pictures of a wrong size.
        """
        self.check_mode(request)
        condition = self.conditions.to_generate(request.n, request.label, given)
        noise = draw_normal(keys, jnp.zeros((request.n, *self.shape), self.dtype))
        known = read_known(request, given, self.shape, self.dtype)
        source: dict[str, Array] = {}
        if self.source is not None:
            source["source"] = read_picture(given, "source", request, self.source, self.dtype)
        start = 1.0
        if request.mode == "edit":
            start = request.strength
            edited = read_picture(given, "image", request, self.shape, self.dtype)
            noise = interpolate(edited, noise, jnp.full(request.n, start, self.dtype))

        def follow(inputs: tuple[Array, Condition, Array | None]) -> Array:
            noise, condition, context = inputs
            return generate(self.velocity(params, condition, request, context), noise, request, start)

        # An edit of strength 0 returns the picture. Solving from t = 0 to t = 0 would divide by a step of length 0.
        samples = noise
        if start > 0:
            inputs = noise, condition, self.context(noise, source, known)
            samples = map_chunks(follow, inputs, GENERATE_CHUNK)
        samples = samples.astype(jnp.float32)
        if known is not None:
            # The network only comes near the known values, so they are copied into the samples.
            samples = known.paste(samples).astype(jnp.float32)
        if self.name == "image":
            # The solver's error can lead out of the range of pixels.
            samples = samples.clip(-1, 1)
        return {"samples": samples, **source, **condition.arrays()}


def add_channels(x: Array, context: Array | None) -> Array:
    """Returns x [B, *axes, C] with the channels of the context [B, *axes, D] appended, or x if the context is None."""
    return x if context is None else jnp.concatenate([x, context], axis=-1)


def twice(a: Array, b: Array) -> Array:
    """Concatenates two batches [B, ...] to one, [2 B, ...]."""
    return jnp.concatenate([a, b])


def find_feature(spec: Spec) -> tuple[str, Feature]:
    """Returns the name of the feature that the flow models, "image" or "latent", and its description.

    If the data have both, it is "image". Raises: UserError if the data have neither.
    """
    for name in FEATURES:
        if name in spec:
            return name, spec[name]
    raise UserError(f"a flow models images or latents, and the data have {', '.join(spec)}; choose data with images")


def find_source(spec: Spec, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the shape (*axes, channels) of the sources, or None if the data are not pairs (source, example).

    shape: (*axes, channels) of an example. Raises: UserError if sources and examples differ in size. Channels may differ.
    """
    if "source" not in spec:
        return None
    source = spec["source"].shape
    if source[:-1] != shape[:-1]:
        raise UserError(
            f"sources must have the size of the examples, {shape[:-1]}, and they have {source[:-1]}; use pairs of one size"
        )
    return source
