"""Makes a folder of captioned images from the npm package openmoji: python -m benchmarks.openmoji PACKAGE FOLDER

    npm pack openmoji && tar xzf openmoji-*.tgz       (4,495 drawings with names, CC BY-SA 4.0)
    pip install resvg-py
    python -m benchmarks.openmoji package images

PACKAGE is the unpacked package. The folder gets a PNG of each drawing and captions.jsonl. In this file, the variants of a drawing
by skin tone are one group, so that all of them are in the same split.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from gen.errors import UserError, run_command

Kind = Literal["color", "black"]
"""Drawings in colour, or in black lines."""


class Drawing(NamedTuple):
    """One drawing of the package."""

    code: str
    """Code points in hexadecimal, which is the name of its files."""
    name: str
    group: str
    """Name that it shares with its variants by skin tone, and with other drawings of this name."""


def read_drawings(package: Path) -> list[Drawing]:
    """Returns the drawings of the unpacked package. Raises: UserError if the folder has none."""
    index = package / "data" / "openmoji.json"
    if not index.is_file():
        raise UserError(f"{package} has no data/openmoji.json; give the folder of the unpacked npm package openmoji")
    found = json.loads(index.read_text())
    names = {each["hexcode"]: each["annotation"] for each in found}
    return [
        Drawing(each["hexcode"], each["annotation"], names.get(each["skintone_base_hexcode"], each["annotation"]))
        for each in found
    ]


def draw(package: Path, drawing: Drawing, kind: Kind, size: int) -> bytes:
    """Returns a PNG of a drawing, `size` pixels a side. Raises: UserError if resvg-py is not installed."""
    try:
        import resvg_py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("drawing an SVG needs resvg-py; the fix: pip install resvg-py") from error
    svg = package / kind / "svg" / f"{drawing.code}.svg"
    return bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=size, height=size))


def main(package: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path], size: int = 64) -> None:
    """Draws every SVG of the package as a PNG of `size` pixels a side, and writes their names as captions."""
    drawings = read_drawings(package)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for each in drawings:
        image = f"{each.code}.png"
        (folder / image).write_bytes(draw(package, each, "color", size))
        lines.append({"image": image, "text": each.name, "group": each.group})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{folder}: {len(lines):,} drawings of {len({line['group'] for line in lines}):,} groups")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.openmoji"))
