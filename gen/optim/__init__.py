"""Optimizers, schedules, the descent step, and adapters."""

from gen.optim.optimizers import Group, Optimizer
from gen.optim.rules import Rule
from gen.optim.schedules import Piecewise, Scalar, Schedule, Warmup, WarmupCosine, WarmupLinear, schedule

__all__ = [
    "Group",
    "Optimizer",
    "Piecewise",
    "Rule",
    "Scalar",
    "Schedule",
    "Warmup",
    "WarmupCosine",
    "WarmupLinear",
    "schedule",
]
