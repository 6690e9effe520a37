"""What a compiled program reads and writes: bytes of memory, and cycles.

Reads the text of an optimized HLO module (`compiled.as_text()`), in which XLA
has already divided the work: every shape is that of one device.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

# Instructions that touch no memory of their own: names for what is there, or
# the second half of an asynchronous one.
_FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: how many bytes, and how many with the padding of its tiles.

    Attributes:
      size: bytes of its numbers.
      padded: bytes that it takes, in tiles of 8 x 128 numbers, say.
      on_chip: whether it is in a faster memory than the main one.
    """

    size: int
    padded: int
    on_chip: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of the line.
      opcode: such as "fusion".
      results: arrays that it gives, those of a tuple one by one.
      operands: names of the lines whose results it reads.
      rest: what follows the operands: attributes and metadata. Of a parameter,
        its number.
      is_root: whether its result is that of the computation.
    """

    name: str
    opcode: str
    results: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def source(self) -> str:
        """Path of the JAX operation that it comes from; '' if unknown."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""


Module = Mapping[str, Sequence[Instruction]]


def parse(text: str) -> tuple[Module, str]:
    """Returns the computations of a module by name, and the entry's name."""
    module: dict[str, list[Instruction]] = {}
    entry, lines = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            lines = module.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            instruction = _instruction(line)
            if instruction is not None:
                lines.append(instruction)
    return module, entry


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_HEAD = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(
    r"\b(pred|[suf]\d+\w*|bf16|token)\[([\d,]*)\](?:\{([\d,]*):?([^{}]*)\})?"
)


def _instruction(line: str) -> Instruction | None:
    head = _HEAD.match(line)
    if head is None:
        return None
    kind, rest = _until_space(line[head.end() :])
    opcode, _, rest = rest.partition("(")
    operands, rest = _until_closed(rest)
    if opcode == "parameter":
        operands, rest = "", operands
    return Instruction(
        head[2],
        opcode,
        tuple(map(_shape, _SHAPE.findall(kind))),
        tuple(re.findall(r"%([\w.\-]+)", operands)),
        rest,
        head[1] is not None,
    )


def _until_space(text: str) -> tuple[str, str]:
    """Divides at the first space outside of all brackets."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if letter == " " and depth == 0:
            return text[:index], text[index + 1 :]
    return text, ""


def _until_closed(text: str) -> tuple[str, str]:
    """Divides at the bracket that closes one opened before."""
    depth = 1
    for index, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if depth == 0:
            return text[:index], text[index + 1 :]
    return text, ""


def _shape(found: tuple[str, str, str, str]) -> Shape:
    kind, dimensions, order, layout = found
    bits = {"pred": 8, "token": 0}.get(kind)
    if bits is None:
        bits = int(re.search(r"\d+", kind)[0])
    sizes = [int(size) for size in dimensions.split(",") if size]
    padded = list(sizes)
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if tile and order:
        # From the dimension whose neighbours are adjacent in memory.
        minor = [int(axis) for axis in order.split(",")]
        lengths = [int(length) for length in tile[1].split(",")]
        for axis, length in zip(minor, reversed(lengths), strict=False):
            padded[axis] = -(-sizes[axis] // length) * length
    return Shape(
        -(-math.prod(sizes) * bits // 8),
        -(-math.prod(padded) * bits // 8),
        re.search(r"S\([1-9]", layout) is not None,
    )


def times_run(module: Module, entry: str) -> dict[str, int]:
    """Returns how often a step runs each computation.

    A loop whose number of rounds XLA does not know counts as one round, and
    every branch of a conditional as taken.
    """
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for instruction in module.get(name, ()):
            rounds = 1
            if instruction.opcode == "while":
                known = re.search(
                    r'known_trip_count[":{n\s]*"?(\d+)', instruction.rest
                )
                rounds = int(known[1]) if known else 1
            for called in _called(instruction):
                visit(called, count * rounds)

    visit(entry, 1)
    return dict(times)


def _called(instruction: Instruction) -> Iterator[str]:
    for names in re.findall(
        r"(?:calls|body|to_apply|branch_computations|called_computations"
        r"|(?:true|false)_computation)=(\{[^}]*\}|%[\w.\-]+)",
        instruction.rest,
    ):
        yield from re.findall(r"%([\w.\-]+)", names)


def _inlined(module: Module) -> set[str]:
    """Names of the computations that run inside of one instruction."""
    return {
        called
        for instructions in module.values()
        for instruction in instructions
        if instruction.opcode not in ("while", "conditional", "call")
        for called in _called(instruction)
    }


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that an instruction reads from and writes to main memory.

    Attributes:
      instruction: which.
      size: bytes of the numbers, in all its runs of a step.
      padded: bytes with the padding of tiles.
    """

    instruction: Instruction
    size: int
    padded: int


_SLICES = ("dynamic-slice", "gather", "slice")
_UPDATE = "dynamic-update-slice"


