"""Labels and captions on which a model is conditioned: how they are read from a batch, dropped in training, and chosen
for samples. A model may read labels, captions or both."""

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
    """The labels and captions of a batch."""

    label: Array | None = None
    """int32 [B] in [0, classes]. The value `classes` means "no label". None: the model reads no labels, or no example has one."""
    caption: Array | None = None
    """int32 [B, L] tokens, padded with the end token. A row of end tokens means "no caption". None: the model reads no captions, or
    no example has one."""

    def arrays(self) -> dict[str, Array]:
        """Returns {"labels": ..., "captions": ...}, without entries that are None, to add to the result of `generate`."""
        found = {"labels": self.label, "captions": self.caption}
        return {name: array for name, array in found.items() if array is not None}


@dataclass(frozen=True)
class Conditions:
    """Which conditions (labels, captions) a model reads."""

    classes: int | None = None
    """Number of classes of the label. None: the model reads no labels."""
    caption: Feature | None = None
    """The feature of captions. None: the model reads no captions."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions that the model reads, from "label" and "caption". Reports store them with each metric."""
        found = {"label": self.classes, "caption": self.caption}
        return tuple(name for name, value in found.items() if value is not None)

    @property
    def end(self) -> int:
        """The token that ends captions, or 0 if there are no captions or no such token."""
        return (self.caption.end or 0) if self.caption else 0

    def of(self, batch: Batch) -> Condition:
        """Returns the conditions of a batch: its entries "label" [B] and "caption" [B, L], if the model reads them."""
        label = None if self.classes is None else batch["label"].astype(jnp.int32)
        return Condition(label, None if self.caption is None else batch["caption"].astype(jnp.int32))

    def none(self, n: int) -> Condition:
        """Returns "no label" [n] and "no caption" [n, L] for n examples, or None where the model reads none."""
        label = None if self.classes is None else jnp.full(n, self.classes, jnp.int32)
        caption = None if self.caption is None else jnp.full((n, *self.caption.shape), self.end, jnp.int32)
        return Condition(label, caption)

    def drop(self, condition: Condition, keys: Key, rate: float) -> Condition:
        """Replaces the label and the caption of randomly chosen examples by "no label" and "no caption".

        Each example is chosen with probability `rate`, and loses both together. Classifier-free guidance needs a model
        that was trained in this way (Ho and Salimans 2022).

        condition: labels [B] and captions [B, L]. keys: one random key per example, [B].
        """
        label, caption = condition
        if label is not None and self.classes is not None:
            label = drop_labels(label, keys, rate, self.classes)
        if caption is not None:
            # The same keys as for labels, so that both are left out together.
            dropped = jax.vmap(partial(jax.random.bernoulli, p=rate))(keys)
            caption = jnp.where(dropped[:, None], jnp.asarray(self.end, jnp.int32), caption)
        return Condition(label, caption)

    def to_generate(self, n: int, label: str | int | None, given: Mapping[str, Array]) -> Condition:
        """Returns the labels and captions from which n samples are generated.

        label: number of the class of all samples. None: labels are taken from `given`; if it has none, all classes in
            turn.
        given: input arrays of GenerativeModel.generate, which may choose labels and captions (see labels_to_generate
            and captions_to_generate).

        Raises: UserError if `label` is a name, or the number of a class that the model does not have.
        """
        labels = labels_to_generate(n, label, self.classes, given)
        return Condition(labels, captions_to_generate(n, self.caption, given))


def find_conditions(spec: Spec) -> Conditions:
    """Returns the `Conditions` of a model that reads all of the labels and captions that the data have.

    Raises: UserError if the data have neither labels nor captions.
    """
    caption = spec.get("caption")
    # `num_classes` raises if there are no labels. It must not do so if there are captions.
    return Conditions(num_classes(spec) if "label" in spec or caption is None else None, caption)
