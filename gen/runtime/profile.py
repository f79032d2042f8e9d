"""Traces of a few steps: what the host and the devices did at which time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from gen.config import profile_steps
from gen.runtime import hosts


def tracer(text: str | None, workdir: Path) -> Callable[[range], None]:
    """Returns a function that traces the steps named by `text` ("STEP:COUNT") into profile/ of the run directory.

    Call it with the 1-based steps of each compiled call before that call, and with range(0) after the last one.
    """
    traced = range(0) if text is None else profile_steps(text)
    folder = workdir / "profile" / f"host-{hosts.index():03d}"
    options = jax.profiler.ProfileOptions()
    # Calls of Python functions would fill the million events that a trace may have in one step that compiles.
    options.python_tracer_level = 0
    running = False

    def trace(steps: range) -> None:
        nonlocal running
        wanted = any(step in traced for step in steps)
        if running and not wanted:
            jax.profiler.stop_trace()
        elif wanted and not running:
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
        running = wanted

    return trace
