"""Runs beside each other: what differs in their configs, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core import paths
from core.durations import duration
from core.errors import UserError
from reports import curves
from reports.charts import Line, interval, line_chart
from reports.page import Section, template, write_page
from reports.scores import Score, read_scores
from run_folder import identity, layout, telemetry
from run_folder.history import History, read_histories

_TEMPLATE = "compare.html"
_ABSENT = "–"
# Without meaning to a reader: where a run kept what it computed.
_UNTOLD = frozenset({"cache_dir"})
_MOST = 40  # fields in a terminal; the page has all of them
# Told apart by people who do not see all colours (Okabe and Ito 2008), on
# light and on dark; a run after these has no line.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")


@dataclass(frozen=True)
class Row:
    """A run among others.

    Attributes:
      name: short, unique among them.
      scores: by name, of its validation rows.
      remark: what to know about the scores; "" for nothing.
      histories: of its training.
      metric: that ranks its checkpoints.
      rows: names the rows that validated; "" where they are not known.
      seconds: of training; None where they were not recorded.
      parameters: of the model; None where they were not recorded.
      config: its fields, by dotted name.
    """

    name: str
    scores: dict[str, Score]
    remark: str
    histories: list[History]
    metric: str
    rows: str
    seconds: float | None
    parameters: int | None
    config: dict[str, Any]

    @property
    def steps(self) -> str:
        """Steps of all folds together, as text."""
        lasts = [h.last.step for h in self.histories if h.last]
        return f"{sum(lasts):,}" if lasts else _ABSENT

    @property
    def time(self) -> str:
        """How long it trained, as text."""
        return _ABSENT if self.seconds is None else duration(self.seconds)

    @property
    def size(self) -> str:
        """Its parameters, as text."""
        return _ABSENT if self.parameters is None else f"{self.parameters:,}"


def read_rows(folders: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Reads the runs, the best by their first score first.

    Args:
      folders: of runs, and perhaps of other things.

    Returns:
      The runs, and a sentence for each folder that is none.

    Raises:
      UserError: none of them is a run, or a name leads to nothing.
    """
    runs = list(dict.fromkeys(paths.make_path(name) for name in folders))
    for run in runs:
        if not run.exists():
            raise UserError(f"{run} does not exist; correct the name")
    found, others = [], []
    names = _short_names(runs)
    for run, name in zip(runs, names, strict=True):
        row = _row(run, name)
        if row is None:
            others.append(f"{run} is no run folder: left out")
        else:
            found.append(row)
    if not found:
        raise UserError(
            f"there is no run in {', '.join(map(str, runs))}; name the "
            "--workdir of one or more, such as runs/*"
        )
    measured = dict.fromkeys(name for row in found for name in row.scores)
    first = next(iter(measured), "")

    def merit(row: Row) -> float:
        score = row.scores.get(first)
        return -np.inf if score is None else score.merit

    return sorted(found, key=merit, reverse=True), others


