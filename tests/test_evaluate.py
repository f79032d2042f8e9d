"""The command that scores runs: its numbers, its protocols, and what it refuses."""

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from gen import config as configs
from gen import evaluate, files
from gen.config import Parallel, Save
from gen.data.images import Images
from gen.data.images.pixels import to_bytes
from gen.errors import UserError
from gen.evaluate import check_comparable, opened, planned, scores, table
from gen.evaluation import images
from gen.evaluation.images import METRICS, generated
from gen.evaluation.score import Options, Score
from gen.metrics import images as metrics_images
from gen.metrics.classifier import Recipe, trained
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
    """A cache of one's own, and classifiers that are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(images, "PERCEPTRON", PERCEPTRON)
        patch.setattr(images, "trained", partial(trained, recipe=CONVOLUTIONAL))
        yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def runs(small, tiny, tmp_path_factory) -> dict[str, Path]:
    """30 steps of a conditional VAE, and the start of one that isn't, on other data."""
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
        save(engine.init(), {"validation": {}})
    return found


@pytest.fixture
def workdir(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs["conditional"], tmp_path / "run"))


@pytest.fixture(scope="module")
def scored(runs, tmp_path_factory) -> Path:
    """The conditional run with all numbers."""
    workdir = Path(shutil.copytree(runs["conditional"], tmp_path_factory.mktemp("scored") / "run"))
    scores(Options((workdir,), n=N))
    return workdir


def test_every_number_is_written_with_its_protocol(scored):
    evaluation = directory.read_evaluation(scored)
    assert evaluation is not None
    metrics, protocol = evaluation["metrics"], evaluation["protocol"]
    assert metrics.keys() == protocol.keys()
    assert [name for name in metrics if name in NAMES] == NAMES
    assert "nll_bound" in metrics, "what training wrote is kept"
    assert all(np.isfinite(metrics[name]) for name in NAMES)
    facts = directory.read_config(scored)[1]
    for name in NAMES:
        entries = protocol[name]
        assert (entries["data"], entries["resize"]) == (facts["data"], "none")
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


def test_scores_are_of_the_runs_own_images(scored):
    """Fréchet distance, TSTR and baselines, from samples made here."""
    metrics = (directory.read_evaluation(scored) or {})["metrics"]
    config, model = runs_trained.load_model(scored, ())
    data = config.data.build()
    key = jax.random.fold_in(jax.random.key(0), 0)
    made = model.generate(runs_trained.restore_state(scored, model, 30), key, {}, model.request(n=1000))
    samples, labels = np.asarray(made["samples"])[:N], np.asarray(made["labels"])[:N]
    made, test = metrics_images.ImageSet(to_bytes(samples), labels), metrics_images.read_split(data, "test")
    assert metrics["tstr"] == tstr(made, test, 10, PERCEPTRON).mean
    assert metrics["trtr"] == baselines(data, N, "test", PERCEPTRON).trtr
    assert metrics["trtr"] > metrics["tstr"]

    extract = lambda x: np.asarray(trained(data, CONVOLUTIONAL).extract(metrics_images.to_float(x))[0], np.float64)
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
        patch.setattr(images, "generated", lambda *_: pytest.fail("generated"))
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
    assert again["precision"] == found[str(workdir)]["precision"], "is computed with coverage"
    assert again["coverage"] == found[str(workdir)]["coverage"]


def test_chunks_are_one_sequence(runs):
    """The first images don't depend on how many are made; those of the next chunk are others."""
    subject = opened(runs["conditional"], Options((runs["conditional"],), ("kid",)))
    few, many = (generated(subject, n, 0) for n in (150, 1150))
    assert few.label is not None
    assert many.label is not None
    np.testing.assert_array_equal(few.image, many.image[:150])
    np.testing.assert_array_equal(few.label, np.arange(150) % 10)
    assert len(many.image) == len(many.label) == 1150
    assert not np.array_equal(many.image[1000:], many.image[:150])
    assert not np.array_equal(generated(subject, 150, 1).image, few.image)


