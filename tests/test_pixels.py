"""How an image file becomes pixels: its orientation, its transparency, and the crop of very thin images."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from gen.data.images import pixels
from gen.errors import UserError
from tests.datasets import images_of, read_split, write_image

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def orient(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff", *(["avif"] if pixels.AVIF else [])])
def test_images_are_upright_as_viewers_show_them(tmp_path, kind):
    stored = RNG.integers(0, 256, (6, 10, 3), np.uint8)
    for number in range(1, 9):
        path = write_image(tmp_path / f"{number}.{kind}", stored, exif=orient(number))
        with Image.open(path) as image:
            shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(pixels.decode(path, None, 3), shown, err_msg=str(number))
        # The folder's size is known from the headers alone.
        header = pixels.read_header(path, thorough=False)
        assert (header.height, header.width) == shown.shape[:2], number
        # Pillow turns TIFF files itself, as it always did.
        assert header.turned == (number > 1 and kind != "tiff")


def test_a_folder_says_how_many_images_it_turns(tmp_path, capsys):
    stored = RNG.integers(0, 256, (4, 6, 3), np.uint8)
    for i, number in enumerate((6, 6, 8)):
        write_image(tmp_path / f"{i}.png", stored, exif=orient(number))
    data = images_of(tmp_path).build()
    assert data.spec["image"].shape == (6, 4, 3)
    assert "3 images are turned upright" in capsys.readouterr().err
    # Images that are decoded when needed are not hashed, so the turn belongs to their digest.
    large = images_of(tmp_path, in_memory=0).build().digest
    for i in range(3):
        write_image(tmp_path / f"{i}.png", stored.transpose(1, 0, 2), exif=orient(1))
    assert images_of(tmp_path, in_memory=0).build().digest != large


def test_damaged_metadata_leave_an_image_as_it_is_stored(tmp_path):
    stored = RNG.integers(0, 256, (4, 6, 3), np.uint8)
    path = write_image(tmp_path / "a.png", stored, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff broken")
    np.testing.assert_array_equal(pixels.decode(path, None, 3), stored)
    assert not pixels.read_header(path, thorough=False).turned


def write_transparent(path: Path, mode: str) -> np.ndarray:
    """Writes an image whose alpha is 0 outside of a square, with arbitrary colours there. Returns bool [8, 8]: the square."""
    inside = np.zeros((8, 8), bool)
    inside[2:6, 2:6] = True
    if mode in ("P", "RGB", "L"):  # one colour is transparent
        colors = RNG.integers(8, 200, (8, 8, 3), np.uint8)
        colors[~inside] = 7
        image = Image.fromarray(colors).convert(mode) if mode != "P" else Image.fromarray(inside.astype(np.uint8), "P")
        if mode == "P":
            image.putpalette([7, 250, 3, 200, 30, 30])
        image.save(path, transparency={"P": 0, "L": 7, "RGB": (7, 7, 7)}[mode])
    else:
        values = RNG.integers(0, 256, (8, 8, 4), np.uint8)
        values[..., 3] = 255 * inside
        Image.fromarray(values).convert(mode).save(path)
    return inside


@pytest.mark.parametrize(("name", "color"), [("white", [255] * 3), ("black", [0] * 3), ("#102030", [16, 32, 48])])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_show_the_background(tmp_path, mode, name, color):
    path = tmp_path / "a.png"
    inside = write_transparent(path, mode)
    found = pixels.decode(path, None, 3, pixels.parse_color(name))
    np.testing.assert_array_equal(found[~inside], np.broadcast_to(color, (48, 3)))
    # Opaque pixels stay exactly as they are.
    with Image.open(path) as image:
        np.testing.assert_array_equal(found[inside], np.asarray(image.convert("RGBA"))[..., :3][inside])


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path):
    path = write_image(tmp_path / "a.png", np.array([[[200, 100, 0, 128]]], np.uint8))
    # 255 - (255 - color) * 128 / 255
    np.testing.assert_allclose(pixels.decode(path, None, 3)[0, 0], [227, 177, 127], atol=1)


def test_a_folder_says_and_takes_the_background(tmp_path, capsys):
    write_transparent(tmp_path / "a.png", "LA")
    data = images_of(tmp_path).build()
    assert data.spec["image"].shape == (8, 8, 1)
    assert "1 images with transparency are put on the colour white (--data.background)" in capsys.readouterr().err
    red = images_of(tmp_path, background="red").build()
    assert read_split(red, "train")["image"][0, 0, 0].tolist() == [255, 0, 0]
    assert red.digest != data.digest
    not_held = images_of(tmp_path, background="red", in_memory=0).build()
    np.testing.assert_array_equal(read_split(not_held, "train")["image"], read_split(red, "train")["image"])
    with pytest.raises(UserError, match="'reddish' is not a colour"):
        images_of(tmp_path, background="reddish").build()


@pytest.mark.parametrize("shape", [(1, 400_000), (400_000, 1), (3, 200_001)])
def test_a_very_thin_image_takes_little_memory_and_time(tmp_path, monkeypatch, shape):
    # A ramp along the longer side: only the middle remains.
    long = max(shape)
    ramp = (np.arange(long) * 256 // long).astype(np.uint8)
    path = write_image(tmp_path / "thin.png", np.broadcast_to(ramp if shape[1] == long else ramp[:, None], shape))
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def record(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        sizes.append(size)
        return resize(image, size, resample)

    monkeypatch.setattr(Image.Image, "resize", record)
    begun = time.process_time()
    found = pixels.decode(path, 64, 3)
    assert time.process_time() - begun < 2
    # Without the crop, the enlarged image would have 64 times 25,600,000 pixels.
    assert [min(size) for size in sizes] == [64]
    assert max(sizes[0]) < 9 * 64
    assert found.shape == (64, 64, 3)
    np.testing.assert_allclose(found, 127.5, atol=1)


def test_an_image_of_usual_shape_is_resized_as_a_whole(tmp_path):
    # The bytes are those of a resize and then a crop, so data sets keep their digests.
    stored = RNG.integers(0, 256, (10, 79, 3), np.uint8)
    found = pixels.decode(write_image(tmp_path / "a.png", stored), 5, 3)
    whole = Image.fromarray(stored).resize((40, 5), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(whole)[:, 17:22])


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "L", "RGB"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_transparent_image_is_flattened_in_strips_as_in_one(mode, orientation, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    source = Image.fromarray(rng.integers(0, 256, (9, 5, 4), np.uint8)).convert(mode if mode != "P" else "RGB")
    if mode == "P":
        source = source.quantize(16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    transparent = {"P": bytes(range(0, 256, 16)), "L": 7, "RGB": (1, 2, 3)}
    options = {"transparency": transparent[mode]} if mode in transparent else {}
    source.save(tmp_path / "a.png", exif=exif, **options)
    background = (10, 200, 30)
    for channels in (1, 3):
        monkeypatch.setattr(pixels, "STRIP_PIXELS", 2**20)
        whole = pixels.decode(tmp_path / "a.png", None, channels, background)
        monkeypatch.setattr(pixels, "STRIP_PIXELS", 10)
        assert np.array_equal(whole, pixels.decode(tmp_path / "a.png", None, channels, background))
        with Image.open(tmp_path / "a.png") as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
        behind = Image.new("RGBA", upright.size, (*background, 255))
        expected = np.asarray(Image.alpha_composite(behind, upright).convert("L" if channels == 1 else "RGB"))
        assert np.array_equal(whole.squeeze(), expected.squeeze())
