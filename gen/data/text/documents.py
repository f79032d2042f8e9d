"""Where documents come from: Python's own documentation, text files, JSON lines, prepared TFDS sets. What is read is strict
UTF-8, and otherwise as it lies there."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gen import files as gen_files
from gen.data import tfds_sets
from gen.data.digest import sha256
from gen.errors import UserError
from gen.files import expand_user

SCALARS = (str, int, float)
HALF = re.compile(r"[\ud800-\udfff]")


class Document(NamedTuple):
    """One document, or one pair of a source and its target."""

    fields: Mapping[str, str]
    """{"text"}; or all texts and numbers of a pair, by the names that they have in its line."""
    split: str | None = None
    """The split it belongs to, if the source was asked for slices."""


class Source(NamedTuple):
    """Documents in a fixed order, which can be read again and again."""

    read: Callable[[], Iterator[Document]]
    """Raises: UserError for what can't be read."""
    keys: frozenset[str]
    """The fields of each document."""
    fingerprint: str
    """Digest that changes whenever the documents do, on this machine."""
    pair: tuple[str, str] | None = None
    """The fields that are source and target, if the documents are pairs."""
    facts: Mapping[str, str] = {}
    """What else decides which documents there are, by name."""


def opened(name: str, data_dir: str | None, slices: tuple[str, ...] | None) -> Source:
    """The source of a name. `slices` of a TFDS set are its training, validation and test documents.

    Raises: UserError if there is nothing of that name, or it has no slices.
    """
    kind, colon, path = name.partition(":")
    local = name == "pydoc" or (colon and kind in ("text", "jsonl"))
    if local and slices:
        raise UserError(
            f"--data.split {','.join(slices)!r}: {name} has no splits to slice; --data.split hash:0.1 holds a tenth of the"
            " documents out, tail:0.1 the last tenth of the text"
        )
    if name == "pydoc":
        return pydoc()
    if local:
        if not path:
            raise UserError(f"--data.name {name} names no file; the fix: --data.name {kind}:PATH")
        return text(Path(path)) if kind == "text" else jsonl(Path(path))
    return of_tfds(name, data_dir, slices)


HEADING = re.compile(r"^(\S.*)\n([*=~-])\2+$", re.MULTILINE)


def pydoc() -> Source:
    """The sections of the topics that Python's help() shows, each with its heading. Topics quote each other's sections with
    another line below the heading, so the line is left out: quotes are then exact duplicates."""
    from pydoc_data.topics import topics

    def read() -> Iterator[Document]:
        for topic in topics.values():
            starts = [match.start() for match in HEADING.finditer(topic)]
            for start, stop in zip([0, *starts], [*starts, len(topic)], strict=True):
                if section := topic[start:stop].strip():
                    yield Document({"text": HEADING.sub(r"\1", section, count=1) + "\n"})

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Source(read, frozenset({"text"}), sha256("pydoc", *topics.values()), facts={"python": version})


def text(path: Path) -> Source:
    """A file, or all files of a folder and the folders in it, in the order of their names. Each is a document."""
    files = listing(path, "")

    def read() -> Iterator[Document]:
        for file in files:
            yield Document({"text": decoded(file.read_bytes(), str(file))})

    return Source(read, frozenset({"text"}), fingerprint(files))


def jsonl(path: Path) -> Source:
    """A file of JSON objects, one a line, or all .jsonl files of a folder. All have the keys of the first: "text"; "source"
    and "target"; or "text" and "label"."""
    files = listing(path, ".jsonl")
    first = next((each for file in files for each in objects(file)), None)
    if first is None:
        raise UserError(f"{path} is empty")
    names = set(first[1])
    source = next((key for key in ("source", "text") if key in names), None)
    target = next((key for key in ("target", "label") if key in names), None)
    if source is None or (target is None and source != "text"):
        raise UserError(
            f'{first[0]}: has the keys {listed(names)}; a line needs "text", "source" and "target", or "text" and "label"'
        )
    pair = (source, target) if target else None
    kept = sorted(key for key, value in first[1].items() if isinstance(value, SCALARS)) if pair else [source]

    def fields(where: str, value: dict[str, Any]) -> dict[str, str]:
        if value.keys() != names:
            raise UserError(
                f"{where}: has the keys {listed(value)}, and {first[0]} {listed(names)}: all lines have the same"
            )
        for key in {*kept, *(pair or ())}:
            if not isinstance(value[key], SCALARS):
                raise UserError(f'{where}: its "{key}" is {json.dumps(value[key])[:40]}, and no text')
            if HALF.search(str(value[key])):
                raise UserError(f'{where}: its "{key}" has half a character, \\ud800 to \\udfff; leave it out')
        return {key: str(value[key]) for key in kept}

    def read() -> Iterator[Document]:
        for file in files:
            for where, value in objects(file):
                yield Document(fields(where, value))

    return Source(read, frozenset(fields(*first)), fingerprint(files), pair)


