"""Class labels: how many classes exist, which labels to generate, and label dropout for classifier-free guidance."""

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
"""Key of the class of each sample, int32 [n], in the argument `given` of GenerativeModel.generate. Evaluations and
alarms use it, for instance to generate each class as often as it occurs in the data."""
NUMBER = re.compile(r"[0-9]{1,15}")
"""Text that is read as the number of a class."""
MAX_NAMES = 20
"""Maximum number of names of classes that an error lists."""
R = TypeVar("R", bound=core.Request)


@dataclass(frozen=True)
class LabelRequest(core.Request):
    """Request to a family that can be conditioned on labels. Subclass it to add fields."""

    label: str | int | None = None
    """Class to generate: its name, or its number, counted from 0. It needs a conditional model. None: all classes in turn."""


def num_classes(spec: Spec) -> int:
    """Returns the number of classes of the data's label. Raises: UserError if the data have no labels."""
    label = spec.get("label")
    if label is None or label.classes is None:
        raise UserError(
            "a conditional model needs labels, and the data have none; the fix: data with labels (an image folder has labels if "
            "each class is a sub-folder)"
        )
    return label.classes


def class_names(spec: Spec) -> tuple[str, ...]:
    """Returns the names of the classes, in the order of their numbers. Empty: the classes have no names."""
    feature = spec.get("label")
    return (feature.names if feature else None) or ()


def find_class(asked: str, spec: Spec) -> int:
    """Returns the number of the class that a user asked for, by its name or by its number as text, such as "3".

    If any class has a number as its name, such as "12", then `asked` is read as a name. Otherwise text of digits is
    read as the number of a class, which may be out of range: labels_to_generate checks the range.

    Raises: UserError if no class has this name. The error suggests the most similar name, or lists up to MAX_NAMES
    names.
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
    """Returns the request with the number of a class in its field "label" instead of the name of the class.

    The request is returned unchanged if it lacks the field, or if the field is not a string.

    Raises: UserError if no class of the data has this name (see `find_class`). spec: of the data.
    """
    label = getattr(request, "label", None)
    return replace(request, label=find_class(label, spec)) if isinstance(label, str) else request


Asked = str | int | None


@overload
def labels_to_generate(n: int, asked: Asked, classes: int, given: Mapping[str, Array] = {}) -> Array: ...
@overload
def labels_to_generate(n: int, asked: Asked, classes: int | None, given: Mapping[str, Array] = {}) -> Array | None: ...
def labels_to_generate(n: int, asked: Asked, classes: int | None, given: Mapping[str, Array] = {}) -> Array | None:
    """Returns the class of each of n samples to generate, int32 [n], or None for an unconditional model.

    asked: number of the class of all samples. None: the classes are given[GIVEN], int32 [n] in [0, classes). If `given`
        lacks this entry, sample i has the class i modulo `classes`.
    classes: number of classes of the model. None: the model is unconditional.
    given: input arrays of GenerativeModel.generate.

    Raises: UserError if the model does not have the class `asked`, or if `asked` is the name of a class. Call
    `with_class_number` first to replace names by numbers.
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
    """Replaces each label [B] by `null` with probability `rate`, for classifier-free guidance. Ho and Salimans 2022, algorithm 1.

    keys: one per example [B], for instance from gen.axis.example_keys. null: the label that means "no label", usually the number
    of classes. The model's embedding of labels then needs one row more than there are classes.
    """
    dropped = jax.vmap(partial(jax.random.bernoulli, p=rate))(keys)
    return jnp.where(dropped, jnp.asarray(null, label.dtype), label)
