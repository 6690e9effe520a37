"""Seconds per batch of logits on the CPU: ours beside timm on PyTorch.

    python benchmarks/inference.py [--models NAME ...] [--views 3] [--write]

float32, 64 px, evaluation mode, as in benchmarks/train_step.py. With
`--views 3`, the test-time views of all rows go through the network as one
batch, on both sides. PyTorch competes with the fastest of its forms, in
inference mode. That both compute the same is benchmarks/parity.py's affair.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs, train_step
from benchmarks.our_side import ModelAtWork


def their_logits(name: str, batch: int, size: int, forms: tuple[str, ...]):
    """Returns which of `forms` was fastest, and a function for one batch."""
    import torch

    from benchmarks import torch_side

    torch_side.use_all_cores()
    images, _ = train_step.make_batch(batch, size)
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return torch_side.fastest(
        lambda form: torch_side.inference(
            torch_side.make(name, train_step.CLASSES), images, form
        ),
        forms,
    )


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=9,
        models=dict(nargs="+", default=train_step.MODELS),
        batch=dict(type=int, default=64),
        views=dict(type=int, default=1),
        size=dict(type=int, default=64),
        forms=pairs.FORMS_FLAG,
    )
    batch = options.batch * options.views
    rows, ratios = [], []
    for name in options.models:
        form, theirs = their_logits(name, batch, options.size, options.forms)
        model = ModelAtWork(name, train_step.CLASSES)
        ours = model.inference(train_step.make_batch(batch, options.size)[0])
        found = pairs.alternate(
            {
                "ours": lambda work=ours: pairs.seconds(work, options.clock),
                "theirs": lambda work=theirs: pairs.seconds(
                    work, options.clock
                ),
            },
            options.rounds,
        )
        ratios.append(pairs.times_faster(found["ours"], found["theirs"]))
        rows.append(
            (
                name,
                found["ours"].describe(".0f", 1e3),
                found["theirs"].describe(".0f", 1e3),
                form,
                f"{ratios[-1]:.2f}",
            )
        )
        print(*rows[-1], sep=" | ", flush=True)
    text = pairs.table(
        ("model", "ours, ms", "PyTorch, ms", "its form", "times faster"), rows
    )
    text += (
        f"\n\n{options.batch} images of {options.size} px in {options.views} "
        f"view(s). Geometric mean: {pairs.geometric_mean(ratios):.2f}. Times "
        f"are {options.clock} time."
    )
    machine = pairs.describe_machine("jax", "torch", "timm")
    pairs.publish("inference", text, machine, options.write)


if __name__ == "__main__":
    main()
