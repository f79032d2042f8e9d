"""Pairs of functions and docstrings from source files, and the labelled sentences of benchmarks.adapt."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import adapt, library
from gen.data.text import Text, docstrings
from gen.errors import UserError

SOURCE = '''
class Kite:
    def fly(self, high):
        """Let it
        rise.

        Not in a storm."""
        return high + 1

def silent(x):
    return x

def said():
    """Only words."""

async def later():
    """In the end."""
    def inner():
        """Within."""
        return 2
    return inner
'''


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in {
        "a/kite.py": SOURCE,
        "b.py": "def f():\n    'One.'\n    return 1\n",
        "broken.py": "def f(:",
        "latin.py": b"# \xe9\ndef f():\n    'No.'\n    return 1\n",
        "test/c.py": "def f():\n    'Tested.'\n    return 1\n",
        "a/site-packages/d.py": "def f():\n    'Of others.'\n    return 1\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def test_a_pair_is_a_function_without_its_docstring_and_the_first_sentence(folder):
    found = {pair["target"]: pair["source"] for pair in docstrings.pairs(folder)}
    assert found.keys() == {"Let it rise.", "In the end.", "Within.", "One."}, (
        "a function whose body is only a docstring is left out"
    )
    assert found["Let it rise."] == "def fly(self, high):\n    return high + 1"
    assert found["Within."] == "def inner():\n    return 2"
    assert found["In the end."].startswith('async def later():\n\n    def inner():\n        """Within."""')


def test_the_command_writes_the_pairs_as_json_lines(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "pairs.jsonl"
    monkeypatch.setattr(sys, "argv", ["docstrings", str(out), str(folder)])
    docstrings.main()
    assert "4 functions" in capsys.readouterr().out
    assert [json.loads(line) for line in out.read_text().splitlines()] == list(docstrings.pairs(folder))
    (tmp_path / "empty").mkdir()
    # Folders that cannot give pairs.
    for wrong, message in {"nowhere": "is not a folder", "empty": "has no functions"}.items():
        monkeypatch.setattr(sys, "argv", ["docstrings", str(out), str(tmp_path / wrong)])
        with pytest.raises(UserError, match=message):
            docstrings.main()


def test_few_examples_of_any_seed_have_the_same_held_out_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "HELD_OUT", 20)
    known = [{"text": f"sentence number {i}", "label": "ab"[i % 2]} for i in range(70)]
    tests = []
    for n, seed in ((10, 0), (10, 1), (50, 0)):
        name, split = adapt.draw_examples(tmp_path, known, n, seed)
        data = Text(name=name, split=split, tokenizer="byte", length=40, batch_size=10).build()
        assert data.sizes == {"train": n, "validation": 20, "test": 20}
        tests.append([batch["tokens"].tolist() for batch in data.evaluation("test", 20)])
    assert tests[0] == tests[1] == tests[2]

    def lines(name: str) -> list[str]:
        return (tmp_path / name).read_text().splitlines()

    assert lines("10-0.jsonl")[:10] != lines("10-1.jsonl")[:10]
    assert lines("10-0.jsonl")[:10] == lines("50-0.jsonl")[:10], "more examples begin with the same examples"
    with pytest.raises(UserError, match="51 examples asked for"):
        adapt.draw_examples(tmp_path, known, 51, 0)


def test_held_out_sentences_are_left_out_of_the_text_of_a_base(folder):
    texts = list(library.sources(folder))
    assert len(texts) == 3, "tests, and files that are not UTF-8, are left out"
    kite = next(text for text in texts if "Kite" in text)
    left = library.without(kite, ["Let it rise.", "Let it rise. Not", "rise"])
    assert "Let it" not in left and "in a storm." in left and "Only words." in left
