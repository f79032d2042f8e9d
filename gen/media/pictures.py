"""The pictures of --image and --mask of sample.py: reads files into options, and options into arrays for a model."""

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
"""Names of the options that are pictures, and of the arrays that a model gets for them."""
EMBEDDED = "data:image/png;base64,"
"""Prefix of an option's value that is a PNG in base64 instead of a path. Manifests store pictures in this form."""
MAX_PIXELS = 2**24
"""Maximum number of pixels of a given picture. The manifest of the samples stores the whole picture."""
Options = TypeVar("Options")


def embed_pictures(options: Options) -> Options:
    """Returns the options with the paths of --image and --mask replaced by the pictures as text, see EMBEDDED.

    Raises: UserError if a picture can't be read.
    """
    given = {name: file for name in PICTURES if (file := getattr(options, name)) is not None}
    files = {name: file for name, file in given.items() if not file.startswith(EMBEDDED)}
    return replace(options, **{name: embed(name, file) for name, file in files.items()}) if files else options  # pyright: ignore


def embed(name: str, file: str) -> str:
    """Returns the picture in a file as text, EMBEDDED and a PNG in base64. name: name of the option, for errors.

    Raises: UserError if it can't be read.
    """
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
    """Decodes a picture from the text that `embed` returned, uint8 [height, width, 1 or 3].

    name: name of the option, for errors.

    Raises: UserError if the text is damaged.
    """
    try:
        content = base64.b64decode(embedded.removeprefix(EMBEDDED), validate=True)
        with pixels.open_image(content) as image:
            channels = 1 if image.mode == "L" else 3
        return pixels.decode(content, None, channels)
    except ValueError as error:
        raise UserError(f"the picture of --{name} is damaged: {error}") from None


def read_pictures(image: str | None, mask: str | None) -> dict[str, np.ndarray]:
    """Returns the given pictures as arrays: {"image": float32 [1, H, W, C] in [-1, 1], "mask": float32 [1, H, W, 1]}.

    "mask" is 1 where the image is kept (black in the file), and 0 where it is filled (white in the file).

    image, mask: texts from `embed`. None: not given.

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
    """Returns whether each token of a grid is known, bool [1, *shape]: whether all pixels of its cell are known.

    mask: [1, height, width, 1], 1 where a pixel is known. shape: (rows, columns, ...) of the grid. If the height is not
    a multiple of the rows, a pixel on the border between two cells belongs to both. The same holds for columns.
    """
    rows, columns = shape[:2]
    hidden = (mask[0, ..., 0] != 1).astype(int)
    cells = cover(rows, mask.shape[1]) @ hidden @ cover(columns, mask.shape[2]).T
    known = cells == 0
    return np.broadcast_to(known.reshape(1, rows, columns, *(1,) * (len(shape) - 2)), (1, *shape))


def cover(cells: int, pixels: int) -> np.ndarray:
    """Divides one axis into equal cells, and also into equal pixels. Returns which cells overlap which pixels.

    cells, pixels: their numbers. The result is int [cells, pixels], 1 for an overlap and otherwise 0.
    """
    # Edges of cells and pixels as whole numbers, on an axis of length cells * pixels.
    cell, pixel = np.arange(cells)[:, None] * pixels, np.arange(pixels)[None] * cells
    return ((pixel < cell + pixels) & (cell < pixel + cells)).astype(int)


def check_given(given: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Raises: UserError unless `given` has "image" [m, H, W, C] and "mask" [1, H, W, 1]. shape: (H, W, C)."""
    pixels.check_shape("the picture", given["image"].shape[1:], shape)
    pixels.check_shape("the mask", given["mask"].shape[1:], (*shape[:2], 1))


def check_pictures(request: Request, image: str | None, mask: str | None, paired: bool) -> None:
    """Raises: UserError if the request's mode needs a picture that is missing, or does not use a picture that is given.

    Also raises UserError if the mode is for scores of music. image, mask: values of --image and --mask. None: not
    given. paired: whether the run was trained on pairs. If so, --image is the source, which may be missing.
    """
    modes = request.pictures
    mode = getattr(request, "mode", "generate")
    if mode in request.scores and mode not in modes:
        raise UserError(f"mode {mode} is for scores, and the run has pictures; choose another --mode")
    taken = modes.get(mode, ())
    # For a model of pairs, --image is the source. It may be missing: validation examples are then translated.
    is_source = paired and "source" in taken
    for name, value in {"image": None if is_source else image, "mask": mask}.items():
        if name in taken and value is None:
            raise UserError(f"mode {mode} needs a picture: give --{name} FILE")
        if name not in taken and value is not None:
            able = [f"--mode {other}" for other, names in modes.items() if name in names]
            fix = f"the fix: {' or '.join(able)}" if able else f"the model takes none, so leave --{name} out"
            raise UserError(f"--{name} is not used by mode {mode}; {fix}")
