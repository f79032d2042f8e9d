"""Parses a family's request (the settings of one call of `generate`) from text such as "truncation=0.5"."""

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
    """Returns {field: value} of assignments "FIELD=VALUE", without fields that have their default.

    request: the class of the family's requests.
    assignments: a value is written as in Python, but strings need no quotes.
    count: the command-line option that sets the number of samples. The field `n` is then refused. None: `n` may be assigned.
    spec: features of the data. It turns the name of a class in the field `label` into its number. None: names are kept.

    Raises: UserError for a text that is not an assignment, an unknown field (it names the nearest field), or a wrong value.
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
    """Returns {"request": changes as JSON values}, to store with a score, or {} for none. changes: {field: value}."""
    return {"request": {name: configs.encode(value) for name, value in changes.items()}} if changes else {}


def _parse_value(kind: object, text: str, at: str) -> object:
    """Returns the value of a field of type `kind`: the text as a Python literal if the type allows it, otherwise the text itself.

    at: name of the field, for messages. Raises: UserError if neither has the right type.
    """
    try:
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return configs.decode(kind, text, at=at)
    # The name of a class may look like a number. A field of type `str | int` keeps the text, as the option of sample.py does.
    if isinstance(literal, int | float) and typing.get_args(kind)[:1] == (str,):
        return text
    try:
        return configs.decode(kind, literal, at=at)
    except UserError:
        # A string may look like another literal, such as a number.
        if kind is not str:
            raise
        return text
