"""Training and evaluation on an accelerator, beside timm on the same card.

    python benchmarks/accelerator.py [--json FILE] [--write]
    python benchmarks/accelerator.py --tiny      # a rehearsal on any CPU

bf16, 224 px, the networks of all recipes and the masked autoencoder. Each
side of a pair is a process of its own on the one card: ours is the step that
train.py runs; PyTorch's is timm with torch.compile, channels_last, bf16
autocast and the fused AdamW. Each first looks for its best batch size,
doubling until memory ends or a doubling gains less than 3 %; then they take
turns at it. TFLOP/s count multiply-adds of the network twice, and the backward
pass as two forward passes; the peak is that of a large bf16 matrix product,
measured on the card in the same run. A side that cannot run is left out, and
the reason is printed. benchmarks/campaign.py reads the JSON.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import contextlib

from benchmarks import pairs
from core.atomic_files import write_text

NETWORKS = (
    "miniconvnext",
    "tinyvit_11m",
    "tinyvit_11m mae",
    "efficientnetv2_m",
    "convnextv2_small",
    "convnextv2_base",
)
TINY_NETWORKS = ("miniconvnext_demo", "tinyvit_demo mae")
CLASSES = 16
RATE, DECAY = 3e-4, 1e-4
# One more doubling must gain this much to be worth its memory.
GAIN = 1.03
BATCHES = (32, 64, 128, 256, 512, 1024)
PEAK_SIZE = 8192


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

    def describe(self) -> dict[str, Any]:
        """Returns the device and its measured peak, in TFLOP/s."""
        jax = self._jax
        device = jax.devices()[0]
        size = PEAK_SIZE if device.platform != "cpu" else 256
        matrix = jax.numpy.ones((size, size), jax.numpy.bfloat16)
        product = jax.jit(lambda a: a @ a)
        jax.block_until_ready(product(matrix))
        times = [
            pairs.seconds(lambda: jax.block_until_ready(product(matrix)))
            for _ in range(10)
        ]
        return {
            "device": device.device_kind,
            "peak_tflops": 2 * size**3 / min(times) / 1e12,
        }


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
        torch.set_float32_matmul_precision("high")

    def _model(self):
        from benchmarks.our_side import VARIANTS

        variant = VARIANTS[self._name]
        model = self._side.make(
            self._name, CLASSES, variant.drop_path_rate, variant.dropout
        )
        return model.to(self._device)

    def _batch(self, batch: int):
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

    def describe(self) -> dict[str, Any]:
        """Returns nothing: the device is described once, by our side."""
        return {}


SIDES = {"ours": Ours, "timm": Theirs}


def serve(side: str, name: str, size: int, orders: Connection) -> None:
    """Answers orders until None: ("train" or "evaluate", batch, steps).

    The answer is ("done", images per second, GiB, seconds to prepare), or
    ("failed", reason). The first answer describes the device.
    """
    try:
        worker = SIDES[side](name, size)
        orders.send(("done", worker.describe()))
    except Exception as error:  # Whatever it is, the other side goes on.
        orders.send(("failed", _first_line(error)))
        return
    prepared, work = None, None
    while (order := orders.recv()) is not None:
        kind, batch, steps = order
        try:
            took = 0.0
            if prepared != (kind, batch):
                # Freed before the next is made.
                prepared, work = None, None
                start = time.perf_counter()
                work = getattr(worker, kind)(batch)
                work(1)
                took = time.perf_counter() - start
                work(1)
                prepared = kind, batch
            start = time.perf_counter()
            work(steps)
            rate = steps * batch / (time.perf_counter() - start)
            orders.send(("done", rate, worker.memory(), took))
        except Exception as error:  # Out of memory has many types.
            prepared, work = None, None
            orders.send(("failed", _first_line(error)))


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


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
        answer = self._receive()
        self.reason = answer[1] if answer[0] == "failed" else ""
        self.device = {} if self.reason else answer[1]

    def _receive(self) -> tuple:
        try:
            return self._orders.recv()
        except (EOFError, ConnectionResetError):
            return ("failed", "its process died, perhaps out of memory")

    def ask(self, kind: str, batch: int, steps: int) -> tuple:
        """Returns the answer to one order; see `serve`."""
        try:
            self._orders.send((kind, batch, steps))
        except (BrokenPipeError, OSError):
            return ("failed", "its process died, perhaps out of memory")
        return self._receive()

    def search(self, kind: str, batches, steps: int) -> dict[str, Any] | None:
        """Returns the rates by batch size, and the best; None if all failed."""
        rates, memory, took = {}, {}, {}
        for batch in batches:
            answer = self.ask(kind, batch, steps)
            if answer[0] == "failed":
                self.reason = answer[1]
                break
            _, rates[batch], memory[batch], took[batch] = answer
            print(
                f"    {kind} {batch}: {rates[batch]:.0f} images/s", flush=True
            )
            if batch > batches[0] and rates[batch] < GAIN * rates[batch // 2]:
                break
        if not rates:
            return None
        best = max(rates, key=rates.get)
        return {
            "batch": best,
            "images_per_s": rates[best],
            "by_batch": rates,
            "memory_gib": memory[best],
            "first_step_s": took[min(took)],
        }

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError, OSError):
            self._orders.send(None)
        self._process.join(30)
        self._process.kill()


def measure(name: str, options) -> dict[str, Any]:
    """Returns what both sides reach with one network."""
    found, sides = {}, {}
    for label in SIDES:
        print(f"  {label}", flush=True)
        side = Side(label, name, options.size)
        found[label] = {"device": side.device, "reason": side.reason}
        if side.reason:
            print(f"    left out: {side.reason}", flush=True)
            side.close()
            continue
        sides[label] = side
        for kind in ("train", "evaluate"):
            if kind == "evaluate" and name.endswith(" mae"):
                continue
            found[label][kind] = side.search(
                kind, options.batches, options.steps
            )
        if side.reason:
            found[label]["reason"] = side.reason
    # In turns, each at its own best batch.
    for kind in ("train", "evaluate"):
        works = {
            label: functools.partial(
                side.ask, kind, found[label][kind]["batch"], options.steps
            )
            for label, side in sides.items()
            if found[label].get(kind)
        }
        rates = {label: [] for label in works}
        for _ in range(options.rounds):
            for label, work in works.items():
                answer = work()
                if answer[0] == "done":
                    rates[label].append(answer[1])
        for label, values in rates.items():
            if values:
                found[label][kind]["images_per_s"] = statistics.median(values)
    for side in sides.values():
        side.close()
    return found


def multiply_adds(name: str, size: int) -> int:
    """Returns those of one forward pass; a masked autoencoder's encoder."""
    from flax import nnx

    import jax_models
    from jax_models import costs

    network = name.removesuffix(" mae")
    model = nnx.eval_shape(lambda: jax_models.create_model(network, CLASSES))
    return costs.measure(model, size).multiply_adds


