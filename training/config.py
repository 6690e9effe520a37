"""From the command line to a checked config; no JAX, so it answers at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import common, loading
from core.errors import UserError

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

TASKS = ("classify", "mae")
SCHEDULES = (
    "one_cycle",
    "cosine",
    "warmup_cosine",
    "warm_restarts",
    "step",
    "constant",
)
LOSSES = ("cross_entropy", "focal")

# Fields of a stage that a task without classes would silently ignore.
CLASSIFIERS_FIELDS = (
    "head_learning_rate",
    "loss",
    "label_smoothing",
    "focal_gamma",
    "class_weight",
    "logit_adjustment",
    "distill_from",
    "distill_temperature",
    "distill_alpha",
    "mixup_prob",
    "mixup_alpha",
    "cutmix_alpha",
    "mixing",
)


@dataclasses.dataclass(frozen=True)
class Peers:
    """Several processes that train together, and which of them this is.

    Attributes:
      coordinator: host:port of process 0, where all of them meet.
      num_processes: how many there are.
      process_id: this one's number, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line of train.py says.

    Attributes:
      recipe: the config's path with its variant, as given.
      config: the recipe with every `--config.a.b=` applied, checked.
      workdir: the run folder.
      export: write the logits again although the run has finished.
      all_folds: train one model per fold, each in a folder of its own.
      plan: say what would be done, and draw the learning rates; no training.
      peers: the other processes; None where there are none, or where the
        cluster tells.
      remote: URL of the folder in a bucket that `workdir` is a copy of; ''
        where there is none.
    """

    recipe: str
    config: ConfigDict
    workdir: Path
    export: bool
    all_folds: bool = False
    plan: bool = False
    peers: Peers | None = None
    remote: str = ""


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line `argv` (without the program's name).

    Raises:
      UserError: a missing or broken config file, an unknown variant, flag or
        field (with the nearest known name), a value of the wrong type, or
        fields that cannot work together (`problems`).
    """
    parser = loading.Parser(
        prog="train.py",
        description="Trains one model from a recipe and writes its logits.",
        epilog="Any field of the recipe: --config.a.b=value, for example "
        "--config.data.root=/data/poses --config.stages[0].epochs=10. "
        "Run the same command again to continue where a run was stopped.",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the run folder, also in a bucket, gs://… (default: "
        "runs/<recipe>)",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="write the logits of a finished run once more",
    )
    parser.add_argument(
        "--all-folds",
        action="store_true",
        help="train one model per fold, in <workdir>/fold-0 and so on, and "
        "join their predictions: out-of-fold logits for every row",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="only say what would be done, and draw the learning rates into "
        "<workdir>/plan.html",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="several processes train as one, and meet at process 0; on TPU "
        "hosts and under srun they find each other without these three flags",
    )
    parser.add_argument("--num-processes", type=int, metavar="N")
    parser.add_argument(
        "--process-id", type=int, metavar="I", help="from 0 to N - 1"
    )
    known, config = loading.parse(parser, argv, problems)
    workdir = known.workdir or f"runs/{_default_name(known.config)}"
    remote = workdir.rstrip("/") if "://" in workdir else ""
    if remote:
        from training.multihost.object_store import local_copy

        workdir = local_copy(remote, config.cache_dir)
    return Arguments(
        known.config,
        config,
        Path(workdir),
        known.export,
        known.all_folds,
        known.plan,
        _peers(known.coordinator, known.num_processes, known.process_id),
        remote,
    )


def _peers(
    coordinator: str | None, count: int | None, index: int | None
) -> Peers | None:
    given = [value is not None for value in (coordinator, count, index)]
    if not any(given):
        return None
    if not all(given):
        raise UserError(
            "--coordinator, --num-processes and --process-id belong together; "
            "give all three, or none on a TPU host or under srun"
        )
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(
            f"--coordinator is {coordinator!r}; give the host of process 0 "
            "and a free port, such as 10.0.0.2:8476"
        )
    if not 0 <= index < count:
        raise UserError(
            f"--process-id is {index}: with --num-processes={count} it runs "
            f"from 0 to {count - 1}"
        )
    return Peers(coordinator, count, index)


def problems(config: ConfigDict) -> Iterator[str]:
    """Yields a sentence for each thing in `config` that cannot work."""
    broken = list(_not_numbers(config))
    if broken:
        yield from broken
        return  # What follows compares them.
    if config.task not in TASKS:
        yield f"task is {config.task!r}: choose one of {', '.join(TASKS)}"
    if not config.stages:
        yield "stages is empty: list at least one stage"
    for index, stage in enumerate(config.stages):
        for problem in _stage_problems(config, stage):
            yield f"stages[{index}].{problem}"
        if config.task == "mae":
            for field in _without_effect(stage):
                yield (
                    f"stages[{index}].{field} has no effect on task 'mae', "
                    "which knows no classes: leave it out"
                )
    for name, seed in (
        ("seed", config.seed),
        ("data.folds_seed", config.data.folds_seed),
    ):
        if seed < 0:
            yield f"{name} is {seed}: take 0 or more"
    rate = config.drop_path_rate
    if rate is not None and not 0 <= rate < 1:
        yield f"drop_path_rate is {rate}: it must lie in [0, 1)"
    if not 0 <= config.data.balance <= 1:
        yield f"data.balance is {config.data.balance}: it must lie in [0, 1]"
    if config.workers < -1:
        yield f"workers is {config.workers}: take 0 or more, or -1"
    yield from _augmentation_problems(config.augment, config.mixing)
    if config.image_size < 32:
        yield f"image_size is {config.image_size}: take 32 or more"
    if config.dtype not in ("auto", "float32", "bfloat16"):
        yield f"dtype is {config.dtype!r}: take float32, bfloat16 or auto"
    if config.mesh.fsdp < 1 and config.mesh.fsdp != -1:
        yield f"mesh.fsdp is {config.mesh.fsdp}: take 1 or more, or -1 for all"
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


