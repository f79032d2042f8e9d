"""A GAN that is small enough to be computed by hand, with the random arrays and the calls that its tests share."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Batch, Feature, GenerativeModel, Key, Params, State
from gen.families.gan import GAN, Request
from gen.networks import discriminator, generator
from gen.optim import Optimizer

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
DTYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}

LR, PIXELS, HIDDEN = 0.1, 4, 5
SGD = Optimizer(rule="sgd", lr=LR, b1=0.0)
TINY = GAN(
    latent=3,
    generator=generator.Perceptron((), norm="none"),
    discriminator=discriminator.Perceptron((HIDDEN,)),
    generator_optim=replace(SGD, lr=2 * LR),
    discriminator_optim=SGD,
    ema=0.0,
)
SPEC = {"image": Feature((2, 2, 1)), "label": Feature((), "int32", classes=3)}

Out = TypeVar("Out")


def reset() -> None:
    """Starts the random numbers again, so that a test has the same ones whichever tests ran before."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def normal(*shape: int) -> np.ndarray:
    """Standard normal numbers, float32."""
    return RNG.normal(size=shape).astype(np.float32)


def one_hot(*labels: int, classes: int = 3) -> jax.Array:
    return jnp.asarray(np.eye(classes, dtype=np.float32)[list(labels)])


def random_like(tree: Params, scale: float = 1.0) -> Params:
    """Normal numbers of standard deviation `scale` in the shapes of the tree."""
    return jax.tree.map(lambda x: jnp.asarray(scale * normal(*x.shape)), tree)


def apply(module: nn.Module, params: Params, *inputs: object) -> Params:
    """Output of a module without statistics."""
    return module.apply({"params": params}, *inputs)


def batches_of(n: int, size: int) -> Batch:
    """The batches of an update: n of them, stacked."""
    image, row = RNG.uniform(-1, 1, (n, size, 2, 2, 1)), np.broadcast_to(np.arange(size), (n, size))
    arrays = {"image": image.astype(np.float32), "label": row % 3, "row": row, "weight": np.ones((n, size), np.float32)}
    return {name: jnp.asarray(a) for name, a in arrays.items()}


def on_one_device(function: Callable[[State, Batch, Key], Out], axis: int = 0) -> Callable[[State, Batch, Key], Out]:
    """A function of (state, batch, key) under an axis "data" of size one, put before the batch's axis number `axis`."""
    mapped = jax.vmap(function, in_axes=(None, axis, None), out_axes=None, axis_name="data", axis_size=1)

    def call(state: State, batch: Batch, key: Key) -> Out:
        return mapped(state, jax.tree.map(lambda x: jnp.expand_dims(x, axis), batch), key)

    return call


def blank(model: GenerativeModel) -> State:
    """A state of zeros."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(model.init, KEY))


def sampler(config: GAN) -> tuple[GenerativeModel, State]:
    """The model, and a state of random parameters and averages."""
    model = config.build(SPEC, 1)
    state = jax.jit(model.init)(KEY)
    return model, replace(state, params=random_like(state.params), ema=random_like(state.ema))


@functools.cache
def conditional() -> tuple[GenerativeModel, State]:
    """A conditional model with batch normalization and an average."""
    return sampler(replace(TINY, generator=generator.Perceptron((6,)), conditioning="projection", ema=0.5))


def generate(
    built: tuple[GenerativeModel, State], given: Mapping[str, jax.Array] = {}, **request: object
) -> dict[str, np.ndarray]:
    """The arrays of a request with these fields."""
    model, state = built
    asked = Request(**request)  # pyright: ignore[reportArgumentType]
    return jax.device_get(jax.jit(lambda state: model.generate(state, KEY, given, asked))(state))
