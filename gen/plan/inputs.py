"""The data set and the batch shapes of a dry run.

If the data are not on this machine, a stand-in replaces them: a data set whose batches have the same shapes, but hold
only zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from numpy.typing import DTypeLike

from gen import config as configs
from gen import core
from gen.config import Config
from gen.core import Batch, Dataset, Feature, GenerativeModel, HostBatch, Key, Spec
from gen.data.images import Images
from gen.data.images.preprocess import preprocess
from gen.data.text import Text, dataset
from gen.derived.encoded import Encoded, code_feature, convert
from gen.errors import UserError
from gen.families.tokenizer import Tokenizer
from gen.runs import base

CLASSES = {"cifar10": 10, "cifar100": 100, "fashion_mnist": 10, "imagenet2012": 1000, "mnist": 10}
"""{name of a data set of TFDS: number of its classes}."""
Stored = dict[str, tuple[tuple[int, ...], DTypeLike]]
"""{entry of a batch: (shape of one example, dtype)}."""
Preprocess = Callable[[Batch, Key, bool], Batch]
"""Type of Dataset.preprocess."""


def open_data(config: Config) -> tuple[Dataset, str]:
    """Returns (data set, ""), or if the data are missing, (data set of zeros with the same shapes, note that says so).

    Raises: UserError if the data are missing and the config does not imply their shapes (see `imply_dataset`).
    """
    try:
        return base.build_data(config), ""
    except UserError as error:
        implied = imply_dataset(config.data)
        # With a base, the spec also depends on files of the base, which the config does not imply.
        if config.init_from is not None or implied is None:
            raise
        reason = str(error).splitlines()[0]
    shown = ", ".join(f"{name} {show_feature(feature)}" for name, feature in implied.spec.items())
    return implied, f"planned without the data ({reason}); the config implies: {shown}"


def show_feature(feature: Feature) -> str:
    """Returns the size of a feature as text: "32x32x3", or with its vocabulary "2049 of 32000", or "of 10 classes"."""
    if feature.classes is not None:
        return f"of {feature.classes} classes"
    size = "x".join(map(str, feature.shape))
    return size if feature.vocab is None else f"{size} of {feature.vocab}"


def imply_dataset(data: core.Data) -> Dataset | None:
    """Returns a stand-in for the data: a data set of zeros with the spec that the config implies. No data file is read.

    None: the config does not imply the spec. These configs imply it:

    - texts, if their tokenizer is "byte" or "bpe", because the size of the vocabulary is then known;
    - images, if the config has their size and colors. They have labels if the data set is in CLASSES;
    - codes (images that a trained tokenizer encodes), if the config implies the spec of the images, and the run of the
      tokenizer has the name of a config, such as runs/kl_folder.
    """
    match data:
        case Text():
            return imply_texts(data)
        case Images():
            return imply_images(data)
        case Encoded():
            return imply_codes(data)
    return None


def imply_texts(data: Text) -> Dataset | None:
    """Returns a data set of zeros with the spec of texts. None: the size of the vocabulary depends on the texts."""
    if data.tokenizer not in ("byte", "bpe"):
        return None
    vocab = dataset.MIN_BPE if data.tokenizer == "byte" else data.vocabulary
    lengths = {"tokens": data.length + 1}
    if data.pairs == "separate" or data.source_length:
        lengths["source"] = data.source_length or data.length
    # A batch also has "counted", which tokens count in the loss, and "bytes", the bytes of text that they represent.
    stored: Stored = {name: ((length,), np.int32) for name, length in lengths.items()}
    more: Stored = {"bytes": ((), np.int32), "counted": ((data.length + 1,), np.uint8)}
    spec = {name: Feature((n,), "int32", vocab=vocab, end=0) for name, n in lengths.items()}
    return stand_in(spec, stored | more)


def imply_images(data: Images) -> Dataset | None:
    """Returns a data set of zeros with the spec of these images, without reading a file.

    None: the config does not imply the shapes, because `size` or `colors` is not given, because the images are pairs, or because they are
    also given as tokens (`patch`).
    """
    if data.size is None or data.colors is None or data.patch or data.name.startswith("pairs:"):
        return None
    shape = (data.size, data.size, data.colors)
    spec = {"image": Feature(shape, levels=2 if data.binarize else 256, dequantized=data.dequantize)}
    stored: Stored = {"image": (shape, np.uint8)}
    if (classes := CLASSES.get(data.name)) is not None:
        spec["label"], stored["label"] = Feature((), "int32", classes=classes), ((), np.int32)
    transform = partial(preprocess, levels=256, flip=data.flip, dequantize=data.dequantize, binarize=data.binarize)
    return stand_in(spec, stored, transform)


def imply_codes(data: Encoded) -> Dataset | None:
    """Returns a data set of zeros with the spec of codes: tokens or latents that a trained tokenizer makes of images.

    None: the config does not imply the spec of the images, or no config of a tokenizer has the name of the tokenizer's
    run.
    """
    images, name = imply_dataset(data.data), Path(data.tokenizer).name
    try:
        tokenizer = configs.load(name).model
    except UserError:
        return None
    if images is None or not isinstance(tokenizer, Tokenizer):
        return None
    code, feature = code_feature(tokenizer.coder(images.spec))
    # The dtypes in which `Encoded` stores codes, because a plan counts the bytes of a batch.
    dtype = np.float16 if feature.vocab is None else np.uint16
    spec: dict[str, Feature] = {code: feature}
    stored: Stored = {code: (feature.shape, dtype)}
    if "label" in images.spec:
        spec["label"], stored["label"] = images.spec["label"], ((), np.int32)
    return stand_in(spec, stored, partial(convert, name=code, scale=1.0))


def stand_in(spec: Spec, stored: Stored, transform: Preprocess | None = None) -> Dataset:
    """Returns a data set whose training batches hold zeros, and whose held-out splits are empty.

    spec: features after preprocessing. stored: entries of a batch before preprocessing. transform: the preprocessing.
    None: the batch is not changed.
    """

    def batch(seed: int, step: int, rows: range) -> HostBatch:
        n = len(rows)
        facts = {"row": np.zeros(n, np.int32), "index": np.zeros(n, np.int32), "weight": np.ones(n, np.float32)}
        return {name: np.zeros((n, *shape), dtype) for name, (shape, dtype) in stored.items()} | facts

    def evaluation(split: str, batch_size: int) -> Iterator[HostBatch]:
        # A plan compiles the training step alone, so held-out splits are never read.
        return iter(())

    def keep(batch: Batch, key: Key, training: bool) -> Batch:
        return batch

    return Dataset(
        spec=spec,
        sizes={"train": 0, "validation": 0, "test": 0},
        digest="",
        batch=batch,
        evaluation=evaluation,
        preprocess=transform or keep,
    )


def batch_shapes(
    config: Config, data: Dataset, model: GenerativeModel, examples: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {feature: shape and dtype} of the batch of an update, before preprocessing. Reads one training example.

    examples: number of examples in the batch. If a model takes several batches, their axis comes first.
    """
    one = data.batch(config.seed, 0, range(1))
    stacked = () if model.batches is None else (model.batches,)
    return {name: jax.ShapeDtypeStruct((*stacked, examples, *x.shape[1:]), x.dtype) for name, x in one.items()}
