"""Labels that were spoilt on their way are refused, or joined and reported."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_images import encoded, photo

from core.errors import UserError
from input_pipeline.sources import labels, open_source


def write(competition, targets):
    """Gives the twelve rows these labels, in turn."""
    rows = [f"{row},{targets[row % len(targets)]}" for row in range(12)]
    path = competition / "train_answers.csv"
    path.write_text("\n".join(["img_id,target_feature", *rows]) + "\n")


def list_classes(competition, names):
    path = competition / "classes.csv"
    path.write_text("\n".join(["target_feature", *names]) + "\n")


@pytest.fixture
def refused(competition, data_config):
    def check(message):
        with pytest.raises(UserError, match=message) as error:
            open_source(data_config(root=str(competition)))
        assert "\n" not in str(error.value)
        return str(error.value)

    return check


@pytest.mark.parametrize(
    "name", ["nan", "NaN", "NULL", "N/A", "NA", "None", "<NA>", "#N/A", "null"]
)
def test_what_means_no_label_is_no_class(
    competition, data_config, refused, name
):
    write(competition, ["0", "1", name])
    message = refused(
        rf"train_answers\.csv, column 'target_feature', has 4 rows labelled "
        f"'{re.escape(name)}'"
    )
    # Each remedy works. Either that name is a class,
    assert str(competition / "classes.csv") in message
    list_classes(competition, ["0", "1", name])
    source = open_source(data_config(root=str(competition)))
    assert name in source.classes
    # or its rows are removed.
    (competition / "classes.csv").unlink()
    path = competition / "train_answers.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(x for x in lines if not x.endswith(name)))
    source = open_source(data_config(root=str(competition)))
    assert source.classes == ("0", "1")
    assert source.describe()["left out"].startswith("4 × no row")


def test_every_spelling_of_no_label_is_named(competition, refused):
    write(competition, ["0", "1", "nan", "NULL"])
    refused("has 6 rows labelled 'NULL', 'nan', which")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "01"),
        ("01", "1.0"),
        ("+1", "1"),
        ("Dog", "dog"),
        ("old dog", "old  dog"),
        ("old dog", "olddog"),
        ("dog", "dog\u200b"),
        ("Ⅳ", "IV"),
        ("\u00e9", "e\u0301"),
        ("1.5", "1.50"),
    ],
)
def test_labels_that_differ_in_spelling_alone(
    competition, data_config, refused, one, other
):
    write(competition, [one, other, "x"])
    message = refused(r"differ only in how they are written; write one of")
    assert f"'{one}'" in message and f"'{other}'" in message
    list_classes(competition, [one, other, "x"])
    source = open_source(data_config(root=str(competition)))
    assert len(source.classes) == 3
    (competition / "classes.csv").unlink()
    write(competition, [one, one, "x"])
    assert len(open_source(data_config(root=str(competition))).classes) == 2


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (["2.0", "10.0", "0.0"], ("0", "2", "10")),
        (["2.0", "2", "10."], ("2", "10")),
        (["-1.0", "1"], ("-1", "1")),
    ],
)
def test_integers_that_were_floats_are_integers(
    competition, data_config, targets, classes
):
    write(competition, targets)
    source = open_source(data_config(root=str(competition)))
    assert source.classes == classes
    assert re.match(r"'\S+\.0?' is read as '", source.describe()["notes"])
    # A list of the classes may have either form.
    list_classes(competition, [f"{name}.0" for name in classes])
    assert open_source(data_config(root=str(competition))).classes == classes


@pytest.mark.parametrize(
    "targets", [["0.5", "1.0"], ["1.0", "v2"], ["01", "2"]]
)
def test_what_may_be_meant_is_left_alone(competition, data_config, targets):
    write(competition, targets)
    source = open_source(data_config(root=str(competition)))
    assert set(source.classes) == set(targets)
    assert source.describe() == {}


def test_class_folders_may_be_called_anything(tmp_path, data_config):
    """Somebody made them; what is odd is reported."""
    for name in ("nan", "A", "a", "3.0"):
        for row in range(2):
            path = tmp_path / name / f"{row}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded(photo(seed=row)))
    source = open_source(data_config(root=str(tmp_path)))
    assert source.classes == ("3.0", "A", "a", "nan")
    assert source.describe()["notes"] == (
        "class 'nan' is how a missing value is written; classes 'A' and 'a' "
        "differ only in how they are written"
    )


def test_groups_have_the_same_rules(competition, data_config):
    path = competition / "train_answers.csv"
    header, *lines = path.read_text().splitlines()
    people = ["1", "1.0", "2", "3"]
    rows = [f"{line},{people[row % 4]}" for row, line in enumerate(lines)]
    path.write_text("\n".join([f"{header},person", *rows]))
    data = data_config(root=str(competition), group_column="person")
    assert set(open_source(data).groups.tolist()) == {"1", "2", "3"}
    path.write_text(path.read_text().replace(",2\n", ",nan\n"))
    with pytest.raises(UserError, match=r"no group for id '2' .* only 'nan'"):
        open_source(data)


@given(st.lists(st.integers(-999, 999), min_size=2, max_size=30))
def test_a_float_column_and_back_changes_no_label(numbers):
    plain = labels.encode([str(number) for number in numbers])
    read, _ = labels.without_fractions([str(float(n)) for n in numbers])
    again = labels.encode(read)
    assert again[0] == plain[0]
    np.testing.assert_array_equal(again[1], plain[1])


@given(st.integers(0, 10**40), st.integers(0, 10**40), st.integers(0, 4))
def test_numbers_are_alike_only_where_they_are_equal(one, other, zeros):
    found = list(labels.doubts([str(one), "0" * zeros + str(other)]))
    same = one == other and zeros > 0
    assert bool(found) == same
