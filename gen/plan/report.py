"""The printed report of a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Sent(NamedTuple):
    """Communication of a step by one kind of collective, for one device."""

    count: int
    """Number of calls."""
    bytes: int
    """Total bytes."""
    between_hosts: int
    """Bytes of the calls whose devices are on more than one host."""


@dataclass(frozen=True)
class Plan:
    """Cost of a training step. Bytes and FLOPs are for one device unless a field says otherwise."""

    engine: str
    """Name of the engine."""
    compiler: str
    """Platform that the step was compiled for."""
    seconds: float
    """Time to compile."""
    devices: int
    """Number of devices."""
    hosts: int
    """Number of hosts."""
    examples: int
    """Examples per step, over all devices."""
    each: int
    """Examples per step and device."""
    numbers: dict[str, int]
    """Number of parameters over all devices, by player or part."""
    held: dict[str, int]
    """Bytes held from step to step, by part of the state."""
    stepped: dict[str, int]
    """Bytes needed during a step: gradients, the batch, and activations kept for the backward pass."""
    arguments: int
    """Bytes of the compiled step's arguments."""
    temporary: int
    """Bytes of its temporary buffers, by the compiler's analysis."""
    peak: int
    """Bytes that it needs at most, by the compiler's analysis."""
    flops: float
    """FLOPs of matrix products and convolutions."""
    sent: dict[str, Sent]
    """Communication by kind of collective."""
    unknown: int
    """Number of loops of unknown length, whose communication is counted once."""
    batch: int
    """Bytes of a step's batch, over all devices."""


def report(plan: Plan, note: str = "") -> list[str]:
    """Returns the lines that show a plan. note: one more line, about its data."""
    hosts = f" of {plan.hosts} hosts" if plan.hosts > 1 else ""
    devices = f"{plan.devices} device{'s' if plan.devices > 1 else ''}{hosts}"
    lines = [
        "",
        f"{devices}, engine {plan.engine}, {plan.examples:,} examples per step, {plan.each:,} per device; "
        f"compiled for {plan.compiler} in {plan.seconds:.0f} s",
        *([note] if note else []),
        "",
        "each device",
    ]
    # First what stays on the device between steps, then what a step needs on top of it.
    for name, bytes_ in plan.held.items():
        total = f"{plan.numbers[name]:,} parameters in total" if name in plan.numbers else ""
        lines.append(_row(name, binary(bytes_), total))
    about = {
        "gradients": "sharded like the parameters",
        "batch": f"{binary(plan.batch // plan.hosts)} per host" if plan.hosts > 1 else "",
        "activations": "kept for the backward pass",
    }
    lines += [_row(name, binary(bytes_), about[name]) for name, bytes_ in plan.stepped.items()]
    # The rows above are computed from shapes. This one is the compiler's own count, so it includes everything.
    compiled = f"{binary(plan.arguments)} arguments, {binary(plan.temporary)} temporary, by the compiler"
    lines.append(_row("peak memory", binary(plan.peak), compiled))
    lines.append(_row("compute", decimal(plan.flops) + "FLOPs"))
    for kind, sent in plan.sent.items():
        between = f", {binary(sent.between_hosts)} between hosts" if plan.hosts > 1 else ""
        lines.append(_row(kind, binary(sent.bytes), f"in {sent.count:,} calls{between}"))
    if not plan.sent:
        lines.append(_row("communication", "none"))
    if plan.unknown:
        lines.append(f"  {plan.unknown} loops of unknown length are counted once")
    return lines


def _row(name: str, value: str, more: str = "") -> str:
    return f"  {name:<24s} {value:>12s}  {more}".rstrip()


def binary(n: float) -> str:
    """Returns a number of bytes as text, such as "1.50 GiB"."""
    if n < 1000:
        return f"{n:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        # Three significant digits.
        if n < 10:
            return f"{n:.2f} {unit}"
        if n < 1000:
            return f"{n:.{0 if n >= 100 else 1}f} {unit}"
    return f"{n / 1024:,.1f} TiB"


def decimal(n: float) -> str:
    """Returns a number as text that a unit can follow, such as "1.50 T"."""
    if n < 1000:
        return f"{n:.0f} "
    for unit in ("k", "M", "G", "T"):
        n /= 1000
        if n < 1000:
            return f"{n:.3g} {unit}"
    return f"{n / 1000:,.0f} P"
