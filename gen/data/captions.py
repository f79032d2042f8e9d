"""Captions of pictures or recordings: reads their files, divides them into splits by group, and encodes them as tokens."""

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
    """Key under which a line of a .jsonl file has the path, such as "image" in {"image": "red/heart.png", "text": "a red heart"}."""
    noun: str
    """Word for such a file in messages, such as "picture"."""


class Caption(NamedTuple):
    """The text of a picture or a recording."""

    text: str
    group: str
    """Text that variants of a picture or a recording share. The whole group goes into one split."""


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Options of data with captions. Captions are read in lower case, with single spaces."""

    held_out: float = 0.1
    """Fraction of the groups in the validation split, and also in the test split: above 0 and below 0.5. The SHA-256 of a group decides its
    split. Without "group", examples with the same caption are a group."""
    tokenizer: str = "byte"
    """Tokenizer of the captions. byte: one token for each byte. character: one token for each character that occurs. bpe: trained on the
    captions of the training split. Or the path of a tokenizer.json, or of a folder with a tokenizer.json, such as a run directory."""
    vocabulary: int = 512
    """Largest number of tokens in the vocabulary of a trained bpe, at least 257."""
    length: int = 32
    """Number of tokens of a caption that a model reads. Longer captions are cut, and their number is printed."""


class Texts(NamedTuple):
    """Encoded captions, and their splits and groups."""

    splits: dict[str, np.ndarray]
    """{split: positions of its captions, int64}. A group belongs to one split."""
    tokens: np.ndarray
    """Tokens of the captions, int32 [N, length], filled up with the end token."""
    groups: np.ndarray
    """Number of each caption's group, int32 [N]."""
    tokenizer: Tokenizer

    def feature(self) -> core.Feature:
        """Returns the feature "caption" of the data."""
        size, end = tokenizers.size(self.tokenizer), tokenizers.end(self.tokenizer)
        return core.Feature(self.tokens.shape[1:], "int32", vocab=size, end=end)

    def read(self, decode: Decode, split: str, index: np.ndarray) -> HostBatch:
        """Returns decoded pictures or recordings of a split, with "caption" int32 [n, length] and "group" int32 [n].

        decode: positions -> examples without captions. index: positions in the split, int64 [n].
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
        """Returns the entries of a score's protocol that describe the captions."""
        return {
            "held_out": f"{config.held_out:g} of the groups",
            "captions": digest.sha256(self.dump().decode())[:16],
        }


def check(config: CaptionOptions) -> None:
    """Checks the options that do not depend on the folder. Raises: UserError if one is wrong."""
    errors.check_positive(**{"--data.length": config.length})
    if not 0 < config.held_out < 0.5:
        raise UserError(f"--data.held-out is {config.held_out}; it must be above 0 and below 0.5")
    if config.tokenizer == "bpe" and config.vocabulary < MIN_BPE:
        raise UserError(f"--data.vocabulary is {config.vocabulary}; for a bpe it must be at least {MIN_BPE}")


def find_root(name: str, kind: Kind) -> Path:
    """Returns the folder of "captions:PATH". Raises: UserError if it does not exist."""
    if not name.startswith(PREFIX) or name == PREFIX:
        raise UserError(
            f"--data.name {name!r} names no folder of captioned {kind.noun}s; the fix: --data.name captions:PATH"
        )
    root = files.expand_user(name.removeprefix(PREFIX))
    if not root.is_dir():
        raise UserError(f"--data.name {name!r}: there is no such folder")
    return root.resolve()


def encode_pairs(config: CaptionOptions, pairs: Sequence[Caption], name: str) -> Texts:
    """Divides captions into splits, trains or loads the tokenizer, and encodes the captions. Raises: UserError if a split is empty."""
    splits = divide(pairs, config.held_out, name)
    texts = [pair.text for pair in pairs]
    tokenizer = make_tokenizer(config, [texts[i] for i in splits["train"]], texts)
    return Texts(splits, encode_captions(config, tokenizer, texts, name), number_groups(pairs), tokenizer)


def pair_up(root: Path, paths: Sequence[str], name: str, kind: Kind) -> list[Caption]:
    """Returns the caption of each file, in the order of `paths`. paths: of the files, relative to the folder. name: the --data.name, for errors.

    Raises: UserError for a caption without a file, a file without a caption, or a caption that is empty.
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
    """Returns {path: its caption} of the .txt files below a folder. Raises: UserError for a .txt file without a picture or recording."""
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
    """Returns {path: its caption} of a .jsonl file. Raises: UserError for a wrong line, or a line whose file does not exist."""
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
    """Returns {split: positions of its captions, int64}. A group belongs to one split. Raises: UserError if a split is empty."""
    # The hash of the group decides, not of the file. Otherwise a model could know a held-out picture from its variants.
    split = np.array([split_by_hash(pair.group, held_out) for pair in pairs])
    found = {each: np.flatnonzero(split == each) for each in SPLITS}
    for each, positions in found.items():
        if not len(positions):
            groups = len({pair.group for pair in pairs})
            raise UserError(f"{name}: none of its {groups} groups is in {each}; give more, or another --data.held-out")
    return found


def number_groups(pairs: Sequence[Caption]) -> np.ndarray:
    """Returns the number of each caption's group, int32 [N]. Groups are numbered in the order of their keys."""
    return np.unique([pair.group for pair in pairs], return_inverse=True)[1].astype(np.int32)


def make_tokenizer(config: CaptionOptions, training: list[str], every: list[str]) -> Tokenizer:
    """Trains or loads the tokenizer. training: captions of the training split, on which a bpe is trained. every: captions of all splits,
    whose characters are the vocabulary of a character tokenizer.
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
    """Returns the tokens of texts, int32 [N, length], padded with the end token. Prints how many texts are cut."""
    rows = tokenizers.encode_all(tokenizer, texts)
    if cut := sum(len(row) > config.length for row in rows):
        errors.note(f"{name}: {cut:,} captions are cut to {config.length} tokens (--data.length)")
    return fill_up([row[: config.length] for row in rows], config.length, tokenizers.end(tokenizer))


def fill_up(rows: list[list[int]], length: int, end: int) -> np.ndarray:
    """Pads rows of at most `length` tokens with the token `end`: int32 [N, length]."""
    return np.array([row + [end] * (length - len(row)) for row in rows], np.int32).reshape(len(rows), length)
