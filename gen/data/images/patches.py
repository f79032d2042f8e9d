"""Converts images with few grey levels to grids of tokens and back, without a trained tokenizer.

The token of a patch is a number whose digits, in base `levels`, are the pixels of the patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from gen.core import Array, Batch, Feature, Key, Spec
from gen.data.preprocess import Transform, scale_levels
from gen.errors import UserError

A = TypeVar("A", Array, np.ndarray)
MAX_VOCAB = 2**16
"""Largest size of the vocabulary. In a larger vocabulary, most tokens would never occur in the training images."""


def patch_tokens(image: Feature, patch: tuple[int, ...], name: str) -> Feature:
    """Returns the feature of the tokens of images: the shape and axes of their grid, and the size of the vocabulary.

    image: feature of the images. patch: (side of a patch,), or (side of a cell of the grid, side of a patch), in
    pixels. With two numbers, the grid has a last axis: the patches of a cell. name: the --data.name, for errors.

    Raises: UserError if the patches do not divide the image, if the number of its levels is unknown, or if a patch has
    more than MAX_VOCAB possible values.
    """
    height, width, channels = image.shape
    square, side = patch[0], patch[-1]
    shown = f"--data.patch {' '.join(map(str, patch))}"
    if len(patch) > 2 or side < 1 or square % side or height % square or width % square:
        raise UserError(
            f"{name}: {shown} does not divide images of {height}x{width}; give the side of a patch, or the sides of a square of "
            "patches and of a patch, such as 4 2"
        )
    levels = image.levels or 0
    # An exact integer: a float would overflow for large patches.
    if levels < 2 or (vocab := levels ** (side * side * channels)) > MAX_VOCAB:
        raise UserError(
            f"{name}: patches of {side}x{side} pixels with {channels} channels and {levels} levels have more than {MAX_VOCAB:,} "
            "values; the fix: a smaller --data.patch, --data.colors 1, or --data.binarize dynamic"
        )
    shape, axes = (height // square, width // square), ("row", "column")
    if len(patch) == 2:
        shape, axes = (*shape, (square // side) ** 2), (*axes, "part")
    return Feature(shape, "int32", vocab=vocab, levels=levels, axes=axes)


def tokenize(batch: Batch, key: Key, training: bool, *, preprocess: Transform, spec: Spec) -> Batch:
    """Applies `preprocess` to a batch of images and adds their "tokens", int32 [B, *grid]. Runs in the compiled step.

    spec: features of the data, with "image" and "tokens".
    """
    seen = preprocess(batch, key, training)
    return {**seen, "tokens": to_tokens(seen["image"], spec)}


def to_tokens(images: Array, spec: Spec) -> Array:
    """Returns the tokens, int32 [B, *grid], of images, float [B, H, W, C] in [-1, 1].

    The token of a patch is the sum over its pixels i of v_i * levels^i, where v_i is the level of the pixel, in [0,
    levels).

    spec: features of the data, with "image" and "tokens".
    """
    levels, (rows, columns, a, p) = spec["tokens"].levels or 2, _divide(spec)
    # Rounded, because dividing by levels - 1 was not exact.
    v = jnp.round((images + 1) / 2 * (levels - 1)).astype(jnp.int32)
    # A cell of the grid has a x a patches of p x p pixels.
    v = v.reshape(len(v), rows, a, p, columns, a, p, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    digits = v.reshape(*v.shape[:5], -1)
    return (digits * _places(digits.shape[-1], levels, digits.ndim)).sum(-1).reshape(len(v), *spec["tokens"].shape)


def to_pictures(tokens: Array, spec: Spec) -> Array:
    """Returns the images, float32 [B, H, W, C] in [-1, 1], of tokens, int32 [B, *grid]: the inverse of `to_tokens`.

    spec: features of the data, with "image" and "tokens".
    """
    levels, (rows, columns, a, p) = spec["tokens"].levels or 2, _divide(spec)
    height, width, channels = spec["image"].shape
    places = _places(p * p * channels, levels, 6)
    v = tokens.reshape(-1, rows, columns, a, a, 1) // places % levels
    v = v.reshape(-1, rows, columns, a, a, p, p, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return scale_levels(v.reshape(-1, height, width, channels).astype(jnp.float32), levels - 1)


def show_samples(arrays: Mapping[str, A], spec: Spec) -> dict[str, A | Array]:
    """Converts "samples" to images, float32 [n, H, W, C] in [-1, 1], if they are tokens of patches.

    Otherwise the arrays are returned unchanged. arrays: the result of a model's `generate`. spec: features of the run's
    data.
    """
    tokens, samples = spec.get("tokens"), arrays["samples"]
    if tokens is None or tokens.levels is None or not jnp.issubdtype(samples.dtype, jnp.integer):
        return dict(arrays)
    return {**arrays, "samples": to_pictures(jnp.asarray(samples), spec)}


def _divide(spec: Spec) -> tuple[int, int, int, int]:
    """Returns (rows, columns, a, p). The grid has rows x columns cells, each of a x a patches of p x p pixels."""
    rows, columns, *parts = spec["tokens"].shape
    a = math.isqrt(math.prod(parts))
    return rows, columns, a, spec["image"].shape[0] // (rows * a)


def _places(digits: int, levels: int, ndim: int) -> Array:
    """Returns the place value of each digit of a token, levels^i, int32 [1, ..., 1, digits] with `ndim` axes."""
    return (levels ** jnp.arange(digits, dtype=jnp.int32)).reshape(*[1] * (ndim - 1), -1)