def differing(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Returns the fields whose values are not the same in all runs.

    A group that some run lacks, such as a second stage or the fields of
    another task, is one entry.

    Args:
      rows: of the runs.

    Returns:
      {dotted name: the value of each run, as text}.
    """
    names = dict.fromkeys(name for row in rows for name in row.config)
    groups = [
        {group for name in row.config for group in _groups(name)}
        for row in rows
    ]
    found = {}
    for name in names:
        if name in _UNTOLD:
            continue
        lacking = [
            group
            for group in _groups(name)
            if not all(group in known for known in groups)
        ]
        if lacking:
            found[lacking[0]] = [
                "set" if lacking[0] in known else _ABSENT for known in groups
            ]
            continue
        values = [_text(row.config.get(name, _ABSENT)) for row in rows]
        if len(set(values)) > 1:
            found[name] = values
    return dict(sorted(found.items()))


def remarks(rows: Sequence[Row]) -> list[str]:
    """Returns sentences on what the scores of the runs do not tell."""
    found = [f"{row.name}: {row.remark}." for row in rows if row.remark]
    tasks = {str(row.config["task"]) for row in rows if "task" in row.config}
    if len(tasks) > 1:
        found.append(
            f"The runs are of different tasks ({', '.join(sorted(tasks))}): "
            "each score compares those of one task alone."
        )
    validated = {(row.config.get("task"), row.rows) for row in _trained(rows)}
    if len({task for task, _ in validated}) < len(validated):
        found.append(
            "The runs were validated on different rows, so their scores "
            "cannot be compared: give them the same data and folds."
        )
    return found


def lines(rows: Sequence[Row]) -> list[str]:
    """Returns the comparison as lines of a terminal."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    table = [["run", *names, "steps", "time", "parameters"]]
    for row in rows:
        scores = [str(row.scores.get(name, _ABSENT)) for name in names]
        table.append([row.name, *scores, row.steps, row.time, row.size])
    found = _aligned(table)
    if len(trained := _trained(rows)) > 1:
        found += ["", *_fields_as_lines(trained, differing(trained))]
    if told := remarks(rows):
        found += ["", *told]
    return found


def compare_report(path: Path, rows: Sequence[Row]) -> Path:
    """Writes the comparison as a page.

    Args:
      path: of the html file.
      rows: of the runs, from `read_rows`.

    Returns:
      `path`.
    """
    macros = template(_TEMPLATE)
    sections = [
        Section(
            "Scores",
            macros.scores(_score_rows(rows)),
            " ".join(
                [
                    "Of the validation rows; the bar is the 95 % interval.",
                    *remarks(rows),
                ]
            ),
        )
    ]
    left_out = ""
    if len(rows) > len(_COLOURS):
        left_out = f" The first {len(_COLOURS)} runs alone."
    if charts := _charts(rows):
        sections.append(
            Section(
                "Training",
                macros.charts(charts),
                "The score that ranks checkpoints, over epochs; a run over "
                f"all folds has a line for each.{left_out}",
            )
        )
    if len(trained := _trained(rows)) > 1:
        fields = differing(trained)
        note = "All fields are the same." if not fields else ""
        body = macros.fields([row.name for row in trained], fields)
        sections.append(
            Section("Fields that differ", body if fields else "", note)
        )
    count = f"{len(rows)} run{'s' if len(rows) > 1 else ''}"
    return write_page(
        path, "Runs beside each other", f"{count}, the best first.", sections
    )


def _trained(rows: Sequence[Row]) -> list[Row]:
    """Those with a config: stacks of masks or pairs have scores alone."""
    return [row for row in rows if row.config]


def _row(run: Path, name: str) -> Row | None:
    config = layout.read_config(run)
    histories = read_histories(run)
    scores, remark = read_scores(run)
    if config is None and not histories and not scores:
        return None
    measured = telemetry.read(run)
    start = measured.start if measured else {}
    return Row(
        name,
        scores,
        remark,
        histories,
        curves.ranking_metric(histories, config),
        _validated(run, config or {}),
        measured.seconds if measured else None,
        start.get("parameters"),
        identity.flatten(config or {}),
    )


def _validated(run: Path, config: dict[str, Any]) -> str:
    """Names the rows that validated; those of all folds are all of them."""
    folds = layout.fold_folders(run)
    try:
        data = layout.read_data(folds[0] if folds else run)
    except UserError:
        return ""
    fold = "all" if folds else config.get("data", {}).get("fold")
    return f"{data.get('rows_hash')} {data.get('folds_hash')} {fold}"


def _short_names(runs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [paths.absolute(run).parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _groups(name: str) -> list[str]:
    """The groups that a field is in: a, a.b for a.b.c."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _text(value: Any) -> str:
    if isinstance(value, float):
        value = float(f"{value:.6g}")  # Not 4.0000000000000003e-07.
    return value if isinstance(value, str) and value else repr(value)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [
                text.rjust(width)
                for text, width in zip(row[1:], widths[1:], strict=True)
            ]
        ).rstrip()
        for row in table
    ]


def _fields_as_lines(
    rows: Sequence[Row], fields: dict[str, list[str]]
) -> list[str]:
    if not fields:
        return ["all fields of their configs are the same"]
    table = [["field", *(row.name for row in rows)]]
    for name, values in list(fields.items())[:_MOST]:
        table.append([name, *(_clipped(value) for value in values)])
    more = len(fields) - _MOST
    told = [f"… and {more:,} more: see the page"] if more > 0 else []
    return _aligned(table) + told


def _clipped(text: str) -> str:
    return text if len(text) <= 40 else text[:19] + "…" + text[-20:]


def _score_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A table for each score that a run has."""
    tables = []
    names = dict.fromkeys(name for row in rows for name in row.scores)
    for name in names or [""]:
        known = [row for row in rows if name in row.scores or not name]
        scores = [row.scores.get(name) for row in known]
        ends = [
            end
            for score in scores
            if score is not None
            for end in (score.value, score.low, score.high)
            if end is not None
        ]
        best = max((s.merit for s in scores if s is not None), default=None)
        entries = []
        for row, score in zip(known, scores, strict=True):
            plot = ""
            if score is not None and score.low is not None:
                plot = interval(*score[:3], min(ends), max(ends))
            entries.append(
                {
                    "row": row,
                    "score": score,
                    "plot": plot,
                    "is_best": score is not None and score.merit == best,
                }
            )
        tables.append({"name": name, "entries": entries})
    return tables


def _charts(rows: Sequence[Row]) -> list[curves.Chart]:
    """The ranking metric of the runs, a chart for each metric."""
    shown = rows[: len(_COLOURS)]
    charts = []
    for metric in dict.fromkeys(row.metric for row in shown if row.metric):
        drawn = []
        for row, colour in zip(shown, _COLOURS, strict=False):
            if row.metric != metric:
                continue
            for history in row.histories:
                found = [e for e in history.evaluations if metric in e.values]
                x = np.array([entry.epoch for entry in found])
                y = np.array([entry.values[metric] for entry in found])
                drawn.append(Line(row.name, x, y, colour))
        if not drawn:
            continue
        what = curves.title(metric)
        svg = line_chart(drawn, f"{what} of each run over epochs")
        key = {line.name: line for line in drawn}
        charts.append(curves.Chart(svg, tuple(key.values())))
    return charts
