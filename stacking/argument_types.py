"""Types of command-line arguments, for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def number(
    kind: type[Number], low: Number, high: Number
) -> Callable[[str], Number]:
    """Returns an argparse type: a number from `low` to `high`."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no number from {low:,} to {high:,}"
            )
        return value

    return parse


# Seeds of single fits are counted up from it, and must fit into 31 bits.
seed = number(int, 0, 2_000_000_000)
