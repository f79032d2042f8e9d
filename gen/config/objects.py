"""Reads objects from option values such as `Residual(widths=(32, 64))`. The text is parsed and never run as Python code."""

from __future__ import annotations

import ast
import difflib
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from gen.config.encoding import decode, import_class, is_abstract, type_name
from gen.errors import UserError
from gen.optim import Schedule

IMPORTED = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)(.*)", re.DOTALL)  # module:Name, then perhaps (arguments)


def parse_object(text: str, hint: object, trust: Sequence[str] = (), at: str = "value") -> Any:
    """Returns the object that a text describes, for a config field with the declared type `hint`.

    text: a class (`Residual`), a call (`Residual(widths=(32, 64))`), a tuple of these, or a literal such as None. A class is
    written as `Name` if it is an imported subclass of the declared class, otherwise as `module:Name`. Arguments may be calls, too.
    trust: modules outside gen that may be imported. at: the option, for errors.

    Raises: UserError that names the nearest class or field, or the value that does not fit.
    """
    if text in _words(hint):
        return text
    classes: Mapping[str, type] = {}
    # "module:Class(...)" is not Python. So the class is imported, and only "Class(...)" is parsed.
    if imported := IMPORTED.fullmatch(text):
        module, name, arguments = imported.groups()
        classes, text = {name: import_class(f"{module}.{name}", object, trust, at)}, name + arguments
    try:
        value = _to_json(ast.parse(text, mode="eval").body, hint, classes, at)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: text that is nested too deeply
        raise UserError(f"{at}: {text[:80]!r} is not an object; expected {_expected(hint)}") from None
    return decode(hint, value, trust, at)


def scalar(text: str) -> float | Schedule:
    """Returns the finite number or the schedule in a text, such as `0.1` or `WarmupCosine(peak=1e-3, warmup=500)`.

    Raises: ValueError if the text is neither. (Not UserError: tyro reports a ValueError together with the option.)
    """
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if math.isfinite(number):
        return number
    try:
        return parse_object(text, Schedule, at=text[:80])
    except UserError as error:
        raise ValueError(f"expected a number or a schedule; {error}") from None


def dataclasses_in(hint: object) -> tuple[type, ...]:
    """Returns the dataclasses in a type hint: (A,) for `A | None` and for `tuple[A, ...]`."""
    if isinstance(hint, type) and is_dataclass(hint):
        return (hint,)
    return tuple(cls for member in typing.get_args(hint) for cls in dataclasses_in(member))


def _words(hint: object) -> tuple[str, ...]:
    """Returns the words that a type hint allows: ("a", "b") for `Literal["a", "b"] | SomeClass`."""
    if typing.get_origin(hint) is typing.Literal:
        return tuple(word for word in typing.get_args(hint) if isinstance(word, str))
    return tuple(word for member in typing.get_args(hint) for word in _words(member))


def choices(hint: object) -> dict[str, type]:
    """Returns {name: class} of the imported dataclasses that fit a type hint and are not abstract, base classes first."""
    found: dict[str, type] = {}
    left = list(dataclasses_in(hint))
    # A config file that is loaded twice defines its classes twice. The latest version of a class is used.
    while left:
        cls = left.pop(0)
        left = cls.__subclasses__() + left
        if is_dataclass(cls) and not is_abstract(cls):
            found[cls.__name__] = cls
    return found


def _to_json(node: ast.expr, hint: object, classes: Mapping[str, type], at: str) -> object:
    """Converts an expression to the JSON values that `encode` would write for its value, without running it.

    hint: declared type of the value, whose dataclasses may be named. classes: {name: class} of more classes that may be
    named. at: the option, for errors.
    """
    if isinstance(node, ast.Tuple | ast.List):
        return [_to_json(element, hint, classes, at) for element in node.elts]
    if isinstance(node, ast.Name):
        return _call_to_json(node, [], [], hint, classes, at)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call_to_json(node.func, node.args, node.keywords, hint, classes, at)
    # literal_eval reads only literals: an argument of the command line must never run code.
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        value = ...
    if not isinstance(value, bool | int | float | str | None):
        raise UserError(f"{at}: {ast.unparse(node)[:80]!r} is not a value of a config; expected {_expected(hint)}")
    return value


def _call_to_json(
    name: ast.Name,
    positional: Sequence[ast.expr],
    keywords: Sequence[ast.keyword],
    hint: object,
    classes: Mapping[str, type],
    at: str,
) -> dict[str, object]:
    """Converts a call such as `Residual(3, rate=0.1)` to {"type": class, field: value, ...}, as `_to_json` does."""
    cls = _find(name.id, {**choices(hint), **classes}, "class", at)
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    if len(positional) > len(names):
        raise UserError(f"{at}: {cls.__name__} has {len(names)} fields, and {len(positional)} values are given")
    # As in Python, positional arguments come first, in the order of the fields.
    given = dict(zip(names, positional, strict=False))
    for keyword in keywords:
        field = _find(keyword.arg or "**", {name: name for name in names}, "field", f"{at}: {cls.__name__}")
        if field in given:
            raise UserError(f"{at}: {cls.__name__} is given {field} twice")
        given[field] = keyword.value
    return {"type": type_name(cls)} | {
        field: _to_json(value, hints[field], {}, f"{at}.{field}") for field, value in given.items()
    }


T = typing.TypeVar("T")


def _find(name: str, known: Mapping[str, T], kind: str, at: str) -> T:
    """Returns known[name]. Raises: UserError that names the nearest name. kind: the word for the names, "class" or "field"."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{at}: there is no {kind} {name[:80]!r}; {hint}There are {', '.join(known) or 'none'}")


def _expected(hint: object) -> str:
    """Returns a text for errors with the values that a type hint allows: words and classes, or the name of the type."""
    names = [*_words(hint), *(f"{name}(...)" for name in choices(hint))]
    return f"one of {', '.join(names)}" if names else getattr(hint, "__name__", str(hint))