def memory_traffic(module: Module, entry: str) -> list[Traffic]:
    """Returns what each instruction of a step moves to and from main memory.

    Every array that an instruction reads or writes counts once; what is in
    on-chip memory does not. Of slices and updates in place, also of those
    inside a fusion, counts what is moved.
    """
    times, inlined = times_run(module, entry), _inlined(module)
    found = []
    for name, count in times.items():
        if name in inlined:
            continue
        of = {line.name: line.results for line in module[name]}
        for line in module[name]:
            if line.opcode in _FREE or line.opcode.endswith("-done"):
                continue
            moved = [
                shape for shape in _moved(module, line, of) if not shape.on_chip
            ]
            if moved:
                found.append(
                    Traffic(
                        line,
                        count * sum(shape.size for shape in moved),
                        count * sum(shape.padded for shape in moved),
                    )
                )
    return found


def _moved(
    module: Module, line: Instruction, of: Mapping[str, tuple[Shape, ...]]
) -> list[Shape]:
    """What one instruction reads and writes; `of`: results by name."""
    if line.opcode in _SLICES:  # As much is read as is written.
        return [*line.results, *line.results]
    if line.opcode == _UPDATE:
        part = of.get(line.operands[1], ())
        return [*part, *part]
    if line.opcode in ("copy-start", "slice-start"):
        # The results are what is copied to and from: in this order for
        # copies, the other way round for slices.
        ends = line.results[:2]
        written = ends[line.opcode == "slice-start"]
        return [
            dataclasses.replace(written, on_chip=end.on_chip) for end in ends
        ]
    inside = module.get(next(_called(line), ""), ())
    if line.opcode != "fusion" or not inside:
        read = [shape for name in line.operands for shape in of.get(name, ())]
        return [*read, *line.results]
    moved = list(_written(inside, line.results))
    for number, operand in enumerate(line.operands):
        whole, parts = of.get(operand, ()), _parts_read(module, inside, number)
        if parts is None or len(whole) != 1:
            moved += whole
        else:
            moved += [
                dataclasses.replace(part, on_chip=whole[0].on_chip)
                for part in parts
            ]
    return moved


def _parts_read(
    module: Module, inside: Sequence[Instruction], number: int
) -> list[Shape] | None:
    """The slices that a fusion takes of an operand; None if it reads it all.

    Args:
      module: from `parse`.
      inside: the computation of the fusion.
      number: of the operand.
    """
    parts: list[Shape] = []
    names = {
        line.name
        for line in inside
        if line.opcode == "parameter" and line.rest == str(number)
    }
    for line in inside:  # An instruction follows those that it reads.
        if not names & {*line.operands}:
            continue
        first = line.operands[0] in names
        only_first = first and not names & {*line.operands[1:]}
        if line.opcode == "bitcast":
            names.add(line.name)
        elif line.opcode in _SLICES and only_first:
            parts += line.results
        elif line.opcode == _UPDATE and only_first:
            if not _is_result(inside, line):  # It is not done in place.
                return None
        elif line.opcode == "fusion":
            nested = module.get(next(_called(line), ""), ())
            for place, operand in enumerate(line.operands):
                if operand in names:
                    found = _parts_read(module, nested, place)
                    if found is None:
                        return None
                    parts += found
        else:
            return None
    # Given on as it is, it is read by whoever takes the result.
    if any(line.is_root and line.name in names for line in inside):
        return None
    return parts


def _written(
    inside: Sequence[Instruction], results: Sequence[Shape]
) -> Iterator[Shape]:
    """Yields what a fusion writes: of an update in place, the part."""
    of = {line.name: line for line in inside}
    root = next(line for line in inside if line.is_root)
    sources = root.operands if root.opcode == "tuple" else (root.name,)
    if len(sources) != len(results):  # The root has several results itself.
        yield from results
        return
    for source, result in zip(sources, results, strict=True):
        line = of[source]
        while line.opcode == "bitcast":
            line = of[line.operands[0]]
        if line.opcode == _UPDATE:
            (part,) = of[line.operands[1]].results
            result = dataclasses.replace(part, on_chip=result.on_chip)
        yield result


def _is_result(inside: Sequence[Instruction], line: Instruction) -> bool:
    """Whether nothing in a fusion reads an instruction but what names it."""
    names = {line.name}
    for other in inside:
        if names & {*other.operands}:
            if other.opcode not in ("bitcast", "tuple"):
                return False
            names.add(other.name)
    return True


def estimated_cycles(module: Module, entry: str) -> int:
    """Returns the cycles of a step as the TPU compiler estimated them.

    It writes them beside what it tuned: fusions, copies, convolutions. They
    add up as if nothing overlapped. 0 where there are none.
    """
    times, inlined = times_run(module, entry), _inlined(module)
    total = 0
    for name in times.keys() - inlined:
        for line in module[name]:
            found = re.search(r'"estimated_cycles":"(\d+)"', line.rest)
            total += times[name] * int(found[1]) if found else 0
    return total
