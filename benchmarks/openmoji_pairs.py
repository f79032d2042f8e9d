"""Makes a folder of pairs from the npm package openmoji: python -m benchmarks.openmoji_pairs PACKAGE FOLDER

    npm pack openmoji && tar xzf openmoji-*.tgz       (4,495 drawings, CC BY-SA 4.0)
    pip install resvg-py
    python -m benchmarks.openmoji_pairs package edges

PACKAGE is the unpacked package. The source of a pair is a drawing in black lines, and its target the same drawing in colour. All
variants of a drawing by skin tone are in the same split.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import tyro

from benchmarks.openmoji import Kind, draw, read_drawings
from gen.data.text.splits import split_by_hash
from gen.errors import run_command

PARTS: dict[str, Kind] = {"source": "black", "target": "color"}
HELD_OUT = 0.1
"""Share of the groups for validation, and again for the test."""


def main(package: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path], size: int = 32) -> None:
    """Draws every SVG of the package, in black and in colour, as a PNG of `size` pixels a side."""
    counts: Counter[str] = Counter()
    for each in read_drawings(package):
        split = split_by_hash(each.group, HELD_OUT)
        counts[split] += 1
        for part, kind in PARTS.items():
            png = folder / part / split / f"{each.code}.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            png.write_bytes(draw(package, each, kind, size))
    print(f"{folder}: pairs: {', '.join(f'{n:,} {split}' for split, n in sorted(counts.items()))}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.openmoji_pairs"))
