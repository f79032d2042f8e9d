"""Traces of a few steps: what the host and the devices did, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from gen.config import profile_steps
from gen.runtime import hosts


def tracer(text: str | None, workdir: Path) -> Callable[[range], None]:
    """A function to be called with the steps that come next, from 1, and with none of them after the last: it traces those that
    `text` names, each host into profile/ of the run directory."""
    traced = range(0) if text is None else profile_steps(text)
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
