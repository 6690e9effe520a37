from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from input_pipeline import folds
from input_pipeline.sources import open_source, records_writer
from run_folder import folds_file


@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=6),
    k=st.integers(2, 7),
    seed=st.integers(0, 2**31),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_folds_are_stratified_and_blind_to_row_order(counts, k, seed, order):
    labels = np.repeat(np.arange(len(counts)), counts)
    ids = np.array([f"image {row}" for row in range(len(labels))])
    result = folds.make_folds(ids, labels, k, seed)
    for label, count in enumerate(counts):
        sizes = np.bincount(result[labels == label], minlength=k)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.max() < count  # Never a class that one fold lacks.
    whole = np.bincount(result, minlength=k)
    assert whole.max() - whole.min() <= 1

    shuffled = list(range(len(ids)))
    order.shuffle(shuffled)
    again = folds.make_folds(ids[shuffled], labels[shuffled], k, seed)
    np.testing.assert_array_equal(again, result[shuffled])
    assert folds_file.folds_hash(ids[shuffled], again) == folds_file.folds_hash(
        ids, result
    )


def test_fold_zero_of_five_is_the_fifth_that_validates(data_config):
    source = open_source(data_config())
    result = folds.make_folds(
        source.labelled.ids, source.labelled.labels, 5, 42
    )
    assert result.dtype == np.int32
    assert (result == 0).mean() == pytest.approx(0.2, abs=0.001)


def test_another_seed_is_another_division():
    ids = np.array([str(row) for row in range(100)])
    labels = np.arange(100) % 4
    one = folds.make_folds(ids, labels, 5, 1)
    assert (one != folds.make_folds(ids, labels, 5, 2)).mean() > 0.5


def test_a_class_with_one_image_is_named():
    labels = np.array([0, 0, 0, 1, 2, 2])
    with pytest.raises(UserError, match=r"class 'wolf' has 1 image.*add"):
        folds.make_folds(
            np.arange(6).astype(str), labels, 2, 0, ("cat", "wolf", "dog")
        )


def test_one_fold_is_no_split():
    with pytest.raises(UserError, match=r"at least 2.*--config\.data\.folds"):
        folds.make_folds(np.array(["a", "b"]), np.array([0, 0]), 1, 0)


@pytest.fixture
def source(competition, data_config):
    return open_source(data_config(root=str(competition)))


def make_file(source, path):
    made = folds.folds_for(source, 3, 42, path)
    assert not path.exists(), "asking must not write"
    folds_file.write_folds(path, source.labelled.ids, made, 42)
    return made


def test_folds_are_made_once_and_then_read(source, tmp_path):
    path = tmp_path / "run" / "folds.csv"
    made = make_file(source, path)
    # Another seed, but the file counts.
    np.testing.assert_array_equal(folds.folds_for(source, 3, 7, path), made)
    assert not list(path.parent.glob("*.part"))


def test_a_folds_file_written_by_hand_is_used(source, tmp_path):
    path = tmp_path / "folds.csv"
    ids = source.labelled.ids.tolist()
    rows = [f"{image_id},{n % 2}" for n, image_id in enumerate(ids)]
    path.write_text("\ufeffid,fold\r\n" + "\r\n".join(reversed(rows)))
    np.testing.assert_array_equal(
        folds.folds_for(source, 2, 42, path), np.arange(12) % 2
    )


@pytest.mark.parametrize("call", ["{}", "{}.0", "fold_{}", "fold-{} "])
@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 2, 3), (9, 10, 11)])
@pytest.mark.parametrize("columns", ["{id},{fold}", "x,3,{fold},{id}"])
def test_folds_of_other_tools_are_taken_in_their_order(
    source, tmp_path, call, numbers, columns
):
    path = tmp_path / "folds.csv"
    header = "img_id,fold" if columns.startswith("{") else ",a,fold,img_id"
    rows = [
        columns.format(id=image_id, fold=call.format(numbers[n % 3]))
        for n, image_id in enumerate(source.labelled.ids)
    ]
    path.write_text("\n".join([header, *rows]))
    notes = []
    found = folds.folds_for(
        source, 3, 42, path, id_column="img_id", note=notes.append
    )
    np.testing.assert_array_equal(found, np.arange(12) % 3)
    theirs = ", ".join(map(str, numbers))
    assert notes == [f"folds {theirs} of the file are 0 to 2"]
    # The advice for another number of folds works.
    with pytest.raises(UserError, match=r"set --config\.data\.folds=3"):
        folds.folds_for(source, 5, 42, path, id_column="img_id")


def test_an_empty_fold_of_ours_keeps_its_number(tmp_path):
    path, ids = tmp_path / "folds.csv", np.array(["a ", "b", "c"])
    folds_file.write_folds(path, ids, np.array([0, 2, 2]), 42)
    found = folds_file.read_folds(path)
    assert found.ids.tolist() == ["a ", "b", "c"]
    assert found.folds.tolist() == [0, 2, 2] and len(found.numbers) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("\n3,", "\nx,"), "hash.*changed"),
        (lambda text: "id,fold\n1,0\n2,1\n", r"id '0' is not in it"),
        (lambda text: "", "has no content"),
        (lambda text: "id,fold\n1,zero\n", "line 2"),
        (lambda text: "id,fold\n1,0\n1,1\n", "id '1' 2 times"),
        (lambda text: "id,fold\n1,0\n2,-1\n", "'-1' for a fold in line 3"),
        (lambda text: "id,fold\n1,train\n", "'train' for a fold in line 2"),
        (lambda text: "id;fold\n1;0\n", "separates its columns by ';'"),
        (lambda text: "id\n1\n", "id,fold"),
    ],
)
def test_a_wrong_folds_file_is_an_error(source, tmp_path, change, message):
    path = tmp_path / "folds.csv"
    make_file(source, path)
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message) as error:
        folds.folds_for(source, 3, 42, path)
    assert str(path) in str(error.value)


