"""Runs that compare made-up people, with known strengths."""

from __future__ import annotations

import dataclasses

import numpy as np

from run_folder.artifacts import ArtifactWriter
from run_folder.pair_files import REQUIRED_METADATA, PairScores

KIND_SHARES = ([0] * 4 + [1] * 2 + [2] * 1 + [3] * 1) * 3


def pairs_of(split, people, seed=0):
    """Ids, kinds and identities of pairs, 24 of each person."""
    rng = np.random.default_rng((seed, split == "test"))
    kind = np.tile(np.array(KIND_SHARES, np.int8), people)
    first = np.repeat(np.arange(people), len(KIND_SHARES))
    shift = rng.integers(1, people, len(kind))
    second = np.where(kind == 1, (first + shift) % people, first)
    names = np.array([f"{split}-{who:03d}" for who in range(people)])
    identities = np.stack([names[first], names[second]], axis=1)
    ids = np.array([f"{split}{row:05d}" for row in range(len(kind))])
    return ids, kind, identities


def run_of(
    folder,
    *,
    person=1.0,
    forgery=None,
    seed=0,
    people=40,
    scale=1.0,
    test=True,
    pairs_seed=0,
    **metadata,
):
    """Writes a run whose scores tell kinds apart by so many deviations.

    Args:
      folder: of the run.
      person: how well its cosines tell people apart.
      forgery: how well it finds forgeries; None does not look for them.
      seed: of its noise.
      people: who validate.
      scale: of its scores.
      test: whether there is a submission.
      pairs_seed: of the pairs.
      **metadata: what is otherwise there.
    """
    folder.mkdir(parents=True)
    writer = ArtifactWriter(folder, 1)
    writer.begin()
    for split in ("val", "test")[: 1 + test]:
        ids, kind, identities = pairs_of(split, people, pairs_seed)
        rng = np.random.default_rng((seed, split == "test"))
        cosine = scale * (rng.normal(size=len(ids)) - person * (kind == 1))
        log_real = np.zeros(0)
        if forgery is not None:
            log_real = rng.normal(size=len(ids)) - forgery * (kind > 1)
        known = split == "val"
        writer.pairs(
            split,
            PairScores(
                ids=ids,
                first=np.char.add(ids, "a"),
                second=np.char.add(ids, "b"),
                cosine=cosine,
                log_real=log_real,
                similarity=cosine,
                kind=kind if known else np.full(len(ids), -1),
                identities=identities if known else np.full((len(ids), 2), ""),
                fold=np.full(len(ids), 0 if known else -1),
                metadata={**dict.fromkeys(REQUIRED_METADATA, "x"), **metadata},
            ),
        )
    writer.finish()
    return folder


def rewrite(folder, split, change):
    """Writes the pairs of a run again, changed."""
    from run_folder import layout
    from run_folder.pair_files import read_pair_scores

    scores = change(read_pair_scores(layout.pairs_path(folder, split)))
    writer = ArtifactWriter(folder, 1)
    writer.begin()
    writer.pairs(split, scores)
    # Other files of the manifest are not checked here.
    writer.finish()


def shuffled(scores):
    """The same pairs in another order."""
    return scores.take(np.random.default_rng(5).permutation(len(scores)))


def without(scores, count):
    """All but the first pairs."""
    return scores.take(np.arange(count, len(scores)))


def changed(**fields):
    """What replaces fields."""
    return lambda scores: dataclasses.replace(scores, **fields)
