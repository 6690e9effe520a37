"""Spans of time, as a person says them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Returns `seconds` as a person says it: '48 s', '3 min 20 s'."""
    seconds = max(0, round(seconds))
    parts = (
        (seconds // 86400, "d"),
        (seconds // 3600 % 24, "h"),
        (seconds // 60 % 60, "min"),
        (seconds % 60, "s"),
    )
    first = next((i for i, (value, _) in enumerate(parts) if value), 3)
    return " ".join(
        f"{value} {unit}" for value, unit in parts[first : first + 2]
    )
