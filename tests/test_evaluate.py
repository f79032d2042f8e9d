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
from PIL import Image

from gen import config as configs
from gen import core, evaluate, files, sample
from gen.config import Parallel, Save
from gen.core import Dataset, Feature
from gen.data.arrays import from_arrays
from gen.data.images import Images
from gen.data.images.pixels import to_bytes
from gen.errors import UserError, run_command
from gen.evaluate import check_comparable, format_table, rewrite_request, scores
from gen.evaluation import image_subject, images
from gen.evaluation.image_subject import ImageSubject, generate_images
from gen.evaluation.images import ImageMetric
from gen.evaluation.labels import draw_labels
from gen.evaluation.plan import choose_metrics, open_subject, open_subjects, plan_scores
from gen.evaluation.request import parse_request
from gen.evaluation.score import Options, Score
from gen.families.labels import GIVEN, labels_to_generate
from gen.media.image import separate
from gen.metrics import images as metrics_images
from gen.metrics.classifier import Recipe, classifier_features
from gen.metrics.tstr import baselines, tstr
from gen.runs import checkpoint, directory, owner
from gen.runs import trained as runs_trained
from gen.train import build, train
from tests.old_runs import edit, make_old

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
    generated = data | {"n_fake", "seed", "checkpoint", "run", "labels"}
    expected = {
        "tstr": generated | split | {"classifier", "seeds"},
        "trtr": data | split | {"n_train", "classifier", "seeds"},
        "frechet": generated | split | features,
        "frechet_real": data | split | features | {"n_train"},
        "kid": generated | split | features | {"subsets", "subset"},
        "inception_score": generated | features | {"splits"},
        "precision": generated | split | features | {"k"},
    }
    # Data whose classes have names add them.
    found = {name: evaluation.protocol[name].keys() - {"classes"} for name in expected}
    assert found == expected
    assert evaluation.protocol["kid"]["labels"] == "training"


def test_scores_agree_with_scores_of_images_that_are_generated_here(scored):
    metrics = (directory.read_evaluation(scored) or directory.Evaluation()).metrics
    run = runs_trained.open_run(scored)
    data, model = run.config.data.build(), run.model
    key = jax.random.fold_in(jax.random.key(0), 0)
    given = np.pad(metrics_images.read_training(data, N).label, (0, 1000 - N))  # pyright: ignore
    made = model.generate(run.restore(30), key, {GIVEN: given}, model.request(n=1000))
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
    files.write_json(workdir / "evaluation.json", evaluation | {"sha256": owner.sum_of_json(evaluation)})
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
    np.testing.assert_array_equal(few.label, metrics_images.read_training(subject.data, 150).label)
    assert len(many.image) == len(many.label) == 1150
    assert not np.array_equal(many.image[1000:], many.image[:150])
    other = open_images(runs["conditional"], replace(options, seed=1))
    assert not np.array_equal(generate_images(other, 150).image, few.image)


@pytest.mark.slow
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
        (
            {"n": 20, "metrics": ("frechet",), "features": "pixels"},
            r"64 features need more than 64 images, and there are 20 generated images \(--n\); kid needs fewer",
        ),
        ({"n": 3, "metrics": ("prdc",)}, "an image needs 5 neighbours in its set, and there are 3 generated images"),
        (
            {"n": 3, "metrics": ("inception",)},
            "needs at least 10 generated images, and there are 3; leave inception out",
        ),
        ({"n": 1, "metrics": ("kid",)}, "compares pairs of images, and there are 1 generated images"),
        ({"labels": "uniform", "request": ("label=3",)}, "--labels uniform has no effect, since --request label"),
        ({"data_of": Path("run")}, "--data-of is for folders of images"),
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
        chosen = choose_metrics(subject)
        assert [metric.name for metric in chosen.metrics] == names
        assert chosen.left_out.keys() == {metric for metric in known if metric not in names}
    with pytest.raises(UserError, match="--labels uniform has no effect"):
        scores(Options((runs["other"],), ("kid",), n=N, labels="uniform"))


def test_other_data_than_in_training_are_refused(workdir):
    make_old(workdir)
    edit(workdir / "config.json", lambda found: found.update(data="0" * 64))
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


def two_classes(sizes: dict[str, tuple[int, int]]) -> Dataset:
    """Returns data 8x8 of a dark class and a bright one. sizes: {split: number of images of each class}."""
    rng, splits = np.random.default_rng(0), {}
    for split, (dark, bright) in sizes.items():
        label = rng.permutation(np.repeat([0, 1], (dark, bright)))
        noise = 20 * rng.normal(size=(len(label), 8, 8, 1))
        image = np.clip(np.where(label == 1, 190, 60)[:, None, None, None] + noise, 0, 255).astype(np.uint8)
        splits[split] = {"image": image, "label": label}
    # A split may lack a class.
    return from_arrays(splits, 16, {"label": Feature((), "int32", classes=2)})


