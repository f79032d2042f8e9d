"""How many files of a corpus fit the grid of `Music`, and whether each of them comes back from its tokens.

pip install music21
python -m benchmarks.music corpus scores    # writes Bach's chorales of music21 as MIDI files into the folder `scores`
python -m benchmarks.music count scores     # counts those that fit, and those that come back exactly
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from gen.data.music import midi
from gen.data.music.folder import kind_of, read_file

STEPS, VOICES = 4, 4
"""The grid: sixteenths, and four voices."""


def write_corpus(folder: Path) -> int:
    """Writes the chorales of music21 as MIDI files, and returns their number. Files that exist are kept."""
    from music21 import corpus  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    paths = corpus.getComposer("bach")
    for path in paths:
        target = folder / f"{Path(path).stem}.mid"
        if not target.exists():
            corpus.parse(path).write("midi", fp=str(target))
    return len(paths)


def comes_back(roll: np.ndarray) -> bool:
    """Returns whether tokens -> file -> tokens -> file gives the same tokens and the same bytes."""
    content = midi.encode(roll, STEPS)
    again = midi.decode(content, STEPS, VOICES)
    return np.array_equal(again, roll) and midi.encode(again, STEPS) == content


def count(folder: Path) -> None:
    """Prints the numbers of a folder of MIDI files."""
    found = [read_file(path, STEPS, VOICES) for path in sorted(folder.rglob("*.mid"))]
    fitting = [roll for roll in found if not isinstance(roll, str)]
    exact = sum(map(comes_back, fitting))
    print(
        f"{len(found)} files; {len(fitting)} fit {STEPS} steps a quarter and {VOICES} voices; {exact} of them come back exactly"
    )
    kinds = Counter(kind_of(reason) for reason in found if isinstance(reason, str))
    for kind, n in kinds.most_common():
        print(f"  {n} refused: {kind}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["corpus", folder]:
            print(f"{write_corpus(Path(folder))} files")
        case ["count", folder]:
            count(Path(folder))
        case _:
            sys.exit(__doc__)
