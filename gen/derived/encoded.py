"""Data sets of codes: images or sound, encoded by a trained tokenizer. They are encoded once and kept in a cache on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gen import config as configs
from gen import core, errors, files
from gen.core import Array, Batch, Dataset, Feature, HostBatch, Key
from gen.data.audio import Audio, Transcribed
from gen.data.cache import Arrays, load_or_make
from gen.data.digest import sha256
from gen.data.examples import Examples
from gen.data.images import Images
from gen.data.order import Shuffle, permute
from gen.derived.code_images import CODE_IMAGES
from gen.derived.code_sounds import CODE_SOUNDS
from gen.derived.codec import CHUNK_NUMBERS, FILE, SCALE, Codec, open_codec
from gen.errors import UserError, check_positive
from gen.families.tokenizer.coder import Coder
from gen.runs import directory

FORMAT = 1
"""Part of the data's digest and of the cache key. Raise it if `encode_all` computes its arrays differently."""
ENCODE_CHUNK = 250
"""Largest number of examples that are encoded at once."""
SPLITS = ("train", "validation", "test")
KEPT = ("label", "caption")
"""Features that are copied from the images' batches to the batches of codes."""


@dataclass(frozen=True, kw_only=True)
class Encoded(core.Data):
    """Images or sound as codes of a trained tokenizer.

    Batches have "tokens" int32 [B, *grid], or "latent" float32 [B, *grid, channels]. Tokenizers with a KL bottleneck,
    and vocoders, give latents. Latents are divided by their standard deviation on the training split (Rombach et al.
    2022, appendix G). If `tokenizer` is a run of a model of codes, the number by which that run divides is used
    instead. Below, "images" also means windows of sound.
    """

    keeps_tokenizer: ClassVar[bool] = True

    data: core.Data = Images()
    """The images or sound to encode. Their batch_size is not used."""
    tokenizer: str = field(metadata=core.LAUNCH)
    """Run directory of the tokenizer, or of a run on its codes. The path may change between launches, because the digest of the data
    includes the tokenizer's weights."""
    variants: int = 1
    """Number of variants of each training example to encode. 1: the example without augmentation. Above 1: each variant has other random
    augmentations (as `data` asks for), and each epoch uses the next variant of every example."""

    def __post_init__(self):
        check_positive(batch_size=self.batch_size, variants=self.variants)

    def resolve(self) -> Encoded:
        return replace(self, data=self.data.resolve())

    def medium(self) -> core.Medium:
        return CODE_SOUNDS if isinstance(self.data, Audio | Transcribed) else CODE_IMAGES

    def build(self) -> Dataset:
        """Returns the data set of codes. Reads them from the cache, or encodes all splits and writes them to the cache.

        Raises: UserError if the images or the tokenizer can't be used, or don't fit each other.
        """
        codec, images = open_codec(files.expand_user(self.tokenizer)), self.data.build()
        _check_shape(codec, images, self.tokenizer)
        report_other_data(files.expand_user(self.tokenizer), images)
        name, feature = code_feature(codec.coder)
        digest = sha256(f"encoded {FORMAT}", images.digest, codec.digest, str(self.variants))
        # `images.digest` covers the bytes of the images, but not their preprocessing, such as mirroring. So the settings of the
        # data are part of the cache key, too.
        seen = json.dumps(configs.settings(replace(self.data, batch_size=1)), sort_keys=True)
        make = partial(encode_all, codec, images, self.variants, self.tokenizer)
        arrays = load_or_make(sha256(digest, seen), make, f"codes by {self.tokenizer}")
        n = images.sizes["train"]
        examples = Examples(
            sizes=images.sizes,
            read=CodeReader(arrays, name, n).read,
            shuffle=take_forms_in_turn(n, self.variants),
            batch_size=self.batch_size,
        )
        # A copy of a tokenizer in a run has the scale with which the run's model was trained. It is kept for other images too, so that
        # the model can be fine-tuned on them. The scale changes the data, so it is then part of the digest. For tokens it is 1.
        own = float(arrays["scale"])
        scale = codec.scale if SCALE in codec.arrays else own
        if scale != own:
            digest = sha256(digest, str(scale))
        kept = {each: images.spec[each] for each in KEPT if each in images.spec}
        return Dataset(
            spec={name: feature, **kept},
            sizes=images.sizes,
            digest=digest,
            batch=examples.batch,
            evaluation=examples.evaluation,
            preprocess=partial(convert, name=name, scale=scale),
            files={**images.files, **codec.with_scale(scale).files()},
            protocol={**images.protocol, "tokenizer": codec.digest, "variants": self.variants},
            images=images,
        )


