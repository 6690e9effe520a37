"""Full and read-only disks: one sentence, and what was saved is intact."""

import shutil
import time

import pytest
from commands import ROOT, assert_same_run, run
from in_process import TINY, training
from small_disk import limit_file_size, small_disk

import reports
from run_folder import folds_file, layout
from run_folder.predictions import read_logits, write_logits
from stacking import __main__ as stacking
from stacking import pipeline
from training.checkpointing import manager
from training.loop import recorder
from training.tasks import classify


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run whose disk had room."""
    workdir = tmp_path_factory.mktemp("roomy") / "run"
    assert training(workdir) == 0
    return workdir


def contents(folder):
    """{path: bytes} of what is saved in a run folder; the log may lose its
    unsaved end."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("metrics.jsonl", "telemetry.jsonl", ".lock")
        and ".orbax-checkpoint-tmp" not in str(path)
    }


def steps_on_disk(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def temporary_files(workdir):
    """But for arrays that threads were still writing at the end."""
    return [*workdir.rglob("*.part")]


def log_can_take_ten_bytes_more(workdir):
    while any((workdir / "checkpoints").glob("*-tmp")):
        time.sleep(0.01)  # The limit would meet the checkpoint as well.
    # A tmpfs gives out whole pages, so that a line always finds room.
    limit_file_size((workdir / "metrics.jsonl").stat().st_size + 10)


# Where the disk fills up, how many calls pass before, what the error names.
MOMENTS = [
    (layout, "write_text", 0, "config.json"),
    (folds_file, "write_folds", 0, "folds.csv"),
    (manager.CheckpointManager, "save", 0, "checkpoint"),
    (recorder.Recorder, "evaluation", 1, "metrics.jsonl"),
    (manager.CheckpointManager, "save", 2, "checkpoint"),
    (classify.Classification, "export", 0, "val.npz"),
    (reports, "run_report", 0, "report.html"),
]


def test_after_a_full_disk_the_same_command_resumes(
    disk, whole, monkeypatch, capsys
):
    workdir = disk.folder / "run"

    def fill(culprit):
        if culprit == "metrics.jsonl":
            log_can_take_ten_bytes_more(workdir)
        else:
            disk.fill()

    for owner, name, passes, culprit in MOMENTS:
        kept = []
        real, left = getattr(owner, name), [passes]

        def filling(
            *args, real=real, left=left, kept=kept, culprit=culprit, **named
        ):
            if not left[0]:
                if culprit == "checkpoint":
                    args[0].wait()  # For the one that is being written.
                kept.append(contents(workdir))
                fill(culprit)
            left[0] -= 1
            return real(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, filling)
            code = training(workdir)
        disk.free()
        limit_file_size(None)
        output = capsys.readouterr()
        assert code == 2, (culprit, output)
        assert len(kept) == 1
        message = output.err.strip()
        assert message.count("\n") == 0 and culprit in message, output.err
        assert str(workdir) in message and "free some space" in message
        after = contents(workdir)
        assert {path: after.get(path) for path in kept[0]} == kept[0], culprit
        assert not temporary_files(workdir)
        if (workdir / "metrics.jsonl").exists():
            assert (workdir / "metrics.jsonl").read_bytes()[-1:] in (b"\n", b"")
    assert training(workdir) == 0
    assert_same_run(workdir, whole)
    assert steps_on_disk(workdir) == steps_on_disk(whole)


@pytest.mark.slow
def test_a_process_whose_checkpoint_does_not_fit_ends_in_one_sentence(
    disk, whole, capsys
):
    """In a process of its own, for what threads print and how it ends."""
    workdir = disk.folder / "run"
    one = next((whole / "checkpoints").iterdir())
    size = sum(p.stat().st_size for p in one.rglob("*") if p.is_file())
    largest = max(p.stat().st_size for p in one.rglob("*") if p.is_file())
    many = type(disk).__name__ == "SmallDisk"
    # Room for the first checkpoint, and for half of the second.
    disk.fill(leaving=int(1.5 * size) if many else largest - 1)
    process = run("train.py", f"--workdir={workdir}", *TINY)
    disk.free()
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert "error: cannot write a checkpoint" in process.stderr
    assert steps_on_disk(workdir) == ([4] if many else [])
    assert not temporary_files(workdir)
    assert training(workdir) == 0
    assert_same_run(workdir, whole)


def test_a_disk_that_turned_read_only_is_one_sentence(disk, whole, capsys):
    workdir = disk.folder / "run"
    shutil.copytree(whole, workdir)
    before = contents(workdir)
    disk.protect()
    try:
        for folder in (workdir, disk.folder / "new"):
            assert training(folder, "--export") == 2
            message = capsys.readouterr().err
            assert message.count("\n") == 1 and str(folder) in message
        for arguments in ([], ["--plan"]):
            assert training(disk.folder / "new", *arguments) == 2
            assert capsys.readouterr().err.count("\n") == 1
        assert contents(workdir) == before
    finally:
        disk.unprotect()
    assert training(workdir, "--export") == 0


def test_a_stack_that_cannot_be_written_leaves_the_one_before(
    disk, whole, capsys, monkeypatch
):
    out = disk.folder / "stack"
    words = ["--runs", str(whole), "--out", str(out)]
    words += ["--boosters=none", "--trials=5", "--sample-submission=none"]

    def stack(*more):
        try:
            stacking.main([*words, *more])
        except SystemExit as end:
            return end.code
        return 0

    assert stack() == 0, capsys.readouterr().err
    before = contents(out)
    capsys.readouterr()
    for owner, name in (
        (pipeline.serialization, "save"),
        (pipeline, "ensemble_report"),
    ):
        real = getattr(owner, name)

        def filling(*args, real=real, **named):
            disk.fill()
            return real(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, filling)
            assert stack("--seed=1") == 2
        disk.free()
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: cannot write") and str(out) in error
        assert contents(out) == before
    assert stack("--seed=1") == 0
    assert contents(out) != before


def test_logits_on_a_full_disk_leave_the_earlier_ones(disk, whole):
    path = disk.folder / "val.npz"
    shutil.copy(whole / "logits/val.npz", path)
    before = path.read_bytes()
    disk.fill(leaving=0)
    with pytest.raises(Exception, match=r"cannot write .*val\.npz"):
        write_logits(path, read_logits(path))
    assert path.read_bytes() == before
