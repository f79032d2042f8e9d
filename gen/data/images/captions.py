"""Captioned images: a folder of pictures with one text each.

All pictures of a group, such as variants of one picture, are in the same split.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from gen import core
from gen.data import captions, digest
from gen.data.captions import CaptionOptions
from gen.data.examples import Examples
from gen.data.images import folder
from gen.data.images.dataset import Images, check, check_shape, open_reader
from gen.data.images.layout import WHOLE, Layout
from gen.data.images.listing import Listing
from gen.data.images.preprocess import preprocess
from gen.data.images.sources import Source
from gen.data.text import tokenizers

PICTURE = captions.Kind("image", "picture")


@dataclass(frozen=True)
class Captioned(CaptionOptions, core.Data):
    """Pictures with captions: "image" float32 [B, H, W, C] in [-1, 1], and "caption" int32 [B, length], padded with the end token.

    Batches also have "group" int32 [B], a number that is equal for variants of a picture (see `name`). Models don't read it.

    Captions are read in lower case, with single spaces.
    """

    name: str = "captions:images"
    """captions:FOLDER. Each picture PATH.png has its caption in PATH.txt. Or one .jsonl file in the folder has a line {"image": path
    in the folder, "text": caption} for each picture. A line may also have "group", a text that variants of a
    picture share. Without it, pictures with the same caption are a group."""
    size: int | None = None
    """Resize the shorter side to this number of pixels and crop the square centre. None: keep the size."""
    colors: Literal[1, 3] | None = None
    """Convert images to grey (1) or RGB (3). None: keep the channels."""
    background: str = "white"
    """Colour behind transparent pixels: a name such as black, or #RRGGBB."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    check: Literal["sample", "all"] = field(default="sample", metadata=core.LAUNCH)
    """How each later start looks for changed files. sample: it compares a random sample of their content. all: it compares every byte."""

    def build(self) -> core.Dataset:
        """Returns the data set. Reads the captions now. Decodes the images now if they fit into 2 GiB, otherwise when they are
        needed.

        Raises: UserError for a wrong option, image or caption. Also if an image has no caption, or a caption has no image.
        """
        images = self.images()
        check(images)
        captions.check(self)
        root = captions.find_root(self.name, PICTURE)
        listing = folder.list_found(root, self.name)
        pairs = captions.pair_up(root, [file.path for file in listing.files], self.name, PICTURE)
        source = open_pictures(self, root, listing)
        shape = check_shape(images, source)
        texts = captions.encode_pairs(self, pairs, self.name)
        # The captions decide the splits: a group of examples, such as equal captions, is never in two of them.
        reader = open_reader(images, source, texts.splits, shape)
        examples = Examples(
            sizes={split: len(positions) for split, positions in texts.splits.items()},
            read=partial(texts.read, reader.read),
            shuffle=reader.shuffle,
            batch_size=self.batch_size,
        )
        return core.Dataset(
            spec={"image": core.Feature(shape, levels=source.levels), "caption": texts.feature()},
            sizes=examples.sizes,
            digest=digest.sha256(reader.content, texts.digest()),
            batch=examples.batch,
            evaluation=examples.evaluation,
            preprocess=partial(preprocess, levels=source.levels, flip=self.flip, dequantize=False, binarize=None),
            files={tokenizers.FILE: texts.dump()},
            protocol=texts.protocol(self),
        )

    def images(self) -> Images:
        """Returns the settings of the images, without the captions, as `Images`."""
        return Images(
            name=self.name,
            size=self.size,
            colors=self.colors,
            background=self.background,
            check=self.check,
            batch_size=self.batch_size,
        )


def open_pictures(config: Captioned, root: Path, listing: Listing) -> Source:
    """Opens the listed pictures below `root`, in the order of the listing, as one split without classes."""
    whole = config.check == "all"
    options = folder.FolderOptions(config.name, {}, config.size, config.background, skip_bad=False, whole=whole)
    # .txt and .jsonl files hold the captions, so they are not reported as left out.
    others = {reason: n for reason, n in listing.left_out.items() if reason not in (".txt", ".jsonl")}
    listing = listing._replace(left_out=others)
    # One split and no classes: `captions.encode_pairs` makes the splits, and sub-folders have no meaning.
    n = len(listing.files)
    return folder.open_listed(root, listing, Layout({WHOLE: list(range(n))}, None, [0] * n), options)
