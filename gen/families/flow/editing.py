"""Reads and checks the pictures that a user gives to a flow: to inpaint, upscale, colorize, edit or translate."""

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
    """Returns the values that the user's pictures fix in the n samples, [n, *axes, C], and their mask, [n, *axes, 1].

    Returns None in the modes `generate` and `edit`, which fix no values. *axes are the axes of positions, here (height,
    width).

    given: "image" [m, height, width, channels] in [-1, 1], and in mode `inpaint` "mask" [m, height, width, 1], 1 where the
    picture is kept. Sample i uses picture i modulo m. shape: (*axes, C) of one sample. dtype: of the result.

    Raises: UserError if pictures are missing, or if the mode needs another size or number of channels.
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
    """Returns a picture for each of the request's n samples, [n, *shape], from given[name], [m, *shape].

    Sample i gets picture i modulo m.

    Raises: UserError if the array is missing from `given`, or if its pictures have another shape.
    """
    x = take(given, name, request, dtype)
    check_shape("the picture", x.shape[1:], shape)
    return x


def take(given: Mapping[str, Array], name: str, request: Request, dtype: DTypeLike) -> Array:
    """Returns given[name] [m, ...] with one entry for each of the n samples, [n, ...]: sample i gets entry i modulo m.

    Raises: UserError if `given` has no array of this name.
    """
    if name not in given:
        # sample.py has no option --source: --image names the source if the run is on pairs.
        option = "image" if name == "source" else name
        raise UserError(f"mode {request.mode} needs a picture: give --{option} FILE")
    x = jnp.asarray(given[name], dtype)
    return x[jnp.arange(request.n) % len(x)]
