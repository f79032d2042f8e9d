"""Pictures that a user gives to sample.py, with --mode inpaint, upscale, colorize and edit."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gen
from benchmarks import inpainting
from gen import sample
from gen.config import Config, load
from gen.core import Request
from gen.data.images import Images
from gen.data.images.pixels import to_bytes
from gen.derived import Encoded
from gen.derived.codec import open_codec
from gen.errors import UserError
from gen.evaluation.image_subject import ImageSubject
from gen.evaluation.plan import open_subject
from gen.evaluation.score import Options
from gen.families.flow import AnyOf, Flow, UNet
from gen.families.grid import GridMLM
from gen.families.tokenizer import FSQ, Tokenizer
from gen.media.image import IMAGE, ImageOptions
from gen.media.pictures import EMBEDDED, known_cells, read_pictures
from gen.metrics.images import ImageSet
from gen.networks.tokenizer import Residual
from gen.networks.transformer import Architecture
from tests.untrained import make_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """An untrained flow of digits with masks."""
    model = Flow(network=UNet((4,)), given=AnyOf(), likelihood_steps=2)
    config = replace(load("flow_digits"), model=model, data=Images(name="digits"))
    return make_run(tmp_path_factory.mktemp("runs") / "given", config)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Pictures in files, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    white = np.zeros((8, 8), np.uint8)
    white[:, 4:] = 255
    pictures = {
        "image": pixels,
        "mask": white,
        "small": pixels[::2, ::2],
        "color": np.stack([pixels] * 3, -1),
        "large": np.full((9, 9), 255, np.uint8),
        "black": np.zeros((8, 8), np.uint8),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    (folder / "text.png").write_text("no picture")
    return {name: str(folder / f"{name}.png") for name in [*pictures, "text", "missing"]}


def test_a_number_of_a_request_that_no_array_can_have_is_refused(workdir):
    with pytest.raises(UserError, match=r"steps is 10{20}; it must be below 2147483648"):
        gen.open(workdir).generate(steps=10**20)


@pytest.mark.slow
def test_inpainting_writes_samples_and_a_manifest_that_makes_them_again(workdir, files, tmp_path):
    asked = [str(workdir), "--mode", "inpaint", "--image", files["image"], "--mask", files["mask"], "--n", "2"]
    assert sample.main([*asked, "--steps", "2", "--out", str(tmp_path)]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        kept = np.asarray(Image.open(files["image"]), np.float32)[:, :4] / 127.5 - 1
        np.testing.assert_array_equal(arrays["samples"][:, :, :4, 0], kept[None].repeat(2, 0))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    # The manifest holds the pictures, so their files are not needed any more.
    assert manifest["medium"]["image"].startswith(EMBEDDED)
    assert sample.main(["--verify", str(tmp_path / "manifest.json")]) == 0


def test_the_other_modes_from_python(workdir, files):
    run = gen.open(workdir)
    same = run.generate(n=1, steps=2, mode="edit", strength=0.0, image=files["image"])["samples"]
    np.testing.assert_array_equal(np.rint((same[0, ..., 0] + 1) * 127.5), np.asarray(Image.open(files["image"])))
    assert run.generate(n=3, steps=2, mode="upscale", image=files["small"])["samples"].shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "inpaint", "image": "image"}, "give --mask FILE"),
        ({"mode": "inpaint", "mask": "mask"}, "give --image FILE"),
        ({"mode": "edit", "image": "image", "mask": "mask"}, "--mask is not used by mode edit; .* --mode inpaint"),
        ({"image": "image"}, "--image is not used by mode generate; .* --mode inpaint or --mode upscale"),
        ({"mode": "inpaint", "image": "color", "mask": "mask"}, "the picture is of 3 channels, and it must be grey"),
        ({"mode": "inpaint", "image": "image", "mask": "color"}, "the mask has colours"),
        ({"mode": "inpaint", "image": "image", "mask": "black"}, "the mask is black, so nothing is left to fill"),
        ({"mode": "inpaint", "image": "image", "mask": "large"}, "the mask has 9x9 pixels, and the run has 8x8"),
        ({"mode": "edit", "image": "large"}, "the picture has 9x9 pixels, and the run has 8x8"),
        ({"mode": "upscale", "image": "large"}, "smaller by a whole factor"),
        ({"mode": "colorize", "image": "image"}, "the run has grey pictures"),
        ({"mode": "edit", "image": "text"}, "--image .*text.png is not an image"),
        ({"mode": "edit", "image": "missing"}, "--image .*missing.png: No such file"),
    ],
)
def test_pictures_that_do_not_fit_are_one_short_error(workdir, files, settings, message):
    named = {name: files.get(value, value) if name != "mode" else value for name, value in settings.items()}
    with pytest.raises(UserError, match=message):
        gen.open(workdir).generate(n=1, steps=1, **named)


def test_a_model_without_modes_takes_no_picture(workdir, files):
    with pytest.raises(UserError, match="the model takes none"):
        IMAGE.check(ImageOptions(image=files["image"]), Request(), gen.open(workdir).trained.view())


def test_a_damaged_picture_of_a_manifest_is_named():
    with pytest.raises(UserError, match="the picture of --image is damaged"):
        read_pictures(EMBEDDED + base64.b64encode(b"no picture").decode(), None)


def test_a_cell_is_known_if_none_of_its_pixels_is_hidden():
    mask = np.ones((1, 4, 6, 1), np.float32)
    mask[0, 3, 2] = 0
    np.testing.assert_array_equal(known_cells(mask, (2, 3))[0], [[True, True, True], [True, False, True]])
    assert known_cells(mask, (2, 3, 4))[0, 1, 1].tolist() == [False] * 4


def test_a_pixel_between_two_cells_belongs_to_both():
    """Strides of 4 make 3x2 cells of 10x7 pixels."""
    mask = np.ones((1, 10, 7, 1), np.float32)
    assert known_cells(mask, (3, 2)).all()
    # Row 3 lies in cells 0 and 1: they end at 10 / 3. Column 3 lies in both columns.
    mask[0, 3, 3] = 0
    np.testing.assert_array_equal(known_cells(mask, (3, 2))[0], [[False, False], [False, False], [True, True]])
    mask[0, 3] = 1
    mask[0, 9, 6] = 0
    np.testing.assert_array_equal(known_cells(mask, (3, 2))[0], [[True, True], [True, True], [True, False]])


@pytest.mark.slow
def test_grids_of_patches_are_inpainted(files, tmp_path):
    data = Images(name="digits", binarize="dynamic", patch=(2,))
    model = GridMLM(network=Architecture(layers=1, width=8, heads=2))
    workdir = make_run(tmp_path / "run", Config(model=model, data=data, steps=5))
    run = gen.open(workdir)
    asked = {"mode": "inpaint", "image": files["image"], "mask": files["mask"]}
    shown = np.asarray(run.trained.to_images(jax.tree.map(jnp.asarray, run.generate(n=3, turns=2, **asked)))["samples"])
    # The left half is kept, as the two levels that the run knows.
    kept = np.where(np.asarray(Image.open(files["image"]))[:, :4] > 127.5, 1.0, -1.0)
    np.testing.assert_array_equal(shown[:, :, :4, 0], kept[None].repeat(3, 0))
    with pytest.raises(UserError, match="the mask has 9x9 pixels, and the run has 8x8"):
        run.generate(n=1, turns=1, **{**asked, "mask": files["large"]})


@pytest.mark.slow
def test_codes_are_inpainted(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = Images(name="digits", train="train[:64]", validation="train[64:96]", test="test[:32]")
    tokenizer = Tokenizer(network=Residual((4,), (2,)), bottleneck=FSQ((3, 2)))
    coded = make_run(tmp_path / "coded", Config(model=tokenizer, data=images, steps=5))
    model = GridMLM(network=Architecture(layers=1, width=8, heads=2))
    data = Encoded(data=images, tokenizer=str(coded), batch_size=8)
    run = gen.open(make_run(tmp_path / "run", Config(model=model, data=data, steps=5)))
    asked = {"n": 3, "turns": 2, "mode": "inpaint", "image": files["image"]}
    samples = run.generate(**asked, mask=files["mask"])["samples"]
    pixels = np.asarray(Image.open(files["image"]), np.float32)[None, ..., None] / 127.5 - 1
    codes = np.asarray(open_codec(coded).encode(jnp.asarray(pixels)))
    half = codes.shape[2] // 2
    np.testing.assert_array_equal(samples[:, :, :half], codes[:, :, :half].repeat(3, 0))
    with pytest.raises(UserError, match="the mask has 9x9 pixels, and the run has 8x8"):
        run.generate(**asked, mask=files["large"])
    # Many pictures are completed at a time.
    monkeypatch.setattr(inpainting, "CHUNK", 2)
    path = run.trained.workdir
    subject = open_subject(path, Options((path,), request=("turns=2",)))
    assert isinstance(subject, ImageSubject)
    some, hidden = ImageSet(subject.held_out.image[:3]), inpainting.hide_centre((8, 8))
    made = inpainting.complete(subject, some, hidden, 2, labelled=False).each
    assert made.shape == (3, 2, 8, 8, 1)
    np.testing.assert_array_equal(made[:, :, ~hidden], some.image[:, None][:, :, ~hidden].repeat(2, 1))
    assert (made[:, 0] != made[:, 1]).any() and (made[:, 0] != some.image).any()


def test_pixels_that_are_not_numbers_are_black():
    values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(to_bytes(values), [0, 0, 128, 255, 255, 0, 255, 0])
