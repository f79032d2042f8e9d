"""Makes runs that look finished without training: their only checkpoint has the initial weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from gen.config import Config, Save
from gen.runs import checkpoint, directory
from gen.runs.run import reference_examples
from gen.train import build


def make_run(workdir: Path, config: Config, step: int | None = None, stats: float = 0.0) -> Path:
    """Writes a run whose checkpoint says that it was saved at this step. None: at the last one. Returns the directory.

    stats: added to all numbers of State.stats, as if the run had been trained.
    """
    data, _, engine = build(config)
    with directory.lock_run(workdir):
        directory.begin_run(workdir, config, data)
        directory.write_reference(workdir, reference_examples(data))
    state = engine.init()
    state = replace(state, stats=jax.tree.map(lambda x: x + stats, state.stats)) if stats else state
    with checkpoint.saver(workdir / "checkpoints", Save(), 0) as save:
        save(replace(state, step=jnp.int32(config.steps if step is None else step)))
    return workdir