def test_runs_stand_side_by_side(scored, workdir, runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", str(scored), str(workdir), "--metrics", "kid", "prdc", "--n", str(N)])
    evaluate.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == [str(scored), str(workdir)]
    assert [line.split()[0] for line in lines] == ["kid", "kid_std", "precision", "recall", "density", "coverage"]
    assert all(line.split()[1] == line.split()[2] for line in lines)

    monkeypatch.setattr(evaluate, "completed", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match=r"(?s)kid of .* don't compare.*data: "):
        scores(Options((workdir, runs["other"]), ("kid",), n=N))


def test_a_table_has_a_dash_for_what_a_run_has_not():
    lines = table({"a": {"kid": 0.012344, "tstr": 0.5}, "long name": {"kid": 12.0}}).splitlines()
    assert lines == ["            a  long name", "kid   0.01234         12", "tstr      0.5          -"]


def test_protocols_may_differ_in_the_run_alone():
    score = lambda name, **protocol: Score("prdc", (name, "more"), protocol, lambda: ())
    check_comparable({"a": [score("x", k=5, checkpoint=1, run="p")], "b": [score("x", k=5, checkpoint=2, run="q")]})
    check_comparable({"a": [score("x", k=5)], "b": [score("y", k=6)]})
    with pytest.raises(UserError, match=r"(?s)x of b and of c don't compare.*k: 5 and 6; m: None and 1$"):
        check_comparable({"a": [], "b": [score("x", k=5)], "c": [score("x", k=6, m=1)]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2000}, "n is 2000, and only 1293 real training images are there"),
        ({"n": 20, "metrics": ("frechet",), "features": "pixels"}, "frechet of 64 features takes more than 64 images"),
        ({"n": 3, "metrics": ("prdc",)}, "3 samples have no 5 neighbours"),
        ({"n": 3, "metrics": ("inception",)}, "3 images can't be divided into 10 splits"),
        ({"metrics": ("inception",), "features": "pixels"}, "pixels give no class probabilities"),
        ({"features": "nothing.npz"}, "nothing.npz: there is no such file"),
        ({"metrics": ("likelihood",)}, "likelihood is a score of texts"),
        ({"step": 7}, "there is no such checkpoint"),
        ({"runs": ()}, "no run is named"),
        ({"runs": (Path("nowhere"),)}, "nowhere is no run directory"),
    ],
)
def test_what_can_not_be_scored_is_one_short_error(workdir, change, message):
    with pytest.raises(UserError, match=message):
        scores(replace(Options((workdir,), n=N), **change))


@pytest.mark.parametrize("change", [{"n": 0}, {"seed": -1}])
def test_wrong_options_are_refused(change):
    with pytest.raises(UserError, match="it must be"):
        Options((Path("run"),), **change)


def test_an_unknown_metric_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "run", "--metrics", "fid"])
    with pytest.raises(SystemExit) as stop:
        evaluate.main()
    assert stop.value.code == 2
    assert "fid" in capsys.readouterr().err


def test_an_unconditional_model_has_no_tstr(runs):
    with pytest.raises(UserError, match="is not conditional"):
        scores(Options((runs["other"],), ("tstr",), n=N))
    for features, names in {"classifier": METRICS[1:], "pixels": ("frechet", "kid", "prdc")}.items():
        options = Options((runs["other"],), n=N, features=features)
        plan = planned(opened(runs["other"], options), options)
        assert tuple(dict.fromkeys(score.metric for score in plan)) == names


def test_other_data_than_in_training_are_refused(workdir):
    facts = json.loads((workdir / "config.json").read_text())
    files.write_json(workdir / "config.json", facts | {"data": "0" * 64})
    with pytest.raises(UserError, match="the data are not those"):
        scores(Options((workdir,), n=N))


def test_images_that_are_not_finite_are_refused(workdir, monkeypatch):
    restored = runs_trained.restore_state
    broken = lambda *args: jax.tree.map(lambda x: x * float("nan"), restored(*args))
    monkeypatch.setattr(runs_trained, "restore_state", broken)
    with pytest.raises(UserError, match=r"images of checkpoint 30 of .* are not finite"):
        scores(Options((workdir,), ("kid",), n=N))
