"""The networks' layers against numpy, a step of both players against one by hand, and what the family does with its config and
its requests."""

import functools
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from test_contract import ENGINES, assert_close, parts, run
from test_losses import FORMULAS, numerical_gradient

from gen.config import Config, Parallel
from gen.core import Feature, GenerativeModel, State
from gen.data.images import Images
from gen.errors import UserError
from gen.families.gan import GAN, losses
from gen.families.gan.augment import ADA, DiffAugment
from gen.families.gan.family import GENERATE_CHUNK, Request, slerp
from gen.families.gan.players import STANDING, pack_images
from gen.media.image import picture
from gen.networks import discriminator, generator
from gen.networks.discriminator import Discriminator, halved
from gen.networks.generator import doubled
from gen.networks.layers import Conv, Dense, MinibatchDiscrimination, Norm, SelfAttention, dropout, spectral
from gen.networks.virtual_batch_norm import REFERENCES
from gen.optim import Optimizer, Warmup, WarmupLinear
from gen.optim.historical import historical_averaging
from gen.train import feed

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
DTYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def drawn(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def one_hot(*labels: int, classes: int = 3) -> jax.Array:
    return jnp.asarray(np.eye(classes, dtype=np.float32)[list(labels)])


def random_like(tree: Any, scale: float = 1.0) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(scale * drawn(*x.shape)), tree)


def applied(module: nn.Module, params: Any, *inputs: Any) -> Any:
    return module.apply({"params": params}, *inputs)


def on_devices(function: Callable, n: int, out_axes: Any = 0) -> Callable:
    """The function of [B, ...] under the axis "data" of n devices, its outputs joined, or (out_axes None) the same of all."""
    mapped = jax.pmap(function, "data", out_axes=out_axes, devices=jax.devices()[:n])
    joined = lambda out, axis: out if axis is None else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

    def call(x: np.ndarray) -> Any:
        out = mapped(x.reshape(n, -1, *x.shape[1:]))
        return tuple(map(joined, out, out_axes)) if isinstance(out_axes, tuple) else joined(out, out_axes)

    return call


@pytest.mark.parametrize("devices", [1, 4])
def test_batch_normalization_is_by_the_moments_of_the_whole_batch(devices):
    x = 3 * drawn(8, 3, 2, 2) + 2
    norm = Norm("batch", DTYPES)
    variables = norm.init(KEY, x[:1], None, False)
    step = lambda x: norm.apply(variables, x, None, True, mutable=["batch_stats"])
    y, new = on_devices(step, devices, (0, None))(x)
    mean, var = x.astype(np.float64).mean((0, 1, 2)), x.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["var"], 0.9 + 0.1 * var, rtol=1e-5)
    running = {"BatchNorm_0": {"mean": jnp.asarray([1.0, -1.0]), "var": jnp.asarray([4.0, 0.25])}}
    y: Any = norm.apply({**variables, "batch_stats": running}, x, None, False)
    np.testing.assert_allclose(y, (x - [1, -1]) / np.sqrt(np.add([4, 0.25], 1e-5)), rtol=1e-4, atol=1e-5)


