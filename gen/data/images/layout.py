"""The meaning of the sub-folders of a folder of images: splits, classes, or none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gen.data.images.slices import KINDS, command, find_split, kind_of, names_in, split_error, suggest
from gen.errors import UserError

NAME = re.compile(r"[\w-]+")
"""Names of splits that the syntax of slices allows."""
WHOLE = "train"
"""Name of the only split of a folder whose sub-folders are not splits."""
Parts = tuple[str, ...]
"""The path of an image in its folder: the sub-folders, and the name of the file."""


class Level(NamedTuple):
    """A level of sub-folders that may be splits or classes, as `find_level` returns it."""

    depth: int
    """Number of levels above. If it is 1, the sub-folder of "a/b/c.png" at this level is b."""
    names: list[str]
    """Sorted names of the sub-folders at this level. []: images lie directly at this level, so sub-folders have no
    meaning."""


@dataclass(frozen=True)
class Layout:
    """The splits and classes of a folder, as `lay_out` finds them."""

    splits: dict[str, list[int]]
    """{split: positions of its images in the list of all paths}. The order is train, validation, test, others."""
    classes: tuple[str, ...] | None
    """Sorted names of the classes. None: the images have no classes."""
    labels: list[int]
    """Class of each image, in the order of `splits`. All are 0 if there are no classes."""
    unused: dict[str, int] = field(default_factory=dict)
    """{sub-folder: number of its images}, for splits that no option names. Their images are not used."""
    are_splits: bool = False
    """Whether the splits are sub-folders. Otherwise there is one split, WHOLE."""
    wrapper: Parts = ()
    """Sub-folders that hold all images, so they are neither splits nor classes, from the outermost on. (): there are
    none."""


def lay_out(paths: Sequence[str], options: Mapping[str, str], name: str) -> Layout:
    """Returns the splits and classes of images.

    Sub-folders are splits if all have names of splits, such as train and val, or if an option names one of them (other than
    train). Below the splits, or without splits, sub-folders are classes. A sub-folder that holds all images is neither.

    paths: paths of the images, relative to the folder; at least one. options: {"train", "validation" or "test": value of this option}.
    name: the --data.name, for errors.

    Raises: UserError if images lie next to sub-folders, if sub-folders look like splits and like classes, if an option names a
    split that does not exist, or if only some splits have classes.
    """
    parts = [tuple(path.split("/")) for path in paths]
    top = find_level(parts, 0)
    if not are_splits(parts, top, options.values(), name):
        return Layout({WHOLE: list(range(len(parts)))}, *label(parts, top), wrapper=parts[0][: top.depth])
    splits: dict[str, list[int]] = {split: [] for split in in_order(count(parts, top))}
    for i, each in enumerate(parts):
        splits[each[top.depth]].append(i)
    used: set[str] = set()
    for option, value in options.items():
        for split in names_in(value):
            found = find_split(split, splits)
            if found is None:
                raise split_error(option, value, in_order(count(parts, top)), name, f"there is no split {split!r}")
            if not NAME.fullmatch(found):
                raise UserError(f"{name}: rename {found!r} to letters, digits, _ and -, so that an option can slice it")
            used.add(found)
    # Left out before classes are looked for, because unused splits may have other sub-folders.
    unused = {split: len(splits.pop(split)) for split in list(splits) if split not in used}
    kept = [parts[i] for positions in splits.values() for i in positions]
    try:
        level = find_level(kept, top.depth + 1)
    except UserError as error:
        advice = command(suggest({split: [len(splits[split])] for split in [next(iter(splits))]}))
        raise UserError(f"{error}, or use splits that have classes: {advice}") from None
    return Layout(splits, *label(kept, level), unused, are_splits=True, wrapper=parts[0][: top.depth])


def count_splits(paths: Sequence[str], name: str) -> dict[str, list[int]]:
    """Returns {split: [number of images]} of all splits of a folder, for use when no option names a split.

    Without sub-folders that are splits, the result is {WHOLE: [number of all images]}. paths, name, errors: as for
    `lay_out`.
    """
    parts = [tuple(path.split("/")) for path in paths]
    top = find_level(parts, 0)
    return in_order(count(parts, top)) if are_splits(parts, top, (), name) else {WHOLE: [len(parts)]}


def count(parts: Sequence[Parts], level: Level) -> dict[str, int]:
    """Returns {sub-folder of the level: number of images below it}."""
    return Counter(each[level.depth] for each in parts)


def in_order(counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Returns {split: [number of images]}, sorted: train, validation, test, then others by name."""
    kinds = (*KINDS, None)
    return {split: [counts[split]] for split in sorted(counts, key=lambda split: (kinds.index(kind_of(split)), split))}


def find_level(parts: Sequence[Parts], start: int) -> Level:
    """Returns the first level at or below the depth `start` at which images lie in several sub-folders, or directly in a folder.

    Raises: UserError if images lie next to sub-folders that may be classes: any at the level `start`, several below it.
    """
    depth = start
    while True:
        names = sorted({each[depth] for each in parts if len(each) > depth + 1})
        loose = next((each for each in parts if len(each) == depth + 1), None)
        # A single sub-folder of a wrapping folder can't be one of several classes, so images may lie next to it.
        if loose and names and (depth == start or len(names) > 1):
            raise UserError(
                f"{'/'.join(loose)} lies next to the sub-folders such as {names[0]}: move it into one of them"
            )
        if loose or len(names) > 1:
            return Level(depth, [] if loose else names)
        depth += 1


def are_splits(parts: Sequence[Parts], top: Level, options: Iterable[str], name: str) -> bool:
    """Returns whether the sub-folders at the level `top` are splits.

    They are if all have names of splits, such as train and val, or if an option names one of them (other than train).

    options: values of --data.train, --data.validation and --data.test. name: the --data.name, for errors.

    Raises: UserError if no option decides it, and sub-folders such as train and test lie next to sub-folders with other
    names.
    """
    named = {split for option in options for split in names_in(option)} & set(top.names)
    kinds = [kind_of(split) for split in top.names]
    if not top.names:
        return False
    if None not in kinds or any(kind_of(split) != "train" for split in named):
        return True
    # A single name may be a class, such as train (the vehicle) next to bus and car.
    if len(set(kinds) - {None}) < 2:
        return False
    like = [split for split in top.names if kind_of(split)]
    other = next(split for split in top.names if not kind_of(split))
    raise UserError(
        f"{name}: the sub-folders {' and '.join(like)} look like splits, and {other} does not.",
        f"If they are splits, name them: {command(suggest(in_order(count(parts, top))))}. If they are classes, rename them",
    )


def label(parts: Sequence[Parts], level: Level) -> tuple[tuple[str, ...] | None, list[int]]:
    """Returns (classes, labels): the names of the level's sub-folders, and for each image the index of its sub-folder.

    If the level has no sub-folders, the classes are None and all labels are 0.
    """
    if not level.names:
        return None, [0] * len(parts)
    number = {each: i for i, each in enumerate(level.names)}
    return tuple(level.names), [number[each[level.depth]] for each in parts]
