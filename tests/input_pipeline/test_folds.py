from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from input_pipeline import folds
from input_pipeline.sources import open_source


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
    assert folds.folds_hash(ids[shuffled], again) == folds.folds_hash(
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


def test_hash_tells_changes_apart():
    ids = np.array(["a", "b", "c"])
    base = folds.folds_hash(ids, np.array([0, 1, 0]))
    assert len(base) == 16
    assert base != folds.folds_hash(ids, np.array([0, 1, 1]))
    assert base != folds.folds_hash(np.array(["a", "b", "d"]), [0, 1, 0])


def test_file_round_trip_with_awkward_ids(tmp_path):
    ids = np.array(["1", "with, comma", 'a "quote"', "фото", "a\u2028b", "#x"])
    values = np.array([0, 1, 2, 0, 1, 2], np.int32)
    path = tmp_path / "folds.csv"
    folds.write_folds(path, ids, values, 42)
    read_ids, read_values = folds.read_folds(path)
    np.testing.assert_array_equal(read_ids, ids)
    np.testing.assert_array_equal(read_values, values)
    lines = path.read_text().splitlines()
    assert lines[1] == "id,fold" and lines[2] == "1,0"


@pytest.fixture
def source(competition, data_config):
    return open_source(data_config(root=str(competition)))


def make_file(source, path):
    made = folds.folds_for(source, 3, 42, path)
    assert not path.exists(), "asking must not write"
    folds.write_folds(path, source.labelled.ids, made, 42)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("\n3,", "\nx,"), "hash.*changed"),
        (lambda text: "id,fold\n1,0\n2,1\n", r"id '0' is not in it"),
        (lambda text: "", "id,fold"),
        (lambda text: "id,fold\n1,zero\n", "line 2"),
        (lambda text: "id,fold\n1,0\n1,1\n", "twice"),
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
    folds.write_folds(path, ids, np.arange(13) % 3, 42)
    with pytest.raises(UserError, match="'stranger' is only in it"):
        folds.folds_for(source, 3, 42, path)


def test_another_number_of_folds_is_an_error(source, tmp_path):
    path = tmp_path / "folds.csv"
    make_file(source, path)
    with pytest.raises(UserError, match=r"has 3 folds but data\.folds is 4"):
        folds.folds_for(source, 4, 42, path)
