"""The losses, penalties and layers of a GAN against PyTorch: values and gradients. Skipped if torch is not installed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.core import Params
from gen.families.gan import (
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Objective,
    Relativistic,
    RelativisticAverage,
    Wasserstein,
)
from gen.families.gan.penalties import gradient_penalty, squared_gradient
from gen.networks import discriminator
from gen.networks.discriminator import Discriminator
from gen.networks.layers import Conv, Dense, spectral_norm

torch = pytest.importorskip("torch")
F = torch.nn.functional

Tensor = Any
"""torch.Tensor, which is missing if torch is not installed."""

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
DTYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def tensor(a: jax.typing.ArrayLike, gradient: bool = False) -> Tensor:
    return torch.tensor(np.asarray(a), requires_grad=gradient)


def apply(module: nn.Module, variables: Params, *inputs: object, **options: Any) -> Params:
    return module.apply(variables, *inputs, **options)


def close(ours: jax.typing.ArrayLike, theirs: Tensor, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


def bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def logistic(r: Tensor, f: Tensor) -> Tensor:
    return bce(r, 1.0) + bce(f, 0.0)


def squares(r: Tensor, f: Tensor) -> Tensor:
    return (F.mse_loss(r, torch.ones_like(r)) + F.mse_loss(f, torch.zeros_like(f))) / 2


def hinge(r: Tensor, f: Tensor) -> Tensor:
    return F.relu(1 - r).mean() + F.relu(1 + f).mean()


def averages(r: Tensor, f: Tensor) -> Tensor:
    return bce(r - f.mean(), 1.0) + bce(f - r.mean(), 0.0)


def mean_score(r: Tensor, f: Tensor) -> Tensor:
    return -f.mean()


OBJECTIVES: dict[type[Objective], dict[str, Callable]] = {  # the losses as users of torch write them
    Minimax: {"discriminator": logistic, "generator": lambda r, f: -bce(f, 0.0)},
    NonSaturating: {"discriminator": logistic, "generator": lambda r, f: bce(f, 1.0)},
    LeastSquares: {"discriminator": squares, "generator": lambda r, f: F.mse_loss(f, torch.ones_like(f)) / 2},
    Wasserstein: {"discriminator": lambda r, f: f.mean() - r.mean(), "generator": mean_score},
    Hinge: {"discriminator": hinge, "generator": mean_score},
    Relativistic: {"discriminator": lambda r, f: bce(r - f, 1.0), "generator": lambda r, f: bce(f - r, 1.0)},
    RelativisticAverage: {"discriminator": averages, "generator": lambda r, f: averages(f, r)},
}


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_an_objective_and_its_gradients_equal_those_in_torch(kind, player):
    real, fake = 2 * normal(2, 16)

    def loss(r: jax.Array, f: jax.Array) -> jax.Array:
        return getattr(kind(), player)(r, f).mean()

    mapped = jax.vmap(jax.value_and_grad(loss, (0, 1)), axis_name="data")
    value, gradients = jax.tree.map(lambda a: a[0], mapped(jnp.asarray(real)[None], jnp.asarray(fake)[None]))
    r, f = tensor(real, True), tensor(fake, True)
    expected = OBJECTIVES[kind][player](r, f)
    expected.backward()
    close(value, expected)
    for ours, theirs in zip(gradients, (r, f), strict=True):
        close(ours, torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)


PENALTIES: dict[str, tuple[Callable, Callable]] = {
    "squared": (squared_gradient, lambda norm: norm**2),
    "two-sided": (partial(gradient_penalty, one_sided=False), lambda norm: (norm - 1) ** 2),
    "one-sided": (partial(gradient_penalty, one_sided=True), lambda norm: F.relu(norm - 1) ** 2),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_and_its_gradients_equal_those_of_autograd(name):
    ours, theirs = PENALTIES[name]
    x, arrays = normal(8, 6), [normal(6, 5), normal(5), normal(5, 1), normal(1)]

    def penalty(arrays: list[jax.Array]) -> jax.Array:
        w1, b1, w2, b2 = arrays

        def critic(x: jax.Array) -> jax.Array:
            return (jnp.tanh(x @ w1 + b1[None]) @ w2 + b2[None])[:, 0]

        return ours(critic, jnp.asarray(x)).mean()

    value, gradients = jax.value_and_grad(penalty)([jnp.asarray(a) for a in arrays])
    points, (w1, b1, w2, b2) = tensor(x, True), [tensor(a, True) for a in arrays]
    scores = (torch.tanh(points @ w1 + b1) @ w2 + b2)[:, 0]
    (by_x,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    norm = by_x.norm(dim=1)
    assert (norm > 1).any()
    assert (norm < 1).any()
    expected = theirs(norm).mean()
    close(value, expected)
    theirs = torch.autograd.grad(expected, (w1, b1, w2, b2), materialize_grads=True)
    jax.tree.map(close, gradients, list(theirs))


def test_r1_of_a_convolutional_discriminator_equals_that_of_autograd():
    module = Discriminator(discriminator.DCGAN((4, 6), kernel=5), None, True, DTYPES)
    x = normal(3, 28, 28, 1)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.2 * normal(*a.shape)), module.init(KEY, x, None, None, False)["params"]
    )

    def penalty(params: Params) -> jax.Array:
        def critic(x: jax.Array) -> jax.Array:
            return apply(module, {"params": params}, x, None, None, False)[0]

        return squared_gradient(critic, jnp.asarray(x)).mean()

    value, gradients = jax.jit(jax.value_and_grad(penalty))(params)

    theirs = jax.tree.map(lambda a: tensor(a, True), params)
    images = tensor(x, True)
    h = images.permute(0, 3, 1, 2)
    for layer in (theirs["Strided_0"]["Conv_0"], theirs["Strided_0"]["Conv_1"]):
        padded = F.pad(h, (1, 2, 1, 2))  # padding SAME of a 5x5 kernel with stride 2 over an even side
        h = F.leaky_relu(F.conv2d(padded, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], stride=2), 0.2)
    scores = h.permute(0, 2, 3, 1).reshape(3, -1) @ theirs["Dense_0"]["kernel"] + theirs["Dense_0"]["bias"]
    (by_x,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    expected = (by_x**2).sum((1, 2, 3)).mean()
    close(value, expected)
    leaves, structure = jax.tree.flatten(theirs)
    slopes = torch.autograd.grad(expected, leaves, materialize_grads=True)
    jax.tree.map(close, gradients, jax.tree.unflatten(structure, slopes))


class Normalized(nn.Module):
    """A layer with spectral normalization."""

    kind: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = Dense(4) if self.kind == "dense" else Conv(4, 3)
        return spectral_norm(layer, True, train)(x)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_a_step_of_spectral_normalization_equals_that_of_torch(kind):
    """Both start from the same vector u. torch updates u first, so its v belongs to the next step and is put back here."""
    x = normal(3, 5) if kind == "dense" else normal(3, 6, 6, 2)
    module = Normalized(kind)
    params: Params = module.init(KEY, x, False)["params"]
    ((name, there),) = params.items()
    kernel, bias, u0 = normal(*there["kernel"].shape), normal(4), normal(4)
    u0 /= np.linalg.norm(u0)
    statistics = {"SpectralNorm_0": {f"{name}/kernel/u": jnp.asarray(u0[None]), f"{name}/kernel/sigma": jnp.float32(1)}}

    def loss(kernel: jax.Array) -> tuple[jax.Array, Params]:
        state = {"params": {name: {"kernel": kernel, "bias": jnp.asarray(bias)}}, "batch_stats": statistics}
        y, new = apply(module, state, x, True, mutable=["batch_stats"])
        return (y**2).mean(), (y, new["batch_stats"]["SpectralNorm_0"])

    (_, (y, new)), slope = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(kernel))

    layer = torch.nn.Linear(5, 4) if kind == "dense" else torch.nn.Conv2d(2, 4, 3, padding=1)
    order = (1, 0) if kind == "dense" else (3, 2, 0, 1)
    with torch.no_grad():
        layer.weight.copy_(tensor(kernel.transpose(order)))
        layer.bias.copy_(tensor(bias))
    peer = torch.nn.utils.parametrizations.spectral_norm(layer, eps=1e-12)
    normalizer = peer.parametrizations.weight[0]
    v = kernel.reshape(-1, 4) @ u0
    v /= np.linalg.norm(v)
    v = v.reshape(kernel.shape[:-1]).transpose(order[1:]).ravel()  # in the order in which torch flattens a kernel
    normalizer._v.copy_(tensor(v))
    _ = peer.weight  # reading it makes a step: u from this v
    close(new[f"{name}/kernel/u"][0], normalizer._u)
    normalizer._v.copy_(tensor(v))
    peer.eval()
    inputs = tensor(x) if kind == "dense" else tensor(x).permute(0, 3, 1, 2)
    expected = peer(inputs) if kind == "dense" else peer(inputs).permute(0, 2, 3, 1)
    close(y, expected)
    weight = peer.parametrizations.weight.original
    (expected**2).mean().backward()
    close(slope, weight.grad.permute([order.index(i) for i in range(len(order))]))
    by_sigma = np.linalg.norm(kernel) / np.linalg.norm(peer.weight.detach().numpy())
    assert float(new[f"{name}/kernel/sigma"]) == pytest.approx(by_sigma, rel=1e-5)
