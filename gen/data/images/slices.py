"""Slices of splits in the syntax of TFDS, such as train[:90%]: the images that they select, and suggestions for default slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gen.errors import UserError, note

KINDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""{split: names that data sets give to this split}, in lower case."""
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
Splits = Mapping[str, Sequence[int]]
"""{split: number of examples in each of its shards}. Positions of examples count through all splits, one split after
the other."""


class Slices(NamedTuple):
    """The values of --data.train, --data.validation and --data.test."""

    train: str
    validation: str
    test: str


def kind_of(split: str) -> str | None:
    """Returns "train", "validation" or "test" for a name that such a split usually has. None: for any other name."""
    return _KIND_OF.get(split.lower())


def names_in(option: str) -> list[str]:
    """Returns the names of the splits in an option: ["train", "val"] for "train[:90%]+val"."""
    return [piece.partition("[")[0].strip() for piece in option.split("+")]


def find_split(name: str, splits: Mapping[str, object]) -> str | None:
    """Returns the split with this name, or the only split of the same kind, such as "val" for "validation". None: no such split."""
    if name in splits:
        return name
    same = [split for split in splits if kind_of(split) == kind_of(name) is not None]
    return same[0] if len(same) == 1 else None


def positions(field: str, option: str, splits: Splits, name: str) -> np.ndarray:
    """Returns the positions, int64 [n], that a slice such as "train[:90%]" selects, counted through all splits.

    option: the slice. field: "train", "validation" or "test", for errors. name: the --data.name, for errors.

    Raises: UserError if the syntax is wrong, the split does not exist, or no examples are left.
    """
    try:
        found = cut(option, splits)
    except (ValueError, NotImplementedError) as error:
        raise split_error(field, option, splits, name, str(error).splitlines()[-1]) from error
    if not len(found):
        raise split_error(field, option, splits, name, "no examples are left")
    return found


def report_overlap(name: str, splits: Mapping[str, np.ndarray]) -> None:
    """Prints how many held-out examples are trained on, if any are."""
    for split in ("validation", "test"):
        if shared := len(np.intersect1d(splits[split], splits["train"])):
            note(f"{name}: {shared:,} of the {len(splits[split]):,} {split} examples are trained on, too")


def cut(option: str, splits: Splits) -> np.ndarray:
    """Returns the positions that a slice such as "train[:90%]+val" selects, int64 [n], counted through all splits.

    Raises: ValueError or NotImplementedError if TFDS can't parse the slice, or if a split in it does not exist.
    """
    # TFDS itself parses the slice, so that percentages round exactly as in TFDS.
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=list(lengths), num_bytes=0)
        for name, lengths in splits.items()
    }
    # TFDS counts positions in each split from 0. Our positions count through all splits, one after the other.
    ends = np.cumsum([info.num_examples for info in infos.values()])
    of = {name: np.arange(end - infos[name].num_examples, end) for name, end in zip(infos, ends, strict=True)}
    pieces = tfds.core.ReadInstruction.from_spec(translate(option, splits)).to_absolute(infos)
    return np.concatenate([of[piece.splitname][piece.from_ : piece.to] for piece in pieces])


def translate(option: str, splits: Splits) -> str:
    """Returns the option with the actual names of the splits: "val[:50%]" for "validation[:50%]" if the split is named val."""
    pieces = [piece.strip().partition("[") for piece in option.split("+")]
    return "+".join(f"{find_split(name, splits) or name}{bracket}{rest}" for name, bracket, rest in pieces)


def suggest(splits: Splits) -> Slices:
    """Returns slices for train, validation and test: the splits with the usual names.

    If one of these splits is missing, its slice is a part of another split. No slice is empty. If a split has too few
    examples to be divided, each of its slices is the whole split.
    """
    known = {kind: next((split for split in splits if kind_of(split) == kind), None) for kind in KINDS}
    train = known["train"] or next(iter(splits))
    # Without a train split, another one takes its place.
    validation, test = (split if split != train else None for split in (known["validation"], known["test"]))
    if validation is not None and test is not None:
        return Slices(train, validation, test)
    if test is not None:
        return Slices._make([*divide(train, splits, (90,)), test])
    if validation is not None:
        return Slices._make([train, *divide(validation, splits, (50,))])
    return Slices._make(divide(train, splits, (80, 90)))


def fill_in(given: Mapping[str, str | None], splits: Splits, name: str) -> dict[str, str]:
    """Returns slices for the options that are None in `given`, {"train", "validation" or "test": slice}.

    name: the --data.name, for errors.

    Raises: UserError if a slice for one of them shares examples with a given slice. For example, the training slice would be
    train[:80%] if only the test slice is given, train[:20%].
    """
    missing = {field: slices for field, slices in suggest(splits)._asdict().items() if given[field] is None}
    for field, option in given.items():
        for other, slices in missing.items():
            if option is not None and _overlap(option, slices, splits):
                raise UserError(
                    f"{name}: --data.{field} {option!r} shares examples with {slices!r}, which --data.{other} would be",
                    f"choose --data.{other}, too",
                )
    return missing


def _overlap(a: str, b: str, splits: Splits) -> bool:
    """Returns whether two slices share examples. False if one is wrong: this is reported when the data are opened."""
    try:
        return len(np.intersect1d(cut(a, splits), cut(b, splits))) > 0
    except (ValueError, NotImplementedError):
        return False


def divide(split: str, splits: Splits, percents: tuple[int, ...]) -> list[str]:
    """Returns the slices of a split that these percentages cut, such as ["train[:80%]", "train[80%:90%]", "train[90%:]"].

    No slice is empty: if a percentage of few images would be 0 images, the slices count images instead. With fewer images than
    slices, each slice is the whole split.
    """
    n, parts = sum(splits[split]), len(percents) + 1
    ends = ["", *(f"{percent}%" for percent in percents), ""]
    # The syntax does not allow every name, so another name is cut here.
    if any(not len(cut(f"train[{start}:{end}]", {"train": [n]})) for start, end in pairwise(ends)):
        if n < parts:
            return [split] * parts
        # One image for each part but the first.
        ends = ["", *(str(n - held_out) for held_out in range(len(percents), 0, -1)), ""]
    return [f"{split}[{start}:{end}]" for start, end in pairwise(ends)]


def split_error(field: str, option: str, splits: Splits, name: str, reason: str) -> UserError:
    """Returns the error for a wrong option: the reason, the splits that exist, and slices of them that are not empty."""
    known = ", ".join(f"{split} ({sum(lengths)})" for split, lengths in splits.items())
    advice = suggest(splits)
    few = " (too few to hold any out)" if advice.train == advice.test else ""
    return UserError(
        f"--data.{field} {option!r}: {reason}", f"{name} has the splits {known}; for instance {command(advice)}{few}"
    )


def command(slices: Slices) -> str:
    """Returns the slices as options of a command line: --data.train "train[:90%]" ..."""
    return " ".join(f'--data.{field} "{value}"' for field, value in slices._asdict().items())
