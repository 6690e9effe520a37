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
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import input_pipeline, pairs
from core.atomic_files import write_text
from core.hardware import usable_cores

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
CLASSES = 16
RATE, DECAY = 3e-4, 1e-4
# One more doubling must gain this much to be worth its memory.
GAIN = 1.03
LARGEST_BATCH = 1024
PEAK_SIZE, TINY_PEAK_SIZE = 8192, 256
TURN = 1.0  # seconds that a side works before the other has its turn
AT_THE_END = 10.0  # seconds kept for the table
LOADING = 45.0  # seconds that the input takes, with no time known yet
NO_TIME = "no time was left"


def make_batch(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 images [B, H, W, 3] and targets [B, C]."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    return images, np.full((batch, CLASSES), 1 / CLASSES, np.float32)


# ---- Our side: in a process of its own ---------------------------------------
class Ours:
    """Prepares work for a batch size and says what it took.

    Args:
      name: of the network.
      size: side of the images, in pixels.
    """

    def __init__(self, name: str, size: int):
        import jax
        import jax.numpy as jnp

        from benchmarks.our_side import ModelAtWork

        self._jax, self._size = jax, size
        self._model = ModelAtWork(name, CLASSES, jnp.bfloat16)

    def train(self, batch: int) -> Callable[[int], object]:
        """Returns a function that makes some steps."""
        images, targets = make_batch(batch, self._size)
        return self._model.train_step(images, targets, RATE, DECAY)

    def evaluate(self, batch: int) -> Callable[[int], object]:
        """Returns a function that computes logits some times."""
        images, _ = make_batch(batch, self._size)
        work = self._model.inference(images)
        return lambda times: [work() for _ in range(times)]

    def memory(self) -> float:
        """Returns the most memory held so far, in GiB; 0 if unknown."""
        found = self._jax.devices()[0].memory_stats() or {}
        return found.get("peak_bytes_in_use", 0) / 2**30


class Card:
    """As `Ours`, with a matrix product instead of a network."""

    def __init__(self, name: str, size: int):
        import jax

        self._jax = jax

    def peak(self, size: int) -> Callable[[int], object]:
        """Returns a function that multiplies matrices some times."""
        jax = self._jax
        # Zeros and ones would take less power, and be faster, than data.
        left, right = (
            jax.random.normal(jax.random.key(seed), (size, size), "bfloat16")
            for seed in range(2)
        )
        product = jax.jit(lambda left, right: left @ right)

        def work(times: int) -> None:
            for _ in range(times):
                found = product(left, right)
            jax.block_until_ready(found)

        return work

    def memory(self) -> float:
        """Returns nothing of interest."""
        return 0.0

    def device(self) -> str:
        """Returns the name of the card."""
        return self._jax.devices()[0].device_kind


# ---- The other side ----------------------------------------------------------
class Theirs:
    """As `Ours`, with timm on PyTorch."""

    def __init__(self, name: str, size: int):
        import torch

        from benchmarks import torch_side

        if name not in torch_side.NAMES:
            raise RuntimeError(f"timm has no {name}")
        self._torch, self._side = torch, torch_side
        self._name, self._size = name, size
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # A rehearsal on a CPU need not wait for inductor.
        on_card = self._device == "cuda"
        form = "compiled, channels_last" if on_card else "eager, channels_last"
        self._form = form
        torch.backends.cudnn.benchmark = True
        # A second batch size is compiled for itself, as the first was.
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch.set_float32_matmul_precision("high")

    def _model(self):
        from benchmarks.our_side import VARIANTS

        variant = VARIANTS[self._name]
        model = self._side.make(
            self._name, CLASSES, variant.drop_path_rate, variant.dropout
        )
        return model.to(self._device)

    def _batch(self, batch: int):
        self._torch.compiler.reset()
        images, targets = make_batch(batch, self._size)
        images = self._torch.from_numpy(images).permute(0, 3, 1, 2)
        targets = self._torch.from_numpy(targets)
        return images.to(self._device), targets.to(self._device)

    def _repeat(self, work, times: int) -> None:
        for _ in range(times):
            work()
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def train(self, batch: int) -> Callable[[int], object]:
        """Returns a function that makes some steps."""
        step = self._side.train_step(
            self._model(),
            *self._batch(batch),
            self._form,
            learning_rate=RATE,
            weight_decay=DECAY,
            autocast=self._torch.bfloat16,
        )
        return functools.partial(self._repeat, step)

    def evaluate(self, batch: int) -> Callable[[int], object]:
        """Returns a function that computes logits some times."""
        images, _ = self._batch(batch)
        work = self._side.inference(self._model(), images, self._form)

        def logits():
            with self._torch.autocast(self._device, self._torch.bfloat16):
                return work()

        return functools.partial(self._repeat, logits)

    def memory(self) -> float:
        """Returns the most memory held so far, in GiB; 0 if unknown."""
        if self._device == "cpu":
            return 0.0
        return self._torch.cuda.max_memory_allocated() / 2**30


SIDES = {"ours": Ours, "timm": Theirs, "card": Card}


def serve(side: str, name: str, size: int, orders: Connection) -> None:
    """Answers orders until None: (kind, batch, steps); see `Side.send`."""
    os.setpgrp()  # With all processes that it starts itself.
    worker, prepared, work = None, None, None
    while (order := orders.recv()) is not None:
        kind, batch, steps = order
        try:
            took = 0.0
            if prepared != (kind, batch):
                # Freed before the next is made.
                prepared, work = None, None
                worker = worker or SIDES[side](name, size)
                start = time.perf_counter()
                work = getattr(worker, kind)(batch)
                work(1)
                took = time.perf_counter() - start
                work(1)
                prepared = kind, batch
            start = time.perf_counter()
            work(steps)
            rate = steps * batch / (time.perf_counter() - start)
            done = {"rate": rate, "memory": worker.memory(), "took": took}
            if side == "card":
                done["device"] = worker.device()
            orders.send(("done", done))
        except Exception as error:  # Whatever it is, the other side goes on.
            if not isinstance(error, ImportError):
                traceback.print_exc()
            orders.send(("failed", _first_line(error)))


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def is_about_memory(reason: str) -> bool:
    """Tells whether half the batch may do better."""
    return "out of memory" in reason.lower() or "RESOURCE_EXHAUSTED" in reason


# ---- The conversation --------------------------------------------------------
class Side:
    """One side of a pair, at work in another process."""

    def __init__(self, side: str, name: str, size: int):
        spawn = multiprocessing.get_context("spawn")
        self._orders, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=serve, args=(side, name, size, theirs), daemon=True
        )
        self._process.start()
        theirs.close()

    def send(self, kind: str, batch: int, steps: int) -> None:
        """Asks for some steps of a kind of work: a method of the worker."""
        # `receive` reports a process that died.
        with contextlib.suppress(OSError):
            self._orders.send((kind, batch, steps))

    def receive(self, deadline: float) -> tuple[str, Any]:
        """Returns ("done", what it took) or ("failed", why) for one order.

        Args:
          deadline: of `time.monotonic`; without an answer by then the process
            is killed.
        """
        left = None
        if deadline < math.inf:
            left = max(0.0, deadline - time.monotonic())
        try:
            if self._orders.poll(left):
                return self._orders.recv()
        except (EOFError, OSError):
            return ("failed", "its process died")
        self.close()
        return ("failed", NO_TIME)

    def halt(self) -> None:
        """Makes it stand still."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it and the processes that it started."""
        self._signal(signal.SIGKILL)
        self._process.join()

    def _signal(self, number: int) -> None:
        if not self._process.is_alive():
            return
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # It has no group of its own yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be measured.

    Attributes:
      kind: "peak", "train", "evaluate" or "load".
      name: of the network.
      batch: the batch size to begin with.
      larger: whether it is a trial of a larger batch than before.
    """

    kind: str
    name: str = ""
    batch: int = 0
    larger: bool = False

    def __str__(self):
        larger = f" at {self.batch}" if self.larger else ""
        return f"{self.kind} {self.name}".strip() + larger


class Pair:
    """Both sides at one work, each in a process of its own.

    Attributes:
      work: what they do.
      batch: the batch size that both have memory for.
      found: label -> what a side took and reached, for those that did.
      reasons: label -> why a side is left out.
    """

    def __init__(self, work: Work, labels: Iterable[str], options):
        self.work, self.batch, self._options = work, work.batch, options
        self.found, self.reasons = {}, {}
        self._sides = {
            label: Side(label, work.name, options.size) for label in labels
        }
        self._send(self._sides)

    def _send(self, labels: Iterable[str]) -> None:
        for label in labels:
            self._sides[label].send(self.work.kind, self.batch, 1)

    def prepare(self, deadline: float) -> None:
        """Waits until both have made their first steps.

        Where memory ends, both begin again with half the batch.
        """
        asked = list(self._sides)
        while asked:
            answers = {
                label: self._sides[label].receive(deadline) for label in asked
            }
            failed = {
                label: answer[1]
                for label, answer in answers.items()
                if answer[0] == "failed"
            }
            full = any(map(is_about_memory, failed.values()))
            halve = full and self.batch > 1 and not self.work.larger
            for label, reason in failed.items():
                if not (halve and is_about_memory(reason)):
                    self.reasons[label] = reason
            if not halve:
                self.found = {
                    label: answer[1]
                    for label, answer in answers.items()
                    if answer[0] == "done"
                }
                return
            self.batch //= 2
            print(f"    memory ends; now {self.batch}", flush=True)
            asked = [label for label in asked if label not in self.reasons]
            self._send(asked)

    def measure(self, deadline: float) -> None:
        """Lets them take turns."""
        steps = {
            label: self._steps(done["rate"])
            for label, done in self.found.items()
        }
        rates = {label: [] for label in steps}
        for number in range(self._options.rounds):
            for label in list(steps)[:: -1 if number % 2 else 1]:
                if label in self.reasons:
                    continue
                side = self._sides[label]
                side.send(self.work.kind, self.batch, steps[label])
                answer, done = side.receive(deadline)
                if answer == "failed":
                    self.reasons[label] = done
                else:
                    rates[label].append(done["rate"])
                    self.found[label]["memory"] = done["memory"]
        for label, values in rates.items():
            if values:
                self.found[label]["rate"] = statistics.median(values)
            else:
                del self.found[label]

    def _steps(self, rate: float) -> int:
        steps = round(TURN * rate / self.batch)
        return max(1, min(self._options.steps, steps))

    def halt(self) -> None:
        """Makes both stand still."""
        for side in self._sides.values():
            side.halt()

    def resume(self) -> None:
        """Lets both go on."""
        for side in self._sides.values():
            side.resume()

    def close(self) -> None:
        """Ends their processes."""
        for side in self._sides.values():
            side.close()


class Loaders:
    """Our input pipeline and torchvision's, on all cores; as `Pair`."""

    PHOTOS = dataclasses.replace(input_pipeline.PHOTOS[0], count=64)
    LABELS = ("ours", "ours, colours on the device", "torchvision")

    def __init__(self, work: Work, options):
        self.work, self.batch = work, input_pipeline.BATCH
        self.found, self.reasons = {}, {}
        self._rounds, self._batches = options.rounds, options.loader_batches
        self._workers = usable_cores()
        self._folder = tempfile.TemporaryDirectory()
        self._sides = {}

    def prepare(self, deadline: float) -> None:
        """Writes the photos, and each of them many times.

        A DataLoader starts anew with every epoch, which is not to count.
        """
        del deadline
        folder = Path(self._folder.name)
        self.PHOTOS.write(folder)
        count = self.PHOTOS.count
        wanted = max(count, 2 * self._batches * self.batch)
        for number in range(count, wanted):
            os.link(folder / f"{number % count}.jpg", folder / f"{number}.jpg")
        photos = dataclasses.replace(self.PHOTOS, count=wanted)
        self._sides = {
            label: input_pipeline.Side(label, photos, folder, self._workers)
            for label in self.LABELS
        }

    def measure(self, deadline: float) -> None:
        """Lets them take turns, in a thread, since time may end."""
        rates = {label: [] for label in self.LABELS}
        thread = threading.Thread(
            target=self._take_turns, args=(rates,), daemon=True
        )
        thread.start()
        left = None
        if deadline < math.inf:
            left = max(0.0, deadline - time.monotonic())
        thread.join(left)
        if thread.is_alive():
            self.reasons["ours"] = NO_TIME
        self.found = {
            label: {"rate": statistics.median(values)}
            for label, values in rates.items()
            if values
        }

    def _take_turns(self, rates: dict[str, list[float]]) -> None:
        for number in range(-1, self._rounds):
            for label, side in self._sides.items():
                if label in self.reasons:
                    continue
                try:
                    seconds = side.measure(self._batches)
                except (EOFError, OSError):
                    self.reasons[label] = "its process died"
                    continue
                if number >= 0:  # The first fills the caches.
                    rates[label].append(1 / seconds)

    def describe(self) -> str:
        """Returns a sentence with the rates."""
        rates = ", ".join(
            f"{label} {self.found[label]['rate']:.0f}"
            for label in self.LABELS
            if label in self.found
        )
        return (
            f"Input, {self.PHOTOS.title} to augmented batches of "
            f"{input_pipeline.SIZE} px with {self._workers} processes, "
            f"images/s: {rates}."
        )

    def halt(self) -> None:
        """Does nothing: it has not begun."""

    def resume(self) -> None:
        """Does nothing: it has not begun."""

    def close(self) -> None:
        """Ends the processes, and deletes the photos."""
        for side in self._sides.values():
            side.close()
        self._folder.cleanup()


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
