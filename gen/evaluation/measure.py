"""Metrics of a whole split: sums over its batches, divided once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from gen.core import Dataset, GenerativeModel, HostBatch, State, Sums


def measure(
    model: GenerativeModel,
    compiled: Callable[[State, HostBatch], Sums],
    state: State,
    batches: Iterable[HostBatch],
    after_batch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Returns the metrics of `batches`, as `model.summarize` makes them from the sums: floats, or arrays.

    compiled: an engine's `evaluate` or `test`. Its float32 sums are added in float64, since a split can have more examples than
    a float32 can count. after_batch: called after each batch.
    """
    sums: dict[str, tuple[Any, Any]] = {}
    for batch in batches:
        # One transfer per batch for all sums.
        for name, (total, count) in jax.device_get(compiled(state, batch)).items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + np.asarray(total, np.float64), before[1] + np.asarray(count, np.float64))
        if after_batch is not None:
            after_batch()
    return model.summarize(sums)


def split_facts(data: Dataset, split: str) -> dict[str, Any]:
    """Returns the entries of a protocol that describe a whole split: its name, size and data."""
    return {"split": split, "n": data.sizes[split], "data": data.digest, **data.protocol}
