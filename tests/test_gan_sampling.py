"""Evaluation and sampling of a GAN: scores under padding, requests, interpolations, and statistics of averaged weights."""

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from test_gan_losses import FORMULAS
from tiny_gan import (
    DTYPES,
    KEY,
    PIXELS,
    SPEC,
    TINY,
    apply,
    batches_of,
    conditional,
    generate,
    normal,
    on_one_device,
    one_hot,
    random_like,
    reset,
)

from gen.families.gan import NonSaturating
from gen.families.gan.players import STANDING_SAMPLES, pack_images
from gen.families.gan.sampling import GENERATE_CHUNK, slerp
from gen.families.labels import GIVEN
from gen.media.image import picture
from gen.networks import generator
from gen.networks.discriminator import Discriminator


@pytest.fixture(autouse=True)
def seed():
    reset()


@pytest.mark.parametrize("pack", [1, 2])
def test_evaluation_ignores_padding(pack):
    """Only 5 of 8 examples count, and in packs of 2 the fifth shares its pack with padding."""
    model = replace(TINY, pack=pack).build(SPEC, 1)
    state = jax.jit(model.init)(KEY)
    d = jax.device_get(random_like(state.params["discriminator"], 3.0))
    g = {"Dense_0": {"kernel": np.zeros((3, PIXELS), np.float32), "bias": normal(PIXELS)}}
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
    nothing_left = FORMULAS[NonSaturating].discriminator(real, fake, 1.0) < 0.01 * 2 * np.log(2)
    assert found["saturation"] == pytest.approx(nothing_left.mean())


def test_a_pack_holds_neighbouring_images_as_channels():
    x = normal(6, 2, 3, 2)
    expected = np.stack([np.concatenate(x[i : i + 3], axis=-1) for i in (0, 3)])
    np.testing.assert_array_equal(pack_images(jnp.asarray(x), 3), expected)


