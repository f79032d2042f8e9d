"""Pairs of pictures: a source and its target, in two sub-folders or side by side in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from gen.data.digest import sha256
from gen.data.images import folder, pixels
from gen.data.images.folder import FolderOptions
from gen.data.images.layout import count_splits, lay_out
from gen.data.images.listing import ListedFile, Listing, shorten
from gen.data.images.pixels import WHITE, Color
from gen.data.images.sources import Record, Source
from gen.errors import UserError

Place = Literal["folder", "left", "right"]
"""Place of the sources: a sub-folder, or one half of each picture."""
MAX_NAMED = 3
"""Maximum number of pictures without a partner that an error names."""


class Part(NamedTuple):
    """One folder of pictures: targets, sources, or pictures that hold both."""

    name: str
    """Name of the folder in messages."""
    root: Path
    listing: Listing


def open_pairs(options: FolderOptions, source: Place) -> Source:
    """Opens the pairs of pictures in the folder of options.name, "pairs:PATH".

    Sub-folders of the targets are classes or splits. The pairs of a split are sorted by the SHA-256 of the targets'
    paths.

    source: where the sources are, see `Place`.

    Raises: UserError for a picture that has no partner or can't be read, if pictures differ in size, or if the meaning
    of sub-folders is not clear.
    """
    parts = list_parts(options.name, source)
    layout = lay_out([file.path for file in parts[0].listing.files], options.splits, options.name)
    opened = [folder.open_listed(part.root, part.listing, layout, options._replace(name=part.name)) for part in parts]
    # Both parts are in the order of the targets, so position i is the same pair in both.
    pairs = Pairs(opened)
    height, width, _ = opened[0].shape
    return opened[0]._replace(
        name=options.name,
        shape=(height, width if source == "folder" else width // 2, max(part.shape[2] for part in opened)),
        read=pairs.read,
        unreadable=pairs.unreadable,
        # The digest depends on the place of the sources, because exchanging source and target gives other data.
        content=sha256(*(part.content for part in opened), source),
        fingerprint=sha256("pairs 1", *(str(part.fingerprint) for part in opened), source),
        older_content=None,
        decode=partial(decode_pair, source=source),
        paired=True,
    )


def count_pairs(name: str, source: Place) -> dict[str, list[int]]:
    """Returns {split: [number of pairs]} of "pairs:PATH", to suggest slices if no option names a split.

    If sub-folders are named like splits, such as train and val, they are the splits. Otherwise the only split is
    "train".

    source: where the sources are, see `Place`. Raises: UserError if a folder does not exist, or a picture has no
    partner.
    """
    return count_splits([file.path for file in list_parts(name, source)[0].listing.files], name)


def list_parts(name: str, source: Place) -> list[Part]:
    """Lists the files of a data set of pairs. Returns [targets, sources], with the files in the same order.

    If each file has its source and target side by side, returns one list, [files]. name: the --data.name. source: where the
    sources are, as in `Images.source`. Raises: UserError if a folder does not exist, or a picture has no partner.
    """
    root = folder.find_root(name)
    if source != "folder":
        return [Part(name, root, folder.list_found(root, name))]
    for part in ("source", "target"):
        if not (root / part).is_dir():
            raise UserError(
                f"--data.name {name!r}: there is no sub-folder {part}; pairs are the sub-folders source and target, or, with "
                "--data.source left, pictures that hold both"
            )
    # A listing is in the order of the hashes of its paths, which include the endings. So the sources are sorted like the targets.
    targets, sources = (folder.list_found(root / part, f"{name}/{part}") for part in ("target", "source"))
    matched = sources._replace(files=match(targets, sources, name))
    return [Part(f"{name}/target", root / "target", targets), Part(f"{name}/source", root / "source", matched)]


def match(targets: Listing, sources: Listing, name: str) -> list[ListedFile]:
    """Returns the source of each target, in the order of the targets: the file whose path is the same apart from the ending.

    Raises: UserError for a picture without a partner, or with two.
    """
    target, source = by_stem(targets, f"{name}/target"), by_stem(sources, f"{name}/source")
    lone = [f"target/{target[stem].path}" for stem in sorted(target.keys() - source.keys())]
    lone += [f"source/{source[stem].path}" for stem in sorted(source.keys() - target.keys())]
    if lone:
        raise UserError(
            f"{name}: there is no partner of the same name for {shorten(lone, MAX_NAMED)}; add it to the other sub-folder, or "
            "remove the picture"
        )
    return [source[stem] for stem in target]


def by_stem(listing: Listing, name: str) -> dict[str, ListedFile]:
    """Returns {path without its ending: file}. Raises: UserError if two files differ only in their endings."""
    found: dict[str, ListedFile] = {}
    for file in listing.files:
        other = found.setdefault(str(PurePosixPath(file.path).with_suffix("")), file)
        if other is not file:
            raise UserError(f"{name}: {other.path} and {file.path} would have one partner; rename one of them")
    return found


@dataclass(frozen=True)
class Pairs:
    """Reads the files of pairs by position."""

    parts: list[Source]
    """[targets, sources], or [pictures that hold both]."""

    def read(self, positions: Sequence[int]) -> list[Record]:
        """Returns (paths, label) of each of these positions. paths: (target, source), or (picture that holds both,)."""
        rows = zip(*(part.read(positions) for part in self.parts), strict=True)
        return [(tuple(path for path, _ in row), row[0][1]) for row in rows]  # pyright: ignore

    def unreadable(self, position: int, reason: str) -> UserError:
        """Returns the error for a pair that cannot be decoded."""
        ((path, _),) = self.parts[0].read([position])
        return UserError(f"{path} {reason}. Repair the pair, or remove it")


def decode_pair(
    paths: tuple[Path, ...], size: int | None, channels: int, background: Color = WHITE, *, source: Place
) -> np.ndarray:
    """Returns target and source as uint8 [2, height, width, channels].

    paths: (target, source), or (picture that holds both,) if `source` is left or right: the half that is the source.
    size, channels, background: as for `pixels.decode`.

    Raises: ValueError with the reason if one of them cannot be read, or if they differ in size.
    """
    # In full size: a picture that holds both is halved first, and the two sizes must be compared.
    found = [pixels.decode(path, None, channels, background) for path in paths]
    if source != "folder":
        if found[0].shape[1] % 2:
            raise ValueError("has an odd width, so it can't be two pictures of the same size side by side")
        left, right = np.split(found[0], 2, axis=1)
        found = [right, left] if source == "left" else [left, right]
    if found[0].shape != found[1].shape:
        raise ValueError(
            "is {}x{}, and its source {}x{} (height x width)".format(*found[0].shape[:2], *found[1].shape[:2])
        )
    if size is None:
        return np.stack(found)
    # A picture and its source are cropped alike, since they have the same size.
    pictures = (x[..., 0] if channels == 1 else np.ascontiguousarray(x) for x in found)
    return np.stack([pixels.decode(x, size, channels) for x in pictures])
