"""Writes the source files of Python's standard library as documents: python -m benchmarks.library library.jsonl

The sentences on which benchmarks.adapt tests are removed, so that a base model can be trained that has not read them.
"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.adapt import HELD_OUT, examples
from gen.data.text.docstrings import EXCLUDED_FOLDERS
from gen.errors import UserError, run_command


def sources(folder: Path) -> Iterator[str]:
    """Yields the text of each source file, in the order of the paths."""
    for path in sorted(folder.rglob("*.py")):
        if EXCLUDED_FOLDERS & set(path.relative_to(folder).parts):
            continue
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def without(text: str, sentences: list[str]) -> str:
    """Returns `text` without the sentences. Line breaks inside a sentence do not matter."""
    anywhere = (r"\s+".join(map(re.escape, sentence.split())) for sentence in sorted(sentences, key=len, reverse=True))
    return re.sub("|".join(anywhere), "", text)


def main() -> None:
    """Writes the documents to the file that the command line names."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: python -m benchmarks.library OUT.jsonl")
    folder = Path(sysconfig.get_path("stdlib"))
    held_out = [line["text"] for line in examples(folder)[:HELD_OUT]]
    lines = [json.dumps({"text": without(text, held_out)}, ensure_ascii=False) + "\n" for text in sources(folder)]
    Path(sys.argv[1]).write_text("".join(lines), encoding="utf-8")
    print(f"{sys.argv[1]}: {len(lines):,} files from {folder}")


if __name__ == "__main__":
    run_command(main)
