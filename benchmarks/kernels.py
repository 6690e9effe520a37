"""What each CPU kernel is worth: our models without one of them at a time.

    python benchmarks/kernels.py [--models NAME ...] [--write]

The train step, the evaluation and the start-up of benchmarks/train_step.py's
models, with all kernels of jax_models/cpu_kernels and without each (XLA's or
JAX's implementation in its place). A start-up traces, compiles and runs the
first step, with the C++ compiled before and no compilation cache; its time is
the processor's. So are those of steps with `--clock cpu`, which mean the same
on a busy machine, but do not show what a second core is worth.

A kernel stays where a model would become slower than PyTorch without it, by
the ratios in docs/performance.md, or the geometric mean over the models of
either time would rise by a ninth (the speed fall by a tenth).
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs, train_step
from benchmarks.our_side import ModelAtWork
from jax_models import cpu_kernels
from jax_models.cpu_kernels import dispatch

ALL = "all"
BATCH, SIZE = 64, 64
SPEED_KEPT = 0.9  # Without a kernel that is not worth its lines.


def torch_ratios(page: str, section: str) -> dict[str, float]:
    """Returns how much faster than PyTorch each model is, from the page."""
    text = page.split(f"<!-- {section}: begin -->")[1]
    text = text.split(f"<!-- {section}: end -->")[0]
    rows = re.findall(r"^\| (\w+) .*\| +([\d.]+) \|$", text, re.MULTILINE)
    return {name: float(ratio) for name, ratio in rows}


def measure(name: str, rounds: int, clock: str) -> dict[str, dict[str, float]]:
    """Returns {measure: {kernel left out: times slower than with all}}."""
    model = ModelAtWork(name, train_step.CLASSES)
    images, _ = train_step.make_batch(BATCH, SIZE)
    steps: dict[str, Callable] = {}
    evaluations: dict[str, Callable] = {}
    starts: dict[str, float] = {}
    # What all have in common is loaded here; and which kernels it asks for.
    asked, ask = set(), dispatch.for_cpu
    with mock.patch.object(
        dispatch, "for_cpu", lambda kernel: asked.add(kernel) or ask(kernel)
    ):
        train_step.our_step(model, BATCH, SIZE)()
        model.inference(images)()
    for left_out in (ALL, *sorted(asked)):
        kernels = () if left_out == ALL else (left_out,)
        with cpu_kernels.without(*kernels):
            start = time.process_time()
            steps[left_out] = train_step.our_step(model, BATCH, SIZE)
            steps[left_out]()
            starts[left_out] = time.process_time() - start
            evaluations[left_out] = model.inference(images)
            evaluations[left_out]()
    found = {"start-up": {k: v / starts[ALL] for k, v in starts.items()}}
    for kind, works in (("train step", steps), ("evaluation", evaluations)):
        samples = pairs.alternate(
            {
                left_out: lambda work=work: pairs.seconds(work, clock)
                for left_out, work in works.items()
            },
            rounds,
        )
        found[kind] = {
            left_out: pairs.times_faster(samples[ALL], sample)
            for left_out, sample in samples.items()
        }
    return found


def main() -> None:
    """Prints the table."""
    options = pairs.parse(
        __doc__,
        rounds=9,
        models=dict(nargs="+", default=train_step.MODELS),
    )
    page = pairs.PAGE.read_text()
    ratios = {
        "train step": torch_ratios(page, "train_step"),
        "evaluation": torch_ratios(page, "inference"),
    }
    slower: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.models:
        slower[name] = measure(name, options.rounds, options.clock)
        for kind, of_kernels in slower[name].items():
            for kernel, times in of_kernels.items():
                print(f"{name} | {kind} | {kernel} | {times:.2f}", flush=True)
    rows = []
    for kernel in cpu_kernels.KERNELS:
        means, lowest = {}, {}
        for kind in ("train step", "evaluation", "start-up"):
            means[kind] = pairs.geometric_mean(
                [
                    of_model[kind].get(kernel, 1.0)
                    for of_model in slower.values()
                ]
            )
        for kind, of_models in ratios.items():
            lowest[kind] = min(
                of_models[name] / found[kind].get(kernel, 1.0)
                for name, found in slower.items()
            )
        stays = min(lowest.values()) < 1 or max(means.values()) > 1 / SPEED_KEPT
        rows.append(
            (
                kernel,
                *(f"{value:.2f}" for value in means.values()),
                *(f"{value:.2f}" for value in lowest.values()),
                "yes" if stays else "no",
            )
        )
    head = (
        "without",
        "train step",
        "evaluation",
        "start-up",
        "lowest ratio, train",
        "lowest ratio, eval",
        "worth it",
    )
    text = pairs.table(head, rows)
    text += (
        "\n\nTimes slower than with all kernels, geometric means over "
        f"{', '.join(slower)}; then the lowest ratio to PyTorch that is left. "
        f"Batches of {BATCH}, {SIZE} px, {options.clock} time "
        "(start-up: processor time)."
    )
    pairs.publish("kernels", text, pairs.describe_machine("jax"), options.write)


if __name__ == "__main__":
    main()
