"""What a compiled program sends between devices, read from its optimized HLO text.

XLA's own cost analysis counts the body of a loop once; here a collective counts as often as it is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """An operation in which devices exchange data."""

    kind: str
    """One of KINDS."""
    bytes: int
    """The larger of what one device puts in and what it gets out, each time."""
    groups: tuple[tuple[int, ...], ...] | None
    """Which devices exchange with each other; None: all of them."""
    count: int = 1
    """How often it is run in one run of the program."""
    channel: str | None = None
    """What parts of one operation that were fused into several computations have in common."""

    def crosses(self, host: Sequence[int]) -> bool:
        """Whether two devices of a group are on different hosts; host: of each device."""
        groups = [tuple(range(len(host)))] if self.groups is None else self.groups
        return any(len({host[device] for device in group}) > 1 for group in groups)


class Traffic(NamedTuple):
    """What a program sends."""

    collectives: list[Collective]
    unknown: int
    """Loops of a length that the text doesn't tell: their bodies are counted once."""


class _Instruction(NamedTuple):
    type: str
    opcode: str
    operands: list[str]
    rest: str


def traffic(text: str) -> Traffic:
    """The collectives of a compiled program, `compiled.as_text()`. Of a conditional, the branch that sends most."""
    computations, entry = _computations(text)
    unknown: set[str] = set()

    @cache
    def sent(name: str) -> tuple[Collective, ...]:
        body, found, fused = computations.get(name, {}), [], set()
        for own, x in body.items():
            kind = x.opcode.removesuffix("-start")
            if kind in KINDS:
                found.append(_collective(kind, x, body))
            elif x.opcode == "while":
                trips = _trips(x, body, computations)
                if trips is None:
                    unknown.add(f"{name} {own}")
                inner = sent(_called(x, "body")[0]) + sent(_called(x, "condition")[0])
                found += [replace(c, count=c.count * (1 if trips is None else trips)) for c in inner]
            elif x.opcode == "conditional":
                branches = _called(x, "branch_computations", "true_computation", "false_computation")
                found += max(map(sent, branches), key=lambda cs: sum(c.count * c.bytes for c in cs))
            elif x.opcode in ("fusion", "call", "async-start", "custom-call"):
                # A TPU's asynchronous collective is spread over several fusions, each with a copy of the instruction.
                new = [c for name in _called(x, "calls", "to_apply") for c in sent(name) if c.channel not in fused]
                fused |= {c.channel for c in new} - {None}
                found += new
        return tuple(found)

    return Traffic(list(sent(entry)), len(unknown))


def size(type: str) -> int:
    """Bytes of a type as HLO writes it: "bf16[8,128]{1,0}", or a tuple of such."""
    return sum(
        -(-math.prod(int(n) for n in shape.split(",") if n) * _bits(dtype) // 8)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", type)
    )


def _bits(dtype: str) -> int:
    number = re.search(r"\d+", dtype)
    return int(number.group()) if number else 8 if dtype == "pred" else 0


_NESTED = r"[^()]*"
for _ in range(4):  # a tuple of tuples of arrays whose layouts have parentheses
    _NESTED = rf"(?:[^()]|\({_NESTED}\))*"
_LINE = re.compile(rf"\s+(?:ROOT )?%?([\w.-]+) = (\({_NESTED}\)|\S+) ([\w-]+)\(([^()]*)(.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")


def _computations(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """{computation: {instruction: ...}}, and the name of the entry."""
    found: dict[str, dict[str, _Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head.group(2)
            found[current] = {}
            entry = current if head.group(1) else entry
        elif current and (match := _LINE.match(line)):
            name, type, opcode, operands, rest = match.groups()
            found[current][name] = _Instruction(type, opcode, re.findall(r"%?([A-Za-z_][\w.-]*|\d+)", operands), rest)
    return found, entry


def _called(x: _Instruction, *attributes: str) -> list[str]:
    found = [m for a in attributes for m in re.findall(rf"\b{a}=(\{{[^}}]*\}}|%?[\w.-]+)", x.rest)]
    return [name for value in found for name in re.findall(r"[\w.-]+", value)]


def _collective(kind: str, x: _Instruction, body: Mapping[str, _Instruction]) -> Collective:
    inside, outside = sum(size(body[name].type) for name in x.operands if name in body), size(x.type)
    if x.opcode.endswith("-start") and kind != "all-reduce":  # the type of a start has what goes in, too
        outside = size(re.sub(r"[us]32\[\]", "", x.type)) - inside
    channel = re.search(r"channel_id=(\d+)", x.rest)
    return Collective(kind, max(inside, outside), _groups(x.rest), channel=channel and channel.group(1))


def _trips(x: _Instruction, body: Mapping[str, _Instruction], computations: Mapping[str, Mapping]) -> int | None:
    """How often a loop is run: as XLA notes it, or else the constant that its counter is compared with."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', x.rest):
        return int(noted.group(1))
    condition: Mapping[str, _Instruction] = computations.get(_called(x, "condition")[0], {})
    compared = [c for c in condition.values() if c.opcode == "compare" and "direction=LT" in c.rest]
    if len(compared) != 1 or len(compared[0].operands) != 2:
        return None
    counter, end = (condition.get(name) for name in compared[0].operands)
    if not (counter and end and counter.opcode == "get-tuple-element" and end.opcode == "constant"):
        return None
    index = re.search(r"index=(\d+)", counter.rest)
    start = body.get(x.operands[0])
    if start and index and start.opcode == "tuple":
        start = body.get(start.operands[int(index.group(1))])
        while start and start.opcode in ("copy", "bitcast"):
            start = body.get(start.operands[0])
    begin = int(start.operands[0]) if start and start.opcode == "constant" and start.operands[0].isdecimal() else 0
    return int(end.operands[0]) - begin if end.operands and end.operands[0].isdecimal() else None


def _groups(rest: str) -> tuple[tuple[int, ...], ...] | None:
    """Groups of devices in the three ways that HLO writes them; None if it means all, or writes them in a fourth."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", rest)
    if listed:
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed.group(1)))
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if counted:
        shape, of, order = ([int(n) for n in (group or "").split(",") if n] for group in counted.groups())
        devices = np.arange(math.prod(of)).reshape(of).transpose(order or None).reshape(shape)
        return tuple(map(tuple, devices.tolist()))
    meshed = re.search(r"replica_groups=mesh\[((?:'\w+'=\d+,?)+)\] \{((?:'\w+',? ?)*)\}", rest)
    if meshed:
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", meshed.group(1))}
        along = re.findall(r"'(\w+)'", meshed.group(2))
        names = [name for name in sizes if name not in along] + along
        devices = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        devices = devices.transpose([list(sizes).index(name) for name in names])
        return tuple(map(tuple, devices.reshape(-1, math.prod(sizes[name] for name in along)).tolist()))
    return None
