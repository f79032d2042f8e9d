"""The event files of a run, read by TensorBoard."""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

from gen.runs.tensorboard import Event, Events  # pyright: ignore[reportAttributeAccessIssue]


def read(file: Path) -> Iterator[Event]:
    """Yields the events of a file. A record is its length, a checksum of 4 bytes, the event, and another checksum."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack("<Q", content[at : at + 8])
        event = Event()
        event.ParseFromString(content[at + 12 : at + 12 + length])
        yield event
        at += 16 + length


def shown(workdir: Path) -> list[tuple[int, float]]:
    """Returns (step, value) of the points that TensorBoard shows.

    At an event that starts a session, it forgets the points from the event's step on (tensorboard's
    plugin_event_accumulator: `reservoir.FilterItems(lambda x: x.step < event.step)`).
    """
    points: list[tuple[int, float]] = []
    for file in sorted(workdir.glob("events.*")):
        for event in read(file):
            if event.HasField("session_log"):
                points = [(step, value) for step, value in points if step < event.step]
            points += [(event.step, round(value.simple_value, 6)) for value in event.summary.value]
    return points


def write(workdir: Path, start: int, points: dict[int, float]) -> None:
    events = Events(workdir, start)
    for step, value in points.items():
        events.scalars(step, "validation", {"loss": value})
    events.close()


def test_a_resumed_run_keeps_the_point_at_its_checkpoint_and_forgets_later_ones(tmp_path, monkeypatch):
    # The names of event files hold the time in seconds, and these are written within one.
    clock = itertools.count(1_700_000_000.0, 10.0)
    monkeypatch.setattr("time.time", lambda: next(clock))
    write(tmp_path, 0, {20: 0.5, 40: 0.25, 60: 9.0})
    write(tmp_path, 40, {60: 0.125, 80: 8.0})
    write(tmp_path, 60, {80: 0.0625})
    assert shown(tmp_path) == [(20, 0.5), (40, 0.25), (60, 0.125), (80, 0.0625)]
