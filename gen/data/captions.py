"""Captions of pictures or recordings: reads the captions, divides them into splits, and encodes them as tokens.

Captions are in .txt files next to the pictures or recordings, or in one .jsonl file. All captions of a group, such as
the captions of the variants of one picture, belong to the same split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from gen import core, errors, files
from gen.core import HostBatch
from gen.data import digest
from gen.data.readers import Decode
from gen.data.text import tokenizers
from gen.data.text.documents import decode
from gen.data.text.jsonl import Line, read_lines
from gen.data.text.splits import split_by_hash
from gen.errors import UserError

PREFIX = "captions:"
MIN_BPE = 257
"""Minimum size of a bpe vocabulary: all bytes, and the end token."""
MAX_CAPTION_BYTES = 2**20
"""Largest size of a .txt file with a caption, in bytes."""
SPLITS = ("train", "validation", "test")


class Kind(NamedTuple):
    """The kind of files that have captions: pictures or recordings."""

    key: str
    """Key of the path in a line of a .jsonl file: "image" for {"image": "red/heart.png", "text": "a red heart"}."""
    noun: str
    """Word for such a file in messages, such as "picture"."""


class Caption(NamedTuple):
    """The caption of one picture or recording."""

    text: str
    """The caption, as from `clean`."""
    group: str
    """Name of the group: "group" of the caption's line in a .jsonl file, otherwise `text`. All captions of a group go
    into the same split."""


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Options of data with captions. Captions are read in lower case, with single spaces."""

    held_out: float = 0.1
    """Fraction of the groups of captions in the validation split, and also in the test split: above 0 and below 0.5.
    Captions with the same "group" in the .jsonl file, or without "group" the same text, are a group. The SHA-256 of a
    group decides its split."""
    tokenizer: str = "byte"
    """Tokenizer of the captions. byte: one token for each byte. character: one token for each character that occurs. bpe: trained on the
    captions of the training split. Or the path of a tokenizer.json, or of a folder with a tokenizer.json, such as a run directory."""
    vocabulary: int = 512
    """Largest number of tokens in the vocabulary of a trained bpe, at least 257."""
    length: int = 32
    """Number of tokens of a caption that a model reads. Longer captions are cut, and their number is printed."""


class Texts(NamedTuple):
    """The N encoded captions of all splits, in the order of their files."""

    splits: dict[str, np.ndarray]
    """{split: positions of its captions in [0, N), int64}. All captions of a group are in one split."""
    tokens: np.ndarray
    """Tokens of the captions, int32 [N, length], padded with the end token."""
    groups: np.ndarray
    """Number of the group of each caption, int32 [N]. Groups are numbered from 0."""
    tokenizer: Tokenizer

    def feature(self) -> core.Feature:
        """Returns the feature "caption" for the spec of the data: int32 [length], with its vocabulary and end token."""
        size, end = tokenizers.size(self.tokenizer), tokenizers.end(self.tokenizer)
        return core.Feature(self.tokens.shape[1:], "int32", vocab=size, end=end)

    def read(self, decode: Decode, split: str, index: np.ndarray) -> HostBatch:
        """Returns examples of a split: the arrays from `decode`, "caption" int32 [n, length] and "group" int32 [n].

        decode: reads pictures or recordings by their positions in [0, N). A "label" in its result is left out.
        index: positions in the split, int64 [n].
        """
        rows = self.splits[split][index]
        # A folder of captions has no classes: its sub-folders have no meaning.
        examples = {name: x for name, x in decode(rows).items() if name != "label"}
        return {**examples, "caption": self.tokens[rows], "group": self.groups[rows]}

    def digest(self) -> str:
        """Returns the SHA-256 of the captions, their tokenizer and their splits."""
        return digest.sha256(self.tokens, self.dump().decode(), *self.splits.values())

    def dump(self) -> bytes:
        """Returns the content of the tokenizer's file, tokenizer.json."""
        return tokenizers.dump(self.tokenizer)

    def protocol(self, config: CaptionOptions) -> dict[str, object]:
        """Returns the entries of gen.core.Dataset.protocol that describe the captions: "held_out" and "captions".

        Scores are only compared if these are equal. "captions" is the start of the SHA-256 of the tokenizer.
        """
        return {
            "held_out": f"{config.held_out:g} of the groups",
            "captions": digest.sha256(self.dump().decode())[:16],
        }


