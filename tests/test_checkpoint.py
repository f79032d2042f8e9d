"""Checkpoints are restored as they were saved, or a message says that they are damaged. Training never restarts silently."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen.config import Save
from gen.core import State
from gen.errors import UserError
from gen.runs import checkpoint
from gen.runtime import engine

NEVER = pytest.fail


def state(step: int) -> State:
    params = {"net": {"kernel": jnp.arange(12.0).reshape(3, 4) + step, "bias": jnp.full(4, step, jnp.bfloat16)}}
    return State(
        step=jnp.int32(step),
        params=params,
        opt_state={"net": optax.adam(1e-3).init(params)},
        ema={"net": params["net"]["kernel"] / 3},
    )


def saved(folder: Path, config: Save, scores: dict[int, float]) -> Path:
    with checkpoint.saver(folder, config, 0) as save:
        for step, score in scores.items():
            save(state(step), checkpoint.Facts(step, {"loss": score}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "checkpoints", Save(keep=3), {1: 0.0, 2: 0.0, 3: 0.0})


def abstract() -> State:
    return engine.on_one_device(jax.eval_shape(lambda: state(0)))


def test_a_state_comes_back_as_it_was(folder):
    restored = checkpoint.restore(folder, 3, abstract())
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state(3)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(restored) == jax.tree.structure(state(3))
    assert checkpoint.read_facts(folder, 3).metrics_bytes == 3


def test_parameters_are_restored_without_the_optimizer(folder):
    shutil.rmtree(folder / "3" / "opt_state")
    restored = checkpoint.restore(folder, 3, abstract(), items=("params", "ema"))
    np.testing.assert_array_equal(restored.params["net"]["kernel"], state(3).params["net"]["kernel"])
    assert restored.opt_state == {}


def test_averages_and_moments_of_an_older_run_in_bfloat16_are_read_as_float32(tmp_path):
    """Before version 0.3 they had the dtype of the parameters."""
    old = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, state(3))
    new = replace(state(3), params=old.params)
    with checkpoint.saver(tmp_path, Save(), 0) as save:
        save(old)
    found = checkpoint.restore(tmp_path, 3, engine.on_one_device(jax.eval_shape(lambda: new)))
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, new)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), found, old)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    config = Save(keep=2, best=("loss", "min"))
    folder = saved(tmp_path / "c", config, {10: 3.0, 20: 1.0, 30: 2.0, 40: 2.5, 50: 4.0})
    assert checkpoint.steps(folder) == [20, 40, 50]
    assert checkpoint.best(folder, config, NEVER) == 20
    assert checkpoint.best(folder, Save(best=("loss", "max")), NEVER) == 50
    assert checkpoint.best(folder, Save(), NEVER) == 50
    assert checkpoint.newest(folder, NEVER) == 50


@pytest.mark.parametrize("end", ["min", "max"])
def test_a_checkpoint_whose_metric_is_nan_is_never_the_best(end, tmp_path):
    config = Save(keep=2, best=("loss", end))
    folder = saved(tmp_path / "c", config, {10: 2.0, 20: math.nan, 30: 2.5, 40: math.nan, 50: math.nan})
    assert checkpoint.best(folder, config, NEVER) == {"min": 10, "max": 30}[end]
    assert 20 not in checkpoint.steps(folder)


def array_file(folder: Path, step: int) -> Path:
    files = [p for p in (folder / str(step) / "params").rglob("*") if p.is_file() and "kernel" in str(p.parent)]
    return max(files, key=lambda p: p.stat().st_size)


def flip_a_bit(folder: Path) -> None:
    file = array_file(folder, 3)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    file = array_file(folder, 3)
    file.write_bytes(file.read_bytes()[:-3])


def newer(folder: Path) -> None:
    path = folder / "3" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


DAMAGES = {
    "a flipped bit": (flip_a_bit, "has changed"),
    "a truncated file": (truncate, "has changed"),
    "a missing shard": (lambda folder: array_file(folder, 3).unlink(), "is missing"),
    "a file too many": (lambda folder: (folder / "3" / "params" / "extra").write_text("x"), "was added"),
    "no manifest": (lambda folder: (folder / "3" / "manifest.json").unlink(), "no manifest"),
    "half a manifest": (lambda folder: (folder / "3" / "manifest.json").write_text('{"format"'), "manifest is damaged"),
    "an odd manifest": (
        lambda folder: (folder / "3" / "manifest.json").write_text('{"format": 1, "sha256": []}'),
        "manifest is damaged",
    ),
    "a newer format": (newer, "format 99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_previous_step_is_used(folder, damage):
    inflict, message = DAMAGES[damage]
    inflict(folder)
    warnings: list[str] = []
    assert checkpoint.newest(folder, warnings.append) == 2
    assert len(warnings) == 1
    assert f"{folder}/3" in warnings[0]
    assert message in warnings[0]


def test_no_sound_checkpoint_is_an_error_and_an_empty_folder_gives_none(folder, tmp_path):
    for step in (1, 2, 3):
        (folder / str(step) / "manifest.json").unlink()
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        checkpoint.newest(folder, lambda _: None)
    assert checkpoint.newest(tmp_path / "nothing", NEVER) is None


def test_a_saver_sets_later_steps_aside_until_a_later_one_is_sealed_and_removes_leftovers_of_a_kill(folder):
    flip_a_bit(folder)
    leftovers = [folder / "7.unsealed.orbax-checkpoint-tmp", folder / "6.unsealed"]
    for leftover in leftovers:
        leftover.mkdir()
    with checkpoint.saver(folder, Save(), 1) as save:
        assert checkpoint.steps(folder) == [1]
        save(state(2)).result()
        assert (folder / "3.unsound").is_dir()
        assert not (folder / "2.unsound").exists()
        save(state(3)).result()
        assert not (folder / "3.unsound").exists()
    assert checkpoint.newest(folder, NEVER) == 3
    assert not any(leftover.exists() for leftover in leftovers)


def test_a_checkpoint_of_another_model_gives_a_short_error(folder):
    other = replace(abstract(), params={"other": abstract().params["net"]})
    with pytest.raises(UserError, match="not of this model"):
        checkpoint.restore(folder, 3, other)


def test_a_kept_count_below_two_is_refused():
    with pytest.raises(UserError, match="at least 2"):
        Save(keep=1)
