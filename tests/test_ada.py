"""Adaptive discriminator augmentation against scipy and the distributions of its paper."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation
from test_augment import RNG, SIZES, assert_distribution, assert_probabilities, copies, pictures, transform

from gen.families.gan import ADA
from gen.families.gan.ada import recolor, warp


def test_ada_with_p_zero_returns_every_bit():
    images = pictures(16, 32, 20, 3)
    np.testing.assert_array_equal(transform(ADA(), images, p=0.0), images)


@pytest.mark.parametrize(
    ("policy", "channels", "unchanged"),
    [
        # A mirror changes nothing in 1 draw of 2, a quarter turn in 1 of 4, and the shifts (-1, 0 or 1 pixels, twice) in 1 of 4.
        (("blit",), 1, lambda p: (1 - p / 2) * (1 - p * 3 / 4) * (1 - p * 3 / 4)),
        (("geometry",), 1, lambda p: (1 - p) ** 4),  # scale, turn, stretch, shift
        (("color",), 1, lambda p: (1 - p) ** 2),  # brightness, contrast
        (
            ("color",),
            3,
            lambda p: (1 - p) ** 4 * (1 - p / 2),
        ),  # also hue, saturation, and a luma flip, which changes nothing in 1 draw of 2
        (("blit", "geometry", "color"), 1, lambda p: (1 - p / 2) * (1 - p * 3 / 4) ** 2 * (1 - p) ** 6),
    ],
)
def test_the_fraction_of_changed_images_follows_p(policy, channels, unchanged):
    images = copies(pictures(8, 8, channels), 2000)
    for p in (0.0, 0.1, 0.5, 1.0):
        same = (transform(ADA(policy), images, p) == images).all(axis=(1, 2, 3)).sum()
        assert stats.binomtest(int(same), len(images), unchanged(p)).pvalue > 1e-3, p


@pytest.mark.parametrize("size", [(9, 9), (12, 8)])
def test_blits_are_exact_permutations_of_pixels_with_the_probabilities_of_their_shifts(size):
    x = pictures(*size, 1)
    beyond = np.pad(x, ((20, 20), (20, 20), (0, 0)), mode="reflect")
    expected = {}
    for mirror, quarter in itertools.product((False, True), range(4)):
        turned = np.rot90(beyond[:, ::-1] if mirror else beyond, quarter)
        top, left = ((n - m) // 2 for n, m in zip(turned.shape[:2], size, strict=True))
        for down, right in itertools.product((-1, 0, 1), repeat=2):
            picture = turned[top + down : top + down + size[0], left + right : left + right + size[1]]
            # The shift is round(u n / 8), where u is uniform in [-1, 1].
            still = [0.5 / (n / 8) for n in size]
            weight = np.prod([s if d == 0 else (1 - s) / 2 for d, s in zip((down, right), still, strict=True)])
            expected[picture.tobytes()] = weight / 8
    assert len(expected) == 72
    found = [y.tobytes() for y in transform(ADA(("blit",)), copies(x, 3000))]
    assert set(found) == set(expected)
    assert_probabilities(np.array([found.count(y) for y in expected]), np.array(list(expected.values())))


@pytest.mark.parametrize("shape", SIZES)
def test_the_warp_equals_scipys(shape):
    x, middle = pictures(*shape), (np.array(shape[:2]) - 1) / 2
    for linear, shift in [
        (RNG.normal(size=(2, 2)), RNG.normal(size=2)),
        (3 * np.eye(2)[::-1], np.array([40.0, -70.5])),
    ]:
        linear, shift = linear.astype(np.float32), shift.astype(np.float32)
        by_scipy = functools.partial(ndimage.affine_transform, order=1, mode="mirror")
        offset = shift + middle - linear @ middle
        expected = [by_scipy(channel.astype(np.float64), linear, offset) for channel in np.moveaxis(x, -1, 0)]
        found = warp(jnp.asarray(x), jnp.asarray(linear), jnp.asarray(shift))
        np.testing.assert_allclose(found, np.stack(expected, axis=-1), atol=5e-5)


def motions(n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """`linear` [n, 2, 2] and `shift` [n, 2], as a fraction of the side, of n transformations.

    The image holds its own coordinates, measured from the middle, so both can be read from the result.
    """
    h, w = 40, 32
    down, right = np.mgrid[:h, :w].astype(np.float32) - np.array([(h - 1) / 2, (w - 1) / 2], np.float32)[:, None, None]
    image = np.stack([down, right, np.zeros_like(down)], axis=-1)
    y = transform(ADA(("geometry",)), copies(image, n))[:, h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1, :2]
    linear = np.stack([y[:, 1, 0] - y[:, 0, 0], y[:, 0, 1] - y[:, 0, 0]], axis=-1)
    return linear, np.linalg.solve(linear, y.mean((1, 2))[..., None])[..., 0] / [h, w]


def test_geometry_is_drawn_from_the_published_distributions():
    linear, shift = motions()
    u, stretched, v = np.linalg.svd(linear)
    turned = u @ v
    assert_distribution(np.log2(stretched.prod(1)) / 2, stats.norm(0, 0.2).cdf)
    assert_distribution(np.log2(stretched[:, 0] / stretched[:, 1]) / 2, stats.halfnorm(0, 0.2).cdf)
    assert_distribution(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]), stats.uniform(-np.pi, 2 * np.pi).cdf)
    for axis in (0, 1):
        assert_distribution(shift[:, axis], stats.norm(0, 1 / 8).cdf)


def colors(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrices [n, C, C] and offsets [n, C] of n = 2000 changes of colour, fitted to one image by least squares."""
    x = pictures(4, 4, channels)
    y = transform(ADA(("color",)), copies(x, 2000)).astype(np.float64).reshape(2000, 16, channels)
    design = np.concatenate([x.reshape(16, channels), np.ones((16, 1))], axis=1)
    fit = np.linalg.pinv(design) @ y
    np.testing.assert_allclose(design @ fit, y, atol=1e-3)
    return fit[:, :-1].swapaxes(1, 2), fit[:, -1]


