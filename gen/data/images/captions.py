"""Captioned images: a folder of pictures with one text each. Groups of variants are never divided between splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from gen import core, errors, files
from gen.core import HostBatch
from gen.data import digest
from gen.data.examples import Examples
from gen.data.images import folder
from gen.data.images.dataset import Images, check, check_shape, open_reader
from gen.data.images.layout import WHOLE, Layout
from gen.data.images.listing import Listing
from gen.data.images.preprocess import preprocess
from gen.data.images.sources import Source
from gen.data.readers import SplitReader
from gen.data.text import tokenizers
from gen.data.text.documents import decode
from gen.data.text.jsonl import Line, read_lines
from gen.data.text.splits import split_by_hash
from gen.errors import UserError

PREFIX = "captions:"
MIN_BPE = 257
"""Minimum size of a bpe vocabulary: all bytes, and the end token."""
MAX_CAPTION_BYTES = 2**20
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Captioned(core.Data):
    """Pictures with captions: "image" float32 [B, H, W, C] in [-1, 1], and "caption" int32 [B, length], filled up with the end token.

    Batches also have "group" int32 [B], which is equal for variants of a picture. It is not in the spec, and models don't read it.

    Captions are read in lower case, with single spaces.
    """

    name: str = "captions:images"
    """captions:FOLDER. Each picture PATH.png has its caption in PATH.txt. Or one .jsonl file in the folder has a line {"image": path
    in the folder, "text": caption} for each picture. A line may have "group": a key that variants of a picture share."""
    held_out: float = 0.1
    """Fraction of the groups that is held out for validation, and again for the test. The SHA-256 of a group decides its split. Without
    "group", pictures with the same caption are a group."""
    size: int | None = None
    """Resize the shorter side to this number of pixels and crop the square centre. None: keep the size."""
    colors: Literal[1, 3] | None = None
    """Convert images to grey (1) or RGB (3). None: keep the channels."""
    background: str = "white"
    """Colour behind transparent pixels: a name such as black, or #RRGGBB."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    tokenizer: str = "byte"
    """Tokenizer of the captions. byte; character: one token for each character that occurs; bpe: trained on the training split. Or the
    path of a tokenizer.json, or of a folder that holds one, such as a run directory."""
    vocabulary: int = 512
    """Largest number of tokens of a trained bpe."""
    length: int = 32
    """Number of tokens of a caption that a model reads. Longer captions are cut, and a line says how many there are."""
    check: Literal["sample", "all"] = field(default="sample", metadata=core.LAUNCH)
    """How to look for changed files at later starts. sample: compare a random sample of their content. all: compare every byte."""

    def build(self) -> core.Dataset:
        """Reads the captions and the images. Raises: UserError for a wrong option, image or caption, or for an
        image without a caption, or a caption without an image.
        """
        images = self.images()
        check_options(self, images)
        root = find_root(self.name)
        listing = folder.list_found(root, self.name)
        pairs = pair_up(root, listing, self.name)
        source = open_pictures(self, root, listing)
        shape = check_shape(images, source)
        splits = divide(pairs, self.held_out, self.name)
        reader = open_reader(images, source, splits, shape)
        tokenizer = make_tokenizer(self, [pairs[i].text for i in splits["train"]], [pair.text for pair in pairs])
        captions = encode_captions(self, tokenizer, [pair.text for pair in pairs])
        examples = Examples(
            sizes={split: len(positions) for split, positions in splits.items()},
            read=CaptionReader(SplitReader(splits, reader.read, labels=False), captions, number_groups(pairs)).read,
            shuffle=reader.shuffle,
            batch_size=self.batch_size,
        )
        dump = tokenizers.dump(tokenizer)
        return core.Dataset(
            spec={
                "image": core.Feature(shape, levels=source.levels),
                "caption": core.Feature(
                    (self.length,), "int32", vocab=tokenizers.size(tokenizer), end=tokenizers.end(tokenizer)
                ),
            },
            sizes=examples.sizes,
            digest=digest.sha256(reader.content, captions, dump.decode(), *splits.values()),
            batch=examples.batch,
            evaluation=examples.evaluation,
            preprocess=partial(preprocess, levels=source.levels, flip=self.flip, dequantize=False, binarize=None),
            files={tokenizers.FILE: dump},
            protocol={"held_out": f"{self.held_out:g} of the groups", "captions": digest.sha256(dump.decode())[:16]},
        )

    def images(self) -> Images:
        """Returns the settings of the images alone."""
        return Images(
            name=self.name,
            size=self.size,
            colors=self.colors,
            background=self.background,
            check=self.check,
            batch_size=self.batch_size,
        )


