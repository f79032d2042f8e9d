"""Bad steps: their metrics are not finite, or their loss jumps. What they would have changed is left out (see
gen/runtime/engine.py), and what else is done is said here. The step's number never goes back: a batch is read once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gen.config import Faults
from gen.errors import UserError

MIN_LOSSES = 50  # losses that a spike is judged by
MEMORY = 200  # about how many the running moments remember


class History(NamedTuple):
    """What is known of the steps so far."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    """Running moments of the losses' sum."""
    bad: int = 0
    """Bad steps since the last checkpoint."""


def guards(config: Faults) -> bool:
    """Whether a bad step is to be left out of the state as it happens."""
    return config.action != "stop" or config.spike is not None


def limit(config: Faults, history: History) -> float:
    """The largest sum of losses that is no spike."""
    if config.spike is None or history.count < MIN_LOSSES:
        return math.inf
    return history.mean + config.spike * math.sqrt(history.variance)


def after(history: History, values: Mapping[str, float], losses: Sequence[str] = ("loss",)) -> History:
    """The history with one more step. values: its metrics."""
    if values.get("skipped"):
        return history._replace(bad=history.bad + 1)
    loss = sum(values[name] for name in losses)
    new = 1 / min(history.count + 1, MEMORY)
    away = loss - history.mean
    variance = (1 - new) * (history.variance + new * away**2)
    return History(history.count + 1, history.mean + new * away, variance, history.bad)


class Record:
    """The histories of the last steps. Step s is limited by that of step s - 2, which is known whether or not s - 1 was read
    already: a killed run has the limits of one that was not."""

    def __init__(self, config: Faults, start: int, kept: Sequence[Sequence[float]], losses: Sequence[str] = ("loss",)):
        self.config, self.losses = config, losses
        before, last = [History(*values) for values in kept] or [History(), History()]  # pyright: ignore[reportArgumentType]
        self.of = {start - 1: before, start: last}

    def limit(self, step: int) -> float:
        return limit(self.config, self.of[step - 2]) if step - 2 in self.of else math.inf

    def read(self, step: int, values: Mapping[str, float]) -> bool:
        """Take the metrics of a step; whether it was bad. Raises: UserError if that ends the run."""
        self.of[step] = now = after(self.of[step - 1], values, self.losses)
        self.of.pop(step - 3, None)
        if not values.get("skipped"):
            return False
        if self.config.action == "stop" or now.bad >= self.config.patience:
            why = f"{now.bad} bad steps since the last checkpoint" if now.bad > 1 else "a bad step"
            raise UserError(
                f"stopped at step {step} by {why} (not finite, or a spike: {text(values, self.losses)}); the last checkpoint is kept. A lower "
                "learning rate or clipped gradients (optim.clip) may help, or --faults.action rollback"
            )
        return True

    def kept(self, step: int, due: bool) -> list[History]:
        """What a checkpoint of the step keeps, from which a Record goes on. due: whether patience begins anew."""
        kept = [self.of.get(s, History()) for s in (step - 1, step)]
        self.of = dict(zip((step - 1, step), [h._replace(bad=0) for h in kept] if due else kept, strict=True))
        return list(self.of.values())


def text(values: Mapping[str, float], losses: Sequence[str]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name in losses)
