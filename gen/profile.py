"""Traces of a few steps: what the host and the devices did, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from gen import hosts
from gen.core import UserError


def steps(text: str) -> range:
    """The steps of "STEP:COUNT". Raises: UserError if it is none."""
    first, _, count = text.partition(":")
    if not (first.isdecimal() and count.isdecimal() and int(first) > 0 and int(count) > 0):
        raise UserError(f"profile is {text!r}; it is STEP:COUNT, for instance 100:5")
    return range(int(first), int(first) + int(count))


def tracer(text: str | None, workdir: Path) -> Callable[[int | None], None]:
    """A function to be called before each step, and with None after the last: it traces those that `text` names, each host
    into profile/ of the run directory."""
    traced = range(0) if text is None else steps(text)
    folder = workdir / "profile" / f"host-{hosts.index():03d}"
    running = False

    def trace(step: int | None) -> None:
        nonlocal running
        if running and step not in traced:
            jax.profiler.stop_trace()
            running = False
        elif not running and step is not None and step in traced:
            jax.profiler.start_trace(folder, create_perfetto_trace=True)
            running = True

    return trace
