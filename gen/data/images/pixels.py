"""Decodes images to uint8 arrays with Pillow, and converts arrays in [-1, 1] to uint8."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError, features

from gen.errors import UserError
from gen.files import check_regular

Color = tuple[int, int, int]
"""Red, green and blue in [0, 255]."""

AVIF = bool(features.check("avif"))
"""Whether the installed Pillow can read AVIF."""
# Pillow runs other programs to read some formats, such as EPS. It tries no formats but these.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *(("AVIF",) if AVIF else ()))
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Number of channels -> mode of Pillow."""
WHITE: Color = (255, 255, 255)
MAX_ASPECT = 8
"""If the longer side of an image is more than this number times the shorter side, it is cropped to this ratio before it
is resized."""
LARGE_PIXELS = 2**24
"""Images with more pixels are decoded one at a time."""
STRIP_PIXELS = 2**20
"""The transparency of an image is replaced in strips of about this number of pixels, to bound the memory."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""{orientation in the EXIF data: transformation that makes the image upright}. Other numbers need none. EXIF 2.32, section 4.6.4."""


_large = threading.Lock()


class Header(NamedTuple):
    """Facts of an image file that can be read without decoding it."""

    height: int
    """Height of the upright image, in pixels."""
    width: int
    """Width of the upright image, in pixels."""
    grey: bool
    turned: bool
    """Whether the stored pixels have to be turned or mirrored to show the image upright."""
    alpha: bool
    """Whether pixels may be transparent."""


def decode(
    encoded: bytes | Path | np.ndarray, size: int | None, channels: int, background: Color = WHITE
) -> np.ndarray:
    """Returns an image as uint8 [height, width, channels], upright as its EXIF orientation says.

    encoded: content of an image file, its path, or pixels uint8 [height, width] or [height, width, 3].
    size: resize the shorter side to this number of pixels (bicubic, antialiased) and crop the centre to [size, size].
        None: keep the size.
    channels: 1 (grey), 3 (RGB) or 4 (RGBA).
    background: the colour behind transparent pixels. It has no effect on 4 channels, which keep the transparency.

    Raises: ValueError with the reason if the image cannot be read.
    """
    with open_image(encoded) as image, _alone(image):
        # Pillow turns TIFF files here, and a PNG file may hold its orientation after its pixels.
        image.load()
        turn = UPRIGHT.get(orientation(image))
        upright = flatten(image, channels, background)
        upright = upright if turn is None else upright.transpose(turn)
        if size is not None:
            upright = crop_centre(upright, size)
        return np.asarray(upright).reshape(upright.height, upright.width, channels)


@contextmanager
def _alone(image: Image.Image) -> Iterator[None]:
    """Lets only one thread at a time decode a large image, because it may take 400 MB of memory. Small images do not wait."""
    if image.width * image.height <= LARGE_PIXELS:
        yield
        return
    with _large:
        yield


def parse_color(text: str) -> Color:
    """Parses a colour, given by its name, such as black, or as #RRGGBB. Raises: UserError if the text is neither."""
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UserError(f"--data.background {text!r} is not a colour; give a name such as black, or #RRGGBB") from None
    return red, green, blue


def orientation(image: Image.Image) -> int:
    """Returns the orientation in the EXIF or XMP data of an image, from 1 (upright) to 8. It reads no pixels."""
    try:
        # Not image.getexif(): for a PNG file it would decode the image, because metadata may come after the pixels.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Damaged metadata make Pillow raise nearly anything. Viewers show such an image as it is stored.
        return 1
    return value if value in UPRIGHT else 1


def flatten(image: Image.Image, channels: int, background: Color) -> Image.Image:
    """Converts an image to 1, 3 or 4 channels. With 1 or 3, transparent pixels show the background."""
    if not (image.has_transparency_data and channels != 4):
        return image.convert(MODES[channels])
    flat = Image.new(MODES[channels], image.size)
    # In strips: three more copies of a whole image could take more than a gigabyte.
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        # A transparent pixel has a colour too, but it is arbitrary, and no viewer shows it.
        part = image.crop(box).convert("RGBA")
        behind = Image.new("RGBA", part.size, (*background, 255))
        flat.paste(Image.alpha_composite(behind, part).convert(MODES[channels]), box)
    return flat


def crop_centre(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size`, and crops the square in the centre."""
    short, long = sorted(image.size)
    if long > MAX_ASPECT * short:
        # Without a crop, one row of 400,000 pixels would become 64 rows of 25,600,000. The new length has the same parity, so that the
        # centre stays the same.
        most = MAX_ASPECT * short + (long - MAX_ASPECT * short) % 2
        width, height = (min(side, most) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    # max(): rounding must not make a side shorter than the crop.
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_header(path: Path, thorough: bool) -> Header:
    """Reads the size, the kind of colours and the orientation of an image file.

    thorough: also decode the image, to be sure that it can be decoded.

    Raises: ValueError with the reason if it cannot be read.
    """
    with open_image(path) as image:
        grey, alpha = image.mode in ("1", "L", "LA"), image.has_transparency_data
        # Pillow itself turns TIFF files, and their size here is already the one that they will have.
        turn = 1 if image.format == "TIFF" else orientation(image)
        # Orientations from 5 on exchange rows and columns.
        width, height = image.size if turn < 5 else image.size[::-1]
        if thorough:
            with _alone(image):
                image.load()
        return Header(height, width, grey, turn != 1, alpha)


@contextmanager
def open_image(encoded: bytes | Path | np.ndarray) -> Iterator[Image.Image]:
    """Yields the opened image, whose pixels are not decoded yet. Raises: ValueError with the reason for anything that goes wrong inside the block."""
    try:
        if isinstance(encoded, np.ndarray):
            yield Image.fromarray(encoded)
            return
        if isinstance(encoded, Path):
            check_regular(encoded)  # another program may have put a pipe in the place of a listed file
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS) as image:
            # Pillow itself only warns for images of up to twice its limit.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            # Pillow would clip such values to 8 bits without a warning.
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
    """Maps floats in [-1, 1] to uint8 in [0, 255], by rounding. Values outside of [-1, 1] are clipped, and NaN is 0, which is black."""
    # A model that has diverged makes NaN.
    known = np.nan_to_num(images, nan=-1.0)
    return np.rint((np.clip(known, -1, 1) + 1) * 127.5).astype(np.uint8)


def check_shape(what: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises: UserError if a picture has not the wanted size or number of channels.

    what: name of the picture, for the error. found, wanted: (height, width, channels).
    """
    if found[:-1] != wanted[:-1]:
        raise UserError(f"{what} has {show_size(found)} pixels, and the run has {show_size(wanted)}; resize it")
    if found[-1] != wanted[-1]:
        kinds = ("grey" if channels == 1 else f"of {channels} channels" for channels in (found[-1], wanted[-1]))
        raise UserError("{} is {}, and it must be {}; convert it".format(what, *kinds))


def show_size(shape: tuple[int, ...]) -> str:
    """Returns "28x28" for a picture [height, width, channels]."""
    return "x".join(map(str, shape[:-1]))
