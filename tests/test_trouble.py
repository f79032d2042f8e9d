"""How a run that explodes ends, and which warnings are repeated at the end of a run."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from gen.config import Faults, Log, Parallel, Save, load
from gen.errors import UserError
from gen.optim import Optimizer, Piecewise, WarmupCosine
from gen.runs import checkpoint
from gen.runs.trouble import advice, repeat_warnings, unreached
from gen.train import train


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def exploding(tiny):
    """Returns a VAE of digits whose learning rate jumps to a thousand times a good one at step 120."""
    config = tiny("vae_digits")
    optim = replace(config.model.optim, lr=Piecewise((120,), (1e-3, 3.0)), clip=None)
    return replace(
        config,
        model=replace(config.model, optim=optim, ema=0.0),
        steps=1000,
        steps_per_call=10,
        evaluate_every=0,
        parallel=Parallel(devices=1),
        save=Save(every=50),
        log=Log(every=1, tensorboard=False),
    )


@pytest.mark.slow
def test_an_exploding_run_tells_within_50_steps_and_stops_with_its_last_good_checkpoint(exploding, tmp_path, capsys):
    message = (
        r"stopped at step \d+: the loss is .*far above its best mean .* for 200 steps; the last good checkpoint is 100.*"
        r"--model.optim.clip .*--faults.action skip"
    )
    with pytest.raises(UserError, match=message) as stopped:
        train(exploding, tmp_path)
    told = [line["step"] for line in read_lines(tmp_path / "telemetry.jsonl") if "alarm" in line]
    assert 120 < told[0] <= 170
    assert "warning: the loss jumped to" in capsys.readouterr().out
    # The checkpoints of the explosion are set aside, so that nothing uses them.
    assert checkpoint.newest(tmp_path / "checkpoints", pytest.fail) == 100
    assert list((tmp_path / "checkpoints").glob("*.unsound"))
    # The same command goes on from the good checkpoint, along the same curve, and is stopped at the same step.
    curve = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError) as again:
        train(exploding, tmp_path)
    assert str(again.value) == str(stopped.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == curve


@pytest.mark.slow
def test_a_run_that_may_explode_goes_on_keeps_a_good_checkpoint_and_repeats_its_warnings(exploding, tmp_path, capsys):
    train(replace(exploding, steps=400, faults=Faults(explosion=None)), tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [100, 350, 400]
    assert checkpoint.newest_with(tmp_path / "checkpoints", "healthy") == 100
    last = capsys.readouterr().out.splitlines()[-3:]
    assert any(line.startswith("warned at step 12") and "the loss jumped to" in line for line in last)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lm_pydoc", *(pytest.param(name, marks=pytest.mark.long) for name in ("mlm_pydoc", "seq2seq_docstring"))]
)
def test_a_text_model_that_explodes_tells_at_once_and_stops(name, tiny, tmp_path, capsys):
    config = tiny(name)
    model = replace(config.model, optim=replace(config.model.optim, lr=Piecewise((120,), (1e-3, 30.0)), clip=None))
    quick: dict[str, Any] = {"parallel": Parallel(devices=1), "log": Log(every=1, tensorboard=False)}
    config = replace(
        config, model=model, steps=400, steps_per_call=10, evaluate_every=100, save=Save(every=50), **quick
    )
    with pytest.raises(
        UserError, match=r"stopped at step \d+: the loss .* good checkpoint is 100|not finite at step 1\d\d;"
    ):
        train(config, tmp_path)
    told = [line["step"] for line in read_lines(tmp_path / "telemetry.jsonl") if "alarm" in line]
    assert 120 < told[0] <= 150
    assert "warning: the " in capsys.readouterr().out


def test_skipped_steps_leave_the_weights_of_an_exploding_run_as_they_were(exploding, tmp_path):
    """The engine discards steps far above the best, also within a call of several steps."""
    with pytest.raises(UserError, match="bad steps since the last checkpoint"):
        train(replace(exploding, faults=Faults("skip")), tmp_path)
    assert any("skipped" in line for line in read_lines(tmp_path / "telemetry.jsonl"))


def test_advice_is_a_third_of_the_learning_rate_and_a_clip_near_the_usual_norm():
    model: Any = load("vae_mnist_best").model
    model = replace(model, optim=Optimizer(lr=WarmupCosine(3e-3, warmup=500), clip=50.0))
    unclipped = replace(model, optim=replace(model.optim, clip=None))
    assert advice(unclipped, 12.0) == (
        '--model.optim.lr "WarmupCosine(peak=0.001, warmup=500, end=0.0)" --model.optim.clip 40'
    )
    assert advice(model, 12.0) == '--model.optim.lr "WarmupCosine(peak=0.001, warmup=500, end=0.0)"'
    assert advice(replace(model, optim=Optimizer(lr=1e-3, clip=1.0)), 12.0) == "--model.optim.lr 0.0003"
    assert "--model.discriminator-optim.lr 7e-05" in advice(load("gan_folder").model, 1.0)
    without = replace(model, optim=Optimizer(lr=Piecewise((1,), (1.0, 2.0)), clip=1.0))
    assert advice(without, math.nan) == "a lower learning rate or clipped gradients"


def test_a_learning_rate_that_never_reaches_its_peak_is_a_warning():
    config = load("vae_digits")
    family: Any = config.model
    model = replace(family, optim=Optimizer(lr=WarmupCosine(1e-3, warmup=500)))
    assert unreached(replace(config, model=model)) == []
    assert "WarmupCosine(peak=0.001, warmup=500, end=0.0)" in unreached(replace(config, model=model, steps=100))[0]


def test_warnings_are_repeated_by_kind(tmp_path):
    lines = [
        {"step": 10, "alarm": "the loss jumped to 1.5e+03 at step 10, from a mean of 90.1"},
        {"step": 10, "alarm": "the loss jumped to 1.5e+03 at step 10, from a mean of 90.1"},
        {"step": 5, "steps_per_second": 3.0},
        {"step": 30, "alarm": "the loss jumped to 170 at step 30, from a mean of 80"},
        {"step": 20, "alarm": "the gradient has a norm of nan, outside [1e-07, 10000]"},
        {"step": 21, "skipped": {"loss": "nan"}},
    ]
    path = tmp_path / "telemetry.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert repeat_warnings(path) == [
        "warned at 2 steps from 10 to 30: the loss jumped to 170 at step 30, from a mean of 80",
        "warned at step 20: the gradient has a norm of nan, outside [1e-07, 10000]",
        "warned at step 21: steps were left out, because their numbers were not finite or jumped",
    ]
    assert repeat_warnings(tmp_path / "missing.jsonl") == []
