"""Image data sets of a folder: order, classes, sizes, unreadable images, links, and the cache."""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen.core import Feature
from gen.data.images import Images, pixels
from gen.errors import UserError
from tests.datasets import assert_same, check_contract, images_of, read_split, write_image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture
def pets(tmp_path) -> Path:
    """Returns a folder of twelve random RGB images of 6 x 6 in two classes."""
    for i, pixel in enumerate(np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8)):
        write_image(tmp_path / "pets" / ("cat" if i % 3 else "dog") / f"{i}.png", pixel)
    return tmp_path / "pets"


def test_the_digest_depends_on_the_images_and_their_shape_alone(pets):
    digest = images_of(pets).build().digest
    assert images_of(pets).build().digest == digest
    assert images_of(pets, batch_size=3, flip=True).build().digest == digest
    large = images_of(pets, in_memory=0).build().digest
    assert images_of(pets, in_memory=0).build().digest == large
    assert images_of(pets, test="train[:3]").build().digest != digest
    assert images_of(pets, colors=1).build().digest != digest
    write_image(pets / "cat" / "1.png", np.zeros((6, 6, 3), np.uint8))
    assert images_of(pets).build().digest != digest
    assert images_of(pets, in_memory=0).build().digest != large


def test_images_are_ordered_by_hash_and_labelled_by_their_folder(pets):
    data = images_of(pets).build()
    assert data.spec == {"image": Feature((6, 6, 3), levels=256), "label": Feature((), "int32", classes=2)}
    found = read_split(data, "train")

    def digest(path: Path) -> str:
        return hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).hexdigest()

    paths = sorted(pets.glob("*/*.png"), key=digest)
    assert len(paths) == 12
    np.testing.assert_array_equal(found["image"], [np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(found["label"], [["cat", "dog"].index(path.parent.name) for path in paths])


def test_a_folder_that_does_not_fit_reads_the_same_images(pets):
    held, read = images_of(pets, batch_size=5).build(), images_of(pets, batch_size=5, in_memory=0).build()
    assert_same(read_split(held, "train"), read_split(read, "train"))
    check_contract(images_of(pets, batch_size=5, in_memory=0).build, 5)


def test_images_without_folders_have_no_label(tmp_path):
    write_image(tmp_path / "a.png", np.full((4, 5), 9, np.uint8))
    data = images_of(tmp_path, batch_size=2).build()
    assert data.spec == {"image": Feature((4, 5, 1), levels=256)}  # all greyscale
    assert "label" not in data.batch(0, 0, range(2))


def test_one_color_image_makes_a_folder_rgb(tmp_path):
    write_image(tmp_path / "a.png", np.full((4, 5), 9, np.uint8))
    write_image(tmp_path / "b.png", np.full((4, 5, 3), 7, np.uint8))
    assert images_of(tmp_path).build().spec["image"].shape == (4, 5, 3)
    assert images_of(tmp_path, colors=1).build().spec["image"].shape == (4, 5, 1)


def test_an_image_next_to_the_class_folders_is_an_error(pets):
    write_image(pets / "lost.png", np.zeros((6, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"lost\.png"):
        images_of(pets).build()


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match="no images"):
        images_of(tmp_path).build()


def test_a_folder_has_only_the_split_train(pets):
    with pytest.raises(UserError, match=r'train \(12\); for instance --data\.train "train\[:80%\]"'):
        Images(name=f"folder:{pets}").build()


def add_unreadable(pets: Path, how: str) -> Path:
    path = pets / "dog" / "unreadable.png"
    if how == "text":
        path.write_text("not a picture")
    elif how == "truncated":
        noise = np.random.default_rng(1).integers(0, 256, (6, 6, 3), np.uint8)
        path.write_bytes(write_image(path, noise).read_bytes()[:90])
    else:
        write_image(path, np.full((6, 6), 40_000, np.uint16))
    return path


@pytest.mark.parametrize("in_memory", [2**31, 0])
@pytest.mark.parametrize("how", ["text", "truncated", "16-bit"])
def test_an_unreadable_image_is_named(pets, how, in_memory):
    path = add_unreadable(pets, how)
    with pytest.raises(UserError) as error:
        list(images_of(pets, in_memory=in_memory).build().evaluation("train", 4))
    assert str(path) in str(error.value)
    assert "--data.skip-bad" in str(error.value)


@pytest.mark.parametrize("how", ["text", "truncated", "16-bit"])
def test_unreadable_images_are_skipped_and_counted(pets, how, caplog):
    add_unreadable(pets, how)
    with caplog.at_level(logging.WARNING):
        data = images_of(pets, skip_bad=True).build()
    assert data.sizes["train"] == 12
    assert len(read_split(data, "train")["row"]) == 12
    assert "skipped 1 of 13" in caplog.text


@pytest.mark.parametrize("limit", [35, 10])  # Pillow itself only warns up to twice its limit
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_named(pets, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=rf"(?s)\.png.*{limit} pixels"):
        images_of(pets).build()


def test_links_to_files_are_followed_and_links_to_folders_are_not(pets, tmp_path, capsys):
    outside = write_image(tmp_path / "outside" / "stored", np.full((6, 6, 3), 77, np.uint8), "PNG")
    (pets / "cat" / "link.png").symlink_to(outside)
    (pets / "cat" / "inside.png").symlink_to(pets / "cat" / "1.png")
    (pets / "bird").symlink_to(outside.parent)
    (pets / "circle").symlink_to(pets)
    (pets / "cat" / "broken.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    (pets / "cat" / "endless.png").symlink_to(tmp_path / "pipe")
    data = images_of(pets).build()
    assert data.sizes["train"] == 14
    assert data.spec["label"].classes == 2
    assert (read_split(data, "train")["image"] == 77).all((1, 2, 3)).sum() == 1
    assert "left out: 2 links to folders, 1 links to nothing, 1 pipes or devices" in capsys.readouterr().err


def test_images_of_different_sizes_need_a_size(pets):
    odd = write_image(pets / "cat" / "odd.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(UserError) as error:
        images_of(pets).build()
    assert f"{odd} is 6x8" in str(error.value)
    assert "6x6" in str(error.value)
    assert "--data.size" in str(error.value)
    assert images_of(pets, size=5).build().spec["image"].shape == (5, 5, 3)


def test_size_crops_the_centre(tmp_path):
    # A ramp from left to right shows which columns remain.
    columns = np.tile(np.arange(0, 80, 10, dtype=np.uint8), (4, 1))
    write_image(tmp_path / "wide.png", columns)
    image = read_split(images_of(tmp_path, size=4).build(), "train")["image"]
    np.testing.assert_array_equal(image[0, :, :, 0], columns[:, 2:6])
    halved = read_split(images_of(tmp_path, size=2).build(), "train")["image"]
    np.testing.assert_allclose(halved[0, :, :, 0], [[25, 45]] * 2, atol=1)


def test_the_second_build_reads_the_cache(pets, monkeypatch):
    first = read_split(images_of(pets).build(), "train")
    monkeypatch.setattr(pixels, "decode", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr(pixels, "read_header", lambda *_: pytest.fail("surveyed again"))
    assert_same(first, read_split(images_of(pets).build(), "train"))


def test_a_changed_file_is_decoded_again(pets):
    for value in (76, 77):
        write_image(pets / "cat" / "same_size.bmp", np.full((6, 6, 3), value, np.uint8))
        assert (read_split(images_of(pets).build(), "train")["image"] == value).all((1, 2, 3)).sum() == 1


def test_a_damaged_cache_is_made_again(pets, cache):
    first = read_split(images_of(pets).build(), "train")
    files = list(cache.rglob("*.npy"))
    assert {file.name for file in files} >= {"image.npy", "label.npy"}
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert_same(first, read_split(images_of(pets).build(), "train"))


def test_a_cache_that_cannot_be_written_is_not_an_error(pets, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(read_split(images_of(pets).build(), "train")["row"]) == 12
