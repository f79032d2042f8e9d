"""The identity of a run: the fields of its config that must stay the same each time the run is started.

Launch fields, which have the metadata LAUNCH (such as the number of devices), are not part of the identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from gen.config.encoding import encode, walk
from gen.config.experiment import Config
from gen.optim import Schedule


def identity(config: Config) -> dict[str, object]:
    """Returns the identity of a config as JSON values: all fields except those with the metadata LAUNCH.

    `steps` is only included if a schedule depends on it.
    """
    return _identity(encode(config), config)


def digest(config: Config) -> str:
    """Returns the SHA-256 of a config's identity, in hex."""
    return _sha256(identity(config))


def settings(part: object) -> object:
    """Returns a part of a config, such as `config.data`, as JSON values without launch fields (metadata LAUNCH)."""
    return _without_launch(encode(part), part)


def difference(old: Config, new: Config) -> list[str]:
    """Returns a line "field: old -> new" for each field in which the identities of two configs differ.

    A field that was added to gen after `old` was stored does not count as a difference if `new` has its default,
    because `decode` has set the default in `old`, too.
    """
    before, after = (dict(_flat(identity(config))) for config in (old, new))
    lines = []
    for key in sorted(before | after):
        then, now = (json.dumps(side[key]) if key in side else "(absent)" for side in (before, after))
        if then != now:
            lines.append(f"{key}: {then} -> {now}")
    return lines


def identity_changed(then: str, stored: Mapping[str, object], config: Config) -> bool:
    """Returns whether a run's identity differs from an identity that was recorded earlier, for instance in a manifest.

    then: the recorded digest. stored: the entry "config" of the run's config.json. config: `stored`, decoded.

    The identity is unchanged if `then` is the digest of `config` or the digest of `stored`. These two digests differ if
    an older version of gen wrote config.json, and classes were renamed or got fields since.
    """
    return then not in (digest(config), _sha256(_identity(stored, config)))


def _identity(encoded: Mapping[str, object], config: Config) -> dict[str, object]:
    """Returns the identity of `config`. encoded: `config` as JSON values, as any version of gen wrote them."""
    kept = _without_launch(encoded, config)
    assert isinstance(kept, dict)
    if not any(isinstance(x, Schedule) and x.reads_steps for x in walk(config)):
        kept.pop("steps", None)
    return kept


def _without_launch(encoded: object, x: object) -> object:
    """Returns `encoded` (`x` as JSON values) without the launch fields of x. A float without a fraction becomes an integer."""
    if isinstance(encoded, Mapping) and is_dataclass(x):
        launch = {f.name for f in fields(x) if f.metadata.get("launch")}
        return {k: _without_launch(v, getattr(x, k, None)) for k, v in encoded.items() if k not in launch}
    if isinstance(encoded, list):
        # The class of an element of x says which fields are launch fields. If x has another length, all fields are kept.
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
