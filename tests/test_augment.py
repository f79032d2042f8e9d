"""Augmentations in general, and DiffAugment against numpy and the distributions of its paper. ADA: test_ada.py."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen import config as configs
from gen.errors import UserError
from gen.families.gan import ADA, Augmentation, DiffAugment
from gen.families.gan.augment import cutout, jitter, translate

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
SIZES = [(28, 28, 1), (8, 8, 3), (32, 20, 3), (9, 15, 1)]


def pictures(*shape: int) -> np.ndarray:
    """Uniform numbers in [-1, 1], float32."""
    return RNG.uniform(-1, 1, shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def augment(augmentation: Augmentation, images: jax.Array, key: jax.Array, rows: jax.Array, p: jax.Array) -> jax.Array:
    return augmentation.apply(images, key, rows, p)


def transform(augmentation: Augmentation, images: np.ndarray, p: float = 1.0, key: jax.Array = KEY) -> np.ndarray:
    """The images, transformed with strength p."""
    rows = jnp.arange(len(images), dtype=jnp.int32)
    return np.asarray(augment(augmentation, jnp.asarray(images), key, rows, jnp.float32(p)))


def copies(image: np.ndarray, n: int) -> np.ndarray:
    """The image, n times."""
    return np.broadcast_to(image, (n, *image.shape))


def assert_distribution(values: np.ndarray, distribution: Callable) -> None:
    """Passes the test of Kolmogorov and Smirnov. The seed is fixed."""
    assert stats.kstest(values, distribution).pvalue > 1e-3


def assert_probabilities(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Passes Pearson's chi-squared test. The seed is fixed."""
    assert min(counts.sum() * probabilities) > 5, "too few draws for the test"
    assert stats.chisquare(counts, counts.sum() * probabilities).pvalue > 1e-3


@pytest.mark.parametrize("augmentation", [DiffAugment(), ADA()])
def test_the_noise_of_an_image_depends_only_on_key_and_row(augmentation):
    images, rows, p = jnp.asarray(pictures(16, 12, 8, 3)), jnp.arange(16, dtype=jnp.int32), jnp.float32(0.8)
    whole = augment(augmentation, images, KEY, rows, p)
    order = jnp.asarray(RNG.permutation(16))
    np.testing.assert_allclose(augment(augmentation, images[order], KEY, rows[order], p), whole[order], atol=2e-5)
    on_devices = jax.pmap(augmentation.apply, in_axes=(0, None, 0, None))
    sharded = on_devices(images.reshape(8, 2, *images.shape[1:]), KEY, rows.reshape(8, 2), p)
    np.testing.assert_allclose(sharded.reshape(whole.shape), whole, atol=2e-5)


@pytest.mark.parametrize("augmentation", [DiffAugment(), ADA()])
def test_images_with_other_keys_or_rows_are_transformed_differently(augmentation):
    images = copies(pictures(12, 8, 3), 16)
    one, other = (transform(augmentation, images, key=jax.random.key(k)) for k in (1, 2))
    assert np.unique(one.reshape(16, -1), axis=0).shape[0] == 16
    assert (one != other).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("augmentation", [DiffAugment(), ADA()])
def test_the_dtype_is_kept_and_the_noise_is_the_same_in_each(augmentation):
    images = pictures(16, 12, 8, 3).astype(jnp.bfloat16)
    single = transform(augmentation, images.astype(np.float32))
    half = transform(augmentation, images)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), single, atol=0.05, rtol=0.01)
    with jax.enable_x64(True):
        double = transform(augmentation, images.astype(np.float64))
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, single, atol=1e-4)


