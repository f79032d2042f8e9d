"""The training loop of all families: data -> update -> log -> evaluate -> save, and at the end a test of the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from gen import config as configs
from gen.config import Config
from gen.core import Dataset, GenerativeModel, Medium, State
from gen.data.prefetch import prefetch
from gen.data.preprocess import with_preprocess
from gen.errors import Requeue, UserError
from gen.evaluation import alarms
from gen.evaluation.measure import check_measured, measure, scalars_of, split_facts
from gen.evaluation.progress import Progress
from gen.evaluation.request import parse_request
from gen.media import find_medium
from gen.runs import base as runs_base
from gen.runs import checkpoint, directory, log, trouble
from gen.runs.run import Run, Start, open_start, report_finished, write_evaluation, write_samples
from gen.runs.trained import sample_command
from gen.runtime import agreement, backend, failures, faults, hosts, profile, signals
from gen.runtime import engine as runtime_engine
from gen.runtime.engine import Engine
from gen.runtime.feed import calls, feed, stacked


def build(config: Config) -> tuple[Dataset, GenerativeModel, Engine]:
    """Returns the data set, the model and the engine of a run. Nothing is written to the run directory.

    Raises: UserError for every mistake in the config that can be found without training.
    """
    backend.start_backend(config.parallel)
    data = runs_base.build_data(config)
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    # A wrong request is found before anything is written.
    parse_request(model.request, config.log.request, None, data.spec)
    guard = faults.guards(config.faults)
    several = config.steps_per_call > 1
    engine = runtime_engine.compile_engine(
        model, config.parallel, config.seed, config.data.batch_size, guard, several=several
    )
    if config.save.best is not None:
        check_measured("save.best", config.save.best[0], model, data, engine.abstract)
    return data, model, engine


def train(config: Config, workdir: Path) -> None:
    """Trains in `workdir`, from its newest undamaged checkpoint if there is one, and tests the best checkpoint at the end.

    On several hosts, each host calls it with the same config.

    Raises: UserError for a mistake of the user, or if the run explodes; Requeue if the process must be started again, because a
    signal stopped it or another host has ended.
    """
    begun = time.monotonic()
    # Only new runs are checked: a run that an older version began must be finished with its config.
    if not (workdir / "config.json").exists():
        configs.check_new_run(config)
    with signals.exit_on_signal(config.parallel.grace_seconds), failures.tell_failure(), ExitStack() as held:
        # This comes first, so that a failure of one host reaches all others.
        backend.meet_hosts(config.parallel)
        config = runs_base.resolve_config(config)
        data, model, engine = build(config)
        # From here on the hosts wait for each other, and any of them may be lost.
        held.enter_context(hosts.requeue_if_lost())
        agreement.check_agree(config, workdir, data.digest)
        base = runs_base.choose_base(config, workdir)
        if base is not None:
            runs_base.check_base(base, engine.abstract)
        run = Run(config, workdir, data, model, engine, base)
        start = open_start(run, held)
        if not start.finished:
            _train_from(run, start, begun)
        elif hosts.is_first():
            report_finished(run, start)


def _train_from(run: Run, start: Start, begun: float) -> None:
    config, model = run.config, run.model
    state = run.state_at(start.step)
    examples = config.data.batch_size * (model.batches or 1)
    length = start.facts.metrics_bytes
    with log.open_log(run.workdir, config.log, start.step, config.steps, examples, length, model.losses) as logger:
        for text in start.damaged:
            logger.alarm(start.step, text)
        if start.kind == "resume":
            logger.telemetry(start.step, event="restart", seconds=time.monotonic() - begun)
            logger.say(f"resuming {run.workdir} at step {start.step}")
        if start.step < config.steps:
            for text in trouble.unreached(config):
                logger.alarm(0, text)
            record = faults.Record(config.faults, start.step, start.facts.faults, model.losses)
            fit(run, state, logger, record)
        test(run, logger)


def fit(run: Run, state: State, logger: log.RunLog, record: faults.Record) -> None:
    """Trains from `state` to the last step. Raises: UserError if bad steps or an alarm end the run; Requeue
    after a signal, when the state is saved, unless it must be rolled back. record: keeps the limits for bad steps."""
    config, engine = run.config, run.engine
    step = start = int(state.step)
    monitor = make_monitor(run, logger)
    inputs = stacked(feed(run.data, run.model, config, engine.rows), config)
    trace = profile.tracer(config.profile, run.workdir)
    stopping = False
    logger.say("compiling the step")
    with (
        signals.notice_signals() as notice,
        checkpoint.saver(run.checkpoints, config.save, start) as save,
        hosts.requeue_if_lost(),
    ):
        for call, batch, waited in prefetch(inputs, calls(config, start)):
            step = call[-1]
            trace(call)
            state, metrics = engine.update(state, batch, notice(), record.limits(call))
            # This returns the metrics of the call before, so that the device works while the host reads. The call that
            # was just dispatched is read now only if something depends on it: an evaluation, a save or a stop.
            read = logger.step(call, metrics, waited)
            evaluating, saving = _is_due(config, step, config.evaluate_every), _is_due(config, step, config.save.every)
            if evaluating or saving or _is_noticed(read):
                read += logger.settle()
            # The engine shares the notice of a signal among all hosts, so that they stop after the same step.
            stopping = _is_noticed(read)
            rolling_back = _record_steps(run, record, read, save, logger) and config.faults.action == "rollback"
            if rolling_back and stopping:
                # Nothing is saved: the next start continues from the checkpoint to which this would roll back.
                break
            if rolling_back:
                state = roll_back(run, step, save, logger)
            validation = monitor.evaluate(state, step) if evaluating else {}
            if evaluating or saving:
                monitor.check_alarms(state, step, validation)
            if saving or stopping or save.is_best(validation):
                kept, healthy = record.kept(saving), record.is_sound()
                length, sha256 = logger.end()
                facts = checkpoint.Facts(length, validation, saving, kept, healthy, metrics_sha256=sha256)
                _save(save, engine.whole(state), facts, logger)
            if stopping:
                break
        # A call without steps ends a profiler trace that is still open.
        trace(range(0))
    # A signal may also have come after the metrics of the last call were read.
    if stopping or notice():
        logger.telemetry(step, event="stopped")
        raise Requeue(f"stopped at step {step}, as asked; the same command continues from the last checkpoint")


def _record_steps(
    run: Run, record: faults.Record, read: list[log.StepMetrics], save: checkpoint.Saver, logger: log.RunLog
) -> bool:
    """Records the metrics of steps, and prints warnings. Returns whether a step was bad, so that its update was discarded.

    Raises: UserError if bad steps end the run.
    """
    bad = False
    for step, values in read:
        verdict = record.read(step, values)
        bad |= verdict.bad
        for text in verdict.reports:
            logger.alarm(step, text)
        if verdict.exploded:
            trouble.stop_exploded(run, step, verdict.exploded, record.now.gradient.low, save)
    return bad


def _save(save: checkpoint.Saver, state: State, facts: checkpoint.Facts, logger: log.RunLog) -> None:
    with logger.paused():
        save(state, facts)


def _is_due(config: Config, step: int, every: int) -> bool:
    """Returns whether `step` is the last step or a multiple of `every`. If `every` is 0, only the last step is."""
    return step == config.steps or (every > 0 and step % every == 0)


def _is_noticed(read: list[log.StepMetrics]) -> bool:
    """Returns whether any host received a signal before one of these steps."""
    return any(values["notice"] for _, values in read)


def roll_back(run: Run, step: int, save: checkpoint.Saver, logger: log.RunLog) -> State:
    """Returns the state of the last scheduled checkpoint, or the initial state if there is none, with `step` as its step number.

    So training continues with new batches, and does not repeat the batches since that checkpoint.
    """
    with logger.paused():
        save.wait()
        source = hosts.broadcast(partial(checkpoint.scheduled, run.checkpoints)) or 0
        state = run.renumber(run.state_at(source), step)
        logger.alarm(step, f"rolled back to the weights of step {source}")
    return state


@dataclass(frozen=True)
class Monitor:
    """The checks of a run while it trains: validation metrics, samples to look at, and alarms."""

    run: Run
    logger: log.RunLog
    medium: Medium
    sample: Callable[[State], dict[str, jax.Array]]
    """(state) -> samples, compiled."""
    watch: alarms.Watch
    """(state, step, training metrics, validation metrics) -> (numbers to log, messages of alarms)."""

    def evaluate(self, state: State, step: int) -> dict[str, float]:
        """Measures the validation split, logs the metrics, and writes samples. Returns the scalar metrics."""
        run = self.run
        with self.logger.paused():
            split = run.data.evaluation("validation", run.config.data.batch_size, run.engine.rows)
            metrics = measure(run.model, run.engine.evaluate, state, split)
            scalars = self._report(metrics, step)
            # All hosts take part in sampling, and the first one writes.
            samples = self.sample(state)
            if hosts.is_first():
                files = self.medium.show(jax.device_get(samples), run.view()).files
                write_samples(run.workdir / "samples", f"step_{step:07d}", files)
        return scalars

    def _report(self, metrics: Mapping[str, float | np.ndarray], step: int) -> dict[str, float]:
        """Writes scalar metrics to the log, and arrays to reference.npz. Returns the scalar metrics."""
        log.check_finite(step, "validation", metrics)
        scalars = scalars_of(metrics)
        self.logger.metrics(step, "validation", scalars)
        if hosts.is_first():
            arrays = {name: value for name, value in metrics.items() if name not in scalars}
            directory.write_reference(self.run.workdir, arrays)
        return scalars

    def check_alarms(self, state: State, step: int, validation: Mapping[str, float]) -> None:
        """Logs the numbers that alarms watch, and prints the alarms. Raises: UserError if an alarm is configured to stop the run."""
        with self.logger.paused():
            found = self.watch(state, step, self.logger.latest, validation)
            numbers, texts = hosts.broadcast(lambda: found)
            if numbers:
                self.logger.telemetry(step, **numbers)
            for text in texts:
                self.logger.alarm(step, text)
            if texts and self.run.config.alarms.action == "stop":
                self._stop(step, len(texts))

    def _stop(self, step: int, alarms: int) -> None:
        kept = hosts.broadcast(partial(checkpoint.newest, self.run.checkpoints, warn=_ignore))
        raise UserError(
            f"stopped by {alarms} alarm(s) at step {step}; the last checkpoint before is "
            f"{'none' if kept is None else kept}. To continue all the same: --alarms.action warn"
        )


def _ignore(text: str) -> None:
    """Drops a warning that was already printed at another call."""


def make_monitor(run: Run, logger: log.RunLog) -> Monitor:
    """Returns the monitor of a run. It samples with the same key and inputs each time, to compare samples of steps."""
    config, data, model = run.config, run.data, run.model
    known = directory.read_reference(run.workdir, data.spec)
    given = {name: known[name] for name in data.spec}
    request = model.request(**parse_request(model.request, config.log.request, None, data.spec))

    def sample(state: State) -> dict[str, jax.Array]:
        return model.generate(state, jax.random.key(0), given, request=request)

    # Alarms that need a classifier train it now, before the first step.
    compiled = run.engine.compiled
    progress = Progress(config.save.best, log.read_split(run.workdir, "validation"))
    watch = alarms.watch(config.alarms, data, model, compiled, progress)
    return Monitor(run, logger, find_medium(config.data, data.spec), compiled(sample), watch)


def test(run: Run, logger: log.RunLog) -> None:
    """Writes the metrics of the best checkpoint on the test split to evaluation.json."""
    config, data = run.config, run.data
    warn = partial(logger.alarm, config.steps)
    step = hosts.broadcast(partial(checkpoint.best, run.checkpoints, config.save, warn=warn))
    # `fit` has saved the last step at least.
    assert step is not None
    state = run.state_to_test(step)
    logger.say(f"testing checkpoint {step} on {data.sizes['test']} examples")
    batches = data.evaluation("test", config.data.batch_size, run.engine.rows)
    metrics = scalars_of(measure(run.model, run.engine.test, state, logger.track(batches, "test")))
    log.check_finite(step, "test", metrics)
    if hosts.is_first():
        metrics = write_evaluation(run, step, metrics, split_facts(data, "test"))
        logger.say("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        logger.say(f"written to {run.workdir / 'evaluation.json'}; next: {sample_command(run.workdir, config)}")
        for text in trouble.repeat_warnings(run.workdir / "telemetry.jsonl"):
            logger.say(text)
    # Baselines such as n-grams take minutes on the first host. The other hosts wait for it here: at the end of the process, the
    # runtime would not wait so long.
    hosts.barrier("tested")
