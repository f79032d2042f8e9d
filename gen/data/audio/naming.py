"""Reads fields from file names by a pattern, such as {label}_{speaker}_*.wav.

The field {label} is the class. Other fields can choose splits: --data.test "speaker=ann,bob".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gen.data.images.layout import WHOLE, Layout
from gen.data.images.listing import shorten
from gen.errors import UserError

FIELD = re.compile(r"\{(\w+)\}|\*")
LABEL = "label"
Fields = Sequence[Mapping[str, str]]
"""{field: value} of each file."""


def read_fields(pattern: str, paths: Sequence[str], name: str) -> list[dict[str, str]]:
    """Returns {field: value} of each file. paths: relative to the folder. name: the --data.name, for errors.

    A pattern with a slash is compared with the whole path below the folder, and any other pattern with the file's name.

    Raises: UserError if the pattern has no field, or has a field twice, or if a file does not fit.
    """
    names = [match[1] for match in FIELD.finditer(pattern) if match[1]]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"--data.pattern {pattern!r} needs at least one field in braces, each once, such as {{label}}_{{speaker}}_*.wav"
        )
    # The parts of a pattern between the fields are plain text.
    texts, found = FIELD.split(pattern)[::2], list(FIELD.finditer(pattern))
    # A field is as short as possible: it ends where the text after it begins.
    parts = [f"(?P<{match[1]}>[^/]+?)" if match[1] else "[^/]*" for match in found]
    expression = re.compile(
        "".join(map(re.escape, texts[:1])) + "".join(p + re.escape(t) for p, t in zip(parts, texts[1:], strict=True))
    )
    whole = "/" in pattern
    matches = [expression.fullmatch(path if whole else path.rpartition("/")[2]) for path in paths]
    if bad := [path for path, match in zip(paths, matches, strict=True) if match is None]:
        raise UserError(
            f"{name}: {shorten(bad, 3)} do not fit --data.pattern {pattern!r}; move them, or change the pattern"
        )
    return [match.groupdict() for match in matches if match]


def is_choice(option: str | None) -> bool:
    """Returns whether an option chooses by a field, such as "speaker=ann,bob". Otherwise it is a slice of a split."""
    return option is not None and "=" in option


def apply_fields(
    layout: Layout, fields: Fields, options: Mapping[str, str], name: str
) -> tuple[Layout, dict[str, str]]:
    """Replaces the classes and splits of a folder by ones from the fields of its file names. Returns (layout, options).

    For example, --data.test "speaker=ann" makes the files of ann the split "test". All other files are the split
    "train", or "rest" if --data.train chooses by a field too. In the returned options, "speaker=ann" is replaced by a
    slice of the new split, such as "test".

    layout: classes and splits by the sub-folders. fields: the fields of each file, in the order of the listing.
    options: {"train", "validation" or "test": a slice such as "train[:90%]", or a choice such as "speaker=ann"}, for
    options that the user gave. name: the --data.name, for errors.

    Raises: UserError for a field or a value that no file has, or if an option chooses by a field and sub-folders are
    already splits.
    """
    if LABEL in fields[0]:
        classes = tuple(sorted({each[LABEL] for each in fields}))
        number = {each: i for i, each in enumerate(classes)}
        # `labels` is in the order of the splits, and `fields` in the order of the listing.
        used = [i for positions in layout.splits.values() for i in positions]
        layout = replace(layout, classes=classes, labels=[number[fields[i][LABEL]] for i in used])
    chosen = {option: choose(option, value, fields, name) for option, value in options.items() if is_choice(value)}
    if not chosen:
        return layout, dict(options)
    if layout.are_splits:
        raise UserError(
            f"{name}: its sub-folders are splits, and --data.{next(iter(chosen))} chooses by a field; use only one of the two"
        )
    named = {i for positions in chosen.values() for i in positions}
    label = dict(zip(layout.splits[WHOLE], layout.labels, strict=True))
    others = [i for i in layout.splits[WHOLE] if i not in named]
    splits = {"rest" if "train" in chosen else WHOLE: others, **chosen}
    splits = {split: positions for split, positions in splits.items() if positions}
    labels = [label[i] for positions in splits.values() for i in positions]
    sliced = {option: option if option in chosen else value for option, value in options.items()}
    return replace(layout, splits=splits, labels=labels), sliced


def choose(option: str, value: str, fields: Fields, name: str) -> list[int]:
    """Returns the positions of the files that a choice such as "speaker=ann,bob" selects.

    option, value: the name of the option, such as test, and the choice. fields: of each file. name: the --data.name,
    for errors.

    Raises: UserError for a field or a value that no file has.
    """
    field, _, text = value.partition("=")
    if field not in fields[0]:
        raise UserError(
            f"--data.{option} {value!r}: there is no field {field!r}; the fields of --data.pattern are {', '.join(fields[0])}"
        )
    known = sorted({each[field] for each in fields})
    wanted = {each.strip() for each in text.split(",")}
    if missing := wanted - set(known):
        raise UserError(f"--data.{option} {value!r}: {name} has no {field} {min(missing)!r}; it has {shorten(known)}")
    return [i for i, each in enumerate(fields) if each[field] in wanted]
