"""The command that scores runs: its numbers, its protocols, its metrics from outside, and its errors."""

import json
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gen import config as configs
from gen import evaluate, files
from gen.config import Parallel, Save
from gen.data.images import Images
from gen.data.images.pixels import to_bytes
from gen.errors import UserError, run_command
from gen.evaluate import check_comparable, format_table, rewrite_request, scores
from gen.evaluation import image_subject, images
from gen.evaluation.image_subject import ImageSubject, generate_images
from gen.evaluation.images import ImageMetric
from gen.evaluation.plan import choose_metrics, open_subject
from gen.evaluation.request import parse_request
from gen.evaluation.score import Options, Score
from gen.metrics import images as metrics_images
from gen.metrics.classifier import Recipe, classifier_features
from gen.metrics.tstr import baselines, tstr
from gen.runs import checkpoint, directory
from gen.runs import trained as runs_trained
from gen.train import build, train

N = 200
PERCEPTRON = Recipe((), (16,), steps=100, batch_size=64, learning_rate=3e-3, weight_decay=0.1)
CONVOLUTIONAL = replace(PERCEPTRON, convolutions=(4,))
NAMES = [
    *("tstr", "tstr_std", "trtr", "tstr_gaussian", "frechet", "frechet_real", "kid", "kid_std"),
    *("inception_score", "inception_score_std", "precision", "recall", "density", "coverage"),
]


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """Gives these tests a cache folder, and small classifiers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(images, "PERCEPTRON", PERCEPTRON)
        small_features = partial(classifier_features, recipe=CONVOLUTIONAL)
        patch.setattr(image_subject, "classifier_features", small_features)
        yield


@pytest.fixture(scope="module")
def runs(small, tiny, tmp_path_factory) -> dict[str, Path]:
    """Two runs: 30 steps of a conditional VAE, and step 0 of an unconditional one on other data."""
    found = {name: tmp_path_factory.mktemp("runs") / name for name in ("conditional", "other")}
    config = replace(tiny("vae_digits"), steps=30, save=Save(), parallel=Parallel(devices=1))
    config = replace(config, data=Images(batch_size=64))
    train(config, found["conditional"])
    model = replace(config.model, conditional=False)
    config = replace(config, model=model, data=Images(batch_size=64, train="train[:80%]"))
    data, _, engine = build(config)
    with directory.lock_run(found["other"]):
        directory.begin_run(found["other"], config, data)
    with checkpoint.saver(found["other"] / "checkpoints", Save(), 0) as save:
        save(engine.init())
    return found


@pytest.fixture
def workdir(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs["conditional"], tmp_path / "run"))


@pytest.fixture(scope="module")
def scored(runs, tmp_path_factory) -> Path:
    """A copy of the conditional run with all its numbers."""
    workdir = Path(shutil.copytree(runs["conditional"], tmp_path_factory.mktemp("scored") / "run"))
    scores(Options((workdir,), n=N))
    return workdir


def test_every_number_is_written_with_its_protocol(scored):
    evaluation = directory.read_evaluation(scored)
    assert evaluation is not None
    metrics, protocol = evaluation.metrics, evaluation.protocol
    assert metrics.keys() == protocol.keys()
    assert [name for name in metrics if name in NAMES] == NAMES
    assert "nll_bound" in metrics, "the numbers of training are kept"
    assert all(np.isfinite(metrics[name]) for name in NAMES)
    facts = directory.read_config(scored)[1]
    for name in NAMES:
        entries = protocol[name]
        assert (entries["data"], entries["resize"]) == (facts.data, "none")
        if name in ("trtr", "tstr_gaussian", "frechet_real"):
            assert entries["n_train"] == N
            assert not {"checkpoint", "seed"} & entries.keys()
        else:
            assert (entries["n_fake"], entries["seed"], entries["checkpoint"]) == (N, 0, 30)
        if not name.startswith("inception"):
            assert (entries["split"], entries["n"]) == ("test", 360)
        assert {"classifier", "seeds"} <= entries.keys() or {"features", "weights", "accuracy"} <= entries.keys()
    assert protocol["precision"]["k"] == 5
    assert (protocol["kid"]["subset"], protocol["kid"]["subsets"]) == (N, 100)
    assert (
        configs.decode(
            Recipe,
            protocol["tstr"]["classifier"] | {"type": "gen.metrics.classifier.Recipe"},
            ("gen.metrics.classifier",),
        )
        == PERCEPTRON
    )


def test_entries_of_protocols_are_the_same_in_all_versions(scored):
    """Otherwise numbers that are known would be computed again, and could not be compared with new ones."""
    evaluation = directory.read_evaluation(scored)
    assert evaluation is not None
    data, split, features = {"data", "images", "resize"}, {"split", "n"}, {"features", "weights", "accuracy"}
    generated = data | {"n_fake", "seed", "checkpoint", "run"}
    expected = {
        "tstr": generated | split | {"classifier", "seeds"},
        "trtr": data | split | {"n_train", "classifier", "seeds"},
        "frechet": generated | split | features,
        "frechet_real": data | split | features | {"n_train"},
        "kid": generated | split | features | {"subsets", "subset"},
        "inception_score": generated | features | {"splits"},
        "precision": generated | split | features | {"k"},
    }
    assert {name: evaluation.protocol[name].keys() for name in expected} == expected


def test_scores_agree_with_scores_of_images_that_are_generated_here(scored):
    metrics = (directory.read_evaluation(scored) or directory.Evaluation()).metrics
    run = runs_trained.open_run(scored)
    data, model = run.config.data.build(), run.model
    key = jax.random.fold_in(jax.random.key(0), 0)
    made = model.generate(run.restore(30), key, {}, model.request(n=1000))
    samples, labels = np.asarray(made["samples"])[:N], np.asarray(made["labels"])[:N]
    made, test = metrics_images.ImageSet(to_bytes(samples), labels), metrics_images.read_split(data, "test")
    assert metrics["tstr"] == tstr(made, test, 10, PERCEPTRON).mean
    assert metrics["trtr"] == baselines(data, N, "test", PERCEPTRON).trtr
    assert metrics["trtr"] > metrics["tstr"]

    def extract(x: np.ndarray) -> np.ndarray:
        features = classifier_features(data, CONVOLUTIONAL)
        return np.asarray(features.extract(metrics_images.to_float(x))[0], np.float64)

    real, fake, other = extract(test.image), extract(made.image), extract(metrics_images.read_training(data, N).image)

    def distance(a, b):
        s, t = np.cov(a.T), np.cov(b.T)
        root = np.sqrt(np.maximum(np.linalg.eigvals(s @ t).real, 0)).sum()
        return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t) - 2 * root

    assert metrics["frechet"] == pytest.approx(distance(real, fake), rel=1e-3)
    assert metrics["frechet_real"] == pytest.approx(distance(real, other), rel=1e-3)
    assert metrics["frechet_real"] < metrics["frechet"] / 3
    assert 1 <= metrics["inception_score"] <= 10


def test_a_number_of_the_same_protocol_is_not_computed_again(scored, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(scored, tmp_path / "copy"))
    before = (workdir / "evaluation.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(image_subject, "generate_images", lambda *_: pytest.fail("generated"))
        found = scores(Options((workdir,), n=N))
        for change in ({"n": N + 1}, {"seed": 1}, {"split": "validation"}, {"features": "pixels"}):
            with pytest.raises(pytest.fail.Exception, match="generated"):
                scores(replace(Options((workdir,), ("frechet",), n=N), **change))
    assert list(found[str(workdir)]) == NAMES
    assert (workdir / "evaluation.json").read_bytes() == before

    evaluation = json.loads(before)
    evaluation["metrics"] |= {"precision": -1, "kid": -1, "coverage": -1}
    evaluation["protocol"]["coverage"]["k"] = 6
    files.write_json(workdir / "evaluation.json", evaluation)
    again = scores(Options((workdir,), n=N))[str(workdir)]
    assert again["kid"] == -1
    assert again["precision"] == found[str(workdir)]["precision"], "it is computed together with coverage"
    assert again["coverage"] == found[str(workdir)]["coverage"]


def open_images(workdir: Path, options: Options) -> ImageSubject:
    subject = open_subject(workdir, options)
    assert isinstance(subject, ImageSubject)
    return subject


def test_the_first_images_do_not_depend_on_their_number_and_chunks_differ(runs):
    options = Options((runs["conditional"],), ("kid",))
    subject = open_images(runs["conditional"], options)
    few, many = (generate_images(subject, n) for n in (150, 1150))
    assert few.label is not None
    assert many.label is not None
    np.testing.assert_array_equal(few.image, many.image[:150])
    np.testing.assert_array_equal(few.label, np.arange(150) % 10)
    assert len(many.image) == len(many.label) == 1150
    assert not np.array_equal(many.image[1000:], many.image[:150])
    other = open_images(runs["conditional"], replace(options, seed=1))
    assert not np.array_equal(generate_images(other, 150).image, few.image)


def test_runs_are_columns_of_one_table(scored, workdir, runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", str(scored), str(workdir), "--metrics", "kid", "prdc", "--n", str(N)])
    evaluate.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [str(scored), str(workdir)]
    assert [line.split()[0] for line in lines] == ["kid", "kid_std", "precision", "recall", "density", "coverage"]
    assert all(line.split()[1] == line.split()[2] for line in lines)

    monkeypatch.setattr(evaluate, "complete", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match=r"(?s)kid of .* can't be compared.*data: "):
        scores(Options((workdir, runs["other"]), ("kid",), n=N))


def test_a_table_has_a_dash_for_a_missing_number():
    lines = format_table({"a": {"kid": 0.012344, "tstr": 0.5}, "long name": {"kid": 12.0}}).splitlines()
    assert lines == ["            a  long name", "kid   0.01234         12", "tstr      0.5          -"]


def test_compared_protocols_differ_in_nothing_but_the_run():
    def score(name: str, **protocol: object) -> Score:
        return Score((name, "more"), protocol, tuple)

    check_comparable({"a": [score("x", k=5, checkpoint=1, run="p")], "b": [score("x", k=5, checkpoint=2, run="q")]})
    check_comparable({"a": [score("x", k=5)], "b": [score("y", k=6)]})
    with pytest.raises(UserError, match=r"(?s)x of b and of c can't be compared.*k: 5 and 6; m: None and 1$"):
        check_comparable({"a": [], "b": [score("x", k=5)], "c": [score("x", k=6, m=1)]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2000}, "n is 2000, and there are only 1293 real training images"),
        ({"n": 20, "metrics": ("frechet",), "features": "pixels"}, "frechet of 64 features needs more than 64 images"),
        ({"n": 3, "metrics": ("prdc",)}, "a sample among 3 samples has no 5 neighbours"),
        ({"n": 3, "metrics": ("inception",)}, "3 images can't be divided into 10 splits"),
        ({"metrics": ("inception",), "features": "pixels"}, "pixels give no class probabilities"),
        ({"features": "nothing.npz"}, "nothing.npz: there is no such file"),
        ({"metrics": ("likelihood",)}, "likelihood is a metric of texts"),
        ({"metrics": ("fid",)}, "fid: there is no such metric; did you mean kid"),
        ({"metrics": ("mylab.scores:Own",)}, "if you trust that code: --trust mylab.scores"),
        ({"metrics": ("mylab.scores:Own",), "trust": ("mylab",)}, "No module named 'mylab'"),
        ({"metrics": ("gen.errors:UserError",), "trust": ("gen.errors",)}, "gen.errors has no metric UserError"),
        ({"request": ("temperatur=2",)}, "no field temperatur; did you mean temperature"),
        ({"request": ("n=2",)}, "the fix: --n 2"),
        (
            {"request": ("mode=interpolate",)},
            r"request mode=interpolate, .* where one image, \(1, 8, 8, 1\), is expected",
        ),
        ({"step": 7}, "there is no such checkpoint"),
        ({"runs": ()}, "no run is named"),
        ({"runs": (Path("nowhere"),)}, "nowhere is not a run directory"),
    ],
)
def test_a_run_that_can_not_be_scored_is_one_short_error(workdir, change, message):
    with pytest.raises(UserError, match=message):
        scores(replace(Options((workdir,), n=N), **change))


@pytest.mark.parametrize("change", [{"n": 0}, {"seed": -1}])
def test_wrong_options_are_refused(change):
    with pytest.raises(UserError, match="it must be"):
        Options((Path("run"),), **change)


def test_an_unknown_metric_exits_with_status_2(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", str(runs["conditional"]), "--metrics", "fid"])
    with pytest.raises(SystemExit) as stop:
        run_command(evaluate.main)
    assert stop.value.code == 2
    assert "fid" in capsys.readouterr().err


def test_an_unconditional_model_has_no_tstr(runs):
    with pytest.raises(UserError, match="is not conditional"):
        scores(Options((runs["other"],), ("tstr",), n=N))
    known = [metric.name for metric in images.METRICS]
    for features, names in {"classifier": known[1:], "pixels": ["frechet", "kid", "prdc"]}.items():
        subject = open_subject(runs["other"], Options((runs["other"],), n=N, features=features))
        assert [metric.name for metric in choose_metrics(subject)] == names


def test_other_data_than_in_training_are_refused(workdir):
    facts = json.loads((workdir / "config.json").read_text())
    files.write_json(workdir / "config.json", facts | {"data": "0" * 64})
    with pytest.raises(UserError, match="the data are not those"):
        scores(Options((workdir,), n=N))


def test_images_that_are_not_finite_are_refused(workdir, monkeypatch):
    restore = runs_trained.TrainedRun.restore

    def broken(*args: Any) -> Any:
        return jax.tree.map(lambda x: x * float("nan"), restore(*args))

    monkeypatch.setattr(runs_trained.TrainedRun, "restore", broken)
    with pytest.raises(UserError, match=r"images of checkpoint 30 of .* are not finite"):
        scores(Options((workdir,), ("kid",), n=N))


@dataclass(frozen=True)
class Brightness(ImageMetric):
    """A user's metric: the mean byte of generated and of held-out images."""

    name: str = "brightness"

    def plan(self, subject: ImageSubject) -> list[Score]:
        def score() -> list[float]:
            return [float(x.image.mean()) for x in (subject.generated, subject.held_out)]

        return [Score(("brightness", "brightness_real"), subject.compared_protocol, score)]


