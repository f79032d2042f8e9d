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


def tracer(text: str | None, workdir: Path) -> Callable[[range], None]:
    """A function to be called with the steps that come next, from 1, and with none of them after the last: it traces those that
    `text` names, each host into profile/ of the run directory."""
    traced = range(0) if text is None else steps(text)
    folder = workdir / "profile" / f"host-{hosts.index():03d}"
    running = False

    def trace(steps: range) -> None:
        nonlocal running
        wanted = any(step in traced for step in steps)
        if running and not wanted:
            jax.profiler.stop_trace()
        elif wanted and not running:
            jax.profiler.start_trace(folder, create_perfetto_trace=True)
        running = wanted

    return trace
