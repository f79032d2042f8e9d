"""Communication of a compiled program, read from the text of its optimized HLO.

XLA's own cost analysis counts the body of a loop once. Here a collective counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
CALLS = ("fusion", "call", "async-start", "custom-call")


@dataclass(frozen=True)
class Collective:
    """An operation in which devices exchange data."""

    kind: str
    """One of KINDS."""
    bytes: int
    """Bytes per call: the input or the output of one device, whichever is larger."""
    groups: tuple[tuple[int, ...], ...] | None
    """Groups of devices that exchange with each other. None: all devices are one group."""
    count: int = 1
    """Number of calls in one run of the program."""
    channel: str | None = None
    """Name that the parts share if the compiler has spread one operation over several computations."""

    def crosses(self, host: Sequence[int]) -> bool:
        """Returns whether a group has devices on different hosts. host: the host of each device."""
        groups = [tuple(range(len(host)))] if self.groups is None else self.groups
        return any(len({host[device] for device in group}) > 1 for group in groups)


class Traffic(NamedTuple):
    """Communication of one run of a program."""

    collectives: list[Collective]
    """All collectives, with the number of their calls."""
    unknown: int
    """Number of loops whose length the text does not tell. Their bodies are counted once."""


class _Instruction(NamedTuple):
    """One line of a computation: `%name = type opcode(operands)rest`."""

    type: str
    opcode: str
    operands: list[str]
    rest: str


Computation = Mapping[str, _Instruction]
"""{name: instruction}"""


def traffic(text: str) -> Traffic:
    """Returns the collectives of a compiled program, given `compiled.as_text()`. A conditional counts by its dearest branch."""
    computations, entry = _computations(text)
    program = _Program(computations)
    return Traffic(list(program.collectives(entry)), len(program.unknown))


class _Program:
    """The computations of a program, and the collectives found in them so far."""

    def __init__(self, computations: Mapping[str, Computation]):
        self.computations = computations
        self.unknown: set[str] = set()
        """Loops of unknown length."""
        self._found: dict[str, tuple[Collective, ...]] = {}

    def collectives(self, name: str) -> tuple[Collective, ...]:
        """Returns the collectives of one run of a computation, also of those that it calls."""
        if name not in self._found:  # many computations call the same one
            self._found[name] = tuple(self._read(name))
        return self._found[name]

    def _read(self, name: str) -> Iterator[Collective]:
        body = self.computations.get(name, {})
        channels: set[str] = set()
        for instruction, x in body.items():
            found = self._instruction(f"{name} {instruction}", x, body)
            if x.opcode in CALLS:
                # A TPU spreads an asynchronous collective over several fusions, each with a copy of it.
                found = [c for c in found if c.channel not in channels]
                channels |= {c.channel for c in found if c.channel is not None}
            yield from found

    def _instruction(self, label: str, x: _Instruction, body: Computation) -> Sequence[Collective]:
        kind = x.opcode.removesuffix("-start")
        if kind in KINDS:
            return [_collective(kind, x, body)]
        if x.opcode == "while":
            return list(self._loop(label, x, body))
        if x.opcode == "conditional":
            return self._dearest_branch(x)
        if x.opcode in CALLS:
            return [c for name in _called(x, "calls", "to_apply") for c in self.collectives(name)]
        return []

    def _loop(self, label: str, x: _Instruction, body: Computation) -> Iterator[Collective]:
        trips = _trips(x, body, self.computations)
        if trips is None:
            self.unknown.add(label)
            trips = 1
        for c in self.collectives(_called(x, "body")[0]) + self.collectives(_called(x, "condition")[0]):
            yield replace(c, count=c.count * trips)

    def _dearest_branch(self, x: _Instruction) -> tuple[Collective, ...]:
        names = _called(x, "branch_computations", "true_computation", "false_computation")
        branches = [self.collectives(name) for name in names]
        return max(branches, key=lambda branch: sum(c.count * c.bytes for c in branch))


def size(type: str) -> int:
    """Returns the bytes of a type as HLO writes it: "bf16[8,128]{1,0}", or a tuple of such types."""
    return sum(
        -(-math.prod(int(n) for n in shape.split(",") if n) * _bits(dtype) // 8)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", type)
    )


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    number = re.search(r"\d+", dtype)
    return int(number.group()) if number else 0  # a token has none


# A type can be a tuple of tuples of arrays, whose layouts have parentheses as well.
_NESTED = r"[^()]*"
for _ in range(4):
    _NESTED = rf"(?:[^()]|\({_NESTED}\))*"
_LINE = re.compile(rf"\s+(?:ROOT )?%?([\w.-]+) = (\({_NESTED}\)|\S+) ([\w-]+)\(([^()]*)(.*)")
# The first line of a computation.
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")


def _computations(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Returns the computations by name, and the name of the one that the program starts with."""
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
    """Returns the names of the computations in these attributes of an instruction."""
    found = [m for a in attributes for m in re.findall(rf"\b{a}=(\{{[^}}]*\}}|%?[\w.-]+)", x.rest)]
    return [name for value in found for name in re.findall(r"[\w.-]+", value)]


