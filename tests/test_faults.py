"""Bad steps are skipped or rolled back, and a run that was stopped and resumed does exactly the same."""

import json
import math
import random
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
from gen.runtime import faults, levels
from gen.runtime.faults import History, Limits, Record

GOOD = {"loss": 1.0}
BAD = {"loss": math.nan, "skipped": 1.0}


def follow(record: Record, values, together: int = 1, start: int = 0) -> list[Limits]:
    """Plays the training loop: asks for the limits of each call, then reads the call before. Returns the limits of the calls."""
    found, waiting = [], []
    for first in range(start, len(values), together):
        call = range(first + 1, first + 1 + together)
        found.append(record.limits(call))
        for step in waiting:
            record.read(step, {"loss": values[step - 1], "gradient": 1.0})
        waiting = list(call)
    for step in waiting:
        record.read(step, {"loss": values[step - 1], "gradient": 1.0})
    return found


@pytest.mark.parametrize("together", [1, 8])
def test_the_limits_of_a_call_depend_on_the_call_before_the_previous_one(together):
    """So it does not matter when the previous call is read, and a resumed run has the limits of one that was not stopped."""
    config = Faults("skip", spike=3.0)
    values = np.random.default_rng(0).normal(5, 1, 800)
    whole = follow(Record(config, 0, ()), values, together)
    # The running moments remember the last ones most.
    assert whole[-1].loss == pytest.approx(5 + 3 * 1, abs=0.5)
    stopped = Record(config, 0, ())
    follow(stopped, values[:400], together)
    again = Record(config, 400, json.loads(json.dumps(stopped.kept(True))))
    assert follow(again, values, together, start=400) == whole[400 // together :]


def test_nothing_is_a_spike_before_enough_losses_are_known():
    history = History()
    for _ in range(levels.START - 1):
        history = faults.after(history, GOOD)
    assert faults.limits(Faults("skip", spike=2.0), history).loss == 10
    assert faults.limits(Faults("skip", spike=2.0), faults.after(history, GOOD)).loss == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("growth", [1.005, 1.02, 1.1])
def test_a_loss_that_grows_steadily_is_a_spike_although_its_deviation_grows_with_it(growth):
    rng, loss, config = random.Random(0), 90.0, Faults(spike=20.0)
    record = Record(config, 0, ())
    for step in range(1, 3000):
        loss *= growth if step > 500 else 1
        value = loss * (1 + 0.02 * rng.gauss(0, 1))
        if value > record.limits(range(step, step + 1)).loss:
            break
        record.read(step, {"loss": value})
    assert 500 < step < 700
    assert value < 3 * 90


def test_without_a_guard_there_are_no_limits():
    record = Record(Faults(), 0, ())
    follow(record, [5.0] * 100)
    assert record.limits(range(101, 102)) == Limits()


def test_patience_ends_the_run_and_a_checkpoint_resets_it():
    record = Record(Faults("skip", patience=3), 0, ())

    def read(step, values):
        record.limits(range(step, step + 1))
        return record.read(step, values).bad

    assert read(1, BAD)
    assert read(2, BAD)
    record.kept(due=False)
    assert record.now.bad == 2
    record.kept(due=True)
    assert not read(3, GOOD)
    assert read(4, BAD)
    assert read(5, BAD)
    with pytest.raises(UserError, match=r"3 bad steps since the last checkpoint.*may help$"):
        read(6, BAD)
    with pytest.raises(UserError, match=r"step 1 by a bad step.*or --faults\.action rollback$"):
        Record(Faults("stop", spike=5.0), 0, ()).read(1, BAD)


def explode(record: Record, values, gradient=1.0, start=0) -> tuple[list[int], int | None]:
    """Reads losses. Returns the steps with a report, and the step at which the run must stop."""
    told = []
    for step, value in enumerate(values, start=start + 1):
        verdict = record.read(step, {"loss": value, "gradient": gradient})
        told += [step] * len(verdict.reports)
        if verdict.exploded:
            return told, step
    return told, None


def test_a_run_that_stays_far_above_its_best_is_reported_and_then_stopped():
    rng = np.random.default_rng(0)
    values = 90 + 400 * np.exp(-np.arange(1500) / 60) + rng.normal(0, 1, 1500)
    values[1000:] = 3000 + 1000 * rng.uniform(size=500)
    told, stop = explode(Record(Faults(), 0, ()), values)
    assert told == [1001, 1020]
    assert stop == 1200
    assert explode(Record(Faults(explosion=None), 0, ()), values) == (told, None)
    record = Record(Faults(), 0, ())
    assert explode(record, values[:1100])[1] is None
    assert not record.is_sound()
    record.limits(range(1101, 1102))
    again = Record(Faults(), 1100, json.loads(json.dumps([record.now, record.now])))
    assert explode(again, values[1100:], start=1100) == ([], 1200)


def test_one_extreme_step_is_reported_and_its_checkpoint_is_no_good_one():
    record = Record(Faults(), 0, ())
    values = np.random.default_rng(0).normal(2, 0.1, 400)
    assert explode(record, [*values, 9.0]) == ([401], None)
    assert not record.is_sound()
    assert explode(record, values, start=401) == ([], None)
    assert record.is_sound()


def test_a_gradient_of_one_player_alone_is_reported_but_only_gradients_of_several_players_stop_a_run():
    for losses, stops in ((("loss",), None), (("loss", "loss/other"), 400 + levels.MEMORY)):
        record, stopped, told = Record(Faults(), 0, (), losses), None, []
        for step in range(1, 1000):
            values = {"loss": 1.0, "loss/other": 1.0, "gradient/a": 2.0, "gradient/b": 1e-3 if step <= 400 else 1e4}
            verdict = record.read(step, values)
            told += [step] * len(verdict.reports)
            if verdict.exploded:
                stopped = step
                break
        assert told == [401]
        assert stopped == stops


def test_the_record_of_an_older_checkpoint_is_read():
    """Before version 0.3 it had the count, mean and variance of the loss, and the number of bad steps."""
    record = Record(Faults("skip", spike=3.0), 100, [[99, 5.0, 0.9, 0], [100, 5.0, 1.0, 2]])
    assert record.now.bad == 2
    assert record.limits(range(101, 102)).loss == pytest.approx(5 + 3 * 0.9**0.5)
    assert explode(record, np.random.default_rng(0).normal(5, 1, 300), start=100) == ([], None)


@pytest.mark.parametrize("engine", [Parallel(devices=2), Parallel(engine="jit", devices=2)])
@pytest.mark.slow
def test_a_bad_step_changes_only_the_step_number(engine, tiny):
    config = tiny("vae_digits")
    data = config.data.build()
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    compiled = runtime_engine.compile_engine(model, engine, 0, config.data.batch_size, guard=True)
    batch = data.batch(0, 0, compiled.rows)
    state = compiled.init()
    before = jax.device_get(state)
    for limits, skipped in ((Limits(loss=-1e9), 1), (Limits(gradient=1e-9), 1), (Limits(), 0)):
        state, metrics = compiled.update(state, batch, limits=limits)
        assert metrics["skipped"] == skipped
        same = jax.tree.map(np.array_equal, before.params, jax.device_get(state.params))
        assert all(jax.tree.leaves(same)) == bool(skipped)
    assert int(state.step) == 3
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
@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "together", "stops"),
    # A signal is counted by calls: with 8 steps per call the third one ends at step 17.
    [
        pytest.param("skip", 1, (23, 24, 30, 39, 40, 58), marks=pytest.mark.long),
        pytest.param("rollback", 1, (23, 24, 30, 39, 40, 58), marks=pytest.mark.long),
        ("rollback", 8, (3, 20, 23, 40)),
    ],
)
def test_a_stopped_run_leaves_out_the_same_steps(action, together, stops, spiky, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.train(spiky(action, together), whole)
    for at in stops:
        with monkeypatch.context() as patch:
            patch.setattr(train.signals, "notice_signals", noticing(at, stopped))
            with pytest.raises(errors.Requeue):
                train.train(spiky(action, together), stopped)
    train.train(spiky(action, together), stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (stopped / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


def noticing(at: int, workdir: Path):
    """Returns a replacement of notice_signals: a signal arrives before step `at`, wherever the run starts."""

    @contextmanager
    def noticed():
        step = count((checkpoint.newest(workdir / "checkpoints", pytest.fail) or 0) + 1)
        yield lambda: next(step) >= at

    return noticed


@pytest.mark.slow
def test_a_bad_step_stops_the_run_and_the_next_start_may_leave_it_out(spiky, tmp_path):
    with pytest.raises(UserError, match="not finite at step 23"):
        train.train(spiky("stop"), tmp_path / "stopped")
    for name in ("stopped", "whole"):
        train.train(spiky("skip"), tmp_path / name)
    one, other = (tmp_path / name / "metrics.jsonl" for name in ("stopped", "whole"))
    assert one.read_bytes() == other.read_bytes()