@pytest.mark.parametrize("augmentation", [DiffAugment(), ADA()])
def test_first_and_second_gradients_equal_finite_differences(augmentation):
    with jax.enable_x64(True):
        rows, direction = jnp.arange(4, dtype=jnp.int32), RNG.normal(size=(4, 8, 6, 3))

        def f(x: jax.Array) -> jax.Array:
            return jnp.sin(augmentation.apply(x, KEY, rows, jnp.float32(0.9))).sum()

        def penalty(x: jax.Array) -> jax.Array:
            return jnp.square(jax.grad(f)(x)).sum()

        both = jax.jit(lambda x: (jax.value_and_grad(f)(x), jax.value_and_grad(penalty)(x)))
        x = jnp.asarray(pictures(4, 8, 6, 3), jnp.float64)
        low, at, high = (jax.device_get(both(x + e * direction)) for e in (-1e-5, 0, 1e-5))
    for (below, _), (_, gradient), (above, _) in zip(low, at, high, strict=True):
        np.testing.assert_allclose((above - below) / 2e-5, np.sum(gradient * direction), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("augmentation", [DiffAugment(("cutout", "color")), ADA(("color",), target=0.5, kimg=100.0)])
def test_augmentations_round_trip_through_json(augmentation):
    assert configs.decode(Augmentation | None, configs.encode(augmentation)) == augmentation


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (DiffAugment, {"policy": ("colour",)}, "policy is colour; it names one or more of color, translation, cutout"),
        (DiffAugment, {"policy": ()}, "policy is empty"),
        (DiffAugment, {"policy": ("color", "color")}, "each once"),
        (ADA, {"policy": ("cutout",)}, "policy is cutout; it names one or more of blit, geometry, color"),
        (ADA, {"target": 1.0}, "target is 1.0"),
        (ADA, {"target": float("nan")}, "target is nan"),
        (ADA, {"kimg": 0.0}, "kimg is 0.0"),
    ],
)
def test_wrong_settings_are_refused(make, fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


@pytest.mark.parametrize("shape", SIZES)
def test_jitter_equals_its_formula(shape):
    x, (brightness, saturation, contrast) = pictures(*shape), np.array([0.3, 1.7, 0.6], np.float32)
    y = x.astype(np.float64) + brightness
    y = y.mean(-1, keepdims=True) + saturation * (y - y.mean(-1, keepdims=True))
    y = y.mean() + contrast * (y - y.mean())
    np.testing.assert_allclose(jitter(jnp.asarray(x), brightness, saturation, contrast), y, atol=1e-5)


@pytest.mark.parametrize("shape", SIZES)
def test_translation_fills_the_gap_with_zeros(shape):
    x, (h, w) = pictures(*shape), (shape[0] // 8, shape[1] // 8)
    move = jax.jit(translate)
    for down, right in itertools.product({-h, 0, h}, {-w, 0, w}):
        expected = np.zeros_like(x)
        for i, j in itertools.product(range(shape[0]), range(shape[1])):
            if 0 <= i - down < shape[0] and 0 <= j - right < shape[1]:
                expected[i, j] = x[i - down, j - right]
        np.testing.assert_array_equal(move(x, jnp.array([down, right], jnp.int32)), expected)


@pytest.mark.parametrize("shape", SIZES)
def test_cutout_blanks_a_rectangle_of_half_the_side_that_the_border_may_cut(shape):
    x, (h, w) = pictures(*shape), (shape[0] // 2, shape[1] // 2)
    for top, left in [(-h // 2, 2), (1, -1), (shape[0] - h, shape[1] - 1)]:
        expected = x.copy()
        expected[max(top, 0) : top + h, max(left, 0) : left + w] = 0
        np.testing.assert_array_equal(cutout(jnp.asarray(x), jnp.array([top, left], jnp.int32)), expected)


def test_jitter_is_drawn_uniformly_from_the_published_ranges():
    x = pictures(4, 4, 3)
    y = transform(DiffAugment(("color",)), copies(x, 2000)).astype(np.float64)
    grey = x.mean(-1)
    contrast = y.mean(-1).std((1, 2)) / grey.std()
    saturation = (y - y.mean(-1, keepdims=True)).std((1, 2, 3)) / (x - grey[..., None]).std() / contrast
    assert_distribution(y.mean((1, 2, 3)) - x.mean(), stats.uniform(-0.5, 1).cdf)
    assert_distribution(saturation, stats.uniform(0, 2).cdf)
    assert_distribution(contrast, stats.uniform(0.5, 1).cdf)


def test_saturation_does_not_change_grey_images():
    x = jnp.asarray(pictures(4, 4, 1))
    less, more = (jitter(x, *np.array([0.1, s, 0.7], np.float32)) for s in (0, 1.9))
    np.testing.assert_array_equal(less, more)


@pytest.mark.parametrize("size", [(16, 24), (9, 17)])
def test_all_translations_have_the_same_probability(size):
    (h, w), x = (n // 8 for n in size), 2 + pictures(*size, 1)
    y = transform(DiffAugment(("translation",)), copies(x, 2000))[..., 0]
    # x has no zeros, so zeros mark the gap: zero rows give the shift down, zero columns the shift to the right.
    rows, columns = (y != 0).any(2), (y != 0).any(1)
    down, right = (np.argmax(a, axis=1) - np.argmax(a[:, ::-1], axis=1) for a in (rows, columns))
    counts = np.zeros((2 * h + 1, 2 * w + 1))
    np.add.at(counts, (down + h, right + w), 1)
    assert_probabilities(counts.ravel(), np.full(counts.size, 1 / counts.size))


@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_all_holes_have_the_same_probability(size):
    """The middle of a hole is any of the n + 1 edges between pixels if its side is even, and any of the n pixels if it is odd."""
    holes = transform(DiffAugment(("cutout",)), np.ones((2000, *size, 1), np.float32))[..., 0] == 0
    for n, hole in zip(size, (holes.any(2), holes.any(1)), strict=True):
        half = n // 2
        begin, end = np.argmax(hole, axis=1), n - np.argmax(hole[:, ::-1], axis=1)
        middle = np.where(begin > 0, begin, end - half) + half // 2
        counts = np.bincount(middle, minlength=n + 1 - half % 2)
        assert_probabilities(counts, np.full(counts.size, 1 / (n + 1 - half % 2)))


def test_the_strength_of_diffaugment_is_constant():
    p = DiffAugment().start()
    assert p == 1 and DiffAugment().adapt(p, jnp.float32(1.0), 64) == 1
