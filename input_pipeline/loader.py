"""The grain chain: from row numbers to batches of NumPy arrays.

The element of the chain is a whole batch, and batch `k` is a pure function of
(seed, k): the sampler says which rows it holds, and every example has a random
generator of its own, keyed by its position in the endless stream. So a run
resumes bit-exactly from any step, with any number of workers, and the rows of
a batch that several hosts load are, put together, the batch of one host.
Batches go over the edge of an epoch, and nothing is dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import grain.python as grain
import numpy as np
from absl import flags

from core.errors import UserError
from input_pipeline import worker_pool
from input_pipeline.backends import image_backend
from input_pipeline.decoding import BadImage
from input_pipeline.samplers import AUGMENT, Sampler, generator
from input_pipeline.sources.base import Examples, Kind, Spec

# Enough steps for any training; a grain range needs an end.
_ENDLESS = 1 << 48

# Batches that wait ready-made, per worker.
_BUFFERED_BATCHES = 2

# Key of the reasons for bad images inside a batch.
_REASONS = "reasons"


class Transform(Protocol):
    """Makes an example's pixels what the model is given; picklable.

    Attributes:
      if_unreadable: what happens to an example that cannot be read.
    """

    if_unreadable: ClassVar[str]

    def spec(self, kinds: Mapping[str, Kind]) -> Spec:
        """Returns (shape, dtype) of every feature that a call returns.

        Args:
          kinds: of the examples' features.
        """

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator | None
    ) -> dict[str, np.ndarray]:
        """Returns the features of `spec`.

        Args:
          example: what `Examples.read` returns, and `id`.
          rng: the only source of randomness; None in evaluation.

        Raises:
          BadImage: the example cannot be read.
        """


def train_batches(
    examples: Examples,
    transform: Transform,
    sampler: Sampler,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    local_rows: Sequence[int] | None = None,
) -> Batches:
    """Endless augmented batches, in the sampler's order.

    Args:
      examples: that `sampler` takes rows of.
      transform: such as `policy.TrainTransform`.
      sampler: which row is at which position of the stream.
      batch_size: examples per step over all hosts.
      seed: of augmentation.
      start_step: number of the first batch; a stream that starts at k is the
        stream that starts at 0 without its first k batches.
      workers: processes that prepare batches; 0 prepares them in a thread.
      local_rows: which of 0 to batch_size - 1 this host loads, ascending; all
        when left out.

    Returns:
      Iterator of dicts with the features of `transform.spec`, those of
      `examples.row_features` (`label` int32 `[b]` and the columns), `weight`
      float32 `[b]` (0: the example could not be read, its pixels are 0) and
      `row` int32 `[b]`, where b = len(local_rows).
    """
    local_rows = _checked(local_rows, batch_size)
    maker = _TrainBatch(
        examples, transform, batch_size, local_rows, sampler, seed
    )
    steps = grain.MapDataset.range(start_step, _ENDLESS)
    return Batches(steps, maker, workers)


def eval_batches(
    examples: Examples,
    rows: np.ndarray,
    transform: Transform,
    *,
    batch_size: int,
    workers: int = 0,
    local_rows: Sequence[int] | None = None,
) -> Batches:
    """Every row exactly once, in order; the last batch is filled up.

    Args:
      examples: that `rows` are of.
      rows: int `[N]`, the rows to evaluate.
      transform: such as `views.EvalTransform`.
      batch_size: examples per step over all hosts.
      workers: processes that prepare batches; 0 prepares them in a thread.
      local_rows: which of 0 to batch_size - 1 this host loads, ascending; all
        when left out.

    Returns:
      Iterator of dicts with the features of `transform.spec` and of
      `examples.row_features`, `weight` float32 `[b]` (0: filling, with row -1
      and label -1), `row` int32 `[b]` and `bad` bool `[b]` (the example could
      not be read, its pixels are 0), where b = len(local_rows).
    """
    rows = np.asarray(rows, np.int32)
    local_rows = _checked(local_rows, batch_size)
    maker = _EvalBatch(examples, transform, batch_size, local_rows, rows)
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
        self, steps: grain.MapDataset, maker: _MakeBatch, workers: int
    ):
        self._examples, self._workers = maker.examples, workers
        self._if_unreadable = maker.transform.if_unreadable
        kept = contextlib.ExitStack()
        if workers:
            image_backend.prepare()
            maker = kept.enter_context(worker_pool.spooled(maker))
        # In a list, to be emptied when it is closed.
        self._chain = [iter(_chain(steps.map(maker), workers))]
        self._reported: set[str] = set()
        # Also when this is dropped, or when the program ends: worker processes
        # must be gone before the modules that end them are taken apart.
        self.close = weakref.finalize(self, _close, self._chain, kept)
        self._starting = (
            worker_pool.stop_signals_blocked
            if workers
            else contextlib.nullcontext
        )

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
        except OSError as error:
            # No image raises one: the system refuses queues or processes.
            if not self._workers:
                raise
            raise WorkerDied(
                f"loader processes ({self._workers}) cannot be started "
                f"({error.strerror}): /dev/shm, memory or a limit on "
                "processes or files is too small; start again with "
                "--config.workers=0, which goes on with the same batches"
            ) from error
        for row, reason in batch.pop(_REASONS):
            name = str(self._examples.path(row) or self._examples.ids[row])
            if name not in self._reported:  # Windows of one image share it.
                self._reported.add(name)
                print(
                    f"bad image '{name}': {reason}; {self._if_unreadable}",
                    file=sys.stderr,
                )
        # Arrays from workers are in shared memory, which would fill up, or
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


def _owned(values: np.ndarray) -> np.ndarray:
    return values if type(values) is np.ndarray else np.array(values)


def _checked(
    local_rows: Sequence[int] | None, batch_size: int
) -> tuple[int, ...]:
    if local_rows is None:
        return tuple(range(batch_size))
    local_rows = tuple(int(row) for row in local_rows)
    if not local_rows or min(local_rows) < 0 or max(local_rows) >= batch_size:
        raise ValueError(f"local rows {local_rows} of a batch of {batch_size}")
    return local_rows


def _chain(batches: grain.MapDataset, workers: int) -> grain.IterDataset:
    # One thread: it works while the device does, and Pillow releases the
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
            worker_init_fn=worker_pool.exit_with_parent,
        )
    return chain


@dataclasses.dataclass(frozen=True)
class _MakeBatch:
    """Step number -> batch. Picklable, as worker processes are spawned."""

    examples: Examples
    transform: Transform
    batch_size: int
    local_rows: tuple[int, ...]

    def positions(self, step: int) -> list[int]:
        """Positions in the stream of the rows that this host loads."""
        return [step * self.batch_size + row for row in self.local_rows]

    def load(
        self,
        rows: np.ndarray,
        rngs: Sequence[np.random.Generator | None],
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Reads and transforms rows.

        Args:
          rows: int32 `[b]`; -1 leaves the features empty.
          rngs: one for each row.

        Returns:
          The features, and which rows could not be read: bool `[b]`.
        """
        kinds, count = self.examples.kinds, len(rows)
        pixels = {
            name: np.zeros((count, *shape), dtype)
            for name, (shape, dtype) in self.transform.spec(kinds).items()
        }
        bad, reasons = np.zeros(count, bool), []
        for slot, (row, rng) in enumerate(zip(rows, rngs, strict=True)):
            if row < 0:
                continue
            try:
                example = self.examples.read(int(row))
                example["id"] = str(self.examples.ids[row])
                done = self.transform(example, rng)
            except BadImage as error:
                bad[slot] = True
                reasons.append((int(row), str(error)))
                continue
            for name, values in pixels.items():
                values[slot] = done[name]
        batch = {**pixels, "row": rows, _REASONS: reasons}
        for name, values in self.examples.row_features.items():
            batch[name] = values[rows]
            batch[name][rows < 0] = -1 if kinds[name] is Kind.LABEL else 0
        return batch, bad


@dataclasses.dataclass(frozen=True)
class _TrainBatch(_MakeBatch):
    sampler: Sampler
    seed: int

    def __call__(self, step: int) -> dict[str, Any]:
        positions = self.positions(step)
        rows = [self.sampler.row(position) for position in positions]
        rngs = [generator(self.seed, AUGMENT, number) for number in positions]
        rows = np.array(rows, np.int32)
        batch, bad = self.load(rows, rngs)
        return {**batch, "weight": self.examples.weights(rows) * ~bad}


@dataclasses.dataclass(frozen=True)
class _EvalBatch(_MakeBatch):
    rows: np.ndarray

    def __call__(self, step: int) -> dict[str, Any]:
        positions = self.positions(step)
        rows = np.array(
            [
                self.rows[position] if position < len(self.rows) else -1
                for position in positions
            ],
            np.int32,
        )
        batch, bad = self.load(rows, [None] * len(rows))
        weight = (rows >= 0).astype(np.float32)
        return {**batch, "weight": weight, "bad": bad}
