"""`python -m stacking.pairs`: verifications in, one similarity per pair out.

python -m stacking.pairs --runs 'runs/*' --out runs/stack

Runs that have compared the same pairs (`pairs/val.npz`, `pairs/test.npz`) are
fused by z-norm, by ranks, by a logistic regression on their cosines and forgery
scores or by a product of two probabilities, of the mean cosine and of one run's
forgery scores, or the best of them is taken alone. Which, is chosen by
cross-validation over identities, and the equal error rate of the choice is
that of a second one around it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import output, signals

    output.install()
    signals.install()  # First of all: the imports below take seconds.

import argparse
import dataclasses
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from core.errors import UserError, exit_on_user_error
from core.paths import make_path, reaching
from metrics import verification
from reports.pair_ensemble import pair_ensemble_report
from reports.thumbnails import Pictures
from run_folder import layout, submission_file
from run_folder.artifacts import ArtifactWriter
from run_folder.pair_files import PairScores
from stacking import argument_types, pair_fusion
from stacking.pair_members import (
    FUSED_FROM,
    Member,
    PairTable,
    find_members,
    is_stack,
    make_table,
)

SCORES = "scores.json"
CHOSEN = "chosen"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and does what it says."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with exit_on_user_error(), reaching(arguments):
        options = _parser().parse_args(arguments)
        with threadpool_limits(limits=1, user_api="blas"):
            stack(
                options.runs,
                make_path(options.out),
                sample_submission=options.sample_submission,
                seed=options.seed,
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stacking.pairs", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        action="extend",
        required=True,
        metavar="FOLDER",
        help="run folders with pairs/, or globs of them",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER")
    parser.add_argument(
        "--sample-submission",
        metavar="CSV",
        help="columns and row order of the submission, or 'none' for the "
        "pairs in their own order; default: the one the runs were trained "
        "beside",
    )
    parser.add_argument("--seed", type=argument_types.seed, default=0)
    return parser


def stack(
    runs: Sequence[str],
    out: Path,
    *,
    sample_submission: str | None = None,
    seed: int = 0,
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fuses runs, and writes a submission and scores.

    Args:
      runs: folders or globs.
      out: folder for `submission.csv`, `scores.json`, `report.html` and
        `pairs/`.
      sample_submission: a csv file, `none`, or None for the runs' own.
      seed: of the folds.
      note: called with each line for people.

    Returns:
      The content of scores.json.

    Raises:
      UserError: the runs do not belong together, or `out` cannot be written.
    """
    started = time.monotonic()
    is_run = layout.has_checkpoint(out) or layout.read_config(out) is not None
    if layout.pairs_path(out, "val").exists():
        is_run |= not is_stack(out)  # Perhaps of another tool.
    if is_run:
        raise UserError(
            f"--out {out} holds a run, whose submission would be replaced; "
            "name another folder"
        )
    members = find_members(runs, out, note)
    table = make_table([member.val for member in members])
    names = [member.name for member in members]
    judges = [member.name for member in members if len(member.val.log_real)]
    fuses = pair_fusion.ways(names, judges)
    count = len(np.unique(table.identities))
    nested = chosen = None
    if count >= pair_fusion.MIN_IDENTITIES:
        folds = pair_fusion.folds_of(table.identities, seed)
        nested = pair_fusion.nested_scores(table, fuses, folds)
        chosen = pair_fusion.nested_choice(table, fuses, folds)
    is_nested = nested is not None and chosen is not None
    if not is_nested:
        # What is fitted to nothing needs no folds to be scored.
        kept = (*names, "rank")
        fuses = {way: fuse for way, fuse in fuses.items() if way in kept}
        nested = {name: fuse(table)(table) for name, fuse in fuses.items()}
        name = "rank" if "rank" in nested else names[0]
        chosen = nested[name]
        note(
            f"validation pairs are of {count} identities, too few to fit "
            f"anything to: the submission is of '{name}'"
        )
    else:
        name = pair_fusion.choose(table, nested)
    sample = _sample(members[0], sample_submission)
    writer = ArtifactWriter(out, 0)
    writer.begin()
    writer.pairs("val", _fused(members, "val", chosen))
    results = {
        "pairs": len(table.kind),
        "identities": count,
        "test_pairs": 0,
        "runs": {member.name: str(member.path) for member in members},
        "choice": name,
        "nested": is_nested,
        "scores": {
            way: _scores(own, table)
            for way, own in {**nested, CHOSEN: chosen}.items()
        },
        "seed": seed,
    }
    if sample is not None:
        tests = [member.test for member in members]
        similarity = fuses[name](table)(make_table(tests))
        fused = _fused(members, "test", similarity)
        writer.pairs("test", fused)
        writer.similarities(sample, fused.ids, similarity)
        results["test_pairs"] = len(fused)
    writer.json(SCORES, results)
    pair_ensemble_report(out, results, _pictures(members[0]))
    writer.finish()
    for line in _lines(results):
        note(line)
    wrote = "submission.csv, " if sample is not None else ""
    seconds = time.monotonic() - started
    note(
        f"wrote {wrote}{SCORES} and {layout.REPORT} in {out} in {seconds:.0f} s"
    )
    return results


