"""Runs that compare the same pairs, and what they say of them.

A *member* is one run folder with `pairs/val.npz`. A run over all folds has
joined theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from core.errors import UserError
from core.paths import absolute
from metrics.verification import KINDS, POSITIVE
from run_folder import artifacts, layout
from run_folder.pair_files import PairScores, read_pair_scores
from stacking.runs import expand, resolved

# What the table of scores calls its own rows; no member may be called so.
TABLE_ROWS = ("z_norm", "rank", "logistic", "chosen")
# Of them, too: the runs' mean cosine and a run's forgery score, or 'all'.
COSINES_AND = "cosines+"

# Key of the metadata of a stack: the names of its runs.
FUSED_FROM = "fused_from"


@dataclass(frozen=True)
class Member:
    """A run, and its scores of pairs.

    Attributes:
      name: in every table.
      path: the run folder.
      val: its scores of validation pairs.
      test: of the pairs of the submission, or None.
    """

    name: str
    path: Path
    val: PairScores
    test: PairScores | None


@dataclass(frozen=True)
class PairTable:
    """What all members say of the same pairs.

    Attributes:
      similarity: float64 [P, M], their answers.
      features: float64 [P, F], their cosines, then the log probabilities
        that both pictures are real, of those that have any.
      kind: int8 [P]; -1 where unknown.
      identities: str [P, 2].
    """

    similarity: np.ndarray
    features: np.ndarray
    kind: np.ndarray
    identities: np.ndarray

    @property
    def positive(self) -> Bool[np.ndarray, " P"]:
        """Which pairs are positive."""
        return self.kind == POSITIVE

    def take(self, rows: np.ndarray) -> PairTable:
        """Returns some of the pairs: int or bool [n]."""
        return PairTable(
            self.similarity[rows],
            self.features[rows],
            self.kind[rows],
            self.identities[rows],
        )


def make_table(scores: Sequence[PairScores]) -> PairTable:
    """Returns what members say of the same pairs, in one order."""
    first = scores[0]
    columns = [own.cosine for own in scores]
    columns += [own.log_real for own in scores if len(own.log_real)]
    return PairTable(
        _stacked([own.similarity for own in scores]),
        _stacked(columns),
        first.kind,
        first.identities,
    )


def _stacked(columns: Sequence[np.ndarray]) -> Float64[np.ndarray, "P F"]:
    return np.stack(columns, axis=1).astype(np.float64)


def find_members(
    patterns: Sequence[str],
    out: Path,
    note: Callable[[str], None] = lambda line: None,
) -> list[Member]:
    """Opens the runs that are named; their pairs are in the same order.

    Args:
      patterns: run folders or globs; folders without pairs are passed over.
      out: of the stack, which is no run.
      note: called with a line about a folder that is left out.

    Raises:
      UserError: none has pairs, one does not exist or is not exported to its
        end, or they are of other pairs or folds.
    """
    members: list[Member] = []
    # Each once, by whatever name.
    named = {resolved(path): path for path in expand(patterns)}
    named.pop(resolved(out), None)
    for whole, path in named.items():
        if not path.exists():
            raise UserError(
                f"--runs names {path}, which does not exist; train it first "
                "or correct the name"
            )
        # A fold whose whole is named as well.
        if whole.parent in named and layout.FOLD.fullmatch(whole.name):
            continue
        if not layout.pairs_path(path, "val").exists():
            if path.is_dir():
                note(f"{path} has no pairs yet and is left out")
            continue
        if (path / layout.ARTIFACTS).exists() and not artifacts.is_complete(
            path
        ):
            raise UserError(
                f"{path} is not exported to its end; run its training's "
                "command again"
            )
        if is_stack(path):
            note(f"{path} is a stack itself, and is left out")
            continue
        taken = [*TABLE_ROWS, *(member.name for member in members)]
        name = absolute(path).name
        name = str(path) if name in taken else name
        if name == "all" or name.startswith(COSINES_AND):
            name = f"run {name}"
        while name in taken:
            name += "'"
        members.append(_open(name, path))
    if not members:
        raise UserError(
            f"no folder in --runs {' '.join(patterns)} holds pairs/val.npz; "
            "train a verification to its end first"
        )
    return [_checked(member, members[0]) for member in members]


def is_stack(folder: Path) -> bool:
    """Whether its pairs are those of several runs, fused by this package."""
    scores = read_pair_scores(layout.pairs_path(folder, "val"))
    return FUSED_FROM in scores.metadata


def _open(name: str, path: Path) -> Member:
    val = read_pair_scores(layout.pairs_path(path, "val"))
    positive = val.kind == POSITIVE
    unknown = (val.kind < 0) | (val.kind >= len(KINDS))
    if positive.all() or not positive.any() or unknown.any():
        raise UserError(
            f"{layout.pairs_path(path, 'val')} needs pairs of one identity and "
            f"others, and the kind of each; it has {positive.sum()} of the "
            f"first and {unknown.sum()} of unknown kind"
        )
    if (val.identities == "").any():
        raise UserError(
            f"{layout.pairs_path(path, 'val')} has pairs without identities, "
            "which the nested folds divide; write both of each pair"
        )
    test = layout.pairs_path(path, "test")
    return Member(
        name, path, val, read_pair_scores(test) if test.exists() else None
    )


def _checked(member: Member, first: Member) -> Member:
    """The member with its pairs in the order of the first one's."""

    def refuse(what: str) -> UserError:
        return UserError(
            f"{first.path} and {member.path} {what}; name runs over the same "
            "data, the same fold and with the same seeds of folds and pairs"
        )

    def key(name: str) -> Any:
        return first.val.metadata[name], member.val.metadata[name]

    if len(set(key("folds_hash"))) > 1:
        raise refuse("were trained on other folds")
    if first.val.pairs_hash != member.val.pairs_hash or not np.array_equal(
        np.sort(first.val.fold), np.sort(member.val.fold)
    ):
        raise refuse(
            f"were validated on other pairs ({len(first.val):,} and "
            f"{len(member.val):,})"
        )
    if (first.test is None) != (member.test is None):
        raise refuse("have not both compared the pairs of the submission")
    tests = first.test, member.test
    if tests[0] is not None and tests[0].pairs_hash != tests[1].pairs_hash:
        raise refuse("have compared other pairs for the submission")
    return Member(
        member.name,
        member.path,
        _in_order_of(member.val, first.val),
        _in_order_of(*reversed(tests)) if tests[0] is not None else None,
    )


def _in_order_of(scores: PairScores, first: PairScores) -> PairScores:
    order = np.argsort(scores.ids)
    return scores.take(order[np.searchsorted(scores.ids[order], first.ids)])
