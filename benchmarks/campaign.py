"""How long the whole campaign takes, added up from measured parts.

    python benchmarks/campaign.py --measured runs/accelerator.json

All stages of the six recipes and of the masked autoencoding, on 9,900 photos,
from photos to submission.csv on one card. The stages come from the configs
themselves; images per second of training and evaluation from the JSON that
benchmarks/accelerator.py writes, at each stage's own batch size; the rest
(augmented images per second, seconds to start, to save, to stack) from flags
or from the JSON's `given`. Early stopping is not counted on: every stage runs
its full length.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import itertools

from benchmarks import pairs
from configs import loading
from core.errors import UserError, exit_on_user_error
from training.loop import stages
from training.tasks import registry

RECIPES = (
    "miniconvnext",
    "tinyvit",
    "tinyvit_mae",
    "tinyvit_ssl",
    "efficientnetv2",
    "convnextv2_small",
    "convnextv2_base",
)
# What the JSON may say under `given`, and what is assumed if nothing does.
GIVEN = {
    "input_images_per_s": 5300.0,  # augmented, by all loader processes
    "decode_images_per_s": 10000.0,  # of evaluation, which augments nothing
    "start_s": 30.0,  # imports, data and the compilations of a recipe
    "stage_s": 10.0,  # one more stage: its step compiled, weights restored
    "save_s": 0.5,  # what an evaluation's checkpoint stops the loop for
    "stack_s": 120.0,  # calibration, boosters, report
}
PHOTOS = {"train": 9_900, "validation": 2_473, "test": 5_300}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of one recipe, by what they are spent on."""

    recipe: str
    epochs: float
    images: int
    step: float
    input: float
    evaluation: float
    saving: float
    starting: float

    @property
    def total(self) -> float:
        """All of them."""
        return (
            self.step
            + self.input
            + self.evaluation
            + self.saving
            + self.starting
        )


def rate_at(by_batch: Mapping[str, float], batch: int) -> float:
    """Returns images per second at a batch size, from those measured.

    Between two measured sizes in proportion to the logarithm of the batch;
    below the smallest, in proportion to the batch; above the largest, as there.
    """
    known = sorted((int(size), rate) for size, rate in by_batch.items())
    if batch <= known[0][0]:
        return known[0][1] * batch / known[0][0]
    for (small, low), (large, high) in itertools.pairwise(known):
        if batch <= large:
            share = math.log(batch / small) / math.log(large / small)
            return low + share * (high - low)
    return known[-1][1]


def cost_of(
    recipe: str, measured: Mapping[str, Any], given: Mapping[str, float]
) -> Cost:
    """Returns what one recipe costs.

    Args:
      recipe: name of a file in configs/.
      measured: `models` of the accelerator's JSON.
      given: a value for every key of `GIVEN`.

    Raises:
      UserError: the recipe's network was not measured.
    """
    config = loading.load(str(pairs.ROOT / "configs" / f"{recipe}.py"))
    classifies = registry.get(config.task).learns_labels
    network = config.model if classifies else f"{config.model} {config.task}"
    ours = measured.get(network, {}).get("ours", {})
    if not ours.get("train"):
        raise UserError(
            f"the measurements have no training of {network}, which {recipe} "
            "needs; run benchmarks/accelerator.py for it"
        )
    training = ours["train"]["by_batch"]
    # A masked autoencoder is evaluated by its own forward pass, a third.
    evaluation = (ours.get("evaluate") or {}).get("images_per_s")
    evaluation = evaluation or 3 * ours["train"]["images_per_s"]
    plan = stages.plan_stages(config, PHOTOS["train"])
    step = waiting = 0.0
    for stage in plan:
        images = stage.steps * stage.config.batch_size
        seconds = images / rate_at(training, stage.config.batch_size)
        step += seconds
        # Loading overlaps the step; what is left over is waited for.
        waiting += max(0.0, images / given["input_images_per_s"] - seconds)
    evaluations = sum(math.ceil(s.steps / s.eval_every) for s in plan)
    views = len(config.eval.tta) if classifies else 0
    looked_at = evaluations * PHOTOS["validation"]
    looked_at += views * (PHOTOS["validation"] + PHOTOS["test"])
    slowest = min(evaluation, given["decode_images_per_s"])
    return Cost(
        recipe=recipe,
        epochs=sum(stage.config.epochs for stage in plan),
        images=stages.images_until(plan, plan[-1].end),
        step=step,
        input=waiting,
        evaluation=looked_at / slowest,
        saving=evaluations * given["save_s"],
        starting=given["start_s"] + (len(plan) - 1) * given["stage_s"],
    )


def describe(costs: Sequence[Cost], stacking: float) -> str:
    """Returns the table, the total, and what dominates it."""
    parts = ("step", "input", "evaluation", "saving", "starting")
    rows = [
        (
            cost.recipe,
            f"{cost.epochs:g}",
            f"{cost.images / 1e6:.2f} M",
            *(f"{getattr(cost, part) / 60:.1f}" for part in parts),
            f"{cost.total / 60:.1f}",
        )
        for cost in costs
    ]
    head = (
        *("recipe", "epochs", "images", "steps, min", "waiting for input"),
        *("evaluation", "saving", "starting", "total, min"),
    )
    total = sum(cost.total for cost in costs) + stacking
    shares = {
        part: sum(getattr(cost, part) for cost in costs) for part in parts
    }
    shares["stacking"] = stacking
    largest = sorted(shares, key=shares.get, reverse=True)
    told = ", ".join(f"{part} {shares[part] / total:.0%}" for part in largest)
    slowest = max(costs, key=lambda cost: cost.total)
    images = sum(cost.images for cost in costs)
    return (
        f"{pairs.table(head, rows)}\n\n"
        f"In all {total / 60:.1f} min, stacking included, for "
        f"{images / 1e6:.1f} M images of training: {told}. The longest recipe "
        f"is {slowest.recipe}, {slowest.total / total:.0%} of it."
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measured", default="runs/accelerator.json")
    parser.add_argument("--write", action="store_true")
    for name, value in GIVEN.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            help=f"{value:g} if nothing is known",
        )
    options = parser.parse_args()
    with exit_on_user_error():
        try:
            found = json.loads(Path(options.measured).read_text())
        except OSError as error:
            raise UserError(
                f"cannot read {options.measured}: {error.strerror}; make it "
                "with python benchmarks/accelerator.py"
            ) from error
        flags = {
            name: getattr(options, name)
            for name in GIVEN
            if getattr(options, name) is not None
        }
        given = GIVEN | found.get("given", {}) | flags
        costs = [cost_of(name, found["models"], given) for name in RECIPES]
    text = describe(costs, given["stack_s"])
    text += "\n\nTaken as given: " + ", ".join(
        f"{name} {given[name]:g}" for name in GIVEN
    )
    text += f". Steps and evaluation as measured on {found.get('device')}."
    pairs.publish(
        "campaign", text, pairs.describe_machine("jax"), options.write
    )


if __name__ == "__main__":
    main()
