"""Prints a language model's loss against the number of tokens before a token: python -m benchmarks.context RUN [--length 1024]

The test split is cut into windows of --length tokens. If they are longer than in training, the network needs rotary or relative
positions. To keep the loss low beyond the training length, it also needs a sliding window of attention (--model.network.window).
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
from gen.runs import trained as runs_trained
from gen.runtime import engine as runtime_engine

BAR = 40  # characters of the longest bar
PLACES = 8192  # tokens of a batch


def by_place(workdir: Path, length: int | None) -> tuple[np.ndarray, int]:
    """Returns the mean loss at each position of the test split's windows in nats, float64 [length], and the training length.

    Raises: UserError if the run is not a causal language model of windows of text, or has learned fewer positions.
    """
    run = runs_trained.open_run(workdir)
    config = run.config
    if not (isinstance(config.model, LM) and isinstance(config.data, Text)):
        raise UserError(f"{workdir} is not a causal language model; choose a run of the LM family")
    length = length or config.data.length
    if config.model.network.positions == "learned" and length > config.data.length:
        raise UserError(
            f"{workdir} has learned {config.data.length} positions; the fix: --length {config.data.length} or less"
        )
    size = max(1, PLACES // length)
    data = run.build_data(length=length, stride=None, batch_size=size)
    if "pairs" in data.protocol["windows"]:
        raise UserError(f"{workdir} was trained on pairs; choose a run that was trained on windows of text")
    state = run.restore(run.choose_step())
    engine = runtime_engine.compile_engine(run.model, Parallel(devices=1), config.seed, size)
    found = measure(run.model, engine.test, state, data.evaluation("test", size))
    loss = found["loss_by_place"]
    if not (loss > 0).all():
        raise UserError(f"the test split is shorter than a window; the fix: --length {int((loss > 0).sum())} or less")
    return loss, config.data.length


def main(
    workdir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")], length: int | None = None
) -> None:
    """Prints a line for each doubling of the context."""
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
