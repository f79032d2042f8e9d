"""A GAN's losses, penalties and layers against torch's, values and gradients. Run where it is installed."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen.families.gan import losses
from gen.networks import discriminator
from gen.networks.discriminator import Discriminator
from gen.networks.layers import Conv, Dense, spectral

torch = pytest.importorskip("torch")
F = torch.nn.functional

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
DTYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def drawn(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def tensor(a: Any, gradient: bool = False) -> Any:
    return torch.tensor(np.asarray(a), requires_grad=gradient)


def apply(module: nn.Module, variables: Any, *inputs: Any, **options: Any) -> Any:
    return module.apply(variables, *inputs, **options)


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=tolerance, atol=tolerance)


OBJECTIVES = {  # as torch's users write them: D's of real and fake scores, G's
    "minimax": (
        lambda r, f: bce(r, 1.0) + bce(f, 0.0),
        lambda r, f: -bce(f, 0.0),
    ),
    "non_saturating": (
        lambda r, f: bce(r, 1.0) + bce(f, 0.0),
        lambda r, f: bce(f, 1.0),
    ),
    "least_squares": (
        lambda r, f: (F.mse_loss(r, torch.ones_like(r)) + F.mse_loss(f, torch.zeros_like(f))) / 2,
        lambda r, f: F.mse_loss(f, torch.ones_like(f)) / 2,
    ),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
    "hinge": (lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda r, f: -f.mean()),
    "relativistic": (lambda r, f: bce(r - f, 1.0), lambda r, f: bce(f - r, 1.0)),
    "relativistic_average": (
        lambda r, f: bce(r - f.mean(), 1.0) + bce(f - r.mean(), 0.0),
        lambda r, f: bce(f - r.mean(), 1.0) + bce(r - f.mean(), 0.0),
    ),
}


def bce(logits: Any, target: float) -> Any:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_an_objective_and_its_gradients_are_those_of_torch(name, player):
    real, fake = 2 * drawn(2, 16)
    loss = lambda r, f: getattr(losses.ADVERSARIAL[name], player)(r, f).mean()
    mapped = jax.vmap(jax.value_and_grad(loss, (0, 1)), axis_name="data")
    value, gradients = jax.tree.map(lambda a: a[0], mapped(jnp.asarray(real)[None], jnp.asarray(fake)[None]))
    r, f = tensor(real, True), tensor(fake, True)
    expected = OBJECTIVES[name][player == "generator"](r, f)
    expected.backward()
    close(value, expected)
    for ours, theirs in zip(gradients, (r, f), strict=True):
        close(ours, torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)


PENALTIES: dict[str, tuple[Callable, Callable]] = {
    "squared": (losses.squared_gradient, lambda norm: norm**2),
    "two-sided": (lambda d, x: losses.gradient_penalty(d, x, False), lambda norm: (norm - 1) ** 2),
    "one-sided": (lambda d, x: losses.gradient_penalty(d, x, True), lambda norm: F.relu(norm - 1) ** 2),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_and_its_gradients_by_the_critic_are_those_of_autograd(name):
    ours, theirs = PENALTIES[name]
    x, arrays = drawn(8, 6), [drawn(6, 5), drawn(5), drawn(5, 1), drawn(1)]

    def penalty(arrays: list[jax.Array]) -> jax.Array:
        w1, b1, w2, b2 = arrays
        critic = lambda x: (jnp.tanh(x @ w1 + b1[None]) @ w2 + b2[None])[:, 0]
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


def test_r1_of_a_convolutional_discriminator_is_that_of_autograd():
    module = Discriminator(discriminator.DCGAN((4, 6), kernel=5), None, True, DTYPES)
    x = drawn(3, 28, 28, 1)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.2 * drawn(*a.shape)), module.init(KEY, x, None, None, False)["params"]
    )
    critic = lambda params: lambda x: apply(module, {"params": params}, x, None, None, False)[0]
    penalty = jax.jit(jax.value_and_grad(lambda p: losses.squared_gradient(critic(p), jnp.asarray(x)).mean()))
    value, gradients = penalty(params)

    theirs = jax.tree.map(lambda a: tensor(a, True), params)
    images = tensor(x, True)
    h = images.permute(0, 3, 1, 2)
    for layer in (theirs["Strided_0"]["Conv_0"], theirs["Strided_0"]["Conv_1"]):
        padded = F.pad(h, (1, 2, 1, 2))  # 5x5 at stride 2 over an even side
        h = F.leaky_relu(F.conv2d(padded, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], stride=2), 0.2)
    scores = h.permute(0, 2, 3, 1).reshape(3, -1) @ theirs["Dense_0"]["kernel"] + theirs["Dense_0"]["bias"]
    (by_x,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    expected = (by_x**2).sum((1, 2, 3)).mean()
    close(value, expected)
    leaves, structure = jax.tree.flatten(theirs)
    slopes = torch.autograd.grad(expected, leaves, materialize_grads=True)
    jax.tree.map(close, gradients, jax.tree.unflatten(structure, slopes))


class Normalized(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = Dense(4) if self.kind == "dense" else Conv(4, 3)
        return spectral(layer, True, train)(x)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_a_step_of_spectral_normalization_is_that_of_torch(kind):
    """From the same vector; torch's v is of the step after, as it updates u first, so it is put back for the division."""
    x = drawn(3, 5) if kind == "dense" else drawn(3, 6, 6, 2)
    module = Normalized(kind)
    params: Any = module.init(KEY, x, False)["params"]
    ((name, there),) = params.items()
    kernel, bias, u0 = drawn(*there["kernel"].shape), drawn(4), drawn(4)
    u0 /= np.linalg.norm(u0)
    statistics = {"SpectralNorm_0": {f"{name}/kernel/u": jnp.asarray(u0[None]), f"{name}/kernel/sigma": jnp.float32(1)}}

    def loss(kernel: jax.Array) -> tuple[jax.Array, Any]:
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
    v = v.reshape(kernel.shape[:-1]).transpose(order[1:]).ravel()  # its elements as torch flattens a kernel
    normalizer._v.copy_(tensor(v))
    _ = peer.weight  # a step: u from this v
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
