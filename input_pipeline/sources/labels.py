"""What a label means: how it may be written, and when it is none.

Tables spoil labels on their way: a missing one becomes `nan`, an integer `3.0`
or `03`, and one class two that differ in a blank.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from core.errors import UserError

# What pandas, R, databases and spreadsheets write for a missing value.
MISSING = frozenset(
    (
        *("nan", "NaN", "NAN", "-nan", "-NaN", "NaT", "NA", "N/A", "n/a"),
        *("<NA>", "#N/A", "#NA", "null", "NULL", "Null", "None", "\\N"),
        *("#NULL!", "#DIV/0!", "#REF!", "#VALUE!", "#NAME?", "#NUM!"),
    )
)

_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
_NUMBER = re.compile(r"\+?(-?)0*([0-9]+)(?:\.([0-9]*?)0*)?")


class Doubt(NamedTuple):
    """Classes that may be none.

    Attributes:
      problem: "missing label", a name that means that there is no label, or
        "labels alike", two of one meaning.
      names: of the classes, one or two.
    """

    problem: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        shown = " and ".join(f"'{name}'" for name in self.names)
        if self.problem == "missing label":
            return f"class {shown} is how a missing value is written"
        return f"classes {shown} differ only in how they are written"


def encode(targets: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Numbers the classes of labels that are text.

    Returns:
      The classes, in numeric order when all are integers, and the index of
      each label among them, int32 `[N]`.
    """
    classes = sorted(set(targets))
    with contextlib.suppress(ValueError):
        classes = sorted(classes, key=int)
    index = {name: number for number, name in enumerate(classes)}
    labels = np.array([index[target] for target in targets], np.int32)
    return tuple(classes), labels


def without_fractions(texts: Sequence[str]) -> tuple[list[str], str]:
    """Undoes what a float column does to integers: 3.0 is 3.

    Only where all are whole numbers.

    Returns:
      The labels, and a note on what was done; "" if nothing was.
    """
    values = set(texts)
    found = sorted(text for text in values if "." in text)
    numbers = values - MISSING
    if not found or not all(_WHOLE.fullmatch(text) for text in numbers):
        return list(texts), ""
    read = {text: text.partition(".")[0] for text in found}
    note = f"'{found[0]}' is read as '{read[found[0]]}'"
    if len(found) > 1:
        note += f", and {len(found) - 1} more like it"
    return [read.get(text, text) for text in texts], note


def doubts(classes: Sequence[str]) -> Iterator[Doubt]:
    """Yields what is odd about the names of classes."""
    for name in classes:
        if name in MISSING:
            yield Doubt("missing label", (name,))
    seen: dict[str, str] = {}
    for name in classes:
        first = seen.setdefault(_meaning(name), name)
        if first != name:
            yield Doubt("labels alike", (first, name))


def refuse_doubts(
    targets: Sequence[str], where: str, remedy: str, known: Collection[str]
) -> None:
    """Raises a UserError for the first doubt about labels of a table.

    Args:
      targets: of all rows.
      where: the table and its column, in words.
      remedy: what to do where both are meant.
      known: classes that somebody has listed, and thus means.
    """
    classes = sorted(set(targets))
    for doubt in doubts(classes):
        if known.issuperset(doubt.names):
            continue
        if doubt.problem == "missing label":
            missing = [n for n in classes if n in MISSING and n not in known]
            count = sum(target in missing for target in targets)
            shown = ", ".join(f"'{name}'" for name in missing)
            raise UserError(
                f"{where} has {count} rows labelled {shown}, which is how "
                "missing values are written; fill them in or remove the rows"
                f"{remedy}"
            )
        one, other = doubt.names
        raise UserError(
            f"{where} has labels '{one}' and '{other}', which differ only in "
            f"how they are written; write one of them everywhere{remedy}"
        )


def _meaning(name: str) -> str:
    """The same for names that differ in case, blanks or leading zeros."""
    text = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(
        character
        for character in text
        if not character.isspace() and unicodedata.category(character) != "Cf"
    )
    if number := _NUMBER.fullmatch(text):
        sign, whole, fraction = number.groups()
        return f"{sign}{whole}.{fraction or ''}"
    return text
