"""Saves checkpoints in the background, and restores them.

The checkpoint of step 100 is the folder checkpoints/100. It has one Orbax item per field of the state, so that sampling can restore
the parameters alone. Orbax writes the folder under another name, gen.runs.manifest adds a manifest with the SHA-256 of each file
("seals" it), and then the folder gets its name. This is the only file that imports Orbax.
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
"""Suffix of a checkpoint's folder until it is complete and has its manifest. Then the folder is renamed to its step."""


class Saver:
    """Saves states in the background, one at a time. Create it with `saver`.

    If a save fails, the next call or `close` raises its error. On several hosts, all hosts call the same methods.
    """

    def __init__(
        self, folder: Path, config: Save, best_score: float = -math.inf, of: Mapping[str, object] | None = None
    ):
        """best_score: the best value of the metric `save.best` so far, negated if lower is better. of: the gen.runs.owner.Owner to
        store in each checkpoint, as JSON values."""
        self.folder, self.config, self.best_score, self.owner = folder, config, best_score, of
        self.orbax = ocp.AsyncCheckpointer(_handler())
        self.background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.last: Future[None] | None = None

    def __call__(self, state: State, facts: Facts = Facts()) -> Future[None]:
        """Waits for the previous save, and starts to save a state and its facts (metrics and flags of its step).

        Returns once the state is copied to host memory. The future is done when the checkpoint is complete and renamed.
        """
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
        """Returns whether validation metrics are better than those of every checkpoint. False if `save.best` is None."""
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
        """Stops without waiting for a save that is still running."""
        self.background.shutdown(wait=False)

    def _finish(self, path: Path) -> None:
        """Waits until Orbax has written a checkpoint, seals it, gives it its name, and removes checkpoints that are not kept."""
        # This runs in the background thread. Orbax writes the folder in its own threads.
        if not hosts.is_first():
            return self.orbax.wait_until_finished()
        written = _unsealed(path)
        with hash_ahead(self.folder, f"{written.name}*"):
            self.orbax.wait_until_finished()
        seal(written)
        # If the process is killed before this line, the folder's name shows that it is not a complete checkpoint.
        os.replace(written, path)
        # Older checkpoints are only removed once the new one would survive a crash of the machine.
        files.sync_folder(self.folder)
        for step in sorted(set(steps(self.folder)) - steps_to_keep(self.folder, self.config)):
            files.remove(self.folder / str(step))
        remove_aside(self.folder, int(path.name))


def _unsealed(path: Path) -> Path:
    return path.with_name(f"{path.name}{UNSEALED}")


@contextmanager
def saver(folder: Path, config: Save, start: int) -> Iterator[Saver]:
    """Yields a Saver for a folder of checkpoints. Removes incomplete saves before, and waits for the last save after.

    folder: "checkpoints" of a run directory. start: the step from which training continues. Checkpoints of later steps
    are damaged. They are renamed, so that nothing uses them, and removed when a later step is saved.
    """
    best_score, of = hosts.broadcast(lambda: _begin(folder, config, start))
    save = Saver(folder, config, best_score, of)
    try:
        yield save
    except Requeue:
        # Another host may be gone. Then a running save would wait for it forever.
        save.abandon()
        raise
    except BaseException:
        # The last save is completed even after an error, so that the run can resume from it.
        save.close()
        raise
    save.close()


def _begin(folder: Path, config: Save, start: int) -> list[Any]:
    """Calls `_tidy`. Returns [score of the best undamaged checkpoint (-inf: none), the run's Owner as JSON or None]."""
    # Tidied first: checkpoints after `start` are damaged, and must not count as the best.
    _tidy(folder, start)
    of = owner.describe(folder.parent, directory.read_examples(folder.parent))
    step = None if config.best is None else best(folder, config, warn=lambda text: None)
    return [-math.inf if step is None else score(folder, step, config), of and of._asdict()]


