"""How the loss falls with what a language model has seen: python -m benchmarks.context RUN [--length 1024]

Windows of the test split, of any length, also beyond the training windows: where the network has rotary or relative positions, and a
sliding window of attention (--model.network.window) if it is to stay good there.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from gen.config import Parallel
from gen.data.text import Text
from gen.errors import UserError, run_command
from gen.evaluation.measure import measure
from gen.families.language import LM
from gen.runs import directory
from gen.runs import trained as runs_trained
from gen.runtime import engine as runtime_engine

BAR = 40  # characters of the longest bar
PLACES = 8192  # of a batch


def by_place(workdir: Path, length: int | None) -> tuple[np.ndarray, int]:
    """Mean nats of the test split's tokens by how many come before them in their window, float64 [length]; and the length
    that the run was trained on.

    Raises: UserError for a run that is no causal language model of windows, or has learned fewer places.
    """
    config, _ = runs_trained.load_model(workdir, ())
    if not (isinstance(config.model, LM) and isinstance(config.data, Text)):
        raise UserError(f"{workdir} is no causal language model")
    length = length or config.data.length
    if config.model.network.positions == "learned" and length > config.data.length:
        raise UserError(f"{workdir} has learned {config.data.length} places; --length {config.data.length} at most")
    size = max(1, PLACES // length)
    data = runs_trained.build_dataset(workdir, None, (), length=length, stride=None, batch_size=size)
    if "pairs" in data.protocol["windows"]:
        raise UserError(f"{workdir} was trained on pairs; the loss by context is of windows of texts")
    model = config.model.build(directory.read_spec(workdir), config.steps)
    step = runs_trained.choose_step(workdir, config, None)
    state = runs_trained.restore_state(workdir, model, step)
    engine = runtime_engine.compile_engine(model, Parallel(devices=1), config.seed, size)
    found = measure(model, engine.test, state, data.evaluation("test", size))
    loss = found["loss_by_place"]
    if not (loss > 0).all():
        raise UserError(f"the test split is shorter than a window; --length {int((loss > 0).sum())} at most")
    return loss, config.data.length


def main(
    workdir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")], length: int | None = None
) -> None:
    """A line for each doubling of the context."""
    loss, trained = by_place(workdir, length)
    edges = [0, *(2**i for i in range(len(loss).bit_length()) if 2**i < len(loss)), len(loss)]
    rows = [(a, b, float(loss[a:b].mean())) for a, b in pairwise(edges)]
    most = max(value for *_, value in rows)
    print(f"{'tokens before':>16s}  nats")
    for a, b, value in rows:
        beyond = "  beyond the training windows" if a >= trained else ""
        print(f"{a:>7d} to {b - 1:>5d}  {value:.3f}  {'#' * round(BAR * value / most)}{beyond}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
