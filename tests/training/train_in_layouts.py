"""Trains tiny models in many layouts of 8 devices; prints what came out.

    python train_in_layouts.py FOLDER [COORDINATOR PROCESS]

A program of its own, as the number of devices is fixed when JAX starts. With
a coordinator it is one of two processes that have four devices each.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled quickly rather than well: there is next to nothing to compute.
os.environ["XLA_FLAGS"] = " ".join(
    (
        f"--xla_force_host_platform_device_count={4 if sys.argv[2:] else 8}",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
)

import jax
import numpy as np
import tiny
from flax import nnx

from core.errors import UserError
from jax_models import layers
from training import runtime
from training.checkpointing.manager import CheckpointManager
from training.checkpointing.reader import CorruptCheckpointError
from training.cli import Peers
from training.loop import state as state_lib
from training.multihost import comm, sharding

STEPS = int(os.environ.get("STEPS", "4"))
sharding.MIN_SHARDED_SIZE = 16  # Or nothing of models this small were split.


class Plain(nnx.Module):
    """What drops rows and values at random, and has no BatchNorm."""

    def __init__(self, rngs):
        options = {"dtype": np.float32, "rngs": rngs}
        self.fc = layers.Linear(192, 16, **options)
        self.drop_path = layers.DropPath(0.4, rngs=rngs)
        self.dropout = layers.Dropout(0.4, rngs=rngs)
        self.head = layers.Linear(16, 4, **options)

    def __call__(self, images):
        x = jax.nn.gelu(self.fc(images.reshape(len(images), -1)))
        return self.head(self.dropout(x + self.drop_path(x * x)))


def build_plain():
    return Plain(nnx.Rngs(0))


def mesh_of(data, fsdp):
    return sharding.make_mesh(fsdp, jax.devices()[: data * fsdp])


def run_on(data, fsdp, **options):
    return tiny.Run(
        mesh=mesh_of(data, fsdp), log_every_steps=1, ema_decay=0.9, **options
    )


def batch_on(run, step):
    """A batch of 16 rows, of which two count nothing."""
    rng = np.random.default_rng(step)
    batch = {
        "image": rng.normal(size=(16, 8, 8, 3)).astype(np.float32),
        "label": rng.integers(0, 4, 16).astype(np.int32),
        "weight": (np.arange(16) % 7 != step).astype(np.float32),
    }
    own = sharding.local_rows(run.mesh, 16)
    own = {name: values[own] for name, values in batch.items()}
    return sharding.put_batch(own, run.mesh)


def advance(run, state, steps):
    losses = []
    for _ in range(steps):
        batch = batch_on(run, int(state.step))
        with jax.transfer_guard("disallow"):
            state, measured = run.train_step(state, batch)
        losses.append(float(measured["loss"]))
    return state, losses


def outcome(data, fsdp, **options):
    run = run_on(data, fsdp, **options)
    state, losses = advance(run, run.start(), STEPS)
    return {"losses": losses, "split": split(state)}


def split(state):
    """Paths of arrays of which no device has the whole."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return [
        sharding.path_name(path)
        for path, leaf in leaves
        if leaf.sharding.shard_shape(leaf.shape) != leaf.shape
    ]


def restored(folder):
    """Two steps on each of four layouts, a checkpoint between them."""
    losses = []
    for data, fsdp in ((1, 1), (8, 1), (2, 4), (1, 1)):
        run = run_on(data, fsdp)
        saved = CheckpointManager(folder)
        step = saved.latest()
        if step is None:
            state = run.start()
        else:
            like = state_lib.abstract_state(
                run.abstract_model, run.stage, run.mesh
            )
            state = saved.load(step, like)
        state, new = advance(run, state, 2)
        losses += new
        saved.save(int(state.step), state, {"resume_step": int(state.step)})
        saved.close()
    return losses


def gathers(run):
    """How many all-gathers the compiled step has."""
    state = state_lib.abstract_state(run.abstract_model, run.stage, run.mesh)
    batch = batch_on(run, 0)
    text = run.train_step.lower(state, batch).compile().as_text()
    return text.count(" all-gather(")


