"""Embeddings of pictures, each seen in all test-time views at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from input_pipeline.transforms import mixing
from input_pipeline.transforms.views import parse_whole_view
from jax_models import cpu_kernels
from jax_models.embedding import unit
from training.loop.predict import PredictStep, predictions
from training.loop.state import AbstractModel


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """What a model says of some pictures.

    Attributes:
      embedding: float32 [N, D], of unit length; 0 for an unreadable picture,
        which is so at cosine 0 to all others.
      real_logit: float32 [N], log-odds of being real; 0 where nothing tells.
      bad: bool [N], pictures that cannot be read.
    """

    embedding: np.ndarray
    real_logit: np.ndarray
    bad: np.ndarray


def make_embed_step(
    abstract_model: AbstractModel,
    mean: np.ndarray,
    std: np.ndarray,
    views: Sequence[str],
    mesh: Mesh,
) -> PredictStep:
    """Returns the jitted step: (params, batch_stats, images) -> outputs.

    images: uint8 [B, 1, H, W, 3]. outputs: float32 [B, D + 1], the embedding
    and the log-odds of being real. The embeddings of the views are added, then
    brought to unit length; the log-odds are averaged.
    """
    flips = [parse_whole_view(view)[0] for view in views]

    @jax.jit
    @cpu_kernels.for_mesh(mesh)
    def step(params, batch_stats, images, mean, std):
        model = abstract_model.merge(params, batch_stats)
        model.eval()
        images = mixing.normalize(images[:, 0], mean, std)
        embedding, real_logit = 0.0, 0.0
        for across, down in flips:
            seen = images[:, :: -1 if down else 1, :: -1 if across else 1]
            found = model.embed(seen)
            embedding += found.embedding
            real_logit += found.real_logit / len(flips)
        embedding, _ = unit(embedding)
        return jax.numpy.concatenate([embedding, real_logit[:, None]], axis=1)

    # As arguments: folds differ in them, and need not compile anew.
    return lambda params, batch_stats, images: step(
        params, batch_stats, images, mean, std
    )


def embed(
    step: PredictStep,
    params: dict,
    batch_stats: dict,
    batches: Iterable[dict[str, np.ndarray]],
    rows: np.ndarray,
    mesh: Mesh,
) -> Embeddings:
    """Embeds every row exactly once; arguments as of `predict`."""
    found = list(predictions(step, params, batch_stats, batches, rows, mesh))
    outputs, bad = (
        np.concatenate([part[name] for part in found])
        for name in ("outputs", "bad")
    )
    outputs = np.where(bad[:, None], 0, outputs).astype(np.float32)
    return Embeddings(outputs[:, :-1], outputs[:, -1], bad)