def _collective(kind: str, x: _Instruction, body: Computation) -> Collective:
    inputs, outputs = sum(size(body[name].type) for name in x.operands if name in body), size(x.type)
    if x.opcode.endswith("-start") and kind != "all-reduce":
        # The type of a start lists inputs, outputs, and counters.
        outputs = size(re.sub(r"[us]32\[\]", "", x.type)) - inputs
    channel = re.search(r"channel_id=(\d+)", x.rest)
    return Collective(kind, max(inputs, outputs), device_groups(x.rest), channel=channel and channel.group(1))


def _trips(x: _Instruction, body: Computation, computations: Mapping[str, Computation]) -> int | None:
    """Returns how often a loop runs: as XLA notes it, or else the constant that its counter is compared with.

    None: the text does not tell.
    """
    # XLA notes the length of most loops itself.
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', x.rest):
        return int(noted.group(1))
    condition = computations.get(_called(x, "condition")[0], {})
    compared = [c for c in condition.values() if c.opcode == "compare" and "direction=LT" in c.rest]
    if len(compared) != 1 or len(compared[0].operands) != 2:
        return None
    counter, end = (condition.get(name) for name in compared[0].operands)
    if not (counter and end and counter.opcode == "get-tuple-element" and end.opcode == "constant"):
        return None
    if not (end.operands and end.operands[0].isdecimal()):
        return None
    return int(end.operands[0]) - _loop_start(x, counter, body)


def _loop_start(x: _Instruction, counter: _Instruction, body: Computation) -> int:
    """Returns the first value of a loop's counter, or 0 if it is not a constant."""
    index, start = re.search(r"index=(\d+)", counter.rest), body.get(x.operands[0])
    if start and index and start.opcode == "tuple":
        start = body.get(start.operands[int(index.group(1))])
    while start and start.opcode in ("copy", "bitcast"):
        start = body.get(start.operands[0])
    constant = start is not None and start.opcode == "constant" and start.operands[0].isdecimal()
    return int(start.operands[0]) if start and constant else 0


def device_groups(rest: str) -> tuple[tuple[int, ...], ...] | None:
    """Returns the groups of devices of a collective, in any of the three notations of HLO. None: all devices.

    rest: the attributes of the instruction.
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", rest):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed.group(1)))
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        # Counts the devices along the axes of a grid, transposes it, and cuts it into rows.
        shape, of, order = ([int(n) for n in (group or "").split(",") if n] for group in counted.groups())
        devices = np.arange(math.prod(of)).reshape(of).transpose(order or None).reshape(shape)
        return tuple(map(tuple, devices.tolist()))
    if meshed := re.search(r"replica_groups=mesh\[((?:'\w+'=\d+,?)+)\] \{((?:'\w+',? ?)*)\}", rest):
        # A group varies along the named axes of the mesh, and is the same on its other axes.
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", meshed.group(1))}
        along = re.findall(r"'(\w+)'", meshed.group(2))
        names = [name for name in sizes if name not in along] + along
        devices = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        devices = devices.transpose([list(sizes).index(name) for name in names])
        return tuple(map(tuple, devices.reshape(-1, math.prod(sizes[name] for name in along)).tolist()))
    return None