def copying(workdir: Path, data: Dataset, options: Options, obedient: bool = True) -> ImageSubject:
    """Returns a subject whose model copies random training images of the classes that it is to generate."""
    known = metrics_images.read_training(data, data.sizes["train"])
    by_class = [known.image[known.label == c] for c in (0, 1)]
    most = min(map(len, by_class))
    images = metrics_images.to_float(np.stack([x[:most] for x in by_class]))

    def generate(state: Any, key: jax.Array, given: Any, request: Any) -> dict[str, jax.Array]:
        labels = labels_to_generate(request.n, None, 2, given if obedient else {})
        return {"samples": images[labels, jax.random.randint(key, (request.n,), 0, most)], "labels": labels}

    run = runs_trained.open_run(workdir)

    def init(key: jax.Array) -> Any:
        return jax.numpy.zeros(())

    run = replace(run, model=run.model._replace(generate=generate, init=init, request=core.Request))
    subject = ImageSubject(run, 30, data, options)
    subject.__dict__["state"] = 0
    return subject


SIZES = {"train": (900, 100), "validation": (90, 10), "test": (360, 40)}


def test_labels_have_the_proportions_of_the_training_split():
    data = two_classes(SIZES)
    for seed in (0, 1):
        drawn = draw_labels(data, 1000, "training", seed)
        assert np.bincount(drawn).tolist() == [900, 100]
        np.testing.assert_array_equal(draw_labels(data, 150, "training", seed), drawn[:150])
        assert np.bincount(draw_labels(data, 2000, "training", seed)).tolist() == [1800, 200]
    np.testing.assert_array_equal(draw_labels(data, 300, "training", 0), metrics_images.read_training(data, 300).label)
    assert not np.array_equal(draw_labels(data, 300, "training", 1), draw_labels(data, 300, "training", 0))


def test_all_of_many_classes_are_drawn():
    label = np.arange(2400) % 1200
    split = {"image": np.zeros((2400, 1, 1, 1), np.uint8), "label": label}
    data = from_arrays({"train": split, "validation": split, "test": split}, 16)
    for rule in ("training", "uniform"):
        assert draw_labels(data, 2000, rule, 0).max() == 1199
    counts = np.bincount(draw_labels(data, 2000, "uniform", 0), minlength=1200)
    assert (counts.min(), counts.max()) == (1, 2)
    first = draw_labels(data, 500, "uniform", 0)
    assert len(set(first.tolist())) == 500 and first.max() > 1000, "fewer images than classes are not the first classes"


@pytest.mark.slow
def test_a_model_that_copies_images_of_rare_classes_scores_as_real_images(runs):
    data = two_classes(SIZES)
    options = Options((runs["conditional"],), ("kid",), n=400, features="pixels")
    found = {}
    for rule in ("training", "uniform"):
        subject = copying(runs["conditional"], data, replace(options, labels=rule))
        (score,) = plan_scores(subject).scores
        found[rule] = next(iter(score.compute()))
        assert score.protocol["labels"] == rule
    assert abs(found["training"]) < 0.01 < 0.1 < found["uniform"]
    subject = copying(runs["conditional"], data, options, obedient=False)
    with pytest.raises(UserError, match=r"does not generate the classes that it is given.*labels_to_generate"):
        next(iter(plan_scores(subject).scores[0].compute()))


def test_unconditional_models_are_compared_with_conditional_ones_that_draw_labels_as_in_training():
    def score(**protocol: object) -> list[Score]:
        return [Score(("kid",), protocol, tuple)]

    check_comparable({"a": score(labels="training"), "b": score(), "c": score(folder="x")})
    check_comparable({"a": score(labels="uniform", request={"x": 1}), "c": score(folder="x")})
    with pytest.raises(UserError, match="labels: training and uniform"):
        check_comparable({"c": score(folder="x"), "a": score(), "b": score(labels="uniform")})


