"""Checkpoints that can be trusted: written asynchronously, sealed by a manifest of SHA-256 sums, verified when read.

A step is a folder with one item per field of the state (so that sampling restores the parameters alone). Orbax commits
it by renaming; then `manifest.json` is written into it. A step without a manifest, or one that disagrees with it, is
unsound and never used: one flipped bit restores silently otherwise. The only file that imports orbax.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from gen import files
from gen.config import Save
from gen.core import State
from gen.errors import Requeue, UserError
from gen.runtime import hosts, signals

FORMAT = 1
MANIFEST = "manifest.json"
ITEMS = tuple(f.name for f in fields(State) if f.name != "frozen")


@contextmanager
def saver(folder: Path, config: Save, start: int) -> Iterator[Callable[[State, dict[str, Any]], Future[None]]]:
    """A function `save(state, meta)` that returns once the state is copied off the devices; what it returns is done when the
    checkpoint is there. On several hosts, all call it with the same.

    `meta` is JSON kept with the step; meta["validation"] ({metric: number}, if the step was evaluated) decides the best, and
    meta["due"] (else true) says whether it would be saved in any case, or because the run is stopped.
    Leaving the context waits for the last save. A failed one is raised by the next, or when leaving. Steps after `start`,
    from which training goes on, are unsound, and set aside.
    """
    hosts.broadcast(lambda: _tidied(folder, start))
    orbax = ocp.AsyncCheckpointer(_handler())
    background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    last: Future[None] | None = None

    def finish(path: Path) -> None:
        orbax.wait_until_finished()
        if hosts.is_first():
            _seal(path)
            for step in sorted(set(steps(folder)) - _kept(folder, config)):
                shutil.rmtree(folder / str(step))

    def save(state: State, meta: dict[str, Any]) -> Future[None]:
        nonlocal last
        with _readable(folder):
            if last:
                last.result()
            path = folder.absolute() / str(int(state.step))
            arrays = {k: ocp.args.PyTreeSave(v) for k in ITEMS if jax.tree.leaves(v := getattr(state, k))}
            meta = {"format": FORMAT, **meta}
            orbax.save(path, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays))
            last = background.submit(finish, path)
            return last

    def close() -> None:
        with _readable(folder):
            try:
                if last:
                    last.result()
            finally:
                background.shutdown()
                orbax.close()

    try:
        yield save
    except Requeue:  # another host is gone: a save in flight would wait for it
        background.shutdown(wait=False)
        raise
    except BaseException:
        close()
        raise
    close()


def _tidied(folder: Path, start: int) -> None:
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover)
    for step in steps(folder):
        if step > start:
            shutil.rmtree(folder / f"{step}.unsound", ignore_errors=True)
            os.replace(folder / str(step), folder / f"{step}.unsound")


def steps(folder: Path) -> list[int]:
    """Committed steps in ascending order, sound or not."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal()) if folder.is_dir() else []


def newest(folder: Path, warn: Callable[[str], None]) -> int | None:
    """The newest sound step; each damaged one is named to `warn`. None if there is no checkpoint at all.

    Raises: UserError if there are checkpoints and none is sound.
    """
    return _first_sound(folder, sorted(steps(folder), reverse=True), warn)


def scheduled(folder: Path) -> int | None:
    """The newest sound step that was saved because it was due, None if there is none: others depend on when a run was stopped."""
    due = [step for step in sorted(steps(folder), reverse=True) if _due(folder, step)]
    return next((step for step in due if damage(folder, step) is None), None)


def best(folder: Path, config: Save, warn: Callable[[str], None]) -> int | None:
    """The sound step with the best validation metric, else the newest sound one. Raises as `newest`."""
    ranked = sorted(steps(folder), key=lambda step: (_score(folder, step, config), step), reverse=True)
    return _first_sound(folder, ranked, warn)


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with a step, or None if each file is as it was written."""
    path = folder / str(step)
    if not path.is_dir():
        return "there is no such checkpoint"
    try:
        manifest = files.read_json(path / MANIFEST)
        sums, version = manifest["sha256"], manifest["format"]
    except FileNotFoundError:
        return "it has no manifest (the save was interrupted)"
    except (UserError, KeyError, TypeError):
        return "its manifest is damaged"
    if not (isinstance(sums, dict) and isinstance(version, int)):
        return "its manifest is damaged"
    if version > FORMAT:
        return f"it is of format {version}, and this version of gen reads up to {FORMAT}"
    found = _sums(path)
    for name in sorted(sums.keys() | found.keys()):
        if sums.get(name) != found.get(name):
            change = "is missing" if name not in found else "was added" if name not in sums else "has changed"
            return f"{name} {change}"
    return None


def digest(folder: Path, step: int) -> str:
    """SHA-256 of a step's manifest, which names each of its files."""
    return hashlib.sha256((folder / str(step) / MANIFEST).read_bytes()).hexdigest()


