"""Labels and captions of examples and of samples, for models that read either or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen.core import Array, Batch, Feature, Key, Spec
from gen.families.captions import captions_to_generate
from gen.families.labels import drop_labels, labels_to_generate, num_classes


class Condition(NamedTuple):
    """Labels and captions on which a model is conditioned."""

    label: Array | None = None
    """int32 [B] in [0, classes]. The value `classes` means "no label". None: the model reads no labels, or no example has one."""
    caption: Array | None = None
    """int32 [B, L], filled up with the end token. Only end tokens mean "no caption". None: the model reads no captions, or no example
    has one."""

    def arrays(self) -> dict[str, Array]:
        """Returns {"labels": ..., "captions": ...} of samples, as `generate` returns them, without those that are None."""
        found = {"labels": self.label, "captions": self.caption}
        return {name: array for name, array in found.items() if array is not None}


@dataclass(frozen=True)
class Conditions:
    """Which conditions a model reads."""

    classes: int | None = None
    """Number of labels. None: it reads none."""
    caption: Feature | None = None
    """The captions. None: it reads none."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features that the model reads, for protocols."""
        found = {"label": self.classes, "caption": self.caption}
        return tuple(name for name, value in found.items() if value is not None)

    @property
    def end(self) -> int:
        """The token that ends captions."""
        return (self.caption.end or 0) if self.caption else 0

    def of(self, batch: Batch) -> Condition:
        """Returns the conditions of examples."""
        label = None if self.classes is None else batch["label"].astype(jnp.int32)
        return Condition(label, None if self.caption is None else batch["caption"].astype(jnp.int32))

    def none(self, n: int) -> Condition:
        """Returns "no label" and "no caption" for n examples."""
        label = None if self.classes is None else jnp.full(n, self.classes, jnp.int32)
        caption = None if self.caption is None else jnp.full((n, *self.caption.shape), self.end, jnp.int32)
        return Condition(label, caption)

    def drop(self, condition: Condition, keys: Key, rate: float) -> Condition:
        """Returns the conditions, where each example's label and caption are left out with probability `rate`. keys: [B]."""
        label, caption = condition
        if label is not None and self.classes is not None:
            label = drop_labels(label, keys, rate, self.classes)
        if caption is not None:
            # The same keys as for labels, so that both are left out together.
            dropped = jax.vmap(partial(jax.random.bernoulli, p=rate))(keys)
            caption = jnp.where(dropped[:, None], jnp.asarray(self.end, jnp.int32), caption)
        return Condition(label, caption)

    def to_generate(self, n: int, label: str | int | None, given: Mapping[str, Array]) -> Condition:
        """Returns the conditions of n samples. See labels_to_generate and captions_to_generate for `label` and `given`.

        Raises: UserError for a label that the model does not have.
        """
        labels = labels_to_generate(n, label, self.classes, given)
        return Condition(labels, captions_to_generate(n, self.caption, given))


def find_conditions(spec: Spec) -> Conditions:
    """Returns the conditions that the data have for a conditional model. Raises: UserError if they have none."""
    caption = spec.get("caption")
    # Captions suffice: only data with neither are an error.
    return Conditions(num_classes(spec) if "label" in spec or caption is None else None, caption)