def _sample(member: Member, given: str | None) -> submission_file.Sample | None:
    """What the submission must look like; None where there is no test."""
    if member.test is None:
        return None
    about, ids = member.test.metadata, member.test.ids
    names = "pair_id", "similarity"
    path = given if given is not None else about.get("sample_submission")
    if not path or path == "none":
        return submission_file.plain(ids, *names)
    names = tuple(
        about.get(key, name)
        for key, name in zip(("id_column", "target_column"), names, strict=True)
    )
    sample = submission_file.read_sample(
        path, (), *names, submission_file.OF_STACKING, ids
    )
    submission_file.check_pairs(
        sample,
        ids,
        f"{member.path}/pairs/test.npz",
        submission_file.OF_STACKING,
    )
    return sample


def _pictures(member: Member) -> Pictures | None:
    """What reads the pictures of a run's data, by id."""
    config = layout.read_config(member.path)
    if config is None or "data" not in config:
        return None

    def read(ids: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        # By name, and only when asked: the stack works without the package
        # that reads images, and without the images.
        module = importlib.import_module("input_pipeline.sources.pictures")
        return module.read_pictures(config["data"], ids)

    return read


def _fused(
    members: Sequence[Member], split: str, similarity: np.ndarray
) -> PairScores:
    """The pairs with another similarity; cosines are the runs' mean."""
    scores = [getattr(member, split) for member in members]
    seen = [own.log_real for own in scores if len(own.log_real)]
    return dataclasses.replace(
        scores[0],
        cosine=np.mean([own.cosine for own in scores], axis=0),
        log_real=np.mean(seen, axis=0) if seen else np.zeros(0, np.float32),
        similarity=similarity.astype(np.float32),
        metadata={
            **scores[0].metadata,
            FUSED_FROM: [member.name for member in members],
            "model": "+".join(str(own.metadata["model"]) for own in scores),
            "config_hash": "+".join(
                str(own.metadata["config_hash"]) for own in scores
            ),
        },
    )


def _scores(scores: np.ndarray, table: PairTable) -> dict[str, Any]:
    """The scores of one way over all kinds, and by kind."""
    _, number = np.unique(table.identities, return_inverse=True)
    first, second = number.reshape(table.identities.shape).T
    return {
        **verification.summary(scores, table.positive),
        "eer_interval": verification.bootstrap_interval(
            scores, table.positive, first, second
        ),
        "by_kind": verification.summary_by_kind(scores, table.kind),
    }


def _lines(results: dict[str, Any]) -> Iterator[str]:
    names = list(results["scores"])
    width = max(map(len, names))
    kinds = list(results["scores"][CHOSEN]["by_kind"])
    yield (
        f"{'':{width}}  EER     95 % interval     AUC     EER against "
        + ", ".join(kind.replace("_", " ") for kind in kinds)
    )
    for name, own in results["scores"].items():
        low, high = own["eer_interval"]
        by_kind = "  ".join(f"{own['by_kind'][k]['eer']:.4f}" for k in kinds)
        yield (
            f"{name:{width}}  {own['eer']:.4f}  {low:.4f} to {high:.4f}  "
            f"{own['auc']:.4f}  {by_kind}"
        )
    if results["nested"]:
        yield (
            f"the submission is of '{results['choice']}'; '{CHOSEN}' is what "
            "to expect of it: pairs that neither fit nor choice has seen"
        )
    else:
        yield (
            f"the submission is of '{results['choice']}'; no pair was held "
            "out, so expect lower scores of it"
        )


if __name__ == "__main__":
    main()
