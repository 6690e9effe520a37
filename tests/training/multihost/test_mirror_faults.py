"""A run folder in a bucket: kills, full disks, a lost owner, a bad line.

On files made by hand, as test_mirror.py.
"""

import errno
import json
import os
import shutil
import tempfile

import pytest
from machines import Died, Dying, another, content, silenced

from core import atomic_files
from core.errors import TransientError, UserError
from training.multihost import lease
from training.multihost.mirror import MANIFEST
from training.multihost.object_store import Bucket, Disk


def test_killed_at_any_moment_of_an_upload_the_bucket_has_a_whole_run(
    one, monkeypatch
):
    with one.begins():
        one.train(3)
    before, survived = content(one.local), 0
    shutil.copytree(one.bucket.parent, one.bucket.parent.with_name("backup"))
    outcomes = []
    while not survived:
        shutil.rmtree(one.bucket.parent)
        shutil.copytree(
            one.bucket.parent.with_name("backup"), one.bucket.parent
        )
        shutil.rmtree(one.local)
        kept = one.begins().__enter__()
        one.train(7)
        after = content(one.local)
        silenced(kept)
        with monkeypatch.context() as patch:
            Dying(patch, len(outcomes))
            try:
                kept.send()
                survived = True
            except Died:
                pass
        shutil.rmtree(one.local)
        with one.begins():
            found = content(one.local)
            # The log alone may be ahead: a run that goes on cuts it.
            log = found.pop("metrics.jsonl")
            assert log in (b"3\n", b"3\n7\n")
            outcomes.append(one.newest())
            expected = dict(before if one.newest() == 3 else after)
            del expected["metrics.jsonl"]
            assert found == expected
            assert one.newest() == 3 or log == b"3\n7\n"
        # Nothing of what was half sent or half deleted remains.
        assert content(one.bucket) == content(one.local)
    # Old ones first, and then new ones; of each there were several.
    assert outcomes == sorted(outcomes)
    assert outcomes.count(3) > 3 and outcomes.count(7) > 1


@pytest.mark.parametrize("lost", [False, True])
def test_the_next_start_uploads_after_a_failed_upload(
    one, monkeypatch, capsys, lost
):
    def refuse(*arguments, **named):
        raise PermissionError("no right to write")

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError) as refused,
        one.begins(),
    ):
        one.train(3)
        patch.setattr(Disk, "put_file", refuse)
        if lost:  # An error of the training is not hidden by this one.
            raise UserError("the training diverged")
    said = str(refused.value)
    if lost:
        assert said == "the training diverged"
        said = capsys.readouterr().err
    assert "no right to write" in said and str(one.local) in said
    assert one.newest() == 3 and not (one.bucket / "checkpoints").exists()
    with one.begins():
        pass
    assert content(one.bucket) == content(one.local)


def cut_off(one):
    """A run that has sent step 3 and gives no sign of life any more."""
    kept = one.begins().__enter__()
    one.train(3)
    kept.send()
    silenced(kept)
    return kept


def test_a_run_whose_lease_expired_is_replaced_and_stops(one, capsys):
    kept = cut_off(one)
    other = another(one)
    with other.begins():
        assert "was not left in order by a run on" in capsys.readouterr().out
        # It was not dead, only slow.
        with pytest.raises(lease.LeaseLostError, match="was taken over by"):
            kept.send()
        other.train(7)
    assert content(other.bucket) == content(other.local)


@pytest.mark.parametrize("idle", [False, True])
def test_a_run_that_lost_its_lease_stops_although_the_other_has_finished(
    one, idle
):
    kept = cut_off(one)
    other = another(one)
    with other.begins():
        if not idle:
            other.train(7)
    one.train(9)
    with pytest.raises(
        lease.LeaseLostError, match="another run, which has ended"
    ):
        kept.send()
    assert content(other.bucket) == content(other.local)


@pytest.mark.parametrize("late", [False, True])
def test_the_manifest_of_another_run_is_not_overwritten(one, monkeypatch, late):
    """Two took the folder over at once, and the owner wrote its claim last."""
    others = {"run": "r", "sent": "by another", "files": []}
    with pytest.raises(lease.LeaseLostError), one.begins():
        one.train(3)

        def listed_meanwhile(*arguments):
            (one.bucket / MANIFEST).write_text(json.dumps(others))

        if late:
            monkeypatch.setattr(Bucket, "send", listed_meanwhile)
        else:
            listed_meanwhile()
    assert json.loads((one.bucket / MANIFEST).read_text()) == others


def test_a_manifest_whose_response_was_lost_is_recognised(one, monkeypatch):
    with one.begins() as kept:
        one.train(3)
        write = Bucket.write

        def write_and_fail(bucket, name, *arguments, **named):
            write(bucket, name, *arguments, **named)
            if name == MANIFEST:
                raise TransientError("the line is down")

        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "write", write_and_fail)
            with pytest.raises(TransientError):
                kept.send()
        one.train(7)
    assert content(one.bucket) == content(one.local)


