"""Documents, and two of their sources: Python's own documentation, and text files. All files must be strict UTF-8."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gen import files as gen_files
from gen.data.chunks import facts_of
from gen.data.contents import content_sums
from gen.data.digest import sha256
from gen.data.text import kinds
from gen.errors import UserError, note
from gen.files import expand_user

HEADING = re.compile(r"^(\S.*)\n([*=~-])\2+$", re.MULTILINE)  # a heading of reStructuredText: a line and its underline


class Document(NamedTuple):
    """One document, or one pair of a source (which becomes the prompt) and its target."""

    fields: Mapping[str, str]
    """{"text": the document}. For a pair: all texts and numbers of its JSON line."""
    split: str | None = None
    """Name of the document's split, if the source was opened with slices. None: the split is decided later."""


class PairFields(NamedTuple):
    """Names of the fields that make a pair."""

    source: str
    target: str


class Source(NamedTuple):
    """Documents in a fixed order. They can be read several times."""

    read: Callable[[], Iterator[Document]]
    """() -> the documents. Each call starts with the first one. Raises: UserError for a file that cannot be read."""
    keys: frozenset[str]
    """Names of the fields of each document."""
    fingerprint: str
    """Digest that changes when the documents on this machine change."""
    pair: PairFields | None = None
    """Names of the fields that are source and target. None: the documents are not pairs."""
    facts: Mapping[str, str] = {}
    """{name: value} that also decide the documents, such as {"python": "3.12"}. They are stored with the scores."""


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


def text(path: Path, whole: bool = False) -> Source:
    """Returns a source with one document for each file: a text file, or all files below a folder.

    whole: compare all files with their hashes in the cache, which were computed when gen first read the files. False:
    compare changed files and a random sample of the others.

    Raises: UserError if there are no files.
    """
    files = find_files(path, "")

    def read() -> Iterator[Document]:
        for file in files:
            gen_files.check_regular(file)
            yield Document({"text": decode(file.read_bytes(), str(file))})

    return Source(read, frozenset({"text"}), fingerprint(path, files, whole))


def find_files(path: Path, ending: str) -> list[Path]:
    """Returns [path] if it is a file. If it is a folder, returns the sorted files below it with this ending ("": all).

    A link to a regular file is followed, even out of the folder: data stores such as DVC, git-annex and the cache of Hugging
    Face consist of links. Names that begin with a dot are ignored. Links to folders, pipes and devices are left out. Prints a
    line if something is left out, or if links lead out of the folder.

    Raises: UserError if the path does not exist, or no file in the folder has this ending.
    """
    path = expand_user(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if not path.is_dir():
        gen_files.check_regular(path)
        return [path]
    found, outside, others, counts = [], 0, Counter[str](), Counter[str]()
    for entry in _entries(path):
        # `_entries` goes into real folders itself. Only links to folders are left out.
        if entry.is_dir():
            counts["links to folders"] += entry.is_symlink()
            continue
        if not entry.name.endswith(ending):
            others[Path(entry.name).suffix or "no ending"] += 1
            continue
        if not entry.is_file():
            counts["broken links, pipes and devices"] += 1
            continue
        found.append(Path(entry.path))
        outside += entry.is_symlink() and not gen_files.is_inside(found[-1], path)
    left_out = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    if not found:
        reasons = [f"it has {_join_counts(others)}"] if others else []
        reasons += [f"left out {left_out}"] if left_out else []
        raise UserError("; ".join([f"{path}: there are no {ending or 'text'} files in it", *reasons]))
    facts = [f"{outside:,} of {len(found):,} files are links to files outside of it"] if outside else []
    facts += [f"left out {left_out}"] if left_out else []
    if facts:
        note(f"{path}: {'; '.join(facts)}")
    return sorted(found)


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yields all files, folders and links below a folder.

    Names that begin with a dot are skipped, with all files in them. Links to folders are not followed.
    """
    # Entries know their kind without a system call each, which matters for 100,000 files.
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path)


def _join_counts(endings: Counter[str]) -> str:
    return ", ".join(f"{count:,} with {ending}" for ending, count in endings.most_common(3))


def fingerprint(root: Path, files: list[Path], whole: bool) -> str:
    """Returns a SHA-256 of the content of the files. Only new and changed files are read as a whole.

    root: the file or folder that the user named. whole: compare every byte of unchanged files with the hashes from
    their first reading, not only a random sample.
    """
    paths = [os.path.abspath(file) for file in files]
    return sha256(
        *content_sums(
            Path(os.path.abspath(expand_user(root))), paths, [facts_of(os.stat(path)) for path in paths], whole=whole
        )
    )


def decode(content: bytes, where: str, offset: int = 0) -> str:
    """Returns a content as text. It must be UTF-8 without errors.

    where: where the content is, such as a path, for errors. offset: position of the content in its file, in bytes.

    Raises: UserError with the place and the first wrong byte, or with the kind of file if it is not a text.
    """
    if offset == 0:
        check_kind(content, where)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: is not UTF-8 (byte 0x{content[error.start]:02x} at offset {offset + error.start}); convert it, for"
            " instance with iconv -f cp1252 -t utf-8 OLD > NEW, or remove it"
        ) from None


def check_kind(start: bytes, where: str) -> None:
    """Raises: UserError that names the kind of a file, such as PDF, if its first bytes show that it is not UTF-8 text.

    where: the path, for the error.
    """
    if found := kinds.recognize(start):
        raise UserError(f"{where}: is {found.name}, and not a text in UTF-8; {found.fix}")


def join_names(names: Iterable[str]) -> str:
    """Returns the sorted names, separated by commas, for an error message."""
    return ", ".join(sorted(names)) or "(none)"
