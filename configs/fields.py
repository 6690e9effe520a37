"""Config fields declared once: default and permitted values together.

    mae = declare("mae", mask_ratio=Field(0.75, between(0, 1)))

makes a `ConfigDict` with the defaults and remembers the checks under the
group's path, so that `complaints` can check any config that contains it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

# Returns the complaint about a value ("it must be positive"), or "".
Check = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Field:
    """A config field.

    Attributes:
      default: its value where a recipe says nothing; its type is the type
        that an override must have.
      check: what values it may have.
    """

    default: Any
    check: Check = lambda value: ""


# ---- Checks -----------------------------------------------------------------


def positive(value: float) -> str:
    """Accepts numbers above 0."""
    return "" if value > 0 else "it must be positive"


def not_negative(value: float) -> str:
    """Accepts 0 and above."""
    return "" if value >= 0 else "it must not be negative"


def share(value: float) -> str:
    """Accepts a share or a probability, 0 to 1."""
    return "" if 0 <= value <= 1 else "it must lie in [0, 1]"


def below_one(value: float) -> str:
    """Accepts 0 to below 1."""
    return "" if 0 <= value < 1 else "it must lie in [0, 1)"


def between(low: float, high: float) -> Check:
    """Accepts what lies strictly between two numbers."""
    return lambda value: (
        "" if low < value < high else f"it must lie between {low} and {high}"
    )


def at_least(low: float) -> Check:
    """Accepts `low` and above."""
    return lambda value: "" if value >= low else f"take {low} or more"


def at_least_or_all(low: float) -> Check:
    """Accepts `low` and above, or -1, which asks the machine."""
    return lambda value: (
        "" if value >= low or value == -1 else f"take {low} or more, or -1"
    )


def up_to(high: float) -> Check:
    """Accepts 0 to `high`."""
    return lambda value: (
        "" if 0 <= value <= high else f"it runs from 0 to {high}"
    )


def one_of(*names: str) -> Check:
    """Accepts one of some names."""
    return lambda value: (
        "" if value in names else f"choose one of {', '.join(names)}"
    )


def ascending(highest: float = math.inf) -> Check:
    """Accepts two positive numbers, the smaller first, up to `highest`."""

    def check(ends: tuple[float, float]) -> str:
        if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
            return "it must be two positive numbers, the smaller first"
        if ends[1] > highest:
            return f"a share of the image is at most {highest}"
        return ""

    return check


def renames(rows: tuple[str, ...]) -> str:
    """Accepts rows of "regular expression -> replacement"."""
    for row in rows:
        pattern, arrow, replacement = row.partition(" ->")
        try:
            re.sub(pattern, replacement.strip(), "")
        except re.error as error:
            return f"{row!r} has no regular expression ({error})"
        if not arrow:
            return (
                f"{row!r} must read 'pattern -> replacement', such as "
                r"'^backbone\. -> '"
            )
    return ""


# ---- Declarations -----------------------------------------------------------

_CHECKS: dict[str, Check] = {}


def declare(group: str, **fields: Any) -> ConfigDict:
    """Returns a group of fields with their defaults, and keeps their checks.

    Args:
      group: dotted path of the group in a config, "" for the top level;
        `stages` stands for every stage.
      **fields: `Field`s; nested groups and values without a check as they
        are.
    """
    values = {}
    for name, field in fields.items():
        if isinstance(field, Field):
            _CHECKS[f"{group}.{name}" if group else name] = field.check
            field = field.default
        values[name] = field
    return ConfigDict(values)


def complaints(plain: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each field whose value is not permitted.

    Args:
      plain: a whole config as `loading.flatten(loading.plain(config))`.
    """
    for path, value in plain.items():
        name = re.sub(r"\.(\d+)\b", r"[\1]", path)
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
            yield f"{name} is {value}: it must be finite"
            continue
        # A stage's own `augment.flip` is checked like `augment.flip`.
        generic = re.sub(r"\.\d+\b", "", path)
        override = re.fullmatch(r"stages\.(augment|mixing)\.(.+)", generic)
        if override is not None:
            generic = f"{override[1]}.{override[2]}"
        check = _CHECKS.get(generic)
        if check is None:
            continue
        try:
            complaint = check(value)
        except TypeError:
            complaint = "it must hold numbers"
        if complaint:
            yield f"{name} is {value!r}: {complaint}"
