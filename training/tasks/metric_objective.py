"""The loss that a stage of metric learning names, and its options.

`make_metric_loss` is what a task needs; the losses are in `metric_losses`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from training.tasks import metric_losses
from training.tasks.embedding_batch import (
    Batch,
    ClassWeights,
    Diagnostics,
    Embeddings,
    Labels,
    Memory,
    Scalar,
    Weight,
    describe,
    make_batch,
)

# None, and what is left out, is each loss's own.
OPTIONS: Mapping[str, Any] = {
    # Of the triplet losses; contrastive's of negatives.
    "margin": None,
    # Which triplets: one of `metric_losses.MINERS`, and ranges for n_hard.
    "miner": "all",
    "hard_positives": (1, 1),
    "hard_negatives": (1, 1),
    # triplet and cosine_triplet: the mean over the triplets that are not 0.
    "active_only": False,
    # supcon and ntxent.
    "temperature": None,
    # arcface, cosface, combined_margin: s; m of the first two; m1, m2, m3.
    "scale": None,
    "class_margin": None,
    "combined_margins": (1.0, 0.0, 0.4),
}

# soft_triplet has one for semi-hard mining alone.
_MARGINS = {"triplet": 0.1, "soft_triplet": 0.1, "cosine_triplet": 0.5}
_CLASS_MARGINS = {"arcface": 0.5, "cosface": 0.35}
_SCALE = 64.0

CLASS_LOSSES = ("arcface", "cosface", "combined_margin")

# The loss, and the share of triplets or pairs that have a gradient.
Term = Callable[[Batch, Mapping[str, Any]], tuple[Scalar, Scalar | None]]

MetricLoss = Callable[
    [Embeddings, Labels, Weight, ClassWeights | None, Memory | None],
    tuple[Scalar, Diagnostics],
]


def _triplet(name: str, batch: Batch, options: Mapping[str, Any]):
    margin = _or_default(options["margin"], _MARGINS[name])
    how = metric_losses.Mining(
        options["miner"],
        margin,
        tuple(options["hard_positives"]),
        tuple(options["hard_negatives"]),
    )
    if name == "soft_triplet":
        return metric_losses.soft_triplet(batch, how)
    if name == "cosine_triplet":
        loss = metric_losses.cosine_triplet
    else:
        loss = metric_losses.triplet
    return loss(batch, how, margin, options["active_only"])


def _classes(name: str, batch: Batch, options: Mapping[str, Any]):
    margins = tuple(options["combined_margins"])
    if name in _CLASS_MARGINS:
        margin = _or_default(options["class_margin"], _CLASS_MARGINS[name])
        margins = (1, margin, 0) if name == "arcface" else (1, 0, margin)
    scale = _or_default(options["scale"], _SCALE)
    return metric_losses.margin_softmax(batch, scale, margins), None


def _contrastive(batch: Batch, options: Mapping[str, Any]):
    margin = _or_default(options["margin"], 1.0)
    return metric_losses.contrastive(batch, negative_margin=margin)


def _supcon(batch: Batch, options: Mapping[str, Any]):
    temperature = _or_default(options["temperature"], 0.1)
    return metric_losses.supcon(batch, temperature), None


def _ntxent(batch: Batch, options: Mapping[str, Any]):
    temperature = _or_default(options["temperature"], 0.07)
    return metric_losses.ntxent(batch, temperature), None


def _multi_similarity(batch: Batch, options: Mapping[str, Any]):
    return metric_losses.multi_similarity(batch)


TERMS: Mapping[str, Term] = {
    **{
        name: lambda batch, options, name=name: _triplet(name, batch, options)
        for name in _MARGINS
    },
    "contrastive": _contrastive,
    "supcon": _supcon,
    "ntxent": _ntxent,
    "multi_similarity": _multi_similarity,
    **{
        name: lambda batch, options, name=name: _classes(name, batch, options)
        for name in CLASS_LOSSES
    },
}


def terms_of(loss: str) -> list[str]:
    """Returns the names in a sum such as 'cosface+triplet'."""
    return [name.strip() for name in loss.split("+")]


def make_metric_loss(loss: str, options: Mapping[str, Any]) -> MetricLoss:
    """Returns the sum of the losses that a stage names.

    Args:
      loss: names of `TERMS` with plus signs between them.
      options: those of `OPTIONS` to set; `problems` has found none in them.

    Returns:
      (embeddings [B, D], labels [B], weight [B], class weights [C, D] or
      None, memory or None) -> (loss, diagnostics). Diagnostics are scalars
      without gradient, the same names at every step: `positive_distance` and
      `negative_distance`, means over all pairs of the batch; of losses over
      triplets or mined pairs `<loss>_active`, the share of the mined that lie
      within the margin (of `soft_triplet`, whose positive is further away);
      in a sum `<loss>_loss`.
    """
    names, options = terms_of(loss), {**OPTIONS, **options}

    def function(embeddings, labels, weight, class_weights=None, memory=None):
        batch = make_batch(embeddings, labels, weight, class_weights, memory)
        total = jnp.zeros((), jnp.float32)
        diagnostics = describe(batch)
        for name in names:
            value, active = TERMS[name](batch, options)
            total += value
            if active is not None:
                diagnostics[f"{name}_active"] = active
            if len(names) > 1:
                diagnostics[f"{name}_loss"] = value
        return total, jax.lax.stop_gradient(diagnostics)

    return function


def needs_class_weights(loss: str) -> bool:
    """Returns whether a loss compares embeddings to weights of classes."""
    return any(name in CLASS_LOSSES for name in terms_of(loss))


def looks_at_memory(loss: str, options: Mapping[str, Any]) -> bool:
    """Returns whether a loss compares a batch with earlier batches.

    Weights of classes take the place of a memory, and so do means of classes,
    which hard_cluster mines.
    """
    by_means = {**OPTIONS, **options}["miner"] == "hard_cluster"
    return any(
        name not in CLASS_LOSSES and not (by_means and name in _MARGINS)
        for name in terms_of(loss)
    )


def collapse_value(loss: str, options: Mapping[str, Any]) -> float | None:
    """Returns the loss of a model that gives all images one embedding.

    A triplet loss that stays there has collapsed. None for sums and for other
    losses, whose values there depend on the batch.
    """
    names = terms_of(loss)
    if len(names) != 1 or names[0] not in _MARGINS:
        return None
    options = {**OPTIONS, **options}
    if options["miner"] == "semi_hard":
        return 0.0  # It takes negatives that lie further away than positives.
    if names[0] == "soft_triplet":
        return math.log(2)
    return _or_default(options["margin"], _MARGINS[names[0]])


def problems(loss: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with a loss and its options, one phrase each.

    Each begins with 'loss' or with the name of an option.
    """
    for name in terms_of(loss):
        if name not in TERMS:
            yield f"loss has {name!r}: {_choose(name, TERMS)}, with + between"
    for name in options:
        if name not in OPTIONS:
            yield f"{name} is no option: {_choose(name, OPTIONS)}"
    options = {**OPTIONS, **options}
    if (miner := options["miner"]) not in metric_losses.MINERS:
        yield f"miner is {miner!r}: {_choose(miner, metric_losses.MINERS)}"
    for name in ("margin", "temperature", "scale"):
        value = options[name]
        if value is not None and not 0 < value < math.inf:
            yield f"{name} is {value}: give a number above 0"
    margin = options["class_margin"]
    if margin is not None and not 0 <= margin < math.pi / 2:
        yield f"class_margin is {margin}: give a number from 0 to 1.5"
    if len(options["combined_margins"]) != 3:
        yield "combined_margins needs three numbers: m1, m2, m3"
    for name in ("hard_positives", "hard_negatives"):
        wanted = tuple(options[name])
        if len(wanted) != 2 or not 1 <= wanted[0] <= wanted[1]:
            yield (
                f"{name} is {wanted}: give the first and the last, counted "
                "from 1, such as (2, 5)"
            )


def _choose(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}choose from {', '.join(known)}"


def _or_default(value: float | None, default: float) -> float:
    return default if value is None else value
