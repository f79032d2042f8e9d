"""Checkpoints: saved in the background, sealed by a manifest, and verified when they are read.

A step is a folder with one Orbax item per field of the state, so that sampling can restore the parameters alone. Orbax writes it
under another name. gen.runs.manifest seals it, and then it is renamed to its step. This is the only file that imports Orbax.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from gen.runs import directory, owner, stored
from gen.runs.manifest import (
    FORMAT,
    MANIFEST,
    damage,
    digest,
    hash_ahead,
    remove_aside,
    seal,
    set_aside,
)
from gen.runs.ranking import (
    Facts,
    best,
    check_owner,
    newest,
    newest_with,
    read_facts,
    scheduled,
    score,
    steps,
    steps_to_keep,
    value_of,
)
from gen.runtime import hosts, signals
from gen.system import explain

__all__ = [
    "MANIFEST",
    "Facts",
    "Saver",
    "best",
    "check_owner",
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
UNSEALED = ".unsealed"
"""Ending of the name under which a checkpoint is written. Without it, a step is complete and sealed."""


class Saver:
    """Saves states in the background, one at a time. `saver` makes one.

    A failed save is raised by the next call or by `close`. On several hosts, all call the same methods.
    """

    def __init__(
        self, folder: Path, config: Save, best_score: float = -math.inf, of: Mapping[str, object] | None = None
    ):
        """best_score: the best validation metric so far, negated if lower is better. of: the owner of the checkpoints, as JSON."""
        self.folder, self.config, self.best_score, self.owner = folder, config, best_score, of
        self.orbax = ocp.AsyncCheckpointer(_handler())
        self.background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.last: Future[None] | None = None

    def __call__(self, state: State, facts: Facts = Facts()) -> Future[None]:
        """Starts to save a state, and returns once it is copied off the devices. The future ends when it is sealed."""
        with _short_disk_errors(self.folder):
            # One save at a time: a second one would need memory for another copy of the state.
            self.wait()
            step = int(state.step)
            path = self.folder.absolute() / str(step)
            # Orbax refuses an item without arrays.
            items = {k: ocp.args.PyTreeSave(v) for k in ITEMS if jax.tree.leaves(v := getattr(state, k))}
            known = facts._replace(step=step, owner=self.owner)
            content = {k: v for k, v in known._asdict().items() if v is not None}
            meta = ocp.args.JsonSave({"format": FORMAT, **content})
            self.orbax.save(_unsealed(path), args=ocp.args.Composite(meta=meta, **items))
            self.last = self.background.submit(self._finish, path)
            self.best_score = max(self.best_score, value_of(facts.validation, self.config))
            return self.last

    def is_best(self, validation: Mapping[str, float]) -> bool:
        """Returns whether an evaluation is better than that of every checkpoint. False if `save.best` names no metric."""
        return self.config.best is not None and value_of(validation, self.config) > self.best_score

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
        """Seals a checkpoint as soon as it is written, gives it its name, and removes those that are no longer kept."""
        # This runs in the background thread. Orbax writes the folder in threads of its own.
        if not hosts.is_first():
            return self.orbax.wait_until_finished()
        written = _unsealed(path)
        with hash_ahead(self.folder, f"{written.name}*"):
            self.orbax.wait_until_finished()
        seal(written)
        # A kill before this line leaves nothing that a later start would take for a checkpoint.
        os.replace(written, path)
        # Nothing is removed before the new checkpoint would also survive a crash of the machine.
        files.sync_folder(self.folder)
        for step in sorted(set(steps(self.folder)) - steps_to_keep(self.folder, self.config)):
            files.remove(self.folder / str(step))
        remove_aside(self.folder, int(path.name))


def _unsealed(path: Path) -> Path:
    return path.with_name(f"{path.name}{UNSEALED}")


@contextmanager
def saver(folder: Path, config: Save, start: int) -> Iterator[Saver]:
    """Yields a Saver, and waits for its last save in the end.

    The folder is in a run directory, whose files the checkpoints will remember. Steps after `start`, where training continues, are
    set aside as damaged. They are removed as soon as a later step is sealed. What killed saves left is removed.
    """
    best_score, of = hosts.broadcast(lambda: _begin(folder, config, start))
    save = Saver(folder, config, best_score, of)
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


def _begin(folder: Path, config: Save, start: int) -> list[Any]:
    """Tidies the folder. Returns the score of the best undamaged checkpoint in it (-inf: there is none, or no score), and the owner."""
    _tidy(folder, start)
    of = owner.describe(folder.parent, directory.read_examples(folder.parent))
    step = None if config.best is None else best(folder, config, warn=lambda text: None)
    return [-math.inf if step is None else score(folder, step, config), of and of._asdict()]


def _tidy(folder: Path, start: int) -> None:
    folder.mkdir(exist_ok=True)
    for leftover in (*folder.glob("*.orbax-checkpoint-tmp*"), *folder.glob(f"*{UNSEALED}")):
        files.remove(leftover)
    for step in steps(folder):
        if step > start:
            set_aside(folder / str(step))


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
    sizes = {k: max(x.size for x in jax.tree.leaves(v)) for k, v in wanted.items()}
    stored.check_format(folder / str(step), sizes)
    with ocp.Checkpointer(_handler()) as orbax:
        try:
            with hosts.requeue_if_lost(), signals.delay_signals():
                found = orbax.restore((folder / str(step)).absolute(), args=ocp.args.Composite(**arguments))
        except Exception as error:
            # Orbax raises nearly anything if its own files were edited.
            reason = f"{error}.".splitlines()[0]
            _forget(error)
            raise UserError(f"checkpoint {folder / str(step)} is undamaged, but not of this model: {reason}") from None
    # An item without arrays is not saved, so it is empty after restoring.
    empty = {k: {} for k in ("params", "opt_state", "ema", "stats", "frozen")}
    return State(**{"step": abstract.step, **empty, **{k: found[k] for k in wanted}})


def _forget(error: BaseException) -> None:
    """Ends the reads that were still running when one failed. Python would print a traceback for each of them, before the error."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
        gc.collect()
    finally:
        sys.unraisablehook = before


