"""Metrics of a whole split: sums over its batches, divided once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from gen.core import Dataset, GenerativeModel, HostBatch, State, Sums
from gen.errors import UserError


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


def scalars_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that are single numbers."""
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}


def check_measured(setting: str, name: str, model: GenerativeModel, data: Dataset, state: State) -> None:
    """Checks that a setting names a number of the validation split. Only shapes are computed, so `state` may be abstract.

    Raises: UserError that lists the numbers.
    """
    batch = next(data.evaluation("validation", model.together, range(model.together)))
    # The model reduces over the axis "data", so one of size one is bound.
    evaluate = jax.vmap(model.evaluate, in_axes=(None, 0, None), axis_name="data")
    shapes = jax.eval_shape(evaluate, state, jax.tree.map(itemgetter(None), batch), jax.random.key(0))
    # The names of the numbers do not depend on the values of the sums.
    measured = scalars_of(model.summarize(jax.tree.map(_ones, shapes)))
    if name not in measured:
        first = next((loss for loss in model.losses if loss in measured), next(iter(measured)))
        raise UserError(
            f"{setting} names {name!r}, which is not measured on the validation split; there are {', '.join(measured)}; "
            f"the fix: --{setting} {first} min"
        )


def _ones(x: jax.ShapeDtypeStruct) -> np.ndarray:
    """Returns ones in place of an array [1, ...] that was computed in shape only."""
    return np.ones(x.shape[1:])


def split_facts(data: Dataset, split: str) -> dict[str, Any]:
    """Returns the entries of a protocol that describe a whole split: its name, size and data."""
    return {"split": split, "n": data.sizes[split], "data": data.digest, **data.protocol}