def test_colour_is_drawn_from_the_published_distributions():
    matrix, offset = colors(3)
    axis = np.ones(3) / np.sqrt(3)
    plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # right-handed together with the axis
    along, across = axis @ matrix @ axis, plane @ matrix @ plane.T
    contrast, saturation = np.abs(along), np.sqrt(np.linalg.det(across)) / np.abs(along)
    assert_distribution(np.log2(contrast), stats.norm(0, 0.5).cdf)
    assert_distribution(np.log2(saturation), stats.norm(0, 1).cdf)
    assert_distribution(np.arctan2(across[:, 1, 0], across[:, 0, 0]), stats.uniform(-np.pi, 2 * np.pi).cdf)
    assert_distribution(offset.mean(1) / along, stats.norm(0, 0.2).cdf)
    assert stats.binomtest(int((along < 0).sum()), len(along), 0.5).pvalue > 1e-3


def test_grey_images_only_change_brightness_and_contrast():
    matrix, offset = colors(1)
    assert_distribution(np.log2(matrix.ravel()), stats.norm(0, 0.5).cdf)
    assert_distribution(offset.ravel() / matrix.ravel(), stats.norm(0, 0.2).cdf)


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
def test_recolor_equals_a_product_of_affine_matrices(brightness, contrast, luma, hue, saturation):
    """Homogeneous 4x4 matrices, multiplied in the order of Karras et al. 2020, appendix B."""
    axis, affine = np.ones(3) / np.sqrt(3), np.eye(4)

    def then(linear: np.ndarray, offset: float = 0.0) -> None:
        nonlocal affine
        affine = np.block([[linear, np.full((3, 1), offset)], [np.zeros((1, 3)), np.ones((1, 1))]]) @ affine

    then(np.eye(3), brightness)
    then(contrast * np.eye(3))
    then(np.eye(3) - (2 if luma < 0 else 0) * np.outer(axis, axis))  # a Householder reflection
    then(Rotation.from_rotvec(hue * axis).as_matrix())
    then(np.outer(axis, axis) + saturation * (np.eye(3) - np.outer(axis, axis)))
    x = pictures(5, 7, 3)
    found = recolor(jnp.asarray(x), *np.array([brightness, contrast, luma, hue, saturation], np.float32))
    np.testing.assert_allclose(found, x @ affine[:3, :3].T + affine[:3, 3], atol=1e-5)


def test_p_goes_from_zero_to_one_in_kimg_thousand_images():
    ada = ADA(target=0.6, kimg=0.5)
    step, p = jax.jit(ada.adapt, static_argnums=2), ada.start()
    assert p == 0
    for _ in range(49):
        p = step(p, jnp.float32(0.61), 10)
    assert float(p) == pytest.approx(0.98, abs=1e-5)
    assert float(step(step(p, 1.0, 10), 1.0, 10)) == 1  # p stays at most 1
    assert float(step(p, jnp.float32(0.59), 10)) == pytest.approx(0.96, abs=1e-5)
    assert step(ada.start(), jnp.float32(-1.0), 10) == 0
    assert float(ADA().adapt(ADA().start(), jnp.float32(1.0), 64)) == pytest.approx(64 / 500_000)
