"""Damages every file of every kind of cache in every way. gen must notice each damage, and make the same arrays and digests again.

    python -m tests.damages [--kinds images texts] [--only NUMBER]

The command prints a line for each failure, with a number that repeats it (--only), and at the end the number of failures.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import tyro

from gen.core import Dataset
from gen.data import cache, limit
from gen.data.chunks import facts_of
from gen.data.images import Images
from gen.metrics.classifier import Recipe, classifier_features
from gen.runtime.programs import Programs
from tests.datasets import images_of, read_split, text_of, write_book, write_image, write_lines

Found = dict[str, np.ndarray]


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


def flip_unseen(path: Path) -> None:
    """Flips a bit as a disk does: no fact of the file tells it."""
    rewrite(path, flip)
    seen = path.parent / limit.SEEN
    if path.suffix == ".npy" and seen.exists():
        seen.write_text(json.dumps(json.loads(seen.read_text()) | {path.stem: facts_of(path.stat())}))


def flip_with_old_time(path: Path) -> None:
    before = path.stat()
    rewrite(path, flip)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Puts something else in the place of a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


def make_socket(path: Path) -> None:
    # The path of a socket is short, so it is bound by a relative one.
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(here)


def make_full_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("not written by gen")


FILE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "cut in half": lambda path: rewrite(path, lambda content: content[: len(content) // 2]),
    "one byte short": lambda path: rewrite(path, lambda content: content[:-1]),
    "one byte more": lambda path: rewrite(path, lambda content: content + b"\0"),
    "flipped": lambda path: rewrite(path, flip),
    "flipped, times as before": flip_with_old_time,
    "flipped, unseen": flip_unseen,
    "zeroed": lambda path: rewrite(path, lambda content: bytes(len(content))),
    "its end random": lambda path: rewrite(path, lambda content: content[:-9] + np.random.default_rng(1).bytes(9)),
    "random": lambda path: rewrite(path, lambda content: np.random.default_rng(0).bytes(len(content))),
    "a folder": lambda path: replace(path, Path.mkdir),
    "a full folder": lambda path: replace(path, make_full_folder),
    "a pipe": lambda path: replace(path, os.mkfifo),
    "a socket": lambda path: replace(path, make_socket),
    "a broken link": lambda path: replace(path, lambda place: place.symlink_to("nothing")),
    "unreadable": lambda path: replace(path, lambda place: place.symlink_to(place.name)),
}
FOLDER_DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: shutil.rmtree(path),
    "empty": lambda path: replace(path, Path.mkdir),
    "a file": lambda path: replace(path, lambda place: place.write_bytes(b"not written by gen")),
    "a pipe": lambda path: replace(path, os.mkfifo),
    "a broken link": lambda path: replace(path, lambda place: place.symlink_to("nothing")),
    "unreadable": lambda path: replace(path, lambda place: place.symlink_to(place.name)),
}
UNSAID = {limit.SEEN}
"""Files whose loss only costs a longer check."""


def of_dataset(data: Dataset) -> Found:
    """Returns all examples of a data set, and its digest."""
    splits = {split: read_split(data, split) for split in data.sizes}
    found = {f"{split}/{name}": x for split, arrays in splits.items() for name, x in arrays.items()}
    return found | {"digest": np.array(data.digest)}


def pictures(folder: Path) -> Path:
    if not folder.exists():
        for i, pixel in enumerate(np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8)):
            write_image(folder / ("cat" if i % 3 else "dog") / f"{i}.png", pixel)
    return folder


def build_texts(folder: Path) -> Found:
    book = folder / "book.txt"
    data = text_of(book if book.exists() else write_book(book), tokenizer="bpe", vocabulary=270).build()
    return of_dataset(data) | {name: np.array(value) for name, value in data.baselines().items()}


def build_pairs(folder: Path) -> Found:
    path = folder / "pairs.jsonl"
    if not path.exists():
        write_lines(path, *({"text": f"text {i}", "label": "ab"[i % 2]} for i in range(60)))
    return of_dataset(text_of(path, name=f"jsonl:{path}", document_break=None).build())


def build_classifier(folder: Path) -> Found:
    recipe = Recipe((), (4,), steps=2, batch_size=4, learning_rate=1e-3, weight_decay=0.0)
    features = classifier_features(images_of(pictures(folder / "pets"), batch_size=4).build(), recipe)
    return {name: np.array(value) for name, value in features.protocol.items()}


def build_programs(folder: Path) -> Found:
    """A compiled program is any bytes. JAX would compile a lost one again and put it."""
    store = Programs(cache.cache_folder() / f"{limit.PROGRAMS}x")
    for key in ("a", "b"):
        if store.get(key) is None:
            store.put(key, key.encode() * 1000)
    return {key: np.frombuffer(store.get(key) or b"", np.uint8) for key in ("a", "b")}


def build_file(folder: Path) -> Found:
    """The text of the benchmarks."""
    path = cache.cache_folder() / "benchmarks" / "text.txt"
    cache.keep_file(path, b"some text" * 9)
    return {"text": np.frombuffer(path.read_bytes(), np.uint8)}


KINDS: dict[str, Callable[[Path], Found]] = {
    "images": lambda folder: of_dataset(images_of(pictures(folder / "pets")).build()),
    "large images": lambda folder: of_dataset(images_of(pictures(folder / "pets"), in_memory=0).build()),
    "texts": build_texts,
    "pairs": build_pairs,
    "classifier": build_classifier,
    "programs": build_programs,
    "file": build_file,
}


def build_tfds(folder: Path, data_dir: Path) -> Found:
    data = Images(
        name="mnist",
        data_dir=str(data_dir),
        batch_size=8,
        train="train[:40]",
        validation="train[40:50]",
        test="test[:10]",
    )
    return of_dataset(data.build())


class Damage(NamedTuple):
    kind: str
    place: str
    """Relative to the cache folder of the kind."""
    how: str


@dataclass(frozen=True)
class Bench:
    """A place to try damages in, with a sound cache of each kind."""

    folder: Path
    kinds: dict[str, Callable[[Path], Found]]
    expected: dict[str, Found] = field(default_factory=dict)
    """{kind: what a sound cache gives}. `damages` fills it."""

    def sound(self, kind: str) -> Path:
        return self.folder / "sound" / kind

    def build(self, kind: str, home: Path) -> tuple[Found, str]:
        """Returns what is built with a cache folder, and the lines that are printed."""
        with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(home)), contextlib.redirect_stderr(io.StringIO()) as lines:
            found = self.kinds[kind](self.folder / "data")
        return found, lines.getvalue()

    def damages(self) -> Iterator[Damage]:
        """Yields every operation on every file and folder of every kind of cache."""
        for kind in self.kinds:
            if not self.sound(kind).exists():
                self.expected[kind], _ = self.build(kind, self.sound(kind))
            for path in sorted(self.sound(kind).rglob("*")):
                place = str(path.relative_to(self.sound(kind)))
                for how in FOLDER_DAMAGES if path.is_dir() else FILE_DAMAGES:
                    # A link in the place of the whole cache is the user's, and stays.
                    if place != "gen" or how not in ("a broken link", "unreadable"):
                        yield Damage(kind, place, how)

    def failure(self, damage: Damage) -> str | None:
        """Tries a damage. Returns what is wrong with what happened. None: it was healed."""
        home = self.folder / "home"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self.sound(damage.kind), home, symlinks=True)
        expected = self.expected[damage.kind]
        path = home / damage.place
        is_folder = path.is_dir()
        (FOLDER_DAMAGES if is_folder else FILE_DAMAGES)[damage.how](path)
        try:
            first, said = self.build(damage.kind, home)
            second, after = self.build(damage.kind, home)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if differ(first, expected) or differ(second, expected):
            return "other arrays or digests"
        marks = ("damaged", "made again", "compiled again", "can't be", "not written", "did not write")
        # Without sums elsewhere, a link to nothing is the same as no file.
        gone = damage.how == "missing" or (damage.how == "a broken link" and path.suffix != ".npy")
        lost = gone or path.name in UNSAID or is_folder
        if not lost and not any(mark in said for mark in marks):
            return f"nothing was said: {said!r}"
        if any(mark in after for mark in ("damaged", "made again", "compiled again")):
            return f"it was not healed: {after!r}"
        mine = damage.how in ("a full folder", "a file")
        if mine and not any("not written by gen" in each.read_text() for each in home.rglob("*") if is_mine(each)):
            return "a file that gen did not write is lost"
        return None


def is_mine(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == len("not written by gen")


def differ(a: Found, b: Found) -> bool:
    return a.keys() != b.keys() or not all(np.array_equal(a[name], b[name]) for name in a)


@dataclass(frozen=True)
class Options:
    """Try all damages to the cache."""

    kinds: tuple[str, ...] = ()
    """Kinds of caches. None: all, and a prepared TFDS set."""
    only: int | None = None
    """Number of the only damage to try."""


def prepared_mnist(folder: Path) -> Path:
    """Prepares a small mnist from random IDX files."""
    from gen.data.prepare import prepare
    from tests.test_prepare import write_idx

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare("mnist", write_idx(folder / "idx"), str(folder / "tfds"))
    return folder / "tfds"


def try_all(bench: Bench, damages: Sequence[tuple[int, Damage]]) -> int:
    """Tries damages and prints each failure. Returns the number of failures."""
    failures = 0
    for number, damage in damages:
        if reason := bench.failure(damage):
            failures += 1
            print(
                f"{damage.kind}: {damage.place} {damage.how}: {reason}; repeat: python -m tests.damages --only {number}"
            )
    return failures


def main() -> None:
    options = tyro.cli(Options, prog="python -m tests.damages")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_dir = prepared_mnist(folder)
        kinds = KINDS | {"tfds": lambda place: build_tfds(place, data_dir)}
        bench = Bench(folder, {kind: kinds[kind] for kind in options.kinds or kinds})
        damages = [each for each in enumerate(bench.damages()) if options.only in (None, each[0])]
        failures = try_all(bench, damages)
        print(f"{len(damages) - failures} of {len(damages)} damages were healed")
        sys.exit(failures > 0)


if __name__ == "__main__":
    main()
