"""Augmentations against numpy, scipy and the distributions of their papers."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from gen import config as configs
from gen.errors import UserError
from gen.families.gan import augment
from gen.families.gan.augment import ADA, Augmentation, DiffAugment

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
SIZES = [(28, 28, 1), (8, 8, 3), (32, 20, 3), (9, 15, 1)]


def pictures(*shape: int) -> np.ndarray:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def applied(augmentation: Augmentation, images: jax.Array, key: jax.Array, rows: jax.Array, p: jax.Array) -> jax.Array:
    return augmentation.apply(images, key, rows, p)


def shown(augmentation: Augmentation, images: np.ndarray, p: float = 1.0, key: jax.Array = KEY) -> np.ndarray:
    rows = jnp.arange(len(images), dtype=jnp.int32)
    return np.asarray(applied(augmentation, jnp.asarray(images), key, rows, jnp.float32(p)))


def copies(image: np.ndarray, n: int) -> np.ndarray:
    return np.broadcast_to(image, (n, *image.shape))


def assert_drawn_from(values: np.ndarray, distribution: Callable) -> None:
    """Kolmogorov and Smirnov's test at a fixed seed."""
    assert stats.kstest(values, distribution).pvalue > 1e-3


def assert_as_likely(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's test at a fixed seed."""
    assert min(counts.sum() * probabilities) > 5, "too few draws to tell"
    assert stats.chisquare(counts, counts.sum() * probabilities).pvalue > 1e-3


@pytest.mark.parametrize("augmentation", [DiffAugment(), ADA()])
def test_a_picture_depends_on_key_and_row_alone(augmentation):
    images, rows, p = jnp.asarray(pictures(16, 12, 8, 3)), jnp.arange(16, dtype=jnp.int32), jnp.float32(0.8)
    whole = applied(augmentation, images, KEY, rows, p)
    order = jnp.asarray(RNG.permutation(16))
    np.testing.assert_allclose(applied(augmentation, images[order], KEY, rows[order], p), whole[order], atol=2e-5)
    split = lambda x: x.reshape(8, 2, *x.shape[1:])
    sharded = jax.pmap(augmentation.apply, in_axes=(0, None, 0, None))(split(images), KEY, split(rows), p)
    np.testing.assert_allclose(sharded.reshape(whole.shape), whole, atol=2e-5)


@pytest.mark.parametrize("augmentation", [DiffAugment(), ADA()])
def test_pictures_differ_by_key_and_by_row(augmentation):
    images = copies(pictures(12, 8, 3), 16)
    one, other = (shown(augmentation, images, key=jax.random.key(k)) for k in (1, 2))
    assert np.unique(one.reshape(16, -1), axis=0).shape[0] == 16
    assert (one != other).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("augmentation", [DiffAugment(), ADA()])
def test_the_dtype_is_kept_and_the_picture_is_the_same_in_each(augmentation):
    images = pictures(16, 12, 8, 3).astype(jnp.bfloat16)
    single = shown(augmentation, images.astype(np.float32))
    half = shown(augmentation, images)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), single, atol=0.05, rtol=0.01)
    with jax.enable_x64(True):
        double = shown(augmentation, images.astype(np.float64))
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, single, atol=1e-4)


@pytest.mark.parametrize("augmentation", [DiffAugment(), ADA()])
def test_gradients_and_theirs_are_finite_differences(augmentation):
    with jax.enable_x64(True):
        rows, direction = jnp.arange(4, dtype=jnp.int32), RNG.normal(size=(4, 8, 6, 3))
        f = lambda x: jnp.sin(augmentation.apply(x, KEY, rows, jnp.float32(0.9))).sum()
        penalty = lambda x: jnp.square(jax.grad(f)(x)).sum()
        both = jax.jit(lambda x: (jax.value_and_grad(f)(x), jax.value_and_grad(penalty)(x)))
        x = jnp.asarray(pictures(4, 8, 6, 3), jnp.float64)
        low, at, high = (jax.device_get(both(x + e * direction)) for e in (-1e-5, 0, 1e-5))
    for (below, _), (_, gradient), (above, _) in zip(low, at, high, strict=True):
        np.testing.assert_allclose((above - below) / 2e-5, np.sum(gradient * direction), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("augmentation", [DiffAugment(("cutout", "color")), ADA(("color",), target=0.5, kimg=100.0)])
def test_augmentations_are_kept_as_json(augmentation):
    assert configs.decode(Augmentation | None, configs.encode(augmentation)) == augmentation


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffAugment(("colour",)), "policy is colour; it names one or more of color, translation, cutout"),  # type: ignore
        (lambda: DiffAugment(()), "policy is empty"),
        (lambda: DiffAugment(("color", "color")), "each once"),
        (lambda: ADA(("cutout",)), "policy is cutout; it names one or more of blit, geometry, color"),  # type: ignore
        (lambda: ADA(target=1.0), "target is 1.0"),
        (lambda: ADA(target=float("nan")), "target is nan"),
        (lambda: ADA(kimg=0.0), "kimg is 0.0"),
    ],
)
def test_wrong_numbers_and_names_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("shape", SIZES)
def test_jitter_is_its_formula(shape):
    x, (brightness, saturation, contrast) = pictures(*shape), np.array([0.3, 1.7, 0.6], np.float32)
    y = x.astype(np.float64) + brightness
    y = y.mean(-1, keepdims=True) + saturation * (y - y.mean(-1, keepdims=True))
    y = y.mean() + contrast * (y - y.mean())
    np.testing.assert_allclose(augment.jitter(jnp.asarray(x), brightness, saturation, contrast), y, atol=1e-5)


