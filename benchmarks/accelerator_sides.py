"""Both sides of benchmarks/accelerator.py, each at work in its own process.

A side answers orders: it prepares a kind of work for a batch size, and makes
some steps of it. JAX and PyTorch are imported in these processes alone.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CLASSES = 16
RATE, DECAY = 3e-4, 1e-4
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
