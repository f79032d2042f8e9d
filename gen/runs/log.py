"""The log of a run in training: files for programs to read, and a progress bar or printed lines for people.

metrics.jsonl holds only values that depend on nothing but the config and the step. So a run that was killed and resumed has the
same file as a run that was not. Speed, memory, waiting times, restarts and alarms go to telemetry.jsonl. The first host writes both
files, and the TensorBoard events. Each host also writes its printed lines to its own file in logs/.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gen.config import Log
from gen.core import Metrics
from gen.errors import UserError, printable, printable_line
from gen.files import no_follow
from gen.runs import curve
from gen.runs.tensorboard import Events
from gen.runtime import hosts
from gen.system import name_file

T = TypeVar("T")
CONTROL_METRICS = ("notice", "skipped")
"""Metrics that an engine adds to the model's metrics, to report bad steps (gen.runtime.faults). They are not logged."""


class StepMetrics(NamedTuple):
    """The metrics of one training step."""

    step: int
    values: dict[str, float]
    """{metric: value}."""


class Pending(NamedTuple):
    """A call of the compiled update whose metrics are still on the device."""

    call: range
    """The steps of the call."""
    metrics: Metrics
    """{metric: array []} for a call of one step, otherwise {metric: array [len(call)]}."""
    dispatched: float
    """Time at which the call was dispatched, in seconds of time.monotonic()."""


class RunLog:
    """The open files and the progress bar of a run in training. Create it with `open_log`."""

    def __init__(
        self, workdir: Path, config: Log, start: int, steps: int, batch_size: int, bar: Progress, losses: Sequence[str]
    ):
        self.writes = hosts.is_first()
        self.host_path = workdir / "logs" / f"host-{hosts.index():03d}.log"
        self.curve = curve.Curve(workdir / curve.METRICS) if self.writes else None
        self.telemetry_path = workdir / "telemetry.jsonl"
        self.config, self.batch_size, self.steps, self.losses = config, batch_size, steps, losses
        self.events = Events(workdir, start) if config.tensorboard and self.writes else None
        self.bar, self.task = bar, bar.add_task("", total=steps, completed=start, loss="", speed="")
        self.pending: Pending | None = None
        # The training metrics of the last step that was read and not skipped. {}: no step was read yet.
        self.latest: dict[str, float] = {}
        # Speed is measured from the time `mark`, when `marked` steps were done. `waited`: seconds since then spent waiting for data.
        self.mark, self.marked, self.waited = time.monotonic(), start, 0.0

    def step(self, call: range, metrics: Metrics, waited: float) -> list[StepMetrics]:
        """Logs and returns the metrics of the previous call of the compiled update, and keeps those of this call.

        One call makes one or several steps. To read metrics, the host must wait for the device. So the metrics of a call are read
        at the next call, when the device has new work. After the last call, use `settle`.

        call: numbers of the steps of this call, from 1. metrics: the metrics of this call, arrays on the device. waited:
        seconds that the host waited for the batch of this call.

        Returns the metrics of each step of the previous call. []: there is none, or they were read before.
        Raises: UserError if a metric of the previous call is not finite, unless its step was skipped.
        """
        self.waited += waited
        read = self.settle()
        self.pending = Pending(call, metrics, time.monotonic())
        return read

    def settle(self) -> list[StepMetrics]:
        """Waits for the last dispatched call, and logs and returns the metrics of its steps. []: they were read before.

        Raises: UserError if a metric is not finite, unless the step was skipped.
        """
        if self.pending is None:
            return []
        (call, metrics, dispatched), self.pending = self.pending, None
        # A call of one step has scalars, and a call of several steps has an array of each metric.
        columns = {name: np.broadcast_to(values, len(call)) for name, values in jax.device_get(metrics).items()}
        read = [
            StepMetrics(step, {name: float(values[i]) for name, values in columns.items()})
            for i, step in enumerate(call)
        ]
        first = not self.latest
        for step, values in read:
            self._record(step, values)
        if first and self.latest:
            # The first call also compiled the step, so its time does not count for the speed.
            self.say(f"compiled in {dispatched - self.mark:.0f} s")
            self.telemetry(call[-1], event="compiled", seconds=dispatched - self.mark)
            self.mark, self.marked, self.waited = dispatched, call[-1], 0.0
        elif self.latest and any(step % self.config.every == 0 for step in call):
            self._report_speed(call[-1], self.latest, dispatched)
        return read

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the metrics of one step. A skipped step goes to telemetry.jsonl, because its metrics may not be finite."""
        metrics = {name: value for name, value in values.items() if name not in CONTROL_METRICS}
        if values.get("skipped"):
            # JSON has no NaN and no infinity, so such a value is written as a string.
            finite = {name: value if isfinite(value) else str(value) for name, value in metrics.items()}
            self.telemetry(step, skipped=finite)
            self.say(f"warning: step {step} is left out: {', '.join(f'{k} {v:.4g}' for k, v in metrics.items())}")
            return
        check_finite(step, "train", metrics)
        self.latest = metrics
        if step % self.config.every == 0:
            self.metrics(step, "train", metrics)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes {metric: value} of a split to metrics.jsonl and TensorBoard. Metrics of other splits than "train" are also printed."""
        if self.curve:
            self.curve.append({"step": step, "split": split, **values})
        if self.events:
            self.events.scalars(step, split, values)
        if split != "train":
            self.say(f"step {step}  {split}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def _report_speed(self, step: int, values: Mapping[str, float], now: float) -> None:
        """Writes and prints the speed since the last report. Also prints the losses in `values`, the latest metrics.

        now: time.monotonic() when the call of `step` was dispatched.
        """
        seconds, done = now - self.mark, step - self.marked
        # If no step was done since the last report, there is no speed.
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
        # Only a terminal shows the progress bar. In a file or a pipe, a line says how long the run will take.
        if not self.bar.console.is_terminal:
            left = (self.steps - step) / rate
            waited = f"waited for data {self.waited / seconds:.1%}"
            self.say(f"step {step}/{self.steps}  {loss}  {speed}  {waited}  {left:,.0f} s left")
        self.mark, self.marked, self.waited = now, step, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the context, such as an evaluation or a save, from the training speed."""
        # The start of the measurement is moved later by the time of the pause.
        begun = time.monotonic()
        yield
        spent = time.monotonic() - begun
        self.mark += spent
        if self.pending:
            self.pending = self.pending._replace(dispatched=self.pending.dispatched + spent)

    def telemetry(self, step: int, **values: object) -> None:
        """Writes one line of telemetry.jsonl: the step, the time in seconds since 1970, and the given values."""
        self._append(self.telemetry_path, {"step": step, "time": time.time(), **values})

    def alarm(self, step: int, text: str) -> None:
        """Writes a warning to telemetry.jsonl and prints it."""
        self.telemetry(step, alarm=text)
        self.say(f"warning: {text}")

    def say(self, text: str) -> None:
        """Writes a line to this host's file in logs/. The first host also prints it."""
        line = printable_line(text)
        with name_file(self.host_path), _open_text(self.host_path) as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}  {line}\n")
        if self.writes:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def track(self, items: Iterable[T], what: str) -> Iterator[T]:
        """Yields the items, and shows their count in the progress bar as "WHAT batch N"."""
        for i, item in enumerate(items):
            self.bar.update(self.task, loss=f"{what} batch {i + 1}", speed="")
            yield item

    def end(self) -> curve.Mark:
        """On the first host, syncs metrics.jsonl to the disk and returns its length and hash. Other hosts return
        Mark()."""
        return self.curve.end() if self.curve else curve.Mark()

    def close(self) -> None:
        """Closes the TensorBoard events."""
        if self.events:
            self.events.close()

    def _append(self, path: Path, record: Mapping[str, object]) -> None:
        if not self.writes:
            return
        with name_file(path), _open_text(path) as file:
            file.write(json.dumps(record) + "\n")


