"""Text data sets: splits, cleaning, tokenizers, the cache, the protocol and the baselines."""

import json
import lzma
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gen.data.text import Text, cleaning, streams, tokenizers
from gen.data.text.dataset import describe_tokenizer
from gen.errors import UserError
from tests.datasets import (
    LETTERS,
    assert_same,
    random_text,
    read_chapters,
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


def test_the_tail_split_cuts_the_joined_text_of_all_documents(tmp_path):
    texts = [random_text(seed, 100) for seed in range(5)]
    for i, text in enumerate(texts):
        write_text(tmp_path / "texts" / f"{i}.txt", text)
    data = text_of(tmp_path / "texts", split="tail:0.3", document_break=None).build()
    assert read_texts(data, "validation") == [texts[3][50:], texts[4]]


def test_documents_stay_in_their_split_when_others_are_added(book):
    def splits() -> dict[str, set[str]]:
        data = text_of(book, length=1).build()
        return {split: set(read_texts(data, split)) for split in ("train", "validation", "test")}

    first = splits()
    assert sum(map(len, first.values())) == len(set().union(*first.values())) == 60
    write_text(book, "CHAPTER new\nnothing of this was there\n" + book.read_text() + "CHAPTER 99\nnor this\n")
    later = splits()
    assert sum(map(len, later.values())) == 62
    assert all(first[split] <= later[split] for split in first)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("hash:0.5", "not a fraction above 0 and below 0.5"),
        ("hash:x", "not a fraction"),
        ("tail:nan", "not a fraction"),
        ("tail:1", "below 1"),
        ("90%", "neither hash:0.1, tail:0.1 nor three slices"),
        ("train[:90%],train[90%:],test", "has no splits to slice"),
        ("hash:0.000001", "leaves no document for validation"),
    ],
)
def test_a_wrong_split_is_named(book, split, message):
    with pytest.raises(UserError, match=message) as error:
        text_of(book, split=split).build()
    assert f"--data.split {split!r}" in str(error.value)


def test_cleaning_is_counted_and_printed(tmp_path, capsys):
    folder = tmp_path / "texts"
    write_text(folder / "b" / "one.txt", "\ufeffone\r\ntwo\rthree\n\x00\x1b\x84\tfour\x7f")
    write_text(folder / "c.md", "one\ntwo\nthree\n\tfour")
    write_text(folder / "d.txt", "  ab \n")
    write_text(folder / "empty.txt", "")
    write_text(folder / ".hidden", "hidden")
    write_text(folder / ".git" / "x", "hidden")
    write_text(folder / "a.txt", "first of all" * 9)
    # The first build makes the corpus, and the second reads it from the cache.
    for _ in range(2):
        data = text_of(folder, split="tail:0.5", document_break=None, min_characters=3, length=4).build()
        said = "2 documents, 127 characters; dropped 1 duplicates, 2 short, 4 control characters"
        assert capsys.readouterr().err == f"text:{folder}: {said}\n"
    assert "".join(read_texts(data, "validation")) == ("first of all" * 9 + "one\ntwo\nthree\n\tfour")[63:]


@pytest.mark.parametrize("separator", ["\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\u2028", "\u2029", "\n\f"])
def test_characters_that_separate_do_not_glue_words_together(separator):
    """They are the white space of str.isspace that is not a plain space, tab or newline."""
    counts = Counter[str]()
    found = cleaning.clean_text(f"of one page{separator}the next page", counts)
    assert found.split() == ["of", "one", "page", "the", "next", "page"]
    assert not cleaning.CONTROL.search(found) and counts["control characters"] == 0


def test_the_separator_of_documents_is_left_out(tmp_path):
    path = write_text(tmp_path / "a.txt", "<end>one one\n<end>two<end><end>three\n<end>")
    data = text_of(path, document_break="<end>\n?", split="tail:0.9", length=1).build()
    assert read_texts(data, "validation") == ["ne one\n", "two", "three\n"]


