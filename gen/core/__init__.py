"""The types that all packages of gen share: features, batches, states, models and data sets.

A `Data` builds a `Dataset`, and a `Family` builds a `GenerativeModel`. In each training step, an engine (gen.runtime) calls the
model's `update` with the current `State` and the data set's next batch, and gets the next `State`.
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
