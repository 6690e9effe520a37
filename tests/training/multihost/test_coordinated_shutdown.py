"""Several processes end together, with one sentence and exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import TransientError, UserError
from tests.several_processes import communicate_all, free_address
from training.checkpointing.reader import CorruptCheckpointError
from training.multihost import comm

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ended():
    """By which process failed: (exit code, output, errors) of both."""
    started = {}
    for failing in ("0", "1", "bug", "closing", "saving", "apart"):
        meeting = free_address()
        started[failing] = [
            subprocess.Popen(
                [
                    sys.executable,
                    HERE / "fail_as_two.py",
                    meeting,
                    own,
                    failing,
                ],
                env={**os.environ, "PYTHONPATH": str(HERE.parents[2])},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for own in ("0", "1")
        ]
    return {
        failing: communicate_all(pair, 100) for failing, pair in started.items()
    }


@pytest.mark.parametrize("failing", ["0", "1"])
def test_an_error_in_one_process_shuts_down_all_with_its_sentence(
    ended, failing
):
    for _, errors, code in ended[failing]:
        assert code == 75, errors
        messages = [x for x in errors.splitlines() if x.startswith("error:")]
        assert messages == [f"error: process {failing} cannot go on"]
        assert "Traceback" not in errors


def test_an_error_is_told_although_a_checkpoint_waits_for_ever(ended):
    for _, errors, code in ended["saving"]:
        assert code == 75, errors
        assert "error: process 1 cannot go on" in errors


def test_folders_that_are_not_shared_are_refused(ended):
    for _, errors, code in ended["apart"]:
        assert code == 2, errors
        assert "is not the folder that process 0 writes to" in errors
        assert "Traceback" not in errors


def test_an_error_while_closing_shuts_down_all(ended):
    for _, errors, code in ended["closing"]:
        assert code == 75, errors
        assert "error: process 0 cannot go on" in errors
        assert "Traceback" not in errors


def test_a_bug_in_one_process_shuts_down_all_and_has_a_traceback(ended):
    (output, errors, code), (_, of_bug, code_of_bug) = ended["bug"]
    assert (code, code_of_bug) == (2, 1)
    assert "process 1 failed (ZeroDivisionError)" in errors
    assert "Traceback" not in errors and not output
    assert "ZeroDivisionError: one over nothing" in of_bug


def test_a_decoded_error_has_the_same_class_and_attributes():
    damaged = CorruptCheckpointError(HERE, 3, "it is gone")
    again = comm.decode_error(comm.encode_error(damaged))
    assert type(again) is CorruptCheckpointError and str(again) == str(damaged)
    assert (again.step, again.reason) == (3, "it is gone")
    again = comm.decode_error(comm.encode_error(TransientError("later")))
    assert isinstance(again, UserError) and again.exit_code == 75


def test_data_that_differs_between_hosts_is_refused(monkeypatch):
    hosts = ['["one", {"rows": 1, "folds": 2}]', '["two", {"rows": 1}]']
    monkeypatch.setattr(comm, "all_gather_text", lambda text: hosts)
    with pytest.raises(UserError, match=r"folds of the data.* 1 on two"):
        comm.check_all_equal({"rows": 1, "folds": 2})
    monkeypatch.setattr(comm, "all_gather_text", lambda text: [hosts[0]] * 2)
    comm.check_all_equal({"rows": 1, "folds": 2})
