"""Checkpoints: saved in the background, sealed by a manifest, and verified when they are read.

A step is a folder with one Orbax item per field of the state, so that sampling can restore the parameters alone. Orbax commits
the folder by renaming it. Then gen.runs.manifest seals it. This is the only file that imports Orbax.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

import jax
import orbax.checkpoint as ocp

from gen import files
from gen.config import Save
from gen.core import State
from gen.errors import Requeue, UserError
from gen.runs.manifest import FORMAT, MANIFEST, damage, digest, is_sealed, seal, set_aside
from gen.runtime import hosts, signals

__all__ = [
    "MANIFEST",
    "Facts",
    "Saver",
    "best",
    "damage",
    "digest",
    "newest",
    "newest_with",
    "read_facts",
    "restore",
    "saver",
    "scheduled",
    "steps",
]

ITEMS = tuple(f.name for f in fields(State) if f.name != "frozen")
"""Fields of a state that a checkpoint holds."""
DISK_ERRORS = ("no space left", "read-only file system", "permission denied", "disk quota exceeded")


class Facts(NamedTuple):
    """Numbers that are saved with a state, as JSON."""

    metrics_bytes: int = 0
    """Length of metrics.jsonl at this step. A resumed run truncates the file to it."""
    validation: Mapping[str, float] = {}
    """{metric: value} if the step was evaluated. They decide which checkpoint is the best."""
    due: bool = True
    """Whether the config asks for this checkpoint. Otherwise it was saved because a signal stopped the run."""
    faults: Sequence[Sequence[object]] = ()
    """The last entries of gen.runtime.faults.Record."""
    healthy: bool = True
    """Whether the losses and gradients before it were not far outside of the run's history."""
    merged: str | None = None
    """The base of a run that gen.runs.merge made, as JSON."""


class Saver:
    """Saves states in the background, one at a time. `saver` makes one.

    A failed save is raised by the next call or by `close`. On several hosts, all call the same methods.
    """

    def __init__(self, folder: Path, config: Save):
        self.folder, self.config = folder, config
        self.orbax = ocp.AsyncCheckpointer(_handler())
        self.background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.last: Future[None] | None = None

    def __call__(self, state: State, facts: Facts = Facts()) -> Future[None]:
        """Starts to save a state, and returns once it is copied off the devices. The future ends when it is sealed."""
        with _short_disk_errors(self.folder):
            # One save at a time: a second one would need memory for another copy of the state.
            self.wait()
            path = self.folder.absolute() / str(int(state.step))
            # Orbax refuses an item without arrays.
            items = {k: ocp.args.PyTreeSave(v) for k in ITEMS if jax.tree.leaves(v := getattr(state, k))}
            content = {k: v for k, v in facts._asdict().items() if v is not None}
            meta = ocp.args.JsonSave({"format": FORMAT, **content})
            self.orbax.save(path, args=ocp.args.Composite(meta=meta, **items))
            self.last = self.background.submit(self._finish, path)
            return self.last

    def wait(self) -> None:
        """Waits for the last save. Raises: the error with which it failed."""
        if self.last:
            self.last.result()

    def close(self) -> None:
        """Waits for the last save, and stops the background thread."""
        with _short_disk_errors(self.folder):
            try:
                self.wait()
            finally:
                self.background.shutdown()
                self.orbax.close()

    def abandon(self) -> None:
        """Stops without waiting for a save in flight."""
        self.background.shutdown(wait=False)

    def _finish(self, path: Path) -> None:
        """Seals a checkpoint as soon as Orbax has committed it, and removes those that are no longer kept."""
        # This runs in the background thread. Orbax writes and renames the folder in threads of its own.
        self.orbax.wait_until_finished()
        if hosts.is_first():
            seal(path)
            for step in sorted(set(steps(self.folder)) - _steps_to_keep(self.folder, self.config)):
                shutil.rmtree(self.folder / str(step))


@contextmanager
def saver(folder: Path, config: Save, start: int) -> Iterator[Saver]:
    """Yields a Saver, and waits for its last save in the end.

    Steps after `start`, where training continues, are set aside as unsound. What killed saves left is removed.
    """
    hosts.broadcast(lambda: _tidy(folder, start))
    save = Saver(folder, config)
    try:
        yield save
    except Requeue:
        # Another host may be gone, and a save in flight would wait for it forever.
        save.abandon()
        raise
    except BaseException:
        save.close()
        raise
    save.close()


def _tidy(folder: Path, start: int) -> None:
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover)
    for step in steps(folder):
        if step > start:
            set_aside(folder / str(step))


