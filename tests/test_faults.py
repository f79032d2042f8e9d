"""Bad steps are left out or rolled back, and a stopped run does exactly the same."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import jax
import numpy as np
import pytest

from gen import errors, train
from gen.config import Config, Faults, Parallel
from gen.data.preprocess import with_preprocess
from gen.errors import UserError
from gen.runs import checkpoint
from gen.runtime import engine as runtime_engine
from gen.runtime import faults
from gen.runtime.faults import History, Record

GOOD = {"loss": 1.0}
BAD = {"loss": math.nan, "skipped": 1.0}


def test_the_limit_of_a_step_depends_on_losses_two_steps_before():
    """So it does not matter when the previous step is read."""
    config = Faults("skip", spike=3.0)
    record = Record(config, 0, [])
    values = np.random.default_rng(0).normal(5, 1, 400)
    for step, value in enumerate(values[:-1], start=1):
        before = record.limit(step + 1)
        record.read(step, {"loss": value})
        assert record.limit(step + 1) == before
    # The running moments remember the last ones most.
    assert record.limit(400) == pytest.approx(5 + 3 * 1, abs=0.5)
    again = Record(config, 399, json.loads(json.dumps(record.kept(399, True))))
    assert again.limit(400) == record.limit(400)
    assert again.limit(401) == Record(config, 399, record.kept(399, True)).limit(401) < math.inf


def test_nothing_is_a_spike_before_enough_losses_are_known():
    history = History()
    for _ in range(faults.MIN_LOSSES - 1):
        history = faults.after(history, GOOD)
    assert faults.limit(Faults("skip", spike=2.0), history) == math.inf
    assert faults.limit(Faults("skip", spike=2.0), faults.after(history, GOOD)) == pytest.approx(1, abs=0.2)


def test_patience_ends_the_run_and_a_checkpoint_resets_it():
    record = Record(Faults("skip", patience=3), 0, [])
    assert record.read(1, BAD)
    assert record.read(2, BAD)
    record.kept(2, due=False)
    assert record.of[2].bad == 2
    record.kept(2, due=True)
    assert not record.read(3, GOOD)
    assert record.read(4, BAD)
    assert record.read(5, BAD)
    with pytest.raises(UserError, match=r"3 bad steps since the last checkpoint.*may help$"):
        record.read(6, BAD)
    with pytest.raises(UserError, match=r"step 1 by a bad step.*or --faults\.action rollback$"):
        Record(Faults("stop", spike=5.0), 0, []).read(1, BAD)


@pytest.mark.parametrize("engine", [Parallel(devices=2), Parallel(engine="jit", devices=2)])
def test_a_bad_step_changes_only_the_step_number(engine, tiny):
    config = tiny("vae_digits")
    data = config.data.build()
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    compiled = runtime_engine.compile_engine(model, engine, 0, config.data.batch_size, guard=True)
    batch = data.batch(0, 0, compiled.rows)
    state = compiled.init()
    before = jax.device_get(state)
    for limit, skipped in ((-1e9, 1), (math.inf, 0)):
        state, metrics = compiled.update(state, batch, limit=limit)
        assert metrics["skipped"] == skipped
        same = jax.tree.map(np.array_equal, before.params, jax.device_get(state.params))
        assert all(jax.tree.leaves(same)) == bool(skipped)
    assert int(state.step) == 2
    broken = with_preprocess(model._replace(update=lambda *args: spoiled(*model.update(*args))), data.preprocess)
    state, metrics = runtime_engine.compile_engine(broken, engine, 0, config.data.batch_size, guard=True).update(
        state, batch
    )
    assert metrics["skipped"] == 1
    assert np.isfinite(jax.tree.leaves(state.params)[0]).all()


def spoiled(state, metrics):
    return replace(state, params=jax.tree.map(lambda x: x * math.nan, state.params)), metrics | {"gradient": math.nan}


SPIKES = (23, 24, 57)


@pytest.fixture
def spiky(tiny, monkeypatch):
    """Returns a function (action) -> a config that has batches with NaN at some steps."""
    original = train.build

    def build(config: Config):
        data, sound, _ = original(config)

        def update(state, batch, key):
            hurt = jax.numpy.isin(state.step, jax.numpy.array(SPIKES) - 1)
            state, metrics = sound.update(state, batch, key)
            return state, {name: jax.numpy.where(hurt, math.nan, value) for name, value in metrics.items()}

        model = sound._replace(update=update)
        guard = faults.guards(config.faults)
        several = config.steps_per_call > 1
        engine = runtime_engine.compile_engine(
            model, config.parallel, config.seed, config.data.batch_size, guard, several=several
        )
        return data, model, engine

    monkeypatch.setattr(train, "build", build)
    config = tiny("vae_digits")
    return lambda action, together=1: replace(
        config,
        steps=80,
        steps_per_call=together,
        evaluate_every=40,
        faults=Faults(action),
        parallel=Parallel(devices=1),
        save=replace(config.save, every=20),
        log=replace(config.log, every=1, tensorboard=False),
    )


def lines(workdir: Path, name: str, key: str) -> dict[int, dict]:
    found = (json.loads(line) for line in (workdir / name).read_text().splitlines())
    return {line["step"]: line for line in found if key in line}


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_bad_steps_are_left_out_and_reported(action, spiky, tmp_path):
    workdir = tmp_path / "run"
    train.train(spiky(action), workdir)
    losses = lines(workdir, "metrics.jsonl", "loss")
    assert losses.keys() == set(range(1, 81)) - set(SPIKES)
    skipped = lines(workdir, "telemetry.jsonl", "skipped")
    assert skipped.keys() == set(SPIKES)
    assert skipped[23]["skipped"]["loss"] == "nan"
    alarms = lines(workdir, "telemetry.jsonl", "alarm")
    # Step 24 is on its way when 23 is read, and is bad as well.
    rolled = (
        {24: "weights of step 20", 25: "weights of step 20", 58: "weights of step 40"} if action == "rollback" else {}
    )
    assert alarms.keys() == rolled.keys()
    assert all(text in alarms[step]["alarm"] for step, text in rolled.items())


@pytest.mark.slow
def test_bad_steps_are_left_out_of_calls_of_several(spiky, tmp_path):
    for together in (1, 8):
        train.train(spiky("skip", together), tmp_path / str(together))
    alone, called = (lines(tmp_path / str(together), "metrics.jsonl", "loss") for together in (1, 8))
    assert called.keys() == set(range(1, 81)) - set(SPIKES)
    assert all(called[step]["loss"] == pytest.approx(alone[step]["loss"], rel=1e-4) for step in called)
    assert lines(tmp_path / "8", "telemetry.jsonl", "skipped").keys() == set(SPIKES)
    for at in (3, 25):  # the third call, to step 20, and the fifth after it
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.signals, "notice_signals", noticing(at, tmp_path / "stopped"))
            with pytest.raises(errors.Requeue):
                train.train(spiky("skip", 8), tmp_path / "stopped")
    train.train(spiky("skip", 8), tmp_path / "stopped")
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "8" / name).read_bytes()
    for judged in (Faults("skip", spike=5.0), Faults("rollback")):
        with pytest.raises(UserError, match="the fix: --steps-per-call 1"):
            replace(spiky("skip", 8), faults=judged)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_stopped_run_leaves_out_the_same_steps(action, spiky, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.train(spiky(action), whole)
    for at in (23, 24, 30, 39, 40, 58):
        with monkeypatch.context() as patch:
            patch.setattr(train.signals, "notice_signals", noticing(at, stopped))
            with pytest.raises(errors.Requeue):
                train.train(spiky(action), stopped)
    train.train(spiky(action), stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (stopped / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


def noticing(at: int, workdir: Path):
    """Returns a replacement of notice_signals: a signal arrives before step `at`, wherever the run starts."""

    @contextmanager
    def noticed():
        step = count((checkpoint.newest(workdir / "checkpoints", pytest.fail) or 0) + 1)
        yield lambda: next(step) >= at

    return noticed


def test_a_bad_step_stops_the_run_and_the_next_start_may_leave_it_out(spiky, tmp_path):
    with pytest.raises(UserError, match="not finite at step 23"):
        train.train(spiky("stop"), tmp_path / "stopped")
    for name in ("stopped", "whole"):
        train.train(spiky("skip"), tmp_path / name)
    one, other = (tmp_path / name / "metrics.jsonl" for name in ("stopped", "whole"))
    assert one.read_bytes() == other.read_bytes()
