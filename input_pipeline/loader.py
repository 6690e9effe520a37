"""The grain chain: from row numbers to batches of NumPy arrays.

The element of the chain is a whole batch, and batch `k` is a pure function of
(seed, k): which rows it holds follows from the order of its epoch, and
every image has a random generator of its own, keyed by the image's position
in the endless stream. So a run that is rebuilt at any step goes on exactly,
with any number of workers, and the places of a batch that several hosts load
are, put together, the batch of one host. Batches go over the edge of an
epoch, and nothing is dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, ClassVar

import grain.python as grain
import numpy as np
from absl import flags

from core import atomic_files
from core.errors import UserError
from input_pipeline.backends import image_backend
from input_pipeline.samplers import AUGMENT, Sampler, generator
from input_pipeline.sources.base import Images
from input_pipeline.statistics import channel_stats
from input_pipeline.transforms.operations import Operation, encode
from input_pipeline.transforms.policy import (
    VIEWS,
    Augment,
    BadImage,
    eval_image,
    prepared_train_image,
)

__all__ = ["Batches", "channel_stats", "eval_batches", "train_batches"]

# Enough steps for any training; a grain range needs an end.
_ENDLESS = 1 << 48

# Batches that wait ready-made, per worker.
_BUFFERED_BATCHES = 2

# Where the reasons for bad images travel inside a batch.
_REASONS = "reasons"


def train_batches(
    images: Images,
    rows: np.ndarray,
    augment: Augment,
    *,
    size: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    places: Sequence[int] | None = None,
    balance: float = 0.0,
) -> Batches:
    """Endless augmented batches in a new order every epoch.

    Args:
      images: the images.
      rows: int `[N]`, the rows of `images` to train on.
      augment: see `train_image`.
      size: side of the images in pixels.
      batch_size: images per step over all hosts.
      seed: of order and augmentation.
      start_step: number of the first batch; a stream that starts at k is the
        stream that starts at 0 without its first k batches.
      workers: processes that prepare batches; 0 prepares them in a thread.
      places: which of 0 to batch_size - 1 this host loads, ascending; all
        when left out.
      balance: how far rare classes come more often than they are, 0 (each
        image once an epoch) to 1 (all classes alike); see `Sampler`.

    Returns:
      Iterator of dicts with `image` uint8 `[b, size, size, 3]`, `label` int32
      `[b]`, `mask` float32 `[b]` (0: the image could not be read, its pixels
      are 0), `row` int32 `[b]`, where b = len(places). With `augment.device`
      also what `device_ops.apply` is to do with the images:
      `operation` uint8 `[b, S]` and `strength` float32 `[b, S]`.

    Raises:
      UserError: no rows, or a balance that is none.
    """
    rows = np.asarray(rows, np.int32)
    if len(rows) == 0:
        raise UserError(
            "there is no image to train on; check --config.data.fold and "
            "--config.data.folds"
        )
    if not 0 <= balance <= 1:
        raise UserError(
            f"data.balance is {balance}; set --config.data.balance between 0 "
            "(classes as often as they are) and 1 (all equally often)"
        )
    sampler = Sampler(rows, images.labels[rows], seed, balance)
    places = _checked(places, batch_size)
    maker = _TrainBatch(images, sampler, augment, size, batch_size, places)
    steps = grain.MapDataset.range(start_step, _ENDLESS)
    return Batches(steps, maker, workers)


def check_views(views: Sequence[str]) -> None:
    """Raises a UserError unless every view is one of `augment.VIEWS`."""
    unknown = [view for view in views if view not in VIEWS]
    if unknown or not views:
        raise UserError(
            f"there is no evaluation view '{', '.join(unknown)}'; choose from "
            f"{', '.join(VIEWS)}"
        )


def eval_batches(
    images: Images,
    rows: np.ndarray,
    *,
    size: int,
    batch_size: int,
    views: Sequence[str] = ("center",),
    workers: int = 0,
    places: Sequence[int] | None = None,
) -> Batches:
    """Every row exactly once, in order; the last batch is filled up.

    Args:
      images: the images.
      rows: int `[N]`, the rows of `images` to evaluate.
      size: side of a view in pixels.
      batch_size: images per step over all hosts.
      views: names out of `augment.VIEWS`.
      workers: processes that prepare batches; 0 prepares them in a thread.
      places: which of 0 to batch_size - 1 this host loads, ascending; all
        when left out.

    Returns:
      Iterator of dicts with `image` uint8 `[b, V, size, size, 3]`, `label`
      int32 `[b]`, `mask` float32 `[b]` (0: filling, with row -1), `row` int32
      `[b]`, `bad` bool `[b]` (the image could not be read, its pixels are 0).

    Raises:
      UserError: an unknown view.
    """
    check_views(views)
    rows = np.asarray(rows, np.int32)
    places = _checked(places, batch_size)
    maker = _EvalBatch(images, rows, size, batch_size, tuple(views), places)
    steps = grain.MapDataset.range(0, -(-len(rows) // batch_size))
    return Batches(steps, maker, workers)


class WorkerDied(UserError):
    """A worker process ended on its own, as when the memory runs out."""


class Batches(Iterator[dict[str, np.ndarray]]):
    """An iterator over batches that reports bad images and can be closed.

    Attributes:
      close: call it to end worker processes and threads; the iterator is over
        then. Calling it again does no harm.
    """

    def __init__(
        self,
        steps: grain.MapDataset,
        maker: _TrainBatch | _EvalBatch,
        workers: int,
    ):
        self._images, self._workers = maker.images, workers
        self._consequence = maker.consequence
        kept = contextlib.ExitStack()
        if workers:
            image_backend.prepare()
            maker = kept.enter_context(_parcel(maker))
        # In a list, to be emptied when it is closed.
        self._chain = [iter(_chain(steps.map(maker), workers))]
        self._reported: set[int] = set()
        # Also when this is dropped, or when the program ends: worker processes
        # must be gone before the modules that end them are taken apart.
        self.close = weakref.finalize(self, _close, self._chain, kept)
        self._starting = _deaf_children if workers else contextlib.nullcontext

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._chain:
            raise StopIteration
        try:
            # The first call starts the workers.
            with self._starting():
                batch = next(self._chain[0])
        except StopIteration:
            self.close()
            raise
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise WorkerDied(
                f"one of {self._workers} loader processes was killed, most "
                "likely because memory or /dev/shm ran out; start again with "
                f"--config.workers={self._workers // 2}, which goes on with "
                "the same batches"
            ) from error
        for row, reason in batch.pop(_REASONS):
            if row not in self._reported:
                self._reported.add(row)
                name = self._images.path(row) or self._images.ids[row]
                print(
                    f"bad image '{name}': {reason}; {self._consequence}",
                    file=sys.stderr,
                )
        # Images from workers lie in shared memory, which would fill up, or
        # outlive the process, if a caller kept them.
        return {name: _owned(values) for name, values in batch.items()}

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def _close(
    chain: list[grain.DatasetIterator], kept: contextlib.ExitStack
) -> None:
    # Out of the list first, so that it is taken down here and now.
    chain.pop().close()
    kept.close()


@contextlib.contextmanager
def _parcel(maker: _TrainBatch | _EvalBatch) -> Iterator[_Parcel]:
    """Yields what makes the same batches, in a file as long as it lasts.

    Raises:
      UserError: there is no room for the file.
    """
    with atomic_files.temporary_folder(prefix="sextet-loader-") as folder:
        path = folder / "maker"
        try:
            path.write_bytes(pickle.dumps(maker))
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; free some space "
                "there, or set TMPDIR to another folder"
            ) from error
        yield _Parcel(path)


@dataclasses.dataclass(frozen=True)
class _Parcel:
    """A batch maker that travels to worker processes in a file.

    What a spawned process is given goes through a pipe, and if it dies before
    it has read more than the pipe holds, its parent waits for ever (CPython's
    Popen keeps the reading end open). A file's name always fits, and is
    pickled once for all workers.
    """

    path: Path

    def __call__(self, step: int) -> dict[str, Any]:
        return _unpack(self.path)(step)


@functools.lru_cache(maxsize=1)
def _unpack(path: Path) -> _TrainBatch | _EvalBatch:
    return pickle.loads(path.read_bytes())


def _owned(values: np.ndarray) -> np.ndarray:
    return values if type(values) is np.ndarray else np.array(values)


def _checked(places: Sequence[int] | None, batch_size: int) -> tuple[int, ...]:
    if places is None:
        return tuple(range(batch_size))
    places = tuple(int(place) for place in places)
    if not places or min(places) < 0 or max(places) >= batch_size:
        raise ValueError(f"places {places} of a batch of {batch_size}")
    return places


def _chain(batches: grain.MapDataset, workers: int) -> grain.IterDataset:
    # One thread: it works while the device does, and Pillow lets go of the
    # interpreter lock. More parallelism is what worker processes are for.
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    chain = batches.to_iter_dataset(read)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags.
        chain = chain.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=_BUFFERED_BATCHES
            ),
            worker_init_fn=_start_worker,
        )
    return chain


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start inside leave Ctrl-C and SIGTERM to this one.

    In a terminal, or from a scheduler, these reach every process of a job;
    the one that trains then finishes its step, for which it needs its
    loaders. A signal that is blocked here stays blocked in a child from its
    first moment on; other threads of this process hear it meanwhile.
    """
    # Starting the tracker, which a worker's start may do, would unblock them.
    resource_tracker.ensure_running()
    stops = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, count: int) -> None:
    """Leaves with the parent.

    grain ends its workers in good order; after a SIGKILL nobody does, and
    they would wait for ever on a queue that no one reads.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _TrainBatch:
    """Step number -> batch. Picklable, as worker processes are spawned."""

    consequence: ClassVar = "left out of training"
    images: Images
    sampler: Sampler
    augment: Augment
    size: int
    batch_size: int
    places: tuple[int, ...]

    def __call__(self, step: int) -> dict[str, Any]:
        first = step * self.batch_size
        positions = [first + place for place in self.places]
        side = self.size
        pixels = np.zeros((len(positions), side, side, 3), np.uint8)
        mask = np.ones(len(positions), np.float32)
        rows = np.empty(len(positions), np.int32)
        left: list[list[Operation]] = [[] for _ in positions]
        reasons = []
        for slot, position in enumerate(positions):
            row = self.sampler.row(position)
            rows[slot] = row
            rng = generator(self.sampler.seed, AUGMENT, position)
            try:
                data = self.images.read(row)
                pixels[slot], left[slot] = prepared_train_image(
                    data, self.augment, side, rng
                )
            except BadImage as error:
                mask[slot] = 0
                reasons.append((int(row), str(error)))
        device = self.augment.device
        return {
            "image": pixels,
            "label": self.images.labels[rows],
            "mask": mask,
            "row": rows,
            **(encode(left, self.augment.device_slots) if device else {}),
            _REASONS: reasons,
        }


@dataclasses.dataclass(frozen=True)
class _EvalBatch:
    """Batch number -> batch."""

    consequence: ClassVar = "keeps its row with the class prior"
    images: Images
    rows: np.ndarray
    size: int
    batch_size: int
    views: tuple[str, ...]
    places: tuple[int, ...]

    def __call__(self, step: int) -> dict[str, Any]:
        first = step * self.batch_size
        positions = [first + place for place in self.places]
        shape = (len(positions), len(self.views), self.size, self.size, 3)
        pixels = np.zeros(shape, np.uint8)
        rows = np.full(len(positions), -1, np.int32)
        labels = np.full(len(positions), -1, np.int32)
        bad = np.zeros(len(positions), bool)
        reasons = []
        for slot, position in enumerate(positions):
            if position >= len(self.rows):
                break
            row = self.rows[position]
            rows[slot] = row
            labels[slot] = self.images.labels[row]
            try:
                pixels[slot] = eval_image(
                    self.images.read(row),
                    self.views,
                    self.size,
                    str(self.images.ids[row]),
                )
            except BadImage as error:
                bad[slot] = True
                reasons.append((int(row), str(error)))
        return {
            "image": pixels,
            "label": labels,
            "mask": (rows >= 0).astype(np.float32),
            "row": rows,
            "bad": bad,
            _REASONS: reasons,
        }
