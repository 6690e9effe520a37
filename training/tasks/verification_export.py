"""What a verification leaves on the disk: embeddings, pairs, a submission."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs import loading
from core.errors import UserError
from input_pipeline.sources.base import Examples
from metrics import verification
from run_folder import identity as identity_lib
from run_folder import layout, submission_file
from run_folder.artifacts import ArtifactWriter
from run_folder.pair_files import PairList, PairScores, read_pair_scores
from training.tasks import verification_evaluator
from training.tasks.verification_evaluator import ValidationPairs
from training.tasks.verification_prediction import Embeddings

if TYPE_CHECKING:
    from training.data import Data
    from training.tasks.verify import Verification


def write(
    task: Verification,
    data: Data,
    pairs: ValidationPairs,
    writer: ArtifactWriter,
    validation: Embeddings,
    test: Embeddings | None,
) -> str:
    """Writes all files; in the primary process.

    Args:
      task: whose `similarity` is fitted.
      data: of the run.
      pairs: to validate on, of pictures that can be read.
      writer: of the run folder.
      validation: of the validation rows.
      test: of the test pictures, if there are any.

    Returns:
      A sentence on the validation pairs, and on the test pairs where their
      kinds are known.
    """
    source = data.source
    metadata = _metadata(task, data, writer.workdir)
    known = source.labelled
    cosine, log_real = pairs.compared(
        validation.embedding, validation.real_logit
    )
    found = PairScores(
        ids=pairs.pairs.ids,
        first=known.ids[pairs.pairs.first],
        second=known.ids[pairs.pairs.second],
        cosine=cosine,
        log_real=log_real,
        # Each pair by weights that saw neither of its identities.
        similarity=pairs.similarity(cosine, log_real),
        kind=pairs.pairs.kind,
        identities=_identities(source, known, pairs.pairs),
        fold=data.folds[pairs.pairs.first],
        metadata={**metadata, "pairs_hash": pairs.pairs.hash(known.ids)},
    )
    _write_embeddings(writer, "val", data, known, pairs.rows, validation)
    writer.pairs("val", found)
    told = f"validation {summary(found)}"
    if test is None:
        return told
    rows = np.arange(len(source.test))
    _write_embeddings(writer, "test", data, source.test, rows, test)
    if source.test_pairs is None:
        return told
    asked = source.test_pairs
    cosine, log_real = verification_evaluator.compare(
        test.embedding,
        test.real_logit,
        asked.first,
        asked.second,
        pairs.judges_forgeries,
    )
    count = len(asked)
    answer = PairScores(
        ids=asked.ids,
        first=source.test.ids[asked.first],
        second=source.test.ids[asked.second],
        cosine=cosine,
        log_real=log_real,
        similarity=task.similarity(cosine, log_real),
        kind=np.full(count, -1, np.int8) if asked.kind is None else asked.kind,
        identities=_identities(source, source.test, asked),
        fold=np.full(count, -1, np.int32),
        metadata={**metadata, "pairs_hash": asked.hash(source.test.ids)},
    )
    writer.pairs("test", answer)
    told += f"; {write_submission(writer, answer)}"
    if asked.kind is not None:
        told += f"; on the test pairs {summary(answer)}"
    return told


def write_submission(writer: ArtifactWriter, answer: PairScores) -> str:
    """Writes `submission.csv` in the rows and columns of the sample.

    Args:
      writer: of the run folder.
      answer: to the test pairs; its metadata say where the sample is.

    Returns:
      Where it is.
    """
    about = answer.metadata
    names = about["id_column"], about["target_column"]
    if about["sample_submission"]:
        sample = submission_file.read_sample(
            about["sample_submission"],
            (),
            *names,
            submission_file.OF_TRAINING,
            expected_ids=answer.ids,
        )
    else:
        sample = submission_file.plain(answer.ids, "pair_id", "similarity")
    path = writer.similarities(sample, answer.ids, answer.similarity)
    return f"similarities of {len(answer):,} pairs in {path}"


def summary(scores: PairScores) -> str:
    """Returns the equal error rates of pairs of known kinds, for people."""
    found, kind = scores.similarity, scores.kind
    positive = kind == verification.POSITIVE
    eer = verification.equal_error_rate(found, positive)
    by_kind = verification.summary_by_kind(found, kind)
    words = [
        f"against {name.replace('_', ' ')} {one['eer']:.4f}"
        for name, one in by_kind.items()
    ]
    text = f"equal error rate {eer:.4f} over {len(scores):,} pairs"
    return f"{text} ({', '.join(words)})" if len(words) > 1 else text


def join(workdir: Path, runs: Sequence[Path], writer: ArtifactWriter) -> str:
    """Joins what the runs over single folds say of their pairs.

    Similarities are log-odds, each fold's by its own pairs, and so of one
    scale: `pairs/val.npz` has the validation pairs of all folds, and
    `pairs/test.npz` the mean over the folds of each test pair.

    Args:
      workdir: folder of the run over all folds.
      runs: a run folder per fold.
      writer: of `workdir`.

    Returns:
      A sentence on the out-of-fold error.

    Raises:
      UserError: the folds' files do not belong together; which.
    """

    def read(split: str) -> list[PairScores]:
        return [read_pair_scores(layout.pairs_path(run, split)) for run in runs]

    whole = _joined(read("val"))
    writer.pairs("val", whole)
    told = f"out-of-fold {summary(whole)}"
    if not layout.pairs_path(runs[0], "test").exists():
        return f"{told}; pairs in {workdir / 'pairs'}"
    answers = read("test")
    for run, one in zip(runs, answers, strict=True):
        if one.pairs_hash != answers[0].pairs_hash:
            raise UserError(
                f"{run} and {runs[0]} have predicted other test pairs; train "
                "both with the same data.root"
            )
    order = [np.argsort(one.ids) for one in answers]
    back = np.argsort(order[0])
    mean = {
        name: np.mean(
            [
                getattr(one, name)[at][back] if len(getattr(one, name)) else []
                for one, at in zip(answers, order, strict=True)
            ],
            axis=0,
        ).astype(np.float32)
        for name in ("cosine", "log_real", "similarity")
    }
    answer = PairScores(**{**vars(answers[0]), **mean})
    answer.metadata.update(val_fold=-1, similarity=None)
    writer.pairs("test", answer)
    return f"{told}; {write_submission(writer, answer)}"


def _joined(found: Sequence[PairScores]) -> PairScores:
    """The pairs of several folds, one after the other."""
    arrays = {
        name: np.concatenate([getattr(one, name) for one in found])
        for name in found[0].arrays
        if name != "metadata"
    }
    joined = PairScores(**arrays, metadata=dict(found[0].metadata))
    joined.metadata["pairs_hash"] = joined.pairs_hash
    joined.metadata.update(val_fold=-1, similarity=None)  # Of no one fold.
    return joined


def _identities(source: Any, examples: Examples, pairs: PairList) -> np.ndarray:
    """Names of both pictures' identities, str [P, 2]; '' where unknown."""
    names = np.array(["", *source.classes])
    labels = np.stack([pairs.first, pairs.second], axis=1)
    return names[examples.labels[labels] + 1]


