"""Pairs of pictures to compare: a folder for each, or rows of a csv."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core import csv_table
from core.errors import UserError
from input_pipeline.sources import listing
from input_pipeline.sources.base import FileExamples, LeftOut
from run_folder import submission_file
from run_folder.pair_files import PairList

USUAL_FOLDER = "test"
USUAL_SAMPLE = "sample_submission.csv"


class TestPairs(NamedTuple):
    """What is to be predicted.

    Attributes:
      examples: the pictures, each once, without labels.
      pairs: of them.
      sample: absolute path of the sample submission, or None.
      left_out: files beside the pictures.
    """

    __test__ = False  # Not a test of pytest's.

    examples: FileExamples
    pairs: PairList
    sample: str | None
    left_out: Sequence[LeftOut]


def open_test_pairs(
    data: Any, root: Path, keep_going: bool = False
) -> TestPairs | None:
    """Opens `data.pairs`; None where there is nothing of the usual name.

    Args:
      data: config.data.
      root: the data's folder.
      keep_going: whether pairs that do not hold two pictures are listed in
        `left_out`, as long as there are others.

    Raises:
      UserError: a pair lacks a picture or is there twice, or the sample
        submission has other pairs.
    """
    if not data.pairs:
        return None
    where = root / data.pairs
    left_out: list[LeftOut] = []
    if where.is_dir():
        folder = where
        ids, firsts, seconds, left_out = _read_folders(where, keep_going)
    elif where.is_file():
        folder = root
        ids, firsts, seconds = _read_table(where, root)
    elif data.pairs == USUAL_FOLDER:
        return None
    else:
        raise UserError(
            f"{where} does not exist; set --config.data.pairs to the folder "
            "with a folder of two pictures for each pair, to a csv with "
            "pair_id,first,second, or leave it empty to predict nothing"
        )
    listing.refuse_case_doubles(ids, f"pairs of {where}")
    names = list(
        dict.fromkeys(
            name for pair in zip(firsts, seconds, strict=True) for name in pair
        )
    )
    row_of = {name: row for row, name in enumerate(names)}
    pairs = PairList(
        np.array(ids),
        np.array([row_of[name] for name in firsts], np.int32),
        np.array([row_of[name] for name in seconds], np.int32),
    )
    examples = FileExamples(
        np.array(names), np.full(len(names), -1, np.int32), str(folder), names
    )
    sample = None
    if not any(file.problem == "half pair" for file in left_out):
        sample = _sample(data, root, pairs.ids, where)
    return TestPairs(examples, pairs, sample, left_out)


def _read_folders(
    where: Path, keep_going: bool
) -> tuple[list[str], list[str], list[str], list[LeftOut]]:
    """The pairs in folders: ids, first and second pictures, other files."""
    folder = listing.Folder(where, "data.pairs")
    images = folder.image_names()
    listing.check_readable_names(where, images)
    held: dict[str, list[str]] = {}
    for name, entry in sorted(listing.entries(where).items()):
        if listing.is_folder(entry) and not listing.is_litter(name):
            held[name] = []
    loose = []
    for name in images:
        pair = name.partition("/")[0]
        if "/" in name:
            held[pair].append(name)
        else:
            loose.append(LeftOut("test", str(where / name), "no pair"))
    if not held:
        raise UserError(
            f"{where} has no folder of a pair; put the two pictures of each "
            "into a folder that is called like its id, or set "
            "--config.data.pairs"
        )
    left_out = folder.left_out("test", images)
    odd = [pair for pair, names in held.items() if len(names) != 2]
    if odd and keep_going and len(odd) < len(held):
        left_out += [
            LeftOut(
                "test",
                str(where / pair),
                "half pair",
                f"{len(held.pop(pair))} pictures",
            )
            for pair in odd
        ]
    elif odd:
        pair, count = odd[0], len(held[odd[0]])
        undecodable = [
            file.path
            for file in left_out
            if file.problem == "no decoder"
            and (where / pair) in Path(file.path).parents
        ]
        but = f" beside {undecodable[0]}" if undecodable else ""
        raise UserError(
            f"{len(odd):,} of {len(held):,} pairs in {where} do not have two "
            f"pictures (for one, {where / pair} has {count}{but}); each needs "
            "just two, saved as JPEG or PNG"
        )
    ids = list(held)
    firsts, seconds = zip(*held.values(), strict=True)
    return ids, list(firsts), list(seconds), [*left_out, *loose]


def _read_table(
    where: Path, root: Path
) -> tuple[list[str], list[str], list[str]]:
    """The pairs in the rows of a csv."""
    flag = "--config.data.pairs"
    table = csv_table.read_csv(where, flag)
    ids = table.column("pair_id", flag)
    counts = collections.Counter(ids)
    twice = [pair for pair, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"{where} has {len(twice):,} pair ids more than once (for one, "
            f"'{twice[0]}'); keep one row per pair"
        )
    firsts, seconds = table.column("first", flag), table.column("second", flag)
    for pair, *names in zip(ids, firsts, seconds, strict=True):
        for name in names:
            if not pair or (problem := csv_table.id_problem(name)):
                what = f"'{name}' {problem}" if pair else "an id is empty"
                raise UserError(
                    f"{where}, pair '{pair}': {what}; correct it or remove "
                    "the row"
                )
    listing.check_files(root, [*firsts, *seconds], where, "pairs")
    return list(ids), list(firsts), list(seconds)


def _sample(data: Any, root: Path, ids: np.ndarray, where: Path) -> str | None:
    """The sample submission, checked against the pairs."""
    if not data.sample_submission:
        return None
    path = root / data.sample_submission
    if not path.is_file():
        if data.sample_submission != USUAL_SAMPLE:
            raise UserError(
                f"data.sample_submission {path} does not exist; correct "
                "--config.data.sample_submission, or leave it empty to write "
                "every pair"
            )
        return None
    sample = submission_file.read_sample(
        path,
        (),
        data.submission_id_column,
        data.target_column,
        submission_file.OF_TRAINING,
        expected_ids=ids,
    )
    submission_file.check_pairs(sample, ids, str(where))
    return str(path)
