"""Writes the features of a run's data as JSON values, for spec.json, and reads them back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gen import config as configs
from gen.core import MAX_SIZE, Feature, Spec
from gen.errors import UserError
from gen.media import find_axes

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    *("float16", "bfloat16", "float32", "float64", "complex64"),
)
"""Dtypes that a feature may have."""


def encode_spec(spec: Spec) -> dict[str, dict[str, Any]]:
    """Returns the features as JSON values. The entry "axes" is left out if it is None."""
    values = {name: asdict(feature) for name, feature in spec.items()}
    # spec.json of older versions has no axes. Without the entry the file is the same, and so is its SHA-256 in their checkpoints.
    return {name: {k: v for k, v in x.items() if k != "axes" or v is not None} for name, x in values.items()}


def decode_spec(value: object, at: str) -> Spec:
    """Returns the features that JSON values describe. at: where the values come from, for errors.

    Raises: UserError if they do not describe features, or if a size is not plausible.
    """
    if not isinstance(value, Mapping) or not all(isinstance(feature, dict) for feature in value.values()):
        raise UserError(f"{at} is damaged: it does not map names to features")
    kind = {"type": f"{Feature.__module__}.{Feature.__name__}"}
    spec = {name: configs.decode(Feature, {**x, **kind}, at=f"{at}: {name}") for name, x in value.items()}
    for name, feature in spec.items():
        _check_feature(name, feature, f"{at} is damaged: {name}")
    return spec


def _check_feature(name: str, feature: Feature, damaged: str) -> None:
    axes = find_axes(name) if feature.axes is None else len(feature.axes)
    if axes not in (None, len(feature.shape)):
        raise UserError(f"{damaged} has the shape {feature.shape}")
    if feature.dtype not in DTYPES:
        raise UserError(f"{damaged} has the dtype {feature.dtype[:40]!r}, which is not one of {', '.join(DTYPES)}")
    sizes = (*feature.shape, feature.classes, feature.vocab, feature.levels, feature.sample_rate)
    if feature.names is not None and len(feature.names) != feature.classes:
        raise UserError(f"{damaged} has {len(feature.names)} names of {feature.classes} classes")
    # The model is built with these sizes. Without a bound, a damaged file could make it fill the memory.
    plausible = math.prod(feature.shape) <= MAX_SIZE and all(x is None or 0 < x <= MAX_SIZE for x in sizes)
    if not plausible or not (feature.end is None or 0 <= feature.end < (feature.vocab or 1)):
        raise UserError(f"{damaged} has sizes that are not possible")
