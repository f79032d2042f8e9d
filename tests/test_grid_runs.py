"""A run of a model of patches of pixels: its pictures, its samples, its likelihood and its scores as images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gen
from gen import sample
from gen.config import Alarms, Parallel, Save
from gen.data.images import Images
from gen.errors import UserError
from gen.evaluate import scores
from gen.evaluation import alarms
from gen.evaluation.score import Options
from gen.families.grid.grid import GridRequest
from gen.optim import Optimizer
from gen.runs import directory
from gen.runs.trained import open_run
from gen.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory) -> Path:
    """Twenty steps of a conditional model of binarized digits."""
    config = tiny("pixels_mnist")
    model = replace(config.model, conditional=True, label_dropout=0.2, optim=Optimizer(lr=1e-3))
    data = Images(name="digits", binarize="dynamic", patch=(4, 2), batch_size=16)
    watched = Alarms("warn", samples=8)
    config = replace(
        config, model=model, data=data, steps=20, save=Save(), parallel=Parallel(devices=1), alarms=watched
    )
    with pytest.MonkeyPatch.context() as patch:
        # Generated images are compared by their pixels alone: no classifier is trained.
        patch.setattr(alarms, "untrainable", lambda data: "not in this test")
        train(config, workdir := tmp_path_factory.mktemp("runs") / "pixels")
    return workdir


def test_the_test_split_has_an_exact_likelihood_in_nats_per_image(workdir):
    evaluation = directory.read_evaluation(workdir)
    assert evaluation is not None
    metrics, protocol = evaluation.metrics, evaluation.protocol["nll"]
    assert metrics["nll"] == pytest.approx(16 * metrics["loss"], rel=1e-5)
    assert metrics["bits_per_dim"] == pytest.approx(metrics["nll"] / (64 * np.log(2)), rel=1e-5)
    assert protocol["unit"] == "nats" and protocol["split"] == "test" and protocol["n"] > 300


def test_its_samples_are_watched_as_images(workdir):
    assert '"spread": ' in (workdir / "telemetry.jsonl").read_text()


def test_samples_are_written_as_a_picture_tokens_and_log_probabilities(workdir, tmp_path):
    assert list((workdir / "samples").glob("*.png"))
    assert sample.main([str(workdir), "--n", "4", "--label", "3", "--guidance", "2", "--out", str(tmp_path)]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["samples"].shape == arrays["log_probs"].shape == (4, 2, 2, 4)
        assert arrays["samples"].dtype == np.int32 and (arrays["labels"] == 3).all()
    with Image.open(tmp_path / "samples.png") as picture:
        # Two rows of two binary images, enlarged, with a grey line between them.
        assert set(np.unique(np.asarray(picture))) <= {0, 128, 255}
    assert '"guidance": 2.0' in (tmp_path / "manifest.json").read_text()
    assert sample.main(["--verify", str(tmp_path / "manifest.json")]) == 0


def test_its_samples_are_scored_as_images(workdir):
    options = Options(runs=(workdir,), metrics=("kid", "prdc"), n=100, features="pixels", request=("guidance=1.5",))
    (numbers,) = scores(options).values()
    assert numbers.keys() >= {"kid", "precision", "coverage"}
    evaluation = directory.read_evaluation(workdir)
    assert evaluation is not None and evaluation.protocol["kid"]["request"] == {"guidance": 1.5}


def test_gaps_are_filled(workdir):
    tokens = np.arange(16, dtype=np.int32).reshape(1, 2, 2, 4)
    known = np.zeros((1, 2, 2, 4), bool)
    known[:, 0] = True
    run = open_run(workdir)
    made = run.generate(run.choose_step(), 0, GridRequest(n=3), {"tokens": tokens, "known": known})
    np.testing.assert_array_equal(made["samples"][:, 0], np.repeat(tokens[:, 0], 3, axis=0))
    with pytest.raises(UserError, match="labels 0 to 9"):
        gen.open(workdir).generate(n=3, label=10)
