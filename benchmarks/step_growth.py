"""How the cost of a training step grows with the batch and with the image.

    python benchmarks/step_growth.py [--model miniconvnext] [--write]

Ours alone, float32, the step of benchmarks/train_step.py. What counts is the
last column, the cost per image and per pixel: it should not grow.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs, train_step
from benchmarks.our_side import ModelAtWork


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=5,
        model=dict(default="miniconvnext"),
        batches=dict(type=int, nargs="+", default=(8, 16, 32, 64, 128)),
        sizes=dict(type=int, nargs="+", default=(32, 64, 128, 224)),
        batch=dict(type=int, default=16, help="for the images of all sizes"),
        size=dict(type=int, default=64, help="for the batches of all sizes"),
    )
    cases = [(batch, options.size) for batch in options.batches]
    cases += [
        (options.batch, size)
        for size in options.sizes
        if (options.batch, size) not in cases
    ]
    model = ModelAtWork(options.model, train_step.CLASSES)
    works = {
        case: train_step.our_step(model, *case)
        for case in sorted(cases, key=lambda case: (case[1], case[0]))
    }
    found = pairs.alternate(
        {
            case: lambda work=work: pairs.seconds(work, options.clock)
            for case, work in works.items()
        },
        options.rounds,
    )
    rows = [
        (
            f"{size} px",
            batch,
            sample.describe(".0f", 1e3),
            f"{1e3 * sample.median / batch:.2f}",
            f"{1e9 * sample.median / batch / size**2:.0f}",
        )
        for (batch, size), sample in found.items()
    ]
    text = pairs.table(
        ("image", "batch", "step, ms", "ms per image", "ns per pixel"), rows
    )
    text += f"\n\n{options.model}. Times are {options.clock} time."
    machine = pairs.describe_machine("jax")
    pairs.publish("step_growth", text, machine, options.write)


if __name__ == "__main__":
    main()