def check_options(config: Captioned, images: Images) -> None:
    """Checks the options that do not depend on the folder. Raises: UserError if one is wrong."""
    check(images)
    errors.check_positive(**{"--data.length": config.length})
    if not 0 < config.held_out < 0.5:
        raise UserError(f"--data.held-out is {config.held_out}; it must be above 0 and below 0.5")
    if config.tokenizer == "bpe" and config.vocabulary < MIN_BPE:
        raise UserError(f"--data.vocabulary is {config.vocabulary}; for a bpe it must be at least {MIN_BPE}")


def find_root(name: str) -> Path:
    """Returns the folder of "captions:PATH". Raises: UserError if it does not exist."""
    if not name.startswith(PREFIX) or name == PREFIX:
        raise UserError(f"--data.name {name!r} names no folder of captioned images; the fix: --data.name captions:PATH")
    root = files.expand_user(name.removeprefix(PREFIX))
    if not root.is_dir():
        raise UserError(f"--data.name {name!r}: there is no such folder")
    return root.resolve()


def open_pictures(config: Captioned, root: Path, listing: Listing) -> Source:
    """Returns the pictures in the order of the listing. Sub-folders are neither classes nor splits."""
    whole = config.check == "all"
    options = folder.FolderOptions(config.name, {}, config.size, config.background, skip_bad=False, whole=whole)
    # Files of captions are read, so they are not reported as left out.
    others = {reason: n for reason, n in listing.left_out.items() if reason not in (".txt", ".jsonl")}
    listing = listing._replace(left_out=others)
    # One split and no classes: `divide` makes the splits, and sub-folders have no meaning.
    n = len(listing.files)
    return folder.open_listed(root, listing, Layout({WHOLE: list(range(n))}, None, [0] * n), options)


class Caption(NamedTuple):
    """The text of a picture."""

    text: str
    group: str
    """Key that the variants of a picture share."""


def pair_up(root: Path, listing: Listing, name: str) -> list[Caption]:
    """Returns the caption of each picture of the listing. name: the --data.name, for errors.

    Raises: UserError for a caption without a picture, a picture without a caption, or a caption that is empty.
    """
    # If there is a .jsonl file, .txt files are not read.
    lines = sorted(root.glob("*.jsonl"))
    if len(lines) > 1:
        raise UserError(f"{name} has {lines[0].name} and {lines[1].name}; keep one file of captions")
    paths = [file.path for file in listing.files]
    found = read_jsonl(lines[0], set(paths), name) if lines else read_texts(root, paths, name)
    for path in paths:
        if path not in found:
            fix = f"a line in {lines[0].name}" if lines else Path(path).with_suffix(".txt").name
            raise UserError(f"{name}: {path} has no caption; add {fix}, or remove the picture")
        if not found[path].text:
            raise UserError(f"{name}: the caption of {path} is empty; write one, or remove the picture")
    return [found[path] for path in paths]


def clean(text: str) -> str:
    """Returns a caption or a prompt as models read it: in lower case, with single spaces."""
    return " ".join(text.lower().split())


def read_texts(root: Path, paths: list[str], name: str) -> dict[str, Caption]:
    """Returns {picture: its caption} of the .txt files below a folder. Raises: UserError for one without a picture."""
    pictures: dict[str, str] = {}
    for path in paths:
        stem = str(Path(path).with_suffix(""))
        if stem in pictures:
            raise UserError(f"{name}: {pictures[stem]} and {path} would share one caption; rename one of them")
        pictures[stem] = path
    found = {}
    for file in sorted(root.rglob("*.txt")):
        stem = file.relative_to(root).with_suffix("").as_posix()
        # Hidden files, such as those of a file server, are skipped, as among the pictures.
        if any(part.startswith(".") for part in Path(stem).parts):
            continue
        if stem not in pictures:
            raise UserError(f"{name}: {stem}.txt has no picture of the same name; add it, or remove the caption")
        text = clean(decode(files.read_bytes(file, MAX_CAPTION_BYTES), str(file)))
        found[pictures[stem]] = Caption(text, text)
    return found


