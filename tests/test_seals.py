"""A checkpoint gets its name only when it is complete and sealed. It records the run to which it belongs.

Files of the run that were lost or changed after a checkpoint was sealed are noticed.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_checkpoint import NEVER, saved, state

from gen import config as configs
from gen.config import Config, Log, Parallel, Save
from gen.errors import UserError
from gen.runs import base as runs_base
from gen.runs import checkpoint, curve, directory, manifest, owner
from gen.runs.trained import open_run
from gen.train import train
from tests.old_runs import edit, make_old, reseal


def disown(run: Path, step: int) -> None:
    """Makes a checkpoint that of a run with another config."""
    of = checkpoint.read_facts(run / "checkpoints", step).owner
    assert of is not None
    reseal(run / "checkpoints" / str(step), owner={**of, "identity": "0" * 64})


@pytest.fixture(scope="module")
def config(tiny) -> Config:
    quick: dict[str, Any] = {"steps": 4, "steps_per_call": 1, "evaluate_every": 2, "save": Save(every=2)}
    return replace(tiny("vae_digits"), **quick, log=Log(every=1, tensorboard=False), parallel=Parallel(devices=1))


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        workdir = tmp_path_factory.mktemp("runs") / "run"
        train(config, workdir)
        yield workdir


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


# The first seal


def test_a_save_that_ends_before_its_seal_leaves_no_step(tmp_path, monkeypatch):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "seal", full)
        with pytest.raises(UserError, match=r"No space left on device.*undamaged checkpoints: none"):
            saved(folder, Save(), {1: 0.0})
    assert [path.name for path in folder.iterdir()] == ["1.unsealed"]
    assert checkpoint.newest(folder, NEVER) is None
    saved(folder, Save(), {1: 0.0})
    assert [path.name for path in folder.iterdir()] == ["1"]
    assert checkpoint.newest(folder, NEVER) == 1


def test_steps_that_an_older_version_never_sealed_are_set_aside(tmp_path):
    folder = saved(tmp_path / "checkpoints", Save(), {1: 0.0})
    reseal(folder / "1", step=None)
    (folder / "1" / "manifest.json").unlink()
    lines: list[str] = []
    assert checkpoint.newest(folder, lines.append) is None
    assert "was ever sealed" in lines[0] and "step 0" in lines[0]
    with checkpoint.saver(folder, Save(), 0) as save:
        assert (folder / "1.unsound").is_dir()
        save(state(2))
    assert [path.name for path in folder.iterdir()] == ["2"]


def test_if_one_step_was_sealed_training_does_not_begin_again(tmp_path):
    folder = saved(tmp_path / "checkpoints", Save(), {1: 0.0, 2: 0.0})
    (folder / "1" / "manifest.json").write_text("{")
    reseal(folder / "2", step=None)
    (folder / "2" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no undamaged checkpoint"):
        checkpoint.newest(folder, lambda text: None)


def test_a_file_that_changes_after_it_was_hashed_is_hashed_again(tmp_path, monkeypatch):
    read: list[str] = []
    plain = manifest._sum
    monkeypatch.setattr(manifest, "_sum", lambda file: (read.append(file.name), plain(file))[1])
    written = tmp_path / "3.unsealed.tmp"
    written.mkdir()
    for name in ("same", "other"):
        (written / name).write_text("before")
    with manifest.hash_ahead(tmp_path, "3.unsealed*"):
        while len(read) < 2:
            time.sleep(0.01)
    (written / "other").write_text("after!")
    step = written.rename(tmp_path / "3")
    manifest.seal(step)
    assert sorted(read) == ["other", "other", "same"]
    assert manifest.broken(step) is None
    sums = json.loads((step / "manifest.json").read_text())["sha256"]
    assert sums["other"] == hashlib.sha256(b"after!").hexdigest()


# Whose checkpoint it is


@pytest.mark.slow
def test_a_checkpoint_that_was_copied_to_another_number_counts_as_damaged(run, config, capsys):
    folder = run / "checkpoints"
    shutil.copytree(folder / "2", folder / "3")
    shutil.copytree(folder / "2", folder / "80")
    assert checkpoint.damage(folder, 3) == "it is a copy of step 2"
    train(config, run)
    said = capsys.readouterr().out
    assert f"{folder}/80 is damaged and not used: it is a copy of step 2" in said
    assert "finished: 4 steps" in said


def test_a_copy_of_an_older_version_is_named_when_it_is_restored(run, config):
    make_old(run)
    (run / "checkpoints" / "4").rename(run / "checkpoints" / "6")
    with pytest.raises(UserError, match="6 is a copy of step 4"):
        train(replace(config, steps=8), run)


def test_a_checkpoint_of_another_run_counts_as_damaged(run):
    disown(run, 4)
    assert checkpoint.damage(run / "checkpoints", 4) == "it was saved with another config.json"
    assert open_run(run).choose_step() == 2
    with pytest.raises(UserError, match=r"another config\.json"):
        open_run(run).choose_step(4)
    # If no checkpoint knows the config, it is the config that was replaced.
    disown(run, 2)
    with pytest.raises(UserError, match=r"config\.json has changed since checkpoint 4 was saved"):
        open_run(run)


OPENED: dict[str, Callable[[Path, Config], object]] = {
    "open": lambda run, config: open_run(run),
    "init-from": lambda run, config: runs_base.open_base(run),
    "train": lambda run, config: train(config, run),
}


@pytest.mark.parametrize("how", OPENED)
def test_a_lost_or_changed_file_of_a_run_is_named(how, run, config):
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for name, change in {
        "spec.json": lambda found: found["image"].update(levels=18),
        "config.json": lambda found: found["config"].update(seed=5),
    }.items():
        edit(run / name, change)
        with pytest.raises(UserError, match=rf"{name} has changed"):
            OPENED[how](run, config)
        (run / name).unlink()
        with pytest.raises(UserError, match=rf"{name}"):
            OPENED[how](run, config)
        (run / name).write_bytes(before[run / name])
    OPENED[how](run, config)


def test_a_run_without_its_config_is_not_continued(run, config):
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"has checkpoints, but its config\.json is lost"):
        train(replace(config, seed=7), run)
    assert not (run / "config.json").exists()


def test_an_edited_launch_field_is_a_warning(run, config, capsys):
    edit(run / "config.json", lambda found: found["config"]["save"].update(best=["nothing", "min"]))
    open_run(run)
    assert "config.json has changed since gen wrote it, in a field" in capsys.readouterr().err
    train(config, run)
    capsys.readouterr()
    open_run(run)
    assert capsys.readouterr().err == ""


def test_a_run_of_an_older_version_goes_on_with_a_warning(run, config, capsys):
    make_old(run)
    assert open_run(run).choose_step() == 4
    assert "older version of gen" in capsys.readouterr().err
    train(config, run)
    assert "finished: 4 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_an_older_version_trains_on(run, config):
    curves = (run / "metrics.jsonl").read_bytes()
    make_old(run)
    train(replace(config, steps=6), run)
    assert (run / "metrics.jsonl").read_bytes().startswith(curves)
    assert checkpoint.read_facts(run / "checkpoints", 6).step == 6


def test_checkpoints_of_a_version_with_other_names_stay_sound(run, config):
    """A newer version of gen may have other names of classes and more fields, so another digest of the same identity."""
    edit(run / "config.json", lambda found: found.update(identity="0" * 64))
    edit(run / "config.json", lambda found: found.update(sha256=owner.sum_of_json(found)))
    for step in (2, 4):
        disown(run, step)
    train(config, run)
    facts = directory.read_config(run)[1]
    assert facts.identity == configs.digest(config) and list(facts.earlier) == ["0" * 64]
    assert open_run(run).choose_step(2) == 2


# The files around it


def test_changed_metrics_are_named_and_a_checkpoint_that_agrees_is_the_fix(run):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    other_digit = bytes([whole[-3] ^ 1])
    for content, wrong in {
        bytes(len(whole)): "has changed since",
        b"".join(lines[:-1]): "is shorter than when",
        whole[:-3] + other_digit + b"}\n": "has changed since",
    }.items():
        path.write_bytes(content)
        facts = checkpoint.read_facts(run / "checkpoints", 4)
        for use in (lambda: curve.check_unchanged(run, 4, facts), lambda: curve.read_curve(run, "train")):  # noqa: B023
            with pytest.raises(UserError, match=rf"metrics\.jsonl {wrong} checkpoint 4") as error:
                use()
            assert ("remove the checkpoints after 2" in str(error.value)) == (content[0] != 0)
    path.write_bytes(whole + b'{"step": 5, "spl')
    assert [row["step"] for row in curve.read_curve(run, "train")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_lines_after_a_checkpoint_that_agrees_are_computed_again(run, config):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"metrics\.jsonl is shorter"):
        train(config, run)
    assert path.read_bytes() == whole[:-3]
    shutil.rmtree(run / "checkpoints" / "4")
    train(config, run)
    assert path.read_bytes() == whole


def test_a_curve_notices_the_lines_of_another_program(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curve.truncate(path, 0)
    found = curve.Curve(path)
    found.append({"step": 1})
    assert found.end() == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    path.write_bytes(path.read_bytes() + b"other\n")
    assert found.end() == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


LEVEL = [1, 0.5, 0.1, 0.0, 0.5, 0.5, 0.5, 0.1, 0, -200]
WRONG_FACTS: dict[str, list[object]] = {
    "metrics_bytes": [-5, 1.5, "1", True],
    "faults": [[1, 2], [[0, 0, 0, 0]], [[0, LEVEL], [0, LEVEL]], [[0, [*LEVEL[:2], -1.0, *LEVEL[3:]], LEVEL]] * 2, {}],
    "validation": [[], {"loss": "low"}, {"loss": None}],
    "due": [1, "yes"],
    "healthy": [0, []],
    "owner": [{}, [], {"identity": 1}],
    "metrics_sha256": [5],
    "step": ["4", -1],
    "merged": [[]],
}


@pytest.mark.parametrize("name", WRONG_FACTS)
def test_damaged_facts_are_named(name, tmp_path):
    folder = saved(tmp_path / "checkpoints", Save(), {1: 0.0})
    good = checkpoint.read_facts(folder, 1)
    for value in WRONG_FACTS[name]:
        edit(folder / "1" / "meta" / "metadata", lambda found: found.update({name: value}))  # noqa: B023
        with pytest.raises(UserError, match=f"1 has damaged facts: {name} is"):
            checkpoint.read_facts(folder, 1)
    fine = {**good._asdict(), "faults": [[0, LEVEL, LEVEL], [0, LEVEL, LEVEL]], "step": 1}
    (folder / "1" / "meta" / "metadata").write_text(json.dumps({k: v for k, v in fine.items() if v is not None}))
    assert checkpoint.read_facts(folder, 1).faults == fine["faults"]


def test_a_changed_number_in_an_evaluation_is_noticed(run):
    assert directory.read_evaluation(run) is not None
    path = run / "evaluation.json"
    edit(path, lambda found: found["metrics"].update(neg_elbo=1.0))
    assert directory.read_evaluation(run) is None
    # Older versions wrote no sum.
    edit(path, lambda found: found.pop("sha256"))
    assert directory.read_evaluation(run) is not None


def test_other_reference_examples_are_named_and_made_again(run, config, capsys):
    known = directory.read_reference(run)
    path = run / "reference.npz"
    np.savez(path, image=known["image"][::-1])
    with pytest.raises(UserError, match=r"reference\.npz has changed"):
        open_run(run).reference()
    for damaged in (lambda: None, lambda: path.write_bytes(b"x"), path.unlink):
        damaged()
        train(config, run)
        assert "reference.npz was lost or damaged" in capsys.readouterr().out
        np.testing.assert_array_equal(open_run(run).reference()["image"], known["image"])


@pytest.mark.slow
def test_damage_to_any_file_of_a_run_is_healed_named_or_refused(tmp_path, monkeypatch):
    """The whole: python -m tests.damage --count 200."""
    import damage

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bench = damage.Bench(tmp_path)
    ends = {each: bench.check(each, 0) for each in bench.damages(5, seed=1)}
    assert [(each, end) for each, end in ends.items() if any(e.startswith("wrong") for e in end.values())] == []
