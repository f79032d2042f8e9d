"""The types that every room shares: features, batches, states, models and data sets. Nothing else lives here.

A `Data` builds a `Dataset`, a `Family` builds a `GenerativeModel`, and an engine folds `update` over `batch` to move a `State`.
"""

from gen.core.data import Data, Dataset, Given, Medium, NoOptions, RunView, Shown
from gen.core.features import MAX_SIZE, Feature, Spec
from gen.core.model import LAUNCH, Adapter, Family, GenerativeModel, Request, means
from gen.core.state import Array, Batch, HostBatch, Key, Metrics, Params, Rules, State, Sums

__all__ = [
    "LAUNCH",
    "MAX_SIZE",
    "Adapter",
    "Array",
    "Batch",
    "Data",
    "Dataset",
    "Family",
    "Feature",
    "GenerativeModel",
    "Given",
    "HostBatch",
    "Key",
    "Medium",
    "Metrics",
    "NoOptions",
    "Params",
    "Request",
    "Rules",
    "RunView",
    "Shown",
    "Spec",
    "State",
    "Sums",
    "means",
]