def _write_embeddings(
    writer: ArtifactWriter,
    split: str,
    data: Data,
    examples: Examples,
    rows: np.ndarray,
    found: Embeddings,
) -> None:
    forged = examples.columns.get("forged", np.full(len(examples), -1))
    folds = np.full(len(rows), -1, np.int32)
    if split == "val":
        folds = data.folds[rows]
    writer.array(
        f"embeddings/{split}.npz",
        ids=examples.ids[rows],
        embeddings=found.embedding,
        real_logit=found.real_logit,
        bad=found.bad,
        labels=examples.labels[rows].astype(np.int32),
        forged=forged[rows].astype(np.int8),
        fold=folds,
        classes=np.array(data.source.classes),
    )


def _metadata(task: Verification, data: Data, workdir: Path) -> dict[str, Any]:
    config, source = task.config, data.source
    plain, learned_from = loading.plain(config), layout.read_data(workdir)
    return {
        "model": f"{config.model} {config.model_options.get('encoder', '')}",
        "seed": config.seed,
        "config_hash": identity_lib.config_hash(plain, learned_from),
        "family_hash": identity_lib.family_hash(plain, learned_from),
        "folds_hash": data.folds_hash,
        "val_fold": config.data.fold,
        "views": list(task.views),
        "similarity": list(task.similarity_weights),
        "source": source.name,
        "sample_submission": source.sample_submission,
        "id_column": source.id_column,
        "target_column": source.target_column,
        "data": plain["data"],
    }
