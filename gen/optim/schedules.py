"""Schedules: a scalar hyper-parameter as a function of the step. Wherever a config says `Scalar`, a number or one of these fits."""

from __future__ import annotations

from dataclasses import dataclass

import optax

from gen.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """A hyper-parameter that moves with the step. Subclass it to add one."""

    def build(self, steps: int) -> optax.Schedule:
        """step -> value, for a run of `steps` steps."""
        raise NotImplementedError

    @property
    def reads_steps(self) -> bool:
        """Whether the value at a step depends on the length of the run, which then belongs to the run's identity."""
        return True


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """From 0 to `peak` in a line, then down to `end` in half a cosine. Loshchilov and Hutter 2017, equation 5."""

    peak: float
    warmup: int = 0
    end: float = 0.0

    def __post_init__(self):
        _check(self.warmup)

    def build(self, steps: int) -> optax.Schedule:
        down = optax.cosine_decay_schedule(
            self.peak, max(1, steps - self.warmup), alpha=self.end / self.peak if self.peak else 0.0
        )
        return _after_warmup(self.warmup, self.peak, down)


@dataclass(frozen=True)
class WarmupLinear(Schedule):
    """From 0 to `peak` in a line, then down to `end` in a line."""

    peak: float
    warmup: int = 0
    end: float = 0.0

    def __post_init__(self):
        _check(self.warmup)

    def build(self, steps: int) -> optax.Schedule:
        down = optax.linear_schedule(self.peak, self.end, max(1, steps - self.warmup))
        return _after_warmup(self.warmup, self.peak, down)


@dataclass(frozen=True)
class Warmup(Schedule):
    """From `start` to `value` in a line of `warmup` steps, then constant. A VAE's KL warm-up."""

    value: float
    warmup: int
    start: float = 0.0

    def __post_init__(self):
        _check(self.warmup)

    def build(self, steps: int) -> optax.Schedule:
        return (
            optax.linear_schedule(self.start, self.value, self.warmup)
            if self.warmup
            else optax.constant_schedule(self.value)
        )

    @property
    def reads_steps(self) -> bool:
        return False


@dataclass(frozen=True)
class Piecewise(Schedule):
    """`values[i]` until step `boundaries[i]`; one value more than boundaries."""

    boundaries: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self):
        if len(self.values) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(set(self.boundaries)):
            raise UserError(f"{self}: boundaries must ascend, with one value more than there are boundaries")

    def build(self, steps: int) -> optax.Schedule:
        return optax.join_schedules([optax.constant_schedule(v) for v in self.values], list(self.boundaries))

    @property
    def reads_steps(self) -> bool:
        return False


Scalar = float | Schedule


def schedule(value: Scalar, steps: int) -> optax.Schedule:
    """step -> value, of a number or a schedule."""
    return value.build(steps) if isinstance(value, Schedule) else optax.constant_schedule(value)


def _after_warmup(warmup: int, peak: float, then: optax.Schedule) -> optax.Schedule:
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), then], [warmup]) if warmup else then


def _check(warmup: int) -> None:
    if warmup < 0:
        raise UserError(f"warmup is {warmup}; it counts steps, so at least 0")
