"""The submission has the sample's columns and rows, or does not exist."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import UserError
from run_folder import submission_file
from stacking.submission import make_rows, write_submission

CLASSES = np.array(["3", "18", "cat, black"])
IDS = np.array(["b", "a", "c"])
PREDICTED = np.array([2, 0, 1])
PROBABILITIES = np.array(
    [[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.25, 0.5, 0.25]], np.float32
)


def sample(tmp_path, text):
    path = tmp_path / "sample.csv"
    path.write_text(text, encoding="utf-8")
    return submission_file.read_sample(
        path,
        CLASSES.tolist(),
        "id",
        "label",
        submission_file.OF_STACKING,
        expected_ids=IDS,
    )


def rows(template, kind=None):
    return make_rows(template, IDS, CLASSES, PREDICTED, PROBABILITIES, kind)


def test_columns_rows_and_labels_are_the_samples(tmp_path):
    template = sample(tmp_path, "\ufeffimage,answer\r\nc,0\r\na,0\r\nb,0\r\n")
    path = tmp_path / "out" / "submission.csv"
    write_submission(path, rows(template))
    assert path.read_text() == 'image,answer\nc,18\na,3\nb,"cat, black"\n'


def test_without_a_sample_the_test_order_is_kept():
    template = submission_file.plain(IDS, "id", "label")
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
    ],
)
def test_rows_or_columns_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        rows(sample(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        ",id,label\n7,c,0\n8,a,0\n9,b,0\n",  # What pandas calls an index.
        "Unnamed: 0,id,label\n7,c,0\n8,a,0\n9,b,0\n",
        "label,usage,id\n0,x,c\n0,y,a\n0,x,b\n",
        "id , label\n c , 0\na ,0\n b,0\n",
        "row,image,label\n7,c,0\n8,a,0\n9,b,0\n",  # By its values.
        "id,image,label\n7,c,0\n8,a,0\n9,b,0\n",  # Not every `id` is one.
    ],
)
def test_what_is_no_answer_stays_as_it_is(tmp_path, text):
    lines = [
        [field.strip() for field in line.split(",")]
        for line in text.splitlines()
    ]
    answer = lines[0].index("label")
    for line, name in zip(lines[1:], ("18", "3", "cat, black"), strict=True):
        line[answer] = name
    assert rows(sample(tmp_path, text)) == lines


def test_a_sample_with_a_column_per_class_gets_probabilities(tmp_path):
    template = sample(tmp_path, ',id,18,3,"cat, black"\n0,a,,,\n1,b,,,\n2,c,,,')
    assert rows(template)[:2] == [
        ["", "id", "18", "3", "cat, black"],
        ["0", "a", "0.1", "0.8", "0.1"],
    ]
    with pytest.raises(UserError, match="leave out --format"):
        rows(template, "labels")


def test_columns_that_do_not_fit(tmp_path):
    text = "id,3,18\na,0,0\nb,0,0\nc,0,0\n"
    with pytest.raises(UserError, match="'cat, black' is in only one") as error:
        sample(tmp_path, text)
    # Both remedies work.
    assert "call the column of the answers 'label'" in str(error.value)
    assert rows(sample(tmp_path, text.replace("18", "label")))[1][2] == "3"
    assert "--sample-submission=none" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,x\na,0\na,0\n", "has id 'a' 2 times"),
        ("id,x\n", "has no rows under its header"),
        ("", "has no content"),
        ("id\na\n", "neither a column 'label' nor one column per class"),
        ("id;x\na;0\n", "separates its columns by ';'; save it with commas"),
    ],
)
def test_samples_that_are_none(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        sample(tmp_path, text)


def test_missing_sample(tmp_path):
    with pytest.raises(
        UserError, match=r"no.csv does not exist; set --sample-submission"
    ):
        submission_file.read_sample(
            tmp_path / "no.csv",
            CLASSES.tolist(),
            "id",
            "label",
            submission_file.OF_STACKING,
        )


def test_sample_that_is_no_text(tmp_path):
    path = tmp_path / "sample.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(UserError, match="is not UTF-8 text"):
        submission_file.read_sample(
            path, ["a"], "id", "label", submission_file.OF_STACKING
        )
