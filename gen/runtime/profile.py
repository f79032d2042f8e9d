"""Records traces of a few steps: a trace shows when the host and the devices did what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from gen.config import profile_steps
from gen.runtime import hosts


def tracer(text: str | None, workdir: Path) -> Callable[[range], None]:
    """Returns a function that traces COUNT steps from STEP on. Traces are written to profile/host-NNN in `workdir`.

    text: "STEP:COUNT". None: nothing is traced.

    Call the function with the 1-based steps of each compiled call before that call, and with range(0) after the last one.
    """
    traced = range(0) if text is None else profile_steps(text)
    folder = workdir / "profile" / f"host-{hosts.index():03d}"
    options = jax.profiler.ProfileOptions()
    # A trace holds a million events. A step that compiles would fill it with calls of Python functions.
    options.python_tracer_level = 0
    running = False

    def trace(steps: range) -> None:
        nonlocal running
        # If one step of a call is to be traced, the whole call is: a compiled call can't be divided.
        wanted = any(step in traced for step in steps)
        if running and not wanted:
            jax.profiler.stop_trace()
        elif wanted and not running:
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
        running = wanted

    return trace