def steps(folder: Path) -> list[int]:
    """Returns the committed steps in ascending order, sound or not."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal()) if folder.is_dir() else []


def newest(folder: Path, warn: Callable[[str], None]) -> int | None:
    """Returns the newest sound step. None: there is no checkpoint. warn: receives a line for each damaged step.

    Raises: UserError if there are checkpoints and none is sound.
    """
    return _first_sound(folder, sorted(steps(folder), reverse=True), warn)


def scheduled(folder: Path) -> int | None:
    """Returns the newest sound step that the config asked for. None: there is none.

    Other steps depend on when a run was stopped, so a rollback to them would not be reproducible.
    """
    return newest_with(folder, "due")


def newest_with(folder: Path, fact: Literal["due", "healthy"]) -> int | None:
    """Returns the newest sound step that has this fact. None: there is none."""
    found = [step for step in sorted(steps(folder), reverse=True) if _has(folder, step, fact)]
    return next((step for step in found if damage(folder, step) is None), None)


def best(folder: Path, config: Save, warn: Callable[[str], None]) -> int | None:
    """Returns the sound step with the best validation metric, without one the newest sound step. Otherwise as `newest`."""
    ranked = sorted(steps(folder), key=lambda step: (_score(folder, step, config), step), reverse=True)
    return _first_sound(folder, ranked, warn)


def read_facts(folder: Path, step: int) -> Facts:
    """Returns the facts that were saved with a step. Raises: UserError if they are damaged."""
    found = files.read_json(folder / str(step) / "meta" / "metadata")
    kinds = {"validation": dict, "metrics_bytes": int, "faults": list, "due": bool, "healthy": bool}
    if not isinstance(found, dict) or any(type(found[k]) is not kind for k, kind in kinds.items() if k in found):
        raise UserError(f"checkpoint {folder / str(step)} has no facts")
    return Facts(**{name: found[name] for name in Facts._fields if name in found})


def restore(folder: Path, step: int, abstract: State, items: tuple[str, ...] = ITEMS) -> State:
    """Returns the state of a step. Fields that are not in `items` are empty.

    Arrays are placed with the shardings of `abstract`, or in host memory where it has none.

    Raises: UserError if the arrays of the step differ from `abstract` in name, shape or number.
    """
    wanted = {k: v for k in items if jax.tree.leaves(v := getattr(abstract, k))}
    arguments = {
        k: ocp.args.PyTreeRestore(v, restore_args=ocp.checkpoint_utils.construct_restore_args(v))
        for k, v in wanted.items()
    }
    # Checked before Orbax opens anything.
    _check_chunks([folder / str(step) / k for k in wanted], max(x.size for x in jax.tree.leaves(wanted)))
    with ocp.Checkpointer(_handler()) as orbax:
        try:
            with hosts.requeue_if_lost(), signals.delay_signals():
                found = orbax.restore((folder / str(step)).absolute(), args=ocp.args.Composite(**arguments))
        except Exception as error:
            # Orbax raises nearly anything if its own files were edited.
            reason = f"{error}.".splitlines()[0]
            raise UserError(f"checkpoint {folder / str(step)} is sound, but not of this model: {reason}") from error
    # An item without arrays is not saved at all, so it comes back empty too.
    empty = {k: {} for k in ("params", "opt_state", "ema", "stats", "frozen")}
    return State(**{"step": abstract.step, **empty, **{k: found[k] for k in wanted}})


def _check_chunks(items: list[Path], max_size: int) -> None:
    """Raises: UserError for a chunk of an array that would unpack to more than `max_size` numbers.

    Zarr allocates a whole chunk before it reads the file, so a stranger's .zarray could ask for all memory.
    """
    for file in (file for item in items for file in item.rglob(".zarray")):
        facts = files.read_json(file)
        chunks = facts.get("chunks") if isinstance(facts, dict) else None
        if not (_is_shape(chunks) and math.prod(chunks) <= max_size):
            raise UserError(f"{file} is damaged: its chunks are {str(chunks)[:80]}")


def _is_shape(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n > 0 for n in value)


def _handler() -> ocp.CompositeCheckpointHandler:
    # Plain zarr files take half the CPU time of OCDBT, and a manifest of them names the damaged array.
    arrays: dict[str, Any] = {k: ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False) for k in ITEMS}
    return ocp.CompositeCheckpointHandler(meta=ocp.JsonCheckpointHandler(), **arrays)


def _steps_to_keep(folder: Path, config: Save) -> set[int]:
    """Returns the last sealed steps, the last scheduled one (a rollback needs it), the last healthy one and the best one.

    An unsealed step can go: it is saved again as soon as training reaches it.
    """
    sealed = [step for step in steps(folder) if is_sealed(folder / str(step))]
    due, good = ([step for step in sealed if _has(folder, step, fact)] for fact in ("due", "healthy"))
    ranked = sorted(sealed, key=lambda step: (_score(folder, step, config), step))
    return {*sealed[-config.keep :], *due[-1:], *good[-1:], *ranked[-1:]}


def _has(folder: Path, step: int, fact: Literal["due", "healthy"]) -> bool:
    try:
        return getattr(read_facts(folder, step), fact)
    except (OSError, UserError):
        return False


def _score(folder: Path, step: int, config: Save) -> float:
    """Returns the validation metric of a step, negated if lower is better. -inf: the step was not evaluated."""
    if config.best is None:
        return 0.0
    metric, end = config.best
    try:
        value = float(read_facts(folder, step).validation[metric])
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
        raise UserError(f"no sound checkpoint in {folder}; start again in another --workdir, or restore the folder")
    return None


@contextmanager
def _short_disk_errors(folder: Path) -> Iterator[None]:
    """Turns Orbax's errors of a full or read-only disk into a UserError of one line."""
    try:
        yield
    except Exception as error:
        text = f"{error} {error.__cause__ or ''}".lower()
        sign = next((sign for sign in DISK_ERRORS if sign in text), None)
        if sign is None:
            raise
        sound = ", ".join(str(s) for s in steps(folder) if damage(folder, s) is None) or "none"
        raise UserError(f"saving in {folder} failed: {sign}; sound checkpoints: {sound}") from error


# Orbax reports each step of its work through absl, as a warning or an error. Real errors are raised.
logging.getLogger("absl").setLevel(logging.CRITICAL if not sys.flags.dev_mode else logging.INFO)
