"""Scalars for TensorBoard."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Within, a module that isn't imported yet can't be."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[name]


with _without("torch"):  # tensorboardX imports it where it is installed, for two seconds, to accept its tensors too
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]


class Events:
    """An event file, events.* in a run directory. Of those before it TensorBoard shows what they have up to step `start`."""

    def __init__(self, workdir: Path, start: int):
        again = any(workdir.glob("events.*"))
        # The synchronous writer: SummaryWriter's thread dies of a full disk, and its queue then blocks the run.
        self.writer = EventsWriter(str(workdir / "events"))
        if again:
            self._write(start, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=summary.scalar(f"{split}/{name}", value))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self.writer.write_event(Event(step=step, wall_time=time.time(), **content))
