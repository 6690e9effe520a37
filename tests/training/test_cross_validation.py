"""Joining the logits of k folds, on files made by hand."""

import dataclasses
from pathlib import Path

import masked_photos
import numpy as np
import pytest

from configs import loading
from core.errors import UserError
from run_folder import artifacts
from run_folder.layout import logits_path
from run_folder.predictions import Logits, read_logits, write_logits
from training import cross_validation
from training.cli import Arguments

FOLDS, ROWS, CLASSES, TEST_ROWS = 3, 12, 4, 5
LABELS = np.arange(ROWS) % CLASSES
OF_ROW = np.arange(ROWS) % FOLDS


def arguments_in(folder: Path) -> Arguments:
    config = loading.load("configs/tinyvit.py:demo")
    config.data.folds = FOLDS
    return Arguments("configs/tinyvit.py:demo", config, folder, export=False)


def logits_of(fold: int, split: str) -> Logits:
    rng = np.random.default_rng([fold, split == "test"])
    if split == "val":
        rows = np.flatnonzero(np.equal(OF_ROW, fold))
        labels, names = LABELS[rows], [f"row{row:02}" for row in rows]
    else:
        labels = np.full(TEST_ROWS, -1)
        names = [f"test{row}" for row in range(TEST_ROWS)]
    return Logits(
        ids=np.array(names),
        logits=rng.normal(size=(len(names), CLASSES)).astype(np.float32),
        labels=labels.astype(np.int32),
        classes=np.array(list("abcd")),
        fold=np.full(len(names), fold if split == "val" else -1, np.int32),
        metadata={
            "model": "tinyvit_demo",
            "seed": 42,
            "config_hash": f"hash{fold}",
            "folds_hash": "same",
            "val_fold": fold,
            "tta_views": ["center"],
        },
    )


@pytest.fixture
def whole(tmp_path):
    """A finished run over three folds, not yet joined."""
    for fold in range(FOLDS):
        for split in ("val", "test"):
            path = logits_path(tmp_path / f"fold-{fold}", split)
            write_logits(path, logits_of(fold, split))
    (tmp_path / "fold-0" / "metrics.jsonl").touch()
    return tmp_path


def replace(workdir, fold, split, **fields):
    found = logits_of(fold, split)
    metadata = {**found.metadata, **fields.pop("metadata", {})}
    path = logits_path(workdir / f"fold-{fold}", split)
    write_logits(path, dataclasses.replace(found, metadata=metadata, **fields))


def test_every_row_comes_from_the_model_that_did_not_see_it(whole):
    message = cross_validation.join(arguments_in(whole))
    joined = read_logits(logits_path(whole, "val"))
    assert sorted(joined.ids) == [f"row{row:02}" for row in range(ROWS)]
    for fold in range(FOLDS):
        part = logits_of(fold, "val")
        at = [list(joined.ids).index(name) for name in part.ids]
        np.testing.assert_array_equal(joined.logits[at], part.logits)
        np.testing.assert_array_equal(joined.labels[at], part.labels)
        assert set(joined.fold[at]) == {fold}
    assert "val_fold" not in joined.metadata
    assert joined.metadata["fold_runs"] == ["fold-0", "fold-1", "fold-2"]
    assert f"over {ROWS} rows" in message
    assert artifacts.is_complete(whole)


def test_the_test_rows_are_averaged_over_the_models(whole):
    cross_validation.join(arguments_in(whole))
    joined = read_logits(logits_path(whole, "test"))
    parts = [logits_of(fold, "test").logits for fold in range(FOLDS)]
    np.testing.assert_allclose(joined.logits, np.mean(parts, 0), rtol=1e-6)
    assert set(joined.fold) == {-1}


def test_there_need_not_be_test_rows(whole):
    for fold in range(FOLDS):
        logits_path(whole / f"fold-{fold}", "test").unlink()
    cross_validation.join(arguments_in(whole))
    assert not logits_path(whole, "test").exists()


def test_a_row_held_out_twice_is_an_error_and_writes_nothing(whole):
    ids = logits_of(1, "val").ids.copy()
    ids[0] = logits_of(0, "val").ids[0]
    replace(whole, 1, "val", ids=ids)
    with pytest.raises(RuntimeError, match="two folds"):
        cross_validation.join(arguments_in(whole))
    assert not (whole / "logits").exists()


@pytest.mark.parametrize(
    ("split", "fields"),
    [
        ("val", {"metadata": {"model": "miniconvnext"}}),
        ("val", {"metadata": {"folds_hash": "another"}}),
        ("val", {"metadata": {"tta_views": ["crop"]}}),
        ("val", {"classes": np.array(list("abce"))}),
        ("test", {"ids": np.array([f"other{i}" for i in range(TEST_ROWS)])}),
    ],
)
def test_folds_that_do_not_belong_together_are_refused(whole, split, fields):
    replace(whole, 2, split, **fields)
    with pytest.raises(UserError, match=r"fold-2.*fold-0.*different"):
        cross_validation.join(arguments_in(whole))


def test_each_fold_has_its_own_folder_and_all_share_the_folds_file(tmp_path):
    found = list(cross_validation.arguments_of(arguments_in(tmp_path)))
    assert [a.config.data.fold for a in found] == [0, 1, 2]
    assert [a.workdir.name for a in found] == ["fold-0", "fold-1", "fold-2"]
    shared = {a.config.data.folds_file for a in found}
    assert shared == {str(tmp_path / "folds.csv")}


def test_a_folds_file_of_ones_own_stays(tmp_path):
    arguments = arguments_in(tmp_path)
    arguments.config.data.folds_file = "mine.csv"
    found = list(cross_validation.arguments_of(arguments))
    assert {a.config.data.folds_file for a in found} == {"mine.csv"}


def test_a_run_over_one_fold_keeps_its_folder(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="one fold"):
        cross_validation.check(arguments_in(tmp_path))


def test_data_that_say_which_images_validate_have_no_folds(tmp_path):
    """Refused before the first fold has trained, not after."""
    arguments = arguments_in(tmp_path / "run")
    arguments.config.cache_dir = str(tmp_path / "cache")
    arguments.config.data.root = str(masked_photos.write(tmp_path / "data"))
    for source in ("", "masks"):
        arguments.config.data.source = source
        with pytest.raises(UserError) as refused:
            cross_validation.check(arguments)
        assert "--all-folds" in str(refused.value)
        assert "--config.data.val_images= " in str(refused.value)
    arguments.config.data.val_images = ""
    cross_validation.check(arguments)
    assert not (tmp_path / "run").exists()


def test_the_demos_pairs_have_no_folds(tmp_path):
    arguments = arguments_in(tmp_path)
    arguments.config.data.source = "digit_pairs"
    with pytest.raises(UserError, match="but digit_pairs says itself"):
        cross_validation.check(arguments)
