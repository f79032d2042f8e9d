"""Class labels: how many exist, which to generate, and leaving them out for classifier-free guidance."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar, overload

import jax
import jax.numpy as jnp

from gen import core
from gen.core import Array, Key, Spec
from gen.errors import UserError

GIVEN = "labels_to_generate"
"""Name of the array of `given` with the class of each sample, int32 [n]. gen.evaluate and alarms draw the classes of a
conditional model as they are in the data, and pass them to `generate` under this name."""
NUMBER = re.compile(r"[0-9]{1,15}")
MAX_NAMES = 20
"""Names of classes that an error lists."""
R = TypeVar("R", bound=core.Request)


@dataclass(frozen=True)
class LabelRequest(core.Request):
    """Request of a family whose samples have a class. Subclass it to add fields."""

    label: str | int | None = None
    """Class to generate, for a conditional model: its name, or its number from 0. None: all classes in turn."""


def num_classes(spec: Spec) -> int:
    """Returns the number of classes of the label. Raises: UserError if the data have no label."""
    label = spec.get("label")
    if label is None or label.classes is None:
        raise UserError(
            "a conditional model needs labels, and the data have none; the fix: data with labels (an image folder has labels if "
            "each class is a sub-folder)"
        )
    return label.classes


def class_names(spec: Spec) -> tuple[str, ...]:
    """Returns the names of the classes, in the order of their labels. Empty: the data have none."""
    feature = spec.get("label")
    return (feature.names if feature else None) or ()


def find_class(asked: str, spec: Spec) -> int:
    """Returns the number of a class. asked: its name, or its number as text, whose range is not checked.

    If any name is a number, such as a folder 12, then the text is always a name.

    Raises: UserError that names the nearest class or lists all, if no class has this name.
    """
    names = class_names(spec)
    if asked in names:
        return names.index(asked)
    if NUMBER.fullmatch(asked) and not any(map(NUMBER.fullmatch, names)):
        return int(asked)
    if not names:
        raise UserError(f"label {asked!r} asked for, and the run has no names of classes; the fix: a number from 0 on")
    near = [] if NUMBER.fullmatch(asked) else difflib.get_close_matches(asked, names, 1)
    known = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    raise UserError(
        f"there is no class {asked!r}; " + (f"did you mean {near[0]!r}?" if near else f"the classes are {known}")
    )


def with_class_number(request: R, spec: Spec) -> R:
    """Returns the request with the number of the class, if its field "label" is a text. Raises: UserError as `find_class`."""
    label = getattr(request, "label", None)
    return replace(request, label=find_class(label, spec)) if isinstance(label, str) else request


Asked = str | int | None


@overload
def labels_to_generate(n: int, asked: Asked, classes: int, given: Mapping[str, Array] = {}) -> Array: ...
@overload
def labels_to_generate(n: int, asked: Asked, classes: int | None, given: Mapping[str, Array] = {}) -> Array | None: ...
def labels_to_generate(n: int, asked: Asked, classes: int | None, given: Mapping[str, Array] = {}) -> Array | None:
    """Returns the class of each sample, int32 [n]: the class asked for, the given classes, or all classes in turn.

    asked: a number. gen replaces the names in requests by numbers before a model sees them (`with_class_number`).
    classes: the number of classes, or None for an unconditional model, which gets None.
    given: `given` of `generate`. Its array GIVEN, int32 [n] in [0, classes), has the class of each sample.

    Raises: UserError if the model does not have the class asked for.
    """
    if isinstance(asked, str):
        raise UserError(
            f"label {asked!r} is not a number; the fix: gen.families.labels.with_class_number(request, spec)"
        )
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