def test_an_end_token_that_is_spelled_out_is_text(tmp_path):
    path = write_text(tmp_path / "a.txt", "a <|endoftext|> is spelled out. " * 20)
    data = text_of(path, split="tail:0.5", document_break=None).build()
    assert read_texts(data, "validation") == ["a <|endoftext|> is spelled out. " * 10]


def test_cutting_long_texts_does_not_change_their_tokens(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    # Places where a tokenizer might join characters across a cut: spaces, newlines, letters without spaces.
    words = np.array(["the", "cat's", "  sat", "\n", "\n\n", " \n", ".\n", "日本", "42", "\t"])
    path = write_text(tmp_path / "a.txt", "".join(rng.choice(words, 4000)))
    found = []
    for chunk, piece in ((2**20, 2**16), (700, 40)):
        monkeypatch.setattr(streams, "BATCH_CHARACTERS", chunk)
        monkeypatch.setattr(streams, "PIECE_CHARACTERS", piece)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(chunk)))
        data = text_of(path, split="tail:0.5", document_break=None, tokenizer="bpe", vocabulary=400).build()
        found.append(read_stream(data, "validation"))
    assert len(list(streams.cut_pieces(path.read_text()))) > 50
    np.testing.assert_array_equal(*found)


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
        ({"tokenizer": "/no/such/place"}, "/no/such/place cannot be read as a tokenizer"),
        ({"document_break": "("}, "not a regular expression"),
        ({"keys": ("text=content",)}, r"--data\.keys text=content: pydoc has no keys"),
    ],
)
def test_a_wrong_option_is_named(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        Text(**{"data_dir": str(tmp_path), **options}).build()


def test_a_single_label_is_an_error(tmp_path):
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": "same"}) + "\n" for i in range(40)))
    with pytest.raises(UserError, match="the label of each line is 'same'"):
        Text(name=f"jsonl:{path}", tokenizer="byte", length=32).build()


def test_the_tokenizer_is_trained_on_the_training_split(book):
    data = text_of(book, tokenizer="bpe", vocabulary=300).build()
    train = [text for text in read_chapters(book) if split_of(text, 0.1) == "train"]
    assert data.files["tokenizer.json"] == tokenizers.dump(tokenizers.bpe(train, 300))
    assert data.spec["tokens"].vocab == 300
    kept = book.with_name("tokenizer.json")
    kept.write_bytes(data.files["tokenizer.json"])
    again = text_of(book, tokenizer=str(kept)).build()
    # Training and reading the same tokenizer give comparable scores.
    assert data.protocol["tokenizer"] == again.protocol["tokenizer"]
    assert data.protocol["tokenizer"].startswith("of 300 tokens, sha256 ")


def test_the_alphabet_has_the_characters_of_all_splits(book):
    data = text_of(book, tokenizer="character").build()
    assert data.spec["tokens"].vocab == len(set(book.read_text())) + 1


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_tokenizer_can_be_read_from_a_file_or_folder(book, tmp_path, where):
    (tmp_path / "run").mkdir()
    own = tmp_path / "run" / "tokenizer.json"
    own.write_bytes(tokenizers.dump(tokenizers.character(LETTERS.values())))
    path = own if where == "file" else own.parent
    with pytest.raises(UserError, match="cannot write 'C'"):
        text_of(book, tokenizer=str(path)).build()
    own.write_bytes(tokenizers.dump(tokenizers.character({*book.read_text(), "X"})))
    data = text_of(book, tokenizer=str(path)).build()
    assert data.files["tokenizer.json"] == own.read_bytes()


def test_a_large_vocabulary_has_32_bit_tokens(tmp_path):
    characters = "".join(map(chr, range(0x10000, 0x10000 + 2**16)))
    data = text_of(write_text(tmp_path / "a.txt", characters), split="tail:0.5", tokenizer="character").build()
    assert data.spec["tokens"].vocab == 2**16 + 1
    assert read_texts(data, "test") == [characters[2**15 :]]


def test_the_digest_depends_on_tokens_and_tokenizer_alone(book):
    digest = text_of(book).build().digest
    assert text_of(book, batch_size=3, length=5, stride=2).build().digest == digest
    others = [{"split": "hash:0.2"}, {"tokenizer": "bpe"}, {"document_break": "CHAPTER"}, {"min_characters": 120}]
    digests = [text_of(book, **options).build().digest for options in others]
    write_text(book, book.read_text().replace("CHAPTER 7\n", "CHAPTER 7!"))
    digests.append(text_of(book).build().digest)
    assert len({digest, *digests}) == 6


def test_the_second_build_reads_the_cache(book, monkeypatch):
    first = text_of(book, tokenizer="bpe").build()
    monkeypatch.setattr(tokenizers, "bpe", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(tokenizers, "encode_all", lambda *_: pytest.fail("tokenized again"))
    again = text_of(book, tokenizer="bpe", length=8).build()
    assert again.digest == first.digest
    assert again.files == first.files
    np.testing.assert_array_equal(read_stream(again, "test"), read_stream(first, "test"))


def test_a_cache_that_cannot_be_written_is_not_an_error(book, tmp_path, monkeypatch):
    kept = text_of(book).build()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data = text_of(book).build()
    assert_same(data.batch(0, 3, range(8)), kept.batch(0, 3, range(8)))
    assert data.digest == kept.digest


def test_the_protocol_names_split_tokenizer_and_windows(book):
    split = {"held_out": "hash:0.1", "tokenizer": describe_tokenizer(tokenizers.byte())}
    assert text_of(book).build().protocol == {**split, "windows": "disjoint, 16 tokens"}
    assert text_of(book, stride=4).build().protocol == {**split, "windows": "strided by 4, 16 tokens"}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert Text().build().protocol == {**split, "windows": "disjoint, 256 tokens", "python": version}


def test_importing_loads_no_heavy_package():
    code = (
        "import sys, gen.data.text.dataset, jax._src.xla_bridge as bridge\n"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'sklearn', 'pydoc_data'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not bridge._backends\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_baselines_score_the_test_split(book, monkeypatch):
    ngram = pytest.importorskip("gen.data.text.ngram")
    data = text_of(book, tokenizer="character").build()

    def own(split: str) -> list[str]:
        return [text for text in read_chapters(book) if split_of(text, 0.1) == split]

    train, test = ("\0".join(own(split)).encode() for split in ("train", "test"))
    found = data.baselines()
    assert found.keys() == {"kneser_ney", "kneser_ney_bits_per_byte", "kneser_ney_order", "xz_bits_per_byte"}
    expected = ngram.baselines(train, test)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["xz_bits_per_byte"] < 8 * len(lzma.compress(test)) / len(test)
    assert 0 < found["kneser_ney"] < math.log(len(LETTERS) + 20)
    monkeypatch.setattr(ngram, "kneser_ney", lambda *_: pytest.fail("counted again"))
    assert text_of(book, tokenizer="character").build().baselines() == found


def test_baselines_of_a_bpe_have_no_loss_per_token(book):
    pytest.importorskip("gen.data.text.ngram")
    found = [text_of(book, tokenizer=tokenizer).build().baselines() for tokenizer in ("byte", "bpe")]
    assert found[0].keys() - found[1].keys() == {"kneser_ney"}
    assert all(found[0][name] == number for name, number in found[1].items())


def test_baselines_of_a_large_text_use_a_part_and_the_protocol_says_so(book, monkeypatch):
    pytest.importorskip("gen.data.text.ngram")
    small, numbers = text_of(book).build(), text_of(book).build().baselines()
    monkeypatch.setattr("gen.data.text.dataset.MAX_COUNTED", 1000)
    large = text_of(book).build()
    assert large.protocol["baselines"] == "of the last 1000 tokens of train and the first of test"
    assert "baselines" not in small.protocol
    assert large.baselines()["kneser_ney"] != numbers["kneser_ney"]
