"""The sources of documents: files, JSON lines, Python's documentation, prepared TFDS sets."""

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen.data.text import Text, kinds
from gen.errors import UserError
from tests.datasets import (
    UNICODE,
    read_chapters,
    read_split,
    read_texts,
    split_of,
    text_of,
    write_book,
    write_lines,
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


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff \r\n\x00"])
def test_an_empty_text_is_an_error(tmp_path, content):
    path = write_text(tmp_path / "a.txt", content)
    with pytest.raises(UserError, match=re.escape(f"text:{path}: it is empty")):
        text_of(path).build()
    with pytest.raises(UserError, match="empty"):
        Text(name=f"jsonl:{write_text(tmp_path / 'a.jsonl', content.replace(chr(0), ''))}").build()


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path):
    (tmp_path / "a.txt").write_bytes(UNICODE.encode() + b"caf\xe9\n")
    place = rf"a\.txt: is not UTF-8 \(byte 0xe9 at offset {len(UNICODE.encode()) + 3}\)"
    with pytest.raises(UserError, match=place):
        text_of(tmp_path / "a.txt").build()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: is not UTF-8 \(byte 0xe9 at offset 30\)"):
        Text(name=f"jsonl:{tmp_path / 'a.jsonl'}").build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (UNICODE.encode("utf-16"), "UTF-16 text, .*iconv -f utf-16 "),
        (b"\xfe\xff" + UNICODE.encode("utf-16-be"), "UTF-16 text, .*iconv -f utf-16 "),
        ("plain words".encode("utf-16-le"), "UTF-16 text, .*iconv -f utf-16le "),
        ("plain words".encode("utf-16-be"), "UTF-16 text, .*iconv -f utf-16be "),
        (UNICODE.encode("utf-32"), "UTF-32 text, .*iconv -f utf-32 "),
        ("plain words".encode("utf-32-le"), "UTF-32 text, .*iconv -f utf-32le "),
        (gzip.compress(UNICODE.encode()), "a gzip file, .*gunzip"),
        (bz2.compress(UNICODE.encode()), "a bzip2 file, .*bunzip2"),
        (lzma.compress(UNICODE.encode()), "an xz file, .*unxz"),
        (b"PK\x03\x04\x14\0\0\0", "a zip archive, .*unzip"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG picture, .*folder:PATH"),
        (b"%PDF-1.7\n%abc", "a PDF document, .*pdftotext"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_file_that_is_not_utf8_is_named_as_what_it_is(tmp_path, kind, content, message):
    """The advice works for it: iconv from latin1 would make nonsense of UTF-16."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=f"a(:1)?: is {message}"):
        Text(name=f"{kind}:{tmp_path / 'a'}").build()


@pytest.mark.parametrize("text", ["", "a", "PAR1 is a word", "BZh", "abc\0", "\ufeffabc", UNICODE, "%PDF", "\0" * 8])
def test_a_text_is_not_taken_for_another_kind(text):
    assert kinds.recognize(text.encode()) is None


def test_a_json_array_is_read_like_lines(book, tmp_path):
    values = [{"text": text, "n": i} for i, text in enumerate(read_chapters(book))]
    lines = Text(name=f"jsonl:{write_lines(tmp_path / 'a.jsonl', *values)}", length=16).build()
    path = write_text(tmp_path / "a.json", "\ufeff \n" + json.dumps(values, indent=1) + "\n")
    assert Text(name=f"jsonl:{path}", length=16).build().digest == lines.digest
    for content, message in [
        ('[{"text": "a"}, 3]', r"a\.json: object 2: is not a JSON object"),
        ('[{"text": "a"},\n {"text": b}]', r"a\.json: is not valid JSON \(.*line 2, column 11\)"),
        ('[{"text": "a"}, {"test": "b"}]', r"a\.json: object 2: has the keys test, and .*object 1 has text"),
        ("[]", r"a\.json is empty"),
        (
            '{\n"text": "a"\n}',
            r"a\.json:1: is not valid JSON .*each line must be one whole object, or the file one array",
        ),
    ]:
        write_text(path, content)
        with pytest.raises(UserError, match=message):
            Text(name=f"jsonl:{path}").build()


def test_a_folder_without_files_is_an_error(tmp_path):
    write_text(tmp_path / ".hidden", "hidden")
    with pytest.raises(UserError, match="there are no text files"):
        text_of(tmp_path).build()
    write_text(tmp_path / "a.json", "[]")
    with pytest.raises(UserError, match=r"there are no \.jsonl files in it; it has 1 with \.json"):
        Text(name=f"jsonl:{tmp_path}").build()


def test_pydoc_has_all_words_of_pythons_documentation():
    from pydoc_data.topics import topics

    data = Text().build()
    found = [text for split in ("train", "validation", "test") for text in read_texts(data, split)]
    assert len(found) > 150
    assert len(set(found)) == len(found)
    quoted = next(text for text in found if text.startswith('The "while" statement\n'))
    assert not re.search(r"^\S.*\n[*=~-]{3,}$", "".join(found), re.MULTILINE)
    body = re.sub(r"^[*=~-]{3,}\n", "", topics["while"], flags=re.MULTILINE)
    # The topic "compound" has the same section, with another underline.
    assert quoted.split() == body.split()
    words = {word for text in topics.values() for word in re.sub(r"[*=~-]{3,}", " ", text).split()}
    assert {word for text in found for word in re.sub(r"[*=~-]{3,}", " ", text).split()} == words
    for split in ("validation", "test"):
        assert 20_000 < read_split(data, split)["bytes"].sum() < 80_000


def test_json_lines_with_a_text_are_documents(book, tmp_path):
    texts = read_chapters(book)
    path = write_lines(tmp_path / "a.jsonl", *({"text": text, "meta": {"n": i}} for i, text in enumerate(texts)))
    data = Text(name=f"jsonl:{path}", length=16).build()
    plain = text_of(book).build()
    for split in ("validation", "test"):
        assert read_texts(data, split) == read_texts(plain, split)
    assert list(data.files) == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"text": "b"', r"a\.jsonl:3: is not valid JSON \(.*column 13\)"),
        ("3", r"a\.jsonl:3: is not a JSON object"),
        ('{"text": "b", "label": "c"}', r"a\.jsonl:3: has the keys label, text, and .*:1 has text: all lines"),
        ('{"text": null}', r'a\.jsonl:3: its "text" is null, which is not a text'),
        ('{"text": "\\ud83d"}', r'a\.jsonl:3: its "text" has half a character'),
        ("[" * 100_000, r"a\.jsonl:3: is (nested too deeply|not valid JSON)"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, second, message):
    path = write_text(tmp_path / "a.jsonl", '{"text": "a"}\n\n' + second + "\n")
    with pytest.raises(UserError, match=message):
        Text(name=f"jsonl:{path}").build()


@pytest.mark.parametrize(
    "keys", [("label",), ("target",), ("source",), ("source", "label", "x")[:1], ("prompt", "target")]
)
def test_json_lines_without_a_text_are_an_error(tmp_path, keys):
    path = write_lines(tmp_path / "a.jsonl", dict.fromkeys(keys, "x"))
    with pytest.raises(UserError, match=r'a\.jsonl:1: has the keys .*; a line needs "text", "source" and "target"'):
        Text(name=f"jsonl:{path}").build()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Returns a folder with a prepared set "little": 40 training texts and 10 test texts, one of them also in training."""
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


def test_a_tfds_set_is_divided_by_slices(data_dir, capsys):
    import tensorflow_datasets as tfds

    data = little(data_dir, split="train[:75%],train[75%:],test").build()
    for split, slice_ in (("train", "train[:30]"), ("validation", "train[30:]"), ("test", "test")):
        builder: Any = tfds.builder_from_directory(data_dir / "little" / "1.0.0")
        texts = [example["text"].decode() for example in builder.as_data_source(slice_)]
        assert {len(texts) - len(read_texts(data, split))} <= {0, 1}
        assert set(read_texts(data, split)) <= set(texts)
    # The test text that is also in training is dropped.
    assert "49 documents" in capsys.readouterr().err
    assert len([text for split in data.sizes for text in read_texts(data, split)]) == 49


def test_a_tfds_set_is_divided_by_hash_or_with_one_held_out_slice(data_dir, capsys):
    data = little(data_dir).build()
    found = {split: read_texts(data, split) for split in data.sizes}
    assert sum(map(len, found.values())) == 49
    assert all(split_of(text, 0.1) == split for split, texts in found.items() for text in texts)
    capsys.readouterr()
    both = little(data_dir, split="train, test, test").build()
    assert read_texts(both, "validation") == read_texts(both, "test")
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
