"""Class labels: how many exist, which to generate, and leaving them out for classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import overload

import jax
import jax.numpy as jnp

from gen import core
from gen.core import Array, Key, Spec
from gen.errors import UserError

GIVEN = "labels_to_generate"
"""Name of the array of `given` with the class of each sample, int32 [n]. gen.evaluate and alarms draw the classes of a
conditional model as they are in the data, and pass them to `generate` under this name."""


@dataclass(frozen=True)
class LabelRequest(core.Request):
    """Request of a family whose samples have a class. Subclass it to add fields."""

    label: int | None = None
    """Class to generate, for a conditional model. None: all classes in turn."""


def num_classes(spec: Spec) -> int:
    """Returns the number of classes of the label. Raises: UserError if the data have no label."""
    label = spec.get("label")
    if label is None or label.classes is None:
        raise UserError(
            "a conditional model needs labels, and the data have none; the fix: data with labels (an image folder has labels if "
            "each class is a sub-folder)"
        )
    return label.classes


def class_names(spec: Spec) -> tuple[str, ...] | None:
    """Returns the names of the classes, in the order of their labels. None: the data have none."""
    # Runs of earlier versions have no names in spec.json.
    return getattr(spec.get("label"), "names", None)


@overload
def labels_to_generate(n: int, asked: int | None, classes: int, given: Mapping[str, Array] = {}) -> Array: ...
@overload
def labels_to_generate(
    n: int, asked: int | None, classes: int | None, given: Mapping[str, Array] = {}
) -> Array | None: ...
def labels_to_generate(n: int, asked: int | None, classes: int | None, given: Mapping[str, Array] = {}) -> Array | None:
    """Returns the class of each sample, int32 [n]: the class asked for, the given classes, or all classes in turn.

    classes: the number of classes, or None for an unconditional model, which gets None.
    given: `given` of `generate`. Its array GIVEN, int32 [n] in [0, classes), has the class of each sample.

    Raises: UserError if the model does not have the class asked for.
    """
    if asked is not None and (classes is None or not 0 <= asked < classes):
        has = "is not conditional" if classes is None else f"has labels 0 to {classes - 1}"
        raise UserError(f"label {asked} asked for, and the model {has}; the fix: another --label, or none")
    if classes is None:
        return None
    index = jnp.arange(n, dtype=jnp.int32)
    if asked is not None:
        return jnp.full_like(index, asked)
    return jnp.asarray(given[GIVEN], jnp.int32) if GIVEN in given else index % classes


def drop_labels(label: Array, keys: Key, rate: float, null: int) -> Array:
    """Returns the labels [B] with each one replaced by `null` with probability `rate`, for classifier-free guidance.

    keys: one per example [B], for instance from gen.axis.example_keys. null: the class that means "no label"; usually the
    number of classes, so that an embedding has one row more. Ho and Salimans 2022, algorithm 1.
    """
    dropped = jax.vmap(partial(jax.random.bernoulli, p=rate))(keys)
    return jnp.where(dropped, jnp.asarray(null, label.dtype), label)
