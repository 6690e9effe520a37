"""What `python -m stacking` does, from run folders to files."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.atomic_files import write_text
from core.errors import UserError
from metrics import classification
from reports.classification import Predictions
from reports.ensemble import ensemble_report
from reports.thumbnails import Pictures
from run_folder import submission_file
from stacking import (
    importances,
    leaks,
    member_value,
    search_storage,
    serialization,
    submission,
)
from stacking.align import Rows, Table, make_table
from stacking.atomic_dir import REPORT, check_writable, staged
from stacking.nested_cv import Scored, out_of_fold, predict_scored
from stacking.runs import find_runs, read_runs
from stacking.stack_model import BLEND, Settings, StackModel, fit_stack_model

MIN_ROWS = 10
# In place of a sample submission: the rows in their own order.
NO_SAMPLE = "none"


@dataclass(frozen=True)
class Job:
    """What a person asked for.

    Attributes:
      runs: folders or globs.
      out: where everything is written.
      settings: of the stack.
      sample_submission: path, or "none", or None for the one that the runs
        name.
      submission_format: "labels", "probabilities", or None for what the
        sample holds.
      leak_check: whether a run surer of validation than of test rows stops
        the stack.
    """

    runs: Sequence[str]
    out: Path
    settings: Settings
    sample_submission: str | None = None
    submission_format: str | None = None
    leak_check: bool = True


def stack(
    job: Job,
    progress: Callable[[str], None] = lambda step: None,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Scores and fits the stack and writes every file.

    Args:
      job: what is asked for.
      progress: called with a few words before each slow step.
      note: called with a line worth keeping.

    Returns:
      The content of scores.json.
    """
    runs = read_runs(find_runs(job.runs, job.out, note), ("val", "test"))
    table = make_table(runs)
    _check_rows(table)
    leak_scores = leaks.leak_scores(runs)
    if job.leak_check:
        leaks.refuse_leaks(leak_scores)
    layout = _submission_layout(table, job.sample_submission)
    template = None
    if table.test is None:
        note("no run has test logits: scores only, no submission")
    else:
        template = _template(
            table.test.ids, table.classes, [layout["sample"]], layout
        )
        # Refuse a sample that does not fit before the work, not after.
        _submission_rows(
            template,
            table.test.ids,
            table.classes,
            None,
            job.submission_format,
        )
    check_writable(job.out, "--out")
    if job.settings.search_seconds:
        search_storage.check_storage(job.settings.search_storage)

    logits, labels = table.val.logits, table.val.labels
    groups = table.val.groups
    if groups is not None:
        count = len(np.unique(groups))
        note(f"{count:,} groups of rows, each in one fold of the stack's own")
    found = out_of_fold(
        logits, labels, job.settings, groups=groups, progress=progress
    )
    model = fit_stack_model(
        logits,
        labels,
        job.settings,
        groups=groups,
        progress=lambda step: progress(f"final fit: {step}"),
    )
    progress("writing")
    if template is None and (job.out / "submission.csv").exists():
        note(
            f"{job.out}/submission.csv is not of this stack"
            + (
                " and is removed"
                if (job.out / "stack.json").exists()
                else "; nor is it of an earlier one, so it stays"
            )
        )
    with staged(job.out) as folder:
        serialization.save(folder, model, table, job.settings, layout)
        # Predicted by what was written, as `predict` will.
        model = serialization.load(folder).stack
        if template is not None:
            predicted = predict_rows(
                model, table.test.logits, job.settings.threads
            )
            submission.write_submission(
                folder / "submission.csv",
                _submission_rows(
                    template,
                    table.test.ids,
                    table.classes,
                    predicted,
                    job.submission_format,
                ),
            )
        test_found = None
        if table.test is not None and (table.test.labels >= 0).all():
            test_found = predict_scored(
                model,
                table.test.logits,
                table.test.labels,
                job.settings.threads,
            )
        results = _results(job, table, model, found, test_found, leak_scores)
        write_text(folder / "scores.json", json.dumps(results, indent=1) + "\n")
        predictions = [
            _predictions("validation, out of fold", table.val, found)
        ]
        if test_found is not None:
            predictions.append(_predictions("test", table.test, test_found))
        ensemble_report(
            folder / REPORT,
            results,
            predictions,
            _pictures(runs[0].metadata.get("data")),
        )
    return results


def predict(
    folder: Path,
    runs: Sequence[str],
    out: Path,
    *,
    split: str = "test",
    sample_submission: str | None = None,
    submission_format: str | None = None,
    threads: int = 2,
    note: Callable[[str], None] = lambda line: None,
) -> int:
    """Predicts new logits with a stack made before.

    Args:
      folder: of the stack.
      runs: folders or globs, of the models the stack was made with.
      out: the csv file to write.
      split: which logits to predict.
      sample_submission: path, or "none", or None for the one the stack was
        made with or the runs name, whichever has these rows.
      submission_format: "labels", "probabilities", or None for what the
        sample holds.
      threads: at most so many.
      note: called with a line worth keeping.

    Returns:
      The number of rows written.
    """
    loaded = serialization.load(folder)
    made_with = loaded.description["versions"]
    for library, version in serialization.versions().items():
        if made_with.get(library) != version:
            note(
                f"the stack was made with {library} "
                f"{made_with.get(library)} and this is {version}: answers "
                "may differ in the last digits"
            )
    found = read_runs(find_runs(runs, folder, note), (split,))
    table = make_table(found, (split,))
    rows: Rows = getattr(table, split)
    order = serialization.matched(loaded, table)
    predicted = predict_rows(loaded.stack, rows.logits[order], threads)
    layout = loaded.description["submission"]
    if sample_submission == NO_SAMPLE:
        samples = []
    elif sample_submission:
        samples = [sample_submission]
    elif split == "test":
        # Other images than the stack was made beside have another sample.
        own = _submission_layout(table, None)
        samples = [layout["sample"], own["sample"]]
    else:
        samples = []
    template = _template(rows.ids, table.classes, samples, layout)
    submission.write_submission(
        out,
        _submission_rows(
            template, rows.ids, table.classes, predicted, submission_format
        ),
    )
    return len(rows.ids)


