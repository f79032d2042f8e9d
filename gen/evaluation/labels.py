"""Which classes generated images have when a conditional model is scored."""

from __future__ import annotations

from typing import Literal

import numpy as np

from gen.core import Dataset
from gen.families.labels import num_classes
from gen.metrics.images import READ_CHUNK

LabelRule = Literal["training", "uniform"]
"""training: the labels of training examples. uniform: each class equally often."""


def draw_labels(data: Dataset, n: int, rule: LabelRule, seed: int) -> np.ndarray:
    """Returns the classes of n images to generate, int32 [n]. The first labels don't depend on n.

    - "training": the labels of the first n training examples in the order of the seed. They are drawn without replacement, so
      as many labels as there are training examples have exactly their proportions. After that the order begins again. The
      training split is used and not the held-out one, since a model may know no more than that about the classes.
    - "uniform": all classes in a random order, again and again. The counts of two classes differ by at most 1.

    Raises: UserError if the data have no labels.
    """
    classes = num_classes(data.spec)
    if rule == "uniform":
        rng = np.random.default_rng(seed)
        rounds = [rng.permutation(classes) for _ in range(-(-n // classes))]
        return np.concatenate(rounds)[:n].astype(np.int32)
    # In chunks: a batch has its images too, which may not fit in memory at once.
    ranges = (range(i, min(i + READ_CHUNK, n)) for i in range(0, n, READ_CHUNK))
    return np.concatenate([data.batch(seed, 0, rows)["label"] for rows in ranges]).astype(np.int32)
