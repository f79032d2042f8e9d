"""Pairs of a prompt and a target: joined and separate, templates, labels, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gen.core import Dataset, Feature
from gen.data.text import Text, tokenizers
from gen.data.text.sources import open_source
from gen.errors import UserError
from tests.datasets import assert_same, join, read_split, split_of, write_lines


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


PAIRS = [{"source": f"{i} + {i % 7}", "target": f"{i + i % 7}"} for i in range(100)]


def pairs_of(path: Path, *pairs: Any, **options: Any) -> Text:
    defaults: Any = {"name": f"jsonl:{write_lines(path / 'pairs.jsonl', *pairs)}", "length": 16, "batch_size": 8}
    return Text(**defaults | options)


def row_of(data: Dataset, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Returns the tokens of a joined pair of bytes, and which of them are targets."""
    a, b = ([byte + 1 for byte in text.encode()] for text in (prompt, target))
    width = data.spec["tokens"].shape[0]
    # Byte b is token b + 1, and 0 is the end token.
    tokens = [0, *a, *b, 0]
    counted = [0] * (1 + len(a)) + [1] * (len(b) + 1)
    padding = [0] * (width - len(tokens))
    return tokens + padding, counted + padding


def test_a_pair_predicts_its_target_and_the_end_token_after_it(tmp_path):
    data = pairs_of(tmp_path, *PAIRS).build()
    splits = {split: [pair for pair in PAIRS if split_of(pair["source"], 0.1) == split] for split in data.sizes}
    assert data.sizes == {split: len(pairs) for split, pairs in splits.items()}
    for split, pairs in splits.items():
        found = read_split(data, split)
        rows = [row_of(data, pair["source"] + "\n", pair["target"]) for pair in pairs]
        np.testing.assert_array_equal(found["tokens"], [tokens for tokens, _ in rows])
        np.testing.assert_array_equal(found["counted"], [counted for _, counted in rows])
        np.testing.assert_array_equal(found["bytes"], [len(pair["target"]) for pair in pairs])
    assert data.protocol["windows"] == "joined pairs, 16 tokens"
    assert data.baselines() == {}
    assert data.spec == {"tokens": Feature((17,), "int32", vocab=257, end=0)}


