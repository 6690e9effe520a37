"""A run folder and its copy in a bucket, on files made by hand.

The bucket is a local folder, reached by fsspec as any other would be. What
goes wrong on the way is in test_mirror_faults.py.
"""

import contextlib
import json
import shutil
import threading

import fsspec
import pytest
from machines import another, content, silenced

from core.errors import UserError
from run_folder import layout
from training.multihost import lease, mirror
from training.multihost.mirror import MANIFEST, Mirror
from training.multihost.object_store import Bucket, local_copy

LEASE_FILE = lease.LEASE_FILE


def test_the_bucket_has_all_files_of_a_run_and_no_others(one):
    with one.begins() as kept:
        one.train(3)
        kept.send()
        one.train(7)
        (one.local / "logits").mkdir()
        (one.local / "logits/val.npz").write_text("logits")
        for stray in (".lock", "checkpoints/9-tmp/a", "checkpoints-damaged/a"):
            (one.local / stray).parent.mkdir(parents=True, exist_ok=True)
            (one.local / stray).write_text("")
    assert content(one.bucket) == content(one.local)
    assert len(content(one.bucket)) == 4
    found = {path.name for path in one.bucket.rglob("*")}
    assert {MANIFEST, ".part"} < found
    assert not found & {
        LEASE_FILE,
        ".lock",
        "3",
        "9-tmp",
        "checkpoints-damaged",
    }


def test_a_new_machine_resumes_from_the_bucket(one):
    with one.begins():
        one.train(3)
    other = another(one)
    with other.begins():
        assert content(other.local) == content(one.local)
        other.train(7)
    # The machine before it has the older copy now.
    with one.begins():
        assert one.newest() == 7


def test_a_checkpoint_is_uploaded_in_the_background(one, monkeypatch):
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.01)
    sent, remember = threading.Event(), Mirror._record_manifest
    with one.begins():
        monkeypatch.setattr(
            Mirror, "_record_manifest", lambda *a: (remember(*a), sent.set())
        )
        one.train(3)
        assert sent.wait(10)
        assert "checkpoints/3/arrays" in content(one.bucket)


def a_copy_ahead(one):
    """Another machine's, at step 7, where this one is at step 3."""
    with one.begins():
        one.train(3)
    other = another(one)
    with other.begins():
        other.train(7, "other")
    return other


def test_the_newer_of_two_copies_wins(one):
    other = a_copy_ahead(one)
    one.train(5, "not sent")
    with one.begins():
        assert one.arrays() == "arrays 7other"
    with other.begins():
        other.train(8, "other")
    one.train(9, "not sent")
    with one.begins():
        assert one.arrays() == "arrays 9not sent"
    assert content(one.bucket) == content(one.local)


def test_the_uploaded_one_of_two_equally_new_copies_wins(one):
    a_copy_ahead(one)
    one.train(7, "not sent")
    with one.begins():
        assert one.arrays() == "arrays 7other"


def test_another_run_is_not_mixed_with_this_one(one):
    with one.begins():
        one.train(3)
    shutil.rmtree(one.bucket)
    other = another(one)
    with other.begins():
        other.train(7)
    with pytest.raises(UserError, match="holds another run than"), one.begins():
        pass
    assert one.newest() == 3
    # The refused one is not the owner any more.
    with other.begins():
        assert other.newest() == 7


def test_a_bucket_that_was_emptied_gets_the_local_run(one, capsys):
    with one.begins():
        one.train(3)
    shutil.rmtree(one.bucket)
    with one.begins():
        assert "is empty; the run here goes on" in capsys.readouterr().out
    assert content(one.bucket) == content(one.local)


def test_files_of_others_are_left_alone(one):
    (one.bucket / "photos").mkdir(parents=True)
    with pytest.raises(UserError, match="holds photos and no run"):
        one.begins().__enter__()
    assert [p.name for p in one.bucket.iterdir()] == ["photos"]


def test_two_machines_do_not_train_in_one_bucket(one, monkeypatch):
    # Time enough for a sign, also where other tests are at work.
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 2.0)
    other = another(one)
    with one.begins():
        one.train(3)
        with pytest.raises(UserError, match="is training in file://"):
            other.begins().__enter__()
        with pytest.raises(UserError, match="another process is training"):
            one.begins().__enter__()
    with other.begins():
        assert other.newest() == 3


def test_after_a_kill_the_same_machine_need_not_wait(one, monkeypatch):
    silenced(one.begins().__enter__())
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 1000.0)
    with one.begins():
        pass