@pytest.mark.parametrize(
    ("test", "names", "left_out"),
    [
        ((8, 2), ["kid", "precision"], ["frechet"]),
        ((3, 1), ["kid"], ["frechet", "prdc"]),
        ((1, 0), [], ["frechet", "kid", "prdc"]),
    ],
)
def test_a_small_set_gives_what_can_be_computed(runs, test, names, left_out):
    data = two_classes({"train": (30, 10), "validation": (2, 2), "test": test})
    options = Options((runs["conditional"],), features="pixels")
    subject = copying(runs["conditional"], data, options)
    plan = plan_scores(subject)
    if names:
        assert [score.names[0] for score in plan.scores] == ["tstr", "trtr", *names]
        assert all(np.isfinite(list(score.compute())).all() for score in plan.scores[2:])
    said = "\n".join(plan.left_out)
    for name in left_out:
        assert f"{name} left out: " in said or not names
        with pytest.raises(UserError, match=f"{name} of .* can't be computed: .* leave {name} out"):
            plan_scores(copying(runs["conditional"], data, replace(options, metrics=(name,))))


def test_without_any_metric_the_reasons_are_named(runs):
    data = two_classes({"train": (30, 10), "validation": (2, 2), "test": (1, 0)})
    subject = copying(runs["conditional"], data, Options((runs["conditional"],), features="pixels"))
    subject.__dict__["labelled"] = False
    with pytest.raises(UserError, match=r"(?s)no metric of gen can be computed.*kid: .*the test split has 1"):
        plan_scores(subject)


def test_baselines_without_enough_training_images_are_left_out(runs):
    subject = copying(
        runs["conditional"], two_classes(SIZES), Options((runs["conditional"],), ("tstr", "frechet"), n=1200)
    )
    plan = plan_scores(subject)
    assert [score.names[0] for score in plan.scores] == ["tstr", "frechet"]
    assert plan.left_out == [
        f"{name} left out: n is 1200, and there are only 1000 real training images; the fix: --n 1000"
        for name in ("trtr, tstr_gaussian", "frechet_real")
    ]


def test_fewer_than_two_classes_are_compared_by_pixels(runs, caplog):
    image = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    split = {"image": image, "label": np.zeros(40, int)}
    data = from_arrays({"train": split, "validation": split, "test": split}, 16)
    options = Options((runs["conditional"],))
    subject = copying(runs["conditional"], two_classes(SIZES), options)
    subject = ImageSubject(subject.run, 30, data, options)
    assert subject.feature_protocol == {"features": "pixels"}
    assert subject.summary == "checkpoint 30; images are compared by their pixels, since the data have one class only"
    with pytest.raises(UserError, match=r"one class only; .*--features pixels"):
        _ = ImageSubject(subject.run, 30, data, replace(options, features="classifier")).features
    with pytest.raises(UserError, match="trains a classifier, and the data have one class only"):
        choose_metrics(ImageSubject(subject.run, 30, data, replace(options, metrics=("tstr",))))
    # Sorted data: the first classes are for training.
    data = two_classes({"train": (40, 0), "validation": (2, 2), "test": (20, 20)})
    subject = ImageSubject(subject.run, 30, data, options)
    assert subject.feature_protocol == {"features": "pixels"}
    assert "all training images have one class" in caplog.text


def write_images(folder: Path, images: dict[str, bytes]) -> Path:
    for name, content in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(scored, tmp_path) -> Path:
    """A folder of the images with which the run is scored, as sample.py --files would write them."""
    made = generate_images(open_images(scored, Options((scored,), n=N)), N)
    return write_images(tmp_path, separate(made.image, made.label, ())) / "samples"


def test_a_folder_of_the_same_images_has_the_same_numbers(scored, folder, capsys):
    numbers = scores(Options((scored, folder)))
    assert numbers[str(folder)] == numbers[str(scored)]
    assert list(numbers[str(folder)]) == NAMES
    assert f"{folder}: a folder of {N} images, compared with the data of {scored}" in capsys.readouterr().err
    protocol = (directory.read_evaluation(folder) or directory.Evaluation()).protocol["tstr"]
    assert protocol["n_fake"] == N and not protocol.keys() & {"checkpoint", "run", "labels", "request"}
    assert len(protocol["folder"]) == 64
    # In sub-folders that are named as the classes, without the run's own score, and in another order.
    for path in list(folder.glob("*.png")):
        target = folder / path.stem[11:] / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    again = scores(Options((folder,), ("kid", "tstr"), data_of=scored))[str(folder)]
    assert again["kid"] == pytest.approx(numbers[str(scored)]["kid"], abs=0.02)
    # A part of the folder is drawn from all classes.
    part = open_subjects(Options((folder,), data_of=scored, n=100))[0]
    assert isinstance(part, ImageSubject) and part.generated.label is not None
    assert len(part.generated.image) == 100 and len(np.unique(part.generated.label)) == 10


