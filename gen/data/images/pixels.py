"""Encoded images -> uint8 arrays, with Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of others, Pillow may run programs (EPS)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def decode(encoded: bytes | Path | np.ndarray, size: int | None, channels: int) -> np.ndarray:
    """uint8 [height, width, channels] of an encoded image, of a file or of grey pixels uint8 [height, width].

    With `size` the shorter side is resized to it (bicubic, antialiased) and the centre cut out: [size, size, channels].
    Raises ValueError with the reason if the image can't be read.
    """
    with opened(encoded) as image:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # else Pillow warns, and guesses
        image = image.convert(MODES[channels])
        if size is not None:
            image = cropped(image, size)
        return np.asarray(image).reshape(image.height, image.width, channels)


def cropped(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def header(path: Path, thorough: bool) -> tuple[int, int, bool]:
    """(height, width, is greyscale) of a file, without decoding it; `thorough` decodes it all the same, to be sure that
    it can be. Raises ValueError with the reason if not."""
    with opened(path) as image:
        if thorough:
            image.load()
        return image.height, image.width, image.mode in ("1", "L", "LA")


@contextmanager
def opened(encoded: bytes | Path | np.ndarray) -> Iterator[Image.Image]:
    """The image, still undecoded; whatever goes wrong with it becomes a ValueError that says why."""
    try:
        if isinstance(encoded, np.ndarray):
            yield Image.fromarray(encoded)
            return
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS) as image:
            # Pillow only warns up to twice its limit.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a channel: convert it")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"has more than the {Image.MAX_IMAGE_PIXELS} pixels that Pillow thinks safe") from error
    except UnidentifiedImageError as error:
        raise ValueError("is not an image that Pillow can read") from error
    except MemoryError:
        raise
    except Exception as error:
        # Broken files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"can't be read ({error})") from error


def to_bytes(images: np.ndarray) -> np.ndarray:
    """[-1, 1] float -> [0, 255] uint8."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
