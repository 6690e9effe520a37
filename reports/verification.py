"""Sections on a verification: errors by kind, hardest pairs, training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np

from metrics import verification
from reports import curves
from reports.charts import Line, interval, line_chart
from reports.curves import Chart
from reports.embeddings import embedding_sections
from reports.page import Figure, Section, template
from reports.thumbnails import Pictures, Thumbnail, thumbnails
from run_folder import layout
from run_folder.history import read_histories
from run_folder.pair_files import PairScores, read_pair_scores

_TEMPLATE = "verification.html"
_TITLES = {
    "same": "same identity",
    "other": "other identity",
    "one_forged": "one forged",
    "both_forged": "both forged",
}
# Of the kinds' lines: positives first.
_LOOKS = {
    "same": ("var(--accent)", False),
    "other": ("var(--wrong)", True),
    "one_forged": ("var(--second)", False),
    "both_forged": ("var(--faint)", True),
}
_HARDEST = 4  # pairs of each kind
_MISSED = 8
_BINS = 40
# Axes of the DET curve.
_DET_RATES = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6)


def verification_sections(
    workdir: Path, pictures: Pictures | None = None
) -> list[Section]:
    """Returns what is to be seen of the validation pairs of a run.

    Args:
      workdir: the run folder.
      pictures: reads images by id; None shows none.

    Raises:
      UserError: pairs or embeddings are damaged.
    """
    sections = _training(workdir)
    if not layout.pairs_path(workdir, "val").exists():
        return sections
    pairs = read_pair_scores(layout.pairs_path(workdir, "val"))
    sections = [_errors(pairs), _rates(pairs), *sections]
    sections.append(_hardest(pairs, pictures))
    return sections + embedding_sections(workdir, pictures)


# ---- Errors -----------------------------------------------------------------


def _positive(pairs: PairScores) -> np.ndarray:
    return pairs.kind == verification.POSITIVE


def error_interval(pairs: PairScores) -> tuple[float, float]:
    """Returns the 95 % interval of the equal error rate, over identities."""
    return verification.bootstrap_interval(
        pairs.similarity,
        _positive(pairs),
        pairs.identities[:, 0],
        pairs.identities[:, 1],
        # So that large validations do not take minutes.
        draws=1000 if len(pairs) < 10_000 else 200,
    )


def _kinds(pairs: PairScores) -> list[tuple[str, PairScores]]:
    """All pairs, and the positives with each kind of negatives."""
    found = [("all", pairs)]
    for number, name in enumerate(verification.KINDS):
        if number != verification.POSITIVE and (pairs.kind == number).any():
            kept = verification.pairs_of_kind(pairs.kind, number)
            found.append((_TITLES[name], pairs.take(kept)))
    return found if len(found) > 2 else found[:1]


def _errors(pairs: PairScores) -> Section:
    rows, lowest, highest = [], 1.0, 0.0
    for name, some in _kinds(pairs):
        positive = _positive(some)
        low, high = error_interval(some)
        lowest, highest = min(lowest, low), max(highest, high)
        found = verification.summary(some.similarity, positive)
        rows.append(
            {
                "name": name,
                "low": low,
                "high": high,
                "interval": f"{low:.4f} to {high:.4f}",
                "pairs": len(some),
                **found,
            }
        )
    for row in rows:
        edges = row["eer"], row["low"], row["high"]
        row["plot"] = interval(*edges, lowest, highest)
    whole = rows[0]
    _, threshold = verification.equal_error(pairs.similarity, _positive(pairs))
    return Section(
        "Errors by kind, validation",
        template(_TEMPLATE).kinds(rows),
        "All positive pairs against the negatives of each kind. Intervals are "
        "from drawing identities anew, since pairs of one person are not "
        "independent.",
        figures=(
            Figure(
                "equal error rate",
                f"{whole['eer']:.4f}",
                f"95 % interval {whole['low']:.3f} to {whole['high']:.3f}",
            ),
            Figure("AUC", f"{whole['auc']:.4f}", f"{len(pairs):,} pairs"),
            Figure(
                "FNMR at FMR 10 %",
                f"{whole['fnmr_at_fmr_10']:.4f}",
                "positives rejected, one negative in ten accepted",
            ),
            Figure(
                "threshold",
                f"{threshold:.3f}",
                "similarity at which both errors are equal",
            ),
        ),
    )


def _rates(pairs: PairScores) -> Section:
    """ROC, DET, and how scores are spread."""
    roc, det = [], []
    looks = [("var(--accent)", False), *list(_LOOKS.values())[1:]]
    for (name, some), look in zip(_kinds(pairs), looks, strict=False):
        curve = verification.roc(some.similarity, _positive(some))
        roc.append(Line(name, curve.fmr, 1 - curve.fnmr, *look))
        det.append(Line(name, _probit(curve.fmr), _probit(curve.fnmr), *look))
    ticks = [(p, f"{p:g}") for p in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    normal = [
        (float(_probit(np.array([rate]))[0]), f"{100 * rate:g}%")
        for rate in _DET_RATES
    ]
    _, threshold = verification.equal_error(pairs.similarity, _positive(pairs))
    return Section(
        "Error rates and scores, validation",
        template(_TEMPLATE).charts(
            [
                (
                    "ROC: positives accepted over negatives accepted",
                    _chart(roc, "ROC curve", x_ticks=ticks, y_ticks=ticks),
                ),
                (
                    "DET: positives rejected over negatives accepted",
                    _chart(det, "DET curve", x_ticks=normal, y_ticks=normal),
                ),
                (
                    "Share of pairs over similarity",
                    _chart(
                        _histograms(pairs),
                        "histograms of similarities",
                        verticals=(threshold,),
                    ),
                ),
            ]
        ),
        "The DET curve has the axes of a normal distribution: straight lines "
        "are normally distributed scores. The upright line among the scores "
        "is the threshold of equal errors.",
    )


def _chart(lines: list[Line], label: str, **options) -> Chart:
    return Chart(line_chart(lines, label, **options), tuple(lines))


def _probit(rates: np.ndarray) -> np.ndarray:
    """Normal quantiles; NaN outside of the DET curve's axes."""
    low, high = _DET_RATES[0], _DET_RATES[-1]
    inside = (rates >= low) & (rates <= high)
    quantiles = np.full(len(rates), np.nan)
    quantiles[inside] = [NormalDist().inv_cdf(rate) for rate in rates[inside]]
    return quantiles


