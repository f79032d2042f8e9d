"""The data and batch shapes that a dry run plans with, also where the data are not at hand."""

from __future__ import annotations

import jax
import numpy as np

from gen import core
from gen.config import Config
from gen.core import Dataset, GenerativeModel
from gen.data.text import Text, dataset
from gen.errors import UserError
from gen.runs import base


def opened(config: Config) -> tuple[Dataset, str]:
    """The data, or what the config says that they are like if they aren't here, and a line that says so."""
    try:
        return base.build_data(config), ""
    except UserError as error:
        if config.init_from is not None or (known := implied(config.data)) is None:
            raise
        reason = str(error).splitlines()[0]
    shown = ", ".join(f"{name} {'x'.join(map(str, f.shape))} of {f.vocab}" for name, f in known.spec.items())
    return known, f"planned without the data ({reason}); as the config has them: {shown}"


def implied(data: core.Data) -> Dataset | None:
    """Data of the spec that a config implies, with batches of zeros; None if it takes the data to tell.

    Of texts, the tokens that a bpe is asked for, or a byte's; a prompt of its own if pairs are to be separate.
    """
    if not isinstance(data, Text) or data.tokenizer not in ("byte", "bpe"):
        return None
    vocab = dataset.MIN_BPE if data.tokenizer == "byte" else data.vocabulary
    lengths = {"tokens": data.length + 1}
    if data.pairs == "separate" or data.source_length:
        lengths["source"] = data.source_length or data.length

    def batch(seed: int, step: int, rows: range) -> core.HostBatch:
        n = len(rows)
        made = {name: np.zeros((n, length), np.int32) for name, length in lengths.items()}
        made |= {"counted": np.zeros((n, data.length + 1), np.uint8), "weight": np.ones(n, np.float32)}
        return made | {name: np.zeros(n, np.int32) for name in ("bytes", "row", "index")}

    return Dataset(
        spec={name: core.Feature((n,), "int32", vocab=vocab, end=0) for name, n in lengths.items()},
        sizes={"train": 0, "validation": 0, "test": 0},
        digest="",
        batch=batch,
        evaluation=lambda split, batch_size: iter(()),
        preprocess=lambda batch, key, training: batch,
    )


def shapes(config: Config, data: Dataset, model: GenerativeModel, examples: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What an update takes; one example is read for it."""
    one = data.batch(config.seed, 0, range(1))
    before = () if model.batches is None else (model.batches,)
    return {name: jax.ShapeDtypeStruct((*before, examples, *x.shape[1:]), x.dtype) for name, x in one.items()}
