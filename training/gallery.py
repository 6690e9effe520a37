"""A folder of known pictures, and which of them a new one is most like.

No training knows the pictures: whoever is to be found is added by a folder of
photos. Embeddings are kept in a file, and a picture is embedded again only
where it, or the model, has changed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from core.atomic_files import atomic_write
from core.errors import UserError
from input_pipeline.sources.listing import Folder, stem
from metrics import retrieval
from training.photos import Photos
from training.tasks.base import Task

# Of pictures embedded together, whose pixels are in memory.
PICTURES_AT_ONCE = 512
# After so many of those, what is known is written: a kill loses no more.
CHUNKS_PER_SAVE = 20

FORMAT = 1


class Embedded(Protocol):
    """What a model says of some pictures.

    Attributes:
      embedding: float32 [N, D], of unit length.
      real_logit: float32 [N], log-odds of being real.
      bad: bool [N], pictures that cannot be read.
    """

    embedding: np.ndarray
    real_logit: np.ndarray
    bad: np.ndarray


@runtime_checkable
class Embeds(Protocol):
    """A task that compares photos by embeddings (training/tasks/verify.py)."""

    def embed_photos(
        self, photos: Photos, params: dict, batch_stats: dict
    ) -> Embedded:
        """Returns the embeddings of photos, in order."""

    def probability(
        self, cosine: np.ndarray, one: np.ndarray, other: np.ndarray
    ) -> np.ndarray:
        """Returns how probably embedded photos match, [P].

        Args:
          cosine: [P], of their embeddings.
          one, other: [P], log-odds that each is real.
        """


def check(task: Task) -> None:
    """Refuses a task without embeddings.

    Raises:
      UserError: it is one.
    """
    if not isinstance(task, Embeds):
        raise UserError(
            f"the {task.name} task embeds no photos; name a run of the verify "
            "task"
        )


# Of absolute paths.
Embed = Callable[[Sequence[str]], Embedded]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Known pictures.

    Attributes:
      folder: absolute path.
      names: str [G], of the pictures inside it.
      embedding: float32 [G, D], of unit length.
      real_logit: float32 [G].
      bad: names of pictures that cannot be read, and are not among them.
      added: how many were embedded now.
    """

    folder: Path
    names: np.ndarray
    embedding: np.ndarray
    real_logit: np.ndarray
    bad: Sequence[str]
    added: int

    def __len__(self) -> int:
        """Number of pictures, G."""
        return len(self.names)

    def identity(self, row: int) -> str:
        """Whose picture it is: its folder's name, or its own."""
        first, slash, _ = self.names[row].partition("/")
        return first if slash else stem(first)

    def row_of(self, path: Path) -> int:
        """The row of a file; -1 where it is none of these."""
        return self._rows.get(os.path.realpath(path), -1)

    def answers(
        self,
        queries: Embedded,
        paths: Sequence[Path],
        count: int,
        probability: Callable[..., np.ndarray],
    ) -> Iterator[list[dict[str, Any]] | None]:
        """Yields the nearest pictures to each query; None to a bad one.

        Args:
          queries: what the model says of them.
          paths: their files; of one in the gallery, the others are nearest.
          count: how many answers to each.
          probability: see `Embeds.probability`.
        """
        own = np.array([self.row_of(path) for path in paths])
        rows, cosines = self.nearest(queries.embedding, own, count)
        for near, cosine, logit, bad in zip(
            rows, cosines, queries.real_logit, queries.bad, strict=True
        ):
            near, cosine = near[near >= 0], cosine[near >= 0]
            alike = probability(
                cosine, np.full(len(near), logit), self.real_logit[near]
            )
            yield (
                None
                if bad
                else [
                    {
                        "identity": self.identity(row),
                        "picture": str(self.names[row]),
                        "cosine": float(cosine[place]),
                        "similarity": float(alike[place]),
                    }
                    for place, row in enumerate(near.tolist())
                ]
            )

    def nearest(
        self, queries: np.ndarray, own: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the nearest pictures, nearest first.

        Args:
          queries: float32 [Q, D], of unit length.
          own: int [Q], rows of the queries themselves, left out; -1 for none.
          count: how many, K.

        Returns:
          Rows, int64 [Q, K], -1 where there are no more; and cosines,
          float32 [Q, K].
        """
        rows, distance = retrieval.nearest(queries, self.embedding, count, own)
        with np.errstate(invalid="ignore"):
            # Of unit vectors, |a - b|^2 = 2 - 2 a.b.
            return rows, np.where(rows < 0, np.nan, 1 - distance**2 / 2)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        """Rows by real path: people link photos, and folders of them."""
        return {
            os.path.realpath(self.folder / name): row
            for row, name in enumerate(self.names.tolist())
        }


def model_key(task: Task, weights: tuple[dict, dict]) -> str:
    """Names a model, and what it is fed: 16 hex digits.

    Args:
      task: of a run.
      weights: params and batch_stats of it.
    """
    config = task.config
    clean = config.data.get("clean_impulses", False)
    said = [config.image_size, config.dtype, clean, task.resize, *task.views]
    said.append(config.data.get("upscale", ""))
    digest = hashlib.sha256(json.dumps(said).encode())
    for channel in task.statistics.channels.values():
        digest.update(np.ascontiguousarray(channel))
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:16]


class _Known(NamedTuple):
    """What a file of embeddings holds, by name of the picture."""

    stamps: dict[str, str]
    rows: dict[str, int]
    embedding: np.ndarray
    real_logit: np.ndarray
    bad: np.ndarray


def open_gallery(
    folder: Path,
    embed: Embed,
    model_key: str,
    cache: Path,
    note: Callable[[str], None] = lambda line: None,
) -> Gallery:
    """Embeds the pictures of a folder, as far as they are not known yet.

    Args:
      folder: of pictures, in one folder for each identity or not.
      embed: what the model makes of them.
      model_key: changes with the model, and with what is fed to it.
      cache: folder for the file of embeddings.
      note: called with a line on how far it is.

    Raises:
      UserError: there is no picture that can be read, or the cache cannot be
        written.
    """
    folder = folder.absolute()
    names = Folder(folder, "gallery").image_names()
    if not names:
        raise UserError(
            f"{folder} holds no picture; name the folder of those to search"
        )
    stamps = {name: _stamp(folder / name) for name in names}
    place = f"{os.path.realpath(folder)}\n{model_key}\n{FORMAT}"
    digest = hashlib.sha256(place.encode("utf-8", "surrogateescape"))
    path = cache / "galleries" / f"{digest.hexdigest()[:16]}.npz"
    known = _read(path)
    new = [name for name in names if known.stamps.get(name) != stamps[name]]
    kept = [name for name in names if known.stamps.get(name) == stamps[name]]
    rows = np.array([known.rows[name] for name in kept], int)
    parts = [(kept, *(array[rows] for array in known[2:]))] if kept else []
    for number, start in enumerate(range(0, len(new), PICTURES_AT_ONCE)):
        chunk = new[start : start + PICTURES_AT_ONCE]
        found = embed([str(folder / name) for name in chunk])
        parts.append((chunk, found.embedding, found.real_logit, found.bad))
        note(f"embedded {start + len(chunk):,} of {len(new):,} new pictures")
        if number % CHUNKS_PER_SAVE == CHUNKS_PER_SAVE - 1:
            _write(path, parts, stamps)
    if new or len(kept) < len(known.rows):
        _write(path, parts, stamps)
    all_names = np.array([name for part in parts for name in part[0]])
    embedding, real_logit, bad = (
        np.concatenate([part[index] for part in parts]) for index in (1, 2, 3)
    )
    if bad.all():
        raise UserError(
            f"none of the {len(names):,} pictures in {folder} can be read; "
            "name another folder with --gallery"
        )
    return Gallery(
        folder,
        all_names[~bad],
        embedding[~bad],
        real_logit[~bad],
        all_names[bad].tolist(),
        len(new),
    )


def _stamp(path: Path) -> str:
    """Changes when a file does."""
    try:
        about = path.stat()
    except OSError:
        return "lost"
    return f"{about.st_size} {about.st_mtime_ns}"


def _write(path: Path, parts: Sequence[Any], stamps: dict[str, str]) -> None:
    names = [name for part in parts for name in part[0]]
    embedding, real_logit, bad = (
        np.concatenate([part[index] for part in parts]) for index in (1, 2, 3)
    )
    # As JSON: arrays of text are as wide as the longest name.
    about = json.dumps({"names": names, "stamps": [stamps[n] for n in names]})
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            about=np.frombuffer(about.encode(), np.uint8),
            embedding=embedding.astype(np.float32),
            real_logit=real_logit.astype(np.float32),
            bad=bad,
        )


def _read(path: Path) -> _Known:
    """What the file holds; nothing where it is absent or damaged."""
    nothing = np.zeros(0)
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        about = json.loads(found["about"].tobytes())
        names, stamps = about["names"], about["stamps"]
        known = _Known(
            dict(zip(names, stamps, strict=True)),
            {name: row for row, name in enumerate(names)},
            *(found[name] for name in ("embedding", "real_logit", "bad")),
        )
        if any(len(array) != len(names) for array in known[2:]):
            raise ValueError("arrays of different lengths")
        return known
    # A damaged archive fails in dozens of ways, in zipfile, zlib and NumPy.
    except Exception:
        return _Known({}, {}, nothing, nothing, nothing)