def refusals():
    """What processes hear of what goes wrong in one of them."""

    def refuse(number):
        if jax.process_index() == number:
            raise UserError(f"process {number} refuses")

    later = comm.PrimaryActions()
    for _ in range(2):  # Nobody waits, and the second is not run any more.
        later(lambda: refuse(0))
    heard = []
    for ask in (
        lambda: comm.run_on_primary(lambda: refuse(0)),
        lambda: comm.run_on_all(lambda: refuse(1)),
        later.agree,
    ):
        try:
            ask()
        except UserError as error:
            heard.append(str(error))
    return heard


def written_by(folder):
    """Bytes of arrays that each process wrote, by its folder's name."""
    return {
        place.name: sum(p.stat().st_size for p in place.rglob("d/*"))
        for place in sorted(folder.glob("ocdbt.process_*"))
    }


def split_over_both(folder):
    """Saves what no process has all of; restored on that and as a whole."""
    run = tiny.Run(mesh=sharding.make_mesh(8), log_every_steps=1)
    state, _ = advance(run, run.start(), 1)
    saved = CheckpointManager(folder)
    saved.save(1, state, {})
    saved.wait()
    written = written_by(folder / "1/state")
    for mesh in (run.mesh, sharding.make_mesh(1)):
        like = state_lib.abstract_state(run.abstract_model, run.stage, mesh)
        again = saved.load(1, like)
        assert all(
            one.sharding == two.sharding
            for one, two in zip(
                jax.tree.leaves(again), jax.tree.leaves(like), strict=True
            )
        )
        for one, two in zip(
            jax.tree.leaves(again), jax.tree.leaves(state), strict=True
        ):
            np.testing.assert_array_equal(*map(sharding.to_host, (one, two)))
    saved.close()
    return written


def damage_told(saved, folder, like):
    """What processes hear of a damage on the disk that they share."""
    saved.wait()
    if comm.is_primary():
        files = (folder / "2/state").rglob("d/*")
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:200])
    try:
        saved.load(2, like)
    except CorruptCheckpointError as damaged:
        saved.quarantine(damaged)
        return [damaged.step, saved.best(), saved.steps()]
    return None


def as_one_of_two(folder, coordinator, index):
    """Trains 2 x 4, saves, restores, trains on; stops by a signal to one."""
    runtime.connect(Peers(coordinator, 2, index))
    run = tiny.Run(mesh=sharding.make_mesh(4), log_every_steps=1, ema_decay=0.9)
    saved = CheckpointManager(folder)
    state, losses = advance(run, run.start(), 2)
    saved.save(2, state, {"resume_step": 2}, {"merit": -1.0})
    saved.close()
    saved = CheckpointManager(folder)
    like = state_lib.abstract_state(run.abstract_model, run.stage, run.mesh)
    state, more = advance(run, saved.load(saved.best(), like), 2)
    agreed = comm.AgreedMax(run.mesh)
    signal = [agreed(15 if index and step == 1 else 0) for step in range(4)]
    labels = sharding.to_host(batch_on(run, 0))["label"].tolist()
    found = {"losses": losses + more, "split": split(state), "labels": labels}
    found |= {"signal": signal, "refusals": refusals()}
    found["answer"] = comm.run_on_primary(lambda: {"process": index})
    found["texts"] = comm.all_gather_text("x" * index)
    saved.save(4, state, {"resume_step": 4})
    found["damage"] = damage_told(saved, folder, like)
    saved.close()
    found["written"] = split_over_both(folder.parent / "split")
    return found


def main():
    """Prints what came out as one line of JSON."""
    folder = Path(sys.argv[1]) / "checkpoints"
    if len(sys.argv) > 2:
        found = as_one_of_two(folder, sys.argv[2], int(sys.argv[3]))
        print(json.dumps(found), flush=True)
        return
    plain = {"build": build_plain, "loss": tiny.WEIGHTED_LOSS}
    whole = run_on(1, 1)
    _, straight = advance(whole, whole.start(), 8)
    print(
        json.dumps(
            {
                "one": outcome(1, 1),
                "data": outcome(8, 1),
                "fsdp": outcome(2, 4),
                "plain": outcome(1, 1, **plain),
                "parts": outcome(1, 1, accumulate=4, **plain),
                "parts on fsdp": outcome(2, 4, accumulate=2, **plain),
                "gathers": gathers(run_on(8, 1)),
                "straight": straight,
                "labels": batch_on(whole, 0)["label"].tolist(),
                "restored": restored(folder),
            }
        )
    )


if __name__ == "__main__":
    main()
