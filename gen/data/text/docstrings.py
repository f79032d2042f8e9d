"""Pairs of a function and the first sentence of its docstring, from the Python source files of a folder (by default the
standard library): python -m gen.data.text.docstrings docstrings.jsonl [FOLDER]"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from gen.errors import UserError, run_command

LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "__pycache__"}
LONGEST = 2000  # characters of a function


def functions(folder: Path) -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """(path in the folder, function, the first sentence of its docstring), in the order of the paths."""
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        if LEFT_OUT & set(place.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (said := ast.get_docstring(node)):
                yield place, node, " ".join(said.split("\n\n")[0].split())


def pairs(folder: Path) -> Iterator[dict[str, str]]:
    """{"source": a function without its docstring, "target": the docstring's first sentence}."""
    for _, node, target in functions(folder):
        node.body = node.body[1:]
        source = ast.unparse(node) if node.body else ""
        if 0 < len(source) <= LONGEST:
            yield {"source": source, "target": target}


def main() -> None:
    arguments = sys.argv[1:]
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        raise UserError("usage: python -m gen.data.text.docstrings OUT.jsonl [FOLDER]")
    folder = Path(arguments[1] if len(arguments) == 2 else sysconfig.get_path("stdlib"))
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of Python source files")
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs(folder)]
    if not lines:
        raise UserError(f"{folder} has no functions with docstrings")
    Path(arguments[0]).write_text("".join(lines), encoding="utf-8")
    print(f"{arguments[0]}: {len(lines):,} functions of {folder}")


if __name__ == "__main__":
    run_command(main)
