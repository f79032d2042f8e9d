"""The best evaluation always has a checkpoint, also if it is not at a step at which the run saves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gen import axis
from gen.config import Config, Log, Parallel, Save
from gen.core import Batch, Family, Feature, GenerativeModel, Key, Metrics, Request, State, Sums
from gen.data.images import Images
from gen.runs import checkpoint, directory
from gen.train import train


@dataclass(frozen=True)
class Clock(Family):
    """Its held-out "distance" is the distance of the step from 12, and it learns nothing."""

    def build(self, spec: Mapping[str, Feature], steps: int) -> GenerativeModel:
        def init(key: Key) -> State:
            return State(jnp.int32(0), {"part": {"weight": jnp.ones(3)}}, {})

        def update(state: State, batch: Batch, key: Key) -> tuple[State, Metrics]:
            return replace(state, step=state.step + 1), {"loss": axis.mean(jnp.ones(()))}

        def evaluate(state: State, batch: Batch, key: Key) -> Sums:
            weight = axis.total(batch["weight"].sum())
            return {"distance": (jnp.abs(state.step - 12) * weight, weight)}

        def generate(state: State, key: Key, given: Any, request: Request) -> dict[str, jax.Array]:
            return {"samples": jnp.zeros((request.n, *spec["image"].shape))}

        return GenerativeModel(init, update, evaluate, generate, Request)


CONFIG = Config(
    model=Clock(),
    data=Images(name="digits", batch_size=8),
    steps=20,
    evaluate_every=4,
    save=Save(every=10, best=("distance", "min")),
    log=Log(every=5, tensorboard=False, request=("n=2",)),
    parallel=Parallel(devices=1),
)


def used(workdir: Path) -> object:
    """Returns the step of the checkpoint whose test metrics the run reports."""
    evaluation = directory.read_evaluation(workdir)
    assert evaluation is not None
    return evaluation.protocol["distance"]["checkpoint"]


@pytest.fixture
def saves(monkeypatch) -> list[tuple[int, bool]]:
    """Returns a list to which each save adds its step, and whether `save.every` asked for it."""
    seen, save = [], checkpoint.Saver.__call__

    def note(self, state, facts=checkpoint.Facts()):
        seen.append((int(state.step), facts.due))
        return save(self, state, facts)

    monkeypatch.setattr(checkpoint.Saver, "__call__", note)
    return seen


def test_the_best_evaluation_is_saved_and_a_resumed_run_knows_it(saves, tmp_path):
    # Evaluations at 4, 8, 12, 16 and 20; regular saves at 10 and 20. Step 16 is worse than step 12.
    train(CONFIG, tmp_path / "whole")
    assert saves == [(4, False), (8, False), (10, True), (12, False), (20, True)]
    assert used(tmp_path / "whole") == 12
    assert checkpoint.steps(tmp_path / "whole" / "checkpoints") == [12, 20]

    saves.clear()
    train(replace(CONFIG, steps=10), tmp_path / "parts")
    assert used(tmp_path / "parts") == 10
    # The last step of the first part is evaluated as well, and is the best of that part.
    train(CONFIG, tmp_path / "parts")
    assert saves == [(4, False), (8, False), (10, True), (12, False), (20, True)]
    assert used(tmp_path / "parts") == 12

    saves.clear()
    train(replace(CONFIG, steps=28), tmp_path / "whole")
    assert saves == [(28, True)], "an evaluation after a restart is compared with the best before it"
    assert used(tmp_path / "whole") == 12


def test_without_a_metric_only_regular_checkpoints_are_saved(saves, tmp_path):
    train(replace(CONFIG, save=Save(every=10)), tmp_path / "run")
    assert saves == [(10, True), (20, True)]
    best = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    train(CONFIG, tmp_path / "best")
    assert (tmp_path / "best" / "metrics.jsonl").read_bytes() == best


def test_a_rollback_does_not_return_to_a_checkpoint_that_only_save_best_asked_for(tmp_path):
    train(CONFIG, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert not checkpoint.read_facts(folder, 12).due
    (folder / "20").rename(folder / "20.aside")
    assert checkpoint.newest(folder, pytest.fail) == 12
    assert checkpoint.scheduled(folder) is None