@pytest.mark.parametrize("damaged", [(7,), (3, 7)])
def test_a_corrupt_disk_leaves_the_intact_copy_in_the_bucket(one, damaged):
    with one.begins():
        one.train(7)
        shutil.copytree(
            one.local / "checkpoints/7", one.local / "checkpoints/3"
        )
    good = content(one.local)
    with (
        pytest.raises(TransientError, match="later checkpoint"),
        one.begins() as at,
    ):
        for step in damaged:
            aside = one.local / f"checkpoints-damaged/{step}"
            aside.parent.mkdir(exist_ok=True)
            (one.local / f"checkpoints/{step}").rename(aside)
        with pytest.raises(TransientError, match="run the same command again"):
            at.send()
        one.train(5)  # It catches up.
    assert content(one.bucket) == good
    with one.begins() as kept:
        assert content(one.local) == good
        assert (one.local / f"checkpoints-damaged/{damaged[0]}").exists()
        shutil.rmtree(one.local / "checkpoints")
        one.train(7, "again")
        kept.send()
        assert content(one.bucket) == content(one.local)


@pytest.mark.parametrize("here", ["nothing", "older", "damaged"])
def test_killed_at_any_moment_of_a_download_it_downloads_again(
    one, monkeypatch, here
):
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 1000.0)
    with one.begins():
        one.train(3)
    other = another(one)
    with other.begins():
        other.train(7)
    if here == "nothing":
        shutil.rmtree(one.local)
    if here == "damaged":  # Since it was sent.
        with one.begins():
            pass
        shutil.rmtree(one.local / "checkpoints/7")
    strangers = ("checkpoints-damaged/1/arrays", "inside/metrics.jsonl")
    for name in strangers:
        (one.local / name).parent.mkdir(parents=True)
        (one.local / name).write_text(name)
    backup = one.local.with_name("backup")
    shutil.copytree(one.local, backup)
    operations = [(os, "unlink"), (os, "rename"), (os, "replace")]
    kills, survived = 0, False
    while not survived:
        shutil.rmtree(one.local)
        shutil.copytree(backup, one.local)
        with monkeypatch.context() as patch:
            Dying(patch, kills, [*operations, (Disk, "get_file")])
            try:
                kept = one.begins().__enter__()
                survived = True
            except Died:
                kills += 1
        if survived:
            kept.__exit__(None, None, None)
        else:
            with one.begins():
                pass
        assert content(one.local) == content(other.local)
        for name in strangers:
            assert (one.local / name).read_text() == name
        assert not one.local.with_name(".run.arriving").exists()
    assert kills > 8


def test_older_checkpoints_of_every_fold_are_replaced(one):
    def train(machine, step):
        for fold in range(2):
            folder = machine.local / f"fold-{fold}/checkpoints"
            shutil.rmtree(folder, ignore_errors=True)
            (folder / f"{step}").mkdir(parents=True)
            (folder / f"{step}/arrays").write_text(f"{step}")

    with one.begins():
        train(one, 3)
    other = another(one)
    with other.begins():
        train(other, 7)
    with one.begins():
        assert one.newest() == 14
    found = sorted(p.name for p in one.local.glob("fold-*/checkpoints/*"))
    assert found == ["7", "7"]


def test_a_full_disk_is_not_reported_as_an_error_of_the_bucket(
    one, monkeypatch
):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    with one.begins() as kept:
        one.train(3)
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "mkdtemp", full)
            with pytest.raises(UserError, match=r"^cannot write .*/one/run:"):
                kept.send()
    other, temporary_path = another(one), []

    def full_on_the_way(disk, path, target, *arguments, **named):
        temporary_path.extend(
            atomic_files._temporaries
        )  # To be removed at SIGTERM, too.
        full()

    monkeypatch.setattr(Disk, "get_file", full_on_the_way)
    with pytest.raises(UserError, match=r"^cannot write .*: No space"):
        other.begins().__enter__()
    arriving = other.local.with_name(".run.arriving")
    assert arriving in temporary_path and not arriving.exists()


class HttpError(Exception):
    def __init__(self, code):
        super().__init__(f"{code}")
        self.code = code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionResetError("the line is down"), 75),
        (TimeoutError(), 75),
        (HttpError(503), 75),
        (HttpError(401), 2),
        (OSError("Forbidden: run"), 2),
        (PermissionError("no right to write"), 2),
    ],
)
def test_transient_errors_have_their_own_exit_code(
    one, monkeypatch, error, code
):
    def fail(*arguments, **named):
        raise error

    monkeypatch.setattr(Disk, "cat_file", fail)
    with pytest.raises(UserError, match="cannot be read or written") as refused:
        one.begins().__enter__()
    assert refused.value.exit_code == code


@pytest.mark.parametrize("bug", [TypeError, AttributeError, AssertionError])
def test_a_bug_looks_like_one(one, monkeypatch, bug):
    def fail(*arguments, **named):
        raise bug

    monkeypatch.setattr(Disk, "cat_file", fail)
    with pytest.raises(bug):
        one.begins().__enter__()
