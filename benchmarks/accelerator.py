"""Training and evaluation on an accelerator, beside timm on the same card.

    python benchmarks/accelerator.py [--seconds 480] [--json FILE] [--write]
    python benchmarks/accelerator.py --tiny      # a rehearsal on any CPU

bf16, 224 px, the networks of all recipes and the masked autoencoder. Each
side of a pair is a process of its own on the one card: ours is the step that
train.py runs; PyTorch's is timm with torch.compile, channels_last, bf16
autocast and the fused AdamW. Both work at the same batch size, in turns and in
changing order.

What is worth most comes first: the card's rate in a large bf16 matrix product,
every network's training, evaluation, our input pipeline on the machine's
cores, and only then larger batches, doubled until memory ends or a doubling
gains neither side 3 %. The JSON is written after each. With --seconds, work
that would not end in time is not begun, and what is under way at the end is
killed; the table has what there is.

Compilers take most of the time, so the next networks (--ahead) are compiled
meanwhile, and stand still whenever something is timed. TFLOP/s count
multiply-adds of the network twice, and the backward pass as two forward
passes. A side that cannot run is left out, and the reason is printed.
benchmarks/campaign.py reads the JSON.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs
from benchmarks.accelerator_pairs import TURN, Loaders, Pair, Work
from benchmarks.accelerator_sides import CLASSES, NO_TIME, is_about_memory
from core.atomic_files import write_text

# What is measured, and the batch size that it starts with: enough to fill a
# card of 80 GB or more, while four of them share its memory.
NETWORKS = {
    "miniconvnext": 256,
    "tinyvit_11m": 256,
    "efficientnetv2_m": 128,
    "convnextv2_small": 128,
    "convnextv2_base": 128,
    "tinyvit_11m mae": 256,
}
TINY_NETWORKS = {"miniconvnext_demo": 2, "tinyvit_demo mae": 2}
# One more doubling must gain this much to be worth its memory.
GAIN = 1.03
LARGEST_BATCH = 1024
PEAK_SIZE, TINY_PEAK_SIZE = 8192, 256
AT_THE_END = 10.0  # seconds kept for the table
LOADING = 45.0  # seconds that the input takes, with no time known yet


# ---- What comes when ---------------------------------------------------------
def lay_out(networks: dict[str, int], peak_size: int) -> list[Work]:
    """Returns what is to be measured, the most valuable first."""
    return [
        Work("peak", batch=peak_size),
        *(Work("train", name, batch) for name, batch in networks.items()),
        *(
            Work("evaluate", name, batch)
            for name, batch in networks.items()
            if not name.endswith(" mae")
        ),
        Work("load"),
        *(
            Work("train", name, 2 * batch, larger=True)
            for name, batch in networks.items()
        ),
    ]


class Session:
    """Measures until everything is, or time is up.

    Args:
      options: of the command.

    Attributes:
      found: what the JSON holds.
      notes: sentences to go below the table.
      skipped: what there was no time for.
      at_once: how many processes may compile at the same time.
    """

    def __init__(self, options):
        self._options = options
        self._last = time.monotonic()
        self._deadline = math.inf
        if options.seconds is not None:
            self._deadline = self._last + options.seconds - AT_THE_END
        self._seconds = collections.defaultdict(list)
        self._out = set()  # (network, label) that cannot run at all.
        self.at_once = 2 * (options.ahead + 1)
        self.found = {"size": options.size, "given": {}, "models": {}}
        self.found["multiply_adds"] = {}
        self.notes, self.skipped = [], []

    def run(self, works: Sequence[Work]) -> None:
        """Measures one after the other, and prepares the next meanwhile."""
        waiting = collections.deque(works)
        begun = collections.deque()
        try:
            while waiting or begun:
                self._begin(waiting, begun)
                if not begun:
                    continue
                pair = begun[0]
                self._finish(pair, list(begun)[1:])
                begun.popleft().close()
                waiting.extend(self._keep(pair))
                write_text(self._options.json, json.dumps(self.found))
        finally:
            for pair in begun:
                pair.close()

    def _begin(self, waiting: collections.deque, begun: collections.deque):
        """Begins what there is time for; without any, one is left out."""
        while waiting and len(begun) <= self._options.ahead:
            expected = (len(begun) + 1) * self._expected(waiting[0].kind)
            if time.monotonic() + expected <= self._deadline:
                begun.append(self._make(waiting.popleft()))
                continue
            if not begun:  # Otherwise there may be time for it later.
                self.skipped.append(str(waiting.popleft()))
            return

    def _make(self, work: Work):
        if work.kind == "load":
            return Loaders(work, self._options)
        labels = ("card",) if work.kind == "peak" else ("ours", "timm")
        able = [
            label for label in labels if (work.name, label) not in self._out
        ]
        return Pair(work, able, self._options)

    def _expected(self, kind: str) -> float:
        """Seconds from the end of the work before to the end of such a one."""
        known = self._seconds[kind]
        if not known and kind == "load":  # Nothing is compiled for it.
            return LOADING
        if not known:
            known = [second for k in self._seconds.values() for second in k]
        return statistics.fmean(known) if known else 0.0

    def _finish(self, pair, others: Sequence) -> None:
        print(f"  {pair.work}", flush=True)
        # One that is ready is measured, whatever the other does.
        turns = self._options.rounds * TURN
        pair.prepare(self._deadline - turns)
        with standing_still(others):
            pair.measure(self._deadline)
        now = time.monotonic()
        self._seconds[pair.work.kind].append(now - self._last)
        print(f"    {now - self._last:.0f} s", flush=True)
        self._last = now

    def _note(self, sentence: str) -> None:
        self.notes.append(sentence)
        print(f"    {sentence}", flush=True)

    def _keep(self, pair) -> list[Work]:
        """Adds what was found; returns what is now worth measuring."""
        work = pair.work
        for label, reason in pair.reasons.items():
            if work.larger and is_about_memory(reason):
                continue
            self._note(f"Left out, {work}, {label}: {reason}.")
            if reason != NO_TIME:
                self._out.add((work.name, label))
        if work.kind == "peak":
            self._keep_peak(pair)
        elif work.kind == "load":
            self._keep_load(pair)
        else:
            return self._keep_rates(pair)
        return []

    def _keep_peak(self, pair: Pair) -> None:
        for done in pair.found.values():
            tflops = 2 * pair.batch**2 * done["rate"] / 1e12
            self.found |= {"device": done["device"], "peak_tflops": tflops}
            print(f"    {done['device']}: {tflops:.4g} TFLOP/s", flush=True)

    def _keep_load(self, pair: Loaders) -> None:
        self.found["loader"] = {
            label: done["rate"] for label, done in pair.found.items()
        }
        if "ours" in pair.found:
            rate = pair.found["ours"]["rate"]
            self.found["given"]["input_images_per_s"] = rate
        if pair.found:
            self._note(pair.describe())

    def _keep_rates(self, pair: Pair) -> list[Work]:
        work, size = pair.work, self._options.size
        self.found["multiply_adds"][work.name] = multiply_adds(work.name, size)
        sides = self.found["models"].setdefault(
            work.name, {"ours": {"reason": ""}, "timm": {"reason": ""}}
        )
        gained = False
        for label, done in pair.found.items():
            print(
                f"    {label}, batch {pair.batch}: {done['rate']:.0f} images/s,"
                f" {done['memory']:.1f} GiB, first step {done['took']:.0f} s",
                flush=True,
            )
            gained |= add_rate(sides[label], work.kind, pair.batch, done)
        for label, reason in pair.reasons.items():
            sides[label]["reason"] = sides[label]["reason"] or reason
        grow = work.larger and gained and 2 * pair.batch <= LARGEST_BATCH
        return [dataclasses.replace(work, batch=2 * pair.batch)] * grow


def add_rate(side: dict, kind: str, batch: int, done: dict) -> bool:
    """Adds a rate to what a side has; returns whether it is worth its batch."""
    known = side.setdefault(
        kind, {"batch": 0, "images_per_s": 0.0, "by_batch": {}}
    )
    known["by_batch"][batch] = done["rate"]
    gained = done["rate"] > GAIN * known["images_per_s"]
    if gained:
        known |= {
            "batch": batch,
            "images_per_s": done["rate"],
            "memory_gib": done["memory"],
            "first_step_s": done["took"],
        }
    return gained


@contextlib.contextmanager
def standing_still(pairs_: Iterable) -> Iterator[None]:
    """Keeps processes from the card and the cores while others are timed."""
    for pair in pairs_:
        pair.halt()
    try:
        yield
    finally:
        for pair in pairs_:
            pair.resume()


# ---- What comes of it --------------------------------------------------------
@functools.cache
def multiply_adds(name: str, size: int) -> int:
    """Returns those of one forward pass; a masked autoencoder's encoder."""
    import jax
    from flax import nnx

    import jax_models
    from jax_models import costs

    jax.config.update("jax_platforms", "cpu")  # The card is the sides'.
    network = name.removesuffix(" mae")
    model = nnx.eval_shape(lambda: jax_models.create_model(network, CLASSES))
    return costs.measure(model, size).multiply_adds


