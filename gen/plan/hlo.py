"""Finds the communication of a compiled program in the text of its optimized HLO.

XLA's cost analysis counts the body of a loop once. Here a collective in a loop counts as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
"""Operations of HLO that communicate."""
CALLS = ("fusion", "call", "async-start", "custom-call")
"""Operations of HLO that run another computation once."""


@dataclass(frozen=True)
class Collective:
    """A collective: an operation in which devices exchange data."""

    kind: str
    """One of KINDS."""
    bytes: int
    """Bytes of one call on one device: of its input or of its output, whichever is larger."""
    groups: tuple[tuple[int, ...], ...] | None
    """Indices of devices. The devices of a group exchange data with each other. None: all devices are one group."""
    count: int = 1
    """Number of calls in one run of the program or computation."""
    channel: str | None = None
    """Identifier of the operation. If the compiler splits an operation into parts, they have the same channel."""

    def crosses(self, host: Sequence[int]) -> bool:
        """Returns whether any group has devices on different hosts. host: the host of each device."""
        groups = [tuple(range(len(host)))] if self.groups is None else self.groups
        return any(len({host[device] for device in group}) > 1 for group in groups)


class Traffic(NamedTuple):
    """Communication of one run of a program."""

    collectives: list[Collective]
    """All collectives of the program, with the number of calls of each."""
    unknown: int
    """Number of loops whose length is not in the text. Their bodies are counted once."""


class _Instruction(NamedTuple):
    """An instruction of a computation. Its line is `%name = type opcode(operands)rest`."""

    type: str
    opcode: str
    operands: list[str]
    rest: str


Computation = Mapping[str, _Instruction]
"""{name: instruction}, a function of HLO."""


def traffic(text: str) -> Traffic:
    """Returns the communication of a compiled program. text: the result of its method `as_text`.

    Of a conditional, only the branch that sends most bytes counts.
    """
    computations, entry = _computations(text)
    program = _Program(computations)
    return Traffic(list(program.collectives(entry)), len(program.unknown))


class _Program:
    """The computations of a program. Finds the collectives of each, once."""

    def __init__(self, computations: Mapping[str, Computation]):
        self.computations = computations
        self.unknown: set[str] = set()
        """Loops of unknown length that were found."""
        self._found: dict[str, tuple[Collective, ...]] = {}

    def collectives(self, name: str) -> tuple[Collective, ...]:
        """Returns the collectives of one run of a computation and of all computations that it calls. name: its name."""
        # Many computations call the same computation, so each is read once.
        if name not in self._found:
            self._found[name] = tuple(self._read(name))
        return self._found[name]

    def _read(self, name: str) -> Iterator[Collective]:
        body = self.computations.get(name, {})
        channels: set[str] = set()
        for instruction, x in body.items():
            found = self._instruction(f"{name} {instruction}", x, body)
            if x.opcode in CALLS:
                # The TPU compiler splits an asynchronous collective into several fusions, and each has a copy of it.
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
    """Returns the bytes of a type in the notation of HLO: "bf16[8,128]{1,0}", or a tuple of such types."""
    return sum(
        -(-math.prod(int(n) for n in shape.split(",") if n) * _bits(dtype) // 8)
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", type)
    )


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    number = re.search(r"\d+", dtype)
    # The type "token" has no number and no data.
    return int(number.group()) if number else 0


# A type can have nested parentheses: of tuples in tuples, and of layouts.
_NESTED = r"[^()]*"
for _ in range(4):
    _NESTED = rf"(?:[^()]|\({_NESTED}\))*"
_LINE = re.compile(rf"\s+(?:ROOT )?%?([\w.-]+) = (\({_NESTED}\)|\S+) ([\w-]+)\(([^()]*)(.*)")
# The first line of a computation, such as `ENTRY %main (x: f32[2]) -> f32[2] {`.
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")


def _computations(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """Parses the text of HLO. Returns ({name: computation}, name of the computation with which the program begins)."""
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
    """Returns the names of the computations in some attributes of an instruction, such as "body" of a loop."""
    found = [m for a in attributes for m in re.findall(rf"\b{a}=(\{{[^}}]*\}}|%?[\w.-]+)", x.rest)]
    return [name for value in found for name in re.findall(r"[\w.-]+", value)]


def _collective(kind: str, x: _Instruction, body: Computation) -> Collective:
    inputs, outputs = sum(size(body[name].type) for name in x.operands if name in body), size(x.type)
    if x.opcode.endswith("-start") and kind != "all-reduce":
        # The type of such a start operation is a tuple of its inputs, its outputs, and counters.
        outputs = size(re.sub(r"[us]32\[\]", "", x.type)) - inputs
    channel = re.search(r"channel_id=(\d+)", x.rest)
    return Collective(kind, max(inputs, outputs), device_groups(x.rest), channel=channel and channel.group(1))


def _trips(x: _Instruction, body: Computation, computations: Mapping[str, Computation]) -> int | None:
    """Returns how often the body of a loop runs, or None if this is not in the text.

    x: the loop, an instruction of `body`. The number is an attribute of x. If it is missing, it is computed from the
    constant with which the loop's condition compares its counter.
    """
    # XLA writes the number of most loops.
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
    # Assumes that the counter goes up by 1, as in the loops that JAX makes.
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
    """Returns the groups of devices of a collective, or None for all devices in one group.

    HLO has three notations: listed "{{0,1},{2,3}}", counted "[2,2]<=[4]", or by a mesh "mesh['a'=2,'b'=2] {'b'}".

    rest: the attributes of the instruction, as text.
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", rest):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed.group(1)))
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        # The devices are numbered along the axes of a grid. The grid is transposed, and its rows are the groups.
        shape, of, order = ([int(n) for n in (group or "").split(",") if n] for group in counted.groups())
        devices = np.arange(math.prod(of)).reshape(of).transpose(order or None).reshape(shape)
        return tuple(map(tuple, devices.tolist()))
    if meshed := re.search(r"replica_groups=mesh\[((?:'\w+'=\d+,?)+)\] \{((?:'\w+',? ?)*)\}", rest):
        # A group has the devices that differ on the named axes of the mesh, and agree on its other axes.
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", meshed.group(1))}
        along = re.findall(r"'(\w+)'", meshed.group(2))
        names = [name for name in sizes if name not in along] + along
        devices = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        devices = devices.transpose([list(sizes).index(name) for name in names])
        return tuple(map(tuple, devices.reshape(-1, math.prod(sizes[name] for name in along)).tolist()))
    return None