def predict_rows(
    model: StackModel, logits: np.ndarray, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """The blend's (answers int32 [N], probabilities float32 [N, C])."""
    _, rows, classes = logits.shape
    probabilities = np.empty((rows, classes), np.float32)
    for chunk, found in model.predict(logits, threads):
        probabilities[chunk] = found[BLEND]
    return model.decide(probabilities).astype(np.int32), probabilities


def _check_rows(table: Table) -> None:
    rows = len(table.val.ids)
    if rows < MIN_ROWS:
        raise UserError(
            f"the runs share only {rows} validation rows, too few to fit "
            f"and score a stack; train with more images, or with fewer folds "
            f"(--config.data.folds), for at least {MIN_ROWS}"
        )
    if len(np.unique(table.val.labels)) < 2:
        raise UserError(
            "all validation rows have one label; there is nothing to stack"
        )


def _submission_layout(table: Table, sample: str | None) -> dict[str, Any]:
    """Columns and sample, from the flag or from what the runs recorded."""
    metadata = table.families[0].runs[0].metadata
    if sample is None:
        sample = metadata.get("sample_submission")
    return {
        "sample": None if sample == NO_SAMPLE else sample,
        "id_column": metadata.get("id_column") or "id",
        "target_column": metadata.get("target_column") or "label",
    }


def _template(
    ids: np.ndarray,
    classes: np.ndarray,
    samples: Sequence[str | None],
    layout: dict[str, Any],
) -> submission_file.Sample:
    """The first of `samples` that names exactly these rows, or the last.

    Without any, the columns of `layout` and the rows in their own order.
    """
    columns = (layout["id_column"], layout["target_column"])
    what = (classes.tolist(), *columns, submission_file.OF_STACKING, ids)
    paths = [path for path in dict.fromkeys(samples) if path]
    for path in paths[:-1]:
        with contextlib.suppress(UserError):
            template = submission_file.read_sample(path, *what)
            if set(template.ids.tolist()) == set(ids.tolist()):
                return template
    if paths:
        return submission_file.read_sample(paths[-1], *what)
    return submission_file.plain(ids, *columns)


def _submission_rows(template, ids, classes, predicted, kind):
    if predicted is None:
        predicted = (
            np.zeros(len(ids), np.int32),
            np.zeros((len(ids), len(classes)), np.float32),
        )
    return submission.make_rows(template, ids, classes, *predicted, kind)


def _pictures(data: dict[str, Any] | None) -> Pictures | None:
    """Reads images of the runs' own data; None if no run says where it is."""
    if data is None:
        return None

    def read(ids: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        # By name, and only when asked: stacking works without the package
        # that reads images, and without the images.
        module = importlib.import_module("input_pipeline.sources.pictures")
        yield from module.read_pictures(data, ids)

    return read


def _predictions(
    title: str, rows: Rows, found: dict[Any, Scored]
) -> Predictions:
    blend = found[BLEND]
    return Predictions(
        title=title,
        ids=rows.ids,
        labels=rows.labels,
        predicted=blend.predicted,
        confidence=blend.confidence,
        true=blend.true,
    )


def _results(job, table, model, found, test_found, leak_scores):
    """The content of scores.json."""
    names = dict(enumerate(table.names))
    classes = len(table.classes)

    def summaries(scored, labels):
        return {
            names.get(key, key): entry.summary(labels, classes)
            for key, entry in scored.items()
        }

    def by_model(values):
        return dict(zip(table.names, values.tolist(), strict=True))

    labels = table.val.labels
    most_common = np.bincount(labels, minlength=classes).argmax()
    return {
        "rows": len(labels),
        "test_rows": 0 if table.test is None else len(table.test.ids),
        "classes": table.classes.tolist(),
        "folds_hash": table.folds_hash,
        "families": [
            {
                "name": family.name,
                "model": family.model,
                "runs": [str(run.path) for run in family.runs],
            }
            for family in table.families
        ],
        "settings": job.settings.described(),
        "most_common_class": {
            "macro_f1": classification.macro_f1(
                labels, np.full(len(labels), most_common), classes
            ),
            "accuracy": float(np.mean(labels == most_common)),
        },
        "scores": summaries(found, labels),
        "test_scores": (
            None
            if test_found is None
            else summaries(test_found, table.test.labels)
        ),
        "final": {
            "temperatures": by_model(model.temperatures),
            **{
                f"{vote}_weights": by_model(model.meta_learners[vote].weights)
                for vote in ("soft_vote", "greedy_vote")
            },
            "meta_learner_temperatures": dict(model.meta_learner_temperatures),
            "blend_weights": dict(model.blend_weights),
            "blend_temperature": model.blend_temperature,
            "multipliers": model.multipliers.tolist(),
            "booster_parameters": model.booster_parameters,
            "importances": importances.of_stack(model, table.names, classes),
        },
        "members": member_value.leave_one_out(
            table.val.logits, labels, job.settings.seed
        ),
        "leak_check": [
            {
                "run": str(score.run.path),
                "auc": score.auc,
                "excess": score.excess,
                "standard_errors": score.standard_errors,
            }
            for score in leak_scores
        ],
    }
