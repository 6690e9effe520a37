"""The steps of all recipes, compiled for a slice of TPUs that is not here.

    pip install 'libtpu==0.0.42.*'
    python benchmarks/tpu_check.py [RECIPE ...] [--write]

The real compiler lays out the memory of the recipe's own step: its model,
batch size, image size, mixing, in bfloat16. What is printed per chip is exact
but for the time, which is a lower bound and the compiler's own estimate
(training/topology_plan.py). One to ten minutes for each recipe; what is found
is written to --found at once, and a step that is still the same program is not
compiled again. `--before` compares with such a folder of another state of the
code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs, tpu_steps
from benchmarks.tpu_steps import Step
from core.errors import exit_on_user_error
from training import topology_plan
from training.chips import parse_slice
from training.topology_plan import StepCost

RECIPES = (
    "miniconvnext",
    "tinyvit",
    "tinyvit_mae",
    "tinyvit_ssl",
    "efficientnetv2",
    "convnextv2_small",
    "convnextv2_base",
    "unet",
    "deeplabv3plus",
)
VM_PAGE = pairs.ROOT / "docs" / "tpu_vm.md"
SCALING_PAGE = pairs.ROOT / "docs" / "scaling.md"


def steps_table(steps: Mapping[str, Step]) -> str:
    """Returns what the steps need of a chip."""
    head = (
        *("recipe", "images a chip", "state, MiB", "activations, MiB"),
        *("of the chip", "images that fit", "GFLOPs"),
        *("MB of memory", "of it padding"),
        *("bound, ms", "by", "images/s at most", "estimate, ms"),
    )
    rows = []
    for name, step in steps.items():
        cost = step.cost
        if cost is None:
            rows.append((name, step.rows, *["does not fit"] + ["-"] * 10))
            continue
        chips = parse_slice(step.topology)
        room = chips.chip.memory - cost.arguments
        rows.append(
            (
                name,
                step.rows,
                f"{cost.arguments / 2**20:,.0f}",
                f"{cost.temporaries / 2**20:,.0f}",
                f"{cost.memory / chips.chip.memory:.0%}",
                f"{step.rows * room / cost.temporaries:,.0f}",
                f"{cost.flops / 1e9:,.0f}",
                f"{cost.accessed / 1e6:,.0f}",
                f"{cost.padding / cost.accessed:.0%}",
                f"{1e3 * cost.bound.seconds:.2f}",
                cost.bound.limit,
                f"{step.batch_size / cost.bound.seconds:,.0f}",
                f"{1e3 * cost.estimate:.1f}",
            )
        )
    return pairs.table(head, rows)


def printed_plan(step: Step) -> str:
    """Returns what `--plan --topology` prints last for a step."""
    chips = parse_slice(step.topology)
    lines = [("chip", topology_plan.describe_chip(chips))]
    lines += topology_plan.describe(step.cost, chips, step.batch_size)
    text = "\n".join(f"{heading:>10}  {line}" for heading, line in lines)
    command = (
        f"python train.py --config=configs/{step.recipe}.py --plan "
        f"--topology={step.topology}"
    )
    return f"```\n$ {command}\n…\n{text}\n```"


def collectives_table(steps: Mapping[str, Step]) -> str:
    """Returns what the chips exchange in a step."""
    head = (
        *("recipe", "all-reduces", "MB summed", "other", "their MB"),
        *("MB sent by a chip", "links, ms", "of the bound", "overlapped"),
    )
    rows = []
    for name, step in steps.items():
        if step.cost is None:
            continue
        found = dict(step.cost.collectives)
        every = list(found.values())
        reduced = found.pop("all-reduce", None)
        bound = step.cost.bound
        rows.append(
            (
                name,
                reduced.count if reduced else 0,
                f"{reduced.size / 1e6 if reduced else 0:,.1f}",
                sum(each.count for each in found.values()),
                f"{sum(each.size for each in found.values()) / 1e6:,.1f}",
                f"{sum(each.sent for each in every) / 1e6:,.1f}",
                f"{1e3 * bound.links:.2f}",
                f"{bound.links / bound.seconds:.0%}",
                f"{sum(each.overlapped for each in every)} of "
                f"{sum(each.count for each in every)}",
            )
        )
    return pairs.table(head, rows)


def comparison_table(
    before: Mapping[str, Step], after: Mapping[str, Step]
) -> str:
    """Returns what changed between two states of the code."""
    head = (
        *("recipe", "activations, MiB", "MB of memory", "bound, ms"),
        *("estimate, ms", "all-reduces"),
    )
    rows = []
    for name, new in after.items():
        old = before.get(name)
        if old is None or old.cost is None or new.cost is None:
            continue
        pair = old.cost, new.cost
        rows.append(
            (
                name,
                _change(*(cost.temporaries / 2**20 for cost in pair)),
                _change(*(cost.accessed / 1e6 for cost in pair)),
                _change(*(1e3 * cost.bound.seconds for cost in pair), ".2f"),
                _change(*(1e3 * cost.estimate for cost in pair), ".1f"),
                _change(*map(_all_reduces, pair)),
            )
        )
    return pairs.table(head, rows)


def _change(old: float, new: float, form: str = ",.0f") -> str:
    text = f"{old:{form}} -> {new:{form}}"
    return f"{text} ({new / old - 1:+.0%})" if old else text


def _all_reduces(cost: StepCost) -> int:
    found = cost.collectives.get("all-reduce")
    return found.count if found else 0


def read_folder(folder: Path) -> dict[str, Step]:
    """Returns the steps in a folder by recipe, in the order of `RECIPES`."""
    files = {path.stem: path for path in folder.glob("*.json")}
    known = [name for name in RECIPES if name in files]
    others = sorted(files.keys() - set(known))
    return {name: tpu_steps.load(files[name]) for name in known + others}


def main() -> None:
    """Compiles, prints the tables, writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--topology", default="v5e:2x4")
    parser.add_argument("--found", type=Path, default=Path("runs/tpu_check"))
    parser.add_argument("--before", type=Path, help="another such folder")
    parser.add_argument(
        "--kept", action="store_true", help="compile nothing: only the tables"
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with exit_on_user_error():
        for recipe in () if options.kept else options.recipes:
            print(f"compiling {recipe} for {options.topology}", flush=True)
            kept = options.found / f"{recipe}.json"
            step = tpu_steps.compile_recipe(recipe, options.topology, kept=kept)
            tpu_steps.save(step, kept)
    steps = {
        name: step
        for name, step in read_folder(options.found).items()
        if name in options.recipes
    }
    compiler = f"{tpu_steps.versions()}, {options.topology}"
    write = options.write
    text = steps_table(steps)
    missing = [name for name in RECIPES if name not in steps]
    if missing:
        text += f"\n\nNot compiled yet: {', '.join(missing)}."
    pairs.publish("tpu_check", text, compiler, write, VM_PAGE)
    pairs.publish(
        "tpu_collectives",
        collectives_table(steps),
        compiler,
        write,
        SCALING_PAGE,
    )
    fitting = [step for step in steps.values() if step.cost is not None]
    if fitting:
        shown = printed_plan(fitting[0])
        pairs.publish("topology_plan", shown, compiler, write, VM_PAGE)
    if options.before:
        text = comparison_table(read_folder(options.before), steps)
        pairs.publish("tpu_before", text, compiler, write, VM_PAGE)


if __name__ == "__main__":
    main()
