"""The identity of a run: the fields of its config that may not change between launches."""

from __future__ import annotations

import hashlib
import json
import typing
from dataclasses import fields, is_dataclass
from typing import Any

from gen.config.encoding import type_name, walk
from gen.config.experiment import Config
from gen.optim import Schedule


def identity(config: Config) -> dict[str, Any]:
    """What a run is, as JSON: everything but launch fields, and `steps` only where a schedule reads it."""
    kept = _identity(config)
    if not any(isinstance(x, Schedule) and x.reads_steps for x in walk(config)):
        del kept["steps"]
    return kept


def digest(config: Config) -> str:
    """SHA-256 of the identity."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def difference(old: Config, new: Config) -> list[str]:
    """Lines "field: old -> new" for the fields in which two identities differ."""
    a, b = (dict(_flat(identity(c))) for c in (old, new))
    shown = lambda side, key: json.dumps(side[key]) if key in side else "(absent)"
    return [f"{k}: {shown(a, k)} -> {shown(b, k)}" for k in sorted(a | b) if shown(a, k) != shown(b, k)]


def _identity(x: Any) -> Any:
    """`encode` without launch fields; an integer is the same as the float of its value."""
    if is_dataclass(x) and not isinstance(x, type):
        kept = [f.name for f in fields(x) if not f.metadata.get("launch")]
        return {"type": type_name(type(x))} | {name: _identity(getattr(x, name)) for name in kept}
    if isinstance(x, tuple):
        return [_identity(v) for v in x]
    return int(x) if isinstance(x, float) and x.is_integer() else x


def _flat(x: Any, path: str = "") -> typing.Iterator[tuple[str, Any]]:
    if isinstance(x, dict):
        for key, value in x.items():
            yield from _flat(value, f"{path}.{key}" if path else key)
    else:
        yield path, x
