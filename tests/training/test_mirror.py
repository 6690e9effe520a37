"""A run folder and its copy in a bucket, on files made by hand.

The bucket is a local folder, reached by fsspec as any other would be.
"""

import json
import shutil
import threading

import fsspec
import pytest

from errors import UserError
from training import mirror, ownership
from training.bucket import Bucket, Disk, local_copy
from training.mirror import SENT, Mirror

OWNER = ownership.OWNER


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(ownership, "SECONDS_OF_SILENCE", 0.05)
    monkeypatch.setattr(ownership, "SECONDS_BETWEEN_SIGNS", 0.01)
    monkeypatch.setattr(mirror, "SECONDS_BETWEEN_TRIALS", 0.01)
    # Sending is asked for, unless a test wants it done in the background.
    monkeypatch.setattr(mirror, "SECONDS_BETWEEN_LOOKS", 1000.0)


class Machine:
    """A machine that trains in the bucket, and may be lost."""

    def __init__(self, folder, name="one"):
        self.bucket = folder / "bucket/run"
        self.local = folder / name / "run"

    def begins(self):
        return Mirror(f"file://{self.bucket}", self.local)

    def train(self, step, mark=""):
        """Leaves what a checkpoint at `step` leaves, and only that."""
        for old in (self.local / "checkpoints").glob("*"):
            shutil.rmtree(old)
        folder = self.local / f"checkpoints/{step}"
        folder.mkdir(parents=True)
        (folder / "arrays").write_text(f"arrays {step}{mark}")
        (folder / "state/d").mkdir(parents=True)
        (folder / "state/d/.part").write_text(f"more {step}{mark}")
        with open(self.local / "metrics.jsonl", "a") as log:
            log.write(f"{step}\n")

    def newest(self):
        return mirror.progress(mirror.files_of(self.local))

    def arrays(self):
        return (self.local / f"checkpoints/{self.newest()}/arrays").read_text()


def content(folder):
    """{path: bytes} of the run's files in a folder."""
    names = mirror.files_of(folder).keys() - {SENT, OWNER}
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture
def one(tmp_path):
    return Machine(tmp_path)


def another(one):
    return Machine(one.local.parents[1], "other")


def test_all_of_a_run_is_there_at_the_end_and_nothing_else(one):
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
    assert {SENT, ".part"} < found
    assert not found & {OWNER, ".lock", "3", "9-tmp", "checkpoints-damaged"}


def test_a_new_machine_goes_on_with_what_is_there(one):
    with one.begins():
        one.train(3)
    other = another(one)
    with other.begins():
        assert content(other.local) == content(one.local)
        other.train(7)
    # The machine before it has the older copy now.
    with one.begins():
        assert one.newest() == 7


def test_a_checkpoint_is_sent_while_training_goes_on(one, monkeypatch):
    monkeypatch.setattr(mirror, "SECONDS_BETWEEN_LOOKS", 0.01)
    sent, remember = threading.Event(), Mirror._remember
    with one.begins():
        monkeypatch.setattr(
            Mirror, "_remember", lambda *a: (remember(*a), sent.set())
        )
        one.train(3)
        assert sent.wait(10)
        assert "checkpoints/3/arrays" in content(one.bucket)


def silenced(kept):
    """What SIGKILL leaves of a run."""
    kept._over.set()
    kept._owner._over.set()
    kept._owner._thread.join()
    kept._lock.close()


class Died(BaseException):
    """Stands for SIGKILL."""


class Dying:
    """Lets a number of operations on the bucket through; the next one dies."""

    def __init__(self, monkeypatch, operations):
        self.left = operations
        for name in ("put_file", "pipe_file", "rm"):
            original = getattr(Disk, name)
            monkeypatch.setattr(Disk, name, self._counted(original))

    def _counted(self, original):
        def counted(*arguments, **named):
            if not self.left:
                raise Died
            self.left -= 1
            return original(*arguments, **named)

        return counted


