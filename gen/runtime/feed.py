"""The batches of each compiled call, and the steps that a call makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gen.config import Config
from gen.core import Dataset, GenerativeModel, HostBatch


def calls(config: Config, start: int) -> Iterator[range]:
    """Yields the 1-based steps of each call of the update after step `start`.

    A call makes `steps_per_call` steps, or one if an evaluation or a save falls inside it. This depends on the config alone, so a
    resumed run makes the same calls.
    """
    intervals = [every for every in (config.evaluate_every, config.save.every) if every]
    while start < config.steps:
        # Calls are aligned to the last evaluation or save, not to `start`, which a kill may have put anywhere.
        last = max((start // every * every for every in intervals), default=0)
        stop = min([config.steps, *(start // every * every + every for every in intervals)])
        size = min(config.steps_per_call, stop - last)
        whole = (start - last) % size == 0 and start + size <= stop
        yield range(start + 1, start + 1 + (size if whole else 1))
        start += size if whole else 1


def feed(data: Dataset, model: GenerativeModel, config: Config, rows: range) -> Callable[[int], HostBatch]:
    """Returns a function (0-based step) -> the input of one update on this host.

    That is `rows` of one batch, or of `model.batches` batches stacked on a leading axis.
    """

    def read(step: int) -> HostBatch:
        if model.batches is None:
            return data.batch(config.seed, step, rows)
        first = step * model.batches
        return _stack([data.batch(config.seed, first + i, rows) for i in range(model.batches)])

    return read


def stacked(feed: Callable[[int], HostBatch], config: Config) -> Callable[[range], HostBatch]:
    """Returns a function (1-based steps of a call) -> the input of the call.

    If calls may make several steps, the inputs of all steps are stacked on a leading axis, even for a call of one step.
    """

    def read_all(steps: range) -> HostBatch:
        return _stack([feed(step - 1) for step in steps])

    def read_one(steps: range) -> HostBatch:
        return feed(steps[0] - 1)

    return read_all if config.steps_per_call > 1 else read_one


def _stack(batches: list[HostBatch]) -> HostBatch:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
