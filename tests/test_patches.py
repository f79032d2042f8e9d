"""Patches of pixels as tokens: their numbers, the pictures that they stand for, and the errors."""

from functools import partial

import jax
import numpy as np
import pytest

from gen.core import Feature
from gen.data.images import Images, patches
from gen.errors import UserError


def spec_of(shape: tuple[int, ...], levels: int, patch: tuple[int, ...]) -> dict[str, Feature]:
    image = Feature(shape, levels=levels)
    return {"image": image, "tokens": patches.patch_tokens(image, patch, "these")}


CASES = [((4, 6, 1), 2, (2,)), ((8, 4, 1), 3, (4, 2)), ((3, 2, 1), 17, (1,)), ((4, 4, 3), 2, (2, 1))]


@pytest.mark.parametrize(("shape", "levels", "patch"), CASES)
def test_a_token_has_a_digit_for_each_pixel_of_its_patch(shape, levels, patch):
    spec, rng = spec_of(shape, levels, patch), np.random.default_rng(0)
    v = rng.integers(0, levels, (3, *shape))
    images = (2 * v / (levels - 1) - 1).astype(np.float32)
    tokens = np.asarray(patches.to_tokens(jax.numpy.asarray(images), spec))
    square, side = patch[0], patch[-1]
    for n, row, column in np.ndindex(3, shape[0] // square, shape[1] // square):
        block = v[n, row * square : (row + 1) * square, column * square : (column + 1) * square]
        parts = [block[y : y + side, x : x + side] for y in range(0, square, side) for x in range(0, square, side)]
        expected = [sum(int(digit) * levels**i for i, digit in enumerate(part.reshape(-1))) for part in parts]
        np.testing.assert_array_equal(np.ravel(tokens[n, row, column]), expected)
    assert tokens.shape == (3, *spec["tokens"].shape) and tokens.max() < (spec["tokens"].vocab or 0)
    np.testing.assert_allclose(patches.to_pictures(jax.numpy.asarray(tokens), spec), images, atol=1e-6)


def test_the_tokens_of_a_data_set_are_those_of_its_binary_images():
    data = Images(name="digits", binarize="dynamic", patch=(4, 2), batch_size=4).build()
    assert data.spec["tokens"] == Feature((2, 2, 4), "int32", vocab=16, levels=2, axes=("row", "column", "part"))
    preprocess = jax.jit(partial(data.preprocess), static_argnums=2)
    seen = [preprocess(data.batch(0, 0, range(4)), jax.random.key(key), True) for key in (0, 1)]
    for batch in seen:
        np.testing.assert_array_equal(patches.to_pictures(batch["tokens"], data.spec), batch["image"])
        assert set(np.unique(batch["image"])) == {-1, 1}
    assert (seen[0]["tokens"] != seen[1]["tokens"]).any()


def test_samples_are_shown_as_images_only_if_they_are_tokens():
    spec = spec_of((4, 4, 1), 2, (2,))
    tokens, image = np.arange(4, dtype=np.int32).reshape(1, 2, 2), np.zeros((1, 4, 4, 1), np.float32)
    assert patches.show_samples({"samples": tokens, "labels": np.ones(1)}, spec)["samples"].shape == (1, 4, 4, 1)
    assert patches.show_samples({"samples": image}, spec)["samples"] is image
    codes = {"tokens": Feature((2, 2), "int32", vocab=16, axes=("row", "column"))}
    assert patches.show_samples({"samples": tokens}, codes)["samples"] is tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"binarize": "dynamic", "patch": (3,)}, "--data.patch 3 does not divide images of 8x8"),
        ({"binarize": "dynamic", "patch": (4, 3)}, "--data.patch 4 3 does not divide"),
        ({"binarize": "dynamic", "patch": (4, 2, 1)}, "does not divide"),
        ({"binarize": "dynamic", "patch": (0,)}, "does not divide"),
        ({"binarize": "dynamic", "patch": (8,)}, "more than 65,536 values"),
        ({"patch": (2,)}, "more than 65,536 values"),
        ({"dequantize": True, "patch": (1,)}, "--data.dequantize"),
    ],
)
def test_patches_that_can_not_be_tokens_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Images(name="digits", **options).build()