def test_killed_at_any_moment_of_sending_it_leaves_a_whole_run(
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
def test_what_could_not_be_sent_is_sent_by_the_next_start(
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


def test_of_two_copies_of_a_run_the_newer_one_goes_on(one):
    with one.begins():
        one.train(3)
    other = another(one)
    with other.begins():
        other.train(7, "other")
    one.train(5, "not sent")
    with one.begins():
        assert one.arrays() == "arrays 7other"
    with other.begins():
        other.train(8, "other")
    one.train(9, "not sent")
    with one.begins():
        assert one.arrays() == "arrays 9not sent"
    assert content(one.bucket) == content(one.local)


def test_of_two_copies_equally_far_the_sent_one_goes_on(one):
    with one.begins():
        one.train(3)
    other = another(one)
    with other.begins():
        other.train(7, "other")
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
    # The refused one is not the owner.
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


def test_two_machines_do_not_train_in_one_bucket(one):
    other = another(one)
    with one.begins():
        one.train(3)
        with pytest.raises(UserError, match="is training in file://"):
            other.begins().__enter__()
        with pytest.raises(UserError, match="another process is training"):
            one.begins().__enter__()
    with other.begins():
        assert other.newest() == 3


def test_who_is_silent_is_replaced_and_notices(one, capsys):
    kept = one.begins().__enter__()
    one.train(3)
    kept.send()
    silenced(kept)
    other = another(one)
    with other.begins():
        assert "was not left in order by a run on" in capsys.readouterr().out
        # It was not dead, only slow.
        with pytest.raises(ownership.Lost, match="was taken over by"):
            kept.send()
        other.train(7)
    assert content(other.bucket) == content(other.local)


def test_after_a_kill_the_same_machine_need_not_wait(one, monkeypatch):
    silenced(one.begins().__enter__())
    monkeypatch.setattr(ownership, "SECONDS_OF_SILENCE", 1000.0)
    with one.begins():
        pass


def test_two_that_begin_at_once_are_told_apart(one, monkeypatch):
    """Both see no owner; the bucket itself lets one of them be new."""
    read = Bucket.read

    def blind(bucket, name):
        return None if name == OWNER else read(bucket, name)

    owner = ownership.Ownership(Bucket(f"file://{one.bucket}"))
    owner.take(ended="")
    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "read", blind)
        with pytest.raises(UserError, match="is training in"):
            another(one).begins().__enter__()
    owner.release()


def test_a_list_that_leads_out_of_the_folder_is_refused(one, tmp_path):
    with one.begins():
        one.train(3)
    listed = json.loads((one.bucket / SENT).read_text())
    listed["files"].append("checkpoints/3/../../../../secret")
    (one.bucket / SENT).write_text(json.dumps(listed))
    with pytest.raises(UserError, match="not what was written there"):
        another(one).begins().__enter__()


def test_runs_beside_this_one_are_fetched_when_it_needs_them(one):
    with one.begins():
        one.train(3)
    local = one.local.parents[1] / "other/student"
    url = f"file://{one.bucket.with_name('student')}"
    mirror.fetch_beside(url, local, ["", "/elsewhere", "unknown", "run"])
    assert content(local.with_name("run")) == content(one.local)
    assert not local.with_name("unknown").exists()


def test_any_file_system_of_fsspec_will_do(one, tmp_path):
    """This one has objects, and no folders."""
    url, other = "memory://bucket/run", another(one)
    with Mirror(url, one.local) as kept:
        one.train(3)
        kept.send()
        one.train(7)
    assert set(Bucket(url).names()) == content(one.local).keys() | {SENT}
    with Mirror(url, other.local):
        assert content(other.local) == content(one.local)


def test_a_missing_driver_is_one_sentence():
    fsspec.register_implementation(
        "driverless", "no_such_module.FileSystem", errtxt="Please install it"
    )
    for url in ("driverless://a/b", "unheard-of://a/b"):
        with pytest.raises(UserError, match="install what is missing"):
            Bucket(url)


def test_where_a_bucket_is_kept():
    found = local_copy("gs://bucket/runs/a", "/cache")
    assert str(found) == "/cache/runs/gs/bucket/runs/a"
    for url in ("gs://bucket", "gs://bucket/../a", "gs://b//a", "x::gs://b/a"):
        with pytest.raises(UserError, match="name a folder in a bucket"):
            local_copy(url, "/cache")
