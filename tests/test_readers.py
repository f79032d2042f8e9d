"""Readers of files refuse a pipe, a socket or a folder by name, check sizes that a file claims, and check the range of labels."""

import gzip
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen import files
from gen.core import Feature
from gen.data import from_arrays, prepare
from gen.data.arrays import Arrays
from gen.data.images import pixels
from gen.data.images.tfds import TfdsImages
from gen.data.text import docstrings, documents, jsonl, tokenizers
from gen.errors import UserError
from gen.interop import convert
from gen.media.text import TextOptions, read_prompt_file
from gen.metrics import inception


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def read_idx(path: Path) -> object:
    return prepare.read_idx(path.parent, "train-images", 3)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "bytes": ("file", files.read_bytes),
    "json": ("file.json", files.read_json),
    "arrays": ("file.npz", files.read_arrays),
    "text": ("file.txt", documents.text),
    "jsonl": ("file.jsonl", jsonl.jsonl),
    "lines that were a file": ("file.jsonl", lambda path: list(jsonl.read_lines(path))),
    "tokenizer": ("tokenizer.json", tokenizers.read),
    "prompt": ("prompt.txt", lambda path: read_prompt_file(TextOptions(prompt_file=path))),
    "picture": ("x.png", lambda path: as_user_error(pixels.decode, path)),
    "picture header": ("x.png", lambda path: as_user_error(pixels.read_header, path)),
    "inception": ("x.safetensors", inception.read_tensors),
    "inception arrays": ("x.npz", inception.read_tensors),
    "safetensors": ("x.safetensors", convert._names),
    "idx": ("train-images-idx3-ubyte", read_idx),
    "packed idx": ("train-images-idx3-ubyte.gz", read_idx),
}


def as_user_error(read: Callable[..., object], path: Path) -> None:
    """A wrong picture is a ValueError, to which its source gives a name."""
    try:
        read(path, None, 3) if read is pixels.decode else read(path, False)
    except ValueError as error:
        raise UserError(str(error)) from error


@pytest.mark.parametrize("what", ["a pipe", "a socket"])
@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_in_the_place_of_a_file_is_refused_by_name(tmp_path, monkeypatch, reader, what):
    name, read = READERS[reader]
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        if what == "a socket":
            bound.bind(name)
        else:
            os.mkfifo(name)
    with pytest.raises(UserError, match=f"{name} is {what}"):
        read(tmp_path / name)


def test_a_device_is_refused_by_name():
    with pytest.raises(UserError, match="/dev/zero is a device"):
        documents.text(Path("/dev/zero"))


def test_pipes_among_source_files_are_left_out(tmp_path):
    os.mkfifo(tmp_path / "a.py")
    (tmp_path / "b.py").write_text('def f():\n    """Returns 1."""\n    return 1\n')
    assert len(list(docstrings.pairs(tmp_path))) == 1


def idx(claimed: tuple[int, ...], content: bytes) -> bytes:
    return struct.pack(f">BBBB{len(claimed)}I", 0, 0, 8, len(claimed), *claimed) + content


@pytest.mark.parametrize(
    "claimed", [(2**32 - 1, 2**32 - 1, 2**32 - 1), (2_700_000, 28, 28), (100, 28, 28), (1, 28, 27)]
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_size_that_an_idx_header_claims_is_checked_before_anything_is_allocated(
    tmp_path, monkeypatch, claimed, packed
):
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' * packed}"
    content = idx(claimed, bytes(28 * 28))
    path.write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setattr(prepare, "READ_BYTES", 1000)  # a packed file is unpacked in parts
    with pytest.raises(UserError, match=r"its header claims [\d,]+ bytes; the limit|holds .*bytes instead of"):
        read_idx(path)


def test_a_packed_idx_file_that_goes_on_for_ever_is_not_unpacked(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx((1, 28, 28), bytes(2**20))))
    with pytest.raises(UserError, match="holds more bytes instead of 784"):
        read_idx(path)


LABELS = {
    "negative": [0, -1, 1],
    "too large": [0, 1, 3],
    "not integers": [0.0, 1.0, 2.0],
    "not finite": [0.0, float("nan"), 1.0],
    "bool": [True, False, True],
    "one-hot": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "texts": ["a", "b", "c"],
}


@pytest.mark.parametrize("how", LABELS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_out_of_range_are_an_error_in_arrays(how, split):
    sound = {"image": np.zeros((3, 4, 4, 1), np.uint8), "label": np.arange(3)}
    splits: dict[str, Arrays] = dict.fromkeys(("train", "validation", "test"), sound)
    splits[split] = sound | {"label": np.array(LABELS[how])}
    with pytest.raises(UserError, match="'label'"):
        from_arrays(splits, features={"label": Feature((), "int32", classes=3)})


@pytest.mark.parametrize("label", [3, 2**40, -1])
def test_labels_out_of_range_are_an_error_in_tfds(label):
    class Features:
        def deserialize_example_np(self, each: object, decoders: object) -> dict[str, object]:
            return {"image": b"", "label": each}

    class Records:
        def __getitems__(self, positions: list[int]) -> list[int]:
            return [(0, label)[position] for position in positions]

    images = TfdsImages("mnist", Records(), Features(), {}, "image", "label", 3)
    assert images.read([0]) == [(b"", 0)]
    with pytest.raises(UserError, match=r"mnist: .*label"):
        images.read([0, 1])


@pytest.mark.parametrize("label", [10, 255])
def test_labels_out_of_range_are_an_error_in_idx_files(tmp_path, label):
    for name, content in (
        ("images-idx3", idx((2, 28, 28), bytes(2 * 28 * 28))),
        ("labels-idx1", idx((2,), bytes([0, label]))),
    ):
        (tmp_path / f"train-{name}-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=rf"label {label} is not in \[0, 10\)"):
        prepare.read_split(tmp_path, "train")


@pytest.mark.parametrize("label", [None, [1], {"a": 1}])
def test_labels_that_are_no_texts_are_an_error_in_json_lines(tmp_path, label):
    import json

    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": each}) + "\n" for each in ("a", label)))
    with pytest.raises(UserError, match=r'lines\.jsonl:2: its "label" is'):
        list(jsonl.jsonl(path).read())


def test_a_picture_that_became_a_pipe_is_named(tmp_path):
    path = tmp_path / "x.png"
    Image.new("L", (4, 4)).save(path)
    assert pixels.decode(path, None, 1).shape == (4, 4, 1)
