"""What a config must fulfil, and what of it makes up a run; no JAX."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import fields, loading
from training.tasks import registry

# Fields that change how fast a run goes, or where it keeps things, but no
# number in it: they may differ between a run and its continuation.
# Where the data lie is free too: what they are is kept in data.json.
# Nor is it part of a training on how many devices it runs and how it fits
# there: sums are then taken in another order, to the same result within
# rounding.
FREE_FIELDS = frozenset(
    {
        "workers",
        "cache_dir",
        "data.root",
        "data.folds_file",
        "mesh.fsdp",
        "remat",
        "stages.*.accumulate",
    }
)


def problems(config: ConfigDict) -> Iterator[str]:
    """Yields a sentence for each thing in `config` that cannot work.

    What only the chosen task can tell is checked by `registry.check`.
    """
    found = list(fields.complaints(loading.flatten(loading.plain(config))))
    if found:
        yield from found
        return  # The rest compares the values.
    if config.task not in registry.names():
        yield (
            f"task is {config.task!r}: choose one of "
            f"{', '.join(registry.names())}"
        )
    if not config.stages:
        yield "stages is empty: list at least one stage"
    for index, stage in enumerate(config.stages):
        for problem in _stage_problems(config, stage):
            yield f"stages[{index}].{problem}"
    data = config.data
    if not 0 <= data.fold < data.folds:
        yield (
            f"data.fold is {data.fold}: with {data.folds} folds it runs from "
            f"0 to {data.folds - 1}"
        )
    if not config.eval.tta:
        yield "eval.tta is empty: name at least the view 'center'"


def _stage_problems(config: ConfigDict, stage: ConfigDict) -> Iterator[str]:
    if stage.batch_size % stage.accumulate:
        yield (
            f"accumulate is {stage.accumulate}: take a divisor of batch_size, "
            f"{stage.batch_size}"
        )
    if stage.end_rate > stage.learning_rate:
        yield f"end_rate is {stage.end_rate}: it is above learning_rate"
    for index, group in enumerate(stage.param_groups):
        try:
            re.compile(group.match)
        except re.error as error:
            yield (
                f"param_groups[{index}].match is {group.match!r}: it is no "
                f"regular expression ({error})"
            )
    for name in ("augment", "mixing"):
        for field in stage[name]:
            if field not in config[name]:
                yield f"{name}.{field} is no field of config.{name}"


def scaled_stages(config: ConfigDict) -> list[ConfigDict]:
    """Returns the stages, shrunk in proportion if `config.epochs` is set."""
    total = sum(stage.epochs for stage in config.stages)
    scale = config.epochs / total if config.epochs else 1.0
    stages = []
    for stage in config.stages:
        stage = stage.copy_and_resolve_references()
        stage.epochs = stage.epochs * scale
        stage.restart_epochs = stage.restart_epochs * scale
        stage.step_epochs = stage.step_epochs * scale
        stages.append(stage)
    return stages


def config_hash(config: ConfigDict) -> str:
    """Returns 16 hex digits of SHA-256 over all fields that shape the run."""
    fields = loading.flatten(loading.plain(config))
    text = json.dumps(
        {key: fields[key] for key in sorted(fields) if not _is_free(key)}
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_free(key: str) -> bool:
    return re.sub(r"\.\d+\.", ".*.", key) in FREE_FIELDS


def differences(config: ConfigDict, earlier: dict[str, Any]) -> list[str]:
    """Returns 'field: earlier -> now' for each field that shapes the run.

    Args:
      config: the config of this command.
      earlier: the plain config that `config.json` of the run folder holds.
    """
    now, before = (
        loading.flatten(loading.plain(config)),
        loading.flatten(earlier),
    )
    missing = object()
    return [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(now.keys() | before.keys())
        if not _is_free(key)
        and now.get(key, missing) != before.get(key, missing)
    ]
