"""Makes a folder of pairs from the npm package openmoji: python -m benchmarks.openmoji_pairs PACKAGE FOLDER

    npm pack openmoji && tar xzf openmoji-*.tgz       (4,495 drawings, CC BY-SA 4.0)
    pip install resvg-py
    python -m benchmarks.openmoji_pairs package edges

PACKAGE is the unpacked package. A pair is a drawing in black lines, its source, and in colour, its target. The variants of a drawing
by skin tone are in one split, so that none of them is held out while another is trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import tyro

from gen.data.text.splits import split_by_hash
from gen.errors import UserError, run_command

PARTS = {"source": "black", "target": "color"}
HELD_OUT = 0.1
"""Share of the groups for validation, and again for the test."""


def main(package: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path], size: int = 32) -> None:
    """Draws every SVG of the package, in black and in colour, as a PNG of `size` pixels a side."""
    try:
        import resvg_py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("drawing an SVG needs resvg-py; the fix: pip install resvg-py") from error
    index = package / "data" / "openmoji.json"
    if not index.is_file():
        raise UserError(f"{package} has no data/openmoji.json; give the folder of the unpacked npm package openmoji")
    drawings = json.loads(index.read_text())
    names = {each["hexcode"]: each["annotation"] for each in drawings}
    counts: Counter[str] = Counter()
    for each in drawings:
        code, base = each["hexcode"], each["skintone_base_hexcode"]
        # The name, not the code: drawings of the same name are one group too.
        split = split_by_hash(names.get(base, each["annotation"]), HELD_OUT)
        counts[split] += 1
        for part, kind in PARTS.items():
            svg, png = package / kind / "svg" / f"{code}.svg", folder / part / split / f"{code}.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            png.write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=size, height=size)))
    print(f"{folder}: pairs: {', '.join(f'{n:,} {split}' for split, n in sorted(counts.items()))}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.openmoji_pairs"))
