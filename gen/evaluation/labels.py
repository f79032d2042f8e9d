"""Draws the classes of the images that a conditional model generates to be scored."""

from __future__ import annotations

from typing import Literal

import numpy as np

from gen.core import Dataset
from gen.families.labels import num_classes
from gen.metrics.images import READ_CHUNK

LabelRule = Literal["training", "uniform"]
"""training: classes are as frequent as in the training split. uniform: all classes are equally frequent."""


def draw_labels(data: Dataset, n: int, rule: LabelRule, seed: int) -> np.ndarray:
    """Returns the classes of n images to generate, int32 [n]. The first labels don't depend on n.

    - "training": the labels of the training examples in a random order. If n is the number of training examples, each class
      is as frequent as in the training split. If n is larger, the labels of the training split are used again, in a new order. The
      labels of the held-out split are not used, because the model can't know how frequent they are.
    - "uniform": all classes in a random order, then all in a new order, and so on. The counts of two classes differ by at most 1.

    Raises: UserError if the data have no labels.
    """
    classes = num_classes(data.spec)
    if rule == "uniform":
        rng = np.random.default_rng(seed)
        rounds = [rng.permutation(classes) for _ in range(-(-n // classes))]
        return np.concatenate(rounds)[:n].astype(np.int32)
    # Labels are read in chunks, because a batch also has images, and all of them may not fit in memory.
    ranges = (range(i, min(i + READ_CHUNK, n)) for i in range(0, n, READ_CHUNK))
    return np.concatenate([data.batch(seed, 0, rows)["label"] for rows in ranges]).astype(np.int32)
