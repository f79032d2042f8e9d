"""Class labels: how many there are, and which to generate."""

from __future__ import annotations

import jax.numpy as jnp

from gen.core import Array, Spec
from gen.errors import UserError


def num_classes(spec: Spec) -> int:
    """The number of classes of the label. Raises: UserError if there is none."""
    label = spec.get("label")
    if label is None or label.classes is None:
        raise UserError(
            "a conditional model needs labels, and the data have none (folder: give each class a sub-folder)"
        )
    return label.classes


def labels_to_generate(n: int, asked: int | None, classes: int | None) -> Array | None:
    """int32 [n] to generate: the class asked for, or all in turn; None of an unconditional model.

    Raises: UserError for a label that the model doesn't have.
    """
    if asked is not None and (classes is None or not 0 <= asked < classes):
        has = "is not conditional" if classes is None else f"has labels 0 to {classes - 1}"
        raise UserError(f"label {asked} asked for, and the model {has}")
    if classes is None:
        return None
    index = jnp.arange(n, dtype=jnp.int32)
    return index % classes if asked is None else jnp.full_like(index, asked)
