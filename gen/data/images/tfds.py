"""Opens the images of a TFDS (TensorFlow Datasets) set that was prepared on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gen.data import tfds_sets
from gen.data.digest import sha256
from gen.data.images import pixels
from gen.data.images.sources import Record, Source
from gen.errors import UserError


def open_images(name: str, data_dir: str | None, size: int | None, whole: bool = False) -> Source:
    """Opens a TFDS set that was prepared on disk, as a `Source` of its images and class labels.

    The image feature "image" is read. If no image feature has this name, the first in alphabetical order is read.
    Likewise for the class label "label". A set without class labels gives a source without classes.

    name: TFDS name, such as mnist or name/config:1.0.0.
    data_dir: directory of prepared sets. None: ~/tensorflow_datasets.
    size: the --data.size of the config. None: the images keep their size.
    whole: compare every byte of the files with the hashes from their first reading, not only a random sample.

    Raises: UserError if the set is not prepared, is not in the random-access format array_record, or has no images of 8
    bits with 1, 3 or 4 channels. Also if its images differ in size and `size` is None.
    """
    path = tfds_sets.find(name, data_dir)
    if path is None:
        raise tfds_sets.not_prepared_error(name, data_dir)

    import tensorflow_datasets as tfds

    builder, splits, files = tfds_sets.open_set(path)
    features = builder.info.features
    image = choose("image", [key for key, value in features.items() if isinstance(value, tfds.features.Image)])
    label = choose("label", [key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)])
    if image is None:
        raise UserError(f"{name} has no images: its features are {', '.join(sorted(features))}")
    height, width, channels = features[image].shape
    if features[image].np_dtype != np.uint8 or channels not in pixels.MODES:
        raise UserError(
            f"{name}: its images are {features[image].np_dtype} with {channels} channels, not uint8 with 1, 3 or 4"
        )
    if size is None and None in (height, width):
        raise UserError(f"{name}: its images differ in size. Give them one, such as --data.size 64")

    # Records are read as bytes: TFDS would decode the images, and other features that nobody asked for.
    records: Any = builder.as_data_source("+".join(splits), deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    wanted: Any = tfds.features.FeaturesDict({key: features[key] for key in (image, label) if key})
    skip: Any = tfds.decode.SkipDecoding
    classes = features[label].num_classes if label else 0
    images = TfdsImages(name, records, wanted, {image: skip()}, image, label, classes)
    contents = tfds_sets.describe_files(path, files, whole)
    whose = builder.info.full_name, *(f"{split} {lengths}" for split, lengths in splits.items())
    return Source(
        name=name,
        splits=splits,
        shape=(height or 0, width or 0, channels),
        levels=256,
        classes=tuple(features[label].names) if label else None,
        read=images.read,
        unreadable=images.unreadable,
        content=sha256(*whose, *contents.sums),
        fingerprint=sha256(*whose, *contents.sums, *contents.info),
        older_content=sha256(*whose, *contents.names),
    )


@dataclass(frozen=True)
class TfdsImages:
    """Reads and deserializes the examples of a prepared TFDS set, by their positions."""

    name: str
    records: Any
    """Serialized examples of all splits, by position."""
    features: Any
    """The features that are deserialized: the image and the label."""
    decoders: dict[str, object]
    """{image feature: a decoder of TFDS that skips decoding}. So an image stays encoded, such as a PNG."""
    image: str
    """Name of the image feature."""
    label: str | None
    """Name of the class label, if the set has one."""
    classes: int
    """Number of classes. 0: there is no label."""

    def read(self, positions: Sequence[int]) -> list[Record]:
        """Returns (encoded image, label) of each position. The label is 0 if the set has no labels.

        Raises: UserError if an example has the label -1, which means that it has none, or a label of at least
        `classes`.
        """
        # One call for all positions: array_record is ten times slower if each is read alone.
        serialized = self.records.__getitems__(positions)
        examples = [self.features.deserialize_example_np(each, decoders=self.decoders) for each in serialized]
        if self.label and any(example[self.label] < 0 for example in examples):
            raise UserError(
                f"{self.name}: some examples have no label (-1), as in the test split of a contest; choose other splits"
            )
        found = [(example[self.image], int(example[self.label]) if self.label else 0) for example in examples]
        for position, (_, label) in zip(positions, found, strict=True):
            if self.label and label >= self.classes:
                raise UserError(
                    f"{self.name}: example {position} has the label {label}, which is not in [0, {self.classes}); prepare"
                    " the set again"
                )
        return found

    def unreadable(self, position: int, reason: str) -> UserError:
        """Returns the error for an image that cannot be decoded."""
        return UserError(f"{self.name}: image {position} {reason}. Prepare the set again")


def choose(name: str, names: Sequence[str]) -> str | None:
    """Returns `name` if it is among `names`, otherwise the first of `names` in alphabetical order. None: `names` is empty."""
    return name if name in names else min(names, default=None)
