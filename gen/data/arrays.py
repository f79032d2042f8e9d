"""Data sets made of arrays in memory: one call returns a gen.core.Dataset of any named arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np

from gen.core import MAX_SIZE, Batch, Dataset, Feature, HostBatch, Key
from gen.data.digest import sha256
from gen.data.examples import Examples
from gen.data.order import permute
from gen.data.preprocess import scale_levels
from gen.errors import UserError, check_positive

SPLITS = ("train", "validation", "test")
ADDED = ("row", "index", "weight")  # arrays that are added to every batch, so their names are taken
TOKENS = ("tokens", "source")  # names whose integers are always tokens
UNSEEN = ("counted", "bytes")  # arrays for the loss of language models. They are not features
BYTE_LEVELS = 256

Arrays = Mapping[str, np.ndarray]
"""{name: array [N, ...]}: the N examples of one split."""


def from_arrays(
    splits: Mapping[str, Arrays], batch_size: int = 128, features: Mapping[str, Feature] | None = None
) -> Dataset:
    """Returns a data set of the arrays of three splits, which stay in memory.

    To add your own kind of data, write a subclass of gen.core.Data whose `build` calls this function:

        @dataclass(frozen=True)
        class Noise(gen.core.Data):
            n: int = 1000

            def build(self) -> gen.core.Dataset:
                image = np.random.default_rng(0).integers(0, 256, (self.n, 8, 8, 1), np.uint8)
                split = {"train": image[200:], "validation": image[:100], "test": image[100:200]}
                return from_arrays({name: {"image": x} for name, x in split.items()}, self.batch_size)

    splits: {split: {name: array [N, ...]}} for the splits "train", "validation" and "test". All three are needed, with
        the same names, and for each name the same shape of an example.
    batch_size: examples in a training batch, over all devices and hosts.
    features: {name: gen.core.Feature} for arrays whose feature should not be inferred from the array.

    A feature is inferred from the dtype of its array:

    - uint8 of rank 2 or more, such as "image" [N, H, W, C]: 256 levels. The model sees them as float32 in [-1, 1].
    - Integers of shape [N], such as "label": classes. Their number is the largest value in all splits + 1.
    - Other integers, and always "tokens" and "source": tokens. The vocabulary size is the largest value + 1.
    - Floats, such as "latent" or "points": float32, unchanged. An "image" must be in [-1, 1].

    Language models also read "counted" [N, T + 1] (1 for tokens in the loss, otherwise 0) and "bytes" [N] (number of
    bytes of text that the counted tokens represent). If "tokens" [N, T + 1] come without "counted", it is 1 for every
    token but the first. If they come without "bytes", each counted token is one byte.

    Raises: UserError for a missing split, arrays that differ in names or shapes, or values that a feature does not
    allow.
    """
    check_positive(**{"batch_size": batch_size})
    check_splits(splits)
    # Everything below works on three dtypes: uint8 for levels, float32, and int32.
    arrays = {split: {name: convert(name, x) for name, x in splits[split].items()} for split in SPLITS}
    spec = make_spec(arrays, features or {})
    # uint8 goes to the device as it is: a quarter of the bytes of float32.
    levels = {name: spec[name].levels or BYTE_LEVELS for name in spec if arrays["train"][name].dtype == np.uint8}
    sizes = {split: count(arrays[split]) for split in SPLITS}
    held = InMemory({split: add_counted(arrays[split]) for split in SPLITS})
    examples = Examples(sizes, held.read, permute(sizes["train"]), batch_size)
    # Names are sorted, so that the order in which a caller builds its dicts does not change the digest.
    content = [part for split in SPLITS for name, x in sorted(arrays[split].items()) for part in (f"{split}/{name}", x)]
    return Dataset(
        spec=spec,
        sizes=sizes,
        digest=sha256(*content),
        batch=examples.batch,
        evaluation=examples.evaluation,
        preprocess=partial(scale_bytes, levels=levels),
    )


@dataclass(frozen=True)
class InMemory:
    """Reads examples from the arrays of each split."""

    arrays: Mapping[str, Arrays]
    """{split: {name: array [N, ...]}}."""

    def read(self, split: str, index: np.ndarray) -> HostBatch:
        """Returns the examples at these positions in the split, {name: array [n, ...]}. index: int64 [n]."""
        return {name: x[index] for name, x in self.arrays[split].items()}


def scale_bytes(batch: Batch, key: Key, training: bool, *, levels: Mapping[str, int]) -> Batch:
    """Returns the batch with uint8 features as float32 in [-1, 1]: level 0 becomes -1, and the last level 1.

    It is the `preprocess` of the data set. `key` and `training` have no effect.

    levels: {name of a uint8 feature: number of its levels}. The other arrays of the batch stay as they are.
    """
    scaled = {name: scale_levels(batch[name].astype(jnp.float32), n - 1) for name, n in levels.items()}
    return {**batch, **scaled}


def check_splits(splits: Mapping[str, Arrays]) -> None:
    """Checks the argument `splits` of `from_arrays`.

    Raises: UserError if a split is missing, unknown or empty, if the arrays of a split differ in length, if the names
    or the shapes of an example differ between splits, or if an array has one of the names "row", "index" and "weight".
    """
    for split in SPLITS:
        if split not in splits:
            raise UserError(
                f"there is no split {split!r}; hold examples out for it, or pass the arrays of another split twice"
            )
    if unknown := set(splits) - set(SPLITS):
        raise UserError(f"there is no split {min(unknown)!r}: they are {', '.join(SPLITS)}")
    train = splits["train"]
    if taken := set(train) & set(ADDED):
        raise UserError(f"an array is named {min(taken)!r}, which every batch has already; choose another name")
    for split in SPLITS:
        if splits[split].keys() != train.keys() or not train:
            names = ", ".join(splits[split]) or "none"
            raise UserError(f"{split!r} has the arrays {names}, and 'train' has {', '.join(train) or 'none'}")
        for name, x in splits[split].items():
            # The rank is checked first, because a scalar has no length.
            if np.ndim(x) == 0 or len(x) == 0 or len(x) != count(splits[split]):
                raise UserError(
                    f"{split!r}: {name!r} has the shape {np.shape(x)}; the first axis of all arrays is the number of"
                    " examples, at least 1"
                )
            if np.shape(x)[1:] != np.shape(train[name])[1:]:
                raise UserError(
                    f"{split!r}: an example of {name!r} has the shape {np.shape(x)[1:]}, and"
                    f" {np.shape(train[name])[1:]} in 'train'; give all splits the same shape"
                )


def count(arrays: Arrays) -> int:
    """Returns the number of examples of a split."""
    return len(next(iter(arrays.values())))


def convert(name: str, values: np.ndarray) -> np.ndarray:
    """Returns the array in the dtype that batches have.

    Floats become float32. uint8 arrays of rank 2 or more stay uint8 (levels), except "tokens", "source" and "bytes".
    Other integers become int32, and "counted" becomes uint8.

    name: name of the array. Raises: UserError for other dtypes, integers that are negative or not below MAX_SIZE, and
    floats that are not finite.
    """
    x = np.asarray(values)
    if x.dtype.kind == "f":
        if not np.isfinite(x).all():
            raise UserError(f"{name!r} has values that are not finite; remove these examples")
        return x.astype(np.float32, copy=False)
    if x.dtype.kind not in "iu":
        raise UserError(f"{name!r} is {x.dtype}; convert it to uint8, int32 or float32")
    # Labels and tokens may be stored as uint8 too. Only arrays of rank 2 or more are levels.
    if x.dtype == np.uint8 and x.ndim > 1 and name not in (*TOKENS, *UNSEEN):
        return x
    if not 0 <= x.min() <= x.max() < MAX_SIZE:
        raise UserError(f"{name!r} has values from {x.min()} to {x.max()}; they must be in [0, {MAX_SIZE})")
    return x.astype(np.uint8 if name == "counted" else np.int32, copy=False)


def make_spec(arrays: Mapping[str, Arrays], features: Mapping[str, Feature]) -> dict[str, Feature]:
    """Returns {name: feature} of all arrays except "counted" and "bytes".

    arrays: {split: {name: array as from `convert`}}. features: {name: feature} that the caller chose. The features of
    the other arrays are inferred.

    Raises: UserError if a chosen feature has no array, or does not fit its array.
    """
    spec = {}
    for name in arrays["train"]:
        if name not in UNSEEN:
            parts = [arrays[split][name] for split in SPLITS]
            spec[name] = features.get(name) or infer_feature(name, parts)
            check_feature(name, spec[name], parts)
    if unknown := features.keys() - spec.keys():
        raise UserError(
            f"features has {min(unknown)!r}, and the arrays are {', '.join(spec)}: choose one of these names"
        )
    return spec


def infer_feature(name: str, parts: list[np.ndarray]) -> Feature:
    """Infers the feature of an array from its dtype and values, by the rules of `from_arrays`.

    name: name of the array. parts: the array of each split, as from `convert`.
    """
    shape, dtype = parts[0].shape[1:], parts[0].dtype
    if dtype == np.float32:
        return Feature(shape)
    if dtype == np.uint8:
        return Feature(shape, levels=BYTE_LEVELS)
    # A class may be missing in a split, so the values of all splits count.
    size = max(int(x.max()) for x in parts) + 1
    if shape or name in TOKENS:
        return Feature(shape, "int32", vocab=size)
    return Feature(shape, "int32", classes=size)


def check_feature(name: str, feature: Feature, parts: list[np.ndarray]) -> None:
    """Raises: UserError if an array does not fit its feature: its dtype, its shape, its size or its range of values.

    name: name of the array. parts: the array of each split, as from `convert`.
    """
    if any(x.dtype != parts[0].dtype for x in parts):
        raise UserError(f"{name!r} has different dtypes in the splits; convert all of them to one")
    if feature.shape != parts[0].shape[1:]:
        raise UserError(
            f"an example of {name!r} has the shape {parts[0].shape[1:]}, and its feature has {feature.shape}"
        )
    if math.prod(feature.shape) > MAX_SIZE:
        raise UserError(
            f"each example of {name!r} has {math.prod(feature.shape)} numbers; at most {MAX_SIZE} are allowed"
        )
    # Models look up rows of tables by label. A label that is out of range would silently read the row of another class.
    if name == "label" and (feature.shape or parts[0].dtype != np.int32):
        raise UserError(
            f"'label' is {parts[0].dtype} of shape [N, {', '.join(map(str, feature.shape))}]; it must be integers [N], the number of"
            " the class of each example"
        )
    if name == "image" and len(feature.shape) != 3:
        raise UserError(f"'image' has the shape [N, {feature.shape}]; it must be [N, height, width, channels]")
    low, high = min(x.min() for x in parts), max(x.max() for x in parts)
    if parts[0].dtype == np.float32:
        if name == "image" and not -1 <= low <= high <= 1:
            raise UserError(f"'image' has floats from {low:g} to {high:g}; scale them to [-1, 1], or pass uint8")
        return
    limits = (feature.levels, feature.classes, feature.vocab)
    limit = next((each for each in limits if each is not None), None)
    if limit is None or high >= limit:
        raise UserError(
            f"{name!r} has values up to {high}, and its feature has {limit} levels, classes or tokens; give it"
            f" {int(high) + 1}"
        )


def add_counted(arrays: Arrays) -> Arrays:
    """Returns the arrays of a split, with "counted" and "bytes" added where they are missing. Losses of tokens read both.

    "counted", uint8 [N, T + 1]: 1 for the tokens that count in the loss. By default these are all but the first. "bytes", int32
    [N]: number of bytes that the counted tokens of an example stand for. By default each is one byte. Arrays without "tokens"
    [N, T + 1] are returned unchanged.
    """
    tokens = arrays.get("tokens")
    if tokens is None or tokens.ndim != 2:
        return arrays
    # Broadcast arrays take no memory.
    counted = np.broadcast_to((np.arange(tokens.shape[1]) > 0).astype(np.uint8), tokens.shape)
    counted = arrays.get("counted", counted)
    return {"counted": counted, "bytes": counted.sum(1, dtype=np.int32), **arrays}
