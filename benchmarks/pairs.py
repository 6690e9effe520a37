"""Two sides in turn on one machine, and the table that comes of it.

Every script here that compares us with PyTorch runs both sides in one process
run, one after the other in every round and in changing order, so that
whatever else the machine does meets both. What is published are medians over
the rounds, their spread, and the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"

# "cpu" is what all threads of the process have computed. On one core that is
# the wall time of a machine without other work, and on a busy machine the
# only time that means something.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

# The keys of `torch_side.FORMS`, without importing PyTorch.
FORMS = ("eager", "eager, channels_last", "compiled, channels_last")
FORMS_FLAG = dict(
    nargs="+",
    choices=FORMS,
    default=FORMS,
    help="of PyTorch, to choose from",
)

sys.path.insert(0, str(ROOT))

from core.atomic_files import write_text
from core.hardware import usable_cores


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one side gave, one number for each round.

    Attributes:
      values: seconds, images per second, or whatever the script compares.
    """

    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def describe(self, form: str = ".1f", scale: float = 1.0) -> str:
        """Returns "median (quartile-quartile)", each times `scale`."""
        low, high = self.median, self.median
        if len(self.values) > 1:
            low, _, high = statistics.quantiles(
                self.values, n=4, method="inclusive"
            )
        median, low, high = (
            format(scale * value, form) for value in (self.median, low, high)
        )
        return f"{median} ({low}-{high})"


def alternate(
    sides: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[str, Sample]:
    """Measures every side once in each round.

    Args:
      sides: name -> function that does the work and returns its measure.
      rounds: how many count.
      warm_up: rounds before those, which fill caches and do not count.

    Returns:
      name -> one value per round, rounds in the same order for all.
    """
    values = {name: [] for name in sides}
    for number in range(-warm_up, rounds):
        # Turned around every time: the second may find the caches warm.
        order = list(sides) if number % 2 else list(reversed(sides))
        for name in order:
            value = sides[name]()
            if number >= 0:
                values[name].append(value)
    return {name: Sample(found) for name, found in values.items()}


def seconds(
    work: Callable[[], object], clock: str = "wall", repeats: int = 1
) -> float:
    """Returns the time of one call, as the mean over `repeats`.

    Args:
      work: what to call.
      clock: of `CLOCKS`.
      repeats: calls.
    """
    read = CLOCKS[clock]
    start = read()
    for _ in range(repeats):
        work()
    return (read() - start) / repeats


def times_faster(ours: Sample, theirs: Sample) -> float:
    """Returns the median of the rounds' ratios; both are costs (seconds)."""
    return statistics.median(
        their / our
        for our, their in zip(ours.values, theirs.values, strict=True)
    )


def geometric_mean(ratios: Sequence[float]) -> float:
    """Returns the mean that ratios have."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table, all columns but the first aligned right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(
                zip(row, widths, strict=True)
            )
        )
        for row in cells
    ]
    rule = " | ".join(
        "-" * (width - 1) + ":" if column else "-" * width
        for column, width in enumerate(widths)
    )
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def describe_machine(*packages: str) -> str:
    """Returns processor, cores that may be used, load, and versions."""
    name = platform.processor() or platform.machine()
    flags = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            fields = dict(
                (part.strip() for part in line.split(":", 1))
                for line in file
                if ":" in line
            )
        name = fields.get("model name", name)
        if "avx512f" in fields.get("flags", ""):
            flags = " with AVX-512"
    cores = usable_cores()
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in packages
    )
    return (
        f"{name}{flags}, {cores} {'core' if cores == 1 else 'cores'} used of "
        f"{os.cpu_count()} (load {os.getloadavg()[0]:.1f}), "
        f"Python {platform.python_version()}, {versions}"
    )


def parse(
    doc: str, rounds: int, clock: str = "wall", **extra: dict
) -> argparse.Namespace:
    """Reads a benchmark's flags: --rounds, --clock, --write and its own.

    Args:
      doc: of the script; the first line describes it.
      rounds: by default.
      clock: by default.
      extra: flag name -> options of `add_argument`.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default=clock)
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"write the table into {PAGE.relative_to(ROOT)}",
    )
    for name, options in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    return parser.parse_args()


def publish(
    section: str, text: str, machine: str, write: bool, page: Path = PAGE
) -> None:
    """Prints a result; on request, makes it a section of a page.

    Args:
      section: its name in the page.
      text: Markdown.
      machine: from `describe_machine`.
      write: whether to write the page.
      page: of docs/.
    """
    arguments = [word for word in sys.argv[1:] if word != "--write"]
    script = Path(sys.argv[0]).name
    command = shlex.join(["python", f"benchmarks/{script}", *arguments])
    text = f"{text}\n\n`{command}`, {machine}"
    print(text, flush=True)
    if write:
        write_text(page, with_section(page.read_text(), section, text))


def with_section(page: str, section: str, text: str) -> str:
    """Returns `page` with `text` between the marks of `section`.

    Raises:
      ValueError: the page has no such marks.
    """
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page has no lines {begin!r} and {end!r}")
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{text}\n{end}{after}"
