"""Pairs of pictures, and what a run says of them.

A pairs file is one `.npz` per run and split, `<run>/pairs/<split>.npz`, which
any tool can write and `python -m stacking.pairs` reads:

| array        | what it is                                                   |
| ------------ | ------------------------------------------------------------ |
| `ids`        | str [P], of the pairs, each at most once                     |
| `first`      | str [P], id of a pair's first picture                        |
| `second`     | str [P], of its second                                       |
| `cosine`     | float32 [P], of the two embeddings                           |
| `log_real`   | float32 [P], log p(first is real) + log p(second is real);   |
|              | empty where nothing looks for forgeries                      |
| `similarity` | float32 [P], the answer: more is more alike                  |
| `kind`       | int8 [P], index into `KINDS` of metrics/verification.py; -1  |
|              | where unknown                                                |
| `identities` | str [P, 2], of both pictures; '' where unknown               |
| `fold`       | int32 [P], the fold that held both out; -1 for none          |
| `metadata`   | JSON: `model`, `config_hash`, `folds_hash`, `pairs_hash`;    |
|              | for the submission `sample_submission`, `id_column` and      |
|              | `target_column`                                              |
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np

from core import paths
from core.errors import UserError

REQUIRED_METADATA = ("model", "config_hash", "folds_hash", "pairs_hash")


@dataclasses.dataclass(frozen=True, eq=False)
class PairList:
    """Pairs of examples of one source.

    Attributes:
      ids: str [P], unique.
      first: int32 [P], row of a pair's first picture in the examples.
      second: int32 [P], of its second.
      kind: int8 [P], index into `metrics.verification.KINDS`, of which 0 is
        positive; None where unknown.
    """

    ids: np.ndarray
    first: np.ndarray
    second: np.ndarray
    kind: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of pairs, P."""
        return len(self.ids)

    @property
    def rows(self) -> np.ndarray:
        """The rows that are in a pair, ascending: int [R]."""
        return np.unique(np.concatenate([self.first, self.second]))

    def take(self, rows: np.ndarray) -> PairList:
        """Returns some of the pairs: int or bool [n]."""
        kind = None if self.kind is None else self.kind[rows]
        return PairList(
            self.ids[rows], self.first[rows], self.second[rows], kind
        )

    def hash(self, picture_ids: np.ndarray) -> str:
        """Names the list: 16 hex digits, whatever the rows' numbers.

        Args:
          picture_ids: str [N], of the examples.
        """
        return pairs_hash(
            self.ids,
            picture_ids[self.first],
            picture_ids[self.second],
            self.kind,
        )


