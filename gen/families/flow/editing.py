"""The pictures that a user gives to a flow: checks them, and turns them into the known values of the samples."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array
from gen.data.images.pixels import check_shape, show_size
from gen.errors import UserError
from gen.families.flow.masks import Known, enlarge, show, without_color
from gen.families.flow.sampling import Request


def read_known(request: Request, given: Mapping[str, Array], shape: tuple[int, ...], dtype: DTypeLike) -> Known | None:
    """Returns the known values of n samples and their mask, [n, *axes, C] and [n, *axes, 1], for the request's mode.

    None: the mode is `generate` or `edit`, which fix no values.

    given: "image" [m, height, width, channels] in [-1, 1], and for inpainting "mask" [m, height, width, 1], 1 where the picture is
    known. Sample i uses picture i modulo m. shape: (*axes, C) of one sample.

    Raises: UserError if they are missing, or have another size or number of channels than the request's mode needs.
    """
    if request.mode in ("generate", "edit"):
        return None
    x = take(given, "image", request, dtype)
    match request.mode:
        case "inpaint":
            mask = take(given, "mask", request, dtype)
            check_shape("the picture", x.shape[1:], shape)
            check_shape("the mask", mask.shape[1:], (*shape[:-1], 1))
            return show(x, mask == 1)
        case "colorize":
            if shape[-1] == 1:
                raise UserError("the run has grey pictures, so it has no colours to add")
            # The picture may have colours. Only their mean is read.
            check_shape("the picture", (*x.shape[1:-1], shape[-1]), shape)
            return without_color(x, shape[-1])
    # Mode upscale: each pixel of the smaller picture is the mean of a square of pixels of the sample.
    factor = shape[0] // x.shape[1]
    if factor < 2 or tuple(factor * size for size in x.shape[1:-1]) != shape[:-1]:
        raise UserError(
            f"the picture has {show_size(x.shape[1:])} pixels, and the samples have {show_size(shape)}; to upscale, give a picture that "
            "is smaller by a whole factor"
        )
    check_shape("the picture", (*shape[:-1], x.shape[-1]), shape)
    return jax.vmap(lambda x: enlarge(x, factor))(x)


def read_picture(
    given: Mapping[str, Array], name: str, request: Request, shape: tuple[int, ...], dtype: DTypeLike
) -> Array:
    """Returns the given pictures of this name, [n, *shape]. given: as in `read_known`. Raises: UserError as `read_known`."""
    x = take(given, name, request, dtype)
    check_shape("the picture", x.shape[1:], shape)
    return x


def take(given: Mapping[str, Array], name: str, request: Request, dtype: DTypeLike) -> Array:
    """Returns one given array for each sample, [n, ...]. Raises: UserError if there is none."""
    if name not in given:
        raise UserError(f"mode {request.mode} needs a picture: give --{name} FILE")
    x = jnp.asarray(given[name], dtype)
    # A single picture is used for all samples. With several pictures, samples use them in turn.
    return x[jnp.arange(request.n) % len(x)]
