"""The one training loop: data -> update -> log -> evaluate -> save, and at the end the test of the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gen import alarms, checkpoint, faults, finetune, hosts, log, parallel, pictures, preemption, profile, run, texts
from gen.config import Config
from gen.core import Dataset, GenerativeModel, HostBatch, Requeue, State, UserError
from gen.data import tokenizers
from gen.data.prefetch import prefetch
from gen.data.preprocess import applied
from gen.metrics.split import facts, measured
from gen.parallel import Engine


def build(config: Config) -> tuple[Dataset, GenerativeModel, Engine]:
    """The three parts of a run. Raises: UserError for whatever a person got wrong, before anything is written."""
    parallel.start(config.parallel)
    data = finetune.data(config)
    model = applied(config.model.build(data.spec, config.steps), data.preprocess)
    return (
        data,
        model,
        parallel.compile(model, config.parallel, config.seed, config.data.batch_size, faults.guards(config.faults)),
    )


def train(config: Config, workdir: Path) -> None:
    """Train in `workdir`, from the newest sound checkpoint if there is one, and test the best. On several hosts, each calls it.

    Raises: Requeue if the process is to be started again: it was told to stop, or another host is gone.
    """
    begun = time.monotonic()
    with preemption.leaving(), ExitStack() as held:
        config = finetune.resolved(config)
        data, model, engine = build(config)
        held.enter_context(hosts.together())
        base = finetune.chosen(config, workdir)
        if base is not None:
            finetune.check(base, engine.abstract)
        found = hosts.told(lambda: open_run(workdir, config, data, model, base, held))
        if found["data"] != data.digest:
            raise UserError(f"host {hosts.index()} has other data than the first host; give each the same")
        if found["finished"]:
            if hosts.first():
                print(f"{workdir} is finished: {found['start']} steps done. More of them: --steps N")
            return
        start, meta = found["start"], found["meta"]
        state = _resume(engine, workdir / "checkpoints", start, base) if start else _begin(engine, base)
        examples = config.data.batch_size * (model.batches or 1)
        length = meta.get("metrics_bytes", 0)
        with log.opened(workdir, config.log, start, config.steps, examples, length) as logger:
            for text in found["damaged"]:
                logger.alarm(start, text)
            if start:
                logger.telemetry(start, event="restart", seconds=time.monotonic() - begun)
                logger.say(f"resuming {workdir} at step {start}")
            if start < config.steps:
                record = faults.Record(config.faults, start, meta.get("faults", []))
                fit(config, workdir, data, model, engine, state, logger, record, base)
            test(config, workdir, data, model, engine, logger, base)


def open_run(
    workdir: Path, config: Config, data: Dataset, model: GenerativeModel, base: finetune.Base | None, held: ExitStack
) -> dict[str, Any]:
    """Take the run directory, which is `held` from here on, and say where its run stands. The first host does it for all.

    Raises: UserError if it is another run's, in use, or without a sound checkpoint.
    """
    held.enter_context(run.locked(workdir))
    run.begin(workdir, config, data, base and finetune.facts(base, workdir))
    checkpoints = workdir / "checkpoints"
    damaged: list[str] = []
    start = checkpoint.newest(checkpoints, warn=damaged.append) or 0
    tested = (run.read_evaluation(workdir) or {"metrics": {}})["metrics"].keys() & model.protocol.keys()
    finished = start >= config.steps and bool(tested)
    if not finished and not data.spec.keys() <= run.read_reference(workdir).keys():
        run.write_reference(workdir, reference(data))
    if start < config.steps:
        (workdir / "evaluation.json").unlink(missing_ok=True)
    meta = checkpoint.meta(checkpoints, start) if start else {}
    return {"data": data.digest, "start": start, "meta": meta, "damaged": damaged, "finished": finished}


def fit(
    config: Config,
    workdir: Path,
    data: Dataset,
    model: GenerativeModel,
    engine: Engine,
    state: State,
    logger: log.Log,
    record: faults.Record,
    base: finetune.Base | None,
) -> None:
    """Updates from `state` to the last step. Raises: Requeue if it was told to stop, with the state saved."""
    start = int(state.step)
    checkpoints = workdir / "checkpoints"
    due = lambda step, every: step == config.steps or (every > 0 and step % every == 0)
    given = {name: run.read_reference(workdir)[name] for name in data.spec}
    sample = engine.compiled(lambda state: model.generate(state, jax.random.key(0), given, request=model.request()))
    watch = alarms.watch(config.alarms, data, model, engine.compiled) if config.alarms.action != "off" else None
    batches = prefetch(feed(data, model, config, engine.rows), range(start, config.steps))
    trace = profile.tracer(config.profile, workdir)
    step, leave = start, False
    with (
        preemption.noticed(config.parallel.grace_seconds) as notice,
        checkpoint.saver(checkpoints, config.save, start) as save,
        hosts.together(),
    ):
        saved: Future[None] | None = None

        def keep(validation: dict[str, float]) -> Future[None]:
            meta = {"metrics_bytes": logger.length(), "validation": validation, "faults": record.kept(step)}
            return save(engine.whole(state), meta)

        for before, batch, waited in batches:
            step = before + 1
            trace(step)
            state, metrics = engine.update(state, batch, notice(), record.limit(step))
            read = logger.step(step, metrics, waited)
            leave = any(values["notice"] for _, values in read)
            evaluating, saving = due(step, config.evaluate_every), due(step, config.save.every)
            if evaluating or saving or leave:
                with logger.paused():
                    read += logger.settle()
            bad = [s for s, values in read if record.read(s, values)]
            back = bool(bad) and config.faults.action == "rollback"
            if leave:
                if not back:  # else the last checkpoint is gone on from, as if these steps had not been
                    keep({})
                break
            if back:
                with logger.paused():
                    if saved:
                        saved.result()
                    state, source = roll_back(engine, checkpoints, config, step, base)
                    logger.alarm(step, f"rolled back to the weights of step {source}")
            validation: dict[str, float] = {}
            if evaluating:
                with logger.paused():
                    split = data.evaluation("validation", config.data.batch_size, engine.rows)
                    validation = _report(measured(model, engine.evaluate, state, split), config, workdir, logger, step)
                    samples = sample(state)
                    if hosts.first():
                        show(samples, data, workdir / "samples" / f"step_{step:07d}")
            if watch and (evaluating or saving):
                with logger.paused():
                    heed(watch(state, {**logger.latest, **validation}), config, workdir, logger, step)
            if saving:
                with logger.paused():
                    saved = keep(validation)
        trace(None)
    if leave:
        logger.telemetry(step, event="preempted")
        raise Requeue(f"stopped at step {step} and saved, as asked; the same command goes on")


def roll_back(
    engine: Engine, checkpoints: Path, config: Config, step: int, base: finetune.Base | None
) -> tuple[State, int]:
    """The state of the last checkpoint that was due, or of the beginning, with the number of this step: the batches between
    are not read again."""
    source = hosts.told(lambda: checkpoint.scheduled(checkpoints, config.save, warn=lambda text: None)) or 0
    state = _resume(engine, checkpoints, source, base) if source else _begin(engine, base)
    return replace(state, step=jax.device_put(np.int32(step), state.step.sharding)), source


def show(samples: dict[str, Any], data: Dataset, path: Path) -> None:
    """What was generated as a picture or a text."""
    path.parent.mkdir(exist_ok=True)
    if "tokens" in data.spec:
        made = texts.samples(samples, tokenizers.load(data.files["tokenizer.json"]))
        run.write_bytes(path.with_suffix(".txt"), (texts.RULE.join(made) + "\n").encode())
    else:
        run.write_bytes(path.with_suffix(".png"), pictures.picture(samples))


def heed(found: tuple[dict[str, float], list[str]], config: Config, workdir: Path, logger: log.Log, step: int) -> None:
    """Numbers and alarms to the telemetry, alarms to the person too. Raises: UserError if they are to stop the run."""
    numbers, texts = found
    logger.telemetry(step, **numbers)
    for text in texts:
        logger.alarm(step, text)
    if texts and config.alarms.action == "stop":
        kept = hosts.told(lambda: checkpoint.newest(workdir / "checkpoints", warn=partial(logger.alarm, step)))
        raise UserError(
            f"stopped by {len(texts)} alarm(s) at step {step}; the last checkpoint before is "
            f"{'none' if kept is None else kept}. To go on all the same: --alarms.action warn"
        )


def test(
    config: Config,
    workdir: Path,
    data: Dataset,
    model: GenerativeModel,
    engine: Engine,
    logger: log.Log,
    base: finetune.Base | None,
) -> None:
    """Metrics of the best checkpoint on the test split, into evaluation.json."""
    checkpoints = workdir / "checkpoints"
    step = hosts.told(lambda: checkpoint.best(checkpoints, config.save, warn=partial(logger.alarm, config.steps)))
    assert step is not None  # fit saves the last step
    state = checkpoint.restore(checkpoints, step, engine.abstract, items=("params", "ema", "stats"))
    state = finetune.standing(state, engine.abstract, base)
    state = replace(state, step=jax.device_put(np.int32(step), engine.abstract.step.sharding))
    logger.say(f"testing checkpoint {step} on {data.sizes['test']} examples")
    batches = data.evaluation("test", config.data.batch_size, engine.rows)
    metrics = scalars(measured(model, engine.test, state, logger.track(batches, "test")))
    log.check_finite(step, "test", metrics)
    held_out = facts(data, "test")
    common = held_out | {"checkpoint": step}
    if base is not None:
        common["base"] = finetune.opened(base.path, base.step).sha256  # read anew: the base is as it was
        assert common["base"] == base.sha256, "the base has changed while the run stood on it"
    if not hosts.first():
        return
    baselines = data.baselines()
    protocol = {name: {**common, **model.protocol.get(name, {})} for name in metrics}
    metrics |= baselines
    run.write_evaluation(workdir, metrics, protocol | {name: held_out | {"baseline": True} for name in baselines})
    logger.say("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    logger.say(f"written to {workdir / 'evaluation.json'}; next: python sample.py {workdir}")


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
    batch = next(iter(data.evaluation("validation", run.REFERENCE)))
    seen = jax.device_get(data.preprocess(jax.device_put(batch), jax.random.key(0), False))
    return {name: seen[name][batch["weight"] > 0] for name in data.spec}


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}


def _begin(engine: Engine, base: finetune.Base | None) -> State:
    if base is None:
        return engine.init()
    return engine.init(finetune.weights(base, engine.abstract.frozen or engine.abstract.params))


def _resume(engine: Engine, checkpoints: Path, step: int, base: finetune.Base | None) -> State:
    return finetune.standing(checkpoint.restore(checkpoints, step, engine.abstract), engine.abstract, base)


def _report(metrics: dict[str, Any], config: Config, workdir: Path, logger: log.Log, step: int) -> dict[str, float]:
    """Scalars to the log, vectors to reference.npz."""
    log.check_finite(step, "validation", metrics)
    if config.save.best and config.save.best[0] not in metrics:
        known = ", ".join(scalars(metrics))
        raise UserError(f"save.best names {config.save.best[0]!r}, which is not measured; there are {known}")
    logger.metrics(step, "validation", scalars(metrics))
    if hosts.first():
        run.write_reference(workdir, {name: value for name, value in metrics.items() if np.ndim(value)})
    return scalars(metrics)
