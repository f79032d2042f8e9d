"""The one training loop: data -> update -> log -> evaluate -> save, and at the end the test of the best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gen import alarms, checkpoint, finetune, log, parallel, pictures, run, texts
from gen import config as configs
from gen.config import Config
from gen.core import Dataset, GenerativeModel, HostBatch, State, UserError
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
    return data, model, parallel.compile(model, config.parallel, config.seed, config.data.batch_size)


def train(config: Config, workdir: Path) -> None:
    """Train in `workdir`, from the newest sound checkpoint if there is one, and test the best."""
    config = finetune.resolved(config)
    data, model, engine = build(config)
    base = finetune.chosen(config, workdir)
    if base is not None:
        finetune.check(base, engine.abstract)
    with run.locked(workdir):
        run.begin(workdir, config, data, base and finetune.facts(base, workdir))
        checkpoints = workdir / "checkpoints"
        damaged: list[str] = []
        start = checkpoint.newest(checkpoints, warn=damaged.append) or 0
        tested = (run.read_evaluation(workdir) or {"metrics": {}})["metrics"].keys() & model.protocol.keys()
        if start >= config.steps and tested:
            print(f"{workdir} is finished: {start} steps done. More of them: --steps N")
            return
        if not data.spec.keys() <= run.read_reference(workdir).keys():
            run.write_reference(workdir, reference(data))
        state, length = _resume(engine, checkpoints, start, base) if start else (_begin(engine, base), 0)
        examples = config.data.batch_size * (model.batches or 1)
        with log.opened(workdir, config.log, start, config.steps, examples, length) as logger:
            for text in damaged:
                logger.alarm(start, text)
            if start:
                logger.telemetry(start, event="restart")
                logger.say(f"resuming {workdir} at step {start}")
            if start < config.steps:
                (workdir / "evaluation.json").unlink(missing_ok=True)
                fit(config, workdir, data, model, engine, state, logger)
            test(config, workdir, data, model, engine, logger, base)


def fit(
    config: Config, workdir: Path, data: Dataset, model: GenerativeModel, engine: Engine, state: State, logger: log.Log
) -> None:
    """Updates from `state` to the last step."""
    start = int(state.step)
    due = lambda step, every: step == config.steps or (every > 0 and step % every == 0)
    sample = jax.jit(partial(model.generate, request=model.request()))
    watch = alarms.watch(config.alarms, data, model) if config.alarms.action != "off" else None
    batches = prefetch(feed(data, model, config), range(start, config.steps))
    with checkpoint.saver(workdir / "checkpoints", config.save, start) as save:
        for before, batch, waited in batches:
            step = before + 1
            state, metrics = engine.update(state, batch)
            logger.step(step, metrics, waited)
            validation: dict[str, float] = {}
            if due(step, config.evaluate_every):
                with logger.paused():
                    logger.settle()
                    split = data.evaluation("validation", config.data.batch_size)
                    validation = _report(measured(model, engine.evaluate, state, split), config, workdir, logger, step)
                    samples = sample(state, jax.random.key(0), run.read_reference(workdir))
                    show(samples, data, workdir / "samples" / f"step_{step:07d}")
            if watch and (due(step, config.evaluate_every) or due(step, config.save.every)):
                with logger.paused():
                    logger.settle()
                    heed(watch(state, {**logger.latest, **validation}), config, workdir, logger, step)
            if due(step, config.save.every):
                with logger.paused():
                    logger.settle()
                    save(state, {"metrics_bytes": logger.length(), "validation": validation})
        logger.settle()


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
        kept = checkpoint.newest(workdir / "checkpoints", warn=partial(logger.alarm, step))
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
    step = checkpoint.best(checkpoints, config.save, warn=partial(logger.alarm, config.steps))
    assert step is not None  # fit saves the last step
    state = checkpoint.restore(checkpoints, step, engine.abstract, items=("params", "ema", "stats"))
    state = finetune.standing(state, engine.abstract, base)
    state = replace(state, step=jax.device_put(np.int32(step), engine.abstract.step.sharding))
    logger.say(f"testing checkpoint {step} on {data.sizes['test']} examples")
    batches = data.evaluation("test", config.data.batch_size)
    metrics = scalars(measured(model, engine.test, state, logger.track(batches, "test")))
    log.check_finite(step, "test", metrics)
    held_out = facts(data, "test")
    common = held_out | {"checkpoint": step}
    if base is not None:
        common["base"] = finetune.opened(base.path, base.step).sha256  # read anew: the base is as it was
        assert common["base"] == base.sha256, "the base has changed while the run stood on it"
    baselines = data.baselines()
    protocol = {name: {**common, **model.protocol.get(name, {})} for name in metrics}
    metrics |= baselines
    run.write_evaluation(workdir, metrics, protocol | {name: held_out | {"baseline": True} for name in baselines})
    logger.say("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    logger.say(f"written to {workdir / 'evaluation.json'}; next: python sample.py {workdir}")


def feed(data: Dataset, model: GenerativeModel, config: Config) -> Callable[[int], HostBatch]:
    """step -> what the update takes: a batch, or as many as it wants, stacked."""
    rows, n = range(config.data.batch_size), model.batches

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


def dry_run(config: Config) -> None:
    """Print the resolved config, the sizes of the state's parts and the FLOPs of a step; nothing is written or trained."""
    config = finetune.resolved(config)
    data, model, engine = build(config)
    print(json.dumps({"identity": configs.digest(config), "config": configs.encode(config)}, indent=1))
    size = lambda tree: (
        sum(x.size for x in jax.tree.leaves(tree)),
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)),
    )
    parts = {f"params/{name}": tree for name, tree in engine.abstract.params.items()}
    parts |= {"opt_state": engine.abstract.opt_state, "ema": engine.abstract.ema, "stats": engine.abstract.stats}
    parts |= {"frozen": engine.abstract.frozen}
    for name, tree in parts.items():
        count, bytes_ = size(tree)
        print(f"{name:24s} {count:>14,} numbers {bytes_:>16,} bytes")
    cost = engine.lower(feed(data, model, config)(0)).compile().cost_analysis()
    print(
        f"{'step':24s} {cost['flops'] if cost else float('nan'):>14,.0f} FLOPs a device, on {engine.devices} device(s)"
    )


def _begin(engine: Engine, base: finetune.Base | None) -> State:
    if base is None:
        return engine.init()
    return engine.init(finetune.weights(base, engine.abstract.frozen or engine.abstract.params))


def _resume(engine: Engine, checkpoints: Path, start: int, base: finetune.Base | None) -> tuple[State, int]:
    state = finetune.standing(checkpoint.restore(checkpoints, start, engine.abstract), engine.abstract, base)
    return state, checkpoint.meta(checkpoints, start)["metrics_bytes"]


def _report(metrics: dict[str, Any], config: Config, workdir: Path, logger: log.Log, step: int) -> dict[str, float]:
    """Scalars to the log, vectors to reference.npz."""
    log.check_finite(step, "validation", metrics)
    if config.save.best and config.save.best[0] not in metrics:
        known = ", ".join(scalars(metrics))
        raise UserError(f"save.best names {config.save.best[0]!r}, which is not measured; there are {known}")
    logger.metrics(step, "validation", scalars(metrics))
    run.write_reference(workdir, {name: value for name, value in metrics.items() if np.ndim(value)})
    return scalars(metrics)
