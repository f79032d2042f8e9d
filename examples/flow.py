"""A family in one file, to copy: flow matching on images (Lipman et al. 2023; Liu et al. 2023) with classifier-free guidance.

python train.py examples/flow.py                                    trains on digits, into runs/flow
python sample.py runs/flow --trust examples.flow --guidance 2       writes a picture of samples
python -m pytest tests/test_contract.py --config examples/flow.py   tests the properties that every family must have
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.axis import split_keys
from gen.config import Config
from gen.core import Array, Batch, GenerativeModel, Key, Params, Spec
from gen.data.images import Images
from gen.families import labels, learner
from gen.networks.embedding import sinusoidal
from gen.optim import Optimizer, WarmupCosine


@dataclass(frozen=True)
class Flow(learner.LearnedFamily):
    """A flow from noise to images. Each field of the config is an option of train.py, such as --model.width 256."""

    width: int = 256
    """Number of units of each layer."""
    blocks: int = 3
    """Number of residual blocks."""
    label_dropout: float = 0.1
    """Probability that a training example's label is left out, so that samples can be guided."""

    def tiny(self) -> Flow:
        return replace(self, width=8, blocks=1)

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        m = FlowModel(self, spec["image"].shape, labels.num_classes(spec))
        init = partial(m.init, x=jnp.zeros((1, *m.shape)), t=jnp.zeros(1), label=jnp.zeros(1, jnp.int32))
        held_out = partial(m.loss, training=False)
        return learner.family(self, steps, init=init, loss=m.loss, evaluate=held_out, sample=m.sample, request=Request)


@dataclass(frozen=True)
class Request(labels.LabelRequest):
    """A request for samples. Each field is an option of sample.py."""

    steps: int = 50
    """Number of Euler steps from noise to image."""
    guidance: float = 1.0
    """Weight of the label. Above 1, samples are more typical of their class and less varied. 1: no guidance."""


class FlowModel(nn.Module):
    """The straight path x_t = (1 - t) x + t e from an image x to noise e, and a network for its velocity e - x."""

    config: Flow
    shape: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, x: Array, t: Array, label: Array) -> Array:
        """Returns the velocity v(x_t, t, label) of x_t [B, H, W, C] at t [B] in [0, 1]. The label `classes` means "no label"."""
        width, dtypes = self.config.width, self.config.dtypes()
        dense, norm = partial(nn.Dense, **dtypes), partial(nn.LayerNorm, **dtypes)
        condition = dense(width)(sinusoidal(1000 * t, width)) + nn.Embed(self.classes + 1, width, **dtypes)(label)
        h = dense(width)(x.reshape(len(x), -1))
        for _ in range(self.config.blocks):
            h += dense(width)(nn.silu(dense(width)(norm()(h)) + condition))
        return dense(x[0].size)(norm()(h)).reshape(x.shape)

    def loss(self, params: Params, batch: Batch, keys: Key, training: bool = True) -> Array:
        """Returns the mean square of v(x_t, t, label) - (e - x) for each example at a random t, [B]. Liu et al. 2023, equation 1."""
        x, (e_keys, t_keys, label_keys) = batch["image"].astype(self.config.real_dtype()), split_keys(keys, 3)
        e = jax.vmap(partial(jax.random.normal, shape=self.shape, dtype=x.dtype))(e_keys)
        t = jax.vmap(partial(jax.random.uniform, shape=(1, 1, 1), dtype=x.dtype))(t_keys)
        rate = self.config.label_dropout if training else 0.0
        label = labels.drop_labels(batch["label"], label_keys, rate, self.classes)
        v: Array = self.apply(params, (1 - t) * x + t * e, t[:, 0, 0, 0], label)  # pyright: ignore
        return jnp.square(v - (e - x)).mean((1, 2, 3))

    def sample(self, params: Params, keys: Key, given: Batch, request: Request) -> dict[str, Array]:
        """Follows the guided velocity from noise (t = 1) to images (t = 0). Ho and Salimans 2022, eq. 6, with w = guidance - 1."""
        label = labels.labels_to_generate(request.n, request.label, self.classes, given)

        def step(x: Array, t: Array) -> tuple[Array, None]:
            v: Array = self.apply(params, x, jnp.full(request.n, t), label)  # pyright: ignore
            base: Array = self.apply(params, x, jnp.full(request.n, t), jnp.full_like(label, self.classes))  # pyright: ignore
            return x - (base + request.guidance * (v - base)) / request.steps, None

        noise = jax.vmap(partial(jax.random.normal, shape=self.shape))(keys)
        x, _ = jax.lax.scan(step, noise, jnp.linspace(1, 1 / request.steps, request.steps))
        return {"samples": x.clip(-1, 1), "labels": label}


config = Config(model=Flow(ema=0.999, optim=Optimizer(lr=WarmupCosine(1e-3))), data=Images(name="digits"), steps=4000)
