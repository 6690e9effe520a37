"""The logits file: what is written is read, what is wrong is refused."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from core.errors import UserError
from run_folder.predictions import Logits, read_logits, write_logits


@pytest.fixture
def logits():
    return Logits(
        ids=np.array(["a", "b", "c"]),
        logits=np.arange(6, dtype=np.float32).reshape(3, 2),
        labels=np.array([0, 1, -1], np.int32),
        classes=np.array(["7", "11"]),
        fold=np.array([0, 0, -1], np.int32),
        metadata={
            "model": "miniconvnext",
            "config_hash": "c",
            "folds_hash": "f",
            "tta_views": ["center"],
        },
    )


def test_round_trip(tmp_path, logits):
    path = tmp_path / "run" / "logits" / "val.npz"
    write_logits(path, logits)
    read = read_logits(path)
    for name in ("ids", "logits", "labels", "classes", "fold"):
        np.testing.assert_array_equal(
            getattr(read, name), getattr(logits, name)
        )
    assert read.logits.dtype == np.float32
    assert read.labels.dtype == read.fold.dtype == np.int32
    assert read.metadata == logits.metadata
    assert [p.name for p in path.parent.iterdir()] == ["val.npz"]


def test_other_tools_dtypes_are_converted(tmp_path, logits):
    path = tmp_path / "val.npz"
    write_logits(
        path,
        dataclasses.replace(
            logits,
            ids=np.array([10, 20, 30]),
            classes=np.array([7, 11]),
            logits=logits.logits.astype(np.float64),
            labels=logits.labels.astype(np.int64),
        ),
    )
    read = read_logits(path)
    assert list(read.ids) == ["10", "20", "30"]
    assert list(read.classes) == ["7", "11"]
    assert read.logits.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((3,), np.float32)}, "not \\[N, C\\]"),
        ({"ids": np.array(["a", "b"])}, "ids has shape \\[2\\]"),
        ({"classes": np.array(["7"])}, "classes has shape \\[1\\]"),
        ({"ids": np.array(["a", "b", "a"])}, "id 'a' occurs twice"),
        ({"classes": np.array(["7", "7"])}, "class '7' occurs twice"),
        ({"labels": np.array([0, 1, 2])}, "id 'c' has label 2"),
        ({"labels": np.array([0.5, 1, 1])}, "labels are float64"),
        ({"labels": np.array([0, 1, np.nan])}, "-1 is how an unknown one"),
        ({"ids": np.array([{}, "b", "c"], object)}, "no text .object"),
        ({"logits": np.zeros((3, 2), np.int32)}, "not floating point"),
        ({"metadata": {"model": "m"}}, "no 'config_hash'"),
        ({"ids": np.array([0.5, 1, 2])}, "no text .float64"),
        ({"ids": np.array([b"\xff", b"b", b"c"])}, "no text .'utf-8' codec"),
        ({"ids": np.array(["\udcff", "b", "c"])}, "no text .'utf-8' codec"),
        ({"fold": np.array([0, 1, 2**40])}, "fold do not fit into 32 bits"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, logits, change, message):
    path = tmp_path / "val.npz"
    with pytest.raises(UserError, match=message):
        write_logits(path, dataclasses.replace(logits, **change))
    assert not path.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_non_finite_logits_name_the_row(tmp_path, logits, value):
    bad = logits.logits.astype(np.float64)
    bad[1, 0] = value
    with pytest.raises(UserError, match="not finite, the first is id 'b'"):
        write_logits(
            tmp_path / "val.npz", dataclasses.replace(logits, logits=bad)
        )


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"val\.npz does not exist"):
        read_logits(tmp_path / "val.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04half"])
def test_broken_file(tmp_path, content):
    path = tmp_path / "val.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a logits file"):
        read_logits(path)


def test_truncated_file(tmp_path, logits):
    path = tmp_path / "val.npz"
    write_logits(path, logits)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read as a logits file"):
        read_logits(path)


def test_damage_anywhere_is_one_sentence(tmp_path, logits):
    """Flipped bytes are refused or harmless, never a traceback."""
    path = tmp_path / "val.npz"
    rng = np.random.default_rng(0)
    write_logits(path, logits)
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_logits(path)
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 200


def test_one_array_instead_of_an_archive(tmp_path):
    with open(tmp_path / "val.npz", "wb") as file:
        np.save(file, np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match="it is one array, not an archive of"):
        read_logits(tmp_path / "val.npz")


def test_ids_as_bytes_are_text(tmp_path, logits):
    path = tmp_path / "val.npz"
    ids = np.array(["a", "é", "c"])
    write_logits(
        path, dataclasses.replace(logits, ids=np.char.encode(ids, "utf-8"))
    )
    np.testing.assert_array_equal(read_logits(path).ids, ids)


def test_absent_array_is_named(tmp_path):
    path = tmp_path / "val.npz"
    np.savez(path, ids=np.array(["a"]), logits=np.zeros((1, 2), np.float32))
    with pytest.raises(UserError, match="no array 'labels'"):
        read_logits(path)


def test_columns_of_pandas_are_taken_or_the_advice_works(tmp_path, logits):
    path = tmp_path / "val.npz"
    arrays = {
        "ids": logits.ids.astype(object),
        "logits": logits.logits,
        "labels": logits.labels.astype(np.float64),
        "classes": np.array([7.0, 11.0]),
        "fold": logits.fold.astype(np.float64),
        "metadata": logits.metadata,
    }
    followed = []
    for _ in range(3):
        np.savez(path, **arrays)
        try:
            read = read_logits(path)
            break
        except UserError as error:
            advice = re.search(r"; save (.*)", str(error)).group(1)
            name = re.search(r"file: (\w+) was saved", str(error)).group(1)
            known = {**arrays, "json": json}
            arrays[name] = eval(advice, known)
            followed.append(name)
    assert followed == ["ids", "metadata"]
    assert list(read.ids) == list(logits.ids)
    assert list(read.classes) == ["7", "11"]
    assert list(read.labels) == list(logits.labels)
    assert read.labels.dtype == read.fold.dtype == np.int32
    # Written by write_logits, none of it is needed.
    write_logits(path, dataclasses.replace(logits, ids=arrays["ids"]))


def test_pickled_objects_are_never_loaded(tmp_path):
    path = tmp_path / "val.npz"
    np.savez(
        path,
        allow_pickle=True,
        **{
            name: np.array([{}], dtype=object)
            for name in ("ids", "logits", "labels", "classes", "fold")
        },
        metadata=np.array("{}"),
    )
    with pytest.raises(UserError, match="cannot be read as a logits file"):
        read_logits(path)
