"""The submission has the sample's columns and rows, or does not exist."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import UserError
from stacking.submission import (
    Template,
    make_rows,
    read_sample,
    write_submission,
)

CLASSES = np.array(["3", "18", "cat, black"])
IDS = np.array(["b", "a", "c"])
PREDICTED = np.array([2, 0, 1])
PROBABILITIES = np.array(
    [[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.25, 0.5, 0.25]], np.float32
)


def sample(tmp_path, text):
    path = tmp_path / "sample.csv"
    path.write_text(text, encoding="utf-8")
    return read_sample(path)


def rows(template, kind="labels"):
    return make_rows(template, IDS, CLASSES, PREDICTED, PROBABILITIES, kind)


def test_columns_rows_and_labels_are_the_samples(tmp_path):
    template = sample(tmp_path, "\ufeffimage,answer\r\nc,0\r\na,0\r\nb,0\r\n")
    path = tmp_path / "out" / "submission.csv"
    write_submission(path, rows(template))
    assert path.read_text() == 'image,answer\nc,18\na,3\nb,"cat, black"\n'


def test_without_a_sample_the_test_order_is_kept():
    template = Template(("id", "label"), IDS, "the test rows")
    assert rows(template) == [
        ["id", "label"],
        ["b", "cat, black"],
        ["a", "3"],
        ["c", "18"],
    ]


def test_probabilities_in_the_samples_columns(tmp_path):
    template = sample(
        tmp_path, 'id,18,"cat, black",3\na,0,0,0\nb,0,0,0\nc,,,\n'
    )
    assert rows(template, "probabilities")[:2] == [
        ["id", "18", "cat, black", "3"],
        ["a", "0.1", "0.1", "0.8"],
    ]


def test_probabilities_without_class_columns_in_the_sample(tmp_path):
    template = sample(tmp_path, "id,answer\nb,0\na,0\nc,0\n")
    assert rows(template, "probabilities")[:2] == [
        ["id", "3", "18", "cat, black"],
        ["b", "0.1", "0.2", "0.7"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,x\na,0\nb,0\nc,0\nd,0\n", "1 rows of .*sample.csv have no .*'d'"),
        ("id,x\na,0\nb,0\n", "1 predicted rows are not in .* id 'c'"),
        ("id,x,y\na,0,0\nb,0,0\nc,0,0\n", "3 columns where labels need two"),
    ],
)
def test_rows_or_columns_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        rows(sample(tmp_path, text))


def test_class_columns_that_do_not_fit(tmp_path):
    template = sample(tmp_path, "id,3,18\na,0,0\nb,0,0\nc,0,0\n")
    with pytest.raises(UserError, match="'cat, black' is in only one"):
        rows(template, "probabilities")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,x\na,0\na,0\n", "names id 'a' twice"),
        ("id,x\n", "needs a header"),
        ("", "needs a header"),
        ("id\na\n", "needs a header"),
    ],
)
def test_samples_that_are_none(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        sample(tmp_path, text)


def test_missing_sample(tmp_path):
    with pytest.raises(UserError, match=r"sample submission .* does not exist"):
        read_sample(tmp_path / "no.csv")


def test_sample_that_is_no_text(tmp_path):
    path = tmp_path / "sample.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(UserError, match="cannot be read"):
        read_sample(path)
