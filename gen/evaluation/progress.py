"""An alarm for an evaluation of the validation split that is far worse than the run's best one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOSSES = ("loss", "neg_elbo")
"""Metrics that are watched if the config names none (`save.best`). The first of them that the run measures is used."""
MAX_LOST = 3.0
"""The alarm is raised if now - best > MAX_LOST * (first - best) and now - best > MAX_WORSE * |best|, for a metric to minimize. `first`
is the run's first evaluation, `best` its best, and `now` its latest."""
MAX_WORSE = 0.5
"""See MAX_LOST."""


@dataclass(frozen=True)
class Progress:
    """The evaluations of a run so far. `check` raises the alarm."""

    best: tuple[str, str] | None
    """Validation metric that chooses the best checkpoint, with "min" or "max". None: a loss, if the run measures one."""
    seen: list[tuple[int, dict[str, float]]]
    """(step, validation metrics) of each evaluation so far."""

    def check(self, step: int, validation: Mapping[str, float]) -> list[str]:
        """Adds an evaluation. Returns a message if it is far worse than the best one, otherwise []. validation: {}: there was none."""
        if not validation:
            return []
        self.seen.append((step, dict(validation)))
        loss = next((name for name in LOSSES if name in validation), None)
        name, end = self.best or (loss, "min")
        sign = -1 if end == "max" else 1
        found = [(sign * numbers[name], step) for step, numbers in self.seen if name in numbers]
        if not found or name not in validation:
            return []
        (best, at), (now, _), (first, _) = min(found), found[-1], found[0]
        if now - best <= max(MAX_LOST * (first - best), MAX_WORSE * abs(best)):
            return []
        return [
            f"validation {name} is {sign * now:.4g} at step {step}, and was {sign * best:.4g} at step {at}: the model overfits, or the "
            "run has exploded"
        ]