def _tidy(folder: Path, start: int) -> None:
    """Creates the folder, removes incomplete saves in it, and renames checkpoints after `start` by `set_aside`."""
    folder.mkdir(exist_ok=True)
    for leftover in (*folder.glob("*.orbax-checkpoint-tmp*"), *folder.glob(f"*{UNSEALED}")):
        files.remove(leftover)
    for step in steps(folder):
        if step > start:
            set_aside(folder / str(step))


def restore(folder: Path, step: int, abstract: State, items: tuple[str, ...] = ITEMS) -> State:
    """Reads the fields `items` of the state in a checkpoint. Other fields are {}, except `step`: it is `abstract.step`.

    abstract: the state's shapes, dtypes and shardings. Arrays without a sharding are placed in host memory.

    Raises: UserError if the arrays of the checkpoint differ from `abstract` in name, shape or number.
    """
    wanted = {k: v for k in items if jax.tree.leaves(v := getattr(abstract, k))}
    arguments = {
        k: ocp.args.PyTreeRestore(v, restore_args=ocp.checkpoint_utils.construct_restore_args(v))
        for k, v in wanted.items()
    }
    # Checked before Orbax opens anything: a stranger's file of a few megabytes could unpack to gigabytes.
    sizes = {k: max(x.size for x in jax.tree.leaves(v)) for k, v in wanted.items()}
    stored.check_format(folder / str(step), sizes)
    with ocp.Checkpointer(_handler()) as orbax:
        try:
            with hosts.requeue_if_lost(), signals.delay_signals():
                found = orbax.restore((folder / str(step)).absolute(), args=ocp.args.Composite(**arguments))
        except Exception as error:
            # If its files were edited, Orbax raises errors of many types.
            reason = f"{error}.".splitlines()[0]
            _forget(error)
            raise UserError(f"checkpoint {folder / str(step)} is undamaged, but not of this model: {reason}") from None
    # An item without arrays is not saved, so it is empty after restoring.
    empty = {k: {} for k in ("params", "opt_state", "ema", "stats", "frozen")}
    return State(**{"step": abstract.step, **empty, **{k: found[k] for k in wanted}})


def _forget(error: BaseException) -> None:
    """Frees the other reads after a read failed. Otherwise Python would print a traceback for each of them."""
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
    """Turns errors of the operating system that Orbax raises, such as a full disk, into a UserError of one line."""
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
    """Returns a sys.unraisablehook that ignores "Event loop is closed" from tensorstore, and passes other errors to `previous`.

    If a write fails, Orbax closes the event loop in which it waits for all writes. Each other write then can't report its end to
    the loop, and Python would print a traceback for each of them, before the line with the reason.
    """

    def hook(found: sys.UnraisableHookArgs) -> None:
        trace = found.exc_traceback
        called = trace.tb_frame.f_code.co_name if trace else ""
        known = found.exc_type is RuntimeError and str(found.exc_value) == "Event loop is closed"
        if not known or called != "call_soon_threadsafe":
            previous(found)

    return hook


def _is_unexplained(record: logging.LogRecord) -> bool:
    """Returns whether to keep a log record of asyncio. Errors of the operating system are dropped: the save itself reports them."""
    error = record.exc_info and record.exc_info[1]
    return not (error and explain(error))


# If several writes fail, Orbax waits for only one, and asyncio would log the errors of the others.
logging.getLogger("asyncio").addFilter(_is_unexplained)
# If a write fails before other writes of its array have begun, Python warns of those at exit.
warnings.filterwarnings("ignore", "coroutine 'async_serialize.*' was never awaited", RuntimeWarning)
# Set for the whole process, because threads of tensorstore may still fail after the last save.
sys.unraisablehook = _leave_out_closed_loops(sys.unraisablehook)
# Orbax reports each step of its work through absl, as a warning or an error. Real errors are raised.
logging.getLogger("absl").setLevel(logging.CRITICAL if not sys.flags.dev_mode else logging.INFO)