def meta(folder: Path, step: int) -> dict[str, Any]:
    """The JSON that was saved with a step. Raises: UserError if it is damaged."""
    found = files.read_json(folder / str(step) / "meta" / "metadata")
    kinds = {"validation": dict, "metrics_bytes": int, "faults": list, "due": bool}
    if not isinstance(found, dict) or any(type(found[k]) is not kind for k, kind in kinds.items() if k in found):
        raise UserError(f"checkpoint {folder / str(step)} has no facts")
    return found


def _due(folder: Path, step: int) -> bool:
    try:
        return meta(folder, step).get("due", True)
    except (OSError, UserError):
        return False


def restore(folder: Path, step: int, abstract: State, items: tuple[str, ...] = ITEMS) -> State:
    """The state of a step, on the devices and with the shardings of `abstract`, or on the host where that has none; fields not in
    `items` are left empty.

    Raises: UserError if the step's arrays are not those of `abstract`.
    """
    wanted = {k: v for k in items if jax.tree.leaves(v := getattr(abstract, k))}
    arguments = {
        k: ocp.args.PyTreeRestore(v, restore_args=ocp.checkpoint_utils.construct_restore_args(v))
        for k, v in wanted.items()
    }
    _check_chunks([folder / str(step) / k for k in wanted], max(x.size for x in jax.tree.leaves(wanted)))
    with ocp.Checkpointer(_handler()) as orbax:
        try:
            with hosts.requeue_if_lost(), signals.delay_signals():
                found = orbax.restore((folder / str(step)).absolute(), args=ocp.args.Composite(**arguments))
        except Exception as error:  # orbax raises nearly anything where its own facts are not what it wrote
            raise UserError(
                f"checkpoint {folder / str(step)} is sound, but not of this model: {f'{error}.'.splitlines()[0]}"
            ) from error
    empty = {k: {} for k in ("params", "opt_state", "ema", "stats", "frozen")}
    return State(**{"step": abstract.step, **empty, **{k: found[k] for k in wanted}})


def _check_chunks(items: list[Path], most: int) -> None:
    """Raises: UserError for a piece of an array that unpacks to more numbers than the largest array has."""
    for file in (file for item in items for file in item.rglob(".zarray")):
        facts = files.read_json(file)
        chunks = facts.get("chunks") if isinstance(facts, dict) else None
        if (
            not isinstance(chunks, list)
            or not all(type(n) is int and n > 0 for n in chunks)
            or math.prod(chunks) > most
        ):
            raise UserError(f"{file} is damaged: its chunks are {str(chunks)[:80]}")


def _handler() -> ocp.CompositeCheckpointHandler:
    # Plain zarr files cost half the processor time of OCDBT's, and the manifest names the damaged array.
    arrays: dict[str, Any] = {k: ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False) for k in ITEMS}
    return ocp.CompositeCheckpointHandler(meta=ocp.JsonCheckpointHandler(), **arrays)


def _seal(path: Path) -> None:
    text = json.dumps({"format": FORMAT, "sha256": _sums(path)}, indent=1)
    with open(path / f"{MANIFEST}.tmp", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path / f"{MANIFEST}.tmp", path / MANIFEST)


def _sums(path: Path) -> dict[str, str]:
    sums = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith(MANIFEST):
            with open(file, "rb") as content:
                sums[file.relative_to(path).as_posix()] = hashlib.file_digest(content, "sha256").hexdigest()
    return sums


def _kept(folder: Path, config: Save) -> set[int]:
    """The last sealed steps and the best; each unsealed one is in the way only until it is written anew."""
    sealed = [s for s in steps(folder) if (folder / str(s) / MANIFEST).exists()]
    due = [s for s in sealed if _due(folder, s)]  # a rollback goes to the last of these
    return {*sealed[-config.keep :], *due[-1:], *sorted(sealed, key=lambda s: (_score(folder, s, config), s))[-1:]}


def _score(folder: Path, step: int, config: Save) -> float:
    """Higher is better; -inf for a step that was not evaluated."""
    if config.best is None:
        return 0.0
    metric, end = config.best
    try:
        value = float(meta(folder, step)["validation"][metric])
    except (OSError, UserError, KeyError, TypeError, ValueError, OverflowError):
        return -float("inf")
    return value if end == "max" else -value


def _first_sound(folder: Path, order: list[int], warn: Callable[[str], None]) -> int | None:
    for step in order:
        reason = damage(folder, step)
        if reason is None:
            return step
        warn(f"checkpoint {folder / str(step)} is unsound and not used: {reason}")
    if order:
        raise UserError(f"no sound checkpoint in {folder}; start anew in another --workdir, or restore the folder")
    return None


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Orbax's errors of a full or read-only disk, in one line."""
    try:
        yield
    except Exception as error:
        text = f"{error} {error.__cause__ or ''}".lower()
        for sign in ("no space left", "read-only file system", "permission denied", "disk quota exceeded"):
            if sign in text:
                kept = ", ".join(str(s) for s in steps(folder) if damage(folder, s) is None) or "none"
                raise UserError(f"saving in {folder} failed: {sign}; sound checkpoints there: {kept}") from error
        raise


# Orbax reports each step of its work as a warning or an error of absl's; what matters is raised.
logging.getLogger("absl").setLevel(logging.CRITICAL if not sys.flags.dev_mode else logging.INFO)
