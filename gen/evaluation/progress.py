"""The alarm of a validation that is far worse than the best one of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOSSES = ("loss", "neg_elbo")
"""Validation metrics that measure progress in a run whose config names none. The first of them counts."""
MAX_LOST = 3.0
"""A validation is far worse than the best if it lost more than this number of times what the run has gained since its first one,"""
MAX_WORSE = 0.5
"""and more than this part of the best one."""


@dataclass(frozen=True)
class Progress:
    """The evaluations of a run, and the alarm of one that is far worse than the best."""

    best: tuple[str, str] | None
    """Validation metric that chooses the best checkpoint, with "min" or "max". None: a loss, if the run measures one."""
    seen: list[tuple[int, dict[str, float]]]
    """(step, validation metrics) of each evaluation so far."""

    def check(self, step: int, validation: Mapping[str, float]) -> list[str]:
        """Adds an evaluation, if there is one. Returns a message if it is far worse than the best."""
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