def rows_of(
    name: str, found: dict, peak: float, operations: int
) -> Iterator[list[str]]:
    """Yields the table's rows for one network."""
    for kind, passes in (("train", 3), ("evaluate", 1)):
        ours, timm = (found[label].get(kind) for label in ("ours", "timm"))
        if not ours and not timm:
            continue
        cells = [name, kind]
        for side in (ours, timm):
            cells += _cells(side)
        ratio = "-"
        if ours and timm:
            ratio = f"{ours['images_per_s'] / timm['images_per_s']:.2f}"
        cells.append(ratio)
        if ours:
            reached = ours["images_per_s"] * operations * 2 * passes / 1e12
            ours["tflops"] = reached
            cells += [f"{reached:.3g}", f"{reached / peak:.0%}"]
        else:
            cells += ["-"] * 2
        yield cells


def _cells(side: dict | None) -> list[str]:
    if not side:
        return ["-"] * 4
    return [
        f"{side['images_per_s']:.0f}",
        f"{side['batch']}",
        f"{side['memory_gib']:.1f}",
        f"{side['first_step_s']:.0f}",
    ]


def describe(session: Session) -> str:
    """Returns the table and what there is to say about it."""
    found = session.found
    peak = found.get("peak_tflops", math.inf)
    rows = [
        row
        for name, sides in found["models"].items()
        for row in rows_of(name, sides, peak, found["multiply_adds"][name])
    ]
    side = ("batch", "GiB", "first step, s")
    head = (
        *("network", "pass", "ours, images/s", *side),
        *("timm, images/s", *side, "times faster"),
        *("TFLOP/s", "of peak"),
    )
    text = (
        f"{pairs.table(head, rows)}\n\n"
        f"{found.get('device', 'no device of ours')}, "
        f"{found.get('peak_tflops', 0):.3g} TFLOP/s in a bf16 matrix product; "
        f"{found['size']} px. First steps include compilation, while up to "
        f"{session.at_once} processes compile."
    )
    notes = list(session.notes)
    if session.skipped:
        skipped = "; ".join(session.skipped)
        notes.append(f"Not measured, since {NO_TIME}: {skipped}.")
    return "\n\n".join([text, *notes])