def check(config: CaptionOptions) -> None:
    """Raises: UserError if `length`, `held_out` or `vocabulary` is out of range. The folder of the data is not read."""
    errors.check_positive(**{"--data.length": config.length})
    if not 0 < config.held_out < 0.5:
        raise UserError(f"--data.held-out is {config.held_out}; it must be above 0 and below 0.5")
    if config.tokenizer == "bpe" and config.vocabulary < MIN_BPE:
        raise UserError(f"--data.vocabulary is {config.vocabulary}; for a bpe it must be at least {MIN_BPE}")


def find_root(name: str, kind: Kind) -> Path:
    """Returns the absolute path of the folder that --data.name names as "captions:PATH".

    name: the --data.name. kind: the kind of the captioned files, for the message.

    Raises: UserError if the name has another form, or the folder does not exist.
    """
    if not name.startswith(PREFIX) or name == PREFIX:
        raise UserError(
            f"--data.name {name!r} names no folder of captioned {kind.noun}s; the fix: --data.name captions:PATH"
        )
    root = files.expand_user(name.removeprefix(PREFIX))
    if not root.is_dir():
        raise UserError(f"--data.name {name!r}: there is no such folder")
    return root.resolve()


def encode_pairs(config: CaptionOptions, pairs: Sequence[Caption], name: str) -> Texts:
    """Divides captions into splits, trains or loads the tokenizer, and encodes the captions.

    pairs: the caption of each file, as from `pair_up`. name: the --data.name, for messages.

    Raises: UserError if a split is empty, or the tokenizer can't be loaded or lacks a character.
    """
    splits = divide(pairs, config.held_out, name)
    texts = [pair.text for pair in pairs]
    tokenizer = make_tokenizer(config, [texts[i] for i in splits["train"]], texts)
    return Texts(splits, encode_captions(config, tokenizer, texts, name), number_groups(pairs), tokenizer)


def pair_up(root: Path, paths: Sequence[str], name: str, kind: Kind) -> list[Caption]:
    """Returns the caption of each picture or recording, in the order of `paths`.

    Captions are read from the .jsonl file directly in the folder `root`. If it has none, they are read from .txt files.

    paths: paths of the pictures or recordings, relative to `root`. name: the --data.name, for errors. kind: pictures or
    recordings.

    Raises: UserError for a caption without a file, a file without a caption, an empty caption, or two .jsonl files.
    """
    # If there is a .jsonl file, .txt files are not read.
    lines = sorted(root.glob("*.jsonl"))
    if len(lines) > 1:
        raise UserError(f"{name} has {lines[0].name} and {lines[1].name}; keep one file of captions")
    found = read_jsonl(lines[0], set(paths), name, kind) if lines else read_texts(root, paths, name, kind)
    for path in paths:
        if path not in found:
            fix = f"a line in {lines[0].name}" if lines else Path(path).with_suffix(".txt").name
            raise UserError(f"{name}: {path} has no caption; add {fix}, or remove the {kind.noun}")
        if not found[path].text:
            raise UserError(f"{name}: the caption of {path} is empty; write one, or remove the {kind.noun}")
    return [found[path] for path in paths]


def clean(text: str) -> str:
    """Returns a caption or a prompt as models read it: in lower case, with single spaces."""
    return " ".join(text.lower().split())


def read_texts(root: Path, paths: Sequence[str], name: str, kind: Kind) -> dict[str, Caption]:
    """Reads captions from .txt files: a/b.txt is the caption of a/b.png. Returns {path: caption}.

    Pictures with the same caption are one group. Hidden files are skipped. The arguments have the same meaning as in `pair_up`.

    Raises: UserError for a .txt file without a picture or recording, or two of `paths` that differ only in the ending.
    """
    known: dict[str, str] = {}
    for path in paths:
        stem = str(Path(path).with_suffix(""))
        if stem in known:
            raise UserError(f"{name}: {known[stem]} and {path} would share one caption; rename one of them")
        known[stem] = path
    found = {}
    for file in sorted(root.rglob("*.txt")):
        stem = file.relative_to(root).with_suffix("").as_posix()
        # Hidden files, such as those of a file server, are skipped.
        if any(part.startswith(".") for part in Path(stem).parts):
            continue
        if stem not in known:
            raise UserError(f"{name}: {stem}.txt has no {kind.noun} of the same name; add it, or remove the caption")
        text = clean(decode(files.read_bytes(file, MAX_CAPTION_BYTES), str(file)))
        found[known[stem]] = Caption(text, text)
    return found