@contextmanager
def open_log(
    workdir: Path, config: Log, start: int, steps: int, batch_size: int, length: int, losses: Sequence[str]
) -> Iterator[RunLog]:
    """Opens the log of a run that continues after step `start`, and yields it. All hosts must call it.

    If an error leaves the `with` block, its traceback is written to this host's file in logs/, and the error is raised again.

    config: settings of the log. steps: number of steps of the whole run. batch_size: examples per step, to compute the speed.
    length: bytes of metrics.jsonl at step `start`; later lines are cut off. losses: names of the metrics that the progress
    bar shows.
    """
    # The later lines are of steps that are made again. All hosts wait until the first host has cut them off.
    hosts.broadcast(lambda: curve.truncate(workdir / curve.METRICS, length))
    (workdir / "logs").mkdir(exist_ok=True)
    with _progress() as bar:
        log = RunLog(workdir, config, start, steps, batch_size, bar, losses)
        try:
            yield log
        except BaseException as error:
            # On a full disk these writes fail too. The first error is the one to report.
            with suppress(OSError, UserError), _open_text(log.host_path) as file:
                file.write(printable("".join(traceback.format_exception(error))))
            with suppress(OSError):
                log.close()
            raise
        log.close()


class _Console(Console):
    """A console that raises BrokenPipeError if the reader of its output is gone. Rich would end the process with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _progress() -> Progress:
    console = _Console(file=sys.stdout)
    return Progress(
        BarColumn(bar_width=16),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[loss]}  {task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (console.is_terminal and hosts.is_first()),
        transient=True,
    )


def _open_text(path: Path) -> IO[str]:
    """Opens a file of the log to append text to it."""
    # Paths in the text may hold bytes that are not UTF-8. The encoding is fixed, so that it does not depend on the locale.
    return open(path, "a", encoding="utf-8", errors="backslashreplace", opener=no_follow)


def check_finite(step: int, split: str, values: Mapping[str, float | np.ndarray]) -> None:
    """Raises: UserError that names the step and the metrics that are NaN or infinite."""
    bad = [name for name, value in values.items() if not np.all(np.isfinite(value))]
    if bad:
        raise UserError(
            f"{', '.join(bad)} of {split} not finite at step {step}; training stopped, the last checkpoint is kept. "
            "A lower learning rate or clipped gradients (optim.clip) may help"
        )


def read_split(workdir: Path, split: str) -> list[tuple[int, dict[str, float]]]:
    """Returns (step, {metric: value}) of each line of metrics.jsonl about a split. []: on hosts that don't write the file."""
    rows = curve.read_split(workdir / curve.METRICS, split) if hosts.is_first() else []
    return [(row.pop("step"), row) for row in rows]


def memory() -> dict[str, int]:
    """Returns peak memory in bytes: "host_peak_bytes" of this process, and unless on a CPU, "device_peak_bytes" of the
    fullest device of this host."""
    # getrusage counts bytes on macOS, and kibibytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return found | ({"device_peak_bytes": max(peaks)} if peaks else {})