def code_feature(coder: Coder) -> tuple[str, Feature]:
    """Returns (name, feature) of the codes. The name is "tokens" if they have a vocabulary, otherwise "latent"."""
    return ("tokens" if coder.codes.vocab else "latent"), coder.codes


def _check_shape(codec: Codec, images: Dataset, tokenizer: str) -> None:
    """Raises: UserError if the tokenizer was trained for other sizes, sample rates, channels, or kinds of pixels than the data have.

    tokenizer: its run directory, for errors.
    """
    name = codec.coder.name
    if name not in images.spec:
        raise UserError(
            f"the tokenizer {tokenizer} encodes {name}, and the data have {', '.join(images.spec)}; choose data with {name}"
        )
    known, image = codec.coder.example, images.spec[name]
    if name == "audio" and known.shape != image.shape:
        lengths = [f"{feature.shape[0]:,} samples and {feature.shape[1]} channels" for feature in (known, image)]
        raise UserError(
            f"the tokenizer {tokenizer} encodes windows of {lengths[0]}, and the data have {lengths[1]}; give both the same rate, seconds "
            "and channels"
        )
    if known.sample_rate != image.sample_rate:
        raise UserError(
            f"the tokenizer {tokenizer} encodes sound of {known.sample_rate} Hz, and the data have {image.sample_rate} Hz; give both the "
            "same rate"
        )
    if known.shape != image.shape:
        sizes = ["x".join(map(str, feature.shape)) for feature in (known, image)]
        raise UserError(
            f"the tokenizer {tokenizer} encodes images of {sizes[0]}, and the data have images of {sizes[1]}; give both the same "
            "size and colors"
        )
    if (known.levels == 2) != (image.levels == 2):
        kinds = ["binary" if feature.levels == 2 else "grey or coloured" for feature in (known, image)]
        raise UserError(f"the tokenizer {tokenizer} encodes {kinds[0]} pixels, and the data have {kinds[1]} ones")


def report_other_data(tokenizer: Path, images: Dataset) -> None:
    """Prints a warning if a tokenizer was trained on other data or splits than `images`.

    Then it may have seen test examples of `images`. tokenizer: its run directory. Nothing is printed if this is a run
    of a model of codes, because its copy of the tokenizer does not say which data the tokenizer was trained on.
    """
    if (tokenizer / FILE).exists():
        return
    _, facts = directory.read_config(tokenizer)
    if facts.data != images.digest:
        errors.note(
            f"the tokenizer {tokenizer} was trained on other data or other splits, so it may have been trained on held-out examples of these "
            f"data, and scores are then too good; the fix: the data and the splits of {tokenizer}/config.json"
        )


def encode_all(codec: Codec, images: Dataset, variants: int, tokenizer: str) -> Arrays:
    """Encodes all splits. Returns the arrays for the cache, in host memory.

    "train", "validation", "test": codes [n, *grid, ...], tokens as uint16 and latents as float16. "train" has all images of the
    first variant, then all images of the second, and so on. "SPLIT_label" and "SPLIT_caption": if the images have them. "scale":
    standard deviation of the training latents, 1 for tokens.

    tokenizer: its run directory, for errors. Raises: UserError if a latent is not finite, or if all training latents are equal.
    """
    total = sum(images.sizes.values()) + (variants - 1) * images.sizes["train"]
    errors.note(f"encoding {total:,} examples; the codes are kept in the cache")
    # A single variant is not augmented: an image that is mirrored once would be mirrored in all epochs.
    passes = {split: [split_codes(codec, images, split, 0, variants > 1 and split == "train")] for split in SPLITS}
    passes["train"] += [split_codes(codec, images, "train", i, True) for i in range(1, variants)]
    arrays: Arrays = {}
    for split, forms in passes.items():
        arrays[split] = np.concatenate([codes for codes, _ in forms])
        # All variants of an image have the same label and caption, so they are stored once.
        arrays |= {f"{split}_{each}": values for each, values in forms[0][1].items()}
    is_latent = arrays["train"].dtype.kind == "f"
    if is_latent:
        check_latents(arrays, tokenizer)
    scale = arrays["train"].std(dtype=np.float64) if is_latent else 1.0
    return {**arrays, "scale": np.array(scale, np.float32)}


