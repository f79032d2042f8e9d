"""Computes the metrics of a whole split: sums over all batches, which are then divided by the sums of the weights."""

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
    """Returns {metric: float or array} of the examples in `batches`, as `model.summarize` computes it from their sums.

    compiled: an engine's `evaluate` or `test`. Its float32 sums are added in float64, because a split can have more examples
    than a float32 can count. after_batch: called after each batch.
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
    """Checks that the metric `name`, which the config's field `setting` names, is a number measured on the validation split.

    Only shapes are computed, so `state` may be abstract.

    Raises: UserError that lists the measured numbers.
    """
    batch = next(data.evaluation("validation", model.together, range(model.together)))
    # The model reduces over the axis "data", so `vmap` binds an axis of this name with size 1.
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
    """Returns ones of the shape of x without its first axis. They take the place of values that are not computed."""
    return np.ones(x.shape[1:])


def split_facts(data: Dataset, split: str) -> dict[str, Any]:
    """Returns the settings of a split that are stored with its scores: name, size, digest, and `data.protocol`."""
    return {"split": split, "n": data.sizes[split], "data": data.digest, **data.protocol}
