"""Ways to train on from somebody else's weights, by their names.

Each gives the stages of a recipe whose `init_from` names the weights. Which is
best depends on the data: `python -m studies` tells (docs/studies.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import common

# BatchNorm and LayerNorm, by the models' names for them.
NORMS = r"(^|/)(bn\d*|norm\d*)/"

Stages = tuple[ConfigDict, ...]


def linear_probe(
    learning_rate: float = 3e-3, epochs: float = 10.0, **fields: Any
) -> Stages:
    """Trains the classifier alone; the encoder's BatchNorm is frozen, too."""
    return (
        common.stage(
            learning_rate=learning_rate,
            epochs=epochs,
            param_groups=(common.group(common.ENCODER, frozen=True),),
            **fields,
        ),
    )


def fine_tune(
    learning_rate: float = 1e-3,
    epochs: float = 15.0,
    *,
    encoder_rate: float = 0.3,
    head_epochs: float = 1.0,
    **fields: Any,
) -> Stages:
    """Trains the classifier first, then all, the encoder more slowly.

    As fastai's `fine_tune` (Howard & Gugger 2020), with two rates.

    Args:
      learning_rate: of the classifier in both stages, at its peak.
      epochs: of the second stage.
      encoder_rate: the encoder's rate over the classifier's.
      head_epochs: of the first stage.
      **fields: of both stages.
    """
    return (
        *linear_probe(learning_rate, head_epochs, **fields),
        common.one_cycle(
            learning_rate,
            epochs=epochs,
            param_groups=(common.group(common.ENCODER, rate=encoder_rate),),
            **fields,
        ),
    )


def layer_decay(
    learning_rate: float = 1e-3,
    epochs: float = 15.0,
    *,
    decay: float = 0.9,
    **fields: Any,
) -> Stages:
    """Trains all at once, each block at `decay` times the next one's rate.

    Clark et al. 2020 (ELECTRA). Start the classifier from zero
    (`model_options.zero_head`): nothing trains it before.
    """
    return (
        common.one_cycle(
            learning_rate, epochs=epochs, layer_decay=decay, **fields
        ),
    )


def gradual_unfreezing(
    parts: Sequence[str],
    learning_rate: float = 1e-3,
    epochs: float = 16.0,
    **fields: Any,
) -> Stages:
    """Trains the last part first, and one part more in each further stage.

    Howard & Ruder 2018 (ULMFiT).

    Args:
      parts: regular expressions of parameter paths, from the classifier down;
        what none matches stays frozen.
      learning_rate: at the peak of the first stage; each further one has half
        of the one before.
      epochs: of all stages together.
      **fields: of all stages.
    """
    stages = []
    for count in range(1, len(parts) + 1):
        thawed = "|".join(f"(?:{part})" for part in parts[:count])
        stages.append(
            common.one_cycle(
                learning_rate / 2 ** (count - 1),
                epochs=epochs / len(parts),
                param_groups=(
                    common.group(thawed),
                    common.group("", frozen=True),
                ),
                **fields,
            )
        )
    return tuple(stages)


def with_frozen_norms(stages: Sequence[ConfigDict]) -> Stages:
    """Keeps normalisation as it was pretrained, statistics and all.

    For batches of few images, whose statistics would say little.
    """
    found = []
    for stage in stages:
        stage = stage.copy_and_resolve_references()
        row = common.group(NORMS, frozen=True)
        stage.param_groups = (row, *stage.param_groups)
        found.append(stage)
    return tuple(found)


def with_training_norms(stages: Sequence[ConfigDict]) -> Stages:
    """Trains normalisation also where the rest is frozen, as fastai does."""
    found = []
    for stage in stages:
        stage = stage.copy_and_resolve_references()
        row = common.group(NORMS)
        stage.param_groups = (row, *stage.param_groups)
        found.append(stage)
    return tuple(found)