def _histograms(pairs: PairScores) -> list[Line]:
    """A line for each kind: shares of its pairs in bins of similarity."""
    edges = np.histogram_bin_edges(pairs.similarity, _BINS)
    centers, lines = (edges[1:] + edges[:-1]) / 2, []
    for number, name in enumerate(verification.KINDS):
        scores = pairs.similarity[pairs.kind == number]
        if len(scores):
            share = np.histogram(scores, edges)[0] / len(scores)
            lines.append(Line(_TITLES[name], centers, share, *_LOOKS[name]))
    return lines


# ---- Hardest pairs ----------------------------------------------------------


def _hardest(pairs: PairScores, pictures: Pictures | None) -> Section:
    falling = np.argsort(-pairs.similarity, kind="stable")
    groups = [
        (
            f"Most alike: {_TITLES[name]}",
            _first(pairs, falling[pairs.kind[falling] == number], _HARDEST),
        )
        for number, name in enumerate(verification.KINDS)
        if number != verification.POSITIVE
    ]
    rising = falling[::-1]
    misses = _first(pairs, rising[_positive(pairs)[rising]], _MISSED)
    groups.append((f"Least alike: {_TITLES['same']}", misses))
    rows = [row for _, rows in groups for row in rows]
    wanted = {
        str(name)
        for row in rows
        for name in (pairs.first[row], pairs.second[row])
    }
    found, problem = thumbnails(pictures, sorted(wanted))
    return Section(
        "Hardest pairs, validation",
        template(_TEMPLATE).couples(
            [
                (title, [_couple(pairs, row, found) for row in rows])
                for title, rows in groups
            ]
        ),
        "Negatives with the highest similarity and positives with the lowest; "
        f"in each group no picture is shown twice. {problem}",
    )


def _first(pairs: PairScores, order: np.ndarray, count: int) -> list[int]:
    """The first pairs in an order, no picture twice."""
    chosen: list[int] = []
    seen: set[str] = set()
    for row in order.tolist():
        names = {str(pairs.first[row]), str(pairs.second[row])}
        if not names & seen:
            chosen.append(row)
            seen |= names
        if len(chosen) == count:
            break
    return chosen


def _couple(
    pairs: PairScores, row: int, found: dict[str, Thumbnail]
) -> dict[str, object]:
    names = str(pairs.first[row]), str(pairs.second[row])
    return {
        "first": found.get(names[0]),
        "second": found.get(names[1]),
        "names": names,
        "score": float(pairs.similarity[row]),
        "kind": _TITLES[verification.KINDS[pairs.kind[row]]],
    }


# ---- Training ---------------------------------------------------------------


def _training(workdir: Path) -> list[Section]:
    """What the losses told at the steps: whether embeddings collapse."""
    histories = read_histories(workdir)
    logged = {
        name
        for history in histories
        for record in history.train
        for name in record.values
    }
    distances = {
        "positive_distance": "same identity",
        "negative_distance": "other identity",
    }
    active = {
        name: name.removesuffix("_active").replace("_", " ")
        for name in sorted(logged)
        if name.endswith("_active")
    }
    titled: Sequence[tuple[str, Chart]] = [
        (title, chart)
        for title, names in (
            ("Mean distance in a batch", distances),
            ("Share of mined triplets or pairs within the margin", active),
        )
        for chart in curves.value_chart(histories, names, title.lower())
    ]
    if not titled:
        return []
    return [
        Section(
            "Embeddings while training",
            template(_TEMPLATE).charts(titled),
            "Over epochs. Where both distances go to 0, all pictures have "
            "become one point.",
        )
    ]