def read_jsonl(file: Path, paths: set[str], name: str, kind: Kind) -> dict[str, Caption]:
    """Reads captions from a .jsonl file. Returns {path: caption}.

    A line is {"image": PATH, "text": CAPTION}, or {"audio": PATH, "text": CAPTION} for recordings. It may also have a "group":
    all captions of a group go into the same split. Without it, the text is the group. Texts are cleaned by `clean`.

    paths: paths of all pictures or recordings, relative to their folder. name: the --data.name, for errors. kind: pictures or
    recordings.

    Raises: UserError for a wrong line, a path that is not in `paths`, or a second caption for a path.
    """
    found: dict[str, Caption] = {}
    for line in read_lines(file):
        path, text = read_text(line, kind.key, kind), clean(read_text(line, "text", kind))
        group = read_text(line, "group", kind, "")
        if path not in paths:
            raise UserError(f"{line.where}: {name} has no {kind.noun} {path!r}; add it, or remove the line")
        if path in found:
            raise UserError(f"{line.where}: {path} has a caption already; keep one line for each {kind.noun}")
        # Without a group, examples with the same text are a group, so that a text is never in two splits.
        found[path] = Caption(text, group or text)
    return found


def read_text(line: Line, key: str, kind: Kind, default: str | None = None) -> str:
    """Returns the text under a key of a line of a .jsonl file. Raises: UserError if the value is not a text.

    kind: the kind of the captioned files, for the message. default: the text if the key is missing. None: the key is required.
    """
    value = line.value.get(key, default)
    if not isinstance(value, str):
        raise UserError(f'{line.where}: "{key}" must be a text; a line is {{"{kind.key}": PATH, "text": CAPTION}}')
    return value


def divide(pairs: Sequence[Caption], held_out: float, name: str) -> dict[str, np.ndarray]:
    """Returns {split: positions of its captions in `pairs`, int64}. All captions of a group are in one split.

    held_out: fraction of the groups for validation, and the same fraction again for the test. name: the --data.name.

    Raises: UserError if a split is empty.
    """
    # The group is hashed, not the file. Otherwise variants of a held-out picture could be in the training split.
    split = np.array([split_by_hash(pair.group, held_out) for pair in pairs])
    found = {each: np.flatnonzero(split == each) for each in SPLITS}
    for each, positions in found.items():
        if not len(positions):
            groups = len({pair.group for pair in pairs})
            raise UserError(f"{name}: none of its {groups} groups is in {each}; give more, or another --data.held-out")
    return found


def number_groups(pairs: Sequence[Caption]) -> np.ndarray:
    """Returns the index of each caption's group, int32 [N]. Groups have the indices 0, 1, ... in the order of their names.

    All pictures of a group, such as variants of a drawing, are in the same split.
    """
    return np.unique([pair.group for pair in pairs], return_inverse=True)[1].astype(np.int32)


def make_tokenizer(config: CaptionOptions, training: list[str], every: list[str]) -> Tokenizer:
    """Trains or loads the tokenizer that config.tokenizer names.

    training: captions of the training split, on which a bpe is trained. every: captions of all splits. Their characters
    are the vocabulary of a character tokenizer.
    """
    if config.tokenizer == "bpe":
        return tokenizers.bpe(training, config.vocabulary)
    # With the characters of the training captions alone, a held-out caption with another character would be an error.
    if config.tokenizer == "character":
        return tokenizers.character("".join(every))
    if config.tokenizer == "byte":
        return tokenizers.byte()
    return tokenizers.load(tokenizers.read(Path(config.tokenizer)), config.tokenizer)


def encode_captions(config: CaptionOptions, tokenizer: Tokenizer, texts: list[str], name: str) -> np.ndarray:
    """Returns the tokens of texts, int32 [N, config.length], padded with the end token.

    Texts of more than config.length tokens lose their end. Their number is printed. name: the --data.name.
    """
    rows = tokenizers.encode_all(tokenizer, texts)
    if cut := sum(len(row) > config.length for row in rows):
        errors.note(f"{name}: {cut:,} captions are cut to {config.length} tokens (--data.length)")
    return fill_up([row[: config.length] for row in rows], config.length, tokenizers.end(tokenizer))


def fill_up(rows: list[list[int]], length: int, end: int) -> np.ndarray:
    """Pads rows of at most `length` tokens with the token `end`: int32 [N, length]."""
    return np.array([row + [end] * (length - len(row)) for row in rows], np.int32).reshape(len(rows), length)
