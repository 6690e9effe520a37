"""What a config must fulfil, and what of it makes up a run; no JAX."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import fields, inputs, loading
from run_folder import identity
from training.tasks import registry

# Arguments of `jax_models.create_model` with fields of their own, or none.
_NOT_OPTIONS = {
    "name": "config.model",
    "num_classes": "the data",
    "rngs": "config.seed",
    "dtype": "config.dtype",
    "remat": "config.remat",
}


def problems(config: ConfigDict) -> Iterator[str]:
    """Yields a sentence for each thing in `config` that cannot work.

    What only the chosen task can tell is checked by `registry.check`.
    """
    found = list(fields.complaints(identity.flatten(loading.plain(config))))
    yield from found

    def is_fine(part: str) -> bool:
        """Whether the values of a part can be compared with each other."""
        return not any(told.startswith(part) for told in found)

    if config.task not in registry.names():
        yield (
            f"task is {config.task!r}: choose one of "
            f"{', '.join(registry.names())}"
        )
    if not config.stages:
        yield "stages is empty: list at least one stage"
    for index, stage in enumerate(config.stages):
        if is_fine(f"stages[{index}]."):
            for problem in _stage_problems(config, stage):
                yield f"stages[{index}].{problem}"
    data = config.data
    if is_fine("data.folds ") and not 0 <= data.fold < data.folds:
        yield (
            f"data.fold is {data.fold}: with {data.folds} folds it runs from "
            f"0 to {data.folds - 1}"
        )
    for name in sorted(_NOT_OPTIONS.keys() & config.model_options.keys()):
        yield (
            f"model_options.{name} cannot be set: it follows from "
            f"{_NOT_OPTIONS[name]}"
        )
    for name, default in inputs.data().items():
        if not name.startswith("generated_") or data.generated:
            continue
        if data[name] != default:
            yield (
                f"data.{name} is {data[name]!r} and there are no generated "
                "images: name a generator's run with data.generated"
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
        if not isinstance(group, ConfigDict):
            yield (
                f"param_groups[{index}] is {group!r}: list them in the recipe, "
                "as common.group(…)"
            )
            continue
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
