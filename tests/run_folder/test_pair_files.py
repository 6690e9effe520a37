"""What a run says of pairs, and the submission made of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from core.errors import UserError
from run_folder import pair_files, submission_file
from run_folder.artifacts import ArtifactWriter, is_complete
from run_folder.pair_files import PairList, PairScores, read_pair_scores

METADATA = dict.fromkeys(pair_files.REQUIRED_METADATA, "x")


def scores_of(count=4, **changes):
    numbers = np.arange(count)
    fields = {
        "ids": np.array([f"{n:03d}" for n in numbers]),
        "first": np.array([f"{n}/0.jpg" for n in numbers]),
        "second": np.array([f"{n}/1.jpg" for n in numbers]),
        "cosine": np.linspace(-1, 1, count),
        "log_real": np.zeros(0, np.float32),
        "similarity": np.linspace(0, 1, count),
        "kind": np.zeros(count, int),
        "identities": np.full((count, 2), "anna"),
        "fold": np.zeros(count, int),
        "metadata": METADATA,
    }
    return PairScores(**{**fields, **changes})


def written(tmp_path, scores):
    writer = ArtifactWriter(tmp_path, 1)
    writer.begin()
    path = writer.pairs("val", scores)
    writer.finish()
    assert is_complete(tmp_path)
    return path


def test_scores_come_back_as_they_were(tmp_path):
    given = scores_of(log_real=-np.arange(4.0))
    read = read_pair_scores(written(tmp_path, given))
    for field in dataclasses.fields(PairScores)[:-1]:
        ours, theirs = getattr(read, field.name), getattr(given, field.name)
        np.testing.assert_array_equal(ours, theirs.astype(ours.dtype))
    assert read.metadata == METADATA
    assert (read.kind.dtype, read.fold.dtype) == (np.int8, np.int32)
    assert read.take(np.array([2, 0])).ids.tolist() == ["002", "000"]
    assert len(read_pair_scores(written(tmp_path, scores_of())).log_real) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cosine": np.array([0, np.nan, 0, 1])}, r"not finite for 1.*'001'"),
        ({"cosine": np.zeros(3)}, r"cosine has shape \[3\]"),
        ({"ids": np.array(["a", "b", "a", "c"])}, r"pair 'a' stands twice"),
        ({"ids": np.arange(4)}, r"ids is int64, not text"),
        ({"kind": np.zeros(4)}, r"kind is float64, not integer"),
        ({"metadata": {}}, r"metadata has no 'model'"),
    ],
)
def test_scores_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        written(tmp_path, scores_of(**changes))


def test_files_that_are_none(tmp_path):
    path = tmp_path / "val.npz"
    with pytest.raises(UserError, match="does not exist"):
        read_pair_scores(path)
    path.write_bytes(b"PK\3\4 nothing")
    with pytest.raises(UserError, match="cannot be read as a pairs file"):
        read_pair_scores(path)
    arrays = scores_of().arrays
    np.savez(path, **{**arrays, "metadata": np.array(json.dumps([1]))})
    with pytest.raises(UserError, match="metadata is not a JSON object"):
        read_pair_scores(path)
    del arrays["fold"]
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="fold"):
        read_pair_scores(path)


def test_the_hash_names_pictures_not_rows():
    pictures = np.array(["a", "b", "c"])
    pairs = PairList(
        np.array(["p", "q"]),
        np.array([0, 1], np.int32),
        np.array([1, 2], np.int32),
        np.array([0, 1], np.int8),
    )
    again = PairList(
        np.array(["q", "p"]),
        np.array([1, 2], np.int32),
        np.array([0, 1], np.int32),
        np.array([1, 0], np.int8),
    )
    assert pairs.hash(pictures) == again.hash(pictures[::-1])
    assert pairs.hash(pictures) != again.hash(pictures)
    other = dataclasses.replace(pairs, kind=np.array([0, 0], np.int8))
    assert pairs.hash(pictures) != other.hash(pictures)
    assert pairs.rows.tolist() == [0, 1, 2]


def test_the_submission_is_the_sample_filled_in(tmp_path):
    path = tmp_path / "sample.csv"
    path.write_text("similarity,note,pair_id\n0,x,00000007\n0,y,00000001\n")
    ids = np.array(["00000001", "00000007"])
    sample = submission_file.read_sample(
        path, (), "pair_id", "similarity", submission_file.OF_TRAINING, ids
    )
    near = np.float32(1 / 3)
    similarity = np.array([near, np.nextafter(near, np.float32(1))])
    writer = ArtifactWriter(tmp_path, 1)
    text = writer.similarities(sample, ids, similarity).read_text()
    lines = text.splitlines()
    assert lines[0] == "similarity,note,pair_id"
    assert [line.split(",")[1:] for line in lines[1:]] == [
        ["x", "00000007"],
        ["y", "00000001"],
    ]
    read = np.array([line.split(",")[0] for line in lines[1:]], np.float32)
    assert read.tolist() == similarity[::-1].tolist()
    with pytest.raises(UserError, match="other pairs"):
        submission_file.with_similarities(sample, ids[:1], similarity[:1])


def test_without_a_sample_all_pairs_are_written():
    ids = np.array(["b", "a"])
    sample = submission_file.plain(ids, "pair_id", "similarity")
    text = submission_file.with_similarities(sample, ids, np.array([0.5, -1]))
    assert text == "pair_id,similarity\nb,0.5\na,-1\n"