def test_of_simultaneous_starts_one_gets_the_lease(one):
    """All see no owner; the bucket itself lets one of them be new."""
    bucket = Bucket(f"file://{one.bucket}")
    for trial in range(10):
        ready, won = threading.Barrier(4), []

        def begin(name, number, ready=ready, won=won):
            ready.wait()
            with contextlib.suppress(FileExistsError):
                bucket.write(name, {"id": number}, new=True)
                won.append({"id": number})

        threads = [
            threading.Thread(target=begin, args=(f"{trial}.json", number))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [bucket.read(f"{trial}.json")]


def test_a_slightly_later_start_is_refused(one, monkeypatch):
    read = Bucket.read

    def blind(bucket, name):
        return None if name == LEASE_FILE else read(bucket, name)

    owner = lease.Lease(Bucket(f"file://{one.bucket}"))
    owner.acquire(ended="")
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "read", blind)
        with pytest.raises(UserError, match="is training in"):
            another(one).begins().__enter__()
    owner.release()


def test_a_manifest_with_paths_outside_the_folder_is_refused(one, tmp_path):
    with one.begins():
        one.train(3)
    listed = json.loads((one.bucket / MANIFEST).read_text())
    listed["files"].append("checkpoints/3/../../../../secret")
    (one.bucket / MANIFEST).write_text(json.dumps(listed))
    with pytest.raises(UserError, match="not what was written there"):
        another(one).begins().__enter__()


def test_sibling_runs_are_fetched_when_needed(one):
    with one.begins():
        one.train(3)
    local = one.local.parents[1] / "other/student"
    url = f"file://{one.bucket.with_name('student')}"
    names = ["", ".", "..", "/elsewhere", "unknown", "run"]
    mirror.fetch_beside(url, local, names)
    assert content(local.with_name("run")) == content(one.local)
    assert not local.with_name("unknown").exists()


@pytest.mark.parametrize("begun", [False, True])
def test_a_new_run_fetches_a_teacher_that_trained_elsewhere(one, begun):
    with one.begins():
        one.train(3)
    other = another(one)
    with other.begins():
        other.train(7)
    student = one.local.with_name("student")
    if begun:  # It must go on with the weights that it began with.
        (student / "checkpoints/2").mkdir(parents=True)
        (student / "checkpoints/2/arrays").write_text("")
    url = f"file://{one.bucket.with_name('student')}"
    mirror.fetch_beside(url, student, ["run"])
    assert one.newest() == (3 if begun else 7)


def test_of_two_students_one_fetches_and_the_other_waits(
    one, monkeypatch, capsys
):
    with one.begins():
        one.train(3)
    local = one.local.parents[1] / "other/run"
    url = f"file://{one.bucket.with_name('student')}"
    first = layout.lock(local.with_name(".run.lock"), local)

    def first_fetches(seconds):
        first.close()
        mirror.fetch_beside(url, local.with_name("first"), ["run"])

    monkeypatch.setattr(mirror.time, "sleep", first_fetches)
    mirror.fetch_beside(url, local.with_name("second"), ["run"])
    told = capsys.readouterr().out
    assert "waiting for another process" in told
    assert told.count("fetched") == 1
    assert content(local) == content(one.local)


def test_a_teacher_that_trains_here_does_not_block(one, monkeypatch):
    url = f"file://{one.bucket.with_name('student')}"
    with one.begins() as kept:
        one.train(3)
        kept.send()
        one.train(5)
        monkeypatch.setattr(mirror.time, "sleep", None)
        mirror.fetch_beside(url, one.local.with_name("student"), ["run"])


def test_any_fsspec_file_system_works(one, tmp_path):
    """This one has objects, and no folders."""
    url, other = "memory://bucket/run", another(one)
    with Mirror(url, one.local) as kept:
        one.train(3)
        kept.send()
        one.train(7)
    assert set(Bucket(url).names()) == content(one.local).keys() | {MANIFEST}
    with Mirror(url, other.local):
        assert content(other.local) == content(one.local)


def test_a_missing_driver_is_one_sentence():
    fsspec.register_implementation(
        "driverless", "no_such_module.FileSystem", errtxt="Please install it"
    )
    for url in ("driverless://a/b", "unheard-of://a/b"):
        with pytest.raises(UserError, match="install what is missing"):
            Bucket(url)


def test_local_folder_of_a_bucket():
    found = local_copy("gs://bucket/runs/a", "/cache")
    assert str(found) == "/cache/runs/gs/bucket/runs/a"
    for url in ("gs://bucket", "gs://bucket/../a", "gs://b//a", "x::gs://b/a"):
        with pytest.raises(UserError, match="name a folder in a bucket"):
            local_copy(url, "/cache")
