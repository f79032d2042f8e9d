"""Documents and where they come from: Python's own documentation, and text files. All files must be strict UTF-8."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gen import files as gen_files
from gen.data.digest import sha256
from gen.errors import UserError
from gen.files import expand_user

HEADING = re.compile(r"^(\S.*)\n([*=~-])\2+$", re.MULTILINE)  # of reStructuredText: a line and its underline


class Document(NamedTuple):
    """One document, or one pair of a source and its target."""

    fields: Mapping[str, str]
    """{"text": the document}. For a pair: all texts and numbers of its JSON line."""
    split: str | None = None
    """The split that it belongs to, if the source was opened with slices."""


class PairFields(NamedTuple):
    """Names of the fields that make a pair."""

    source: str
    target: str


class Source(NamedTuple):
    """Documents in a fixed order. They can be read several times."""

    read: Callable[[], Iterator[Document]]
    """Yields the documents. Raises: UserError for a file that cannot be read."""
    keys: frozenset[str]
    """Names of the fields of each document."""
    fingerprint: str
    """Digest that changes when the documents on this machine change."""
    pair: PairFields | None = None
    """Fields of the source and the target. None: the documents are no pairs."""
    facts: Mapping[str, str] = {}
    """Other facts that decide which documents there are, such as a version. They are stored next to the scores."""


def pydoc() -> Source:
    """Returns the sections of the topics that Python's help() shows, each with its heading.

    Topics repeat sections of each other with another underline. The underlines are left out, so that repeated sections are
    exact duplicates.
    """
    from pydoc_data.topics import topics

    def read() -> Iterator[Document]:
        for topic in topics.values():
            starts = [match.start() for match in HEADING.finditer(topic)]
            # The text before the first heading is a section too.
            for start, stop in zip([0, *starts], [*starts, len(topic)], strict=True):
                if section := topic[start:stop].strip():
                    yield Document({"text": HEADING.sub(r"\1", section, count=1) + "\n"})

    # Another version of Python has other documentation, so scores name the version.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Source(read, frozenset({"text"}), sha256("pydoc", *topics.values()), facts={"python": version})


def text(path: Path) -> Source:
    """Returns a text file, or all files below a folder, each as one document. Raises: UserError if there are none."""
    files = find_files(path, "")

    def read() -> Iterator[Document]:
        for file in files:
            yield Document({"text": decode(file.read_bytes(), str(file))})

    return Source(read, frozenset({"text"}), fingerprint(files))


def find_files(path: Path, ending: str) -> list[Path]:
    """Returns the file, or the sorted files below the folder whose names have this ending.

    Ignored are names that begin with a dot, linked folders, links out of the folder, and everything that is not a file.

    Raises: UserError if there are none.
    """
    path = expand_user(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder")
    found = []
    for folder, folders, files in os.walk(path):
        # os.walk enters only the folders that remain in this list.
        folders[:] = [each for each in folders if not each.startswith(".")]
        named = [Path(folder, each) for each in files if each.endswith(ending) and not each.startswith(".")]
        found += [each for each in named if each.is_file() and gen_files.is_inside(each, path)]
    if not found:
        raise UserError(f"{path}: there are no {ending or 'text'} files in it")
    return sorted(found)


def fingerprint(files: list[Path]) -> str:
    """Returns a digest that changes when one of the files does."""
    stats = [(file.resolve(), file.stat()) for file in files]
    return sha256(*(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats))


def decode(content: bytes, where: str, offset: int = 0) -> str:
    """Decodes strict UTF-8.

    where: name of the place, for errors. offset: position of the content in its file.

    Raises: UserError with the place and the byte.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: is not UTF-8 (byte 0x{content[error.start]:02x} at offset {offset + error.start}); convert it, for"
            " instance with iconv -f latin1 -t utf-8, or remove it"
        ) from None


def join_names(names: Iterable[str]) -> str:
    """Returns the sorted names as a list for an error message."""
    return ", ".join(sorted(names)) or "(none)"
