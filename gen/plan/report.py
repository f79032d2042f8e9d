"""The result of a dry run, and its report as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Sent(NamedTuple):
    """Communication of one device in a step, by one kind of collective."""

    count: int
    """Number of calls."""
    bytes: int
    """Total bytes of the calls."""
    between_hosts: int
    """Bytes of the calls whose devices are on more than one host."""


@dataclass(frozen=True)
class Plan:
    """Cost of a training step. Bytes and FLOPs are for one device unless a field says otherwise."""

    engine: str
    """Name of the engine, with its options: "jit with FSDP"."""
    compiler: str
    """Platform or TPU slice that the step was compiled for, such as "cpu" or "v5e:2x2"."""
    seconds: float
    """Time that compiling took, in seconds."""
    devices: int
    """Number of devices that are planned for."""
    hosts: int
    """Number of hosts of the devices."""
    examples: int
    """Examples per step, over all devices."""
    each: int
    """Examples per step on each device. With tensor parallelism, several devices share the same examples."""
    numbers: dict[str, int]
    """Number of parameters over all devices, by player or part of the model: {"params/NAME": number}."""
    held: dict[str, int]
    """Bytes held from step to step, by part of the state: {"params/NAME", "optimizer", "averages", ...: bytes}."""
    stepped: dict[str, int]
    """Bytes needed only during a step: {"gradients", "batch", "activations": bytes}. Activations are kept for the
    backward pass."""
    arguments: int
    """Bytes of the compiled step's arguments, by the compiler's analysis."""
    temporary: int
    """Bytes of the compiled step's temporary buffers, by the compiler's analysis."""
    peak: int
    """Maximum bytes in use at any time of the compiled step, by the compiler's analysis."""
    flops: float
    """FLOPs of matrix products and convolutions."""
    sent: dict[str, Sent]
    """Communication by kind of collective, {one of hlo.KINDS: Sent}."""
    unknown: int
    """Number of loops of unknown length. The communication in their bodies is counted once."""
    batch: int
    """Bytes of a step's batch, over all devices."""


def report(plan: Plan, note: str = "") -> list[str]:
    """Returns the lines of the report of a plan. note: one more line, about the data. "": no such line."""
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
    """Returns a number of bytes as text with a binary unit, B to TiB, such as "1.50 GiB"."""
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
    """Returns a number as text with a decimal prefix, k to P, such as "1.5 T". The unit can follow: "1.5 TFLOPs"."""
    if n < 1000:
        return f"{n:.0f} "
    for unit in ("k", "M", "G", "T"):
        n /= 1000
        if n < 1000:
            return f"{n:.3g} {unit}"
    return f"{n / 1000:,.0f} P"
