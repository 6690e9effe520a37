"""From a recipe's name and `--config.a.b=` overrides to a config.

For every command line of Sextet; imports no JAX.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.util
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from core.errors import UserError
from run_folder.identity import flatten


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake in one sentence, as all of Sextet."""

    def error(self, message: str) -> None:
        """Raises a UserError where argparse would print its usage."""
        raise UserError(f"{message}; see --help")


def parse(
    parser: Parser,
    argv: Sequence[str],
    problems: Callable[[ConfigDict], Iterable[str]] = lambda config: (),
) -> tuple[argparse.Namespace, ConfigDict]:
    """Reads a command line with `--config` and its overrides.

    Args:
      parser: of the command's other flags; `--config` is added here.
      argv: the words after the program's name.
      problems: what cannot work in the finished config, told together with
        the mistakes on the command line.

    Returns:
      The flags, with `config` the recipe as it was named, and the recipe's
      config with every `--config.a.b=value` applied, each value converted to
      the type of the field that it replaces.

    Raises:
      UserError: a missing or broken recipe, an unknown variant, flag or field
        (with the nearest known name), a value of another type, or a problem;
        all of them at once.
    """
    parser.allow_abbrev = False
    parser.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="a recipe, e.g. configs/tinyvit.py or configs/tinyvit.py:demo",
    )
    known, overrides = parser.parse_known_args(argv)
    if not known.config:
        raise UserError(
            "--config is missing; name a recipe, such as "
            "--config=configs/tinyvit.py"
        )
    config = load(known.config)
    names = [f"--{name}" for name in vars(known)]
    found = [*apply_overrides(config, overrides, names), *problems(config)]
    if found:
        raise UserError(f"{known.config}: " + "; ".join(found))
    return known, config


def load(recipe: str) -> ConfigDict:
    """Returns the config of `recipe`, a file name with an optional `:variant`.

    Raises:
      UserError: there is no such file or variant, or it is no recipe.
    """
    path, _, variant = recipe.partition(":")
    if not Path(path).is_file():
        recipes = sorted(
            str(file)
            for file in Path("configs").glob("*.py")
            if "\ndef get_config(" in file.read_text(encoding="utf-8")
        )
        near = difflib.get_close_matches(path, recipes, 1, cutoff=0.8)
        hint = f"choose one of {', '.join(recipes)}"
        if near or not recipes:
            hint = f"did you mean {near[0]}?" if near else "check --config"
        raise UserError(f"there is no config file {path}; {hint}")
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None:
        raise UserError(f"{path} is not a Python file; check --config")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise UserError(
            f"{path} cannot be imported ({error}); fix it or check --config"
        ) from error
    if not hasattr(module, "get_config"):
        raise UserError(
            f"{path} has no get_config(variant); choose a recipe in configs/"
        )
    try:
        return module.get_config(variant)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        words = " ".join(str(error).strip("'\"").split())
        raise UserError(f"{recipe}: {words}; correct --config") from error


def apply_overrides(
    config: ConfigDict,
    overrides: Sequence[str],
    known_flags: Sequence[str] = (),
) -> list[str]:
    """Sets fields of a config, and returns what is wrong, in sentences.

    Args:
      config: changed in place.
      overrides: such as `--config.a.b=value`.
      known_flags: of the command line, for the hint at an unknown one.
    """
    found, good = [], []
    for flag in overrides:
        match = re.match(r"--(no)?config\.([^=]+)", flag)
        if match is not None:
            _open_up(config, flag[match.start(2) :])
            if match[2] not in _all_names(config):
                found.append(_unknown_field(config, match[2]))
                continue
        elif flag.startswith("-"):
            name = flag.split("=")[0]
            near = difflib.get_close_matches(name, known_flags, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            found.append(f"unknown flag {flag}; {hint}")
            continue
        good.append(flag)
    good = _last_of_each(good)
    wrong = _set(config, good)
    if wrong and len(good) > 1:  # absl names the first one alone.
        wrong = [text for flag in good for text in _set(config, [flag])]
    return found + wrong


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Leaves out what a later word sets anew; absl would join tuples."""
    names = [word.partition("=")[0] for word in overrides]
    return [
        word
        for index, word in enumerate(overrides)
        if "=" not in word or names[index] not in names[index + 1 :]
    ]


def _set(config: ConfigDict, overrides: Sequence[str]) -> list[str]:
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["", *overrides]
    )
    try:
        rest = values(["", *overrides])[1:]
    except (flags.Error, TypeError, ValueError) as error:
        return [f"{error}; give a value of the field's own type"]
    return [f"did not expect {word!r}; see --help" for word in rest]


def _open_up(config: ConfigDict, override: str) -> None:
    """Makes room for a field that an override may add.

    These are options of the model, and what a stage changes in
    config.augment or config.mixing.
    """
    name, _, value = override.partition("=")
    option = re.fullmatch(r"model_options\.(\w+)", name)
    if option is not None and option[1] not in config.model_options:
        try:  # Its type is that of the first value.
            config.model_options[option[1]] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            config.model_options[option[1]] = value
    match = re.fullmatch(r"stages\[(\d+)\]\.(augment|mixing)\.(\w+)", name)
    if match is None:
        return
    index, group, field = int(match[1]), match[2], match[3]
    if index < len(config.stages) and field in config[group]:
        own = config.stages[index][group]
        if field not in own:
            with own.unlocked():
                own[field] = config[group][field]


def plain(value: Any) -> Any:
    """Returns a config (or part of one) as dicts, lists and scalars."""
    if isinstance(value, ConfigDict):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


# Fields of earlier versions, and what does the same now.
_RENAMED = {
    "drop_path_rate": "model_options.drop_path_rate",
    "head_learning_rate": "stages[…].param_groups[…].rate, a factor",
    "frozen": "stages[…].param_groups[…].frozen",
    "mixup_prob": "stages[…].mixing.mixup_prob",
    "mixup_alpha": "stages[…].mixing.mixup_alpha",
    "cutmix_alpha": "stages[…].mixing.cutmix_alpha",
}


def _unknown_field(config: ConfigDict, name: str) -> str:
    keys = _all_names(config)
    last = name.split(".")[-1]
    near = [_RENAMED[last]] if last in _RENAMED else []
    if stage := re.match(r"stages\[\d+\]", name):
        near = [now.replace("stages[…]", stage[0]) for now in near]
    near = near or difflib.get_close_matches(name, keys, 1, cutoff=0.5)
    if not near:  # Perhaps the right field under the wrong parent.
        near = [key for key in keys if key.split(".")[-1] == last][:1]
    hint = f"did you mean config.{near[0]}?" if near else "see configs/"
    return f"the config has no field {name!r} (--config.{name}); {hint}"


def _all_names(config: ConfigDict) -> list[str]:
    """Names of all fields as on the command line: `stages[0].epochs`."""
    return [
        re.sub(r"\.(\d+)(?=\.)", r"[\1]", key) for key in flatten(plain(config))
    ]


def from_plain(value: Any) -> Any:
    """Returns the config of which `plain` made dicts, lists and scalars."""
    if isinstance(value, dict):
        return ConfigDict({k: from_plain(v) for k, v in value.items()})
    if isinstance(value, list):
        return tuple(from_plain(item) for item in value)
    return value
