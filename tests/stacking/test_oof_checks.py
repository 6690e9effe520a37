"""Validation rows are checked against the folds file beside them."""

from __future__ import annotations

import dataclasses

import numpy as np
from made_up_runs import made_up, refused, table_of, write_folds_of, write_run

from run_folder.predictions import read_logits, write_logits


def joined_run(tmp_path, keep=slice(None), fold_of_first=0, **metadata):
    """A run over all folds that is not quite right."""
    logits, labels = made_up(30, 4, 1, seed=0)
    test, _ = made_up(20, 4, 3, seed=1)
    write_folds_of(tmp_path / "a", 0, logits[0], labels, test, join=True)
    fold = np.arange(30) % 3
    fold[0] = fold_of_first
    write_run(
        tmp_path / "a",
        (logits[0, keep], labels[keep]),
        ids=np.array([f"{i:03}" for i in range(30)])[keep],
        fold=fold[keep],
        model="vit",
        **metadata,
    )


def test_rows_of_the_folds_file_that_are_never_predicted(tmp_path):
    joined_run(tmp_path, keep=slice(0, 25))
    refused(
        tmp_path,
        r"/a never predicts ids '025', '026', '027' and 2 more, which "
        r".*/a/folds\.csv lists as held out",
    )


def test_groups_of_the_folds_file_are_those_of_the_rows(tmp_path):
    joined_run(tmp_path)
    assert table_of(tmp_path).val.groups is None
    rows = [f"{i:03},{i % 3},{i % 6}" for i in range(30)]
    text = "\n".join(["id,fold,group", *rows])
    (tmp_path / "a" / "folds.csv").write_text(text)
    for runs in (tmp_path, tmp_path / "a"):  # Joined, and the folds inside.
        groups = table_of(runs).val.groups
        assert groups.tolist() == [str(i % 6) for i in range(30)]


def test_row_that_the_folds_file_puts_elsewhere(tmp_path):
    joined_run(tmp_path, fold_of_first=2)
    refused(
        tmp_path,
        r"folds\.csv has another fold than logits/val\.npz, or none, for id "
        "'000', so the model may have been trained on it",
    )


def test_folds_file_that_is_none(tmp_path):
    joined_run(tmp_path)
    (tmp_path / "a" / "folds.csv").write_text("id,fold\n000,first\n")
    refused(tmp_path, r"folds file .*/a/folds\.csv has 'first' for a fold")
    (tmp_path / "a" / "folds.csv").write_bytes(b"\xff\xfe")
    refused(tmp_path, r"/a/folds\.csv is not UTF-8 text")


def test_folds_that_the_file_and_the_logits_number_from_one(tmp_path):
    joined_run(tmp_path)
    path = tmp_path / "a" / "logits" / "val.npz"
    logits = read_logits(path)
    write_logits(path, dataclasses.replace(logits, fold=logits.fold + 1))
    rows = zip(logits.ids, logits.fold + 1, strict=True)
    lines = [f"{name},{fold}" for name, fold in rows]
    (tmp_path / "a" / "folds.csv").write_text("\n".join(["id,fold", *lines]))
    assert len(table_of(tmp_path, ("val",)).val.ids) == 30


def test_val_fold_minus_one_is_all_folds_and_text_is_refused(tmp_path):
    joined_run(tmp_path, val_fold=-1)
    assert len(table_of(tmp_path, ("val",)).val.ids) == 30
    joined_run(tmp_path, val_fold="0")
    refused(tmp_path, "has val_fold '0'; write the number of the fold")