def test_pairs_have_a_new_order_in_each_epoch(tmp_path):
    data = pairs_of(tmp_path, *PAIRS).build()
    n, train = data.sizes["train"], read_split(data, "train")
    found = join(data.batch(1, step, range(8)) for step in range(-(-2 * n // 8)))
    assert_same(
        found | {}, join(data.batch(1, step, range(i, i + 4)) for step in range(-(-2 * n // 8)) for i in (0, 4))
    )
    epochs = found["index"][: 2 * n].reshape(2, n)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(n), (2, 1)))
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(found["tokens"], train["tokens"][found["index"]])
    np.testing.assert_array_equal(found["counted"], train["counted"][found["index"]])


def test_a_template_is_filled_with_the_values_of_a_line(tmp_path):
    pairs = [{"text": f"n{i}", "label": ["odd", "even"][i % 2], "id": i, "meta": []} for i in range(40)]
    options = {"template": "{id}. {text}{{}\nlabel:", "length": 32, "split": "tail:0.25"}
    data = pairs_of(tmp_path, *pairs, **options).build()
    tokenizer = tokenizers.load(data.files["tokenizer.json"])
    found = read_split(data, "validation")
    texts = [tokenizers.decode(tokenizer, tokens.tolist()) for tokens in found["tokens"]]
    assert texts == [f"{i}. n{i}{{{{}}\nlabel:{['odd', 'even'][i % 2]}".replace("{{}", "{{}") for i in range(30, 40)]
    assert json.loads(data.files["labels.json"]) == ["even", "odd"]
    with pytest.raises(UserError, match=r"--data\.template has \{meta\}, and the lines of .* have id, label, text"):
        pairs_of(tmp_path, *pairs, template="{meta}").build()


def test_the_source_alone_decides_the_split_of_a_pair(tmp_path):
    """Neither the template nor the target matters."""
    twice = [{**pair, "target": pair["target"] + mark} for pair in PAIRS for mark in ("", "!")]
    # Both pairs of a source are in the same split.
    sizes = [pairs_of(tmp_path, *twice, template=template).build().sizes for template in ("{source}", "= {source}:")]
    assert sizes[0] == sizes[1]
    once = pairs_of(tmp_path, *PAIRS).build().sizes
    assert sizes[0] == {split: 2 * n for split, n in once.items()}


@pytest.mark.parametrize(
    ("line", "keys", "fields"),
    [
        ({"text": "T", "label": "L", "source": "web"}, (), ("text", "label")),
        ({"text": "T", "source": "web", "id": 3}, (), ("text",)),
        ({"source": "S", "target": "T", "text": "U"}, (), ("source", "target")),
        ({"source": "S", "label": "L"}, (), ("source", "label")),
        ({"text": "T", "label": "L"}, ("text=text",), ("text",)),
        ({"content": "T", "text": "U", "label": "L"}, ("text=content",), ("content",)),
        ({"content": "T", "stars": 5}, ("text=content", "label=stars"), ("content", "stars")),
        (
            {"question": "S", "answer": "T", "source": "web"},
            ("source=question", "target=answer"),
            ("question", "answer"),
        ),
    ],
)
def test_the_keys_of_a_line_decide_what_is_learned(tmp_path, line, keys, fields):
    """A "source" next to a labelled text says where the text is from."""
    path = write_lines(tmp_path / "a.jsonl", line)
    found = open_source(f"jsonl:{path}", None, None, keys)
    (document,) = found.read()
    if found.pair is None:
        assert document.fields == {"text": str(line[fields[0]])}
    else:
        assert [document.fields[name] for name in found.pair] == [str(line[field]) for field in fields]
    assert document.fields.keys() == found.keys


def test_the_cache_does_not_confuse_two_readings_of_a_file(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": "T", "label": "L", "content": "C"})
    readings = [(), ("text=text",), ("text=content",), ("text=content", "label=label"), ("text=text", "label=content")]
    assert len({open_source(f"jsonl:{path}", None, None, keys).fingerprint for keys in readings}) == 5


def test_what_is_learned_is_printed(tmp_path, capsys):
    lines = [{"question": f"{i}", "answer": f"{2 * i}", "source": "web"} for i in range(40)]
    data = pairs_of(tmp_path, *lines, keys=("source=question", "target=answer"), split="tail:0.5").build()
    assert '40 pairs of "source" and "target"' in capsys.readouterr().err
    first = read_split(data, "train")
    np.testing.assert_array_equal(first["tokens"][3], row_of(data, "3\n", "6")[0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("content",), "must be NAME=KEY"),
        (("text=",), "must be NAME=KEY"),
        (("text=a", "text=b"), "once for a name"),
        (("body=a",), "name the key of text"),
        (("source=text",), "name the key of text"),
        (("text=content",), r'a\.jsonl:1 has no "content"; it has the keys label, target, text'),
        ((), r'has "text", "label" and "target"; the fix: --data\.keys text=text label=label'),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path, keys, message):
    path = write_lines(tmp_path / "a.jsonl", {"text": "a", "label": "b", "target": "c"})
    with pytest.raises(UserError, match=message):
        Text(name=f"jsonl:{path}", keys=keys).build()


def test_more_than_1000_labels_are_not_classes(tmp_path):
    for n, there in ((1000, True), (1001, False)):
        data = pairs_of(tmp_path, *({"text": str(i), "label": str(i)} for i in range(n))).build()
        assert ("labels.json" in data.files) == there


def test_long_sources_lose_their_beginning_and_long_targets_are_dropped(tmp_path, capsys):
    pairs = [{"source": "x" * i + "abc", "target": "t" * (i + 1)} for i in range(20)]
    data = pairs_of(tmp_path, *pairs, split="tail:0.5", length=16).build()
    found = read_split(
        data, "validation"
    )  # targets of 11 to 20 letters: an end, the target, an end and the source in 17
    assert data.sizes == {"train": 10, "validation": 5, "test": 5}
    for i, tokens, counted in zip(range(10, 15), found["tokens"], found["counted"], strict=True):
        target = "t" * (i + 1)
        prompt = ("x" * i + "abc\n")[max(i + 4 - (15 - len(target)), 0) :] if len(target) < 15 else ""
        assert (tokens.tolist(), counted.tolist()) == row_of(data, prompt, target)
    assert data.protocol["cut"] == 5
    assert data.protocol["dropped"] == 5
    # The training pairs are 0 to 9: i + 4 bytes of prompt and i + 1 of target share 15 tokens.
    cut = sum(i + 4 + i + 1 > 15 for i in range(10))
    assert f"{cut + 10} prompts lost their beginning; dropped 10 pairs" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--data\.length 8 is too short for every target of validation: .* 11 tokens"):
        pairs_of(tmp_path, *pairs, split="tail:0.5", length=8).build()


def test_separate_sources_are_a_feature(tmp_path):
    options = {"pairs": "separate", "source_length": 6, "length": 8, "template": "{source}"}
    data = pairs_of(tmp_path, *PAIRS, **options).build()
    assert data.spec == {
        "tokens": Feature((9,), "int32", vocab=257, end=0),
        "source": Feature((6,), "int32", vocab=257, end=0),
    }
    pairs = [pair for pair in PAIRS if split_of(pair["source"], 0.1) == "test"]
    found = read_split(data, "test")
    rows = [row_of(data, "", pair["target"]) for pair in pairs]
    np.testing.assert_array_equal(found["tokens"], [tokens for tokens, _ in rows])
    np.testing.assert_array_equal(found["counted"], [counted for _, counted in rows])
    sources = [[byte + 1 for byte in pair["source"].encode()] for pair in pairs]
    np.testing.assert_array_equal(found["source"], [source + [0] * (6 - len(source)) for source in sources])
    assert found["source"].dtype == np.int32
    # A source that is too long loses its beginning.
    short = pairs_of(tmp_path, *PAIRS, **{**options, "source_length": 4}).build()
    np.testing.assert_array_equal(
        read_split(short, "test")["source"], [(source[-4:] + [0] * 4)[:4] for source in sources]
    )
    assert pairs_of(tmp_path, *PAIRS, pairs="separate").build().spec["source"].shape == (16,)


def test_a_stride_for_pairs_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"--data\.stride 4 is for windows"):
        pairs_of(tmp_path, *PAIRS, stride=4).build()
