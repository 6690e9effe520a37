"""When two configs are of the same run, and when of the same model.

Works on the content of `config.json` (dicts, lists, scalars) and of
`data.json`, which says what the paths in a config led to. Paths themselves
tell no runs apart: the same data, or the same weights, elsewhere are the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# Fields that a finished run obeys when it is exported once more.
EXPORT_FIELDS = frozenset(
    {
        "eval.tta",
        "segment.windows",
        "segment.probabilities",
        "generate.sampler",
        "generate.steps",
        "generate.guidance",
        "generate.count",
        "generate.sample_seed",
        "generate.chunk",
        "generate.judge",
        "generate.filter",
    }
)

# Fields that are not part of a run's identity: they may differ between a run
# and its continuation, because the same weights come out. `*` is a number.
FREE_FIELDS = EXPORT_FIELDS | frozenset(
    {
        # Where data and caches are, and in which form; what the data are
        # (ids, labels, folds) is kept in data.json.
        "cache_dir",
        "data.root",
        "data.source",
        "data.answers",
        "data.train_images",
        "data.train_masks",
        "data.val_images",
        "data.val_masks",
        "data.class_list",
        "data.test_images",
        "data.test_folder",
        "data.sample_submission",
        "data.folds_file",
        "data.groups_file",
        # Whose images they are is kept in data.json.
        "data.generated",
        # Where other runs are; which of their weights is kept in data.json.
        "init_from",
        "stages.*.distill_from",
        # Speed and memory. Sums are then taken in another order, to the same
        # result within rounding.
        "workers",
        "mesh.fsdp",
        "remat",
        "stages.*.accumulate",
        "eval.batch_size",
        # Telemetry, how many checkpoints are kept.
        "log_every_steps",
        "checkpoint.keep_best",
    }
)

# Fields of a run's identity in which the seeds and folds of one model differ.
_FAMILY_FREE_FIELDS = FREE_FIELDS | {"seed", "data.fold"}

# Fields that configs of earlier versions lack, and the values that train as
# those versions did: a field that is added gets a line here, so that an update
# leaves runs and studies what they were.
ADDED_FIELDS: Mapping[str, Any] = {
    "data.generated_classes": [],
    "generate.time_shift": 0.0,
}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a plain config as {dotted name: value}, e.g. `stages.0.epochs`.

    Lists of dicts are opened up, other lists are values.
    """
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = ((str(i), item) for i, item in enumerate(value))
    else:
        return {prefix: value}
    flat = {}
    for key, item in items:
        name = f"{prefix}.{key}" if prefix else key
        flat.update(flatten(item, name))
    return flat


def config_hash(config: dict[str, Any], data: Mapping[str, Any]) -> str:
    """Returns 16 hex digits of SHA-256 over a run's identity.

    Args:
      config: content of config.json.
      data: content of data.json.
    """
    return _digest(config, FREE_FIELDS, _learned_from(data, "fingerprint"))


def family_hash(config: dict[str, Any], data: Mapping[str, Any]) -> str:
    """Returns the same digits for all seeds and folds of one model.

    Also where each fold began with, or learned from, another run: if those
    are of one family.

    Args:
      config: content of config.json.
      data: content of data.json.
    """
    return _digest(config, _FAMILY_FREE_FIELDS, _learned_from(data, "family"))


def differences(config: dict[str, Any], earlier: dict[str, Any]) -> list[str]:
    """Returns 'field: earlier -> now' for each field of the identity.

    Args:
      config: of this command.
      earlier: of the run folder.
    """
    sides = (earlier, config)
    before, now = (told(side, FREE_FIELDS) for side in sides)
    values = [flatten(side) for side in sides]
    missing = object()
    return [
        f"{key}: {' -> '.join(str(side.get(key, 'absent')) for side in values)}"
        for key in sorted(now.keys() | before.keys())
        if now.get(key, missing) != before.get(key, missing)
    ]


def told(config: dict[str, Any], free: Collection[str]) -> dict[str, Any]:
    """Returns the fields that tell a config from others, flat and sorted.

    Args:
      config: plain.
      free: fields that do not, by their generic names.
    """
    return {
        name: value
        for name, value in sorted(flatten(config).items())
        if (field := generic(name)) not in free
        and not (field in ADDED_FIELDS and value == ADDED_FIELDS[field])
    }


def _learned_from(
    data: Mapping[str, Any], what: str
) -> Iterator[tuple[str, Any]]:
    """What data.json says of the runs that this one learned from."""
    if "generated" in data:
        # Each fold has a generator of its own.
        images = {"fingerprint": data["generated"], "family": "of its fold"}
        yield "data.generated", images[what]
    if "init_from" in data:
        yield "init_from", data["init_from"].get(what)
    for stage, pin in sorted(data.get("teachers", {}).items()):
        yield f"{stage}.distill_from", pin.get(what)


def _digest(
    config: dict[str, Any],
    free: frozenset[str],
    learned_from: Iterator[tuple[str, Any]],
) -> str:
    fields = {**told(config, free), **dict(learned_from)}
    text = json.dumps(dict(sorted(fields.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def generic(key: str) -> str:
    """Returns a field's name as in `FREE_FIELDS`, `stages.*.epochs`."""
    return re.sub(r"\.\d+\.", ".*.", key)
