"""gen.data: image sources, batches as functions of (seed, step, row), prefetching."""

import hashlib
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gen.core import Feature
from gen.data.images import Images, pixels
from gen.data.prefetch import prefetch
from gen.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture
def pets(tmp_path) -> Path:
    """Twelve random RGB PNGs of 6 x 6 in two classes."""
    for i, pixel in enumerate(np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8)):
        write(tmp_path / "pets" / ("cat" if i % 3 else "dog") / f"{i}.png", pixel)
    return tmp_path / "pets"


def write(path: Path, pixel: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixel).save(path)
    return path


def of_folder(path: Path, **options: Any) -> Images:
    defaults: Any = {"name": f"folder:{path}", "train": "train", "validation": "train", "test": "train"}
    return Images(**defaults | options)


def together(batches) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def whole(data, split: str) -> dict[str, np.ndarray]:
    """A split without its padding."""
    found = together(data.evaluation(split, 50))
    return {name: value[found["weight"] > 0] for name, value in found.items()}


def same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype, name


def check_contract(config: Images) -> None:
    """Promised of every source, held in memory or not: purity, a permutation an epoch, pixels that match the index."""
    data, again = config.build(), config.build()
    n, size = data.sizes["train"], config.batch_size
    for step in (0, 1, 7):
        batch = data.batch(3, step, range(size))
        pieces = [range(0, 1), range(1, size // 2), range(size // 2, size)]
        same(batch, together(again.batch(3, step, rows) for rows in pieces))
        same({k: v[1::2] for k, v in batch.items()}, data.batch(3, step, range(1, size, 2)))
        np.testing.assert_array_equal(batch["row"], np.arange(size))
        np.testing.assert_array_equal(batch["weight"], np.ones(size))
    run = together(data.batch(3, step, range(size)) for step in range(-(-3 * n // size)))
    epochs = run["index"][: 3 * n].reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(n), (3, 1)))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()
    other = together(data.batch(4, step, range(size)) for step in range(-(-3 * n // size)))
    assert (other["index"] != run["index"]).any()
    assert (other["index"][:n] != epochs[1]).any()  # a seed is not another one, an epoch later
    train = whole(data, "train")
    np.testing.assert_array_equal(run["image"], train["image"][run["index"]])
    np.testing.assert_array_equal(run["label"], train["label"][run["index"]])


def test_the_contract_in_memory():
    check_contract(Images(train="train[:10%]", batch_size=64))


def test_the_contract_on_demand():
    check_contract(Images(train="train[:10%]", batch_size=64, in_memory=0))


def test_a_batch_is_typed_for_the_host():
    batch = Images(batch_size=6).build().batch(0, 0, range(2, 5))
    shapes = {name: (value.dtype.name, value.shape) for name, value in batch.items()}
    assert shapes == {
        "image": ("uint8", (3, 8, 8, 1)),
        "label": ("int32", (3,)),
        "row": ("int32", (3,)),
        "index": ("int32", (3,)),
        "weight": ("float32", (3,)),
    }


def test_an_epoch_is_numpys_permutation():
    data = Images(train="train[:7]", batch_size=5).build()
    index = together(data.batch(2, step, range(5)) for step in range(3))["index"]
    order = [np.random.default_rng([2, epoch]).permutation(7) for epoch in range(3)]
    np.testing.assert_array_equal(index, np.concatenate(order)[:15])


def test_a_batch_may_be_larger_than_the_split():
    index = Images(train="train[:3]", batch_size=8).build().batch(0, 0, range(8))["index"]
    np.testing.assert_array_equal(np.sort(index[:6].reshape(2, 3)), [[0, 1, 2]] * 2)


def test_evaluation_is_in_order_and_padded():
    data = Images().build()
    batches = list(data.evaluation("test", 128))
    assert [len(batch["row"]) for batch in batches] == [128] * 3
    found = together(batches)
    np.testing.assert_array_equal(found["row"], np.arange(384))
    np.testing.assert_array_equal(found["index"], found["row"])
    np.testing.assert_array_equal(found["weight"], np.arange(384) < 360)
    np.testing.assert_array_equal(found["image"][360:], np.tile(found["image"][:1], (24, 1, 1, 1)))
    np.testing.assert_array_equal(found["label"][360:], np.tile(found["label"][:1], 24))


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = Images(train="train", validation="train", test="test").build()
    splits = [whole(data, split) for split in ("train", "test")]
    ours = sorted((*x.ravel(), y) for split in splits for x, y in zip(split["image"], split["label"], strict=True))
    bunch: Any = load_digits()
    theirs = sorted((*x.astype(np.uint8).ravel(), y) for x, y in zip(bunch.images, bunch.target, strict=True))
    assert ours == theirs
    assert np.bincount(splits[1]["label"]).min() > 20  # shuffled: every class is in the small split


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        ({}, Feature((8, 8, 1), levels=17)),
        ({"binarize": "static"}, Feature((8, 8, 1), levels=2)),
        ({"dequantize": True, "colors": 3}, Feature((8, 8, 3), levels=17, dequantized=True)),
        ({"size": 12}, Feature((12, 12, 1), levels=17)),
    ],
)
def test_the_spec_says_what_the_model_sees(options, feature):
    data = Images(**options).build()
    assert data.spec == {"image": feature, "label": Feature((), "int32", classes=10)}
    image = data.batch(0, 0, range(4))["image"]
    assert image.shape == (4, *feature.shape)
    assert image.max() <= 16


def test_splits_are_sliced_as_tfds_does():
    data = Images(train="train[:90%]", validation="train[-25%:]", test="test[:10]+train[5:10]").build()
    assert data.sizes == {"train": 1293, "validation": 359, "test": 15}
    train, test = (whole(Images(train=each).build(), "train")["image"] for each in ("train", "test"))
    np.testing.assert_array_equal(whole(data, "validation")["image"], train[1437 - 359 :])
    np.testing.assert_array_equal(whole(data, "test")["image"], np.concatenate([test[:10], train[5:10]]))


@pytest.mark.parametrize("split", ["trian", "train[", "train[:2000]", "train[7:7]", "train[5]", "", "all[:5]"])
def test_a_wrong_split_names_itself_and_what_there_is(split):
    with pytest.raises(UserError) as error:
        Images(validation=split).build()
    assert f"--data.validation {split!r}" in str(error.value)
    assert "train (1437), test (360)" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--data.batch-size is 0"),
        ({"size": 0}, "--data.size is 0"),
        ({"binarize": "static", "dequantize": True}, "choose one"),
        ({"name": "../mnist"}, "folder:PATH"),
        ({"name": "folder:/no/such/place"}, "no such folder"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(UserError, match=message):
        Images(**options).build()


def test_the_digest_is_of_the_data(pets):
    digest = of_folder(pets).build().digest
    assert of_folder(pets).build().digest == digest
    assert of_folder(pets, batch_size=3, flip=True).build().digest == digest
    large = of_folder(pets, in_memory=0).build().digest
    assert of_folder(pets, in_memory=0).build().digest == large
    assert of_folder(pets, test="train[:3]").build().digest != digest
    assert of_folder(pets, colors=1).build().digest != digest
    write(pets / "cat" / "1.png", np.zeros((6, 6, 3), np.uint8))
    assert of_folder(pets).build().digest != digest
    assert of_folder(pets, in_memory=0).build().digest != large


def test_importing_is_light():
    code = (
        "import sys, gen.data.images.dataset, gen.data.prepare, gen.data.prefetch, jax._src.xla_bridge as bridge\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not bridge._backends\n"
        "gen.data.images.dataset.Images().build()\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_folder_is_ordered_by_hash_and_labelled_by_its_folders(pets):
    data = of_folder(pets).build()
    assert data.spec == {"image": Feature((6, 6, 3), levels=256), "label": Feature((), "int32", classes=2)}
    found = whole(data, "train")
    paths = sorted(pets.glob("*/*.png"), key=lambda p: hashlib.sha256(f"{p.parent.name}/{p.name}".encode()).hexdigest())
    assert len(paths) == 12
    np.testing.assert_array_equal(found["image"], [np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(found["label"], [["cat", "dog"].index(path.parent.name) for path in paths])


def test_a_folder_that_does_not_fit_reads_the_same_images(pets):
    held, read = of_folder(pets, batch_size=5).build(), of_folder(pets, batch_size=5, in_memory=0).build()
    same(whole(held, "train"), whole(read, "train"))
    check_contract(of_folder(pets, batch_size=5, in_memory=0))


def test_images_without_folders_have_no_label(tmp_path):
    write(tmp_path / "a.png", np.full((4, 5), 9, np.uint8))
    data = of_folder(tmp_path, batch_size=2).build()
    assert data.spec == {"image": Feature((4, 5, 1), levels=256)}  # all greyscale
    assert "label" not in data.batch(0, 0, range(2))


def test_one_color_image_makes_a_folder_rgb(tmp_path):
    write(tmp_path / "a.png", np.full((4, 5), 9, np.uint8))
    write(tmp_path / "b.png", np.full((4, 5, 3), 7, np.uint8))
    assert of_folder(tmp_path).build().spec["image"].shape == (4, 5, 3)
    assert of_folder(tmp_path, colors=1).build().spec["image"].shape == (4, 5, 1)


def test_an_image_beside_the_classes_is_an_error(pets):
    write(pets / "lost.png", np.zeros((6, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"lost\.png"):
        of_folder(pets).build()


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match="no images"):
        of_folder(tmp_path).build()


def test_a_folder_has_only_the_split_train(pets):
    with pytest.raises(UserError, match=r'train \(12\); for instance --data\.train "train\[:80%\]"'):
        Images(name=f"folder:{pets}").build()


def spoiled(pets: Path, how: str) -> Path:
    path = pets / "dog" / "spoiled.png"
    if how == "text":
        path.write_text("not a picture")
    elif how == "truncated":
        noise = np.random.default_rng(1).integers(0, 256, (6, 6, 3), np.uint8)
        path.write_bytes(write(path, noise).read_bytes()[:90])
    else:
        write(path, np.full((6, 6), 40_000, np.uint16))
    return path


@pytest.mark.parametrize("in_memory", [2**31, 0])
@pytest.mark.parametrize("how", ["text", "truncated", "16-bit"])
def test_an_unreadable_image_is_named(pets, how, in_memory):
    path = spoiled(pets, how)
    with pytest.raises(UserError) as error:
        list(of_folder(pets, in_memory=in_memory).build().evaluation("train", 4))
    assert str(path) in str(error.value)
    assert "--data.skip-bad" in str(error.value)


@pytest.mark.parametrize("how", ["text", "truncated", "16-bit"])
def test_unreadable_images_are_skipped_and_counted(pets, how, caplog):
    spoiled(pets, how)
    with caplog.at_level(logging.WARNING):
        data = of_folder(pets, skip_bad=True).build()
    assert data.sizes["train"] == 12
    assert len(whole(data, "train")["row"]) == 12
    assert "skipped 1 of 13" in caplog.text


@pytest.mark.parametrize("limit", [35, 10])  # Pillow warns up to twice its limit, and raises above
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_named(pets, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=rf"(?s)\.png.*{limit} pixels"):
        of_folder(pets).build()


def test_links_out_of_the_folder_are_not_followed(pets, tmp_path, caplog):
    outside = write(tmp_path / "outside" / "secret.png", np.zeros((6, 6, 3), np.uint8))
    (pets / "cat" / "link.png").symlink_to(outside)
    (pets / "bird").symlink_to(outside.parent)
    (pets / "cat" / "inside.png").symlink_to(pets / "cat" / "1.png")
    with caplog.at_level(logging.WARNING):
        data = of_folder(pets).build()
    assert data.sizes["train"] == 13
    assert data.spec["label"].classes == 2
    assert "ignored 2 symbolic links" in caplog.text


def test_images_of_different_sizes_need_one(pets):
    odd = write(pets / "cat" / "odd.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(UserError) as error:
        of_folder(pets).build()
    assert f"{odd} is 6x8" in str(error.value)
    assert "6x6" in str(error.value)
    assert "--data.size" in str(error.value)
    assert of_folder(pets, size=5).build().spec["image"].shape == (5, 5, 3)


def test_size_cuts_out_the_centre(tmp_path):
    columns = np.tile(np.arange(0, 80, 10, dtype=np.uint8), (4, 1))
    write(tmp_path / "wide.png", columns)
    image = whole(of_folder(tmp_path, size=4).build(), "train")["image"]
    np.testing.assert_array_equal(image[0, :, :, 0], columns[:, 2:6])
    halved = whole(of_folder(tmp_path, size=2).build(), "train")["image"]
    np.testing.assert_allclose(halved[0, :, :, 0], [[25, 45]] * 2, atol=1)


def test_the_second_start_decodes_nothing(pets, monkeypatch):
    first = whole(of_folder(pets).build(), "train")
    monkeypatch.setattr(pixels, "decode", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr(pixels, "header", lambda *_: pytest.fail("surveyed again"))
    same(first, whole(of_folder(pets).build(), "train"))


def test_a_changed_file_is_decoded_again(pets):
    for value in (76, 77):
        write(pets / "cat" / "same_size.bmp", np.full((6, 6, 3), value, np.uint8))
        assert (whole(of_folder(pets).build(), "train")["image"] == value).all((1, 2, 3)).sum() == 1


def test_a_damaged_cache_is_made_again(pets, cache):
    first = whole(of_folder(pets).build(), "train")
    files = list(cache.rglob("*.npy"))
    assert {file.name for file in files} >= {"image.npy", "label.npy"}
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    same(first, whole(of_folder(pets).build(), "train"))


def test_a_cache_that_cannot_be_written_is_no_error(pets, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(whole(of_folder(pets).build(), "train")["row"]) == 12


def prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_yields_every_step_in_order():
    found = list(prefetch(lambda step: step**2, range(3, 11), depth=3))
    assert [(step, square) for step, square, _ in found] == [(step, step**2) for step in range(3, 11)]
    assert all(waited >= 0 for *_, waited in found)
    assert not prefetching()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prefetch_is_lazy(depth):
    made = []
    batches = prefetch(made.append, range(100), depth)
    assert made == []
    for step in range(3):
        next(batches)
        deadline = time.monotonic() + 5
        while len(made) < step + 1 + depth and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert made == list(range(step + 1 + depth))
    batches.close()


def test_prefetch_works_while_the_consumer_does():
    ready = threading.Event()
    batches = prefetch(lambda step: ready.set() if step == 1 else None, range(3))
    next(batches)
    assert ready.wait(5)
    batches.close()


def test_prefetch_says_how_long_it_waited():
    (_, _, waited), *_ = prefetch(lambda step: time.sleep(0.05), range(1))
    assert 0.04 < waited < 1


def test_prefetch_raises_at_the_step_that_failed():
    def batch(step: int) -> int:
        if step == 2:
            raise UserError("step 2")
        return step

    batches = prefetch(batch, range(5))
    assert [next(batches)[0], next(batches)[0]] == [0, 1]
    with pytest.raises(UserError, match="step 2"):
        next(batches)
    assert not prefetching()


def test_prefetch_ends_its_thread_when_closed():
    made = []
    batches = prefetch(lambda step: made.append(step) or time.sleep(0.02), range(100), depth=10)
    next(batches)
    assert prefetching()
    batches.close()
    assert not prefetching()
    assert len(made) < 5


def test_prefetch_ends_its_thread_when_the_consumer_raises():
    def consume() -> None:
        for _ in prefetch(lambda step: step, range(100)):
            raise KeyError

    with pytest.raises(KeyError) as error:
        consume()
    del error
    assert not prefetching()


def test_stacked_digits_are_digits_on_top_of_each_other():
    single, data = Images(train="train", validation="train"), Images(name="stacked_digits", train="train")
    known = {split: whole(single.build(), split) for split in ("train", "test")}
    built = data.build()
    assert built.sizes["train"] == 30_000
    assert built.sizes["test"] == 3_000
    assert built.spec == {
        "image": Feature((8, 8, 3), levels=17),
        "label": Feature((), "int32", classes=1000),
    }
    for split, digits in known.items():
        label_of = {x.tobytes(): int(y) for x, y in zip(digits["image"], digits["label"], strict=True)}
        stacks = whole(built, split)
        for image, label in zip(stacks["image"], stacks["label"], strict=True):
            channels = [label_of[np.ascontiguousarray(image[..., c]).tobytes()] for c in range(3)]
            assert label == channels[0] * 100 + channels[1] * 10 + channels[2]


def test_stacked_digits_are_every_class_about_as_often_and_always_the_same():
    first, again = (Images(name="stacked_digits", train="train").build() for _ in range(2))
    assert first.digest == again.digest
    counts = np.bincount(whole(first, "train")["label"], minlength=1000)
    assert counts.min() > 0
    assert abs(counts - 30).max() < 30  # 5.5 standard deviations of a Poisson of mean 30
    channels = whole(first, "train")["image"].reshape(-1, 64, 3)
    r, g, b = (channels[..., c].mean(axis=1) for c in range(3))  # independent of each other
    assert max(abs(np.corrcoef([r, g, b])[np.triu_indices(3, 1)])) < 5 / np.sqrt(30_000)
