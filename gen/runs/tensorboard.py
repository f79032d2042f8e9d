"""Writes a run's metrics for TensorBoard."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gen.system import name_file


@contextmanager
def _hide_module(name: str) -> Iterator[None]:
    """Makes imports of a module fail inside the context, unless it is already imported."""
    if name in sys.modules:
        yield
        return
    # Python raises ImportError for a module whose entry is None.
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[name]


# If PyTorch is installed, tensorboardX imports it, which takes two seconds. gen never gives it a tensor of PyTorch.
with _hide_module("torch"):
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]


class Events:
    """Writes a new event file, events.*, into a run directory.

    A resumed run adds a file. TensorBoard then shows the earlier files only up to and including step `start`, the step of the
    checkpoint from which the run is resumed.
    """

    def __init__(self, workdir: Path, start: int):
        self.workdir, resumed = workdir, any(workdir.glob("events.*"))
        # The synchronous writer: SummaryWriter's thread dies when the disk is full, and its queue then blocks the run.
        self.writer = EventsWriter(str(workdir / "events"))
        if resumed:
            # At this event TensorBoard drops the earlier values of its step and later steps, which will be written again.
            self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes {metric: value} of a step, with the names "split/metric"."""
        with name_file(self.workdir / "events"):
            for name, value in values.items():
                self._write(step, summary=summary.scalar(f"{split}/{name}", value))
            self.writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self.writer.close()

    def _write(self, step: int, **content: object) -> None:
        self.writer.write_event(Event(step=step, wall_time=time.time(), **content))
