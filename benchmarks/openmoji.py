"""Makes a folder of captioned images from the npm package openmoji: python -m benchmarks.openmoji PACKAGE FOLDER

    npm pack openmoji && tar xzf openmoji-*.tgz       (4,495 drawings with names, CC BY-SA 4.0)
    pip install resvg-py
    python -m benchmarks.openmoji package images

PACKAGE is the unpacked package. The folder gets a PNG of each drawing and captions.jsonl, in which the variants of a drawing by
skin tone are one group, so that none of them is held out while another is trained on.
"""

from __future__ import annotations

import json
from pathlib import Path

import tyro

from gen.errors import UserError, run_command


def main(package: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path], size: int = 64) -> None:
    """Draws every SVG of the package as a PNG of `size` pixels a side, and writes their names as captions."""
    try:
        import resvg_py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("drawing an SVG needs resvg-py; the fix: pip install resvg-py") from error
    index = package / "data" / "openmoji.json"
    if not index.is_file():
        raise UserError(f"{package} has no data/openmoji.json; give the folder of the unpacked npm package openmoji")
    drawings = json.loads(index.read_text())
    names = {each["hexcode"]: each["annotation"] for each in drawings}
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for each in drawings:
        code, base = each["hexcode"], each["skintone_base_hexcode"]
        image = f"{code}.png"
        svg = package / "color" / "svg" / f"{code}.svg"
        (folder / image).write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=size, height=size)))
        # The name, not the code: drawings of the same name are one group too.
        lines.append({"image": image, "text": each["annotation"], "group": names.get(base, each["annotation"])})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{folder}: {len(lines):,} drawings of {len({line['group'] for line in lines}):,} groups")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main, prog="python -m benchmarks.openmoji"))