def test_labels_are_all_classes_in_turn_or_the_requested_one():
    every, ones = generate(conditional(), n=7), generate(conditional(), n=7, label=1)
    np.testing.assert_array_equal(every["labels"], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(ones["labels"], 1)
    np.testing.assert_array_equal(every["latents"], ones["latents"])
    same = [np.allclose(a, b, atol=1e-6) for a, b in zip(every["samples"], ones["samples"], strict=True)]
    assert same == [False, True, False, False, True, False, False]
    given = generate(conditional(), {GIVEN: jnp.ones(7, jnp.int32)}, n=7)
    for name in ("samples", "labels"):
        np.testing.assert_allclose(given[name], ones[name], atol=1e-6)


def test_a_sample_does_not_depend_on_the_number_of_samples_and_has_its_own_score():
    n = GENERATE_CHUNK + 44
    many, few = generate(conditional(), n=n), generate(conditional(), n=20)
    for name in ("latents", "samples", "labels", "scores"):
        assert len(many[name]) == n
        np.testing.assert_allclose(many[name][:20], few[name], rtol=1e-5, atol=1e-5)
    assert stats.kstest(many["latents"].ravel(), "norm").pvalue > 1e-3
    _, state = conditional()
    module = Discriminator(TINY.discriminator, "projection", True, DTYPES)
    params = state.params["discriminator"]
    scores, _ = apply(module, params, many["samples"], one_hot(*many["labels"]), None, False)
    np.testing.assert_allclose(many["scores"], scores, rtol=1e-4, atol=1e-5)


def test_truncation_bounds_the_latents():
    z = generate(conditional(), n=300, truncation=0.7)["latents"].ravel()
    assert np.abs(z).max() <= 0.7
    assert stats.kstest(z, stats.truncnorm(-0.7, 0.7).cdf).pvalue > 1e-3


def test_an_interpolation_goes_from_each_sample_to_the_next():
    between, ends = generate(conditional(), n=16, mode="interpolate"), generate(conditional(), n=3)
    assert between["samples"].shape == (2, 8, 2, 2, 1)
    np.testing.assert_array_equal(between["labels"], np.repeat([0, 1], 8))
    z = between["latents"].reshape(2, 8, 3)
    np.testing.assert_allclose(z[:, 0], ends["latents"][:2], atol=1e-5)
    np.testing.assert_allclose(z[:, -1], ends["latents"][1:], atol=1e-5)
    np.testing.assert_allclose(between["samples"][:, 0], ends["samples"][:2], atol=1e-4)
    grows = np.diff(np.linalg.norm(ends["latents"], axis=-1)) > 0
    np.testing.assert_array_equal(np.diff(np.linalg.norm(z, axis=-1)) > 0, np.repeat(grows, 7).reshape(2, 7))


@pytest.mark.parametrize("dimensions", [1, 3, 100])
def test_slerp_turns_at_a_constant_rate_and_changes_the_length_linearly(dimensions):
    a, b = np.random.default_rng(2).normal(size=(2, 50, dimensions)).astype(np.float32)
    points = np.stack([slerp(jnp.asarray(a), jnp.asarray(b), t) for t in np.linspace(0, 1, 8)]).astype(np.float64)
    np.testing.assert_allclose(points[[0, -1]], [a, b], atol=1e-3 if dimensions == 1 else 1e-5)
    if dimensions == 1:
        assert (np.abs(points) <= np.maximum(np.abs(a), np.abs(b)) + 1e-3).all()
        return
    lengths = np.linalg.norm(points, axis=-1)
    np.testing.assert_allclose(lengths, np.linspace(lengths[0], lengths[-1], 8), rtol=1e-4)
    cosine = (points[:-1] * points[1:]).sum(-1) / (lengths[:-1] * lengths[1:])
    whole = np.arccos((a * b).sum(-1) / (lengths[0] * lengths[-1]))
    np.testing.assert_allclose(np.arccos(np.clip(cosine, -1, 1)), np.tile(whole / 7, (7, 1)), atol=2e-3)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_averaged_weights_use_their_own_moments_and_raw_weights_the_running_ones(ema):
    """Images are tanh(leaky((a - mean) / std) / 5), where a = [z, label] W, so they tell which moments were used."""
    n, config = PIXELS, replace(TINY, generator=generator.Perceptron((PIXELS,)), conditioning="concatenation", ema=ema)
    model = config.build(SPEC, 1)
    state = jax.jit(model.init)(KEY)
    g = random_like(state.params["generator"])
    g |= {
        "Norm_0": {"scale": jnp.ones(n), "bias": jnp.zeros(n)},
        "Dense_1": {"kernel": jnp.eye(n) / 5, "bias": jnp.zeros(n)},
    }
    running = {"mean": jnp.asarray(normal(n)), "var": jnp.asarray(np.exp(normal(n)))}
    state = replace(state, stats={"generator": {"Norm_0": {"BatchNorm_0": running}}})
    averages = {"ema": {"generator": g}} if ema else {"params": {**state.params, "generator": g}}
    made = generate((model, replace(state, **averages)), n=60)

    w = np.asarray(g["Dense_0"]["kernel"], np.float64)
    h = 5 * np.arctanh(made["samples"].reshape(60, n).astype(np.float64))
    a, y = np.concatenate([made["latents"], one_hot(*made["labels"])], axis=1) @ w, np.where(h >= 0, h, 5 * h)
    slope, shift = np.array([np.polyfit(a[:, i], y[:, i], 1) for i in range(n)]).T
    mean, var = -shift / slope, slope**-2
    if not ema:
        np.testing.assert_allclose(mean, running["mean"], rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(var, running["var"], rtol=1e-2)
        return
    share = np.bincount(np.arange(STANDING_SAMPLES) % 3) / STANDING_SAMPLES
    expected = share @ w[3:]
    variance = (w[:3] ** 2).sum(0) + share @ (w[3:] - expected) ** 2
    assert (np.abs(mean - expected) < 4 * np.sqrt(variance / STANDING_SAMPLES)).all()
    assert (np.abs(var / variance - 1) < 4 * np.sqrt(2 / STANDING_SAMPLES)).all()


@pytest.mark.parametrize(("classes", "n", "columns"), [(10, 64, 10), (3, 9, 3), (2, 16, 4), (30, 60, 8), (None, 30, 6)])
def test_labels_in_turn_are_the_columns_of_the_picture(classes, n, columns):
    arrays = {"samples": np.full((n, 28, 28, 1), -1.0)}
    if classes:
        arrays |= {"labels": np.arange(n) % classes}
        arrays["samples"][arrays["labels"] == 1] = 1.0
    image = np.asarray(Image.open(io.BytesIO(picture(arrays))))
    factor = image.shape[1] // (29 * columns - 1)
    assert image.shape == (factor * (29 * -(-n // columns) - 1), factor * (29 * columns - 1))
    if classes and classes == columns:
        second = image[:, factor * 29 : factor * 57]
        assert (second[second != 128] == 255).all()
