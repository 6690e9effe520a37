"""What a study varies: axes, their levels, and the cells of the grid.

A level is a name for fields of the recipe that are set together. On the
command line, `--grid 'field=a,b'` is an axis whose levels set one field; a
TOML file has an axis per table and a level per entry:

    [start]
    scratch = { init_from = "" }
    transfer = { init_from = "imagenet", "stages[0].learning_rate" = 1e-3 }

The first level of each axis is what the others are compared with. The field
`config` names another recipe, or with a colon first a variant of the study's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import loading
from core.errors import UserError
from run_folder import identity

# Of a level: which recipe, instead of one of its fields.
RECIPE = "config"

# What changes no result: where data are, speed and telemetry. Folders keep
# the seeds apart.
_NOT_COMPARED = (identity.FREE_FIELDS | {"seed"}) - {
    "data.generated",
    "init_from",
    "stages.*.distill_from",
    *identity.EXPORT_FIELDS,
}


@dataclasses.dataclass(frozen=True)
class Level:
    """A name for values of fields.

    Attributes:
      name: in tables and folder names.
      fields: `stages[0].epochs` and the like, with values as on the command
        line.
    """

    name: str
    fields: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Something that is varied.

    Attributes:
      name: in tables.
      levels: two or more, the baseline first.
    """

    name: str
    levels: tuple[Level, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of levels.

    Attributes:
      levels: one of each axis, in order.
      recipe: path and variant.
      overrides: `--config.a=b` of the levels and of the whole study.
      config: what comes of them, but for the seed.
    """

    levels: tuple[Level, ...]
    recipe: str
    overrides: tuple[str, ...]
    config: ConfigDict

    @property
    def name(self) -> str:
        """Its levels, for people."""
        return ", ".join(level.name for level in self.levels)

    @property
    def folder(self) -> str:
        """Its levels as a file name."""
        return slug("+".join(level.name for level in self.levels))

    @property
    def digest(self) -> str:
        """Tells whether results are of the same config, whatever the seed."""
        return self._digest(_NOT_COMPARED)

    @property
    def training(self) -> str:
        """Same for cells that differ only in how a trained run is exported."""
        return self._digest(_NOT_COMPARED | identity.EXPORT_FIELDS)

    def _digest(self, leave_out: frozenset[str]) -> str:
        told = identity.told(loading.plain(self.config), leave_out)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def slug(text: str) -> str:
    """Returns text as a file name; other texts have other names."""
    name = re.sub(r"[^\w.+=-]+", "_", text).strip("_.") or "_"
    if name == text and len(name) <= 80:
        return name
    return f"{name[:70]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# ---- From the command line --------------------------------------------------


def parse_grid(text: str) -> Axis:
    """Returns the axis of `--grid 'field=a,b'`.

    Values are divided at commas outside of brackets and quotes.

    Raises:
      UserError: it is no field with two values or more.
    """
    name, _, values = text.partition("=")
    last = name.rpartition(".")[2]
    levels = tuple(
        Level(f"{last}={value}", {name: value})
        for value in split_values(values)
    )
    return make_axis(name, levels, f"--grid {text!r}")


def read_arms(path: str | Path) -> list[Axis]:
    """Returns the axes of a TOML file.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--arms {path} cannot be read ({error}); write a TOML file as in "
            "docs/studies.md"
        ) from error
    axes = []
    for name, table in content.items():
        if not isinstance(table, dict) or not all(
            isinstance(level, dict) for level in table.values()
        ):
            raise UserError(
                f"--arms {path}: {name} is no table of levels; write [{name}] "
                "and below it lines such as transfer = { init_from = "
                '"imagenet" }'
            )
        levels = tuple(
            Level(level, _flat(fields)) for level, fields in table.items()
        )
        axes.append(make_axis(name, levels, f"--arms {path}"))
    if not axes:
        raise UserError(f"--arms {path} holds no table; see docs/studies.md")
    return axes


def make_axis(name: str, levels: Sequence[Level], where: str) -> Axis:
    """Returns an axis.

    Raises:
      UserError: there is nothing to compare.
    """
    if not name or len({level.name for level in levels}) < max(2, len(levels)):
        raise UserError(
            f"{where} names {name or 'no field'} with {len(levels)} value(s); "
            "give at least two different ones, such as "
            "--grid 'mixing.prob=0.0,0.5'"
        )
    return Axis(name, tuple(levels))


def split_values(text: str) -> list[str]:
    """Divides at commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and not depth:
            parts.append("")
            continue
        parts[-1] += letter
    return [part.strip() for part in parts]


def _flat(fields: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a TOML table, also of `augment.flip = 0` inside braces."""
    flat = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": v for key, v in _flat(value).items()}
        else:
            flat[name] = _word(value)
    return flat


def _word(value: Any) -> str:
    """A value of TOML as on the command line."""
    if isinstance(value, list):
        return f"({''.join(f'{item!r},' for item in value)})"
    return str(value)


# ---- The grid ---------------------------------------------------------------


def make_cells(
    recipe: str,
    overrides: Sequence[str],
    axes: Sequence[Axis],
    problems: Callable[[ConfigDict], Iterable[str]],
) -> list[Cell]:
    """Returns all combinations of levels, the baseline first.

    Args:
      recipe: of the study.
      overrides: `--config.a=b` of all cells; levels go over them.
      axes: what is varied.
      problems: what cannot work in a config.

    Raises:
      UserError: what is wrong in a level, with all its problems; two axes
        set one field, or two cells differ in nothing that changes a result.
    """
    owners: dict[str, str] = {}
    for axis in axes:
        for field in {f for level in axis.levels for f in level.fields}:
            if field in owners:
                raise UserError(
                    f"the axes {owners[field]} and {axis.name} both set "
                    f"{field}, so neither is varied alone; put it into one"
                )
            owners[field] = axis.name
    cells, known = [], {}
    for levels in itertools.product(*(axis.levels for axis in axes)):
        fields = {}
        for level in levels:
            fields |= level.fields
        named = fields.pop(RECIPE, recipe)
        if named.startswith(":"):
            named = recipe.partition(":")[0] + named
        words = (
            *overrides,
            *(f"--config.{name}={value}" for name, value in fields.items()),
        )
        config = loading.load(named)
        found = [*loading.apply_overrides(config, words), *problems(config)]
        if found:
            where = ", ".join(level.name for level in levels)
            raise UserError(f"{where or named}: " + "; ".join(found))
        cell = Cell(levels, named, words, config)
        if (other := known.setdefault(cell.digest, cell)) is not cell:
            raise UserError(
                f"{other.name} and {cell.name} differ in nothing that changes "
                "a result; leave one out"
            )
        cells.append(cell)
    return cells
