"""Decides how many training steps each call of the compiled update makes, and reads the batches of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gen.config import Config
from gen.core import Dataset, GenerativeModel, HostBatch


def calls(config: Config, start: int) -> Iterator[range]:
    """Yields the 1-based steps of each call of the compiled update after step `start`.

    A call makes `steps_per_call` steps, but at most the steps between two evaluations or saves. It makes a single step
    if more steps would go past the next evaluation, save or end of the run. The steps at which calls begin depend on
    the config alone, so a resumed run makes the same calls. If `start` is inside of a call, the rest of this call is
    made in single steps.
    """
    intervals = [every for every in (config.evaluate_every, config.save.every) if every]
    while start < config.steps:
        # Calls are aligned to the last evaluation or save and not to `start`: a run that was killed may resume at any step.
        last = max((start // every * every for every in intervals), default=0)
        stop = min([config.steps, *(start // every * every + every for every in intervals)])
        size = min(config.steps_per_call, stop - last)
        whole = (start - last) % size == 0 and start + size <= stop
        yield range(start + 1, start + 1 + (size if whole else 1))
        start += size if whole else 1


def feed(data: Dataset, model: GenerativeModel, config: Config, rows: range) -> Callable[[int], HostBatch]:
    """Returns a function that maps a 0-based step to the input of its update on this host.

    rows: the positions in a global batch that this host reads. The input is these rows of a batch, or of
    `model.batches` batches that are stacked on a leading axis.
    """

    def read(step: int) -> HostBatch:
        if model.batches is None:
            return data.batch(config.seed, step, rows)
        # Batches are numbered by the step alone, so a resumed run reads the ones that it has not read yet.
        first = step * model.batches
        return _stack([data.batch(config.seed, first + i, rows) for i in range(model.batches)])

    return read


def stacked(feed: Callable[[int], HostBatch], config: Config) -> Callable[[range], HostBatch]:
    """Returns a function that maps the 1-based steps of one call of the compiled update to the input of the call.

    If `steps_per_call` is above 1, the inputs of the steps are stacked on a leading axis, even for a call of one step. feed: maps a
    0-based step to its input.
    """

    def read_all(steps: range) -> HostBatch:
        return _stack([feed(step - 1) for step in steps])

    def read_one(steps: range) -> HostBatch:
        return feed(steps[0] - 1)

    return read_all if config.steps_per_call > 1 else read_one


def _stack(batches: list[HostBatch]) -> HostBatch:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
