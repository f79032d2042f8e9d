"""Image data sets: batches as functions of (seed, step, row), splits, and the built-in digits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen.core import Feature
from gen.data.images import Images
from gen.errors import UserError
from tests.datasets import check_contract, check_padding, join, read_split


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


def test_images_in_memory_keep_the_contract():
    check_contract(Images(train="train[:10%]", batch_size=64).build, 64)


def test_images_that_are_decoded_on_demand_keep_the_contract():
    check_contract(Images(train="train[:10%]", batch_size=64, in_memory=0).build, 64)


def test_a_batch_has_host_dtypes():
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
    index = join(data.batch(2, step, range(5)) for step in range(3))["index"]
    order = [np.random.default_rng([2, epoch]).permutation(7) for epoch in range(3)]
    np.testing.assert_array_equal(index, np.concatenate(order)[:15])


def test_a_batch_may_be_larger_than_the_split():
    index = Images(train="train[:3]", batch_size=8).build().batch(0, 0, range(8))["index"]
    np.testing.assert_array_equal(np.sort(index[:6].reshape(2, 3)), [[0, 1, 2]] * 2)


def test_evaluation_is_in_order_and_padded():
    data = Images().build()
    assert data.sizes["test"] == 360
    check_padding(data, "test", 128)


def test_digits_are_the_digits_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = Images(train="train", validation="train", test="test").build()
    splits = [read_split(data, split) for split in ("train", "test")]
    ours = sorted((*x.ravel(), y) for split in splits for x, y in zip(split["image"], split["label"], strict=True))
    bunch: Any = load_digits()
    theirs = sorted((*x.astype(np.uint8).ravel(), y) for x, y in zip(bunch.images, bunch.target, strict=True))
    assert ours == theirs
    # The digits are shuffled, so every class is in the small split.
    assert np.bincount(splits[1]["label"]).min() > 20


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
    train, test = (read_split(Images(train=each).build(), "train")["image"] for each in ("train", "test"))
    np.testing.assert_array_equal(read_split(data, "validation")["image"], train[1437 - 359 :])
    np.testing.assert_array_equal(read_split(data, "test")["image"], np.concatenate([test[:10], train[5:10]]))


@pytest.mark.parametrize("split", ["trian", "train[", "train[:2000]", "train[7:7]", "train[5]", "", "all[:5]"])
def test_a_wrong_split_is_named_with_the_splits_that_exist(split):
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


def test_the_digest_of_digits_never_changes():
    """A run stores this digest, and refuses to continue with data of another one."""
    assert Images().build().digest == "fee7eacf5c79176ba8bde0f10e8756f8391e652888aecb567e655e51f4c18da9"


def test_importing_loads_no_heavy_package():
    code = (
        "import sys, gen.data.images.dataset, gen.data.arrays, gen.data.prepare, gen.data.prefetch, jax._src.xla_bridge as bridge\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not bridge._backends\n"
        "gen.data.images.dataset.Images().build()\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.slow
def test_channels_of_stacked_digits_are_digits():
    single, data = Images(train="train", validation="train"), Images(name="stacked_digits", train="train")
    known = {split: read_split(single.build(), split) for split in ("train", "test")}
    built = data.build()
    assert built.sizes["train"] == 30_000
    assert built.sizes["test"] == 3_000
    assert built.spec == {
        "image": Feature((8, 8, 3), levels=17),
        "label": Feature((), "int32", classes=1000),
    }
    for split, digits in known.items():
        label_of = {x.tobytes(): int(y) for x, y in zip(digits["image"], digits["label"], strict=True)}
        stacks = read_split(built, split)
        for image, label in zip(stacks["image"], stacks["label"], strict=True):
            channels = [label_of[np.ascontiguousarray(image[..., c]).tobytes()] for c in range(3)]
            assert label == channels[0] * 100 + channels[1] * 10 + channels[2]


@pytest.mark.slow
def test_stacked_digits_are_balanced_and_fixed():
    first, again = (Images(name="stacked_digits", train="train").build() for _ in range(2))
    assert first.digest == again.digest
    counts = np.bincount(read_split(first, "train")["label"], minlength=1000)
    assert counts.min() > 0
    # 5.5 standard deviations of a Poisson distribution with mean 30.
    assert abs(counts - 30).max() < 30
    channels = read_split(first, "train")["image"].reshape(-1, 64, 3)
    # The channels are independent of each other.
    r, g, b = (channels[..., c].mean(axis=1) for c in range(3))
    assert max(abs(np.corrcoef([r, g, b])[np.triu_indices(3, 1)])) < 5 / np.sqrt(30_000)
