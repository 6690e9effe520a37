"""From noise to images: a rectified flow followed with few steps.

Liu et al., "Flow Straight and Fast", arXiv 2209.03003; Heun's steps as in
Karras et al., arXiv 2206.00364, algorithm 1; guidance as in Ho & Salimans,
"Classifier-Free Diffusion Guidance", arXiv 2207.12598.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Key

from jax_models import cpu_kernels
from jax_models.velocity import unshortened
from training.loop.state import AbstractModel
from training.multihost import sharding

# (noisy images, time) -> velocities
Velocity = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How images are made; a static argument of a jitted sampler.

    Attributes:
      sampler: `euler` or `heun`, which asks the network twice a step, but for
        the last.
      steps: from noise to images, all of one length.
      guidance: 0 ignores the class, 1 follows it as learned, more
        exaggerates it.
      seed: of the noise.
      chunk: images that a device makes at a time.
    """

    sampler: str
    steps: int
    guidance: float
    seed: int
    chunk: int


def noise(
    seed: int | jax.Array,
    label: Int32[Array, " B"],
    index: Int32[Array, " B"],
    size: int,
) -> Float[Array, "B size size 3"]:
    """Returns what images begin as: a function of (seed, label, index) alone.

    Args:
      seed: of the run of samples.
      label: of each image.
      index: of each image among those of its label.
      size: height and width.
    """

    def one(label, index):
        key = jax.random.fold_in(jax.random.key(seed), label)
        key = jax.random.fold_in(key, index)
        return jax.random.normal(key, (size, size, 3))

    return jax.vmap(one)(label, index)


def follow(
    velocity: Velocity,
    start: Float[Array, "B H W 3"],
    sampler: str,
    steps: int,
) -> Float[Array, "B H W 3"]:
    """Follows a flow from time 1 to time 0, in one loop.

    Args:
      velocity: of the flow.
      start: `[B, H, W, 3]`, where it begins.
      sampler: `euler` or `heun`.
      steps: of equal length.
    """
    length = 1.0 / steps

    def at(index) -> jax.Array:
        return jnp.full((start.shape[0],), 1.0 - index * length)

    def euler(index, x):
        return x - length * velocity(x, at(index))

    def heun(index, x):
        first = velocity(x, at(index))
        second = velocity(x - length * first, at(index + 1))
        return x - length * 0.5 * (first + second)

    if sampler == "euler":
        return jax.lax.fori_loop(0, steps, euler, start)
    # The last one is Euler's: at time 0 there is no velocity to ask for.
    return euler(steps - 1, jax.lax.fori_loop(0, steps - 1, heun, start))


def guided(model, label: Int32[Array, " B"], guidance: float) -> Velocity:
    """Returns the velocity of a model for labels.

    Args:
      model: a `VelocityModel` in evaluation mode.
      label: `[B]`.
      guidance: see `Sampling`.
    """
    anything = jnp.full_like(label, model.num_classes)

    def velocity(x, time):
        if guidance in (0, 1):
            found = model(x, time, label if guidance else anything)
            return unshortened(found, time)

        def side_by_side(one, other):
            """[B, ...] twice to [2 B, ...]: an image's two stay on its device,
            where one batch behind the other would send half of each away."""
            return jnp.stack([one, other], 1).reshape(-1, *one.shape[1:])

        both = model(
            side_by_side(x, x),
            side_by_side(time, time),
            side_by_side(label, anything),
        )
        both = both.reshape(-1, 2, *both.shape[1:])
        known, free = both[:, 0], both[:, 1]
        return unshortened(free + guidance * (known - free), time)

    return velocity


# (params, batch_stats, labels [N], indices [N]) -> N times uint8 [H, W, 3]
Sampler = Callable[[dict, dict, np.ndarray, np.ndarray], Iterator[np.ndarray]]


def make_sampler(
    abstract_model: AbstractModel, how: Sampling, size: int, mesh: Mesh
) -> Sampler:
    """Returns what makes images; each depends on its own label and index.

    Every device makes `how.chunk` images at a time, however many there are
    of either, so that an image is the same in any company.

    Args:
      abstract_model: of a `VelocityModel`.
      how: they are made.
      size: height and width.
      mesh: of devices that share the work.
    """

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def make(params, batch_stats, batch):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        label = batch["label"]
        start = noise(how.seed, label, batch["index"], size)
        velocity = guided(model, label, how.guidance)
        images = follow(velocity, start, how.sampler, how.steps)
        return jnp.round(jnp.clip((images + 1) * 127.5, 0, 255)).astype(
            jnp.uint8
        )

    def sample(params, batch_stats, labels, indices) -> Iterator[np.ndarray]:
        for batch, count in _batches(labels, indices, how.chunk, mesh):
            images = make(params, batch_stats, batch)
            yield from sharding.to_host(images)[:count]

    return sample


def _batches(
    labels: np.ndarray, indices: np.ndarray, chunk: int, mesh: Mesh
) -> Iterator[tuple[dict[str, jax.Array], int]]:
    """The batches of all devices, the last one filled up with zeros."""
    whole = chunk * mesh.size
    rows = sharding.local_rows(mesh, whole)
    for start in range(0, len(labels), whole):
        count = min(whole, len(labels) - start)
        batch = {}
        for name, values in (("label", labels), ("index", indices)):
            filled = np.zeros(whole, np.int32)
            filled[:count] = values[start : start + count]
            batch[name] = filled[rows]
        yield sharding.put_batch(batch, mesh), count


def key_of(seed: int, row: jax.Array) -> Key[Array, ""]:
    """Returns the key of a row, for what is random about it."""
    return jax.random.fold_in(jax.random.key(seed), row)
