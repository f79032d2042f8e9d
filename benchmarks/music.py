"""Counts the MIDI files of a folder that data of the kind `Music` can read: python -m benchmarks.music FOLDER

It also counts the files that become the same tokens again after they were written from their tokens, and prints why the other
files are refused.

    pip install music21                                   (works of Bach, with 408 chorales)
    python -m benchmarks.music scores --convert

With --convert, the works of Bach in music21 are first written to the folder as MIDI files. Files that exist are kept.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import tyro

from gen.data.music import midi
from gen.data.music.folder import kind_of, read_file
from gen.errors import UserError, run_command


def write_corpus(folder: Path) -> None:
    """Writes the works of Bach in music21 as MIDI files. Raises: UserError if music21 is not installed."""
    try:
        from music21 import corpus  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("the corpus needs music21; the fix: pip install music21") from error
    folder.mkdir(parents=True, exist_ok=True)
    for path in corpus.getComposer("bach"):
        target = folder / f"{Path(path).stem}.mid"
        if not target.exists():
            corpus.parse(path).write("midi", fp=str(target))


def comes_back(roll: np.ndarray, steps: int) -> bool:
    """Returns whether tokens -> file -> tokens -> file gives the same tokens and the same bytes."""
    content = midi.encode(roll, steps)
    again = midi.decode(content, steps, roll.shape[1])
    return np.array_equal(again, roll) and midi.encode(again, steps) == content


def main(folder: tyro.conf.Positional[Path], convert: bool = False, steps: int = 4, voices: int = 4) -> None:
    """Prints how many files of a folder fit a grid of `steps` frames a quarter note and `voices` voices, and why the others don't."""
    if convert:
        write_corpus(folder)
    found = [read_file(path, steps, voices) for path in sorted(folder.rglob("*.mid"))]
    fitting = [roll for roll in found if not isinstance(roll, str)]
    exact = sum(comes_back(roll, steps) for roll in fitting)
    print(f"{folder}: {len(found):,} files; {len(fitting):,} fit; {exact:,} of them come back exactly")
    for reason, n in Counter(kind_of(reason) for reason in found if isinstance(reason, str)).most_common():
        print(f"  {n:,} refused: {reason}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.music"))
