"""A run in training: its parts, the step at which it starts, and the files that it writes at the end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from gen import config as configs
from gen import files
from gen.config import Config
from gen.core import Dataset, GenerativeModel, RunView, State
from gen.errors import UserError, say
from gen.runs import base as runs_base
from gen.runs import checkpoint, curve, directory, owner
from gen.runtime import hosts
from gen.runtime.engine import Engine


@dataclass(frozen=True)
class Run:
    """A run in training: its config, directory, data, model, engine and base."""

    config: Config
    workdir: Path
    data: Dataset
    model: GenerativeModel
    engine: Engine
    base: runs_base.Base | None

    @property
    def checkpoints(self) -> Path:
        return self.workdir / "checkpoints"

    def state_at(self, step: int) -> State:
        """Returns the state at a step, on the devices: the checkpoint of this step, or for step 0 the initial state.

        If the run has a base, the initial state has the base's weights.

        Raises: UserError if the checkpoint does not fit the model, or is a copy of another step.
        """
        abstract = self.engine.abstract
        if step:
            state = checkpoint.restore(self.checkpoints, step, abstract)
            # Older versions of gen stored the step only in the state, so `checkpoint.damage` can't notice a copy.
            if int(state.step) != step:
                raise UserError(
                    f"{self.checkpoints / str(step)} is a copy of step {int(state.step)}; the fix: remove it, and an earlier "
                    "checkpoint is used"
                )
            return runs_base.with_base(state, abstract, self.base)
        if self.base is None:
            return self.engine.init()
        # A run that trains an adapter keeps the base's weights in `frozen`. Other runs continue to train them, in `params`.
        state = self.engine.init(runs_base.read_weights(self.base, abstract.frozen or abstract.params))
        return runs_base.with_stats(state, self.base, self.model.inherited)

    def state_to_test(self, step: int) -> State:
        """Returns the state of a checkpoint on the devices, with an empty optimizer state, for the test metrics."""
        abstract = self.engine.abstract
        state = checkpoint.restore(self.checkpoints, step, abstract, items=("params", "ema", "stats"))
        return self.renumber(runs_base.with_base(state, abstract, self.base), step)

    def renumber(self, state: State, step: int) -> State:
        """Returns the state with `step` as its step number."""
        return replace(state, step=jax.device_put(np.int32(step), self.engine.abstract.step.sharding))

    def view(self) -> RunView:
        """Returns the parts of the run that a medium may read."""
        return RunView(
            self.config.data,
            self.data.spec,
            partial(_read_file, self.data),
            partial(directory.read_reference, self.workdir, self.data.spec),
            lambda data_dir=None: self.data,
        )


def _read_file(data: Dataset, name: str) -> bytes:
    if name not in data.files:
        raise UserError(f"the data set keeps no file {name}")
    return data.files[name]


class Start(NamedTuple):
    """The step and the weights from which training starts. The first host decides them, and tells the others."""

    kind: Literal["scratch", "base", "resume"]
    """scratch: random parameters. base: the weights of another run. resume: a checkpoint of this run."""
    step: int
    """Number of steps that are already done."""
    facts: checkpoint.Facts
    """`Facts` of the checkpoint to resume from, such as its validation metrics. Without a checkpoint: the defaults."""
    damaged: list[str]
    """Warnings: a line for each newer checkpoint that is damaged, and for reference.npz if it had to be written again."""
    finished: bool
    """Whether all steps are done, and the test metrics are written."""


def open_start(run: Run, held: ExitStack) -> Start:
    """Decides from which step and weights training starts. All hosts call it.

    Locks the run directory until `held` is closed, and writes the files that checkpoints don't hold, such as config.json. A new
    run starts at step 0, and a resumed run at its newest undamaged checkpoint.

    Raises: UserError if the directory belongs to another run, is in use, or has checkpoints that are all damaged.
    """
    found = hosts.broadcast(partial(_find_start, run, held))
    # Between hosts the result is sent as JSON, which turns a NamedTuple into a list.
    kind, step, facts, damaged, finished = found
    return Start(kind, step, checkpoint.Facts(*facts), damaged, finished)


def _find_start(run: Run, held: ExitStack) -> Start:
    """Locks and checks the run directory, writes its files, and returns the start. Only the first host calls it."""
    config, workdir, data = run.config, run.workdir, run.data
    held.enter_context(directory.lock_run(workdir))
    base = run.base and run.base.record(workdir)
    # Everything is checked before the first file is written.
    identities = directory.check_same_run(workdir, config, data, base)
    # The log is not open yet, so warnings are collected for it.
    damaged: list[str] = []
    step = checkpoint.newest(run.checkpoints, warn=damaged.append) or 0
    facts = checkpoint.read_facts(run.checkpoints, step) if step else checkpoint.Facts()
    curve.check_unchanged(workdir, step, facts)
    directory.write_run(workdir, config, data, base, identities)
    finished = step >= config.steps and _is_tested(run)
    damaged += _restore_reference(run, facts)
    if step < config.steps:
        # Its scores are of an earlier checkpoint: the run was finished before, and is now trained for more steps.
        (workdir / "evaluation.json").unlink(missing_ok=True)
    if step:
        return Start("resume", step, facts, damaged, finished)
    return Start("scratch" if run.base is None else "base", 0, facts, damaged, finished)


def _restore_reference(run: Run, facts: checkpoint.Facts) -> list[str]:
    """Writes the examples of reference.npz if they are missing or have changed.

    facts: metadata of the checkpoint to resume from, with hashes of the examples. Returns a warning if examples were
    lost or damaged. []: they are unchanged, or the run is new.
    """
    path, spec = run.workdir / "reference.npz", run.data.spec
    try:
        found = directory.read_reference(run.workdir, spec)
    except UserError:
        found = None
    if found is not None and spec.keys() <= found.keys():
        known = owner.parse(facts.owner)
        examples = owner.sums_of({name: found[name] for name in spec})
        if known is None or known.reference == examples:
            return []
    lost = facts.step is not None or path.exists()
    if path.is_file():
        # Its other arrays come from an evaluation, perhaps of another run. The next evaluation writes them again.
        path.unlink()
    directory.write_reference(run.workdir, reference_examples(run.data))
    return [f"{path} was lost or damaged; its examples are written again"] if lost else []


def _is_tested(run: Run) -> bool:
    """Returns whether evaluation.json has the model's test metrics, and not only metrics that gen.evaluate has added."""
    evaluation = directory.read_evaluation(run.workdir) or directory.Evaluation()
    by_checkpoint = {name for name, entry in evaluation.protocol.items() if "checkpoint" in entry}
    return bool(evaluation.metrics.keys() & (run.model.protocol.keys() or by_checkpoint))


