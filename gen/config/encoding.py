"""Configs to JSON and back. Decoding imports trusted modules only."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from gen.core import Data, Family
from gen.errors import UserError

MAX_INT = 2**53  # of whole numbers, which shapes are made of


def walk(x: Any) -> typing.Iterator[Any]:
    """Every value in a config, parents first."""
    yield x
    children = [getattr(x, f.name) for f in fields(x)] if is_dataclass(x) else x if isinstance(x, tuple) else ()
    for child in children:
        yield from walk(child)


def encode(x: Any) -> Any:
    """A config as JSON values; each dataclass says its class as "type": "module.Class"."""
    if is_dataclass(x) and not isinstance(x, type):
        return {"type": type_name(type(x))} | {f.name: encode(getattr(x, f.name)) for f in fields(x)}
    return [encode(v) for v in x] if isinstance(x, tuple) else x


def decode(kind: Any, value: Any, trust: Sequence[str] = (), at: str = "config") -> Any:
    """The inverse of `encode` for a value that should be a `kind`. Imports only families, kinds of data, and modules in `trust`;
    what has been imported is used.

    Raises: UserError that names the field, for anything else than a `kind`.
    """
    wrong = UserError(f"{at} is {json.dumps(value)[:80]}, which is no {getattr(kind, '__name__', kind)}")
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for member in members:
            try:
                return decode(member, value, trust, at)
            except UserError as error:
                wrong = error
        raise wrong
    if origin is Literal:
        if any(type(value) is type(member) and value == member for member in members):
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            each = members[:1] * len(value) if members[1:] == (...,) else members
            if len(each) == len(value):
                return tuple(
                    decode(k, v, trust, f"{at}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True))
                )
    elif isinstance(kind, type) and is_dataclass(kind):
        if isinstance(value, dict) and isinstance(value.get("type"), str):
            return _decode_dataclass(kind, value, trust, at)
    elif kind is float and (type(value) is float or (type(value) is int and abs(value) < 2**1023)):
        return float(value)
    elif value is None if kind is type(None) else type(value) is kind and (kind is not int or abs(value) < MAX_INT):
        return value
    raise wrong


def _decode_dataclass(kind: type, value: dict[str, Any], trust: Sequence[str], at: str) -> Any:
    cls = _resolve(value["type"], kind, trust, at)
    hints = typing.get_type_hints(cls)
    given = {k: v for k, v in value.items() if k != "type"}
    unknown = sorted(set(given) - {f.name for f in fields(cls)})
    if unknown:
        raise UserError(f"{at}.{unknown[0]} is no field of {value['type']}")
    required = {f.name for f in fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - set(given)):
        raise UserError(f"{at}.{missing[0]} is missing")
    return cls(**{k: decode(hints[k], v, trust, f"{at}.{k}") for k, v in given.items()})


def _resolve(name: str, kind: type, trust: Sequence[str], at: str) -> Any:
    """The dataclass `name`, a `kind`. Its module's name is checked before anything is imported, since importing runs code."""
    module, _, cls = name.rpartition(".")
    trusted = any(module == t or module.startswith(t + ".") for t in ("gen.families", "gen.data", *trust))
    plain = re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name)
    if not plain or not (trusted or module in sys.modules):
        raise UserError(
            f"{at} names {name[:80]!r}, which is not part of gen; if you trust that code: --trust {module[:60]}"
        )
    try:
        found = getattr(importlib.import_module(module), cls, None)
    except ImportError as error:
        raise UserError(f"{at} names {name}, but {error}") from None
    abstract = found in (Family, Data)
    if not (isinstance(found, type) and is_dataclass(found) and issubclass(found, kind)) or abstract:
        raise UserError(f"{at} names {name}, which is no {kind.__name__}")
    return found


def type_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
