"""Documents and pairs from files of JSON objects, one per line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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

SCALARS = (str, int, float)
SURROGATE = re.compile(r"[\ud800-\udfff]")
BLANK = "\ufeff \t\r\n"
START_BYTES = 4096  # bytes at the start of a file that show what kind of file it is


class Line(NamedTuple):
    """One JSON object and its place."""

    where: str
    """file:line."""
    value: Mapping[str, object]


def jsonl(path: Path) -> Source:
    """Returns the lines of a file, or of all .jsonl files below a folder. All lines have the keys of the first.

    Keys: "text" for documents; "source" and "target", or "text" and "label", for pairs.

    Raises: UserError if there are no lines, or the first one cannot be used.
    """
    files = find_files(path, ".jsonl")
    first = next((line for file in files for line in read_lines(file)), None)
    if first is None:
        raise UserError(f"{path} is empty")
    # The first line decides the form. `read` checks every line against it.
    form = find_form(first)

    def read() -> Iterator[Document]:
        for file in files:
            for line in read_lines(file):
                yield Document(form.read_fields(line))

    return Source(read, frozenset(form.read_fields(first)), fingerprint(files), form.pair)


@dataclass(frozen=True)
class Form:
    """The keys that all lines have, as found in the first line."""

    where: str
    """Place of the first line, for errors."""
    names: frozenset[str]
    """All keys."""
    kept: list[str]
    """Sorted keys of the fields that are read."""
    pair: PairFields | None
    """Keys of the source and the target. None: the lines are documents."""

    def read_fields(self, line: Line) -> dict[str, str]:
        """Returns the fields of a line as texts. Raises: UserError if it has other keys, or a value is not a text."""
        where, value = line
        if value.keys() != self.names:
            raise UserError(
                f"{where}: has the keys {join_names(value)}, and {self.where} has {join_names(self.names)}:"
                " all lines must have the same keys"
            )
        for key in {*self.kept, *(self.pair or ())}:
            if not isinstance(value[key], SCALARS):
                raise UserError(f'{where}: its "{key}" is {json.dumps(value[key])[:40]}, which is not a text')
            # JSON can escape half of a surrogate pair, which has no UTF-8.
            if SURROGATE.search(str(value[key])):
                raise UserError(f'{where}: its "{key}" has half a character, \\ud800 to \\udfff; leave it out')
        return {key: str(value[key]) for key in self.kept}


def find_form(first: Line) -> Form:
    """Returns the form of the lines. Raises: UserError if the first line has no text, or a target without a source."""
    names = first.value.keys()
    source = next((key for key in ("source", "text") if key in names), None)
    target = next((key for key in ("target", "label") if key in names), None)
    if source is None or (target is None and source != "text"):
        raise UserError(
            f'{first.where}: has the keys {join_names(names)}; a line needs "text", "source" and "target", or "text" and'
            ' "label"'
        )
    if target is None:
        return Form(first.where, frozenset(names), [source], None)
    # A template may name any other text or number of the line.
    kept = sorted(key for key, value in first.value.items() if isinstance(value, SCALARS))
    return Form(first.where, frozenset(names), kept, PairFields(source, target))


def read_lines(file: Path) -> Iterator[Line]:
    """Yields the JSON objects of a file, without blank lines. Raises: UserError with the place of a wrong line."""
    offset = 0
    with open(file, "rb") as lines:
        check_kind(lines.read(START_BYTES), str(file))
        lines.seek(0)
        for number, line in enumerate(lines, 1):
            where = f"{file}:{number}"
            content = decode(line, where, offset).strip(BLANK)
            offset += len(line)
            if content:
                yield Line(where, parse_object(content, where))


def parse_object(content: str, where: str) -> dict[str, object]:
    """Returns the JSON object of a line. Raises: UserError if it is damaged, or no object."""
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: is not valid JSON ({error.msg}, column {error.colno})") from None
    except ValueError:  # Python refuses to convert integers of thousands of digits
        raise UserError(f"{where}: has a number with too many digits; make it a text") from None
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply to be read as JSON; shorten or remove this line") from None
    if not isinstance(value, dict):
        raise UserError(f'{where}: is not a JSON object, such as {{"text": "..."}}')
    return value