def read_jsonl(file: Path, pictures: set[str], name: str) -> dict[str, Caption]:
    """Returns {picture: its caption} of a .jsonl file. Raises: UserError for a wrong line, or a line whose picture does not exist."""
    found: dict[str, Caption] = {}
    for line in read_lines(file):
        image, text, group = read_text(line, "image"), clean(read_text(line, "text")), read_text(line, "group", "")
        if image not in pictures:
            raise UserError(f"{line.where}: {name} has no picture {image!r}; add it, or remove the line")
        if image in found:
            raise UserError(f"{line.where}: {image} has a caption already; keep one line for each picture")
        found[image] = Caption(text, group or text)
    return found


def read_text(line: Line, key: str, default: str | None = None) -> str:
    """Returns the value of a key of a line. Raises: UserError if it is not a text."""
    value = line.value.get(key, default)
    if not isinstance(value, str):
        raise UserError(f'{line.where}: "{key}" must be a text; a line is {{"image": PATH, "text": CAPTION}}')
    return value


def divide(pairs: list[Caption], held_out: float, name: str) -> dict[str, np.ndarray]:
    """Returns {split: positions of its pairs, int64}. A group belongs to one split. Raises: UserError if a split is empty."""
    # The group is hashed and not the picture. Otherwise a model could know a held-out drawing from a variant of it.
    split = np.array([split_by_hash(pair.group, held_out) for pair in pairs])
    found = {each: np.flatnonzero(split == each) for each in SPLITS}
    for each, positions in found.items():
        if not len(positions):
            groups = len({pair.group for pair in pairs})
            raise UserError(f"{name}: none of its {groups} groups is in {each}; give more, or another --data.held-out")
    return found


def number_groups(pairs: list[Caption]) -> np.ndarray:
    """Returns the number of each pair's group, int32 [N]. Groups are numbered in the order of their keys."""
    return np.unique([pair.group for pair in pairs], return_inverse=True)[1].astype(np.int32)


def make_tokenizer(config: Captioned, training: list[str], every: list[str]) -> Tokenizer:
    """Trains or loads the tokenizer. A bpe is trained on the training captions alone. An alphabet has the characters of all captions."""
    if config.tokenizer == "bpe":
        return tokenizers.bpe(training, config.vocabulary)
    # Otherwise the first held-out caption with another character would be an error.
    if config.tokenizer == "character":
        return tokenizers.character("".join(every))
    if config.tokenizer == "byte":
        return tokenizers.byte()
    return tokenizers.load(tokenizers.read(Path(config.tokenizer)), config.tokenizer)


def encode_captions(config: Captioned, tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Returns the tokens of texts, int32 [N, length], with the end token after them. Prints how many are cut."""
    rows = tokenizers.encode_all(tokenizer, texts)
    if cut := sum(len(row) > config.length for row in rows):
        errors.note(f"{config.name}: {cut:,} captions are cut to {config.length} tokens (--data.length)")
    return fill_up([row[: config.length] for row in rows], config.length, tokenizers.end(tokenizer))


def fill_up(rows: list[list[int]], length: int, end: int) -> np.ndarray:
    """Returns rows of at most `length` tokens, with `end` after them, int32 [N, length]."""
    return np.array([row + [end] * (length - len(row)) for row in rows], np.int32).reshape(len(rows), length)


@dataclass(frozen=True)
class CaptionReader:
    """Reads pictures with their captions by their positions in a split."""

    pictures: SplitReader
    captions: np.ndarray
    """Captions of all pictures, int32 [N, length]."""
    groups: np.ndarray
    """Number of the group of each picture, int32 [N]."""

    def read(self, split: str, index: np.ndarray) -> HostBatch:
        """Returns {"image": uint8 [n, H, W, C], "caption": int32 [n, length], "group": int32 [n]}."""
        rows = self.pictures.splits[split][index]
        return {**self.pictures.read(split, index), "caption": self.captions[rows], "group": self.groups[rows]}