def versions() -> list[str]:
    """Returns the packages whose versions matter, of those that are here."""
    here = []
    for package in ("jax", "torch", "timm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(package)
            here.append(package)
    return here


def main() -> None:
    """Prints the table, writes the JSON."""
    options = pairs.parse(
        __doc__,
        rounds=5,
        seconds=dict(type=float, help="end by then with what there is"),
        models=dict(nargs="+", default=None),
        size=dict(type=int, default=224),
        steps=dict(type=int, default=500, help="in a turn, at most"),
        batch=dict(type=int, help="for all networks"),
        ahead=dict(type=int, default=1, help="networks compiled meanwhile"),
        loader_batches=dict(type=int, default=256, help="in each turn"),
        json=dict(default="runs/accelerator.json"),
        tiny=dict(action="store_true"),
    )
    networks, peak_size = NETWORKS, PEAK_SIZE
    if options.tiny:
        networks, peak_size = TINY_NETWORKS, TINY_PEAK_SIZE
        options.size, options.steps, options.rounds = 64, 1, 1
        options.loader_batches = 2
    if options.models:
        networks = {name: networks.get(name, 64) for name in options.models}
    if options.batch:
        networks = dict.fromkeys(networks, options.batch)
    # Several processes share the card: none takes all of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    session = Session(options)
    session.run(lay_out(networks, peak_size))
    pairs.publish(
        "accelerator",
        describe(session),
        pairs.describe_machine(*versions()),
        options.write,
    )


if __name__ == "__main__":
    main()
