"""Reads documents and pairs from files of JSON objects, one per line, or in one array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gen.data.digest import sha256
from gen.data.text.documents import (
    Document,
    PairFields,
    Source,
    check_kind,
    decode,
    find_files,
    fingerprint,
    join_names,
)
from gen.errors import UserError
from gen.files import check_regular, read_bytes

SCALARS = (str, int, float)
SURROGATE = re.compile(r"[\ud800-\udfff]")
MAX_ARRAY_BYTES = 2**28  # largest size of a file that is one JSON array
MAX_ARRAY_VALUES = 2**23  # largest number of objects and arrays in it, which may take 24 times their bytes of memory
BLANK = "\ufeff \t\r\n"
START_BYTES = 4096  # bytes at the start of a file that show what kind of file it is
PAIRS = (("source", "target"), ("text", "label"), ("text", "target"), ("source", "label"))
"""(key of the source, key of the target) of a pair. If a line has the keys of several of these, the first is read."""


class Line(NamedTuple):
    """A JSON object, and its place in a file."""

    where: str
    """The place: "file:line", or "file: object 3" in an array."""
    value: Mapping[str, object]
    """The object."""


def jsonl(path: Path, keys: Sequence[str] = (), whole: bool = False) -> Source:
    """Returns a source with the lines of a file, or of all .jsonl files below a folder. All lines must have the same keys.

    A file may also be one JSON array of objects.

    Fields: "text" for documents; "source" and "target", or "text" and "label", for pairs. If a line has "text", "label"
    and "source", it is a pair of text and label, because "source" then says where the text is from.

    keys: FIELD=KEY for each of these fields, such as text=content. They decide alone whether the lines are documents or
    pairs. (): the keys are the names of the fields.
    whole: compare every byte of the files with the hashes from their first reading, not only a random sample.

    Raises: UserError if there are no lines, the first line cannot be used, or `keys` are wrong.
    """
    named = parse_keys(keys)
    files = find_files(path, ".jsonl")
    first = next((line for file in files for line in read_lines(file)), None)
    if first is None:
        raise UserError(f"{path} is empty")
    # The first line decides the form. `read` checks every line against it.
    form = find_form(first, named)

    def read() -> Iterator[Document]:
        for file in files:
            for line in read_lines(file):
                yield Document(form.read_fields(line))

    # With other keys, the same files give other documents, so the keys are part of the digest.
    digest = sha256(fingerprint(path, files, whole), repr(sorted(form.keys.items())), repr(form.pair))
    return Source(read, frozenset(form.keys), digest, form.pair)


def parse_keys(keys: Sequence[str]) -> dict[str, str]:
    """Parses texts FIELD=KEY, such as text=content. Returns {field: key in the JSON lines}, or {} if `keys` is empty.

    Raises: UserError if a text has another form, or the fields are neither "text" alone nor one of PAIRS.
    """
    parts = (key.partition("=") for key in keys)
    found = {name: key for name, _, key in parts}
    given = f"--data.keys {' '.join(keys)}"
    if len(found) < len(keys) or not all(found.values()):
        raise UserError(f"{given}: each must be NAME=KEY, once for a name, such as text=content")
    if found and found.keys() != {"text"} and not any(found.keys() == set(pair) for pair in PAIRS):
        raise UserError(
            f"{given}: name the key of text, of source and target, or of text and label, such as text=content"
        )
    return found


@dataclass(frozen=True)
class Form:
    """The keys of all lines, and which of them are read. The first line decides it."""

    where: str
    """Place of the first line, for errors."""
    names: frozenset[str]
    """All keys of a line."""
    keys: Mapping[str, str]
    """{field: key in the line} of the fields that are read, sorted by field."""
    pair: PairFields | None
    """Fields of the source and the target. None: the lines are documents."""

    def read_fields(self, line: Line) -> dict[str, str]:
        """Returns {field: value as text} of a line.

        Raises: UserError if the line has other keys than the first one, or a value is neither a text nor a number.
        """
        where, value = line
        if value.keys() != self.names:
            raise UserError(
                f"{where}: has the keys {join_names(value)}, and {self.where} has {join_names(self.names)}:"
                " all lines must have the same keys"
            )
        for key in self.keys.values():
            if not isinstance(value[key], SCALARS):
                raise UserError(f'{where}: its "{key}" is {json.dumps(value[key])[:40]}, which is not a text')
            # JSON can escape half of a surrogate pair, which has no UTF-8.
            if SURROGATE.search(str(value[key])):
                raise UserError(f'{where}: its "{key}" has half a character, \\ud800 to \\udfff; leave it out')
        return {name: str(value[key]) for name, key in self.keys.items()}


def find_form(first: Line, named: Mapping[str, str]) -> Form:
    """Decides which keys of the lines are read. For pairs, all keys with a text or a number are, for the template.

    first: the first line. named: {field: key} that the user gave, or {}.

    Raises: UserError if the first line lacks a key in `named`. Without `named`, as `guess_fields`.
    """
    names = first.value.keys()
    if missing := set(named.values()) - names:
        raise UserError(f'--data.keys: {first.where} has no "{min(missing)}"; it has the keys {join_names(names)}')
    chosen = dict(named) or {name: name for name in guess_fields(first.where, names)}
    pair = next((PairFields(*pair) for pair in PAIRS if chosen.keys() == set(pair)), None)
    if pair is not None:
        # The template of the prompt may name any other text or number of the line, so these are read too.
        others = names - set(chosen.values()) - chosen.keys()
        chosen |= {key: key for key in others if isinstance(first.value[key], SCALARS)}
    return Form(first.where, frozenset(names), dict(sorted(chosen.items())), pair)


def guess_fields(where: str, names: Set[str]) -> tuple[str, ...]:
    """Returns the fields of a line, by its keys: ("text",) for a document, or one of PAIRS.

    where: place of the line, for errors. names: keys of the line.

    Raises: UserError if the line has none of the keys that gen knows, or all of "text", "label" and "target".
    """
    if {"text", "label", "target"} <= names:
        raise UserError(
            f'{where}: has "text", "label" and "target"; the fix: --data.keys text=text label=label, or the keys of'
            " another pair"
        )
    pair = next((pair for pair in PAIRS if set(pair) <= names), None)
    if pair is None and "text" not in names:
        raise UserError(
            f'{where}: has the keys {join_names(names)}; a line needs "text", "source" and "target", or "text" and'
            ' "label"; or name its keys, such as --data.keys text=content'
        )
    return pair or ("text",)


def read_lines(file: Path) -> Iterator[Line]:
    """Yields the JSON objects of a file: one per line (blank lines are skipped), or the objects of one array.

    Raises: UserError with the place of a wrong line.
    """
    check_regular(file)
    with open(file, "rb") as lines:
        start = lines.read(START_BYTES)
        check_kind(start, str(file))
        # Some editors write a byte order mark before the first character.
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from read_array(file)
            return
        lines.seek(0)
        offset = 0
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            content = decode(line, where, offset).strip(BLANK)
            offset += len(line)
            if content:
                yield Line(where, check_object(parse_json(content, where), where))


def read_array(file: Path) -> Iterator[Line]:
    """Yields the JSON objects of a file that is one array.

    Raises: UserError if the file is damaged or too large, or an element of the array is not an object.
    """
    if file.stat().st_size > MAX_ARRAY_BYTES:
        raise UserError(
            f"{file} is a JSON array of more than {MAX_ARRAY_BYTES:,} bytes; write one object a line, for instance with"
            " jq -c '.[]' OLD > NEW"
        )
    content = read_bytes(file, MAX_ARRAY_BYTES)
    if content.count(b"[") + content.count(b"{") > MAX_ARRAY_VALUES:
        raise UserError(f"{file} is a JSON array of more than {MAX_ARRAY_VALUES:,} values; write one object a line")
    found = parse_json(decode(content, str(file)).strip(BLANK), str(file))
    assert isinstance(found, list)  # it begins with a bracket
    for number, value in enumerate(found, 1):
        where = f"{file}: object {number}"
        yield Line(where, check_object(value, where))


def parse_json(content: str, where: str) -> object:
    """Returns the value of a JSON text. Raises: UserError, with the place `where`, if it is not valid JSON."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(
            f"{where}: is not valid JSON ({error.msg}, {line}column {error.colno}); each line must be one whole object, or"
            " the file one array of objects"
        ) from None
    except ValueError:  # Python refuses to convert integers of thousands of digits
        raise UserError(f"{where}: has a number with too many digits; make it a text") from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply to be read as JSON; shorten or remove this line") from None


def check_object(value: object, where: str) -> dict[str, object]:
    """Returns the value if it is a JSON object. Otherwise raises: UserError, with the place `where`."""
    if not isinstance(value, dict):
        raise UserError(f'{where}: is not a JSON object, such as {{"text": "..."}}')
    return value
