"""What a search varies: fields of a recipe, each with a range or choices."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import optuna
from ml_collections import ConfigDict

from configs import loading
from core.errors import UserError
from studies.axes import split_values


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A field and where it is searched.

    Attributes:
      field: of the recipe.
      low, high: of a range; equal to None for a choice.
      log: whether the range is searched by factors.
      whole: whether its values are whole numbers.
      choices: words of the command line; () for a range.
    """

    field: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    def suggest(self, trial: optuna.Trial) -> str:
        """Returns the trial's value, as a word of the command line."""
        if self.choices:
            return trial.suggest_categorical(self.field, self.choices)
        if self.whole:
            ends = int(self.low), int(self.high)
            return str(trial.suggest_int(self.field, *ends, log=self.log))
        value = trial.suggest_float(
            self.field, self.low, self.high, log=self.log
        )
        return repr(float(f"{value:.4g}"))


def parse_parameter(text: str, config: ConfigDict) -> Parameter:
    """Returns what `--search 'field=1e-4..1e-2 log'` or `field=a,b` says.

    Args:
      text: of the command line.
      config: of the recipe, whose field tells whether numbers are whole.

    Raises:
      UserError: it is neither, or the recipe has no such field or values.
    """
    field, _, values = text.partition("=")
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
    match = re.fullmatch(rf"({number})\.\.({number})( log)?", values.strip())
    if match is None:
        choices = tuple(split_values(values))
        if not field or len(set(choices)) < 2:
            raise UserError(
                f"--search {text!r} is no space; give a range, such as "
                "'stages[0].learning_rate=1e-4..1e-2 log', or choices, such "
                "as 'model=tinyvit_5m,tinyvit_11m'"
            )
        _check_values(text, config, field, choices)
        return Parameter(field, choices=choices)
    low, high, log = float(match[1]), float(match[2]), bool(match[3])
    if not low < high or (log and low <= 0):
        raise UserError(
            f"--search {text!r}: the range must go from a smaller number to a "
            "larger one" + (", above 0" if log else "")
        )
    value = value_of(config, field)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and not (low.is_integer() and high.is_integer()):
        raise UserError(
            f"--search {text!r}: {field} takes whole numbers; give a range "
            "of them"
        )
    ends = [str(int(x)) if whole else repr(x) for x in (low, high)]
    _check_values(text, config, field, ends)
    return Parameter(field, low, high, log, whole)


def _check_values(
    text: str, config: ConfigDict, field: str, values: Sequence[str]
) -> None:
    """Refuses a field that is none, and values that it cannot have."""
    for value in values:
        words = [f"--config.{field}={value}"]
        found = loading.apply_overrides(copy.deepcopy(config), words)
        if found:
            raise UserError(f"--search {text!r}: {'; '.join(found)}")


def value_of(config: ConfigDict, field: str) -> Any:
    """Returns the value of a field such as `stages[0].epochs`, or None."""
    at: Any = config
    for name in re.findall(r"[^.\[\]]+", field):
        try:
            at = at[int(name)] if name.isdigit() else at[name]
        except (KeyError, IndexError, TypeError):
            return None
    return at
