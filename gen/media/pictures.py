"""Pictures that a user gives to a model: --image and --mask of sample.py, read from files into its options and into arrays."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from PIL import Image

from gen.core import Request
from gen.data.images import pixels
from gen.errors import UserError
from gen.files import check_regular, expand_user

PICTURES = ("image", "mask")
"""Names of the options that are pictures. The arrays that a model gets have the same names."""
EMBEDDED = "data:image/png;base64,"
"""Prefix of an option's value that is the picture itself and not its file. Manifests store pictures in this form."""
MAX_PIXELS = 2**24
"""Upper bound on the pixels of a given picture. A manifest holds the whole picture."""
Options = TypeVar("Options")


def embed_pictures(options: Options) -> Options:
    """Replaces the files of --image and --mask in the options by the pictures themselves, in text form.

    Raises: UserError if one of them can't be read.
    """
    given = {name: file for name in PICTURES if (file := getattr(options, name)) is not None}
    files = {name: file for name, file in given.items() if not file.startswith(EMBEDDED)}
    return replace(options, **{name: embed(name, file) for name, file in files.items()}) if files else options  # pyright: ignore


def embed(name: str, file: str) -> str:
    """Returns the picture in a file as text. name: of the option. Raises: UserError if it can't be read."""
    path = expand_user(file)
    try:
        check_regular(path)
        # The size is checked before decoding, because a small file may unpack to gigabytes.
        header = pixels.read_header(path, thorough=False)
        if header.height * header.width > MAX_PIXELS:
            raise ValueError(f"has more than {MAX_PIXELS:,} pixels")
        picture = pixels.decode(path, None, 1 if header.grey else 3)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"--{name} {file}: No such file or directory") from None
    except OSError as error:
        raise UserError(f"--{name} {file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--{name} {file} {error}") from None
    # Only the pixels are kept: the metadata of a photograph may say where it was taken.
    content = io.BytesIO()
    Image.fromarray(picture[..., 0] if header.grey else picture).save(content, format="PNG")
    return EMBEDDED + base64.b64encode(content.getvalue()).decode()


def extract(name: str, embedded: str) -> np.ndarray:
    """Returns an embedded picture, uint8 [height, width, 1 or 3]. name: of the option. Raises: UserError if it is damaged."""
    try:
        content = base64.b64decode(embedded.removeprefix(EMBEDDED), validate=True)
        with pixels.open_image(content) as image:
            channels = 1 if image.mode == "L" else 3
        return pixels.decode(content, None, channels)
    except ValueError as error:
        raise UserError(f"the picture of --{name} is damaged: {error}") from None


def read_pictures(image: str | None, mask: str | None) -> dict[str, np.ndarray]:
    """Returns {"image": float32 [1, height, width, C] in [-1, 1], "mask": float32 [1, height, width, 1]} of embedded pictures.

    The mask is 1 where the picture is known, which is its black part, and 0 in the white part.

    Raises: UserError if the mask has colours, or no white part.
    """
    found: dict[str, np.ndarray] = {}
    if image is not None:
        found["image"] = extract("image", image)[None].astype(np.float32) / 127.5 - 1
    if mask is not None:
        white = extract("mask", mask)
        if white.shape[-1] != 1:
            raise UserError("the mask has colours; give a grey picture: white is filled, and black is kept")
        # Lossy formats, such as JPEG, change black to nearly black, so the mask is thresholded.
        found["mask"] = (white[None] < 128).astype(np.float32)
        if found["mask"].all():
            raise UserError("the mask is black, so nothing is left to fill; make the part to fill white")
    return found


def known_cells(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns which tokens of a grid are known, bool [1, *shape]. A token is known if all pixels of its cell are known.

    mask: [1, height, width, 1], 1 where a pixel is known. shape: (rows, columns, ...) of the grid. If they do not divide the pixels,
    a pixel between two cells belongs to both.
    """
    rows, columns = shape[:2]
    hidden = (mask[0, ..., 0] != 1).astype(int)
    cells = cover(rows, mask.shape[1]) @ hidden @ cover(columns, mask.shape[2]).T
    known = cells == 0
    return np.broadcast_to(known.reshape(1, rows, columns, *(1,) * (len(shape) - 2)), (1, *shape))


def cover(cells: int, pixels: int) -> np.ndarray:
    """Returns which pixels of an axis each cell covers, as 0 or 1, int [cells, pixels]."""
    # Both lie on an axis of length cells * pixels, on which all edges are whole numbers.
    cell, pixel = np.arange(cells)[:, None] * pixels, np.arange(pixels)[None] * cells
    return ((pixel < cell + pixels) & (cell < pixel + cells)).astype(int)


def check_given(given: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Raises: UserError if the given "image" or "mask" does not have the size and the channels of images [height, width, C]."""
    pixels.check_shape("the picture", given["image"].shape[1:], shape)
    pixels.check_shape("the mask", given["mask"].shape[1:], (*shape[:2], 1))


def check_pictures(request: Request, image: str | None, mask: str | None, paired: bool) -> None:
    """Raises: UserError if a picture is missing that the request's mode needs, or if one is given that it does not use.

    paired: whether the run was trained on pairs.
    """
    modes = request.pictures
    mode = getattr(request, "mode", "generate")
    if mode in request.scores and mode not in modes:
        raise UserError(f"mode {mode} is for scores, and the run has pictures; choose another --mode")
    taken = modes.get(mode, ())
    # The image may be the source of a pair. Without it, validation examples are translated.
    is_source = paired and "source" in taken
    for name, value in {"image": None if is_source else image, "mask": mask}.items():
        if name in taken and value is None:
            raise UserError(f"mode {mode} needs a picture: give --{name} FILE")
        if name not in taken and value is not None:
            able = [f"--mode {other}" for other, names in modes.items() if name in names]
            fix = f"the fix: {' or '.join(able)}" if able else f"the model takes none, so leave --{name} out"
            raise UserError(f"--{name} is not used by mode {mode}; {fix}")