def test_a_folder_that_can_not_be_scored_is_one_short_error(scored, folder, tmp_path):
    plain = write_images(
        tmp_path / "plain", {f"cats/{path.name[:5]}.png": path.read_bytes() for path in folder.iterdir()}
    )
    assert (
        "tstr left out: it trains a classifier on labelled images"
        in plan_scores(open_subjects(Options((plain,), data_of=scored, features="pixels"))[0]).left_out[0]
    )
    for runs, change, message in [
        ((folder,), {"data_of": None}, "--data-of RUN"),
        ((folder,), {"n": N + 1}, f"n is {N + 1}, and .* has {N} images; the fix: --n {N}"),
        ((folder,), {"request": ("temperature=2",)}, "--request, --step and --labels change what a run generates"),
        ((plain,), {"metrics": ("tstr",)}, r"sub-folders that are named as the classes \("),
    ]:
        with pytest.raises(UserError, match=message):
            scores(Options(runs, **{"metrics": ("kid",), "data_of": scored, **change}))
    Image.new("L", (9, 8)).save(plain / "cats" / "wrong.png")
    with pytest.raises(UserError, match=r"wrong\.png is 8x9 \(height x width\), .* are 8x8"):
        scores(Options((plain,), ("kid",), data_of=scored))
    (plain / "cats" / "wrong.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"wrong\.png is not an image .*remove it"):
        scores(Options((plain,), ("kid",), data_of=scored))


def test_a_run_without_its_config_is_no_folder_of_images(scored, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(scored, run)
    (run / "samples").mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(run / "samples" / "step_0000010.png")
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        scores(Options((run,)))
    # A link is noticed even before the first checkpoint.
    shutil.rmtree(run / "checkpoints")
    (run / "config.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json"):
        scores(Options((run,)))


def test_samples_are_written_one_file_each_and_verified(workdir, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(workdir), "--n", "12", "--files", "--out", str(out)]
    assert sample.main(arguments) == 0
    assert f"{out}: samples.png, samples/ (12 files), samples.npz, manifest.json" in capsys.readouterr().out
    paths = sorted((out / "samples").iterdir())
    assert [path.name for path in paths[:2]] == ["00000_label0.png", "00001_label1.png"]
    with np.load(out / "samples.npz") as arrays:
        expected = to_bytes(arrays["samples"])
    np.testing.assert_array_equal([np.asarray(Image.open(path))[..., None] for path in paths], expected)
    assert sample.main(["--verify", str(out / "manifest.json")]) == 0
    assert "verified: samples.png, samples/ (12 files), samples.npz" in capsys.readouterr().out
    assert sample.main(arguments) == 0, "the same files may be written again"
    with pytest.raises(UserError, match=r"samples has files of other samples, such as 00004_label4\.png"):
        sample.main([*arguments, "--n", "4"])

    private = tmp_path / "private"
    (out / "samples").rename(private)
    (out / "samples").symlink_to(private)
    assert sample.main(["--verify", str(out / "manifest.json")]) == 1
    assert "samples/00000_label0.png is missing" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    for name in ("../secret", "/etc/passwd", "a/../../secret", "a/b/c", "samples/.."):
        files.write_json(out / "manifest.json", manifest | {"outputs": {name: "0" * 64}})
        with pytest.raises(UserError, match="leaves the manifest's folder"):
            sample.main(["--verify", str(out / "manifest.json")])


def test_an_interpolation_is_written_as_an_animation(workdir, tmp_path):
    arguments = [str(workdir), "--n", "16", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="the fix: --mode interpolate"):
        sample.main([*arguments, "--animation", "webp"])
    for kind in ("gif", "webp"):
        assert sample.main([*arguments, "--mode", "interpolate", "--animation", kind]) == 0
        with (
            Image.open(tmp_path / "out" / f"samples.{kind}") as animation,
            np.load(tmp_path / "out" / "samples.npz") as arrays,
        ):
            assert animation.size == (448, 448)
            # The last image of a row is the first of the next one, and equal frames may become one.
            assert 14 <= animation.n_frames <= 16  # pyright: ignore
            first = np.asarray(animation.convert("L"))[::56, ::56]
            np.testing.assert_array_equal(first, to_bytes(arrays["samples"])[0, 0, ..., 0])
        assert sample.main(["--verify", str(tmp_path / "out" / "manifest.json")]) == 0


def test_file_names_carry_the_names_of_classes():
    images = np.zeros((3, 2, 2, 3), np.uint8)
    found = separate(images, np.array([1, 0, 1]), ("cat", "../dog & cow"))
    assert list(found) == [
        f"samples/{name}.png" for name in ("00000_label1_-dog-cow", "00001_label0_cat", "00002_label1_-dog-cow")
    ]
    assert list(separate(images, None, ())) == ["samples/00000.png", "samples/00001.png", "samples/00002.png"]
