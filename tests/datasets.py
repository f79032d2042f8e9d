"""Helpers for tests of data sets: join batches, compare them, and check the properties that every kind of data must have."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gen.core import Dataset, HostBatch
from gen.data.images import Images
from gen.data.text import Text, tokenizers


def write_image(path: Path, pixel: np.ndarray, kind: str | None = None, **options: Any) -> Path:
    """Writes an image. kind: a format of Pillow; None: by the ending. options: of Image.save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixel).save(path, kind, **options)
    return path


def images_of(path: Path, **options: Any) -> Images:
    """Returns data of a folder whose three splits are all its images."""
    defaults: Any = {"name": f"folder:{path}", "train": "train", "validation": "train", "test": "train"}
    return Images(**defaults | options)


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def join(batches: Iterable[HostBatch]) -> HostBatch:
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def read_split(data: Dataset, split: str) -> HostBatch:
    """Returns a split without its padding."""
    found = join(data.evaluation(split, 50))
    return {name: value[found["weight"] > 0] for name, value in found.items()}


def assert_same(a: HostBatch, b: HostBatch) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype, name


def check_contract(build: Callable[[], Dataset], size: int) -> None:
    """Checks what every data set promises: batches are pure, an epoch is a permutation, and `index` names the example.

    size: examples in a training batch.
    """
    data, again = build(), build()
    n = data.sizes["train"]
    steps = -(-3 * n // size)
    for step in (0, 1, 7):
        batch = data.batch(3, step, range(size))
        # Parts of a batch, as hosts read them, are the same rows as the whole batch.
        pieces = [range(0, 1), range(1, size // 2), range(size // 2, size)]
        assert_same(batch, join(again.batch(3, step, rows) for rows in pieces))
        assert_same({k: v[1::2] for k, v in batch.items()}, data.batch(3, step, range(1, size, 2)))
        np.testing.assert_array_equal(batch["row"], np.arange(size))
        np.testing.assert_array_equal(batch["weight"], np.ones(size))
    # Three epochs: each one is a permutation, and they differ.
    run = join(data.batch(3, step, range(size)) for step in range(steps))
    epochs = run["index"][: 3 * n].reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(n), (3, 1)))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()
    other = join(data.batch(4, step, range(size)) for step in range(steps))
    assert (other["index"] != run["index"]).any()
    # Seed 4 is not seed 3 one epoch later.
    assert (other["index"][:n] != epochs[1]).any()
    train = read_split(data, "train")
    for name in data.spec:
        np.testing.assert_array_equal(run[name], train[name][run["index"]])


def check_padding(data: Dataset, split: str, size: int) -> None:
    """Checks that the batches of an evaluation are in order, of one size, and padded by example 0 with weight 0."""
    batches, n = list(data.evaluation(split, size)), data.sizes[split]
    total = size * -(-n // size)
    assert [len(batch["row"]) for batch in batches] == [size] * (total // size)
    found = join(batches)
    np.testing.assert_array_equal(found["row"], np.arange(total))
    np.testing.assert_array_equal(found["index"], found["row"])
    np.testing.assert_array_equal(found["weight"], np.arange(total) < n)
    for name in data.spec:
        np.testing.assert_array_equal(found[name][n:], np.repeat(found[name][:1], total - n, axis=0))
    # Some rows of each batch, as a host reads them.
    part = join(data.evaluation(split, size, range(1, size, 2)))
    assert_same(
        part,
        {
            name: value.reshape(-1, size, *value.shape[1:])[:, 1::2].reshape(-1, *value.shape[1:])
            for name, value in found.items()
        },
    )


UNICODE = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich — 日本語 🎉\n"
LETTERS = dict(enumerate("abcdefghijklmnopqrstuvwxyz \n.é日🎉"))


def random_text(seed: int, n: int) -> str:
    return "".join(LETTERS[i] for i in np.random.default_rng(seed).integers(0, len(LETTERS), n).tolist())


def write_book(path: Path) -> Path:
    """Writes 60 chapters of 50 to 250 random characters."""
    lengths = np.random.default_rng(0).integers(50, 250, 60)
    return write_text(path, "".join(f"CHAPTER {i}\n{random_text(i, n)}\n" for i, n in enumerate(lengths)))


def read_chapters(path: Path) -> list[str]:
    return ["CHAPTER " + each for each in path.read_text().split("CHAPTER ")[1:]]


def text_of(book: Path, **options: Any) -> Text:
    """Returns data of short windows, with a document for each chapter."""
    defaults: Any = {"name": f"text:{book}", "document_break": "^(?=CHAPTER )", "length": 16, "batch_size": 8}
    return Text(**defaults | options)


def write_lines(path: Path, *values: object) -> Path:
    return write_text(path, "".join(json.dumps(value) + "\n" for value in values))


def read_stream(data: Dataset, split: str) -> np.ndarray:
    """Returns the tokens of a split from its disjoint windows: the first token, and then all targets."""
    found = read_split(data, split)
    return np.concatenate([found["tokens"][0, :1], found["tokens"][found["counted"] == 1]])


def read_texts(data: Dataset, split: str) -> list[str]:
    """Returns the documents of a split."""
    tokenizer = tokenizers.load(data.files["tokenizer.json"])
    stream = read_stream(data, split)
    return [tokenizers.decode(tokenizer, part.tolist()) for part in np.split(stream, np.flatnonzero(stream == 0))[1:]]


def byte_stream(documents: list[str]) -> np.ndarray:
    """Returns the token stream of a byte tokenizer."""
    return np.array([token for text in documents for token in (0, *(byte + 1 for byte in text.encode()))])


def split_of(text: str, share: float) -> str:
    """Returns the split of a document by its hash, computed with other arithmetic than gen.data."""
    u = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 16**16
    if u < share:
        return "validation"
    return "test" if u < 2 * share else "train"
