"""What the devices of a compiled program exchange: kinds, counts and bytes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

from training.hlo import Instruction, Module, times_run

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step, on each device.

    Attributes:
      count: how many.
      size: bytes of their results.
      sent: bytes that a device sends at least, whatever the algorithm.
      overlapped: how many have other work between their start and their end.
    """

    count: int
    size: int
    sent: float
    overlapped: int


def collectives(
    module: Module, entry: str, devices: int
) -> dict[str, Collective]:
    """Returns the collectives of a step by kind, those in loops every time.

    The TPU compiler cuts a collective into parts, and joins them to other
    work: parts of one channel count once, as overlapped.

    Args:
      module: from `parse`.
      entry: the same.
      devices: that run the program, where a collective names no groups.
    """
    found: dict[str, Collective] = {}
    parted = _channels_in_parts(module)
    seen: set[str] = set()
    for name, count in times_run(module, entry).items():
        lines = list(module.get(name, ()))
        for index, line in enumerate(lines):
            kind = line.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            channel = _channel(line)
            if channel in seen:
                continue
            if channel in parted:
                seen.add(channel)
            group = _group_size(line, devices)
            size = _result_size(line, kind)
            if name.startswith("all-reduce-scatter"):
                # A sum of which every device keeps its part.
                kind, size = "reduce-scatter", size // group
            overlapped = channel in parted or (
                line.opcode.endswith("-start") and _is_overlapped(lines, index)
            )
            old = found.get(kind, Collective(0, 0, 0.0, 0))
            found[kind] = Collective(
                old.count + count,
                old.size + count * size,
                old.sent + count * size * _share_sent(kind, group),
                old.overlapped + count * overlapped,
            )
    return found


def _channels_in_parts(module: Module) -> set[str]:
    """Channels of collectives that are cut up and joined to other work."""
    return {
        _channel(line)
        for name, lines in module.items()
        if name.startswith("async_collective")
        for line in lines
        if line.opcode in COLLECTIVES
    } - {""}


def _channel(line: Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", line.rest)
    return found[1] if found else ""


def _result_size(line: Instruction, kind: str) -> int:
    """Bytes of the result of a collective.

    A start's is (operands, results, …), but that of an all-reduce, which
    gives its results alone.
    """
    results = line.results
    if kind != "all-reduce" and line.opcode.endswith("-start"):
        results = results[len(line.operands) : 2 * len(line.operands)]
    return sum(shape.size for shape in results)


def _is_overlapped(lines: Sequence[Instruction], start: int) -> bool:
    """Whether anything is computed between a start and its end."""
    for line in lines[start + 1 :]:
        if lines[start].name in line.operands:
            return False
        if line.opcode in ("fusion", "convolution", "dot", "custom-call"):
            return True
    return False


def _group_size(line: Instruction, devices: int) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line.rest)
    if listed:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=", line.rest)
    if counted:
        return int(counted[1].split(",")[-1])
    # Along named axes of a mesh: mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
    named = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line.rest)
    if named:
        sizes = dict(re.findall(r"('\w+')=(\d+)", named[1]))
        along = re.findall(r"'\w+'", named[2])
        return math.prod(int(sizes[axis]) for axis in along)
    return devices


def _share_sent(kind: str, group: int) -> float:
    """Bytes that a device sends at least, for each byte of the result.

    Patarasuk & Yuan 2009 for the all-reduce; the others follow from what a
    device must give to the other ones.
    """
    share = (group - 1) / group
    return {
        "all-reduce": 2 * share,
        "all-gather": share,
        "reduce-scatter": group - 1.0,
        "all-to-all": share,
        "collective-permute": 1.0 if group > 1 else 0.0,
    }[kind]
