"""gen.data.text.dataset: documents, cleaning, splits, windows and pairs. The streams are made again here, byte by byte."""

import hashlib
import json
import lzma
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen.core import Dataset, Feature
from gen.data.text import Text, corpus, tokenizers
from gen.data.text.dataset import named
from gen.errors import UserError

UNICODE = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich — 日本語 🎉\n"
LETTERS = dict(enumerate("abcdefghijklmnopqrstuvwxyz \n.é日🎉"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


def random_text(seed: int, n: int) -> str:
    return "".join(LETTERS[i] for i in np.random.default_rng(seed).integers(0, len(LETTERS), n).tolist())


@pytest.fixture
def book(tmp_path) -> Path:
    """60 chapters of 50 to 250 letters."""
    lengths = np.random.default_rng(0).integers(50, 250, 60)
    text = "".join(f"CHAPTER {i}\n{random_text(i, n)}\n" for i, n in enumerate(lengths))
    return write(tmp_path / "book.txt", text)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def chapters(path: Path) -> list[str]:
    return ["CHAPTER " + each for each in path.read_text().split("CHAPTER ")[1:]]


def of_book(book: Path, **options: Any) -> Text:
    defaults: Any = {"name": f"text:{book}", "document_break": "^(?=CHAPTER )", "length": 16, "batch_size": 8}
    return Text(**defaults | options)


def lines(path: Path, *values: Any) -> Path:
    return write(path, "".join(json.dumps(value) + "\n" for value in values))


def together(batches) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def whole(data: Dataset, split: str) -> dict[str, np.ndarray]:
    """A split without its padding."""
    found = together(data.evaluation(split, 7))
    return {name: value[found["weight"] > 0] for name, value in found.items()}


def stream_of(data: Dataset, split: str) -> np.ndarray:
    """A split's tokens from its disjoint windows: the first one, and then all that count."""
    found = whole(data, split)
    return np.concatenate([found["tokens"][0, :1], found["tokens"][found["counted"] == 1]])


def texts_of(data: Dataset, split: str) -> list[str]:
    """A split's documents."""
    tokenizer = tokenizers.load(data.files["tokenizer.json"])
    stream = stream_of(data, split)
    return [tokenizers.decode(tokenizer, part.tolist()) for part in np.split(stream, np.flatnonzero(stream == 0))[1:]]


def as_bytes(documents: list[str]) -> np.ndarray:
    """The stream of a byte tokenizer."""
    return np.array([token for text in documents for token in (0, *(byte + 1 for byte in text.encode()))])


def hashed(text: str, share: float) -> str:
    """The split of a document by its hash, by the decimal expansion of a fraction."""
    u = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 16**16
    return "validation" if u < share else "test" if u < 2 * share else "train"


def same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype, name


def test_the_spec_and_a_batch_are_typed_for_the_host(book):
    data = of_book(book).build()
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
def test_evaluation_counts_every_token_once(book, stride, tokenizer):
    data = of_book(book, stride=stride, tokenizer=tokenizer).build()
    disjoint = of_book(book, tokenizer=tokenizer).build()
    own = stride or 16
    for split in ("validation", "test"):
        stream, found = stream_of(disjoint, split), whole(data, split)
        assert len(found["row"]) == data.sizes[split]
        place = np.arange(data.sizes[split])[:, None] * own + np.arange(17)
        there = place < len(stream)
        np.testing.assert_array_equal(found["tokens"][there], stream[place[there]])
        assert (found["tokens"][~there] == 0).all()
        times = np.bincount(place[found["counted"] == 1], minlength=len(stream))
        np.testing.assert_array_equal(times, np.arange(len(stream)) > 0)
        columns = np.nonzero(found["counted"][1:])[1]
        assert columns.min() == 17 - own  # at least 16 - stride tokens between it and the first


def test_the_stream_is_the_documents_with_the_end_before_each(book):
    data = of_book(book).build()
    documents = chapters(book)
    for split in ("validation", "test"):
        own = [text for text in documents if hashed(text, 0.1) == split]
        assert 2 <= len(own) < 20
        np.testing.assert_array_equal(stream_of(data, split), as_bytes(own))


@pytest.mark.parametrize("tokenizer", ["byte", "character", "bpe"])
def test_bytes_are_those_of_the_text(book, tokenizer):
    data = of_book(book, tokenizer=tokenizer, vocabulary=300).build()
    for split in ("validation", "test"):
        own = [text for text in chapters(book) if hashed(text, 0.1) == split]
        assert texts_of(data, split) == own
        assert whole(data, split)["bytes"].sum() == len("".join(own).encode())
    tokenizer = tokenizers.load(data.files["tokenizer.json"])
    batch = data.batch(0, 0, range(8))
    if tokenizers.size(tokenizer) != 257:  # bytes alone may be half of a character
        texts = [tokenizers.pieces(tokenizer)[token] for token in batch["tokens"][:, 1:].ravel()]
        assert batch["bytes"].sum() == sum(map(len, texts))


def test_training_is_a_function_of_seed_step_and_row(book):
    data, again = of_book(book).build(), of_book(book).build()
    for step in (0, 3, 1000, 10**7):
        batch = data.batch(3, step, range(8))
        same(batch, together(again.batch(3, step, rows) for rows in (range(0, 1), range(1, 5), range(5, 8))))
        same({k: v[1::2] for k, v in batch.items()}, data.batch(3, step, range(1, 8, 2)))
        np.testing.assert_array_equal(batch["row"], np.arange(8))
    assert (data.batch(4, 0, range(8))["tokens"] != data.batch(3, 0, range(8))["tokens"]).any()


def test_an_epoch_sees_each_token_once_from_a_phase_of_its_own(book):
    data = of_book(book).build()
    stream = as_bytes([text for text in chapters(book) if hashed(text, 0.1) == "train"])
    n = data.sizes["train"]
    assert n == len(stream) // 16 - 1
    found = together(data.batch(3, step, range(8)) for step in range(-(-6 * n // 8)))
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


def test_all_phases_fit_a_stream_of_any_length(tmp_path):
    for n in (17, 18, 31, 32, 33, 47, 48, 49):  # tokens to train on, the end among them
        text = random_text(n, 10 * n).encode("ascii", "replace").decode()[: math.ceil((n - 1) / 0.5)]
        data = of_book(write(tmp_path / f"{n}.txt", text), split="tail:0.5", document_break=None).build()
        starts = {data.batch(seed, 0, range(1))["tokens"][0].tobytes() for seed in range(600)}
        stream = as_bytes([text[: int(len(text) * 0.5)]])
        assert len(stream) == n
        windows = np.lib.stride_tricks.sliding_window_view(stream.astype(np.int32), 17)
        assert starts <= {window.tobytes() for window in windows}
        phases = min(16, n - 16 * data.sizes["train"])
        assert len(starts) == min(phases * data.sizes["train"], len({window.tobytes() for window in windows}))


def test_a_corpus_may_be_too_short(tmp_path):
    config = of_book(write(tmp_path / "a.txt", "0123456789" * 3), split="tail:0.5", document_break=None)
    with pytest.raises(UserError, match=r"--data\.length 16 needs 17 tokens to train on, and there are 16"):
        config.build()


def test_the_tail_is_nanogpts(tmp_path):
    text = random_text(0, 2003).encode("ascii", "replace").decode()
    data = of_book(
        write(tmp_path / "a.txt", text), split="tail:0.1", document_break=None, tokenizer="character"
    ).build()
    assert (texts_of(data, "validation"), texts_of(data, "test")) == ([text[int(2003 * 0.9) :]],) * 2
    stoi = {character: i + 1 for i, character in enumerate(sorted(set(text)))}  # as nanoGPT's prepare.py, after the end
    train = [0, *(stoi[character] for character in text[: int(2003 * 0.9)])]
    assert data.spec["tokens"].vocab == len(stoi) + 1
    seen = {x.tobytes() for step in range(1000) for x in data.batch(0, step, range(8))["tokens"]}
    windows = np.lib.stride_tricks.sliding_window_view(np.array(train, np.int32), 17)
    assert seen <= {window.tobytes() for window in windows}
    assert len(seen) > 0.9 * len(windows)


def test_the_tail_of_several_documents_is_of_their_joined_text(tmp_path):
    texts = [random_text(seed, 100) for seed in range(5)]
    for i, text in enumerate(texts):
        write(tmp_path / "texts" / f"{i}.txt", text)
    data = of_book(tmp_path / "texts", split="tail:0.3", document_break=None).build()
    assert texts_of(data, "validation") == [texts[3][50:], texts[4]]


def test_splits_are_disjoint_and_frozen(book):
    def splits() -> dict[str, set[str]]:
        data = of_book(book, length=1).build()
        return {split: set(texts_of(data, split)) for split in ("train", "validation", "test")}

    first = splits()
    assert sum(map(len, first.values())) == len(set().union(*first.values())) == 60
    write(book, "CHAPTER new\nnothing of this was there\n" + book.read_text() + "CHAPTER 99\nnor this\n")
    later = splits()
    assert sum(map(len, later.values())) == 62
    assert all(first[split] <= later[split] for split in first)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("hash:0.5", "no share above 0 and below 0.5"),
        ("hash:x", "no share"),
        ("tail:nan", "no share"),
        ("tail:1", "below 1"),
        ("90%", "neither hash:0.1, tail:0.1 nor three slices"),
        ("train[:90%],train[90%:],test", "has no splits to slice"),
        ("hash:0.000001", "leaves no document for validation"),
    ],
)
def test_a_wrong_split_is_named(book, split, message):
    with pytest.raises(UserError, match=message) as error:
        of_book(book, split=split).build()
    assert f"--data.split {split!r}" in str(error.value)


def test_cleaning_is_counted_and_said(tmp_path, capsys):
    folder = tmp_path / "texts"
    write(folder / "b" / "one.txt", "\ufeffone\r\ntwo\rthree\n\x00\x1b\x85\tfour\x7f")
    write(folder / "c.md", "one\ntwo\nthree\n\tfour")
    write(folder / "d.txt", "  ab \n")
    write(folder / "empty.txt", "")
    write(folder / ".hidden", "hidden")
    write(folder / ".git" / "x", "hidden")
    write(folder / "a.txt", "first of all" * 9)
    for _ in range(2):  # made, and from the cache
        data = of_book(folder, split="tail:0.5", document_break=None, min_characters=3, length=4).build()
        said = "2 documents, 127 characters; dropped 1 duplicates, 2 short, 4 control characters"
        assert capsys.readouterr().err == f"text:{folder}: {said}\n"
    assert "".join(texts_of(data, "validation")) == ("first of all" * 9 + "one\ntwo\nthree\n\tfour")[63:]


def test_what_stands_between_documents_is_left_out(tmp_path):
    path = write(tmp_path / "a.txt", "<end>one one\n<end>two<end><end>three\n<end>")
    data = of_book(path, document_break="<end>\n?", split="tail:0.9", length=1).build()
    assert texts_of(data, "validation") == ["ne one\n", "two", "three\n"]


def test_literal_ends_are_text(tmp_path):
    path = write(tmp_path / "a.txt", "a <|endoftext|> is spelled out. " * 20)
    data = of_book(path, split="tail:0.5", document_break=None).build()
    assert texts_of(data, "validation") == ["a <|endoftext|> is spelled out. " * 10]


def test_long_texts_are_cut_where_no_token_ends_elsewhere(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat's", "  sat", "\n", "\n\n", " \n", ".\n", "日本", "42", "\t"])
    path = write(tmp_path / "a.txt", "".join(rng.choice(words, 4000)))
    streams = []
    for chunk, piece in ((2**20, 2**16), (700, 40)):
        monkeypatch.setattr(corpus, "CHUNK", chunk)
        monkeypatch.setattr(corpus, "PIECE", piece)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(chunk)))
        data = of_book(path, split="tail:0.5", document_break=None, tokenizer="bpe", vocabulary=400).build()
        streams.append(stream_of(data, "validation"))
    assert len(list(corpus.pieces(path.read_text()))) > 50
    np.testing.assert_array_equal(*streams)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff \r\n\x00"])
def test_an_empty_text_is_refused(tmp_path, content):
    path = write(tmp_path / "a.txt", content)
    with pytest.raises(UserError, match=re.escape(f"text:{path}: it is empty")):
        of_book(path).build()
    with pytest.raises(UserError, match="empty"):
        Text(name=f"jsonl:{write(tmp_path / 'a.jsonl', content.replace(chr(0), ''))}").build()


def test_what_is_not_utf8_is_named_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_bytes(UNICODE.encode() + b"caf\xe9\n")
    place = rf"a\.txt: is not UTF-8 \(byte 0xe9 at offset {len(UNICODE.encode()) + 3}\)"
    with pytest.raises(UserError, match=place):
        of_book(tmp_path / "a.txt").build()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: is not UTF-8 \(byte 0xe9 at offset 30\)"):
        Text(name=f"jsonl:{tmp_path / 'a.jsonl'}").build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "pydocs"}, "pydocs is not prepared"),
        ({"name": "../mnist"}, "neither pydoc, text:PATH, jsonl:PATH nor a TFDS name"),
        ({"name": "text:"}, "--data.name text:PATH"),
        ({"name": "text:/no/such/place"}, "no such file or folder"),
        ({"batch_size": 0}, "--data.batch-size is 0"),
        ({"length": 0}, "--data.length is 0"),
        ({"stride": 300}, "at most --data.length 256"),
        ({"stride": 0}, "--data.stride is 0"),
        ({"source_length": 0}, "--data.source-length is 0"),
        ({"min_characters": 0}, "--data.min-characters is 0"),
        ({"tokenizer": "bpe", "vocabulary": 256}, "at least 257"),
        ({"tokenizer": "/no/such/place"}, "/no/such/place can't be read as a tokenizer"),
        ({"document_break": "("}, "no regular expression"),
    ],
)
def test_a_wrong_option_is_named(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Text(**{"data_dir": str(tmp_path), **options}).build()


def test_a_folder_without_files_is_an_error(tmp_path):
    write(tmp_path / ".hidden", "hidden")
    with pytest.raises(UserError, match="there are no text files"):
        of_book(tmp_path).build()
    with pytest.raises(UserError, match=r"there are no \.jsonl files"):
        Text(name=f"jsonl:{tmp_path}").build()


def test_a_single_label_is_refused(tmp_path):
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": "same"}) + "\n" for i in range(40)))
    with pytest.raises(UserError, match="the label of each line is 'same'"):
        Text(name=f"jsonl:{path}", tokenizer="byte", length=32).build()


def test_the_tokenizer_is_trained_on_the_training_split(book):
    data = of_book(book, tokenizer="bpe", vocabulary=300).build()
    train = [text for text in chapters(book) if hashed(text, 0.1) == "train"]
    assert data.files["tokenizer.json"] == tokenizers.dump(tokenizers.bpe(train, 300))
    assert data.spec["tokens"].vocab == 300
    kept = book.with_name("tokenizer.json")
    kept.write_bytes(data.files["tokenizer.json"])
    again = of_book(book, tokenizer=str(kept)).build()
    assert data.protocol["tokenizer"] == again.protocol["tokenizer"]  # whoever trained it
    assert data.protocol["tokenizer"].startswith("of 300 tokens, sha256 ")


def test_the_alphabet_is_of_all_splits(book):
    data = of_book(book, tokenizer="character").build()
    assert data.spec["tokens"].vocab == len(set(book.read_text())) + 1


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_tokenizer_may_come_from_elsewhere(book, tmp_path, where):
    (tmp_path / "run").mkdir()
    own = tmp_path / "run" / "tokenizer.json"
    own.write_bytes(tokenizers.dump(tokenizers.character(LETTERS.values())))
    path = own if where == "file" else own.parent
    with pytest.raises(UserError, match="can't say 'C'"):
        of_book(book, tokenizer=str(path)).build()
    own.write_bytes(tokenizers.dump(tokenizers.character({*book.read_text(), "X"})))
    data = of_book(book, tokenizer=str(path)).build()
    assert data.files["tokenizer.json"] == own.read_bytes()


def test_a_large_vocabulary_takes_more_bits(tmp_path):
    characters = "".join(map(chr, range(0x10000, 0x10000 + 2**16)))
    data = of_book(write(tmp_path / "a.txt", characters), split="tail:0.5", tokenizer="character").build()
    assert data.spec["tokens"].vocab == 2**16 + 1
    assert texts_of(data, "test") == [characters[2**15 :]]


def test_the_digest_is_of_tokens_and_tokenizer(book):
    digest = of_book(book).build().digest
    assert of_book(book, batch_size=3, length=5, stride=2).build().digest == digest
    others = [{"split": "hash:0.2"}, {"tokenizer": "bpe"}, {"document_break": "CHAPTER"}, {"min_characters": 120}]
    digests = [of_book(book, **options).build().digest for options in others]
    write(book, book.read_text().replace("CHAPTER 7\n", "CHAPTER 7!"))
    digests.append(of_book(book).build().digest)
    assert len({digest, *digests}) == 6


def test_the_second_start_tokenizes_nothing(book, monkeypatch):
    first = of_book(book, tokenizer="bpe").build()
    monkeypatch.setattr(tokenizers, "bpe", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(tokenizers, "encode_all", lambda *_: pytest.fail("tokenized again"))
    again = of_book(book, tokenizer="bpe", length=8).build()
    assert again.digest == first.digest
    assert again.files == first.files
    np.testing.assert_array_equal(stream_of(again, "test"), stream_of(first, "test"))


def test_a_cache_that_cannot_be_written_is_no_error(book, tmp_path, monkeypatch):
    kept = of_book(book).build()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = of_book(book).build()
    same(data.batch(0, 3, range(8)), kept.batch(0, 3, range(8)))
    assert data.digest == kept.digest


def test_the_protocol_defines_the_numbers(book):
    split = {"held_out": "hash:0.1", "tokenizer": named(tokenizers.byte())}
    assert of_book(book).build().protocol == {**split, "windows": "disjoint, 16 tokens"}
    assert of_book(book, stride=4).build().protocol == {**split, "windows": "strided by 4, 16 tokens"}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert Text().build().protocol == {**split, "windows": "disjoint, 256 tokens", "python": version}


def test_importing_is_light():
    code = (
        "import sys, gen.data.text.dataset, jax._src.xla_bridge as bridge\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'sklearn', 'pydoc_data'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not bridge._backends\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_pydoc_is_pythons_documentation_by_section():
    from pydoc_data.topics import topics

    data = Text().build()
    found = [text for split in ("train", "validation", "test") for text in texts_of(data, split)]
    assert len(found) > 150
    assert len(set(found)) == len(found)
    quoted = next(text for text in found if text.startswith('The "while" statement\n'))
    assert not re.search(r"^\S.*\n[*=~-]{3,}$", "".join(found), re.MULTILINE)
    body = re.sub(r"^[*=~-]{3,}\n", "", topics["while"], flags=re.MULTILINE)
    assert quoted.split() == body.split()  # "compound" has the same section below another line
    words = {word for text in topics.values() for word in re.sub(r"[*=~-]{3,}", " ", text).split()}
    assert {word for text in found for word in re.sub(r"[*=~-]{3,}", " ", text).split()} == words
    for split in ("validation", "test"):
        assert 20_000 < whole(data, split)["bytes"].sum() < 80_000


def test_baselines_are_of_the_test_split(book, monkeypatch):
    ngram = pytest.importorskip("gen.data.text.ngram")
    data = of_book(book, tokenizer="character").build()
    own = lambda split: [text for text in chapters(book) if hashed(text, 0.1) == split]
    train, test = ("\0".join(own(split)).encode() for split in ("train", "test"))
    found = data.baselines()
    assert found.keys() == {"kneser_ney", "kneser_ney_bits_per_byte", "kneser_ney_order", "xz_bits_per_byte"}
    expected = ngram.baselines(train, test)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["xz_bits_per_byte"] < 8 * len(lzma.compress(test)) / len(test)
    assert 0 < found["kneser_ney"] < math.log(len(LETTERS) + 20)
    monkeypatch.setattr(ngram, "kneser_ney", lambda *_: pytest.fail("counted again"))
    assert of_book(book, tokenizer="character").build().baselines() == found


def test_baselines_of_merged_tokens_are_of_bytes_alone(book):
    pytest.importorskip("gen.data.text.ngram")
    found = [of_book(book, tokenizer=tokenizer).build().baselines() for tokenizer in ("byte", "bpe")]
    assert found[0].keys() - found[1].keys() == {"kneser_ney"}
    assert all(found[0][name] == number for name, number in found[1].items())


def test_baselines_of_a_large_text_are_of_a_part_and_say_so(book, monkeypatch):
    pytest.importorskip("gen.data.text.ngram")
    small, numbers = of_book(book).build(), of_book(book).build().baselines()
    monkeypatch.setattr("gen.data.text.dataset.COUNTED", 1000)
    large = of_book(book).build()
    assert large.protocol["baselines"] == "of the last 1000 tokens of train and the first of test"
    assert "baselines" not in small.protocol
    assert large.baselines()["kneser_ney"] != numbers["kneser_ney"]


def test_lines_with_a_text_are_documents(book, tmp_path):
    texts = chapters(book)
    path = lines(tmp_path / "a.jsonl", *({"text": text, "meta": {"n": i}} for i, text in enumerate(texts)))
    data = Text(name=f"jsonl:{path}", length=16).build()
    plain = of_book(book).build()
    for split in ("validation", "test"):
        assert texts_of(data, split) == texts_of(plain, split)
    assert list(data.files) == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"text": "b"', r"a\.jsonl:3: is no JSON \(.*column 13\)"),
        ("3", r"a\.jsonl:3: is no JSON object"),
        ('{"text": "b", "label": "c"}', r"a\.jsonl:3: has the keys label, text, and .*:1 text: all lines"),
        ('{"text": null}', r'a\.jsonl:3: its "text" is null, and no text'),
        ('{"text": "\\ud83d"}', r'a\.jsonl:3: its "text" has half a character'),
        ("[" * 100_000, r"a\.jsonl:3: is (nested too deeply|no JSON)"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, second, message):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n' + second + "\n")
    with pytest.raises(UserError, match=message):
        Text(name=f"jsonl:{path}").build()


@pytest.mark.parametrize(
    "keys", [("label",), ("target",), ("source",), ("source", "label", "x")[:1], ("prompt", "target")]
)
def test_lines_without_text_are_refused(tmp_path, keys):
    path = lines(tmp_path / "a.jsonl", dict.fromkeys(keys, "x"))
    with pytest.raises(UserError, match=r'a\.jsonl:1: has the keys .*; a line needs "text", "source" and "target"'):
        Text(name=f"jsonl:{path}").build()


PAIRS = [{"source": f"{i} + {i % 7}", "target": f"{i + i % 7}"} for i in range(100)]


def of_pairs(path: Path, *pairs: Any, **options: Any) -> Text:
    defaults: Any = {"name": f"jsonl:{lines(path / 'pairs.jsonl', *pairs)}", "length": 16, "batch_size": 8}
    return Text(**defaults | options)


def row_of(data: Dataset, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Tokens and what counts of a joined pair, as bytes."""
    a, b = ([byte + 1 for byte in text.encode()] for text in (prompt, target))
    width = data.spec["tokens"].shape[0]
    tokens = [0, *a, *b, 0]
    counted = [0] * (1 + len(a)) + [1] * (len(b) + 1)
    padding = [0] * (width - len(tokens))
    return tokens + padding, counted + padding


def test_a_pair_counts_its_target_and_the_end_after_it(tmp_path):
    data = of_pairs(tmp_path, *PAIRS).build()
    splits = {split: [pair for pair in PAIRS if hashed(pair["source"], 0.1) == split] for split in data.sizes}
    assert data.sizes == {split: len(pairs) for split, pairs in splits.items()}
    for split, pairs in splits.items():
        found = whole(data, split)
        rows = [row_of(data, pair["source"] + "\n", pair["target"]) for pair in pairs]
        np.testing.assert_array_equal(found["tokens"], [tokens for tokens, _ in rows])
        np.testing.assert_array_equal(found["counted"], [counted for _, counted in rows])
        np.testing.assert_array_equal(found["bytes"], [len(pair["target"]) for pair in pairs])
    assert data.protocol["windows"] == "joined pairs, 16 tokens"
    assert data.baselines() == {}
    assert data.spec == {"tokens": Feature((17,), "int32", vocab=257, end=0)}


def test_pairs_come_in_a_new_order_each_epoch(tmp_path):
    data = of_pairs(tmp_path, *PAIRS).build()
    n, train = data.sizes["train"], whole(data, "train")
    found = together(data.batch(1, step, range(8)) for step in range(-(-2 * n // 8)))
    same(found | {}, together(data.batch(1, step, range(i, i + 4)) for step in range(-(-2 * n // 8)) for i in (0, 4)))
    epochs = found["index"][: 2 * n].reshape(2, n)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(n), (2, 1)))
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(found["tokens"], train["tokens"][found["index"]])
    np.testing.assert_array_equal(found["counted"], train["counted"][found["index"]])


def test_a_template_has_the_keys_of_the_line(tmp_path):
    pairs = [{"text": f"n{i}", "label": ["odd", "even"][i % 2], "id": i, "meta": []} for i in range(40)]
    options = {"template": "{id}. {text}{{}\nlabel:", "length": 32, "split": "tail:0.25"}
    data = of_pairs(tmp_path, *pairs, **options).build()
    tokenizer = tokenizers.load(data.files["tokenizer.json"])
    found = whole(data, "validation")
    texts = [tokenizers.decode(tokenizer, tokens.tolist()) for tokens in found["tokens"]]
    assert texts == [f"{i}. n{i}{{{{}}\nlabel:{['odd', 'even'][i % 2]}".replace("{{}", "{{}") for i in range(30, 40)]
    assert json.loads(data.files["labels.json"]) == ["even", "odd"]
    with pytest.raises(UserError, match=r"--data\.template has \{meta\}, and the lines of .* have id, label, text"):
        of_pairs(tmp_path, *pairs, template="{meta}").build()


def test_the_split_of_a_pair_is_of_its_source(tmp_path):
    """Whatever the template, and with every target of a source."""
    twice = [{**pair, "target": pair["target"] + mark} for pair in PAIRS for mark in ("", "!")]
    sizes = [of_pairs(tmp_path, *twice, template=template).build().sizes for template in ("{source}", "= {source}:")]
    assert sizes[0] == sizes[1]
    once = of_pairs(tmp_path, *PAIRS).build().sizes
    assert sizes[0] == {split: 2 * n for split, n in once.items()}


def test_many_labels_are_no_classes(tmp_path):
    for n, there in ((1000, True), (1001, False)):
        data = of_pairs(tmp_path, *({"text": str(i), "label": str(i)} for i in range(n))).build()
        assert ("labels.json" in data.files) == there


def test_long_sources_lose_their_beginning_and_long_targets_are_dropped(tmp_path, capsys):
    pairs = [{"source": "x" * i + "abc", "target": "t" * (i + 1)} for i in range(20)]
    data = of_pairs(tmp_path, *pairs, split="tail:0.5", length=16).build()
    found = whole(data, "validation")  # targets of 11 to 20 letters: an end, the target, an end and the source in 17
    assert data.sizes == {"train": 10, "validation": 5, "test": 5}
    for i, tokens, counted in zip(range(10, 15), found["tokens"], found["counted"], strict=True):
        target = "t" * (i + 1)
        prompt = ("x" * i + "abc\n")[max(i + 4 - (15 - len(target)), 0) :] if len(target) < 15 else ""
        assert (tokens.tolist(), counted.tolist()) == row_of(data, prompt, target)
    assert data.protocol["cut"] == 5
    assert data.protocol["dropped"] == 5
    cut = sum(i + 4 + i + 1 > 15 for i in range(10))
    assert f"{cut + 10} prompts lost their beginning; dropped 10 pairs" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--data\.length 8 is too short for every target of validation: .* 11 tokens"):
        of_pairs(tmp_path, *pairs, split="tail:0.5", length=8).build()


def test_separate_sources(tmp_path):
    options = {"pairs": "separate", "source_length": 6, "length": 8, "template": "{source}"}
    data = of_pairs(tmp_path, *PAIRS, **options).build()
    assert data.spec == {
        "tokens": Feature((9,), "int32", vocab=257, end=0),
        "source": Feature((6,), "int32", vocab=257, end=0),
    }
    pairs = [pair for pair in PAIRS if hashed(pair["source"], 0.1) == "test"]
    found = whole(data, "test")
    rows = [row_of(data, "", pair["target"]) for pair in pairs]
    np.testing.assert_array_equal(found["tokens"], [tokens for tokens, _ in rows])
    np.testing.assert_array_equal(found["counted"], [counted for _, counted in rows])
    sources = [[byte + 1 for byte in pair["source"].encode()] for pair in pairs]
    np.testing.assert_array_equal(found["source"], [source + [0] * (6 - len(source)) for source in sources])
    assert found["source"].dtype == np.int32
    short = of_pairs(tmp_path, *PAIRS, **{**options, "source_length": 4}).build()
    np.testing.assert_array_equal(whole(short, "test")["source"], [(source[-4:] + [0] * 4)[:4] for source in sources])
    assert of_pairs(tmp_path, *PAIRS, pairs="separate").build().spec["source"].shape == (16,)


def test_pairs_have_no_stride(tmp_path):
    with pytest.raises(UserError, match=r"--data\.stride 4 is of windows"):
        of_pairs(tmp_path, *PAIRS, stride=4).build()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A folder where a set "little" of texts is prepared: train of 40, test of 10, one of them in train too."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import skip_registration

    texts = {"train": [f"train {i}: {UNICODE}" for i in range(40)], "test": [f"test {i}" for i in range(9)]}
    texts["test"].append(texts["train"][5])

    with skip_registration():

        class Little(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features: Any = {"title": tfds.features.Text(), "text": tfds.features.Text(), "label": np.int64}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(each) for split, each in texts.items()}

            def _generate_examples(self, texts):
                for i, text in enumerate(texts):
                    yield i, {"title": "no", "text": text, "label": 1}

    path = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Little(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def little(data_dir: Path, **options: Any) -> Text:
    return Text(**{"name": "little", "data_dir": str(data_dir), "length": 8, **options})


def test_a_tfds_set_by_slices(data_dir, capsys):
    import tensorflow_datasets as tfds

    data = little(data_dir, split="train[:75%],train[75%:],test").build()
    for split, slice_ in (("train", "train[:30]"), ("validation", "train[30:]"), ("test", "test")):
        builder: Any = tfds.builder_from_directory(data_dir / "little" / "1.0.0")
        texts = [example["text"].decode() for example in builder.as_data_source(slice_)]
        assert {len(texts) - len(texts_of(data, split))} <= {0, 1}
        assert set(texts_of(data, split)) <= set(texts)
    assert "49 documents" in capsys.readouterr().err  # what is in train is no test
    assert len([text for split in data.sizes for text in texts_of(data, split)]) == 49


def test_a_tfds_set_by_hash_and_with_one_held_out_slice(data_dir, capsys):
    data = little(data_dir).build()
    found = {split: texts_of(data, split) for split in data.sizes}
    assert sum(map(len, found.values())) == 49
    assert all(hashed(text, 0.1) == split for split, texts in found.items() for text in texts)
    capsys.readouterr()
    both = little(data_dir, split="train, test, test").build()
    assert texts_of(both, "validation") == texts_of(both, "test")
    assert "49 documents" in (said := capsys.readouterr().err)
    assert "dropped 1 duplicates" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian,train,test"}, r"--data\.split: .*little has the splits train \(40\), test \(10\)"),
        ({"split": "train[,train,test"}, "--data.split"),
        ({"name": "littler"}, "littler is not prepared"),
    ],
)
def test_a_wrong_slice_or_set_is_named(data_dir, options, message):
    with pytest.raises(UserError, match=message):
        little(data_dir, **options).build()
