"""The printed report of a dry run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What a step takes. Bytes and FLOPs are of one device."""

    engine: str
    compiler: str
    """What the step was compiled for."""
    seconds: float
    """That compiling took."""
    devices: int
    hosts: int
    examples: int
    """Of a batch, over all devices."""
    each: int
    """Of a batch, on one."""
    numbers: dict[str, int]
    """How many parameters, by player or part, over all devices."""
    held: dict[str, int]
    """Bytes from step to step, by part of the state."""
    stepped: dict[str, int]
    """Bytes in a step beside: gradients, the batch, and activations that the backward pass needs."""
    arguments: int
    """Bytes that the compiled step is given."""
    temporary: int
    """Bytes that it needs beside, as the compiler has it."""
    peak: int
    """Bytes that it needs at most."""
    flops: float
    """Of matrix products and convolutions."""
    sent: dict[str, tuple[int, int, int]]
    """{kind of collective: (how many, their bytes, those of them between hosts)}."""
    unknown: int
    """Loops of unknown length, counted once in `sent`."""
    batch: int
    """Bytes of a step's batch over all devices."""


def report(plan: Plan, note: str = "") -> list[str]:
    """The lines of a plan."""
    n = plan.devices
    hosts = f" of {plan.hosts} hosts" if plan.hosts > 1 else ""
    lines = [
        "",
        f"{n} device{'s' * (n > 1)}{hosts}, engine {plan.engine}, {plan.examples:,} examples a step, {plan.each:,} a device; "
        f"compiled for {plan.compiler} in {plan.seconds:.0f} s",
        *([note] if note else []),
        "",
        "of each device",
    ]
    row = lambda name, value, more="": f"  {name:<24s} {value:>12s}  {more}".rstrip()
    for name, bytes_ in plan.held.items():
        lines.append(row(name, binary(bytes_), f"of {plan.numbers[name]:,} numbers" if name in plan.numbers else ""))
    about = {
        "gradients": "as the parameters",
        "batch": f"{binary(plan.batch // plan.hosts)} a host" if plan.hosts > 1 else "",
        "activations": "that the backward pass needs",
    }
    lines += [row(name, binary(bytes_), about[name]) for name, bytes_ in plan.stepped.items()]
    more = f"{binary(plan.arguments)} given, {binary(plan.temporary)} temporary: the compiler's"
    lines += [row("peak memory", binary(plan.peak), more), row("a step", decimal(plan.flops) + "FLOPs")]
    for kind, (count, bytes_, between) in plan.sent.items():
        across = f", {binary(between)} between hosts" if plan.hosts > 1 else ""
        lines.append(row(kind, binary(bytes_), f"in {count:,}{across}"))
    if not plan.sent:
        lines.append(row("sent", "nothing"))
    if plan.unknown:
        lines.append(f"  {plan.unknown} loops of unknown length are counted once")
    return lines


def binary(n: float) -> str:
    """Bytes for a person: "1.50 GiB"."""
    if n < 1000:
        return f"{n:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        n /= 1024
        if n < 1000:
            return f"{n:.{0 if n >= 100 else 1 if n >= 10 else 2}f} {unit}"
    return f"{n / 1024:,.1f} TiB"


def decimal(n: float) -> str:
    """A number for a person, with room for a unit: "1.50 T"."""
    for unit in ("", "k", "M", "G", "T"):
        if n < 1000:
            return f"{n:.0f} " if not unit else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.0f} P"