def test_a_metric_from_outside_is_computed_after_the_others(workdir):
    outside = f"{__name__}:Brightness"
    options = Options((workdir,), (outside, "kid"), n=N, trust=(__name__,))
    numbers = scores(options)[str(workdir)]
    assert list(numbers) == ["kid", "kid_std", "brightness", "brightness_real"]
    subject = open_images(workdir, options)
    assert numbers["brightness"] == generate_images(subject, N).image.mean()
    evaluation = directory.read_evaluation(workdir)
    assert evaluation is not None and evaluation.protocol["brightness"]["n_fake"] == N
    with pytest.raises(UserError, match=f"--trust {__name__}"):
        scores(replace(options, trust=()))


def test_a_request_changes_the_images_and_is_in_the_protocol(workdir, scored):
    before = scores(Options((scored,), ("kid",), n=N))[str(scored)]
    same = scores(Options((workdir,), ("kid",), n=N, request=("temperature=1.0", "label=None")))[str(workdir)]
    assert same == before
    evaluation = directory.read_evaluation(workdir)
    assert evaluation is not None and "request" not in evaluation.protocol["kid"], "these are the defaults"

    changed = scores(Options((workdir,), ("kid", "tstr"), n=N, request=("temperature=0.1",)))[str(workdir)]
    assert changed["kid"] != same["kid"]
    evaluation = directory.read_evaluation(workdir)
    assert evaluation is not None
    assert evaluation.protocol["kid"]["request"] == evaluation.protocol["tstr"]["request"] == {"temperature": 0.1}
    assert "request" not in evaluation.protocol["trtr"], "baselines don't depend on the run"


