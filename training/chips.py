"""Accelerators, slices of them, and how fast a step can be on one.

Pure numbers: the command line checks a `--topology` with this file, before
anything imports JAX.

Sources, read in November 2026:
  v4, v5e, v5p, v6e: the table of each version's page,
    https://docs.cloud.google.com/tpu/docs/v5e and so on. "Bidirectional
    inter-chip interconnect bandwidth" counts both directions of all ports of
    a chip: 400 GB/s of v5e are four ports of 50 GB/s each way. v4's page has
    none; the older pages give 2,400 Gbit/s one way, half of v5p's.
  a100, h100, h200: NVIDIA's data sheets of the SXM modules,
    https://www.nvidia.com/en-us/data-center/h200/. bfloat16 without sparsity;
    NVLink's 600 and 900 GB/s count both directions.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one accelerator can do at most.

    Attributes:
      peak: bfloat16 FLOP/s.
      memory: bytes.
      bandwidth: of that memory, bytes/s.
      link: bytes/s that one port sends, and receives at the same time.
      dimensions: of the torus that a slice is cut from; 0 for a switch, on
        which every card has one port.
      ring: a dimension of so many chips is closed into a ring; shorter ones
        are lines.
      example: of a slice, for people.
      clock: cycles per second: the peak over what the matrix units of a chip
        do in a cycle (v5e: 4 of 128 x 128 multiply-adds); 0 if not published.
    """

    peak: float
    memory: float
    bandwidth: float
    link: float
    dimensions: int
    ring: int
    example: str
    clock: float = 0.0


CHIPS: Mapping[str, Chip] = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 50e9, 3, 4, "v4:2x2x2", 1.05e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 50e9, 2, 16, "v5e:2x4", 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 100e9, 3, 4, "v5p:2x2x2", 1.75e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 100e9, 2, 16, "v6e:2x4"),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, 0, 0, "a100:8"),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 0, 0, "h100:8"),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, 0, 0, "h200:8"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one kind, connected.

    Attributes:
      kind: of `CHIPS`.
      shape: chips along each dimension of the torus.
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What each of them can do."""
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        """JAX's name: "tpu" or "cuda"."""
        return "tpu" if self.chip.dimensions else "cuda"

    @property
    def bandwidth(self) -> float:
        """Bytes/s that a chip can send, on average over the slice; 0 if alone.

        All links at once, each in both directions. A dimension of a mesh has
        one link less than chips, one that is closed to a ring as many. What
        all chips send together takes at least as long as this says, whichever
        of them sends it.
        """
        if not self.chip.dimensions:
            return self.chip.link if self.size > 1 else 0.0
        links = sum(
            2 if size >= self.chip.ring else 2 * (size - 1) / size
            for size in self.shape
        )
        return links * self.chip.link

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"


# Cards of one host, joined by NVLink.
_CARDS = 8


def parse_slice(text: str) -> Slice:
    """Reads a slice such as `v5e:2x4`.

    Raises:
      UserError: it is no such slice; which forms there are.
    """
    match = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", text)
    chip = CHIPS.get(match[1]) if match else None
    shape = tuple(map(int, match[2].split("x"))) if match else ()
    if chip is None or len(shape) != max(chip.dimensions, 1):
        raise UserError(
            f"--topology is {text!r}: write a kind of chip and how many there "
            "are along each dimension, such as "
            f"{', '.join(chip.example for chip in CHIPS.values())}"
        )
    if not chip.dimensions and shape[0] > _CARDS:
        raise UserError(
            f"--topology is {text!r}: no speed is known of the network between "
            f"hosts; write at most {_CARDS} cards, which one host has"
        )
    return Slice(match[1], shape)


@dataclasses.dataclass(frozen=True)
class Bound:
    """How long a step takes at least, by what limits it, in seconds.

    Attributes:
      compute: all FLOPs at the peak.
      memory: all bytes at the memory's bandwidth.
      links: all bytes that chips send, over all links at once.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The longest of the three.

        A chip may do all of them at the same time, so nothing but the maximum
        is a lower bound. `sum` is what it takes if nothing overlaps.
        """
        return max(self.compute, self.memory, self.links)

    @property
    def sum(self) -> float:
        """Seconds if nothing overlaps."""
        return self.compute + self.memory + self.links

    @property
    def limit(self) -> str:
        """What the longest of the three is."""
        times = dataclasses.asdict(self)
        return max(times, key=times.__getitem__)


def roofline(chips: Slice, flops: float, accessed: float, sent: float) -> Bound:
    """Returns the bound of a step (Williams et al. 2009, with links).

    Args:
      chips: that it runs on.
      flops: of a step on each chip.
      accessed: bytes read from and written to a chip's memory.
      sent: bytes that a chip sends.
    """
    chip = chips.chip
    return Bound(
        flops / chip.peak,
        accessed / chip.bandwidth,
        sent / chips.bandwidth if sent else 0.0,
    )
