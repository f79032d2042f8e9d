"""Fields of a family's request, given as text such as "truncation=0.5" on a command line or in a config."""

from __future__ import annotations

import ast
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields

from gen import config as configs
from gen.core import Spec
from gen.errors import UserError
from gen.families.labels import find_class


def parse_request(
    request: type, assignments: Sequence[str], count: str | None = "--n", spec: Spec | None = None
) -> dict[str, object]:
    """Returns {field: value} of the assignments "FIELD=VALUE" whose value differs from the request's default.

    request: the class of the family's requests. A value is written as in Python, but strings need no quotes. count: name of the
    option that sets `n`, so that an assignment can't. None: an assignment may set `n`. spec: features of the data, in which a
    `label` that is a class name is looked up. None: a label must be a number.

    Raises: UserError for a text that is not an assignment, an unknown field (naming the nearest), or a wrong value.
    """
    hints = typing.get_type_hints(request)
    names = [f.name for f in fields(request) if count is None or f.name != "n"]
    values: dict[str, object] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        # Field names may be written with hyphens, as the options of the command line.
        name = name.replace("-", "_")
        if not equals:
            raise UserError(f"request {text!r} is not FIELD=VALUE, such as {names[0] if names else 'field'}=VALUE")
        if name == "n" and count is not None:
            raise UserError(f"request.n is set by {count}; the fix: {count} {value}")
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'none'}"
            raise UserError(f"the request of this family has no field {name}; {hint}")
        values[name] = _parse_value(hints[name], value, f"request.{name}")
    if spec is not None and isinstance(label := values.get("label"), str):
        values["label"] = find_class(label, spec)
    # A request checks its values when it is made.
    request(**values)
    # Defaults are left out, so that a protocol does not change if a family gets another field.
    return {f.name: values[f.name] for f in fields(request) if f.name in values and values[f.name] != f.default}


def encode_request(changes: Mapping[str, object]) -> dict[str, object]:
    """Returns the entries of a protocol for these fields of a request: {} if all have their defaults."""
    return {"request": {name: configs.encode(value) for name, value in changes.items()}} if changes else {}


def _parse_value(kind: object, text: str, at: str) -> object:
    """Returns the value of a field of type `kind`: a Python literal if it fits, otherwise the text itself."""
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return configs.decode(kind, text, at=at)
    # The name of a class may be a number. `str | int` prefers the text, as the same option of sample.py does.
    if isinstance(literal, int | float) and typing.get_args(kind)[:1] == (str,):
        return text
    try:
        return configs.decode(kind, literal, at=at)
    except UserError:
        # The text of a string may look like a number.
        if kind is not str:
            raise
        return text
