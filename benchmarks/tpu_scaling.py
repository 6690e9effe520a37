"""Weak and strong scaling of compiled steps, on slices that are not here.

    pip install 'libtpu==0.0.42.*'
    python benchmarks/tpu_scaling.py [RECIPE ...] [--write]

The step of a recipe is compiled for growing slices of TPU v5e. Weak: every
chip keeps the images that it has on the smallest slice. Strong: the batch
stays, as far as every chip has an image. What XLA exchanges is read from the
compiled program; the bound is training/chips.py's. Minutes for each line;
what is found is written to --found at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs, tpu_steps
from benchmarks.tpu_steps import Step
from core.errors import exit_on_user_error
from training.chips import parse_slice

SLICES = ("v5e:2x4", "v5e:4x8", "v5e:16x16")
PAGE = pairs.ROOT / "docs" / "scaling.md"


def works(recipe: str) -> Iterator[tuple[str, str, int]]:
    """Yields (weak or strong, slice, images of a step); 0: the recipe's."""
    yield "weak", SLICES[0], 0
    smallest = parse_slice(SLICES[0]).size
    batch = tpu_steps.heaviest_batch(recipe)
    for topology in SLICES[1:]:
        yield "weak", topology, batch // smallest * parse_slice(topology).size
    for topology in SLICES[1:]:
        if batch >= parse_slice(topology).size:
            yield "strong", topology, batch


def rows_of(found: Sequence[tuple[str, Step]]) -> Iterator[Sequence[str]]:
    """Yields the table's rows for one recipe, the smallest slice first."""
    _, first = found[0]
    rate = first.batch_size / first.cost.bound.seconds
    for kind, step in found:
        chips = parse_slice(step.topology)
        cost, bound = step.cost, step.cost.bound
        reached = step.batch_size / bound.seconds
        growth = chips.size / parse_slice(first.topology).size
        reduced = cost.collectives.get("all-reduce")
        sent = sum(each.sent for each in cost.collectives.values())
        yield (
            step.recipe,
            kind if step is not first else "",
            step.topology,
            f"{step.batch_size:,}",
            step.rows,
            f"{cost.flops / 1e9:,.1f}",
            f"{cost.accessed / 1e6:,.0f}",
            f"{reduced.size / 1e6:.2f}" if reduced else "0",
            f"{sent / 1e6:.2f}",
            *(
                f"{1e3 * seconds:.3f}"
                for seconds in (bound.compute, bound.memory, bound.links)
            ),
            bound.limit,
            f"{reached:,.0f}",
            f"{reached / rate / growth:.0%}",
        )


def main() -> None:
    """Compiles, prints the table, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=("miniconvnext",))
    parser.add_argument("--found", type=Path, default=Path("runs/tpu_scaling"))
    parser.add_argument(
        "--kept", action="store_true", help="compile nothing: only the table"
    )
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = []
    with exit_on_user_error():
        for recipe in options.recipes:
            found = []
            for kind, topology, batch in works(recipe):
                name = f"{recipe}-{topology.replace(':', '-')}-{batch}"
                kept = options.found / f"{name}.json"
                if not options.kept:
                    print(f"compiling {name}", flush=True)
                    step = tpu_steps.compile_recipe(
                        recipe, topology, batch, kept=kept
                    )
                    tpu_steps.save(step, kept)
                if kept.exists():
                    found.append((kind, tpu_steps.load(kept)))
            rows += rows_of(found)
    head = (
        *("recipe", "scaling", "slice", "batch", "images a chip", "GFLOPs"),
        *("MB of memory", "MB all-reduced", "MB sent"),
        *("compute, ms", "memory, ms", "links, ms", "limit"),
        *("images/s at most", "per chip"),
    )
    text = pairs.table(head, rows)
    pairs.publish(
        "tpu_scaling", text, tpu_steps.versions(), options.write, PAGE
    )


if __name__ == "__main__":
    main()