def test_layer_normalization_is_by_the_moments_of_the_example():
    x = 3 * drawn(4, 3, 2, 2) + 2
    y, _ = Norm("layer", DTYPES).init_with_output(KEY, x, None, True)
    each = x.reshape(4, -1).astype(np.float64)
    expected = (each - each.mean(1, keepdims=True)) / np.sqrt(each.var(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-5)


@pytest.mark.parametrize("shape", [(2,), (3, 2, 2)])
def test_virtual_normalization_is_by_the_references_and_the_example_itself(shape):
    n, x = REFERENCES, 3 * drawn(REFERENCES + 3, *shape) + 2
    y, _ = Norm("virtual", DTYPES).init_with_output(KEY, x, None, True)
    axes = tuple(range(len(shape)))  # of a batch, but the channels
    for i in range(len(x)):
        by = x[:n] if i < n else np.concatenate([x[:n], x[i : i + 1]])
        expected = (x[i] - by.mean(axes, np.float64)) / np.sqrt(by.var(axes, np.float64) + 1e-5)
        np.testing.assert_allclose(y[i], expected, atol=1e-4)


def test_a_virtually_normalized_generator_makes_each_image_by_itself():
    module = generator.Perceptron((5,), norm="virtual").build((2, 2, 1), "concatenation", DTYPES)
    z, label = drawn(3, 4), one_hot(2, 0, 1)
    every, variables = module.init_with_output(KEY, z, label, True)
    assert "batch_stats" not in variables
    assert np.asarray(every).shape == (3, 2, 2, 1)
    np.testing.assert_allclose(
        applied(module, variables["params"], z[1:2], label[1:2], True), np.asarray(every)[1:2], atol=1e-6
    )


def test_conditional_normalization_scales_and_shifts_by_the_label():
    x, labels = drawn(6, 2, 2, 4), [0, 2, 1, 1, 2, 0]
    norm = Norm("layer", DTYPES)
    plain, variables = norm.init_with_output(KEY, x, one_hot(*labels), True)
    params = random_like(variables["params"])
    np.testing.assert_array_equal(variables["params"]["scale"]["kernel"], 1)
    np.testing.assert_array_equal(variables["params"]["shift"]["kernel"], 0)
    scale, shift = (np.asarray(params[name]["kernel"])[labels][:, None, None] for name in ("scale", "shift"))
    y = applied(norm, params, x, one_hot(*labels), True)
    np.testing.assert_allclose(y, np.asarray(plain) * scale + shift, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_spectral_normalization_divides_by_the_largest_singular_value(kind):
    plain = lambda: Dense(4, use_bias=False) if kind == "dense" else Conv(4, 3, 2, use_bias=False)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            return spectral(plain(), True, train)(x)

    x, layer = drawn(2, 5) if kind == "dense" else drawn(2, 6, 6, 3), Layer()
    variables = layer.init(KEY, x, False)
    variables = {**variables, "params": random_like(variables["params"])}
    step = jax.jit(lambda v: {**v, **layer.apply(v, x, True, mutable=["batch_stats"])[1]})
    for _ in range(60):
        variables = step(variables)
    ((name, params),) = variables["params"].items()
    norm = np.linalg.norm(np.asarray(params["kernel"], np.float64).reshape(-1, 4), ord=2)
    assert float(variables["batch_stats"]["SpectralNorm_0"][f"{name}/kernel/sigma"]) == pytest.approx(norm, rel=1e-5)
    y, same = layer.apply(variables, x, False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, applied(plain(), params, x) / norm, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("devices", [1, 4])
def test_minibatch_discrimination_counts_who_is_near_in_the_whole_batch(devices):
    x, layer = drawn(8, 5), MinibatchDiscrimination(3, 2, DTYPES)
    params = layer.init(KEY, x)
    m = (x @ np.asarray(params["params"]["Dense_0"]["kernel"])).reshape(8, 3, 2).astype(np.float64)
    near = np.zeros((8, 3))
    for i in range(8):
        for j in set(range(8)) - {i}:
            near[i] += np.exp(-np.abs(m[i] - m[j]).sum(-1))
    found = on_devices(lambda x: layer.apply(params, x), devices)(x)
    np.testing.assert_allclose(found, np.concatenate([x, near], axis=1), rtol=1e-4, atol=1e-6)


def test_dropout_belongs_to_the_example_and_keeps_the_mean():
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(400))
    x = np.ones((400, 10, 10), np.float32)
    y = np.asarray(dropout(jnp.asarray(x), keys, 0, 0.3))
    np.testing.assert_array_equal(np.unique(y), np.array([0, 1 / 0.7], np.float32))
    assert stats.binomtest(y.size - np.count_nonzero(y), y.size, 0.3).pvalue > 1e-3
    some = np.array([7, 3, 300])
    np.testing.assert_array_equal(dropout(jnp.asarray(x[some]), keys[some], 0, 0.3), y[some])
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(dropout(jnp.asarray(x), keys, 1, 0.3), y), "each layer has its own"
    np.testing.assert_array_equal(dropout(jnp.asarray(x), None, 0, 0.3), x)


@pytest.mark.parametrize("size", [(4, 6), (3, 2)])
def test_attention_reads_from_every_position_and_starts_as_the_identity(size):
    x, layer = drawn(2, *size, 16), SelfAttention(False, DTYPES)
    y, variables = layer.init_with_output(KEY, x, True)
    np.testing.assert_array_equal(y, x)
    params = {**random_like(variables["params"], 0.5), "gamma": jnp.float32(0.7)}
    query, key, value, out = (np.asarray(params[f"Conv_{i}"]["kernel"], np.float64)[0, 0] for i in range(4))
    assert [k.shape for k in (query, key, value, out)] == [(16, 2), (16, 2), (16, 8), (8, 16)]
    pool = lambda a: a.reshape(2, size[0] // 2, 2, size[1] // 2, 2, -1).max((2, 4)) if min(size) >= 4 else a
    q, k, v = ((f(x @ w)).reshape(2, -1, w.shape[1]) for f, w in ((lambda a: a, query), (pool, key), (pool, value)))
    weights = np.exp(q @ k.transpose(0, 2, 1))
    weights /= weights.sum(-1, keepdims=True)
    expected = x + 0.7 * (weights @ v @ out).reshape(x.shape)
    np.testing.assert_allclose(applied(layer, params, x, True), expected, rtol=1e-3, atol=1e-4)


def test_images_are_doubled_by_repeating_and_halved_by_averaging():
    x = drawn(2, 3, 4, 2)
    np.testing.assert_array_equal(doubled(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(halved(doubled(jnp.asarray(x))), x, atol=1e-6)
    expected = np.stack([x[:, :2].mean(1), x[:, 2]], axis=1)  # the last row of an odd side has no neighbour
    np.testing.assert_allclose(halved(jnp.asarray(x)), expected.reshape(2, 2, 2, 2, 2).mean(3), atol=1e-6)


GENERATORS = {
    8: (generator.Perceptron((8, 8)), generator.DCGAN((4, 4), (2, 2)), generator.Residual((4, 4))),
    28: (generator.DCGAN((4, 4, 4)), generator.Residual((4, 4, 4), attention=(1,))),
    32: (generator.DCGAN((4, 4, 4), (2, 2, 2), kernel=4), generator.Residual((4,) * 4, attention=(2, 3))),
    64: (generator.DCGAN((4,) * 4, (2,) * 4), generator.Residual((4,) * 5, attention=(3,))),
}
NORMS = {None: ("batch", "none"), "concatenation": ("virtual",), "projection": ("batch", "layer", "virtual")}
DISCRIMINATORS = (
    discriminator.Perceptron((8, 8), spectral=True, minibatch=2),
    discriminator.DCGAN((4, 4), norm="batch"),
    discriminator.DCGAN((4, 4), norm="layer", spectral=True),
    discriminator.Residual((4, 4, 6), attention=(1,), spectral=True),
)


@pytest.mark.parametrize("size", GENERATORS)
@pytest.mark.parametrize("conditioning", [None, "concatenation", "projection"])
def test_every_network_has_the_shapes_of_its_images(size, conditioning):
    shape, label = (size, size, 1 if size < 32 else 3), None if conditioning is None else one_hot(0, 1)
    for arch in GENERATORS[size]:
        for norm in NORMS[conditioning]:
            module = replace(arch, norm=norm).build(shape, conditioning, DTYPES)
            make = lambda m=module: m.init_with_output(KEY, jnp.zeros((2, 5)), label, False)
            images, variables = jax.eval_shape(make)
            assert images.shape == (2, *shape), arch
            assert ("batch_stats" in variables) == (norm == "batch")
    for arch in DISCRIMINATORS:
        module = Discriminator(arch, conditioning, True, DTYPES)
        judge = lambda m=module: m.init_with_output(KEY, jnp.zeros((2, *shape)), label, None, False)[0]
        scores, features = jax.eval_shape(judge)
        assert (scores.shape, features.shape[0], features.ndim) == ((2,), 2, 2), arch


@pytest.mark.parametrize(
    ("arch", "shape", "message"),
    [
        (generator.DCGAN(), (30, 30, 1), "enlarges by 4, which makes no 30x30 images; the fix: --data.size 32"),
        (generator.Residual((4, 4)), (9, 8, 1), "enlarges by 2, which makes no 9x8"),
    ],
)
def test_a_generator_that_can_not_make_the_images_names_the_size_that_it_can(arch, shape, message):
    with pytest.raises(UserError, match=message):
        arch.build(shape, None, {})


@pytest.mark.parametrize("name", ["Perceptron", "DCGAN"])
def test_a_concatenated_label_is_read_as_the_image_is(name):
    """Without hidden layers, whose score is linear in pixels and label."""
    x, hot = drawn(3, 2, 2, 1), np.asarray(one_hot(2, 0, 2))
    module = Discriminator(getattr(discriminator, name)(()), "concatenation", True, DTYPES)
    params = random_like(module.init(KEY, x, hot, None, False)["params"])
    (read,) = params.values()
    scores, _ = applied(module, params, x, hot, None, False)
    planes = np.broadcast_to(hot[:, None, None], (3, 2, 2, 3))
    seen = (x.reshape(3, 4), hot) if name == "Perceptron" else (x, planes)
    expected = np.concatenate(seen, axis=-1).reshape(3, -1) @ read["kernel"][:, 0] + read["bias"]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_projected_label_scores_by_its_inner_product_with_the_features():
    x, labels = drawn(4, 2, 2, 1), [2, 0, 2, 1]
    module = Discriminator(discriminator.Perceptron((5,)), "projection", True, DTYPES)
    params = random_like(module.init(KEY, x, one_hot(*labels), None, False)["params"])
    scores, features = applied(module, params, x, one_hot(*labels), None, False)
    read, embedding = params["Dense_1"], params["Dense_2"]["kernel"]
    expected = features @ read["kernel"][:, 0] + read["bias"] + (embedding[np.array(labels)] * features).sum(1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_concatenated_label_enters_the_generator_beside_the_latents():
    z, label = drawn(3, 4), one_hot(2, 0, 1)
    build = lambda conditioning: generator.Perceptron((5,)).build((2, 2, 1), conditioning, DTYPES)
    joined, variables = build("concatenation").init_with_output(KEY, z, label, False)
    alone = build(None).apply(variables, np.concatenate([z, label], axis=1), None, False)
    np.testing.assert_array_equal(joined, alone)


LR, PIXELS, HIDDEN, DURATION = 0.1, 4, 5, 100
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


def batches_of(n: int, size: int) -> dict[str, jax.Array]:
    """As an update takes them: n batches, stacked."""
    image, row = RNG.uniform(-1, 1, (n, size, 2, 2, 1)), np.broadcast_to(np.arange(size), (n, size))
    arrays = {"image": image.astype(np.float32), "label": row % 3, "row": row, "weight": np.ones((n, size), np.float32)}
    return {name: jnp.asarray(a) for name, a in arrays.items()}


def on_one_device(function: Callable, axis: int = 0) -> Callable:
    """The function of (state, batch, key) under an axis "data" of size one, which stands before the examples'."""
    mapped = jax.vmap(function, in_axes=(None, axis, None), out_axes=None, axis_name="data", axis_size=1)
    return lambda state, batch, key: mapped(state, jax.tree.map(lambda x: jnp.expand_dims(x, axis), batch), key)


def divided(theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """w1, b1, w2, b2."""
    return theta[: 4 * HIDDEN].reshape(4, HIDDEN), *theta[4 * HIDDEN : -1].reshape(2, HIDDEN), theta[-1:]


def players(theta: np.ndarray, c: np.ndarray, biased: bool) -> dict[str, Any]:
    w1, b1, w2, b2 = divided(theta)
    d = {
        "Dense_0": {"Dense_0": {"kernel": w1, "bias": b1}},
        "Dense_1": {"kernel": w2[:, None]} | ({"bias": b2} if biased else {}),
    }
    g = {"Dense_0": {"kernel": np.zeros((3, PIXELS)), "bias": c}}
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), {"discriminator": d, "generator": g})


def blank(model: GenerativeModel) -> State:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(model.init, KEY))


def by_hand(
    config: Any, theta: np.ndarray, c: np.ndarray, xs: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """D's parameters and c after an update on images xs [n, B, 4], and its metrics. float64."""
    d_formula, g_formula = FORMULAS[config.objective]
    r1 = config.r1.value * step / config.r1.warmup if isinstance(config.r1, Warmup) else config.r1

    def scored(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, features, and squared gradients by each image."""
        w1, b1, w2, b2 = divided(theta)
        h = x @ w1 + b1
        slope = np.where(h >= 0, 1, 0.2)
        return slope * h @ w2 + b2, slope * h, ((slope * w2 @ w1.T) ** 2).sum(1)

    def image(c: np.ndarray) -> np.ndarray:
        return np.tile(np.tanh(c), (xs.shape[1], 1))

    def d_losses(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        (real, _, at_real), (fake, _, at_fake) = scored(theta, x), scored(theta, image(c))
        off = np.sqrt(at_real) - 1  # as anywhere between, where it is asked for
        two = config.gradient_penalty * (np.maximum(off, 0) if config.one_sided else off) ** 2
        penalty = (two + r1 / 2 * at_real + config.r2 / 2 * at_fake).mean()
        return np.array([d_formula(real, fake, 1 - config.smoothing).mean(), penalty])

    def g_loss(c: np.ndarray) -> float:
        (real, features, _), (fake, fake_features, _) = scored(theta, xs[-1]), scored(theta, image(c))
        apart = features.mean(0) - fake_features.mean(0)
        return g_formula(real, fake).mean() + config.feature_matching * (apart**2).sum()

    falls, seen = isinstance(config.discriminator_optim.lr, WarmupLinear), []
    for i, x in enumerate(xs):
        slope = numerical_gradient(lambda theta, x=x: d_losses(theta, x).sum(), theta)
        real, fake = scored(theta, x)[0], scored(theta, image(c))[0]
        scores = (real.mean(), fake.mean(), np.sign(real).mean())
        seen.append((*d_losses(theta, x), *scores, np.linalg.norm(slope)))
        theta = theta - LR * (1 - i / (len(xs) * DURATION) if falls else 1) * slope
    names = ("loss/discriminator", "penalty", "score/real", "score/fake", "score/sign", "gradient/discriminator")
    metrics = {**dict(zip(names, np.mean(seen, axis=0), strict=True)), "loss/generator": g_loss(c)}
    return theta, c - 2 * LR * numerical_gradient(g_loss, c), metrics


PENALTIES = {"": {}, "gradient penalty": {"gradient_penalty": 10.0}, "r1 and r2": {"r1": 1.0, "r2": 3.0}}
STEPS = {
    f"{name} {penalty}".strip(): {"objective": name, **PENALTIES[penalty]} for name in FORMULAS for penalty in PENALTIES
}
STEPS |= {
    "one-sided": {"objective": "wasserstein", "gradient_penalty": 10.0, "one_sided": True},
    "smoothing": {"objective": "non_saturating", "smoothing": 0.1},
    "smoothed squares": {"objective": "least_squares", "smoothing": 0.3},
    "feature matching": {"objective": "hinge", "feature_matching": 2.0},
    "critic steps": {"objective": "wasserstein", "critic_steps": 3, "r1": 1.0, "feature_matching": 1.0},
    "a falling rate": {"critic_steps": 3, "discriminator_optim": replace(SGD, lr=WarmupLinear(LR))},
    "a rising penalty": {"objective": "relativistic", "r1": Warmup(1.0, 10)},
}


@pytest.mark.parametrize("name", STEPS)
def test_an_update_is_the_step_of_both_players_by_hand(name):
    config, rng, step = replace(TINY, ema=0.9, **STEPS[name]), np.random.default_rng(1), 5
    w1, b1, w2, c = (rng.normal(size=shape) for shape in ((PIXELS, HIDDEN), HIDDEN, HIDDEN, PIXELS))
    if config.gradient_penalty:
        w1, b1 = 0.5 * w1, 3 * np.sign(b1)  # so that D is linear on all images, and its gradient the same between them
    if config.one_sided:
        w2 = 0.3 * w2  # small enough to be free
    theta, biased = np.concatenate([w1.ravel(), b1, w2, [0]]), losses.ADVERSARIAL[config.objective].shift
    model, batches = config.build(SPEC, DURATION), batches_of(config.critic_steps, 6)
    state = replace(blank(model), params=players(theta, c, biased), step=jnp.int32(step))
    after, metrics = on_one_device(model.update, 1)(state, batches, KEY)

    xs = np.asarray(batches["image"], np.float64).reshape(-1, 6, PIXELS)
    theta, c, expected = by_hand(config, theta, c, xs, step)
    decay = (1 + step) / (10 + step)  # as it grows to 0.9
    average = jax.tree.map(lambda x: (1 - decay) * x, after.params["generator"])  # from a blank one
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.ema["generator"], average)
    new, by_z = players(theta, c, biased), after.params["generator"]["Dense_0"].pop("kernel")
    del new["generator"]["Dense_0"]["kernel"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, new)
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.abs(by_z).max() > 0


def test_the_gradient_penalty_is_of_points_uniform_between_a_real_and_a_generated_image():
    """D bends a quarter of the way from images of -1 to real ones of 1, and is 5 times as steep after."""
    config = replace(TINY, discriminator=discriminator.Perceptron((1,)), gradient_penalty=1.0, objective="wasserstein")
    model, n = config.build(SPEC, 1), 4000
    hidden = {"kernel": jnp.ones((PIXELS, 1)), "bias": jnp.full(1, 0.5 * PIXELS)}
    d = {"Dense_0": {"Dense_0": hidden}, "Dense_1": {"kernel": jnp.ones((1, 1))}}
    g = {"Dense_0": {"kernel": jnp.zeros((3, PIXELS)), "bias": jnp.full(PIXELS, -20.0)}}
    state = replace(blank(model), params={"generator": g, "discriminator": d})
    batch = {**batches_of(1, n), "image": jnp.ones((1, n, 2, 2, 1))}
    _, metrics = jax.jit(on_one_device(model.update, 1))(state, batch, KEY)
    steep, flat = (np.sqrt(PIXELS) * np.array([1, 0.2]) - 1) ** 2
    share = (float(metrics["penalty"]) - flat) / (steep - flat)
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / n)


DIGITS = Images(name="digits", batch_size=8)
PIECES = {
    "packs": {
        "objective": "wasserstein",
        "gradient_penalty": 10.0,
        "critic_steps": 2,
        "pack": 2,
        "augment": DiffAugment(("translation", "cutout")),
        "generator": generator.Perceptron((8,), norm="virtual"),
        "discriminator": discriminator.Perceptron((8,), spectral=True),
        "dtype": "bfloat16",
        "param_dtype": "bfloat16",
    },
    "ada": {
        "discriminator": discriminator.Perceptron((8,), spectral=True, minibatch=2),
        "critic_steps": 2,
        "feature_matching": 1.0,
        "smoothing": 0.1,
        "augment": ADA(("color",), target=-0.99, kimg=1.0),
        "generator_optim": Optimizer(historical=0.1),
        "discriminator_optim": Optimizer(historical=0.1, clip=1.0),
        "dtype": "float64",
        "param_dtype": "float64",
    },
    "residual": {
        "objective": "hinge",
        "conditioning": "projection",
        "generator": generator.Residual((4, 4)),
        "discriminator": discriminator.Residual((4,), 1, attention=(1,), spectral=True, dropout=0.2),
    },
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_train_evaluate_and_generate_together(name):
    config = replace(TINY, ema=0.9, **PIECES[name])
    with jax.enable_x64(name == "ada"):
        data, model, engine, batch = parts(Config(model=config, data=DIGITS, steps=2, seed=1))
        state, _ = engine.update(engine.init(), batch(0))
        state, metrics = engine.update(state, batch(1))
        assert np.isfinite(list(metrics.values())).all()
        types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert types(state) == types(engine.abstract)
        assert {x.dtype for x in jax.tree.leaves((state.params, state.ema))} == {jnp.dtype(config.param_dtype)}
        seen = next(data.evaluation("validation", 8))
        sums = jax.eval_shape(on_one_device(model.evaluate), state, jax.tree.map(jnp.asarray, seen), KEY)
        made = jax.eval_shape(lambda state: model.generate(state, KEY, {}, Request(n=5)), state)
    assert sums.keys() - {"saturation"} == {"score_real", "score_fake", "paired_accuracy"}
    assert ("saturation" in sums) == (name != "packs"), "a Wasserstein critic always has something left to learn"
    assert (made["samples"].shape, made["samples"].dtype) == ((5, 8, 8, 1), jnp.float32)
    assert ("scores" in made) == (name == "residual"), "a score of several images is none of each"
    if name == "ada":  # always above the target: up by a batch a step of the critic
        assert float(state.stats["augment"]) == pytest.approx(2 * 2 * 8 / 1000)
        assert float(metrics["augment"]) == pytest.approx((3 + 4) / 2 * 8 / 1000)


def test_what_couples_a_batch_agrees_on_any_number_of_devices_and_either_engine():
    model = GAN(
        latent=4,
        generator=generator.DCGAN((4,), (2,), kernel=3),
        discriminator=discriminator.DCGAN((4, 4), kernel=3, norm="batch", minibatch=2, dropout=0.2),
        conditioning="concatenation",
        objective="relativistic_average",
        feature_matching=1.0,
        generator_optim=replace(SGD, lr=0.02),
        discriminator_optim=replace(SGD, lr=0.02),
    )
    config = Config(model=model, data=replace(DIGITS, batch_size=16), steps=10)
    state, metrics = run(config, Parallel(devices=1), 10)
    for engine in ("pmap on 4", "jit on 4"):
        other, other_metrics = run(config, ENGINES[engine], 10)
        assert_close(state, other, 1e-5)
        assert_close(metrics, other_metrics, 1e-5)


def test_each_step_of_the_critic_has_the_next_batch():
    config = Config(model=replace(TINY, critic_steps=3), data=DIGITS, steps=2)
    data = config.data.build()
    steps = [feed(data, config.model.build(data.spec, 2), config, range(8))(step) for step in (0, 1)]
    index = np.concatenate([batch["index"] for batch in steps])
    assert [batch["image"].shape for batch in steps] == [(3, 8, 8, 8, 1)] * 2
    assert len(np.unique(index)) == 48
    for i in range(6):
        one = data.batch(0, i, range(8))
        np.testing.assert_array_equal(index[i], one["index"])
        np.testing.assert_array_equal(steps[i // 3]["image"][i % 3], one["image"])


def test_historical_averaging_adds_the_gradient_of_the_distance_from_the_mean():
    params, grads, tx = drawn(5, 4), drawn(5, 4), historical_averaging(0.3)
    state = tx.init({"w": jnp.zeros(4)})
    for t in range(5):
        found: Any
        found, state = tx.update({"w": jnp.asarray(grads[t])}, state, {"w": jnp.asarray(params[t])})
        mean = params[: t + 1].mean(0)
        expected = grads[t] + numerical_gradient(lambda p, mean=mean: 0.3 * ((p - mean) ** 2).sum(), params[t])
        np.testing.assert_allclose(found["w"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pack", [1, 2])
def test_evaluation_is_exact_under_padding(pack):
    """Of 5 examples, the fifth alone in its pack."""
    model = replace(TINY, pack=pack).build(SPEC, 1)
    state = jax.jit(model.init)(KEY)
    d = jax.device_get(random_like(state.params["discriminator"], 3.0))
    g = {"Dense_0": {"kernel": np.zeros((3, PIXELS), np.float32), "bias": drawn(PIXELS)}}
    state = replace(state, params={"generator": g, "discriminator": d})
    batch = {name: x[0] for name, x in batches_of(1, 8).items()} | {"weight": jnp.arange(8) < 5}
    found = model.summarize(on_one_device(model.evaluate)(state, batch, KEY))

    def scores(x: np.ndarray) -> np.ndarray:
        h = x @ d["Dense_0"]["Dense_0"]["kernel"] + d["Dense_0"]["Dense_0"]["bias"]
        return (np.where(h >= 0, h, 0.2 * h) @ d["Dense_1"]["kernel"] + d["Dense_1"]["bias"])[:, 0]

    x = np.asarray(pack_images(batch["image"], pack)).reshape(8 // pack, -1)[: 5 // pack]
    real, fake = scores(x), scores(np.repeat(np.tanh(g["Dense_0"]["bias"]), pack)[None])
    assert found["score_real"] == pytest.approx(real.mean(), rel=1e-4, abs=1e-5)
    assert found["score_fake"] == pytest.approx(fake[0], rel=1e-4, abs=1e-5)
    assert found["paired_accuracy"] == pytest.approx((real > fake).mean())
    nothing_left = FORMULAS["non_saturating"][0](real, fake, 1.0) < 0.01 * 2 * np.log(2)
    assert found["saturation"] == pytest.approx(nothing_left.mean())


def test_a_pack_is_neighbours_side_by_side():
    x = drawn(6, 2, 3, 2)
    expected = np.stack([np.concatenate(x[i : i + 3], axis=-1) for i in (0, 3)])
    np.testing.assert_array_equal(pack_images(jnp.asarray(x), 3), expected)


def sampler(config: GAN, scale: float = 1.0) -> tuple[GenerativeModel, State]:
    """The model, and a state of random parameters and averages."""
    model = config.build(SPEC, 1)
    state = jax.jit(model.init)(KEY)
    return model, replace(state, params=random_like(state.params, scale), ema=random_like(state.ema, scale))


@functools.cache
def conditional() -> tuple[GenerativeModel, State]:
    return sampler(replace(TINY, generator=generator.Perceptron((6,)), conditioning="projection", ema=0.5))


def generated(built: tuple[GenerativeModel, State], **request: Any) -> dict[str, np.ndarray]:
    model, state = built
    return jax.device_get(jax.jit(lambda state: model.generate(state, KEY, {}, Request(**request)))(state))


def test_labels_come_in_turn_or_as_asked_for():
    every, ones = generated(conditional(), n=7), generated(conditional(), n=7, label=1)
    np.testing.assert_array_equal(every["labels"], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(ones["labels"], 1)
    np.testing.assert_array_equal(every["latents"], ones["latents"])
    same = [np.allclose(a, b, atol=1e-6) for a, b in zip(every["samples"], ones["samples"], strict=True)]
    assert same == [False, True, False, False, True, False, False]


def test_a_sample_does_not_depend_on_how_many_are_drawn_and_has_its_own_score():
    n = GENERATE_CHUNK + 44
    many, few = generated(conditional(), n=n), generated(conditional(), n=20)
    for name in ("latents", "samples", "labels", "scores"):
        assert len(many[name]) == n
        np.testing.assert_allclose(many[name][:20], few[name], rtol=1e-5, atol=1e-5)
    assert stats.kstest(many["latents"].ravel(), "norm").pvalue > 1e-3
    _, state = conditional()
    module = Discriminator(TINY.discriminator, "projection", True, DTYPES)
    params = state.params["discriminator"]
    scores, _ = applied(module, params, many["samples"], one_hot(*many["labels"]), None, False)
    np.testing.assert_allclose(many["scores"], scores, rtol=1e-4, atol=1e-5)


def test_truncation_bounds_the_latents():
    z = generated(conditional(), n=300, truncation=0.7)["latents"].ravel()
    assert np.abs(z).max() <= 0.7
    assert stats.kstest(z, stats.truncnorm(-0.7, 0.7).cdf).pvalue > 1e-3


def test_an_interpolation_leads_from_each_sample_to_the_next():
    between, ends = generated(conditional(), n=16, mode="interpolate"), generated(conditional(), n=3)
    assert between["samples"].shape == (2, 8, 2, 2, 1)
    np.testing.assert_array_equal(between["labels"], np.repeat([0, 1], 8))
    z = between["latents"].reshape(2, 8, 3)
    np.testing.assert_allclose(z[:, 0], ends["latents"][:2], atol=1e-5)
    np.testing.assert_allclose(z[:, -1], ends["latents"][1:], atol=1e-5)
    np.testing.assert_allclose(between["samples"][:, 0], ends["samples"][:2], atol=1e-4)
    np.testing.assert_array_equal(
        np.diff(np.linalg.norm(z, axis=-1)) > 0, np.repeat(length_grows(ends), 7).reshape(2, 7)
    )


def length_grows(ends: dict[str, np.ndarray]) -> np.ndarray:
    return np.diff(np.linalg.norm(ends["latents"], axis=-1)) > 0


@pytest.mark.parametrize("dimensions", [1, 3, 100])
def test_slerp_turns_steadily_and_keeps_lengths_between_those_of_the_ends(dimensions):
    a, b = np.random.default_rng(2).normal(size=(2, 50, dimensions)).astype(np.float32)
    way = np.stack([slerp(jnp.asarray(a), jnp.asarray(b), t) for t in np.linspace(0, 1, 8)]).astype(np.float64)
    np.testing.assert_allclose(way[[0, -1]], [a, b], atol=1e-3 if dimensions == 1 else 1e-5)
    if dimensions == 1:
        assert (np.abs(way) <= np.maximum(np.abs(a), np.abs(b)) + 1e-3).all()
        return
    lengths = np.linalg.norm(way, axis=-1)
    np.testing.assert_allclose(lengths, np.linspace(lengths[0], lengths[-1], 8), rtol=1e-4)
    cosine = (way[:-1] * way[1:]).sum(-1) / (lengths[:-1] * lengths[1:])
    whole = np.arccos((a * b).sum(-1) / (lengths[0] * lengths[-1]))
    np.testing.assert_allclose(np.arccos(np.clip(cosine, -1, 1)), np.tile(whole / 7, (7, 1)), atol=2e-3)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_sampling_from_averages_is_by_their_own_moments_and_from_raw_weights_by_the_running_ones(ema):
    """Images tanh(leaky((a - mean) / std) / 5) of a = [z, label] W give the moments that were used away."""
    n, config = PIXELS, replace(TINY, generator=generator.Perceptron((PIXELS,)), conditioning="concatenation", ema=ema)
    model = config.build(SPEC, 1)
    state = jax.jit(model.init)(KEY)
    g = random_like(state.params["generator"])
    g |= {
        "Norm_0": {"scale": jnp.ones(n), "bias": jnp.zeros(n)},
        "Dense_1": {"kernel": jnp.eye(n) / 5, "bias": jnp.zeros(n)},
    }
    running = {"mean": jnp.asarray(drawn(n)), "var": jnp.asarray(np.exp(drawn(n)))}
    state = replace(state, stats={"generator": {"Norm_0": {"BatchNorm_0": running}}})
    averages = {"ema": {"generator": g}} if ema else {"params": {**state.params, "generator": g}}
    made = generated((model, replace(state, **averages)), n=60)

    w = np.asarray(g["Dense_0"]["kernel"], np.float64)
    h = 5 * np.arctanh(made["samples"].reshape(60, n).astype(np.float64))
    a, y = np.concatenate([made["latents"], one_hot(*made["labels"])], axis=1) @ w, np.where(h >= 0, h, 5 * h)
    slope, shift = np.array([np.polyfit(a[:, i], y[:, i], 1) for i in range(n)]).T
    mean, var = -shift / slope, slope**-2
    if not ema:
        np.testing.assert_allclose(mean, running["mean"], rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(var, running["var"], rtol=1e-2)
        return
    share = np.bincount(np.arange(STANDING) % 3) / STANDING
    expected = share @ w[3:]
    variance = (w[:3] ** 2).sum(0) + share @ (w[3:] - expected) ** 2
    assert (np.abs(mean - expected) < 4 * np.sqrt(variance / STANDING)).all()
    assert (np.abs(var / variance - 1) < 4 * np.sqrt(2 / STANDING)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent": 0}, "latent is 0"),
        ({"pack": 0}, "pack is 0"),
        ({"critic_steps": 0}, "critic_steps is 0"),
        ({"r1": -1.0}, "r1 is -1.0; it must be at least 0"),
        ({"feature_matching": float("nan")}, "feature_matching is nan"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"smoothing": -0.1}, "smoothing is -0.1"),
        ({"smoothing": 0.1, "objective": "hinge"}, "the objective hinge has none"),
        ({"r1": 1.0, "discriminator": discriminator.DCGAN(norm="batch")}, "r1 .* batch normalization .*--model.disc"),
        (
            {"r2": Warmup(1.0, 9), "discriminator": discriminator.DCGAN(norm="batch")},
            "r2 .* --model.discriminator.norm",
        ),
        ({"gradient_penalty": 1.0, "discriminator": discriminator.Perceptron(minibatch=1)}, "minibatch 0"),
        ({"conditioning": "projection"}, "G has none; use another norm"),
        ({"conditioning": "concatenation", "pack": 2}, "pack 1, or no conditioning"),
        ({"one_sided": True}, "gradient_penalty, which is 0"),
    ],
)
def test_an_impossible_config_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: generator.Perceptron((4, 0)), "width is 0"),
        (lambda: generator.DCGAN((4,), (2, 2)), "1 widths and 2 strides"),
        (lambda: generator.DCGAN((), ()), "width is 0"),
        (lambda: generator.Residual(()), "width is 0"),
        (lambda: discriminator.DCGAN((4, -1)), "width is -1"),
        (lambda: discriminator.Perceptron(dropout=1.0), "dropout is 1.0"),
        (lambda: discriminator.Residual(minibatch=-1), "minibatch is -1"),
        (lambda: Request(n=0), "n is 0"),
        (lambda: Request(n=100_001), "with other seeds for more"),
        (lambda: Request(truncation=0.0), "truncation is 0.0"),
        (lambda: discriminator.DCGAN(kernel=0), "kernel is 0"),
        (lambda: discriminator.Residual((4, 4), attention=(3,)), "block 3, .* blocks 1 to 2"),
        (lambda: generator.Residual((4, 4, 4), attention=(3,)), "block 3, .* blocks 1 to 2"),
        (lambda: TINY.build({"tokens": Feature((8,), "int32", vocab=9)}, 1), "images, and the data have tokens"),
        (lambda: replace(TINY, conditioning="concatenation").build({"image": Feature((2, 2, 1))}, 1), "needs labels"),
        (lambda: replace(TINY, generator=generator.DCGAN((4, 4, 4))).build(SPEC, 1), "no 2x2 images"),
        (lambda: generated(sampler(TINY), n=1, label=0), "the model is not conditional"),
        (lambda: generated(conditional(), n=1, label=3), "has labels 0 to 2"),
        (lambda: generated(conditional(), n=1, label=-1), "has labels 0 to 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_made_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(("classes", "n", "columns"), [(10, 64, 10), (3, 9, 3), (2, 16, 4), (30, 60, 8), (None, 30, 6)])
def test_labels_in_turn_are_columns_of_the_picture(classes, n, columns):
    arrays = {"samples": np.full((n, 28, 28, 1), -1.0)}
    if classes:
        arrays |= {"labels": np.arange(n) % classes}
        arrays["samples"][arrays["labels"] == 1] = 1.0
    image = np.asarray(Image.open(io.BytesIO(picture(arrays))))
    factor = image.shape[1] // (29 * columns - 1)
    assert image.shape == (factor * (29 * -(-n // columns) - 1), factor * (29 * columns - 1))
    if classes and classes == columns:
        assert (image[:, factor * 29 : factor * 57][image[:, factor * 29 : factor * 57] != 128] == 255).all()
