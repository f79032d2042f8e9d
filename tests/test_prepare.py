"""Preparing TFDS sets, and reading them. The results are compared with the reader of TFDS itself."""

import gzip
import importlib.util
import io
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen.core import Feature
from gen.data import prepare as prepare_module
from gen.data import tfds_sets
from gen.data.images import Images
from gen.data.prepare import prepare
from gen.errors import UserError

SIZES = {"train": 300, "t10k": 70}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def pictures(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images and labels. The first two pixels of an image hold its number."""
    n = SIZES[prefix]
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(n) // 256, np.arange(n) % 256
    return images, rng.integers(0, 10, n, np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, dot: str = "-", pack=gzip.compress, ending: str = ".gz") -> Path:
    folder.mkdir()
    for prefix in SIZES:
        images, labels = pictures(prefix)
        (folder / f"{prefix}-images{dot}idx3-ubyte{ending}").write_bytes(pack(idx(images)))
        (folder / f"{prefix}-labels{dot}idx1-ubyte{ending}").write_bytes(pack(idx(labels)))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_idx(tmp_path_factory.mktemp("idx") / "gz")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, source) -> Path:
    """Returns a folder with a prepared mnist. Tests must not change it."""
    path = tmp_path_factory.mktemp("tfds")
    prepare("mnist", source, str(path))
    return path


def read_by_tfds(name: str, split: str, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    examples = list(tfds.data_source(name, split=split, data_dir=data_dir, download=False))
    return np.stack([each["image"] for each in examples]), np.array([each["label"] for each in examples])


def mnist(data_dir: Path, **options: Any) -> Images:
    return Images(name="mnist", data_dir=str(data_dir), **options)


def number(images: np.ndarray) -> np.ndarray:
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]


@pytest.mark.parametrize(("prefix", "split"), [("train", "train"), ("t10k", "test")])
def test_tfds_reads_what_was_prepared(data_dir, prefix, split):
    from tensorflow_datasets.core import hashing

    images, labels = read_by_tfds("mnist", split, data_dir)
    given, given_labels = pictures(prefix)
    # TFDS stores examples in the order of the hash of their keys. Its own builder uses the positions in the IDX file.
    order = sorted(range(len(given)), key=hashing.Hasher(split).hash_key)
    np.testing.assert_array_equal(images[..., 0], given[order])
    np.testing.assert_array_equal(labels, given_labels[order])


@pytest.mark.parametrize("in_memory", [2**31, 0])
def test_a_prepared_set_becomes_a_data_set(data_dir, in_memory):
    config = mnist(data_dir, train="train[:200]", validation="train[200:]", batch_size=48, in_memory=in_memory)
    data = config.build()
    assert data.sizes == {"train": 200, "validation": 100, "test": 70}
    assert data.spec == {
        "image": Feature((28, 28, 1), levels=256),
        "label": Feature((), "int32", classes=10),
    }
    images, labels = read_by_tfds("mnist", "train[200:]", data_dir)
    for found in data.evaluation("validation", 100):
        np.testing.assert_array_equal(found["image"], images)
        np.testing.assert_array_equal(found["label"], labels)
    given, given_labels = pictures("train")
    batch = data.batch(0, 3, range(48))
    at = number(batch["image"])
    np.testing.assert_array_equal(batch["image"][..., 0], given[at])
    np.testing.assert_array_equal(batch["label"], given_labels[at])
    # `index` is the position among the stored examples of the split.
    stored = number(read_by_tfds("mnist", "train[:200]", data_dir)[0])
    np.testing.assert_array_equal(stored[batch["index"]], at)


def test_a_set_on_demand_keeps_the_contract(data_dir):
    config = mnist(data_dir, train="train[:60]", batch_size=16, in_memory=0)
    data, again = config.build(), config.build()
    run = [data.batch(5, step, range(16)) for step in range(12)]
    epochs = np.concatenate([batch["index"] for batch in run])[:180].reshape(3, 60)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(60), (3, 1)))
    assert (epochs[0] != epochs[1]).any()
    for step in (9, 2):
        parts = [again.batch(5, step, rows) for rows in (range(0, 5), range(5, 16))]
        for name, value in run[step].items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)
    assert (data.batch(6, 0, range(16))["index"] != run[0]["index"]).any()


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_raw_idx_files_with_dots_in_their_names_are_read(tmp_path, name):
    source = write_idx(tmp_path / "raw", ".", bytes, "")
    prepare(name, source, str(tmp_path / "tfds"))
    images, labels = read_by_tfds(name, "test", tmp_path / "tfds")
    given, given_labels = pictures("t10k")
    np.testing.assert_array_equal(images[..., 0], given[number(images)])
    np.testing.assert_array_equal(labels, given_labels[number(images)])


def test_a_prepared_set_is_not_prepared_again(data_dir, capsys):
    info = data_dir / "mnist/3.0.1/dataset_info.json"
    before = info.stat()
    prepare("mnist", Path("/no/such/folder"), str(data_dir))
    assert str(info.parent) in capsys.readouterr().out
    assert info.stat() == before


def test_an_interrupted_prepare_leaves_nothing(source, tmp_path, monkeypatch):
    # The 201st image is interrupted.
    original, calls = prepare_module.png, iter(range(200))

    def interrupted(image: np.ndarray) -> io.BytesIO:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(image)

    monkeypatch.setattr(prepare_module, "png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("mnist", source, str(tmp_path))
    assert tfds_sets.find("mnist", str(tmp_path)) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setattr(prepare_module, "png", original)
    prepare("mnist", source, str(tmp_path))
    assert len(read_by_tfds("mnist", "test", tmp_path)[0]) == SIZES["t10k"]


IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (IMAGES, gzip.compress(idx(pictures("train")[0]))[:-500], "cannot be unpacked"),
        (IMAGES, gzip.compress(idx(pictures("train")[0])[:-500]), "holds 234700 bytes instead of 235200"),
        (IMAGES, b"not gzip", "cannot be unpacked"),
        (LABELS, gzip.compress(idx(pictures("train")[0])), "not an IDX file of bytes with 1 dimension"),
        (LABELS, gzip.compress(b"\0\0\x08"), "not an IDX file"),
        (LABELS, gzip.compress(idx(pictures("t10k")[1])), "300 images but .* has 70 labels"),
        (LABELS, gzip.compress(idx(np.full(300, 10, np.uint8))), "label 10 "),
        (IMAGES, gzip.compress(idx(np.zeros((300, 8, 8), np.uint8))), r"\(300, 8, 8\)"),
        (IMAGES, None, "none of train-images-idx3-ubyte, "),
    ],
    # The bytes hold the time at which they were compressed.
    ids=[
        "cut",
        "short",
        "not gzip",
        "images",
        "no header",
        "of another split",
        "a label too high",
        "small images",
        "missing",
    ],
)
def test_a_bad_idx_file_is_named(source, tmp_path, file, content, message):
    copy = Path(shutil.copytree(source, tmp_path / "idx"))
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepare("mnist", copy, str(tmp_path / "tfds"))
    assert str(copy if content is None else copy / file) in str(error.value)
    assert not (tmp_path / "tfds").exists()


def test_other_sets_need_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gen\[tensorflow\]'"):
        prepare("cifar10", None, str(tmp_path))
    with pytest.raises(UserError, match=r"gen\[tensorflow\]'.*--source DIR"):
        prepare("mnist", None, str(tmp_path))
    with pytest.raises(UserError, match="--source is for mnist"):
        prepare("cifar10", tmp_path, str(tmp_path))


def test_the_command_reports_a_mistake_in_one_line(tmp_path):
    folder = str(tmp_path)
    command = [sys.executable, "-m", "gen.data.prepare", "mnist", "--source", folder, "--data-dir", folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}: there is none of train-images")


@pytest.mark.parametrize("name", ["mnist", "mnist:9.9.9", "imagenet_resized/32x32"])
def test_a_set_that_is_not_prepared_is_an_error_without_delay(tmp_path, name):
    data_dir = tmp_path / "tfds"
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        Images(name=name, data_dir=str(data_dir)).build()
    assert time.monotonic() - start < 5
    assert f"python -m gen.data.prepare {name} --source DIR --data-dir {data_dir}" in str(error.value)
    assert "gen[tensorflow]" in str(error.value)
    assert not data_dir.exists()


def test_other_prepared_versions_are_named(data_dir):
    with pytest.raises(UserError, match=r"there is mnist/3\.0\.1"):
        Images(name="mnist:2.0.0", data_dir=str(data_dir)).build()


def test_the_highest_version_is_read(tmp_path):
    for version in ("2.0.0", "10.0.0", "9.1.0", "11.0.0.incompleteX"):
        path = tmp_path / "mnist" / version
        path.mkdir(parents=True)
        (path / "dataset_info.json").touch()
    assert tfds_sets.find("mnist", str(tmp_path)) == tmp_path / "mnist/10.0.0"
    assert tfds_sets.find("mnist:9.1.0", str(tmp_path)) == tmp_path / "mnist/9.1.0"
    assert tfds_sets.find("mnist:11.0.0", str(tmp_path)) is None


def test_a_set_in_tfrecord_is_an_error(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    path = tmp_path / "mnist/3.0.1/dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"(?s)not prepared as array_record.*python -m gen\.data\.prepare mnist"):
        mnist(tmp_path).build()


def test_a_missing_shard_is_named(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    shard = next((tmp_path / "mnist/3.0.1").glob("*test.array_record*"))
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        mnist(tmp_path).build()
