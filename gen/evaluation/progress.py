"""An alarm for a validation metric that becomes far worse than the run's best value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOSSES = ("loss", "neg_elbo")
"""Metrics to watch if the config names none in `save.best`. The first of them that the run measures is watched."""
MAX_LOST = 3.0
"""The alarm is raised if the latest value is worse than the best by more than MAX_LOST times the improvement from the first value
to the best, and also by more than MAX_WORSE times the magnitude of the best value."""
MAX_WORSE = 0.5
"""Limit as a fraction of the best value's magnitude, see MAX_LOST. It decides alone if the first value is the best."""


@dataclass(frozen=True)
class Progress:
    """The evaluations of a run so far, and the check whether the latest is far worse than the best."""

    best: tuple[str, str] | None
    """Validation metric to watch, and "min" or "max": the config's `save.best`. None: one of LOSSES, if the run measures one."""
    seen: list[tuple[int, dict[str, float]]]
    """(step, {metric: value}) of each evaluation so far. `check` appends to it."""

    def check(self, step: int, validation: Mapping[str, float]) -> list[str]:
        """Adds an evaluation. Returns [message] if it is far worse than the best evaluation, otherwise [].

        validation: {metric: value}. {}: there was no evaluation at this step.
        """
        if not validation:
            return []
        self.seen.append((step, dict(validation)))
        loss = next((name for name in LOSSES if name in validation), None)
        name, end = self.best or (loss, "min")
        # A metric to be maximized is negated, so that lower is better below.
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
