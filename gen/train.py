"""The one training loop: data -> update -> log -> evaluate -> save, and at the end the test of the best checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gen import config as configs
from gen import files
from gen.config import Config
from gen.core import Dataset, GenerativeModel, HostBatch, State
from gen.data.prefetch import prefetch
from gen.data.preprocess import with_preprocess
from gen.data.text import tokenizers
from gen.errors import Requeue, UserError
from gen.evaluation import alarms
from gen.evaluation.measure import measure, split_facts
from gen.media import image
from gen.media import text as media_text
from gen.runs import base as runs_base
from gen.runs import checkpoint, directory, log
from gen.runtime import backend, faults, hosts, profile, signals
from gen.runtime import engine as runtime_engine
from gen.runtime.engine import Engine


class Run(NamedTuple):
    """What a run is made of."""

    config: Config
    workdir: Path
    data: Dataset
    model: GenerativeModel
    engine: Engine
    base: runs_base.Base | None

    @property
    def checkpoints(self) -> Path:
        return self.workdir / "checkpoints"


def build(config: Config) -> tuple[Dataset, GenerativeModel, Engine]:
    """The three parts of a run. Raises: UserError for whatever a person got wrong, before anything is written."""
    backend.start_backend(config.parallel)
    data = runs_base.build_data(config)
    model = with_preprocess(config.model.build(data.spec, config.steps), data.preprocess)
    guard = faults.guards(config.faults)
    several = config.steps_per_call > 1
    engine = runtime_engine.compile_engine(
        model, config.parallel, config.seed, config.data.batch_size, guard, several=several
    )
    return data, model, engine


def train(config: Config, workdir: Path) -> None:
    """Train in `workdir`, from the newest sound checkpoint if there is one, and test the best. On several hosts, each calls it.

    Raises: Requeue if the process is to be started again: it was told to stop, or another host is gone.
    """
    begun = time.monotonic()
    with signals.exit_on_signal(config.parallel.grace_seconds), ExitStack() as held:
        config = runs_base.resolve_config(config)
        data, model, engine = build(config)
        held.enter_context(hosts.requeue_if_lost())
        own = replace(config, parallel=replace(config.parallel, host=None))
        hosts.check_agree("configs or data", json.dumps([str(workdir), configs.encode(own), data.digest]))
        base = runs_base.choose_base(config, workdir)
        if base is not None:
            runs_base.check_base(base, engine.abstract)
        this = Run(config, workdir, data, model, engine, base)
        found = hosts.broadcast(lambda: open_run(this, held))
        if found["finished"]:
            if hosts.is_first():
                print(f"{workdir} is finished: {found['start']} steps done. More of them: --steps N")
            return
        start, meta = found["start"], found["meta"]
        state = _resume(this, start) if start else _begin(this)
        examples = config.data.batch_size * (model.batches or 1)
        length = meta.get("metrics_bytes", 0)
        with log.open_log(workdir, config.log, start, config.steps, examples, length, model.losses) as logger:
            for text in found["damaged"]:
                logger.alarm(start, text)
            if start:
                logger.telemetry(start, event="restart", seconds=time.monotonic() - begun)
                logger.say(f"resuming {workdir} at step {start}")
            if start < config.steps:
                fit(this, state, logger, faults.Record(config.faults, start, meta.get("faults", []), model.losses))
            test(this, logger)


def open_run(this: Run, held: ExitStack) -> dict[str, Any]:
    """Take the run directory, which is `held` from here on, and say where its run stands. The first host does it for all.

    Raises: UserError if it is another run's, in use, or without a sound checkpoint.
    """
    config, workdir, data = this.config, this.workdir, this.data
    held.enter_context(directory.lock_run(workdir))
    directory.begin_run(workdir, config, data, this.base and runs_base.base_facts(this.base, workdir))
    damaged: list[str] = []
    start = checkpoint.newest(this.checkpoints, warn=damaged.append) or 0
    tested = (directory.read_evaluation(workdir) or {"metrics": {}})["metrics"].keys() & this.model.protocol.keys()
    finished = start >= config.steps and bool(tested)
    if not finished and not data.spec.keys() <= directory.read_reference(workdir).keys():
        directory.write_reference(workdir, reference(data))
    if start < config.steps:
        (workdir / "evaluation.json").unlink(missing_ok=True)
    meta = checkpoint.meta(this.checkpoints, start) if start else {}
    return {"start": start, "meta": meta, "damaged": damaged, "finished": finished}


def fit(this: Run, state: State, logger: log.RunLog, record: faults.Record) -> None:
    """Updates from `state` to the last step. Raises: Requeue if it was told to stop, with the state saved."""
    config, workdir, data, model, engine, _ = this
    step = start = int(state.step)
    due = lambda step, every: step == config.steps or (every > 0 and step % every == 0)
    known = directory.read_reference(workdir)
    given = {name: known[name] for name in data.spec}
    sample = engine.compiled(lambda state: model.generate(state, jax.random.key(0), given, request=model.request()))
    watch = alarms.watch(config.alarms, data, model, engine.compiled) if config.alarms.action != "off" else None
    batches = prefetch(stacked(feed(data, model, config, engine.rows), config), calls(config, start))
    trace = profile.tracer(config.profile, workdir)
    leave, saved = False, None  # asked to stop; the last save
    logger.say("compiling the step")
    with (
        signals.notice_signals() as notice,
        checkpoint.saver(this.checkpoints, config.save, start) as save,
        hosts.requeue_if_lost(),
    ):
        for call, batch, waited in batches:
            step = call[-1]
            trace(call)
            state, metrics = engine.update(state, batch, notice(), record.limit(step))
            read = logger.step(call, metrics, waited)
            evaluating, saving = due(step, config.evaluate_every), due(step, config.save.every)
            if evaluating or saving or any(values["notice"] for _, values in read):
                read += logger.settle()
            leave = any(values["notice"] for _, values in read)
            bad = [s for s, values in read if record.read(s, values)]
            if bad and config.faults.action == "rollback":
                if leave:  # the last checkpoint is gone on from, as if these steps had not been
                    break
                with logger.paused():
                    if saved:
                        saved.result()
                    state, source = roll_back(this, step)
                    logger.alarm(step, f"rolled back to the weights of step {source}")
            validation: dict[str, float] = {}
            if evaluating:
                with logger.paused():
                    split = data.evaluation("validation", config.data.batch_size, engine.rows)
                    validation = _report(measure(model, engine.evaluate, state, split), config, workdir, logger, step)
                    samples = sample(state)
                    if hosts.is_first():
                        show(samples, data, workdir / "samples" / f"step_{step:07d}")
            if watch and (evaluating or saving):
                with logger.paused():
                    heed(watch(state, {**logger.latest, **validation}), config, workdir, logger, step)
            if saving or leave:
                with logger.paused():
                    meta = {"metrics_bytes": logger.length(), "validation": validation, "due": saving}
                    saved = save(engine.whole(state), meta | {"faults": record.kept(step, saving)})
            if leave:
                break
        trace(range(0))
    if leave or notice():
        logger.telemetry(step, event="stopped")
        raise Requeue(f"stopped at step {step}, as asked; the same command goes on from the last checkpoint")


def roll_back(this: Run, step: int) -> tuple[State, int]:
    """The state of the last checkpoint that was due, or of the beginning, with the number of this step: the batches between
    are not read again."""
    source = hosts.broadcast(lambda: checkpoint.scheduled(this.checkpoints)) or 0
    state = _resume(this, source) if source else _begin(this)
    return replace(state, step=jax.device_put(np.int32(step), state.step.sharding)), source


def show(samples: dict[str, Any], data: Dataset, path: Path) -> None:
    """What was generated as a picture or a text."""
    path.parent.mkdir(exist_ok=True)
    if "tokens" in data.spec:
        made = media_text.samples(samples, tokenizers.load(data.files["tokenizer.json"]))
        files.write_bytes(path.with_suffix(".txt"), (media_text.RULE.join(made) + "\n").encode())
    else:
        files.write_bytes(path.with_suffix(".png"), image.picture(samples))


def heed(
    found: tuple[dict[str, float], list[str]], config: Config, workdir: Path, logger: log.RunLog, step: int
) -> None:
    """Numbers and alarms to the telemetry, alarms to the person too. Raises: UserError if they are to stop the run."""
    numbers, texts = hosts.broadcast(lambda: found)
    logger.telemetry(step, **numbers)
    for text in texts:
        logger.alarm(step, text)
    if texts and config.alarms.action == "stop":
        kept = hosts.broadcast(lambda: checkpoint.newest(workdir / "checkpoints", warn=lambda text: None))
        raise UserError(
            f"stopped by {len(texts)} alarm(s) at step {step}; the last checkpoint before is "
            f"{'none' if kept is None else kept}. To go on all the same: --alarms.action warn"
        )


def test(this: Run, logger: log.RunLog) -> None:
    """Metrics of the best checkpoint on the test split, into evaluation.json."""
    config, workdir, data, model, engine, base = this
    warn = partial(logger.alarm, config.steps)
    step = hosts.broadcast(lambda: checkpoint.best(this.checkpoints, config.save, warn=warn))
    assert step is not None  # fit saves the last step
    state = checkpoint.restore(this.checkpoints, step, engine.abstract, items=("params", "ema", "stats"))
    state = runs_base.with_base(state, engine.abstract, base)
    state = replace(state, step=jax.device_put(np.int32(step), engine.abstract.step.sharding))
    logger.say(f"testing checkpoint {step} on {data.sizes['test']} examples")
    batches = data.evaluation("test", config.data.batch_size, engine.rows)
    metrics = scalars(measure(model, engine.test, state, logger.track(batches, "test")))
    log.check_finite(step, "test", metrics)
    if hosts.is_first():
        metrics = write(this, step, metrics)
        logger.say("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        logger.say(f"written to {workdir / 'evaluation.json'}; next: python sample.py {workdir}")
    hosts.barrier("tested")  # n-grams take minutes, and the runtime doesn't wait so long for a host at its end


def write(this: Run, step: int, metrics: dict[str, float]) -> dict[str, float]:
    """evaluation.json: metrics of a checkpoint on the test split, and those of trivial models, each with its protocol. -> both."""
    held_out = split_facts(this.data, "test")
    common = held_out | {"checkpoint": step}
    if this.base is not None:
        common["base"] = runs_base.open_base(this.base.path, this.base.step).sha256  # read anew: the base is as it was
        if common["base"] != this.base.sha256:
            raise UserError(f"the base {this.base.path} has changed while the run stood on it")
    baselines = this.data.baselines()
    protocol = {name: {**common, **this.model.protocol.get(name, {})} for name in metrics}
    protocol |= {name: held_out | {"baseline": True} for name in baselines}
    directory.write_evaluation(this.workdir, metrics | baselines, protocol)
    return metrics | baselines


def calls(config: Config, start: int) -> Iterator[range]:
    """The steps, from 1, that each call of the update makes after `start`: steps_per_call of them as long as nothing is due
    between, then one. Where a call begins depends on nothing but the config, so that a resumed run makes the same ones."""
    breaks = [every for every in (config.evaluate_every, config.save.every) if every]
    while start < config.steps:
        last = max((start // every * every for every in breaks), default=0)
        stop = min([config.steps, *(start // every * every + every for every in breaks)])
        size = min(config.steps_per_call, stop - last)
        whole = (start - last) % size == 0 and start + size <= stop
        yield range(start + 1, start + 1 + (size if whole else 1))
        start += size if whole else 1


def stacked(feed: Callable[[int], HostBatch], config: Config) -> Callable[[range], HostBatch]:
    """The steps of a call, from 1 -> what the update takes: what the step takes, or if there may be several, what all do."""

    def several(steps: range) -> HostBatch:
        fed = [feed(step - 1) for step in steps]
        return {name: np.stack([batch[name] for batch in fed]) for name in fed[0]}

    return several if config.steps_per_call > 1 else lambda steps: feed(steps[0] - 1)


def feed(data: Dataset, model: GenerativeModel, config: Config, rows: range) -> Callable[[int], HostBatch]:
    """step -> what the update takes of this host: rows of a batch, or of as many as it wants, stacked."""
    n = model.batches

    def batches(step: int) -> HostBatch:
        if n is None:
            return data.batch(config.seed, step, rows)
        several = [data.batch(config.seed, step * n + i, rows) for i in range(n)]
        return {name: np.stack([batch[name] for batch in several]) for name in several[0]}

    return batches


def reference(data: Dataset) -> dict[str, Any]:
    """The first held-out examples, as the model sees them."""
    batch = next(iter(data.evaluation("validation", directory.REFERENCE)))
    seen = jax.device_get(data.preprocess(jax.device_put(batch), jax.random.key(0), False))
    return {name: seen[name][batch["weight"] > 0] for name in data.spec}


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}


def _begin(this: Run) -> State:
    if this.base is None:
        return this.engine.init()
    abstract = this.engine.abstract
    return this.engine.init(runs_base.read_weights(this.base, abstract.frozen or abstract.params))


def _resume(this: Run, step: int) -> State:
    abstract = this.engine.abstract
    return runs_base.with_base(checkpoint.restore(this.checkpoints, step, abstract), abstract, this.base)


def _report(metrics: dict[str, Any], config: Config, workdir: Path, logger: log.RunLog, step: int) -> dict[str, float]:
    """Scalars to the log, vectors to reference.npz."""
    log.check_finite(step, "validation", metrics)
    if config.save.best and config.save.best[0] not in metrics:
        known = ", ".join(scalars(metrics))
        raise UserError(f"save.best names {config.save.best[0]!r}, which is not measured; there are {known}")
    logger.metrics(step, "validation", scalars(metrics))
    if hosts.is_first():
        directory.write_reference(workdir, {name: value for name, value in metrics.items() if np.ndim(value)})
    return scalars(metrics)
