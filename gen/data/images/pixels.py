"""Decodes images to uint8 arrays with Pillow, and converts arrays in [-1, 1] to uint8."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow runs other programs to read some formats, such as EPS. It tries no formats but these.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Number of channels -> mode of Pillow."""


class Header(NamedTuple):
    """Facts of an image file that can be read without decoding it."""

    height: int
    width: int
    grey: bool


def decode(encoded: bytes | Path | np.ndarray, size: int | None, channels: int) -> np.ndarray:
    """Returns an image as uint8 [height, width, channels].

    encoded: content of an image file, its path, or pixels uint8 [height, width] or [height, width, 3].
    size: resize the shorter side to it (bicubic, antialiased) and crop the centre to [size, size]. None: keep the size.

    Raises: ValueError with the reason if the image cannot be read.
    """
    with open_image(encoded) as image:
        # Pillow would warn, and guess the transparent colour.
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert(MODES[channels])
        if size is not None:
            image = crop_centre(image, size)
        return np.asarray(image).reshape(image.height, image.width, channels)


def crop_centre(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size`, and crops the square in the centre."""
    # max(): rounding must not make a side shorter than the crop.
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_header(path: Path, thorough: bool) -> Header:
    """Reads the size and the colours of an image file.

    thorough: also decode the image, to be sure that it can be decoded.

    Raises: ValueError with the reason if it cannot be read.
    """
    with open_image(path) as image:
        if thorough:
            image.load()
        return Header(image.height, image.width, image.mode in ("1", "L", "LA"))


@contextmanager
def open_image(encoded: bytes | Path | np.ndarray) -> Iterator[Image.Image]:
    """Yields the image, not yet decoded. Raises: ValueError with the reason for anything that goes wrong inside the block."""
    try:
        if isinstance(encoded, np.ndarray):
            yield Image.fromarray(encoded)
            return
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS) as image:
            # Pillow itself only warns for images of up to twice its limit.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            # Converting them to 8 bits would clip their values without a warning.
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits per channel: convert it")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"has more than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow thinks safe") from error
    except UnidentifiedImageError as error:
        raise ValueError("is not an image that Pillow can read") from error
    except MemoryError:
        raise
    except Exception as error:
        # Broken files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"cannot be read ({error})") from error


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Maps floats in [-1, 1] to uint8 in [0, 255], by rounding. Values outside of [-1, 1] are clipped."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
