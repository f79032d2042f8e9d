"""Reads the texts of a TFDS set that is prepared on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gen.data import tfds_sets
from gen.data.digest import sha256
from gen.data.text.documents import Document, Source, decode, join_names
from gen.errors import UserError

READ_RECORDS = 1024  # number of examples that are read at once


class Slice(NamedTuple):
    """A part of a TFDS set that becomes one split."""

    split: str | None
    """"train", "validation" or "test". None: the documents are divided later."""
    slice: str
    """The part in the slicing syntax of TFDS, such as train[:90%]."""


def open_texts(name: str, data_dir: str | None, slices: Sequence[str] | None, whole: bool = False) -> Source:
    """Opens a prepared TFDS set. Its documents are its feature "text", otherwise its only feature that is a text.

    name: TFDS name, such as tiny_shakespeare or name/config:1.0.0. data_dir: directory of prepared sets. None:
    ~/tensorflow_datasets. slices: the training, validation and test documents, such as train[:90%]. Validation and test
    may be the same. None: all documents, which are divided later. whole: compare every byte of the files with the
    hashes from their first reading, not only a random sample.

    Raises: UserError if the set is not prepared, or if the text feature or a slice does not exist.
    """
    if not tfds_sets.NAME.fullmatch(name):
        raise UserError(
            f"--data.name {name!r} is neither pydoc, text:PATH, jsonl:PATH nor a TFDS name such as tiny_shakespeare"
        )
    path = tfds_sets.find(name, data_dir)
    if path is None:
        folder = tfds_sets.root(data_dir)
        raise UserError(
            f"{name} is not prepared in {folder}.",
            f"After pip install 'gen[tensorflow]', python -m gen.data.prepare {name}"
            f" --data-dir {folder} prepares it; your own files are --data.name text:PATH",
        )

    import tensorflow_datasets as tfds

    opened = tfds_sets.open_set(path)
    features = opened.builder.info.features
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if "text" not in texts and len(texts) != 1:
        raise UserError(
            f'{name} has neither a feature "text" nor a single text feature: its features are {join_names(features)}'
        )
    # Only this feature is deserialized.
    key = "text" if "text" in texts else texts[0]
    wanted = tfds.features.FeaturesDict({key: features[key]})
    parts = [
        TextSlice(name, part, key, wanted, read_records(name, opened, part.slice))
        for part in list_slices(opened, slices)
    ]

    def read() -> Iterator[Document]:
        for part in parts:
            yield from part.read()

    contents = tfds_sets.describe_files(path, opened.files, whole)
    # With another key, the same files give other documents, so the key is part of the digest.
    return Source(read, frozenset({"text"}), sha256(name, key, *contents.sums, *contents.info))


def list_slices(opened: tfds_sets.PreparedSet, slices: Sequence[str] | None) -> list[Slice]:
    """Returns the parts of a set to read. slices: as in `open_texts`.

    If the test slice equals the validation slice, it is left out, so that no text is read twice.
    """
    if not slices:
        return [Slice(None, "+".join(opened.splits))]
    train, validation, test = slices
    parts = [Slice("train", train), Slice("validation", validation), Slice("test", test)]
    # The corpus uses the validation documents for a missing test split.
    return parts[:2] if validation == test else parts


def read_records(name: str, opened: tfds_sets.PreparedSet, part: str) -> Any:
    """Returns a sequence of the serialized examples of a slice, as a data source of TFDS.

    name: TFDS name of the set, for errors. part: the slice, such as train[:90%]. Raises: UserError if the set has no
    such slice.
    """
    import tensorflow_datasets as tfds

    try:
        return opened.builder.as_data_source(part, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except (ValueError, NotImplementedError) as error:
        info = opened.builder.info
        known = ", ".join(f"{each} ({info.splits[each].num_examples})" for each in opened.splits)
        raise UserError(f"--data.split: {str(error).splitlines()[-1]}; {name} has the splits {known}") from None


@dataclass(frozen=True)
class TextSlice:
    """Reads the texts of one slice of a TFDS set."""

    name: str
    """TFDS name of the set, for errors."""
    part: Slice
    key: str
    """Name of the text feature."""
    features: Any
    """A tfds.features.FeaturesDict of the text feature alone, so that only the text is deserialized."""
    records: Any
    """Serialized examples of the slice, as from `read_records`."""

    def read(self) -> Iterator[Document]:
        """Yields the texts in order. Raises: UserError for a text that is not UTF-8."""
        count = len(self.records)
        for start in range(0, count, READ_RECORDS):
            positions = range(start, min(start + READ_RECORDS, count))
            # One call for all positions: array_record is ten times slower if each is read alone.
            for position, serialized in zip(positions, self.records.__getitems__(positions), strict=True):
                content: bytes = self.features.deserialize_example_np(serialized)[self.key]
                where = f"{self.name}: example {position} of {self.part.slice}"
                yield Document({"text": decode(content, where)}, self.part.split)