def test_a_folds_file_for_more_images_is_an_error(source, tmp_path):
    path = tmp_path / "folds.csv"
    ids = np.append(source.labelled.ids, "stranger")
    folds_file.write_folds(path, ids, np.arange(13) % 3, 42)
    with pytest.raises(UserError, match="'stranger' is only in it"):
        folds.folds_for(source, 3, 42, path)


def test_another_number_of_folds_is_an_error(source, tmp_path):
    path = tmp_path / "folds.csv"
    make_file(source, path)
    with pytest.raises(UserError, match=r"has 3 folds but data\.folds is 4"):
        folds.folds_for(source, 4, 42, path)


@st.composite
def grouped(draw):
    """Labels and groups; a group may hold several classes."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=5, max_size=30))
    labels = draw(
        st.lists(st.integers(0, 3), min_size=sum(sizes), max_size=sum(sizes))
    )
    names = [f"person {number}" for number in range(len(sizes))]
    return np.repeat(names, sizes), np.array(labels)


@given(
    data=grouped(),
    k=st.integers(2, 5),
    seed=st.integers(0, 2**31),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_a_group_is_in_one_fold_whatever_the_row_order(data, k, seed, order):
    groups, labels = data
    ids = np.array([f"image {row}" for row in range(len(labels))])
    result = folds.make_folds(ids, labels, k, seed, groups=groups)
    assert result.dtype == np.int32
    assert set(result) == set(range(k))
    for group in np.unique(groups):
        assert len(set(result[groups == group])) == 1
    # Balanced up to one group for each class and one for the whole.
    sizes = np.bincount(result, minlength=k)
    largest = max(np.unique(groups, return_counts=True)[1])
    classes = len(np.unique(labels))
    assert sizes.max() - sizes.min() <= (classes + 1) * largest

    shuffled = list(range(len(ids)))
    order.shuffle(shuffled)
    again = folds.make_folds(
        ids[shuffled], labels[shuffled], k, seed, groups=groups[shuffled]
    )
    np.testing.assert_array_equal(again, result[shuffled])


def test_groups_are_stratified_as_far_as_they_allow():
    """Sixty people with two to six photos, the classes 4 : 1."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 7, 60)
    groups = np.repeat([f"p{number}" for number in range(60)], sizes)
    labels = np.repeat((np.arange(60) % 5 == 0).astype(int), sizes)
    result = folds.make_folds(groups, labels, 5, 0, groups=groups)
    for label in (0, 1):
        counts = np.bincount(result[labels == label], minlength=5)
        assert counts.max() - counts.min() <= sizes.max()
    other = folds.make_folds(groups, labels, 5, 1, groups=groups)
    assert (other != result).any()


def test_groups_that_are_the_classes_may_have_one_example():
    """Identities, to be told apart by examples of other identities."""
    names = np.array([f"person {number}" for number in range(9)])
    result = folds.make_folds(names, np.arange(9), 3, 0, groups=names)
    np.testing.assert_array_equal(np.bincount(result), [3, 3, 3])


def test_fewer_groups_than_folds_are_refused():
    groups = np.array(["a", "a", "b", "b"])
    with pytest.raises(
        UserError, match=r"2 groups, which cannot fill 3.*--config\.data\.folds"
    ):
        folds.make_folds(
            np.arange(4).astype(str), np.zeros(4), 3, 0, groups=groups
        )


@pytest.fixture
def with_people(competition, data_config):
    """The competition's answers with a column of six people."""
    path = competition / "train_answers.csv"
    header, *lines = path.read_text().splitlines()
    lines = [f"{line},p{row % 6}" for row, line in enumerate(lines)]
    path.write_text("\n".join([f"{header},person", *lines]) + "\n")
    return data_config(root=str(competition), group_column="person")


def test_a_column_of_the_csv_groups_its_rows(with_people, tmp_path):
    source = open_source(with_people)
    assert source.groups.tolist() == [f"p{row % 6}" for row in range(12)]
    found = folds.folds_for(source, 3, 42, tmp_path / "folds.csv")
    np.testing.assert_array_equal(found[:6], found[6:])


def test_records_keep_the_groups(with_people, data_config, tmp_path):
    source = open_source(with_people)
    records_writer.convert(source, str(tmp_path / "records"), 100)
    copy = open_source(
        data_config(source="records", root=str(tmp_path / "records"))
    )
    np.testing.assert_array_equal(copy.groups, source.groups)
    assert copy.test.ids.tolist() == source.test.ids.tolist()


def test_a_group_column_that_is_not_there(with_people, data_config, tmp_path):
    with_people.group_column = "persn"
    with pytest.raises(UserError, match="did you mean 'person'"):
        open_source(with_people)
    with pytest.raises(
        UserError, match="'person', but the source 'digits' has no groups"
    ):
        open_source(data_config(group_column="person"))


def test_a_row_without_a_group_is_named(with_people, competition):
    path = competition / "train_answers.csv"
    path.write_text(path.read_text().replace("\n3,3,p3", "\n3,3,"))
    with pytest.raises(UserError, match=r"no group for id '3' in column"):
        open_source(with_people)


def test_a_file_that_tears_a_group_apart_is_an_error(with_people, tmp_path):
    source = open_source(with_people)
    path = tmp_path / "folds.csv"
    rows = [f"{name},{row % 4 // 2}" for row, name in enumerate(range(12))]
    path.write_text("\n".join(["id,fold", *rows]))
    with pytest.raises(UserError, match="group 'p0' in folds 0 and 1"):
        folds.folds_for(source, 2, 42, path)
