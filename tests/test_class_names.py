"""Names of classes: in spec.json, as the label of a request, in a manifest, and for runs that have none."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gen
from gen import files, sample
from gen.config import Config, Save
from gen.core import Family, Feature, GenerativeModel, Key, Request, State
from gen.data.images import Images
from gen.errors import UserError
from gen.evaluation.request import parse_request
from gen.families import gan, labels
from gen.families.vae.sampling import Request as VAERequest
from gen.runs import checkpoint, directory
from gen.runs.features import decode_spec, encode_spec
from tests.datasets import images_of, write_image
from tests.old_runs import edit, make_old


def label_of(*names: str) -> dict[str, Feature]:
    return {"label": Feature((), "int32", classes=len(names), names=names)}


ANIMALS = label_of("bird", "cat", "dog")
NUMBERS = label_of("1", "10", "11", "2")
UNNAMED = {"label": Feature((), "int32", classes=12)}


@pytest.mark.parametrize(
    ("asked", "spec", "number"),
    [("cat", ANIMALS, 1), ("2", ANIMALS, 2), ("10", NUMBERS, 1), ("2", NUMBERS, 3), ("11", UNNAMED, 11)],
)
def test_a_class_is_found_by_its_name_or_its_number(asked, spec, number):
    assert labels.find_class(asked, spec) == number
    assert labels.with_class_number(labels.LabelRequest(label=asked), spec).label == number


@pytest.mark.parametrize(
    ("asked", "spec", "message"),
    [
        ("cta", ANIMALS, "no class 'cta'; did you mean 'cat'"),
        ("x", ANIMALS, "no class 'x'; the classes are bird, cat, dog"),
        # 0 would be the number of the class 1.
        ("0", NUMBERS, "no class '0'; the classes are"),
        ("cat", UNNAMED, "no names of classes; the fix: a number"),
        ("cat", {}, "no names of classes; the fix: a number"),
        ("x", label_of(*(f"class{i}" for i in range(100))), "class19 and 80 more"),
    ],
)
def test_an_unknown_class_is_a_short_error(asked, spec, message):
    with pytest.raises(UserError, match=message):
        labels.find_class(asked, spec)


def test_numbers_and_other_requests_stay_as_they_are():
    for label in (2, None):
        request = labels.LabelRequest(label=label)
        assert labels.with_class_number(request, NUMBERS) is request
    request = Request(n=3)
    assert labels.with_class_number(request, ANIMALS) is request
    with pytest.raises(UserError, match="'cat' is not a number"):
        labels.labels_to_generate(3, "cat", 3)


@pytest.mark.parametrize("request_of", [VAERequest, gan.Request, labels.LabelRequest])
def test_options_name_a_class_in_every_family_with_labels(request_of):
    assert parse_request(request_of, ["label=cat"], spec=ANIMALS) == {"label": 1}
    assert parse_request(request_of, ["label=10"], spec=NUMBERS) == {"label": 1}
    assert parse_request(request_of, ["label=2"], spec=UNNAMED) == {"label": 2}
    assert parse_request(request_of, ["label=None"], spec=ANIMALS) == {}
    with pytest.raises(UserError, match="did you mean 'cat'"):
        parse_request(request_of, ["label=cats"], spec=ANIMALS)


def test_spec_json_keeps_the_names(tmp_path):
    spec = Images().build().spec
    files.write_json(tmp_path / "spec.json", {name: asdict(feature) for name, feature in spec.items()})
    assert directory.read_spec(tmp_path)["label"].names == tuple("0123456789")
    content = json.loads((tmp_path / "spec.json").read_text())
    # Runs of older versions have no names.
    del content["label"]["names"], content["image"]["names"]
    files.write_json(tmp_path / "spec.json", content)
    assert directory.read_spec(tmp_path)["label"].names is None
    assert directory.read_spec(tmp_path) == spec
    content["label"]["names"] = ["cat"]
    files.write_json(tmp_path / "spec.json", content)
    with pytest.raises(UserError, match="1 names of 10 classes"):
        directory.read_spec(tmp_path)


@dataclass(frozen=True)
class Painter(Family):
    """A model that paints each image in the number of its class."""

    def build(self, spec: Mapping[str, Feature], steps: int) -> GenerativeModel:
        classes = labels.num_classes(spec)

        def init(key: Key) -> State:
            return State(jnp.int32(0), {"painter": jnp.zeros(1)}, {})

        def generate(state: State, key: Key, given: Any, request: labels.LabelRequest) -> dict[str, jax.Array]:
            label = labels.labels_to_generate(request.n, request.label, classes)
            pixel = (label.astype(jnp.float32) / 10)[:, None, None, None]
            return {"samples": pixel + state.params["painter"][None, None, None], "labels": label}

        none: Any = None
        return GenerativeModel(init, none, none, generate, labels.LabelRequest)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Returns an untrained run on a folder of three classes."""
    folder = tmp_path_factory.mktemp("names")
    for name in ("cat", "dog", "zebra"):
        write_image(folder / "images" / name / "0.png", np.zeros((1, 1), np.uint8))
    config, workdir = Config(model=Painter(), data=images_of(folder / "images"), steps=1), folder / "run"
    data = config.data.build()
    with directory.lock_run(workdir):
        directory.begin_run(workdir, config, data)
    directory.write_reference(workdir, {})
    with checkpoint.saver(workdir / "checkpoints", Save(), 0) as save:
        save(config.model.build(data.spec, 1).init(jax.random.key(0)))
    return workdir


def test_sample_takes_the_name_of_a_class(run, capsys):
    out = run.parent / "named"
    assert sample.main([str(run), "--label", "dog", "--n", "2", "--out", str(out)]) == 0
    with np.load(out / "samples.npz") as arrays:
        assert arrays["labels"].tolist() == [1, 1]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["request"]["label"] == 1
    assert manifest["classes"] == ["cat", "dog", "zebra"]
    # Manifests of older versions have no names.
    del manifest["classes"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert sample.main(["--verify", str(out / "manifest.json")]) == 0
    with pytest.raises(UserError, match="did you mean 'zebra'"):
        sample.main([str(run), "--label", "zebrra", "--out", str(run.parent / "wrong")])
    assert not (run.parent / "wrong").exists()


def test_python_takes_the_name_of_a_class(run):
    for label in ("zebra", 2, "2"):
        assert gen.open(run).generate(n=1, label=label)["labels"].tolist() == [2]


def test_a_run_without_names_takes_numbers(run, tmp_path):
    old = Path(shutil.copytree(run, tmp_path / "old"))
    make_old(old)
    edit(old / "spec.json", lambda spec: [feature.pop("names") for feature in spec.values()])
    assert gen.open(old).generate(n=1, label="1")["labels"].tolist() == [1]
    assert sample.main([str(old), "--label", "1", "--n", "1", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["classes"] is None
    with pytest.raises(UserError, match="no names of classes"):
        sample.main([str(old), "--label", "cat"])


@pytest.mark.parametrize("dtype", ["", "object", "float33"])
def test_a_dtype_that_is_none_is_a_short_error(dtype):
    value = encode_spec({"image": Feature((8, 8, 1))})
    assert decode_spec(value, "spec.json")["image"].dtype == "float32"
    value["image"]["dtype"] = dtype
    with pytest.raises(
        UserError, match=r"spec\.json is damaged: image has the dtype .*, which is not one of bool, int8"
    ):
        decode_spec(value, "spec.json")
