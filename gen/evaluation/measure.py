"""Metrics of a whole split: sums of batches, divided once."""

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
    each: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The metrics of `batches` by an engine's `evaluate` or `test`: sums of the batches, added in float64, then one division.
    `each` is called a batch."""
    sums: dict[str, tuple[Any, Any]] = {}
    for batch in batches:
        for name, (total, count) in jax.device_get(compiled(state, batch)).items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + np.asarray(total, np.float64), before[1] + np.asarray(count, np.float64))
        each()
    return model.summarize(sums)


def split_facts(data: Dataset, split: str) -> dict[str, Any]:
    """The protocol of a number that is measured on a whole split: what is said of the data."""
    return {"split": split, "n": data.sizes[split], "data": data.digest, **data.protocol}
