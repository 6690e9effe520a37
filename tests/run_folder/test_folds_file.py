"""The folds file as it is written, read and damaged."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import UserError
from run_folder import folds_file


def test_hash_tells_changes_apart():
    ids = np.array(["a", "b", "c"])
    base = folds_file.folds_hash(ids, np.array([0, 1, 0]))
    assert len(base) == 16
    assert base != folds_file.folds_hash(ids, np.array([0, 1, 1]))
    assert base != folds_file.folds_hash(np.array(["a", "b", "d"]), [0, 1, 0])


def test_file_round_trip_with_awkward_ids(tmp_path):
    ids = np.array(["1", "with, comma", 'a "quote"', "фото", "a\u2028b", "#x"])
    values = np.array([0, 1, 2, 0, 1, 2], np.int32)
    path = tmp_path / "folds.csv"
    folds_file.write_folds(path, ids, values, 42)
    read_ids, read_values, groups, _ = folds_file.read_folds(path)
    np.testing.assert_array_equal(read_ids, ids)
    np.testing.assert_array_equal(read_values, values)
    assert groups is None
    lines = path.read_text().splitlines()
    assert lines[1] == "id,fold" and lines[2] == "1,0"


def test_groups_are_a_third_column(tmp_path):
    ids, values = np.array(["1", "2", "3"]), np.array([0, 1, 0], np.int32)
    groups = np.array(["ann", "bob, jr.", "ann"])
    path = tmp_path / "folds.csv"
    folds_file.write_folds(path, ids, values, 42, groups)
    found = folds_file.read_folds(path)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(found.folds, values)
    np.testing.assert_array_equal(found.groups, groups)
    assert path.read_text().splitlines()[1:3] == ["id,fold,group", "1,0,ann"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,fold,group\n1,0,a\n2,1,a\n", "group 'a' in folds 0 and 1"),
        ("id,fold,group\n1,0,a\n2,1\n", "line 3 has 2 fields"),
        ("id,fold\n1,0,a\n", "line 2 has 3 fields"),
        ("id,group\n1,a\n", "columns id,fold, and perhaps group"),
    ],
)
def test_a_wrong_group_column_is_an_error(tmp_path, text, message):
    path = tmp_path / "folds.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        folds_file.read_folds(path)
