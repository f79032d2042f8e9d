"""Features on a grid: their axes in spec.json, which older runs lack."""

import json

import pytest

from gen import files
from gen.core import Feature
from gen.errors import UserError
from gen.runs.directory import read_spec
from gen.runs.features import encode_spec

GRID = {
    "tokens": Feature((7, 7), "int32", vocab=1024, axes=("row", "column")),
    "label": Feature((), "int32", classes=10),
}


def test_spec_json_keeps_the_axes_of_a_grid(tmp_path):
    files.write_json(tmp_path / "spec.json", encode_spec(GRID))
    assert read_spec(tmp_path) == GRID


def test_spec_json_of_a_sequence_is_the_file_that_older_versions_wrote(tmp_path):
    text = {"tokens": Feature((7,), "int32", vocab=256)}
    content = encode_spec(text)
    # Checkpoints hold the sum of the file, so a new entry would make a run refuse its own checkpoints.
    assert "axes" not in content["tokens"]
    files.write_json(tmp_path / "spec.json", content)
    assert read_spec(tmp_path) == text


@pytest.mark.parametrize("axes", [None, ["row"], ["row", "column", "book"]])
def test_axes_that_are_not_those_of_the_shape_are_refused(tmp_path, axes):
    content = json.loads(json.dumps(encode_spec(GRID)))
    content["tokens"]["axes"] = axes
    files.write_json(tmp_path / "spec.json", content)
    with pytest.raises(UserError, match=r"spec\.json is damaged: tokens has the shape"):
        read_spec(tmp_path)