def test_options_of_the_request_are_rewritten():
    arguments = ["a", "--request.label", "3", "b", "--request.mode=generate", "--request", "x=1", "--n", "2"]
    expected = ["a", "--request", "label=3", "b", "--request", "mode=generate", "--request", "x=1", "--n", "2"]
    assert list(rewrite_request(arguments)) == expected
    with pytest.raises(UserError, match=r"--request\.label has no value"):
        list(rewrite_request(["a", "--request.label"]))


@dataclass(frozen=True)
class Request:
    n: int = 64
    guidance: float = 1.0
    top_k: int | None = None
    style: str = "plain"
    axes: tuple[int, ...] = ()


def test_fields_of_a_request_are_parsed_by_their_types():
    texts = ["guidance=2", "top-k=3", "style=7", "axes=(1, 2)"]
    assert parse_request(Request, texts) == {"guidance": 2.0, "top_k": 3, "style": "7", "axes": (1, 2)}
    assert parse_request(Request, ["guidance=1", "top_k=None", "style=plain"]) == {}
    # Samples during training may have their own number.
    assert parse_request(Request, ["n=5"], count=None) == {"n": 5}
    for text, message in {
        "guidance": "is not FIELD=VALUE",
        "guidance=high": r"request\.guidance is \"high\"",
        "guide=1": "did you mean guidance",
        "zzz=1": "it has guidance, top_k, style, axes",
        "n=1": "the fix: --n 1",
    }.items():
        with pytest.raises(UserError, match=message):
            parse_request(Request, [text])
