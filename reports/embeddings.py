"""Sections on embeddings: a map of them, and what is found with them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from metrics import retrieval
from reports.charts import Points, scatter
from reports.page import Section, template
from reports.thumbnails import Pictures, thumbnails

EMBEDDINGS = "embeddings/val.npz"
_TEMPLATE = "verification.html"
# Of the identities on the map, on a light and on a dark page.
_COLOURS = (
    "#d1495b",
    "#2a9d8f",
    "#e09f3e",
    "#5b8def",
    "#9b5de5",
    "#6a994e",
    "#f15bb5",
    "#a1785c",
)
_MAP_POINTS = 1200
_QUERIES = 5000
_RETRIEVED = 5  # pictures beside each query


class EmbeddedPictures(NamedTuple):
    """What `embeddings/<split>.npz` holds of pictures that can be read.

    Attributes:
      ids: str [N], of the pictures.
      embeddings: float32 [N, D], unit length.
      labels: int32 [N], indices of `classes`; -1 unknown.
      forged: int8 [N], 1 forged, 0 real, -1 unknown.
      classes: str [C], identities.
    """

    ids: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    forged: np.ndarray
    classes: np.ndarray


def read_embeddings(workdir: Path) -> EmbeddedPictures | None:
    """Returns the embeddings of the validation; None if there are none.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / EMBEDDINGS
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            # An unreadable one is at the origin, like nothing and no one.
            kept = ~arrays["bad"]
            return EmbeddedPictures(
                *(arrays[name][kept] for name in EmbeddedPictures._fields[:-1]),
                arrays["classes"],
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read ({error}); run the training's command "
            "again with --export"
        ) from error


def embedding_sections(
    workdir: Path, pictures: Pictures | None = None
) -> list[Section]:
    """Returns a map of the validation's embeddings, and retrieval with them.

    Args:
      workdir: the run folder.
      pictures: reads images by id; None shows none.

    Raises:
      UserError: the embeddings are damaged.
    """
    found = read_embeddings(workdir)
    if found is None or len(found.ids) < 3:
        return []
    return [_map(found), *_retrieval(found, pictures)]


def _map(found: EmbeddedPictures) -> Section:
    """The first two principal components."""
    centered = found.embeddings - found.embeddings.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centered, full_matrices=False)
    variance = sizes**2 / max(float((sizes**2).sum()), 1e-12)
    needed = int(np.searchsorted(variance.cumsum(), 0.5)) + 1
    xy = centered @ axes[:2].T
    known, counts = np.unique(
        found.labels[found.labels >= 0], return_counts=True
    )
    shown = known[np.argsort(-counts, kind="stable")][: len(_COLOURS)]
    rest = np.flatnonzero(~np.isin(found.labels, shown))
    if len(rest) > _MAP_POINTS:
        rest = rest[:: -(-len(rest) // _MAP_POINTS)]
    groups = [Points("others", xy[rest], "var(--faint)", opacity=0.4)]
    key = [{"name": "others", "colour": "var(--faint)"}]
    for label, colour in zip(shown.tolist(), _COLOURS, strict=False):
        own, name = found.labels == label, str(found.classes[label])
        forged = own & (found.forged == 1)
        groups.append(Points(name, xy[own & ~forged], colour))
        groups.append(Points(name, xy[forged], colour, crosses=True))
        key.append({"name": name, "colour": colour})
    width = found.embeddings.shape[1]
    crosses = (
        " Forged pictures are crosses." if (found.forged == 1).any() else ""
    )
    return Section(
        "Map of the embeddings, validation",
        template(_TEMPLATE).map(scatter(groups, "map of the embeddings"), key),
        f"The two directions of largest variance, {variance[:2].sum():.0%} of "
        f"it; half of it needs {needed} of {width} directions, and a model "
        "that has collapsed needs one. The identities with the most pictures "
        f"are coloured.{crosses}",
    )


def _retrieval(
    found: EmbeddedPictures, pictures: Pictures | None
) -> list[Section]:
    """Each real picture looked up among the others."""
    # A forged picture is a wrong answer to all.
    labels = np.where(found.forged == 1, -1, found.labels)
    queries = np.flatnonzero(labels >= 0)
    if not len(queries):
        return []
    # A report shall not take minutes.
    queries = queries[:: -(-len(queries) // _QUERIES)]
    rows, distances = retrieval.nearest(
        found.embeddings[queries], found.embeddings, 10, own=queries
    )
    ranking = retrieval.rank(rows, labels[queries], labels, own=queries)
    scores = retrieval.scores(ranking, (1, 5, 10))
    table = [
        {
            "k": k,
            "scores": [
                scores[f"{name}_{k}{oml}"]
                for name, oml in (
                    ("cmc", ""),
                    ("precision", ""),
                    ("map", ""),
                    ("precision", "_oml"),
                    ("map", "_oml"),
                )
            ],
        }
        for k in (1, 5, 10)
    ]
    answerable = np.flatnonzero(retrieval.answerable(ranking))
    order = np.argsort(retrieval.average_precision(ranking, 10), kind="stable")
    chosen = answerable[order]
    groups = {"Worst": chosen[:4], "Best": chosen[4:][-2:]}
    near = rows[:, :_RETRIEVED]
    wanted = {
        str(found.ids[row])
        for query in np.concatenate([*groups.values()]).tolist()
        for row in (queries[query], *near[query])
        if row >= 0
    }
    thumbs, problem = thumbnails(pictures, sorted(wanted))

    def shown(query: int) -> list[dict[str, object]]:
        name = str(found.ids[queries[query]])
        line = [{"picture": thumbs.get(name), "look": "", "caption": name}]
        for place, row in enumerate(near[query].tolist()):
            if row >= 0:
                name = str(found.ids[row])
                hit = bool(ranking.hits[query, place])
                line.append(
                    {
                        "picture": thumbs.get(name),
                        "look": "right" if hit else "not",
                        "caption": f"{distances[query, place]:.2f} {name}",
                    }
                )
        return line

    return [
        Section(
            "Retrieval, validation",
            template(_TEMPLATE).retrieval(
                table,
                [
                    (title, [shown(query) for query in some.tolist()])
                    for title, some in groups.items()
                ],
            ),
            f"{scores['queries']:,} real pictures, each looked up among the "
            f"{len(found.ids):,} pictures that validate; "
            f"{scores['unanswerable']:,} more have no other picture of their "
            "identity. OML: as open-metric-learning defines it. Rows show a "
            "picture and its nearest ones with their distances, framed by "
            f"whether they are of its identity, and real. {problem}",
        )
    ]
