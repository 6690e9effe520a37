"""What benchmarks/accelerator.py measures, and how two sides take turns."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import input_pipeline
from benchmarks.accelerator_sides import NO_TIME, Side, is_about_memory
from core.hardware import usable_cores

TURN = 1.0  # seconds that a side works before the other has its turn


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