def _handler() -> ocp.CompositeCheckpointHandler:
    # Plain zarr files take half the CPU time of OCDBT, and a manifest of them names the damaged array.
    arrays: dict[str, Any] = {k: ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False) for k in ITEMS}
    return ocp.CompositeCheckpointHandler(meta=ocp.JsonCheckpointHandler(), **arrays)


@contextmanager
def _short_disk_errors(folder: Path) -> Iterator[None]:
    """Turns Orbax's errors of the system, such as a full disk, into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = explain(error)
        if reason is None:
            raise
        undamaged = ", ".join(str(s) for s in steps(folder) if damage(folder, s) is None) or "none"
        raise UserError(f"saving in {folder} failed: {reason}; undamaged checkpoints: {undamaged}") from error


def _leave_out_closed_loops(previous: Callable[[sys.UnraisableHookArgs], object]) -> Callable[..., None]:
    """Returns an unraisablehook that leaves out "Event loop is closed" where no code of Python has asked for the event loop.

    If a write fails, Orbax closes the event loop in which it waits for the writes. Each of the others then fails to tell it that it
    has ended, and tensorstore would print a traceback for it, before the one line with the reason.
    """

    def hook(found: sys.UnraisableHookArgs) -> None:
        trace = found.exc_traceback
        called = trace.tb_frame.f_code.co_name if trace else ""
        known = found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"
        if not known or called != "call_soon_threadsafe":
            previous(found)

    return hook


def _is_unexplained(record: logging.LogRecord) -> bool:
    """Returns whether a record of asyncio is about another error than one of the system, which the save itself reports."""
    error = record.exc_info and record.exc_info[1]
    return not (error and explain(error))


# If several writes fail, asyncio reports those for which nobody has waited.
logging.getLogger("asyncio").addFilter(_is_unexplained)
# If a write fails before others of its array have begun, Python warns of them when it ends.
warnings.filterwarnings("ignore", "coroutine 'async_serialize.*' was never awaited", RuntimeWarning)
# Threads of tensorstore may still call it after the last save.
sys.unraisablehook = _leave_out_closed_loops(sys.unraisablehook)
# Orbax reports each step of its work through absl, as a warning or an error. Real errors are raised.
logging.getLogger("absl").setLevel(logging.CRITICAL if not sys.flags.dev_mode else logging.INFO)
