"""Fields of a config that a task does not read, and that say otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ml_collections import ConfigDict

from configs import common, inputs

# Fields of a stage about the loss. A task lists those that it reads.
LOSS_FIELDS = (
    "loss",
    "label_smoothing",
    "focal_gamma",
    "class_weight",
    "effective_number",
    "logit_adjustment",
    "distill_from",
    "distill_temperature",
    "distill_alpha",
    "mixing",
)


def problems(
    config: ConfigDict, task: str, read: Collection[str]
) -> Iterator[str]:
    """Yields a sentence for each field that was changed to no effect.

    Args:
      config: of a run.
      task: its name.
      read: those of `LOSS_FIELDS` that the task reads.
    """
    default = common.stage()
    for index, stage in enumerate(config.stages):
        for field in LOSS_FIELDS:
            if field not in read and stage[field] != default[field]:
                yield (
                    f"stages[{index}].{field} has no effect on the {task} "
                    "task: leave it out"
                )
    if "mixing" not in read:
        default = inputs.mixing()
        if dict(config.mixing) == dict(default):  # A recipe says nothing of it.
            return
        default.update(prob=0.0, erase_prob=0.0)
        for field, value in config.mixing.items():
            if value != default[field]:
                yield (
                    f"mixing.{field} is {value} and has no effect on the "
                    f"{task} task: leave it out"
                )
