"""Schedules: scalar hyper-parameters that change with the step. A config field of type `Scalar` is a number or a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import optax

from gen.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """A hyper-parameter that changes with the step. Subclass it to add a schedule."""

    def build(self, steps: int) -> optax.Schedule:
        """Returns the function step -> value for a run of `steps` steps. Steps count from 0 and may be traced."""
        raise NotImplementedError

    @property
    def reads_steps(self) -> bool:
        """Whether values depend on the run's number of steps. If so, a run can't be continued with another number of steps."""
        return True

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest value at any step. None: unknown, and then the range of the values is not checked."""
        return None


@dataclass(frozen=True)
class WarmupDecay(Schedule):
    """Rises linearly from 0 to `peak`, then falls to `end` at the end of the run. A subclass defines the curve of the fall."""

    peak: float
    """Value after the warm-up."""
    warmup: int = 0
    """Number of steps of the linear rise. 0: starts at `peak`."""
    end: float = 0.0
    """Value at the end of the run."""

    def __post_init__(self):
        _check_warmup(self.warmup)
        _check_finite(self, self.peak, self.end)

    @property
    def bounds(self) -> tuple[float, float]:
        # A warm-up starts at 0.
        values = (0.0, self.peak, self.end) if self.warmup else (self.peak, self.end)
        return min(values), max(values)

    def build(self, steps: int) -> optax.Schedule:
        fall = self.fall(max(1, steps - self.warmup))
        if not self.warmup:
            return fall
        # `fall` counts its steps from the end of the warm-up.
        return optax.join_schedules([optax.linear_schedule(0.0, self.peak, self.warmup), fall], [self.warmup])

    def fall(self, steps: int) -> optax.Schedule:
        """Returns the function step -> value that falls from `peak` at step 0 to `end` at step `steps`."""
        raise NotImplementedError


@dataclass(frozen=True)
class WarmupCosine(WarmupDecay):
    """Rises linearly from 0 to `peak`, then falls to `end` along half a cosine. Loshchilov and Hutter 2017, equation 5."""

    def fall(self, steps: int) -> optax.Schedule:
        # `alpha` is the final value as a fraction of the peak, which is undefined for a peak of 0.
        return optax.cosine_decay_schedule(self.peak, steps, alpha=self.end / self.peak if self.peak else 0.0)


@dataclass(frozen=True)
class WarmupLinear(WarmupDecay):
    """Rises linearly from 0 to `peak`, then falls linearly to `end`."""

    def fall(self, steps: int) -> optax.Schedule:
        return optax.linear_schedule(self.peak, self.end, steps)


@dataclass(frozen=True)
class Warmup(Schedule):
    """Moves linearly from `start` to `value` in `warmup` steps, then stays there. An example is the KL warm-up of a VAE."""

    value: float
    """Value after the warm-up."""
    warmup: int
    """Number of steps of the linear change. 0: starts at `value`."""
    start: float = 0.0
    """Value at step 0."""

    def __post_init__(self):
        _check_warmup(self.warmup)
        _check_finite(self, self.value, self.start)

    @property
    def bounds(self) -> tuple[float, float]:
        return min(self.start, self.value), max(self.start, self.value)

    def build(self, steps: int) -> optax.Schedule:
        # optax's linear schedule stays at its start if it has no steps.
        if self.warmup:
            return optax.linear_schedule(self.start, self.value, self.warmup)
        return optax.constant_schedule(self.value)

    @property
    def reads_steps(self) -> bool:
        return False


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Has the value `values[i]` before step `boundaries[i]`, and `values[i + 1]` from this step on."""

    boundaries: tuple[int, ...]
    """Ascending steps at which the value changes."""
    values: tuple[float, ...]
    """The values, one more than boundaries."""

    def __post_init__(self):
        if len(self.values) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(set(self.boundaries)):
            raise UserError(f"{self}: boundaries must ascend, with one value more than boundaries")
        if min(self.boundaries, default=1) < 1:
            raise UserError(f"{self}: boundaries are steps at which the value changes, so they must be above 0")
        _check_finite(self, *self.values)

    @property
    def bounds(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def build(self, steps: int) -> optax.Schedule:
        return optax.join_schedules([optax.constant_schedule(v) for v in self.values], list(self.boundaries))

    @property
    def reads_steps(self) -> bool:
        return False


Scalar = float | Schedule
"""A number, or a schedule of it."""


def schedule(value: Scalar, steps: int) -> optax.Schedule:
    """Returns the function step -> value of a number or a schedule, for a run of `steps` steps."""
    return value.build(steps) if isinstance(value, Schedule) else optax.constant_schedule(value)


def check_scalars(check: Callable[..., None], **scalars: Scalar | None) -> None:
    """Applies `check`, such as gen.errors.check_positive, to numbers, and to the smallest and the largest value of schedules.

    None is not checked, and neither is a schedule without bounds. Raises: UserError as `check` does.
    """
    for name, value in scalars.items():
        if not isinstance(value, Schedule):
            check(**({} if value is None else {name: value}))
        elif value.bounds is not None:
            low, high = value.bounds
            check(**{f"the smallest value of {name}": low, f"the largest value of {name}": high})


def _check_finite(of: Schedule, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise UserError(f"{of}: its values must be finite numbers")


def _check_warmup(warmup: int) -> None:
    if warmup < 0:
        raise UserError(f"warmup is {warmup}; it counts steps, so it must be at least 0")
