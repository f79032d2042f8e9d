"""Arrays that move through training: batches, metrics, and the state that a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax

Array = jax.Array
Key = jax.Array
"""A typed key of jax.random."""
Params = Any
"""A pytree of arrays."""
Batch = dict[str, Array]
"""{feature name: array [B, ...]}, with "row" int32 [B] (position in the global batch, or in the split during evaluation), "index"
int32 [B] (position in the split) and "weight" float32 [B] (0 for padding, otherwise 1)."""
HostBatch = dict[str, np.ndarray]
"""A Batch in host memory, before it is put on devices."""
Metrics = dict[str, Array]
"""{metric: array []}, or {metric: array [n]} for a compiled call of n training steps."""
Sums = dict[str, tuple[Array, Array]]
"""{metric: (total, weight)}. The metric of a split is the sum of its totals over the sum of its weights."""
Rules = tuple[tuple[str, int | None], ...]
"""(regular expression, axis) pairs for tensor parallelism. The first expression that matches somewhere in a parameter's path
decides which of its axes is divided among devices. None: the parameter is not divided."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The state of training at a step, as a pytree of arrays. A checkpoint holds all of it except `frozen`, which never changes.

    It has no random key: the key of a step is fold_in(key(seed), step), made inside the compiled step.
    """

    step: Array
    """int32 []. Number of updates done. It never decreases."""
    params: dict[str, Params]
    """Trained parameters, {part of the model, such as "generator" or "encoder": pytree}."""
    opt_state: dict[str, optax.OptState]
    """{name of an optimizer: its state}. The moments have at least float32, even if `params` have a lower precision."""
    ema: dict[str, Params] = field(default_factory=dict)
    """Moving averages of params, at least float32, used for evaluation and sampling. {}: params are used instead."""
    stats: dict[str, Any] = field(default_factory=dict)
    """Values that training updates without gradients, such as batch statistics or a codebook."""
    frozen: dict[str, Params] = field(default_factory=dict)
    """Weights that are read but never changed or saved, such as the base of an adapter."""