def check_latents(latents: Arrays, tokenizer: str) -> None:
    """Checks latents {split: array [N, ...]}. tokenizer: the run directory of the tokenizer that made them, for errors.

    Raises: UserError if a latent is not finite, or if all latents of the training split are equal.
    """
    for split in SPLITS:
        if bad := int((~np.isfinite(latents[split])).any(tuple(range(1, latents[split].ndim))).sum()):
            raise UserError(
                f"the tokenizer {tokenizer} makes latents that are not finite, or over 65,504, of {bad:,} examples of the {split} split; "
                "train it with a lower learning rate, or a larger weight of its KL"
            )
    if latents["train"].min() == latents["train"].max():
        raise UserError(
            f"the tokenizer {tokenizer} makes the same latents of all training examples; train it with a smaller weight of its KL"
        )


def split_codes(codec: Codec, images: Dataset, split: str, variant: int, augmented: bool) -> tuple[np.ndarray, Arrays]:
    """Encodes the examples of a split, in their order. Returns (codes, {name: array [n, ...]}).

    The codes are tokens uint16 [n, *grid] or [n, *grid, books], or latents float16 [n, *grid, channels]. A latent that float16
    can't hold becomes infinite. The names are "label" and "caption", if the data have them.

    variant: index of the variant (see `encode_all`), which seeds the random numbers of the preprocessing. augmented: whether
    the images are augmented as in training.
    """
    # A fixed key, because the codes are part of the data: they do not depend on the seed of a run.
    key = jax.random.fold_in(jax.random.key(0), variant)
    stored = np.uint16 if codec.coder.codes.vocab else np.float16

    @jax.jit
    def encode(batch: Batch) -> Array:
        return codec.encode(images.preprocess(batch, key, augmented)[codec.coder.name])

    codes: list[np.ndarray] = []
    kept: dict[str, list[np.ndarray]] = {each: [] for each in KEPT if each in images.spec}
    # Large images are encoded a few at a time, so that they fit in memory.
    chunk = max(1, min(ENCODE_CHUNK, images.sizes[split], CHUNK_NUMBERS // prod(codec.coder.example.shape)))
    for batch in images.evaluation(split, chunk):
        # The last batch is padded with examples of weight 0.
        real = batch["weight"] > 0
        made = np.asarray(encode(jax.device_put(batch)))
        # `check_latents` reports latents that float16 can't hold.
        with np.errstate(over="ignore"):
            codes.append(made.astype(stored)[real])
        for each, values in kept.items():
            values.append(batch[each][real])
    return np.concatenate(codes), {each: np.concatenate(values) for each, values in kept.items()}


@dataclass(frozen=True)
class CodeReader:
    """Reads codes, labels and captions by their positions in a split.

    In the training split, variant k of image i is at position i + k * n.
    """

    arrays: Arrays
    """The result of `encode_all`."""
    name: str
    """Name of the codes' feature, "tokens" or "latent"."""
    n: int
    """Number of training images, each of which may have several variants."""

    def read(self, split: str, index: np.ndarray) -> HostBatch:
        """Returns {"tokens": uint16 [m, *grid]} or {"latent": float16 [m, *grid, channels]}, and "label" and "caption" if any.

        index: positions in the split, int [m].
        """
        examples = {self.name: self.arrays[split][index]}
        place = index % self.n if split == "train" else index
        kept = {each: self.arrays.get(f"{split}_{each}") for each in KEPT}
        return examples | {each: values[place] for each, values in kept.items() if values is not None}


def take_forms_in_turn(n: int, variants: int) -> Shuffle:
    """Returns the order in which the variants of n training images are read: each epoch takes the next variant of every image.

    After the last variant, the first one follows. The result is a function (seed, places) -> positions for `CodeReader`.
    """
    shuffle = permute(n)

    def take(seed: int, places: range) -> np.ndarray:
        # Places count examples from the beginning of the run, so a resumed run continues with the same variant.
        epoch = np.asarray(places, np.int64) // n
        return shuffle(seed, places) + n * (epoch % variants)

    return take


def convert(batch: Batch, key: Key, training: bool, *, name: str, scale: float) -> Batch:
    """Converts the codes of a batch: tokens to int32, or latents to float32, divided by `scale`.

    It is the `preprocess` of the data set. name: feature of the codes. key and training are not used, because the codes
    are already augmented.
    """
    codes = batch[name]
    is_latent = jnp.issubdtype(codes.dtype, jnp.floating)
    return {**batch, name: codes.astype(jnp.float32) / scale if is_latent else codes.astype(jnp.int32)}
