"""The commands that make data from the npm package openmoji, on three drawings and some files that are not drawings."""

import json

import pytest

from benchmarks import openmoji, openmoji_pairs
from gen.errors import UserError

WAVES = [
    ("1F44B", "waving hand", ""),
    ("1F44B-1F3FB", "waving hand: light skin tone", "1F44B"),
    ("2764", "red heart", ""),
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "data").mkdir(parents=True)
    drawings = [{"hexcode": code, "annotation": name, "skintone_base_hexcode": base} for code, name, base in WAVES]
    (package / "data" / "openmoji.json").write_text(json.dumps(drawings))
    for module in (openmoji, openmoji_pairs):
        monkeypatch.setattr(module, "draw", lambda _, each, kind, size: f"{each.code} {kind} {size}".encode())
    return package


def test_variants_of_a_drawing_are_one_group(package, tmp_path):
    openmoji.main(package, tmp_path / "images", 16)
    lines = [json.loads(line) for line in (tmp_path / "images" / "captions.jsonl").read_text().splitlines()]
    assert [(line["image"], line["text"], line["group"]) for line in lines] == [
        ("1F44B.png", "waving hand", "waving hand"),
        ("1F44B-1F3FB.png", "waving hand: light skin tone", "waving hand"),
        ("2764.png", "red heart", "red heart"),
    ]
    assert (tmp_path / "images" / "2764.png").read_bytes() == b"2764 color 16"


def test_a_pair_is_a_drawing_in_black_and_in_colour_and_variants_share_a_split(package, tmp_path):
    openmoji_pairs.main(package, tmp_path / "pairs")
    sources, targets = (
        sorted(path.relative_to(tmp_path / "pairs" / part) for path in (tmp_path / "pairs" / part).rglob("*.png"))
        for part in ("source", "target")
    )
    assert sources == targets and len(sources) == 3
    splits = {path.stem: path.parent for path in sources}
    assert splits["1F44B"] == splits["1F44B-1F3FB"]
    assert next((tmp_path / "pairs" / "source").rglob("2764.png")).read_bytes() == b"2764 black 32"


def test_a_folder_that_is_no_package_is_one_short_error(tmp_path):
    with pytest.raises(UserError, match="has no data/openmoji"):
        openmoji.read_drawings(tmp_path)