def report_finished(run: Run, start: Start) -> None:
    """Prints that nothing is left to do, and how to train for more steps."""
    for text in start.damaged:
        say(f"warning: {text}")
    # A schedule that reads the number of steps makes it a part of the run's identity.
    more = "" if "steps" in configs.identity(run.config) else ". To train for more: --steps N"
    say(f"{run.workdir} is finished: {start.step} steps are done{more}")


def reference_examples(data: Dataset) -> dict[str, np.ndarray]:
    """Returns {feature: array [n, ...]} of the first n <= 64 validation examples, after preprocessing."""
    batch = next(iter(data.evaluation("validation", directory.REFERENCE_EXAMPLES)))
    # A fixed key: a resumed run must get the same examples, because its checkpoints hold their hashes.
    seen = jax.device_get(data.preprocess(jax.device_put(batch), jax.random.key(0), False))
    return {name: seen[name][batch["weight"] > 0] for name in data.spec}


def write_evaluation(run: Run, step: int, metrics: dict[str, float], facts: dict[str, object]) -> dict[str, float]:
    """Writes the test metrics of a checkpoint and the scores of trivial baselines to evaluation.json, each with its protocol.

    step: step of the checkpoint. facts: {setting: value} that is the same for all metrics, such as the split; it is
    added to the protocol of each metric. Returns {metric: value} of all metrics that were written.

    Raises: UserError if the base has changed since it was opened.
    """
    common = facts | {"checkpoint": step}
    if run.base is not None:
        runs_base.check_unchanged(run.base)
        common["base"] = run.base.sha256
    baselines = run.data.baselines()
    protocol = {name: {**common, **run.model.protocol.get(name, {})} for name in metrics}
    protocol |= {name: facts | {"baseline": True} for name in baselines}
    directory.write_evaluation(run.workdir, metrics | baselines, protocol)
    return metrics | baselines


def write_samples(folder: Path, name: str, shown: Mapping[str, bytes]) -> None:
    """Writes {file: content} of `Shown.files` into a folder, each as `name` with the suffix of its file: NAME.png, NAME.txt."""
    folder.mkdir(exist_ok=True)
    for file, content in shown.items():
        files.write_bytes(folder / f"{name}{Path(file).suffix}", content)
