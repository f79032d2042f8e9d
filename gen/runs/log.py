"""What a run says: metrics.jsonl and TensorBoard events for the machine, a progress bar or plain lines for the person.

metrics.jsonl holds only functions of the config and the step, so that it is the same file however often the run was
killed; speed, memory, waiting, restarts and alarms go to telemetry.jsonl. The first host writes these; each has a file of its
own in logs/.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gen.config import Log
from gen.core import Metrics
from gen.errors import UserError
from gen.runs.tensorboard import Events
from gen.runtime import hosts

T = TypeVar("T")
CONTROL = ("notice", "skipped")  # what an engine says beside a model's metrics


class RunLog:
    """The open files and the progress bar of a run in training."""

    def __init__(
        self, workdir: Path, config: Log, start: int, steps: int, batch_size: int, bar: Progress, losses: Sequence[str]
    ):
        self.writes = hosts.is_first()
        self.own = workdir / "logs" / f"host-{hosts.index():03d}.log"
        self.path = workdir / "metrics.jsonl"
        self.telemetry_path = workdir / "telemetry.jsonl"
        self.config, self.batch_size, self.steps, self.losses = config, batch_size, steps, losses
        self.events = Events(workdir, start) if config.tensorboard and self.writes else None
        self.bar, self.task = bar, bar.add_task("", total=steps, completed=start, loss="", speed="")
        self.pending: tuple[range, Metrics, float] | None = None  # steps, their metrics, when they were dispatched
        self.latest: dict[str, float] = {}  # the metrics that were read last
        self.mark, self.marked, self.waited = time.monotonic(), start, 0.0

    def step(self, call: range, metrics: Metrics, waited: float) -> list[tuple[int, dict[str, float]]]:
        """Take the metrics of the steps of a dispatched call, and read those of the call before: the device is never waited
        for."""
        self.waited += waited
        read = self.settle()
        self.pending = (call, metrics, time.monotonic())
        return read

    def settle(self) -> list[tuple[int, dict[str, float]]]:
        """Read the metrics in flight, of one call or of none: (step, {name: value}) of each step. Raises: UserError at the first
        that is not finite, unless the step was skipped."""
        if self.pending is None:
            return []
        (call, metrics, then), self.pending = self.pending, None
        columns = {name: np.broadcast_to(values, len(call)) for name, values in jax.device_get(metrics).items()}
        read = [(step, {name: float(values[i]) for name, values in columns.items()}) for i, step in enumerate(call)]
        first = not self.latest
        for step, values in read:
            self._read(step, values)
        if first and self.latest:  # what the first call compiled is no speed
            self.say(f"compiled in {then - self.mark:.0f} s")
            self.telemetry(call[-1], event="compiled", seconds=then - self.mark)
            self.mark, self.marked, self.waited = then, call[-1], 0.0
        elif self.latest and any(step % self.config.every == 0 for step in call):
            self.speed(call[-1], self.latest, then)
        return read

    def _read(self, step: int, values: Mapping[str, float]) -> None:
        seen = {name: value for name, value in values.items() if name not in CONTROL}
        if values.get("skipped"):
            self.telemetry(
                step, skipped={name: value if isfinite(value) else str(value) for name, value in seen.items()}
            )
            self.say(f"warning: step {step} is left out: {', '.join(f'{k} {v:.4g}' for k, v in seen.items())}")
            return
        check_finite(step, "train", seen)
        self.latest = seen
        if step % self.config.every == 0:
            self.metrics(step, "train", seen)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same scalars to TensorBoard."""
        self._append(self.path, {"step": step, "split": split, **values})
        if self.events:
            self.events.scalars(step, split, values)
        if split != "train":
            self.say(f"step {step}  {split}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def speed(self, step: int, values: Mapping[str, float], now: float) -> None:
        seconds, done = now - self.mark, step - self.marked
        if done <= 0:
            return
        rate = done / seconds
        self.telemetry(
            step,
            steps_per_second=rate,
            examples_per_second=rate * self.batch_size,
            waiting_for_data=self.waited / seconds,
            **memory(),
        )
        loss = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name in self.losses)
        speed = f"{rate:,.1f} steps/s  {rate * self.batch_size:,.0f} examples/s"
        self.bar.update(self.task, completed=step, loss=loss, speed=speed)
        if not self.bar.console.is_terminal:
            left = (self.steps - step) / rate
            waited = f"waited for data {self.waited / seconds:.1%}"
            self.say(f"step {step}/{self.steps}  {loss}  {speed}  {waited}  {left:,.0f} s left")
        self.mark, self.marked, self.waited = now, step, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside (evaluating, sampling, saving) is not counted as training."""
        begun = time.monotonic()
        yield
        spent = time.monotonic() - begun
        self.mark += spent
        if self.pending:
            call, metrics, then = self.pending
            self.pending = (call, metrics, then + spent)

    def telemetry(self, step: int, **values: Any) -> None:
        self._append(self.telemetry_path, {"step": step, "time": time.time(), **values})

    def alarm(self, step: int, text: str) -> None:
        """A warning for the person and the telemetry."""
        self.telemetry(step, alarm=text)
        self.say(f"warning: {text}")

    def say(self, text: str) -> None:
        """A line to this host's own file; the first host's to the terminal too."""
        with open(self.own, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}  {text}\n")
        if self.writes:
            self._print(text)

    def _print(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def track(self, items: Iterable[T], what: str) -> Iterator[T]:
        """The items, with their count in the bar."""
        for i, item in enumerate(items):
            self.bar.update(self.task, loss=f"{what} batch {i + 1}", speed="")
            yield item

    def length(self) -> int:
        """Bytes of metrics.jsonl, which are safe on the disk: kept with a checkpoint."""
        if not self.writes:
            return 0
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def close(self) -> None:
        if self.events:
            self.events.close()

    def _append(self, path: Path, record: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")


@contextmanager
def open_log(
    workdir: Path, config: Log, start: int, steps: int, batch_size: int, length: int, losses: Sequence[str]
) -> Iterator[RunLog]:
    """The log of a run that goes on from step `start`, when metrics.jsonl had `length` bytes; it is cut to that."""
    hosts.broadcast(lambda: _cut(workdir / "metrics.jsonl", start, length))
    (workdir / "logs").mkdir(exist_ok=True)
    console = Console(file=sys.stdout)
    columns = (
        BarColumn(bar_width=16),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[loss]}  {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=not (console.is_terminal and hosts.is_first()), transient=True
    ) as bar:
        log = RunLog(workdir, config, start, steps, batch_size, bar, losses)
        try:
            yield log
        except BaseException as error:
            with suppress(OSError), open(log.own, "a") as file:  # of a full disk, what it hindered is the error to name
                traceback.print_exception(error, file=file)
            with suppress(OSError):
                log.close()
            raise
        log.close()


def _cut(metrics: Path, start: int, length: int) -> None:
    metrics.touch()
    if metrics.stat().st_size < length:
        raise UserError(
            f"{metrics} is shorter than when checkpoint {start} was saved; restore it to go on with this run"
        )
    os.truncate(metrics, length)


def check_finite(step: int, split: str, values: Mapping[str, Any]) -> None:
    """Raises: UserError that names the step and the metrics that are NaN or infinite."""
    bad = [name for name, value in values.items() if not np.all(np.isfinite(value))]
    if bad:
        raise UserError(
            f"{', '.join(bad)} of {split} not finite at step {step}; training stopped, the last checkpoint is kept. "
            "A lower learning rate or clipped gradients (optim.clip) may help"
        )


def memory() -> dict[str, int]:
    """Peak bytes of this process, and of the busiest accelerator where it counts them."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    stats = [
        s["peak_bytes_in_use"] for d in jax.local_devices() if (s := d.memory_stats()) and "peak_bytes_in_use" in s
    ]
    return {"host_peak_bytes": peak} | ({"device_peak_bytes": max(stats)} if stats else {})