def _stage_problems(config: ConfigDict, stage: ConfigDict) -> Iterator[str]:
    if stage.epochs <= 0:
        yield f"epochs is {stage.epochs}: it must be positive"
    if stage.batch_size < 2:
        yield f"batch_size is {stage.batch_size}: take 2 or more"
    if stage.accumulate < 1 or stage.batch_size % stage.accumulate:
        yield (
            f"accumulate is {stage.accumulate}: take a divisor of batch_size, "
            f"{stage.batch_size}"
        )
    for field, known in (
        ("schedule", SCHEDULES),
        ("loss", LOSSES),
        ("momentum_dtype", ("float32", "bfloat16")),
    ):
        if stage[field] not in known:
            yield f"{field} is {stage[field]!r}: choose one of " + ", ".join(
                known
            )
    positive = (
        "learning_rate",
        "restart_epochs",
        "step_epochs",
        "step_factor",
        "distill_temperature",
        "mixup_alpha",
        "cutmix_alpha",
    )
    for field in positive:
        if stage[field] <= 0:
            yield f"{field} is {stage[field]}: it must be positive"
    not_negative = (
        "head_learning_rate",
        "end_rate",
        "clip_norm",
        "weight_decay",
        "focal_gamma",
        "class_weight",
        "logit_adjustment",
        "patience",
    )
    for field in not_negative:
        if stage[field] < 0:
            yield f"{field} is {stage[field]}: it must not be negative"
    if stage.restart_factor < 1:
        yield f"restart_factor is {stage.restart_factor}: take 1 or more"
    if stage.end_rate > stage.learning_rate:
        yield f"end_rate is {stage.end_rate}: it is above learning_rate"
    if len(stage.betas) != 2 or not all(0 <= b < 1 for b in stage.betas):
        yield "betas must be two numbers in [0, 1)"
    for field in ("mixup_prob", "distill_alpha"):
        if not 0 <= stage[field] <= 1:
            yield f"{field} is {stage[field]}: it must lie in [0, 1]"
    for field in ("label_smoothing", "ema_decay", "warmup"):
        if not 0 <= stage[field] < 1:
            yield f"{field} is {stage[field]}: it must lie in [0, 1)"
    merged = {}
    for name in ("augment", "mixing"):
        unknown = [field for field in stage[name] if field not in config[name]]
        for field in unknown:
            yield f"{name}.{field} is no field of config.{name}"
        merged[name] = ConfigDict({**config[name], **stage[name]})
    changed = len(stage.augment) or len(stage.mixing)
    if changed:
        yield from _augmentation_problems(merged["augment"], merged["mixing"])


def _without_effect(stage: ConfigDict) -> Iterator[str]:
    """Fields about classes that were set although nothing is classified."""
    default = common.stage()
    for field in CLASSIFIERS_FIELDS:
        if stage[field] != default[field]:
            yield field


def _augmentation_problems(
    augment: ConfigDict, mixing: ConfigDict
) -> Iterator[str]:
    shares = {
        "augment.flip": augment.flip,
        "augment.jitter_prob": augment.jitter_prob,
        "augment.grayscale": augment.grayscale,
        "augment.gamma": augment.gamma,
        "augment.blur": augment.blur,
        "augment.downscale": augment.downscale,
        "augment.jpeg": augment.jpeg,
        "augment.coarse_dropout": augment.coarse_dropout,
        "mixing.prob": mixing.prob,
        "mixing.erase_prob": mixing.erase_prob,
    }
    for name, share in shares.items():
        if not 0 <= share <= 1:
            yield f"{name} is {share}: it must lie in [0, 1]"
    ranges = {
        "augment.crop_scale": augment.crop_scale,
        "augment.crop_ratio": augment.crop_ratio,
        "mixing.erase_area": mixing.erase_area,
        "mixing.erase_ratio": mixing.erase_ratio,
    }
    for name, ends in ranges.items():
        if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
            yield f"{name} must be two positive numbers, the smaller first"
    for name, ends in (
        ("augment.crop_scale", augment.crop_scale),
        ("mixing.erase_area", mixing.erase_area),
    ):
        if max(ends) > 1:
            yield f"{name} is {ends}: a share of the image is at most 1"
    jitter = augment.jitter
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        yield (
            f"augment.jitter is {jitter}: it must be four numbers, none "
            "negative, the last (hue) at most 0.5"
        )
    if augment.randaugment_ops < 0:
        yield f"augment.randaugment_ops is {augment.randaugment_ops}"
    if not 0 <= augment.randaugment_magnitude <= 30:
        yield (
            f"augment.randaugment_magnitude is "
            f"{augment.randaugment_magnitude}: it runs from 0 to 30"
        )


def _not_numbers(config: ConfigDict) -> Iterator[str]:
    """Fields that should hold finite numbers, and hold something else."""
    pairs = ("betas", "crop_scale", "crop_ratio", "jitter", "erase_area")
    for name, value in loading.flatten(loading.plain(config)).items():
        many = isinstance(value, list)
        for item in value if many else [value]:
            if isinstance(item, float) and not math.isfinite(item):
                yield f"{name} is {value}: it must be finite"
            numeric = name.split(".")[-1] in (*pairs, "erase_ratio")
            if many and numeric and not isinstance(item, (int, float)):
                yield f"{name} is {value}: it must hold numbers"


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


def _default_name(recipe: str) -> str:
    path, _, variant = recipe.partition(":")
    return Path(path).stem + (f"-{variant}" if variant else "")
