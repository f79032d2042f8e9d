"""Writes configs as JSON and reads them back. Reading imports only modules that the user trusts, because an import runs code."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from gen.config import renamed
from gen.errors import UserError

MAX_INT = 2**53
"""Exclusive bound on the absolute value of a config's integers. float64, which many readers of JSON use, rounds larger ones."""
TRUSTED = ("gen",)
"""Packages whose modules are imported if a config names them, without --trust."""


def walk(x: object) -> Iterator[object]:
    """Yields a config and every value inside it (fields of dataclasses, elements of tuples), parents before children."""
    yield x
    children: Sequence[object] = x if isinstance(x, tuple) else ()
    if is_dataclass(x):
        children = [getattr(x, f.name) for f in fields(x)]
    for child in children:
        yield from walk(child)


def encode(x: object) -> Any:
    """Returns a config as JSON values. A dataclass becomes {"type": "module.Class", field: value, ...}, and a tuple a list."""
    if is_dataclass(x) and not isinstance(x, type):
        return {"type": type_name(type(x))} | {f.name: encode(getattr(x, f.name)) for f in fields(x)}
    return [encode(v) for v in x] if isinstance(x, tuple) else x


def decode(kind: object, value: object, trust: Sequence[str] = (), at: str = "config") -> Any:
    """Returns the config that JSON values describe: the inverse of `encode`.

    kind: the type that the result must have, as a dataclass field declares it. at: where the value is, for errors. Old names of
    classes that have moved are understood (`gen.config.renamed`). A missing field gets its default. Classes may only come from
    gen, from modules in `trust`, and from modules that are already imported.

    Raises: UserError that names the field if a value is not of its type.
    """
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(kind, members, value, trust, at)
    if origin is tuple:
        return _decode_tuple(kind, members, value, trust, at)
    if isinstance(kind, type) and is_dataclass(kind):
        return _decode_dataclass(kind, value, trust, at)
    return _decode_plain(kind, value, at)


def import_trusted(modules: Sequence[str]) -> None:
    """Imports the modules that a user trusts, so that `decode` finds their classes.

    Raises: UserError if a module can't be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"--trust {module}: {error}; the fix: PYTHONPATH=FOLDER, where FOLDER holds {module.partition('.')[0]}"
            ) from None


def import_class(name: str, kind: type, trust: Sequence[str] = (), at: str = "config") -> type:
    """Imports the class "module.Class", and returns it if it is a subclass of `kind` and a dataclass, and is not abstract.

    Importing a module runs its code. So its name is checked first: it must be part of gen, in `trust`, or already imported.
    at: where the name was found, for errors.

    Raises: UserError if the class is missing, not trusted, abstract, or not a dataclass of this kind.
    """
    module, _, cls = name.rpartition(".")
    trusted = any(module == t or module.startswith(t + ".") for t in (*TRUSTED, *trust))
    # Only plain dotted names: importlib takes a leading dot for a relative import.
    plain = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name)
    if not plain or not (trusted or module in sys.modules):
        raise UserError(
            f"{at} names {name[:80]!r}, which is not part of gen; if you trust that code: --trust {module[:60]}"
        )
    try:
        found = getattr(importlib.import_module(module), cls, None)
        if found is None:
            raise UserError(f"{at} names {name[:80]}, but the module {module} has no {cls}")
    except ImportError as error:
        fix = f"the fix: PYTHONPATH=FOLDER, where FOLDER holds {module.partition('.')[0]}"
        raise UserError(f"{at} names {name[:80]}, but {error}; {fix}") from None
    if not (isinstance(found, type) and is_dataclass(found) and issubclass(found, kind)) or is_abstract(found):
        expected = "dataclass" if kind is object else f"subclass of {kind.__name__}"
        raise UserError(f"{at} names {name[:80]}, which is not a {expected}")
    return found


def is_abstract(cls: type) -> bool:
    """Returns whether a method that the class itself defines raises NotImplementedError, for subclasses to override."""
    # `co_names` lists the names that a function reads. Inherited methods don't count: a family need not define `tiny`.
    methods = (method for method in vars(cls).values() if isinstance(method, types.FunctionType))
    return any("NotImplementedError" in method.__code__.co_names for method in methods)


def type_name(cls: type) -> str:
    """Returns the name of a class as "module.Class", as config.json has it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _decode_union(kind: object, members: Sequence[object], value: object, trust: Sequence[str], at: str) -> Any:
    """Decodes a value as the first member of a union that it fits."""
    if isinstance(value, Mapping):
        # JSON objects always describe dataclasses, so only the errors of these members can help the user.
        members = [m for m in members if isinstance(m, type) and is_dataclass(m)]
    error = _mismatch(kind, value, at)
    for member in members:
        try:
            return decode(member, value, trust, at)
        except UserError as failure:
            error = failure if isinstance(value, Mapping) else error
    raise error


def _decode_tuple(kind: object, members: Sequence[object], value: object, trust: Sequence[str], at: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _mismatch(kind, value, at)
    # tuple[int, ...] has any length; tuple[str, int] has exactly two elements.
    kinds = [members[0]] * len(value) if members[1:] == (...,) else members
    if len(kinds) != len(value):
        raise _mismatch(kind, value, at)
    return tuple(decode(k, v, trust, f"{at}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _decode_dataclass(kind: type, value: object, trust: Sequence[str], at: str) -> Any:
    # Older versions of gen had a word, such as "hinge", in some fields that now hold an object.
    field = at.rpartition(".")[2]
    if isinstance(value, str) and (field, value) in renamed.VALUES:
        value = {"type": renamed.VALUES[field, value]}
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise _mismatch(kind, value, at)
    cls = import_class(renamed.TYPES.get(value["type"], value["type"]), kind, trust, at)
    hints = typing.get_type_hints(cls)
    given = {k: v for k, v in value.items() if k != "type"}
    if unknown := sorted(set(given) - {f.name for f in fields(cls)}):
        raise UserError(f"{at}.{unknown[0]} is not a field of {type_name(cls)}")
    required = {f.name for f in fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(given)):
        raise UserError(f"{at}.{missing[0]} is missing")
    return cls(**{k: decode(hints[k], v, trust, f"{at}.{k}") for k, v in given.items()})


def _decode_plain(kind: object, value: object, at: str) -> Any:
    """Decodes a number, a string, a bool, None, or a choice of `Literal`. An integer also fits a float field."""
    if typing.get_origin(kind) is Literal:
        # Python says 1 == True == 1.0, so the type is compared, too.
        fits = any(type(value) is type(member) and value == member for member in typing.get_args(kind))
    elif kind is float and type(value) is int:
        fits = abs(value) < 2**1023  # a larger one overflows a float
        value = float(value) if fits else value
    elif kind is int:
        fits = type(value) is int and abs(value) < MAX_INT
    else:
        fits = type(value) is kind
    if not fits:
        raise _mismatch(kind, value, at)
    return value


def _mismatch(kind: object, value: object, at: str) -> UserError:
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return UserError(f"{at} is {json.dumps(value, default=repr)[:80]}, but must be {name}")