def pairs_hash(
    ids: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    kind: np.ndarray | None,
) -> str:
    """Names pairs, in whatever order: 16 hex digits.

    Args:
      ids: str [P].
      first: str [P], ids of the first pictures.
      second: str [P], of the second.
      kind: int8 [P], or None.
    """
    kinds = np.full(len(ids), -1) if kind is None else kind
    columns = (ids.tolist(), first.tolist(), second.tolist(), kinds.tolist())
    lines = sorted(json.dumps(row) for row in zip(*columns, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class PairScores:
    """The content of a pairs file; see the table above.

    Attributes:
      ids: str [P], unique.
      first: str [P], ids of pictures.
      second: the same.
      cosine: float32 [P].
      log_real: float32 [P], or [0].
      similarity: float32 [P].
      kind: int8 [P]; -1 unknown.
      identities: str [P, 2].
      fold: int32 [P]; -1 none.
      metadata: JSON-able, `REQUIRED_METADATA` at least.
    """

    ids: np.ndarray
    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray
    log_real: np.ndarray
    similarity: np.ndarray
    kind: np.ndarray
    identities: np.ndarray
    fold: np.ndarray
    metadata: dict[str, Any]

    def __len__(self) -> int:
        """Number of pairs, P."""
        return len(self.ids)

    @property
    def pairs_hash(self) -> str:
        """Names the pairs that were scored; see `PairList.hash`."""
        kind = None if np.all(self.kind < 0) else self.kind
        return pairs_hash(self.ids, self.first, self.second, kind)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds, by name."""
        fields = {f.name: getattr(self, f.name) for f in _ARRAYS}
        text = json.dumps(self.metadata, sort_keys=True)
        return {**fields, "metadata": np.array(text)}

    def take(self, rows: np.ndarray) -> PairScores:
        """Returns some of the pairs: int or bool [n]."""
        taken = {
            f.name: getattr(self, f.name)[rows]
            for f in _ARRAYS
            if f.name != "log_real" or len(self.log_real)
        }
        return dataclasses.replace(self, **taken)


_ARRAYS = dataclasses.fields(PairScores)[:-1]

# How many there are of each, and how they are saved.
_FORMS = {
    "ids": (1, "U"),
    "first": (1, "U"),
    "second": (1, "U"),
    "cosine": (1, "f"),
    "log_real": (1, "f"),
    "similarity": (1, "f"),
    "kind": (1, "i"),
    "identities": (2, "U"),
    "fold": (1, "i"),
}


def checked(path: str | os.PathLike, scores: PairScores) -> PairScores:
    """Returns the same scores in the dtypes of the contract.

    Args:
      path: of the file, for messages.
      scores: of a run.

    Raises:
      UserError: they do not fit together, a score is not finite, a pair
        stands twice or has no id, or metadata lack something.
    """
    count = len(scores.ids)
    changed: dict[str, np.ndarray] = {}
    for name, (dims, kind) in _FORMS.items():
        array = np.asarray(getattr(scores, name))
        wanted = (count, 2) if dims == 2 else (count,)
        optional = name == "log_real" and array.shape == (0,)
        if array.shape != wanted and not optional:
            raise _wrong(
                path, f"{name} has shape {list(array.shape)}, not {wanted}"
            )
        if kind == "U" and array.dtype.kind != "U":
            raise _wrong(path, f"{name} is {array.dtype}, not text")
        if kind == "i" and array.dtype.kind not in "iu":
            raise _wrong(path, f"{name} is {array.dtype}, not integer")
        if kind == "f":
            if array.dtype.kind != "f":
                raise _wrong(path, f"{name} is {array.dtype}, not a float")
            bad = ~np.isfinite(array)
            if bad.any():
                raise _wrong(
                    path,
                    f"{name} is not finite for {bad.sum()} pairs (for one, "
                    f"'{scores.ids[bad.argmax()]}')",
                )
            array = array.astype(np.float32)
        changed[name] = array
    changed["kind"] = changed["kind"].astype(np.int8)
    changed["fold"] = changed["fold"].astype(np.int32)
    if not count:
        raise _wrong(path, "it holds no pair")
    unique, counts = np.unique(changed["ids"], return_counts=True)
    if len(unique) < count:
        raise _wrong(path, f"pair '{unique[counts > 1][0]}' stands twice")
    absent = [key for key in REQUIRED_METADATA if key not in scores.metadata]
    if absent:
        raise _wrong(path, f"metadata has no {absent[0]!r}")
    return dataclasses.replace(scores, **changed)


def read_pair_scores(path: str | os.PathLike) -> PairScores:
    """Reads and checks a pairs file.

    Raises:
      UserError: it is missing, is no such file, or `checked` refuses it.
    """
    path = paths.make_path(path)
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            found = {name: archive[name] for name in archive.files}
        metadata = json.loads(str(found.pop("metadata")))
        scores = PairScores(
            **{name: found[name] for name in _FORMS}, metadata=metadata
        )
        if not isinstance(metadata, dict):
            raise ValueError("metadata is not a JSON object")
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; let the training finish, which writes it"
        ) from error
    # A damaged archive fails in dozens of ways, in zipfile, zlib and NumPy.
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as a pairs file ({error!r}); it holds "
            f"{', '.join((*_FORMS, 'metadata'))}, see run_folder/pair_files.py"
        ) from error
    return checked(path, scores)


def _wrong(path: str | os.PathLike, what: str) -> UserError:
    return UserError(f"{path}: {what}; write the file again without it")
