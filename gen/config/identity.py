"""The identity of a run: the fields of its config that may not change between launches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from gen.config.encoding import encode, walk
from gen.config.experiment import Config
from gen.optim import Schedule


def identity(config: Config) -> dict[str, object]:
    """Returns the identity as JSON values: every field but launch fields, and `steps` only if a schedule reads it."""
    return _identity(encode(config), config)


def digest(config: Config) -> str:
    """Returns the SHA-256 of the identity."""
    return _sha256(identity(config))


def settings(part: object) -> object:
    """Returns a part of a config, such as its data, as JSON values without launch fields."""
    return _without_launch(encode(part), part)


def difference(old: Config, new: Config) -> list[str]:
    """Returns a line "field: old -> new" for each field in which two identities differ.

    Decode an old run's config first. Then a field that gen did not have at that time has its default.
    """
    before, after = (dict(_flat(identity(config))) for config in (old, new))
    lines = []
    for key in sorted(before | after):
        then, now = (json.dumps(side[key]) if key in side else "(absent)" for side in (before, after))
        if then != now:
            lines.append(f"{key}: {then} -> {now}")
    return lines


def identity_changed(then: str, stored: Mapping[str, object], config: Config) -> bool:
    """Returns whether a run has another identity than the one whose digest was written, perhaps by an older version of gen.

    then: the digest, as a manifest has it. stored: the "config" of the run's config.json. config: `stored`, decoded.

    Since then, classes may have got other names, and more fields, which have their defaults in an old run. So the digest may be taken
    of the config as gen decodes it now, or of the names and fields in config.json.
    """
    return then not in (digest(config), _sha256(_identity(stored, config)))


def _identity(encoded: Mapping[str, object], config: Config) -> dict[str, object]:
    """Returns what belongs to the identity of an encoded config, perhaps encoded by an older version of gen."""
    kept = _without_launch(encoded, config)
    assert isinstance(kept, dict)
    if not any(isinstance(x, Schedule) and x.reads_steps for x in walk(config)):
        kept.pop("steps", None)
    return kept


def _without_launch(encoded: object, x: object) -> object:
    """Returns an encoded `x` without its launch fields. A float without a fraction becomes an integer."""
    if isinstance(encoded, Mapping) and is_dataclass(x):
        launch = {f.name for f in fields(x) if f.metadata.get("launch")}
        return {k: _without_launch(v, getattr(x, k, None)) for k, v in encoded.items() if k not in launch}
    if isinstance(encoded, list):
        # An element decides which of its fields are launch fields. If there is none, nothing is left out.
        values = x if isinstance(x, tuple) and len(x) == len(encoded) else [None] * len(encoded)
        return [_without_launch(v, value) for v, value in zip(encoded, values, strict=True)]
    # JSON of other programs may write 1.0 as 1, and both decode to the same config.
    return int(encoded) if isinstance(encoded, float) and encoded.is_integer() else encoded


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _flat(x: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yields (dotted path, value) of each value in nested dicts."""
    if isinstance(x, Mapping):
        for key, value in x.items():
            yield from _flat(value, f"{path}.{key}" if path else key)
    else:
        yield path, x
