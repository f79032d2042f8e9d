"""The standard library's own source as documents, without the sentences that benchmarks.adapt holds out, so that a base can be
trained that has not read them: python -m benchmarks.library library.jsonl"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from benchmarks.adapt import HELD_OUT, examples
from gen.data.text.docstrings import LEFT_OUT
from gen.errors import UserError, run_command


def sources(folder: Path) -> Iterator[str]:
    """The text of each source file, in the order of the paths."""
    for path in sorted(folder.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(folder).parts):
            continue
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def without(text: str, sentences: list[str]) -> str:
    """`text` without the sentences, however their words are divided into lines."""
    anywhere = (r"\s+".join(map(re.escape, sentence.split())) for sentence in sorted(sentences, key=len, reverse=True))
    return re.sub("|".join(anywhere), "", text)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: python -m benchmarks.library OUT.jsonl")
    folder = Path(sysconfig.get_path("stdlib"))
    held_out = [line["text"] for line in examples(folder)[:HELD_OUT]]
    lines = [json.dumps({"text": without(text, held_out)}, ensure_ascii=False) + "\n" for text in sources(folder)]
    Path(sys.argv[1]).write_text("".join(lines), encoding="utf-8")
    print(f"{sys.argv[1]}: {len(lines):,} files of {folder}")


if __name__ == "__main__":
    run_command(main)
