"""From the command line to a checked config; no JAX, so it answers at once."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from errors import UserError

# Fields that change how fast a run goes, or where it keeps things, but no
# number in it: they may differ between a run and its continuation.
FREE_FIELDS = frozenset({"workers", "cache_dir", "data.folds_file"})

SCHEDULES = ("one_cycle", "cosine", "warm_restarts", "constant")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line of train.py says.

    Attributes:
      recipe: the config's path with its variant, as given.
      config: the recipe with every `--config.a.b=` applied, checked.
      workdir: the run folder.
      export: write the logits again although the run has finished.
    """

    recipe: str
    config: ConfigDict
    workdir: Path
    export: bool


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line `argv` (without the program's name).

    Raises:
      UserError: a missing or broken config file, an unknown variant, flag or
        field (with the nearest known name), a value of the wrong type, or
        fields that cannot work together (`problems`).
    """
    parser = argparse.ArgumentParser(
        prog="train.py",
        allow_abbrev=False,
        description="Trains one model from a recipe and writes its logits.",
        epilog="Any field of the recipe: --config.a.b=value, for example "
        "--config.data.root=/data/poses --config.stages[0].epochs=10. "
        "Run the same command again to continue where a run was stopped.",
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="a recipe, e.g. configs/tinyvit.py or configs/tinyvit.py:demo",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the run folder (default: runs/<recipe>)",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="write the logits of a finished run once more",
    )
    known, overrides = parser.parse_known_args(argv)
    config = apply_overrides(load(known.config), overrides)
    found = list(problems(config))
    if found:
        raise UserError(f"{known.config}: " + "; ".join(found))
    workdir = known.workdir or f"runs/{_default_name(known.config)}"
    return Arguments(known.config, config, Path(workdir), known.export)


def load(recipe: str) -> ConfigDict:
    """Returns the config of `recipe`, a file name with an optional `:variant`.

    Raises:
      UserError: there is no such file or variant, or it is no recipe.
    """
    path, _, variant = recipe.partition(":")
    if not Path(path).is_file():
        near = sorted(str(p) for p in Path("configs").glob("*.py"))
        near = [name for name in near if not name.endswith("common.py")]
        raise UserError(
            f"there is no config file {path}; "
            + (f"choose one of {', '.join(near)}" if near else "check --config")
        )
    spec = importlib.util.spec_from_file_location("recipe", path)
    if spec is None:
        raise UserError(f"{path} is not a Python file; check --config")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(
            f"{path} is not valid Python (line {error.lineno}: {error.msg}); "
            "mend it or check --config"
        ) from error
    if not hasattr(module, "get_config"):
        raise UserError(
            f"{path} has no get_config(variant); choose a recipe in configs/"
        )
    try:
        return module.get_config(variant)
    except ValueError as error:
        raise UserError(f"{recipe}: {error}") from error


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Returns `config` with `--config.a.b=value` overrides applied in place.

    Values are converted to the type of the field they replace.

    Raises:
      UserError: an unknown flag or field, or a value of another type.
    """
    for flag in overrides:
        match = re.match(r"--(no)?config\.([^=]+)", flag)
        if match is None:
            if flag.startswith("-"):
                known = ("--config", "--workdir", "--export", "--help")
                near = difflib.get_close_matches(flag.split("=")[0], known, 1)
                hint = f"did you mean {near[0]}?" if near else "see --help"
                raise UserError(f"unknown flag {flag}; {hint}")
        elif not _has_field(config, match[2]):
            raise UserError(_unknown_field(config, match[2]))
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict(
        "config", config, flag_values=values, sys_argv=["", *overrides]
    )
    try:
        rest = values(["train.py", *overrides])[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(
            f"{error}; give a value of the field's own type"
        ) from error
    if rest:
        raise UserError(f"did not expect {rest[0]!r}; see --help")
    return config


def problems(config: ConfigDict) -> Iterator[str]:
    """Yields a sentence for each thing in `config` that cannot work."""
    if not config.stages:
        yield "stages is empty: list at least one stage"
    for index, stage in enumerate(config.stages):
        where = f"stages[{index}]"
        if stage.epochs <= 0:
            yield f"{where}.epochs is {stage.epochs}: it must be positive"
        if stage.batch_size < 2:
            yield f"{where}.batch_size is {stage.batch_size}: take 2 or more"
        if stage.schedule not in SCHEDULES:
            yield (
                f"{where}.schedule is {stage.schedule!r}: choose one of "
                f"{', '.join(SCHEDULES)}"
            )
        if stage.learning_rate <= 0:
            yield f"{where}.learning_rate must be positive"
        if not 0 <= stage.label_smoothing < 1:
            yield f"{where}.label_smoothing must lie in [0, 1)"
        if not 0 <= stage.ema_decay < 1:
            yield f"{where}.ema_decay must lie in [0, 1)"
    if config.image_size < 32:
        yield f"image_size is {config.image_size}: take 32 or more"
    if config.dtype not in ("float32", "bfloat16"):
        yield f"dtype is {config.dtype!r}: take float32 or bfloat16"
    if config.data.folds < 2:
        yield f"data.folds is {config.data.folds}: take 2 or more"
    elif not 0 <= config.data.fold < config.data.folds:
        yield (
            f"data.fold is {config.data.fold}: with {config.data.folds} folds "
            f"it runs from 0 to {config.data.folds - 1}"
        )
    if config.epochs < 0:
        yield f"epochs is {config.epochs}: take 0 (as the stages say) or more"
    if config.eval.batch_size < 1 or config.eval.every_epochs <= 0:
        yield "eval.batch_size and eval.every_epochs must be positive"
    if not config.eval.tta:
        yield "eval.tta is empty: name at least the view 'center'"
    if config.checkpoint.keep_best < 1:
        yield "checkpoint.keep_best must be at least 1"
    if config.log_every_steps < 1:
        yield "log_every_steps must be at least 1"


def plain(value: Any) -> Any:
    """Returns a config (or part of one) as dicts, lists and scalars."""
    if isinstance(value, ConfigDict):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


def config_hash(config: ConfigDict) -> str:
    """Returns 16 hex digits of SHA-256 over all fields that shape the run."""
    fields = _flat(plain(config))
    text = json.dumps(
        {key: fields[key] for key in sorted(fields) if key not in FREE_FIELDS}
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(config: ConfigDict, earlier: dict[str, Any]) -> list[str]:
    """Returns 'field: earlier -> now' for each field that shapes the run.

    Args:
      config: the config of this command.
      earlier: the plain config that `config.json` of the run folder holds.
    """
    now, before = _flat(plain(config)), _flat(earlier)
    missing = object()
    return [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(now.keys() | before.keys())
        if key not in FREE_FIELDS
        and now.get(key, missing) != before.get(key, missing)
    ]


def scaled_stages(config: ConfigDict) -> list[ConfigDict]:
    """Returns the stages, shrunk in proportion if `config.epochs` is set."""
    total = sum(stage.epochs for stage in config.stages)
    scale = config.epochs / total if config.epochs else 1.0
    stages = []
    for stage in config.stages:
        stage = stage.copy_and_resolve_references()
        stage.epochs = stage.epochs * scale
        stage.restart_epochs = stage.restart_epochs * scale
        stages.append(stage)
    return stages


def _default_name(recipe: str) -> str:
    path, _, variant = recipe.partition(":")
    return Path(path).stem + (f"-{variant}" if variant else "")


def _has_field(config: ConfigDict, name: str) -> bool:
    generic = re.sub(r"\[\d+\]", "[]", name)
    if generic not in {re.sub(r"\.\d+", "[]", k) for k in _all_keys(config)}:
        return False
    indices = [int(digits) for digits in re.findall(r"\[(\d+)\]", name)]
    return all(index < len(config.stages) for index in indices)


def _unknown_field(config: ConfigDict, name: str) -> str:
    keys = [re.sub(r"\.(\d+)", r"[\1]", key) for key in _all_keys(config)]
    near = difflib.get_close_matches(name, keys, 1, cutoff=0.5)
    if not near:  # Perhaps the right field under the wrong parent.
        last = name.split(".")[-1]
        near = [key for key in keys if key.split(".")[-1] == last][:1]
    hint = f"did you mean config.{near[0]}?" if near else "see configs/"
    return f"the config has no field {name!r} (--config.{name}); {hint}"


def _all_keys(config: ConfigDict) -> list[str]:
    """Names of all fields, `stages.0.epochs` style."""
    return list(_flat(plain(config)))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts and lists of dicts to dotted names."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = ((str(i), item) for i, item in enumerate(value))
    else:
        return {prefix: value}
    flat = {}
    for key, item in items:
        name = f"{prefix}.{key}" if prefix else key
        flat.update(_flat(item, name))
    return flat
