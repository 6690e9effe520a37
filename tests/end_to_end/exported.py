"""What is exported, asked by a process that has nothing of this project."""

import subprocess
import sys

import numpy as np
from commands import environment

# It stands in a folder of its own, and is started with -I, so that it cannot
# import this repository.
READER = """
import sys
import jax.export
import numpy as np
pixels = np.load("pixels.npy")
with open("model.stablehlo", "rb") as file:
    model = jax.export.deserialize(bytearray(file.read()))
assert set(model.platforms) == {"cpu", "cuda", "tpu"}
answers = [np.asarray(model.call(pixels[:n])) for n in (1, len(pixels))]
np.savez("answers.npz", one=answers[0], all=answers[1])
assert not {"jax_models", "training", "flax"} & sys.modules.keys()
"""


def answers(out, pixels):
    """What `model.stablehlo` says: to the first image alone, and to all.

    Args:
      out: folder of the export.
      pixels: uint8 [B, H, W, 3].
    """
    np.save(out / "pixels.npy", pixels)
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER],
        cwd=out,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(out / "answers.npz")
    return found["one"], found["all"]