@pytest.mark.parametrize("shape", SIZES)
def test_translation_enters_zeros(shape):
    x, (h, w) = pictures(*shape), (shape[0] // 8, shape[1] // 8)
    translate = jax.jit(augment.translate)
    for down, right in itertools.product({-h, 0, h}, {-w, 0, w}):
        expected = np.zeros_like(x)
        for i, j in itertools.product(range(shape[0]), range(shape[1])):
            if 0 <= i - down < shape[0] and 0 <= j - right < shape[1]:
                expected[i, j] = x[i - down, j - right]
        np.testing.assert_array_equal(translate(x, jnp.array([down, right], jnp.int32)), expected)


@pytest.mark.parametrize("shape", SIZES)
def test_cutout_is_a_hole_of_half_the_side_that_the_border_may_cut(shape):
    x, (h, w) = pictures(*shape), (shape[0] // 2, shape[1] // 2)
    for top, left in [(-h // 2, 2), (1, -1), (shape[0] - h, shape[1] - 1)]:
        expected = x.copy()
        expected[max(top, 0) : top + h, max(left, 0) : left + w] = 0
        np.testing.assert_array_equal(augment.cutout(jnp.asarray(x), jnp.array([top, left], jnp.int32)), expected)


def test_jitter_is_drawn_uniformly_from_the_published_ranges():
    x = pictures(4, 4, 3)
    y = shown(DiffAugment(("color",)), copies(x, 2000)).astype(np.float64)
    grey = x.mean(-1)
    contrast = y.mean(-1).std((1, 2)) / grey.std()
    saturation = (y - y.mean(-1, keepdims=True)).std((1, 2, 3)) / (x - grey[..., None]).std() / contrast
    assert_drawn_from(y.mean((1, 2, 3)) - x.mean(), stats.uniform(-0.5, 1).cdf)
    assert_drawn_from(saturation, stats.uniform(0, 2).cdf)
    assert_drawn_from(contrast, stats.uniform(0.5, 1).cdf)


def test_grey_has_no_saturation():
    x = jnp.asarray(pictures(4, 4, 1))
    less, more = (augment.jitter(x, *np.array([0.1, s, 0.7], np.float32)) for s in (0, 1.9))
    np.testing.assert_array_equal(less, more)


@pytest.mark.parametrize("size", [(16, 24), (9, 17)])
def test_all_translations_are_as_likely(size):
    (h, w), x = (n // 8 for n in size), 2 + pictures(*size, 1)
    y = shown(DiffAugment(("translation",)), copies(x, 2000))[..., 0]
    # x has no zeros, so that what entered is seen; rows that are zero tell the shift down, columns the one right.
    first = lambda filled: np.argmax(filled, axis=1) - np.argmax(filled[:, ::-1], axis=1)
    down, right = first((y != 0).any(2)), first((y != 0).any(1))
    counts = np.zeros((2 * h + 1, 2 * w + 1))
    np.add.at(counts, (down + h, right + w), 1)
    assert_as_likely(counts.ravel(), np.full(counts.size, 1 / counts.size))


@pytest.mark.parametrize("size", [(8, 12), (7, 10)])
def test_all_holes_are_as_likely(size):
    """The middle of a hole of even side is any of the n + 1 edges between pixels, that of an odd one any of the n pixels."""
    holes = shown(DiffAugment(("cutout",)), np.ones((2000, *size, 1), np.float32))[..., 0] == 0
    for n, hole in zip(size, (holes.any(2), holes.any(1)), strict=True):
        half = n // 2
        begin, end = np.argmax(hole, axis=1), n - np.argmax(hole[:, ::-1], axis=1)
        middle = np.where(begin > 0, begin, end - half) + half // 2
        counts = np.bincount(middle, minlength=n + 1 - half % 2)
        assert_as_likely(counts, np.full(counts.size, 1 / (n + 1 - half % 2)))


def test_ada_at_p_zero_leaves_every_bit():
    images = pictures(16, 32, 20, 3)
    np.testing.assert_array_equal(shown(ADA(), images, p=0.0), images)


@pytest.mark.parametrize(
    ("policy", "channels", "unchanged"),
    [
        # A mirror is one of 2 draws, no quarter turn one of 4, and a shift of -1, 0, 1 pixels has weights 1/4, 1/2, 1/4.
        (("blit",), 1, lambda p: (1 - p / 2) * (1 - p * 3 / 4) * (1 - p * 3 / 4)),
        (("geometry",), 1, lambda p: (1 - p) ** 4),  # scale, turn, stretch, shift
        (("color",), 1, lambda p: (1 - p) ** 2),  # brightness, contrast
        (("color",), 3, lambda p: (1 - p) ** 4 * (1 - p / 2)),  # and hue, saturation, a luma flip of 2 draws
        (("blit", "geometry", "color"), 1, lambda p: (1 - p / 2) * (1 - p * 3 / 4) ** 2 * (1 - p) ** 6),
    ],
)
def test_the_share_of_changed_pictures_follows_p(policy, channels, unchanged):
    images = copies(pictures(8, 8, channels), 2000)
    for p in (0.0, 0.1, 0.5, 1.0):
        same = (shown(ADA(policy), images, p) == images).all(axis=(1, 2, 3)).sum()
        assert stats.binomtest(int(same), len(images), unchanged(p)).pvalue > 1e-3, p


@pytest.mark.parametrize("size", [(9, 9), (12, 8)])
def test_blits_are_the_exact_permutations_of_pixels_each_as_likely_as_its_shift(size):
    x = pictures(*size, 1)
    beyond = np.pad(x, ((20, 20), (20, 20), (0, 0)), mode="reflect")
    expected = {}
    for mirror, quarter in itertools.product((False, True), range(4)):
        turned = np.rot90(beyond[:, ::-1] if mirror else beyond, quarter)
        top, left = ((n - m) // 2 for n, m in zip(turned.shape[:2], size, strict=True))
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            picture = turned[top + down : top + down + size[0], left + right : left + right + size[1]]
            # The shift is round(u n / 8), u uniform in [-1, 1].
            still = [0.5 / (n / 8) for n in size]
            weight = np.prod([s if d == 0 else (1 - s) / 2 for d, s in zip((down, right), still, strict=True)])
            expected[picture.tobytes()] = weight / 8
    assert len(expected) == 72
    found = [y.tobytes() for y in shown(ADA(("blit",)), copies(x, 3000))]
    assert set(found) == set(expected)
    assert_as_likely(np.array([found.count(y) for y in expected]), np.array(list(expected.values())))


@pytest.mark.parametrize("shape", SIZES)
def test_the_warp_is_that_of_scipy(shape):
    x, middle = pictures(*shape), (np.array(shape[:2]) - 1) / 2
    for linear, shift in [
        (RNG.normal(size=(2, 2)), RNG.normal(size=2)),
        (3 * np.eye(2)[::-1], np.array([40.0, -70.5])),
    ]:
        linear, shift = linear.astype(np.float32), shift.astype(np.float32)
        by_scipy = functools.partial(ndimage.affine_transform, order=1, mode="mirror")
        offset = shift + middle - linear @ middle
        expected = [by_scipy(channel.astype(np.float64), linear, offset) for channel in np.moveaxis(x, -1, 0)]
        found = augment.warp(jnp.asarray(x), jnp.asarray(linear), jnp.asarray(shift))
        np.testing.assert_allclose(found, np.stack(expected, axis=-1), atol=5e-5)


def motions(n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """`linear` [n, 2, 2] and `shift` [n, 2] in shares of the side, read off pictures of coordinates about their middle."""
    h, w = 40, 32
    down, right = np.mgrid[:h, :w].astype(np.float32) - np.array([(h - 1) / 2, (w - 1) / 2], np.float32)[:, None, None]
    image = np.stack([down, right, np.zeros_like(down)], axis=-1)
    y = shown(ADA(("geometry",)), copies(image, n))[:, h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1, :2]
    linear = np.stack([y[:, 1, 0] - y[:, 0, 0], y[:, 0, 1] - y[:, 0, 0]], axis=-1)
    return linear, np.linalg.solve(linear, y.mean((1, 2))[..., None])[..., 0] / [h, w]


def test_geometry_is_drawn_from_the_published_distributions():
    linear, shift = motions()
    u, stretched, v = np.linalg.svd(linear)
    turned = u @ v
    assert_drawn_from(np.log2(stretched.prod(1)) / 2, stats.norm(0, 0.2).cdf)
    assert_drawn_from(np.log2(stretched[:, 0] / stretched[:, 1]) / 2, stats.halfnorm(0, 0.2).cdf)
    assert_drawn_from(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]), stats.uniform(-np.pi, 2 * np.pi).cdf)
    for axis in (0, 1):
        assert_drawn_from(shift[:, axis], stats.norm(0, 1 / 8).cdf)


def colors(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrices [n, C, C] and offsets [n, C] of 2000 changes of colour, read off one picture by least squares."""
    x = pictures(4, 4, channels)
    y = shown(ADA(("color",)), copies(x, 2000)).astype(np.float64).reshape(2000, 16, channels)
    design = np.concatenate([x.reshape(16, channels), np.ones((16, 1))], axis=1)
    fit = np.linalg.pinv(design) @ y
    np.testing.assert_allclose(design @ fit, y, atol=1e-3)
    return fit[:, :-1].swapaxes(1, 2), fit[:, -1]


def test_colour_is_drawn_from_the_published_distributions():
    matrix, offset = colors(3)
    axis = np.ones(3) / np.sqrt(3)
    plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # right-handed with the axis
    along, across = axis @ matrix @ axis, plane @ matrix @ plane.T
    contrast, saturation = np.abs(along), np.sqrt(np.linalg.det(across)) / np.abs(along)
    assert_drawn_from(np.log2(contrast), stats.norm(0, 0.5).cdf)
    assert_drawn_from(np.log2(saturation), stats.norm(0, 1).cdf)
    assert_drawn_from(np.arctan2(across[:, 1, 0], across[:, 0, 0]), stats.uniform(-np.pi, 2 * np.pi).cdf)
    assert_drawn_from(offset.mean(1) / along, stats.norm(0, 0.2).cdf)
    assert stats.binomtest(int((along < 0).sum()), len(along), 0.5).pvalue > 1e-3


def test_grey_has_brightness_and_contrast_alone():
    matrix, offset = colors(1)
    assert_drawn_from(np.log2(matrix.ravel()), stats.norm(0, 0.5).cdf)
    assert_drawn_from(offset.ravel() / matrix.ravel(), stats.norm(0, 0.2).cdf)


@pytest.mark.parametrize(
    ("brightness", "contrast", "luma", "hue", "saturation"),
    [
        (0.3, 1, 1, 0, 1),
        (0, 0.4, 1, 0, 1),
        (0, 1, -1, 0, 1),
        (0, 1, 1, 2.0, 1),
        (0, 1, 1, 0, 0),
        (-0.2, 1.3, -1, -1.0, 2.5),
    ],
)
def test_colour_is_a_product_of_affine_matrices(brightness, contrast, luma, hue, saturation):
    """Karras et al. 2020, appendix B: in this order, by homogeneous 4x4 matrices."""
    axis, affine = np.ones(3) / np.sqrt(3), np.eye(4)

    def then(linear: np.ndarray, offset: float = 0.0) -> None:
        nonlocal affine
        affine = np.block([[linear, np.full((3, 1), offset)], [np.zeros((1, 3)), np.ones((1, 1))]]) @ affine

    then(np.eye(3), brightness)
    then(contrast * np.eye(3))
    then(np.eye(3) - (2 if luma < 0 else 0) * np.outer(axis, axis))  # Householder's reflection
    then(Rotation.from_rotvec(hue * axis).as_matrix())
    then(np.outer(axis, axis) + saturation * (np.eye(3) - np.outer(axis, axis)))
    x = pictures(5, 7, 3)
    found = augment.recolor(jnp.asarray(x), *np.array([brightness, contrast, luma, hue, saturation], np.float32))
    np.testing.assert_allclose(found, x @ affine[:3, :3].T + affine[:3, 3], atol=1e-5)


def test_p_goes_from_zero_to_one_in_as_many_images_as_kimg_says():
    ada = ADA(target=0.6, kimg=0.5)
    step, p = jax.jit(ada.adapt, static_argnums=2), ada.start()
    assert p == 0
    for _ in range(49):
        p = step(p, jnp.float32(0.61), 10)
    assert float(p) == pytest.approx(0.98, abs=1e-5)
    assert float(step(step(p, 1.0, 10), 1.0, 10)) == 1  # and no further
    assert float(step(p, jnp.float32(0.59), 10)) == pytest.approx(0.96, abs=1e-5)
    assert step(ada.start(), jnp.float32(-1.0), 10) == 0
    assert float(ADA().adapt(ADA().start(), jnp.float32(1.0), 64)) == pytest.approx(64 / 500_000)


def test_the_strength_of_diffaugment_stays():
    p = DiffAugment().start()
    assert p == 1 and DiffAugment().adapt(p, jnp.float32(1.0), 64) == 1
