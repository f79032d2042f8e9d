"""Writes a data set of pairs of a function and the first paragraph of its docstring, from Python source files.

Run it as `python -m gen.data.text.docstrings OUT.jsonl [FOLDER]`. The default folder is Python's standard library.
"""

from __future__ import annotations

import ast
import json
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gen.errors import UserError, run_command, say
from gen.files import expand_paths

EXCLUDED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "__pycache__"}
MAX_CHARACTERS = 2000  # number of characters of the longest function that becomes a pair

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Options:
    """Write pairs of a function and the first paragraph of its docstring, as lines of JSON with "source" and "target"."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT.jsonl")]
    """The file to write."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[FOLDER]")] = Path(
        sysconfig.get_path("stdlib")
    )
    """Folder of Python source files, by default the standard library."""


def functions(folder: Path) -> Iterator[tuple[Path, Function, str]]:
    """Yields (path in the folder, function, first paragraph of its docstring) for each function with a docstring.

    Files are read in the order of their paths. Skips the folders EXCLUDED_FOLDERS, and files that are not valid Python
    or not UTF-8.
    """
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        # A pipe with such a name would block the reader for ever.
        if EXCLUDED_FOLDERS & set(place.parts) or not path.is_file():
            continue
        try:
            with warnings.catch_warnings():
                # Old source files have invalid escapes in their strings.
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, Function) and (docstring := ast.get_docstring(node)):
                yield place, node, " ".join(docstring.split("\n\n")[0].split())


def pairs(folder: Path) -> Iterator[dict[str, str]]:
    """Yields {"source": code of a function without its docstring, "target": the first paragraph of the docstring}.

    Functions without other code, or with more than MAX_CHARACTERS characters, are left out.
    """
    for _, node, target in functions(folder):
        # The first statement is the docstring. A function without other statements has no code that could explain the target.
        node.body = node.body[1:]
        source = ast.unparse(node) if node.body else ""
        if 0 < len(source) <= MAX_CHARACTERS:
            yield {"source": source, "target": target}


def write(options: Options) -> None:
    """Writes the pairs of options.folder to options.out.

    Raises: UserError if the folder does not exist, or if its files contain no pairs.
    """
    folder = options.folder
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of Python source files")
    lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs(folder)]
    if not lines:
        raise UserError(f"{folder} has no functions with docstrings")
    options.out.write_text("".join(lines), encoding="utf-8")
    say(f"{options.out}: {len(lines):,} functions of {folder}")


def main() -> None:
    """Runs `python -m gen.data.text.docstrings` with the arguments of the command line."""
    write(expand_paths(tyro.cli(Options, prog="python -m gen.data.text.docstrings")))


if __name__ == "__main__":
    run_command(main)