def objects(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of each line that isn't blank."""
    offset = 0
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            content = decoded(line, where, offset)
            offset += len(line)
            if not content.strip("\ufeff \t\r\n"):
                continue
            try:
                value = json.loads(content.strip("\ufeff \t\r\n"))
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: is no JSON ({error.msg}, column {error.colno})") from None
            except ValueError:
                raise UserError(f"{where}: has a number of too many digits; make it a text") from None
            except RecursionError:
                raise UserError(f"{where}: is nested too deeply") from None
            if not isinstance(value, dict):
                raise UserError(f'{where}: is no JSON object, such as {{"text": "..."}}')
            yield where, value


def listing(path: Path, ending: str) -> list[Path]:
    """The file, or the files below the folder whose names end so, sorted. Names that begin with a dot, linked folders, links
    out of the folder and what is no file are left out. Raises: UserError if there are none."""
    path = expand_user(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: there is no such file or folder")
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = [each for each in folders if not each.startswith(".")]
        named = [Path(folder, each) for each in files if each.endswith(ending) and not each.startswith(".")]
        found += [each for each in named if each.is_file() and gen_files.is_inside(each, path)]
    if not found:
        raise UserError(f"{path}: there are no {ending or 'text'} files in it")
    return sorted(found)


def fingerprint(files: list[Path]) -> str:
    stats = [(file.resolve(), file.stat()) for file in files]
    return sha256(*(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats))


def decoded(content: bytes, where: str, offset: int = 0) -> str:
    """Strict UTF-8; `offset` is where the content begins in its file. Raises: UserError with the place."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: is not UTF-8 (byte 0x{content[error.start]:02x} at offset {offset + error.start}); convert it, for"
            " instance with iconv -f latin1 -t utf-8, or take it out"
        ) from None


def listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "(none)"


def of_tfds(name: str, data_dir: str | None, slices: tuple[str, ...] | None) -> Source:
    """The texts of a set that lies prepared as array_record: its feature "text", or the only one that is text; of three
    slices (the last two may be the same), or else of all its splits."""
    if not tfds_sets.NAME.fullmatch(name):
        raise UserError(
            f"--data.name {name!r} is neither pydoc, text:PATH, jsonl:PATH nor a TFDS name such as tiny_shakespeare"
        )
    path = tfds_sets.find(name, data_dir)
    if path is None:
        there = tfds_sets.root(data_dir)
        raise UserError(
            f"{name} is not prepared in {there}.\nAfter pip install 'gen[tensorflow]', python -m gen.data.prepare {name}"
            f" --data-dir {there} does it; files of your own are --data.name text:PATH"
        )

    import tensorflow_datasets as tfds

    builder, splits, files = tfds_sets.opened(path)
    features = builder.info.features
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if "text" not in texts and len(texts) != 1:
        raise UserError(f'{name} has no feature "text", nor one other text: its features are {listed(features)}')
    key = "text" if "text" in texts else texts[0]
    wanted: Any = tfds.features.FeaturesDict({key: features[key]})
    raw = tfds.decode.DeserializeMethod.RAW_BYTES

    def records(split: str) -> Any:
        try:
            return builder.as_data_source(split, deserialize_method=raw)
        except (ValueError, NotImplementedError) as error:
            there = ", ".join(f"{each} ({builder.info.splits[each].num_examples})" for each in splits)
            raise UserError(f"--data.split: {str(error).splitlines()[-1]}; {name} has the splits {there}") from None

    parts: list[tuple[str | None, str]] = [(None, "+".join(splits))]
    if slices:
        parts = list(zip(("train", "validation", "test"), slices, strict=True))
        if slices[1] == slices[2]:
            parts.pop()
    sources = [(split, slice_, records(slice_)) for split, slice_ in parts]

    def read() -> Iterator[Document]:
        for split, slice_, source in sources:
            for start in range(0, len(source), 1024):  # one by one, array_record is ten times slower
                some = range(start, min(start + 1024, len(source)))
                for position, serialized in zip(some, source.__getitems__(some), strict=True):
                    content = wanted.deserialize_example_np(serialized)[key]
                    yield Document({"text": decoded(content, f"{name}: example {position} of {slice_}")}, split)

    return Source(read, frozenset({"text"}), fingerprint([path / "dataset_info.json", *files]))
