"""Pictures of identities, some forged, and pairs to compare.

root/train/<identity>/<picture>.jpg   or a csv: path,identity[,forged,donor]
root/meta.json                        {"train/<identity>/…jpg": 1 if forged}
root/test/<pair_id>/<two pictures>    or a csv: pair_id,first,second
root/sample_submission.csv            pair_id,similarity
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core import csv_table
from core.errors import UserError
from input_pipeline.sources import forgeries, listing
from input_pipeline.sources import labels as labels_lib
from input_pipeline.sources.base import (
    FileExamples,
    LeftOut,
    Source,
    fingerprint,
)
from input_pipeline.sources.pair_tests import TestPairs, open_test_pairs


class _Pictures(NamedTuple):
    """The pictures to learn from.

    Attributes:
      folder: that `names` are paths in.
      names: of the files.
      identities: of each.
      forged: 0 or 1 of each; None where the files do not say.
      donors: the identity that a forgery took a part from; '' for none.
      sizes: bytes of each file.
      left_out: files beside them.
      notes: how they were understood.
    """

    folder: Path
    names: Sequence[str]
    identities: Sequence[str]
    forged: np.ndarray | None
    donors: Sequence[str]
    sizes: Sequence[int]
    left_out: Sequence[LeftOut]
    notes: Sequence[str]


def open_pairs(data: Any, root: Path, keep_going: bool = False) -> Source:
    """Opens the folder `root`.

    Args:
      data: config.data.
      root: the folder, absolute.
      keep_going: whether pairs that do not hold two pictures are listed in
        `left_out`, as long as there are others.

    Returns:
      The source. Labels are identities, `columns["forged"]` is int32, 0 or 1,
      and `groups` keep identities that share a donor in one fold. `strata`
      is the number of pictures of an identity, in powers of two.

    Raises:
      UserError: the files do not belong together; what is wrong and where.
    """
    if data.group_column:
        raise UserError(
            f"data.group_column is '{data.group_column}', but pairs are "
            "divided by identity and donor; leave it empty"
        )
    where = root / data.identities
    if where.is_file():
        pictures = _read_table(where, root)
    elif where.is_dir():
        pictures = _read_folders(where, root, data)
    else:
        raise UserError(
            f"{where} does not exist; set --config.data.identities to the "
            "folder with one folder of pictures for each identity, or to a csv "
            "with path,identity"
        )
    notes = list(pictures.notes)
    forged = pictures.forged
    if forged is None:
        forged, note = forgeries.read_flags(
            data, root, pictures.folder, pictures.names
        )
        notes += [note] * bool(note)
    elif data.forgeries and (root / data.forgeries).is_file():
        notes.append(
            f"forgeries are those of {where.name}; {data.forgeries} is not read"
        )
    classes, labels = labels_lib.encode(pictures.identities)
    _check_identities(where, classes, labels, forged)
    tests = open_test_pairs(data, root, keep_going)
    sample = data.sample_submission and root / data.sample_submission
    if tests is None and sample and sample.is_file():
        notes.append(
            f"there is {sample.name}, and no pairs to compare "
            "(--config.data.pairs)"
        )
    counts = np.bincount(labels)
    return Source(
        name="pairs",
        labelled=FileExamples(
            np.array(pictures.names),
            labels,
            str(pictures.folder),
            list(pictures.names),
            columns={"forged": forged},
        ),
        test=None if tests is None else tests.examples,
        test_pairs=None if tests is None else tests.pairs,
        classes=classes,
        sample_submission=_sample_path(tests),
        id_column=data.submission_id_column,
        target_column=data.target_column,
        fingerprint=fingerprint(
            pictures.names, 2 * labels + forged, pictures.sizes
        ),
        groups=_groups(pictures.identities, pictures.donors),
        strata=np.frexp(counts)[1][labels].astype(np.int32),
        left_out=[
            *pictures.left_out,
            *(() if tests is None else tests.left_out),
        ],
        notes=[*notes, *_counts(counts, labels, forged)],
    )


def _sample_path(tests: TestPairs | None) -> str | None:
    return None if tests is None else tests.sample


def _read_folders(where: Path, root: Path, data: Any) -> _Pictures:
    """Reads one folder of pictures for each identity."""
    folder = listing.Folder(where, "data.identities")
    images = folder.image_names()
    # The pairs may lie in the same folder.
    pairs = root / data.pairs if data.pairs else None
    if pairs is not None and where in pairs.parents:
        below = f"{pairs.relative_to(where).as_posix()}/"
        images = [name for name in images if not name.startswith(below)]
    names = [name for name in images if "/" in name]
    if not names:
        raise UserError(
            f"{where} has no folder with pictures; put those of each identity "
            "into a folder of its own, or set --config.data.identities"
        )
    listing.check_readable_names(where, names)
    loose = [name for name in images if "/" not in name]
    left_out = [
        *folder.left_out("train", images),
        *(LeftOut("train", str(where / name), "no class") for name in loose),
    ]
    left_out = [
        file
        for file in left_out
        if pairs is None or pairs not in Path(file.path).parents
    ]
    identities = [name.split("/")[0] for name in names]
    notes = []
    deep = sum(name.count("/") > 1 for name in names)
    if deep > len(names) / 2:
        first = next(name for name in names if name.count("/") > 1)
        raise UserError(
            f"{deep:,} of {len(names):,} pictures in {where} lie deeper than "
            f"in a folder of an identity (for one, {first}); set "
            "--config.data.identities to the folder that holds those of the "
            "identities"
        )
    if deep:
        notes.append(f"{deep:,} pictures lie in subfolders and are taken")
    known = set(identities)
    empty = [
        name
        for name, entry in sorted(listing.entries(where).items())
        if listing.is_folder(entry)
        and not listing.is_litter(name)
        and name not in known
        and where / name != pairs
    ]
    if empty:
        notes.append(
            f"{len(empty):,} identity folders hold no picture (first: "
            f"{where / empty[0]})"
        )
    return _Pictures(
        folder=where,
        names=names,
        identities=identities,
        forged=None,
        donors=[""] * len(names),
        sizes=folder.sizes(names),
        left_out=left_out,
        notes=notes,
    )


def _read_table(where: Path, root: Path) -> _Pictures:
    """Reads a csv that names a picture and its identity in each row."""
    flag = "--config.data.identities"
    table = csv_table.read_csv(where, flag)
    names = table.column("path", flag)
    table.check_ids(names, "path")
    identities, note = labels_lib.without_fractions(
        table.column("identity", flag)
    )
    for name, identity in zip(names, identities, strict=True):
        if not identity:
            raise UserError(
                f"{where} has no identity for '{name}'; fill it in or remove "
                "the row"
            )
    labels_lib.refuse_doubts(
        identities, f"{where}, column 'identity',", "", frozenset()
    )
    forged = None
    if "forged" in table.header:
        flags = table.columns[table.header.index("forged")]
        forged = forgeries.flags_of_column(where, names, flags)
    donors: Sequence[str] = [""] * len(names)
    if "donor" in table.header:
        donors, _ = labels_lib.without_fractions(
            table.columns[table.header.index("donor")]
        )
        # A donor may be named by a picture of theirs.
        whose = dict(zip(names, identities, strict=True))
        donors = [
            "" if donor in labels_lib.MISSING else whose.get(donor, donor)
            for donor in donors
        ]
    listing.check_files(root, names, where)
    return _Pictures(
        folder=root,
        names=names,
        identities=identities,
        forged=forged,
        donors=donors,
        sizes=[(root / name).stat().st_size for name in names],
        left_out=[],
        notes=[note] * bool(note),
    )


def _check_identities(
    where: Path,
    classes: Sequence[str],
    labels: np.ndarray,
    forged: np.ndarray,
) -> None:
    """Refuses identities that no pair can be learnt from."""
    listing.refuse_case_doubles(classes, f"identities of {where}")
    if len(classes) < 2:
        raise UserError(
            f"{where} has one identity, '{classes[0]}', and there is nothing "
            "to tell apart; add pictures of others, each in a folder of its own"
        )
    real = np.bincount(labels[forged == 0], minlength=len(classes))
    if real.max() < 2:
        raise UserError(
            f"none of the {len(classes)} identities in {where} has two real "
            "pictures, so there is no pair of one person to learn from; add "
            "pictures, or correct --config.data.forgeries"
        )


def _groups(identities: Sequence[str], donors: Sequence[str]) -> np.ndarray:
    """The first of the identities that donors join, for each row."""
    parent = {name: name for name in (*identities, *donors)}

    def root_of(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for identity, donor in zip(identities, donors, strict=True):
        if donor:
            one, other = sorted((root_of(identity), root_of(donor)))
            parent[other] = one
    return np.array([root_of(identity) for identity in identities])


def _counts(
    counts: np.ndarray, labels: np.ndarray, forged: np.ndarray
) -> Iterable[str]:
    """Sentences on how many pictures there are of an identity."""
    real = np.bincount(labels[forged == 0], minlength=len(counts))
    few = collections.Counter(np.minimum(real, 2).tolist())
    yield (
        f"{forged.sum():,} of {len(labels):,} pictures are forged; "
        f"{few[2]:,} identities have two real pictures or more, {few[1]:,} "
        f"one, {few[0]:,} none"
    )