def rows_of(name: str, found: dict, peak: float, operations: int):
    """Yields the table's rows for one network."""
    for kind, passes in (("train", 3), ("evaluate", 1)):
        ours, timm = (found[label].get(kind) for label in ("ours", "timm"))
        if not ours and not timm:
            continue
        cells = [name, kind]
        for side in (ours, timm):
            cells.append(f"{side['images_per_s']:.0f}" if side else "-")
            cells.append(f"{side['batch']}" if side else "-")
        if ours:
            reached = ours["images_per_s"] * operations * 2 * passes / 1e12
            ours["tflops"] = reached
            cells += [f"{reached:.3g}", f"{reached / peak:.0%}"]
            cells.append(f"{ours['memory_gib']:.1f}")
        else:
            cells += ["-"] * 3
        both = ours and timm
        ratio = both and ours["images_per_s"] / timm["images_per_s"]
        cells.append(f"{ratio:.2f}" if both else "-")
        yield cells


def main() -> None:
    """Prints the table, writes the JSON."""
    options = pairs.parse(
        __doc__,
        rounds=5,
        models=dict(nargs="+", default=None),
        size=dict(type=int, default=224),
        steps=dict(type=int, default=10),
        batches=dict(type=int, nargs="+", default=BATCHES),
        json=dict(default="runs/accelerator.json"),
        tiny=dict(action="store_true"),
    )
    if options.tiny:
        options.models = options.models or TINY_NETWORKS
        options.size, options.steps, options.rounds = 64, 1, 1
        options.batches = (2, 4)
    # Two processes share the card: neither takes all of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    models, rows, peak = {}, [], {}
    for name in options.models or NETWORKS:
        print(name, flush=True)
        models[name] = found = measure(name, options)
        # The largest that was measured: the card may have been busy.
        device = found["ours"].pop("device")
        if device.get("peak_tflops", 0) > peak.get("peak_tflops", 0):
            peak = device
        operations = multiply_adds(name, options.size)
        reference = peak.get("peak_tflops", float("inf"))
        rows += rows_of(name, found, reference, operations)
        # Written after each: what is measured stays if the machine goes.
        write_text(
            options.json,
            json.dumps({**peak, "size": options.size, "models": models}),
        )
    head = (
        *("network", "pass", "ours, images/s", "batch", "timm, images/s"),
        *("batch", "TFLOP/s", "of peak", "GiB", "times faster"),
    )
    text = pairs.table(head, rows)
    text += (
        f"\n\n{peak.get('device', 'no device of ours')}, "
        f"{peak.get('peak_tflops', 0):.3g} TFLOP/s in a bf16 matrix product "
        f"of {PEAK_SIZE}; {options.size} px."
    )
    for name, found in models.items():
        for label, side in found.items():
            if side["reason"]:
                text += f"\n\n{name}, {label}: {side['reason']}."
    pairs.publish(
        "accelerator", text, pairs.describe_machine("jax"), options.write
    )


if __name__ == "__main__":
    main()
