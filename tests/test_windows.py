"""Windows of text: token streams, targets, phases and epochs. The tests make the streams again, byte by byte."""

import math
from pathlib import Path

import numpy as np
import pytest

from gen.core import Feature
from gen.data.text import tokenizers
from gen.errors import UserError
from tests.datasets import (
    assert_same,
    byte_stream,
    join,
    random_text,
    read_chapters,
    read_split,
    read_stream,
    read_texts,
    split_of,
    text_of,
    write_book,
    write_text,
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture
def book(tmp_path) -> Path:
    return write_book(tmp_path / "book.txt")


def test_the_spec_and_a_batch_are_typed_for_the_host(book):
    data = text_of(book).build()
    assert data.spec == {"tokens": Feature((17,), "int32", vocab=257, end=0)}
    batch = data.batch(0, 0, range(2, 5))
    assert {name: (value.dtype.name, value.shape) for name, value in batch.items()} == {
        "tokens": ("int32", (3, 17)),
        "counted": ("uint8", (3, 17)),
        "bytes": ("int32", (3,)),
        "row": ("int32", (3,)),
        "index": ("int32", (3,)),
        "weight": ("float32", (3,)),
    }
    assert data.preprocess(batch, None, True) is batch  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
@pytest.mark.parametrize("stride", [None, 16, 5, 1])
def test_evaluation_predicts_every_token_once(book, stride, tokenizer):
    data = text_of(book, stride=stride, tokenizer=tokenizer).build()
    disjoint = text_of(book, tokenizer=tokenizer).build()
    own = stride or 16
    for split in ("validation", "test"):
        stream, found = read_stream(disjoint, split), read_split(data, split)
        assert len(found["row"]) == data.sizes[split]
        # The position in the stream of each token of each window.
        place = np.arange(data.sizes[split])[:, None] * own + np.arange(17)
        there = place < len(stream)
        np.testing.assert_array_equal(found["tokens"][there], stream[place[there]])
        assert (found["tokens"][~there] == 0).all()
        times = np.bincount(place[found["counted"] == 1], minlength=len(stream))
        np.testing.assert_array_equal(times, np.arange(len(stream)) > 0)
        # In all windows but the first, at least 16 - stride tokens come before each target.
        columns = np.nonzero(found["counted"][1:])[1]
        assert columns.min() == 17 - own


def test_the_stream_has_the_end_token_before_each_document(book):
    data = text_of(book).build()
    documents = read_chapters(book)
    for split in ("validation", "test"):
        own = [text for text in documents if split_of(text, 0.1) == split]
        assert 2 <= len(own) < 20
        np.testing.assert_array_equal(read_stream(data, split), byte_stream(own))


@pytest.mark.parametrize("tokenizer", ["byte", "character", "bpe"])
def test_bytes_add_up_to_the_size_of_the_text(book, tokenizer):
    data = text_of(book, tokenizer=tokenizer, vocabulary=300).build()
    for split in ("validation", "test"):
        own = [text for text in read_chapters(book) if split_of(text, 0.1) == split]
        assert read_texts(data, split) == own
        assert read_split(data, split)["bytes"].sum() == len("".join(own).encode())
    tokenizer = tokenizers.load(data.files["tokenizer.json"])
    batch = data.batch(0, 0, range(8))
    # A token of the byte tokenizer may be half of a character, which has no text.
    if tokenizers.size(tokenizer) != 257:
        texts = [tokenizers.pieces(tokenizer)[token] for token in batch["tokens"][:, 1:].ravel()]
        assert batch["bytes"].sum() == sum(map(len, texts))


def test_a_training_batch_depends_on_seed_step_and_rows_alone(book):
    data, again = text_of(book).build(), text_of(book).build()
    for step in (0, 3, 1000, 10**7):
        batch = data.batch(3, step, range(8))
        assert_same(batch, join(again.batch(3, step, rows) for rows in (range(0, 1), range(1, 5), range(5, 8))))
        assert_same({k: v[1::2] for k, v in batch.items()}, data.batch(3, step, range(1, 8, 2)))
        np.testing.assert_array_equal(batch["row"], np.arange(8))
    assert (data.batch(4, 0, range(8))["tokens"] != data.batch(3, 0, range(8))["tokens"]).any()


def test_each_epoch_has_its_own_phase_and_order(book):
    data = text_of(book).build()
    stream = byte_stream([text for text in read_chapters(book) if split_of(text, 0.1) == "train"])
    n = data.sizes["train"]
    assert n == len(stream) // 16 - 1
    found = join(data.batch(3, step, range(8)) for step in range(-(-6 * n // 8)))
    assert (found["counted"] == (np.arange(17) > 0)).all()
    windows = np.lib.stride_tricks.sliding_window_view(stream, 17)
    of = {window.tobytes(): start for start, window in enumerate(windows.astype(np.int32))}
    assert len(of) == len(windows)  # no two windows are the same
    start = np.array([of[x.tobytes()] for x in found["tokens"]])
    phases, orders = [], []
    for epoch in range(6):
        own, index = (x[epoch * n : (epoch + 1) * n] for x in (start, found["index"]))
        (phase,) = set((own - 16 * index).tolist())
        np.testing.assert_array_equal(np.sort(index), np.arange(n))
        phases.append(phase)
        orders.append(tuple(index))
    assert 0 <= min(phases) <= max(phases) < 16
    assert len(set(phases)) > 2
    assert len(set(orders)) == 6


def test_every_phase_fits_into_a_stream_of_any_length(tmp_path):
    # n: tokens to train on, with the end token.
    for n in (17, 18, 31, 32, 33, 47, 48, 49):
        text = random_text(n, 10 * n).encode("ascii", "replace").decode()[: math.ceil((n - 1) / 0.5)]
        data = text_of(write_text(tmp_path / f"{n}.txt", text), split="tail:0.5", document_break=None).build()
        starts = {data.batch(seed, 0, range(1))["tokens"][0].tobytes() for seed in range(600)}
        stream = byte_stream([text[: int(len(text) * 0.5)]])
        assert len(stream) == n
        windows = np.lib.stride_tricks.sliding_window_view(stream.astype(np.int32), 17)
        assert starts <= {window.tobytes() for window in windows}
        phases = min(16, n - 16 * data.sizes["train"])
        assert len(starts) == min(phases * data.sizes["train"], len({window.tobytes() for window in windows}))


def test_a_corpus_that_is_too_short_is_an_error(tmp_path):
    config = text_of(write_text(tmp_path / "a.txt", "0123456789" * 3), split="tail:0.5", document_break=None)
    with pytest.raises(UserError, match=r"--data\.length 16 needs 17 tokens to train on, and there are 16"):
        config.build()


def test_the_tail_split_equals_nanogpt(tmp_path):
    text = random_text(0, 2003).encode("ascii", "replace").decode()
    data = text_of(
        write_text(tmp_path / "a.txt", text), split="tail:0.1", document_break=None, tokenizer="character"
    ).build()
    assert (read_texts(data, "validation"), read_texts(data, "test")) == ([text[int(2003 * 0.9) :]],) * 2
    stoi = {character: i + 1 for i, character in enumerate(sorted(set(text)))}  # as nanoGPT's prepare.py, after the end
    train = [0, *(stoi[character] for character in text[: int(2003 * 0.9)])]
    assert data.spec["tokens"].vocab == len(stoi) + 1
    seen = {x.tobytes() for step in range(1000) for x in data.batch(0, step, range(8))["tokens"]}
    windows = np.lib.stride_tricks.sliding_window_view(np.array(train, np.int32), 17)
    assert seen <= {window.tobytes() for window in windows}
    assert len(seen) > 0.9 * len(windows)
