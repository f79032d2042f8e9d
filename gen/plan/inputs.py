"""The data and the batch shapes that a dry run plans with. The data need not be on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from gen import core
from gen.config import Config
from gen.core import Batch, Dataset, GenerativeModel, HostBatch, Key
from gen.data.text import Text, dataset
from gen.errors import UserError
from gen.runs import base


def open_data(config: Config) -> tuple[Dataset, str]:
    """Returns the data set and "". If the data are missing, returns a stand-in that the config implies, and a note about it.

    Raises: UserError if the data are missing and the config does not imply their shapes.
    """
    try:
        return base.build_data(config), ""
    except UserError as error:
        stand_in = imply_dataset(config.data)
        if config.init_from is not None or stand_in is None:
            raise
        reason = str(error).splitlines()[0]
    shown = ", ".join(f"{name} {'x'.join(map(str, f.shape))} of {f.vocab}" for name, f in stand_in.spec.items())
    return stand_in, f"planned without the data ({reason}); the config implies: {shown}"


def imply_dataset(data: core.Data) -> Dataset | None:
    """Returns a data set with the spec that a config implies and batches of zeros. None: only the data can tell the spec.

    Texts imply one if their tokenizer is "byte" or "bpe": the vocabulary is then known. With separate pairs, the prompt is a
    feature of its own.
    """
    if not isinstance(data, Text) or data.tokenizer not in ("byte", "bpe"):
        return None
    vocab = dataset.MIN_BPE if data.tokenizer == "byte" else data.vocabulary
    lengths = {"tokens": data.length + 1}
    if data.pairs == "separate" or data.source_length:
        lengths["source"] = data.source_length or data.length

    def batch(seed: int, step: int, rows: range) -> HostBatch:
        n = len(rows)
        tokens = {name: np.zeros((n, length), np.int32) for name, length in lengths.items()}
        facts = {name: np.zeros(n, np.int32) for name in ("bytes", "row", "index")}
        return tokens | {"counted": np.zeros((n, data.length + 1), np.uint8), "weight": np.ones(n, np.float32)} | facts

    def evaluation(split: str, batch_size: int) -> Iterator[HostBatch]:
        return iter(())

    def preprocess(batch: Batch, key: Key, training: bool) -> Batch:
        return batch

    return Dataset(
        spec={name: core.Feature((n,), "int32", vocab=vocab, end=0) for name, n in lengths.items()},
        sizes={"train": 0, "validation": 0, "test": 0},
        digest="",
        batch=batch,
        evaluation=evaluation,
        preprocess=preprocess,
    )


def batch_shapes(
    config: Config, data: Dataset, model: GenerativeModel, examples: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of an update's batch of `examples`. Reads one example."""
    one = data.batch(config.seed, 0, range(1))
    stacked = () if model.batches is None else (model.batches,)
    return {name: jax.ShapeDtypeStruct((*stacked, examples, *x.shape[1:]), x.dtype) for name, x in one.items()}
