"""Studies that are stopped, killed, failed and resumed: real processes."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import page_reader
import pytest

from core.errors import UserError
from studies import axes, findings, grid, training
from training.config import problems

ROOT = Path(__file__).parents[2]
DEMO = "configs/miniconvnext.py:demo"

PROGRAM = """
import sys
from pathlib import Path
from core import output, signals
output.install()
signals.install()
from studies import __main__ as command, training
training.ROOT = Path(sys.argv[1])
sys.exit(command.main(sys.argv[2:]))
"""


@pytest.fixture
def fake_root(tmp_path):
    """A folder with what `training` starts: child.py, and a fake train.py."""
    root = tmp_path / "root"
    (root / "studies").mkdir(parents=True)
    shutil.copy(ROOT / "studies/child.py", root / "studies/child.py")
    fake = ROOT / "tests/studies/fake_train.py"
    (root / "train.py").write_text(
        f"import runpy\nrunpy.run_path({str(fake)!r}, run_name='__main__')\n"
    )
    return root


def words(workdir, *grids, seeds=2):
    given = [f"--grid={one}" for one in grids]
    return [
        "grid",
        f"--config={DEMO}",
        *given,
        f"--seeds={seeds}",
        f"--workdir={workdir}",
    ]


def start(fake_root, arguments):
    # As a terminal would, also where the tests were started without Ctrl-C.
    return subprocess.Popen(
        [
            *("env", "--default-signal=INT,HUP"),
            *(sys.executable, "-c", PROGRAM, str(fake_root)),
            *arguments,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(fake_root, arguments):
    process = start(fake_root, arguments)
    told, _ = process.communicate(timeout=60)
    return process.returncode, told


def calls(workdir):
    path = workdir / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(path, process):
    for _ in range(300):
        if path.exists() and path.read_text():
            return path.read_text()
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_grid_is_run_once_and_its_effects_are_told(fake_root, tmp_path):
    workdir = tmp_path / "study"
    arguments = words(
        workdir,
        "mixing.prob=0.0,0.5",
        "eval.tta=('center',),('center','crop')",
        seeds=1,
    )
    code, told = run(fake_root, arguments)
    assert code == 0, told
    made = calls(workdir)
    # Two runs, each exported a second time for the other views.
    assert len(made) == 4
    assert sum("--export" in call for call in made) == 2
    assert "run 2 of 2" in told
    with open(workdir / findings.CSV) as file:
        rows = list(csv.DictReader(file))
    whole = {
        (row["axis"], row["level"]): row for row in rows if not row["class"]
    }
    assert set(whole) == {
        ("mixing.prob", "prob=0.5"),
        ("eval.tta", "tta=('center','crop')"),
        ("", "prob=0.0, tta=('center','crop')"),
        ("", "prob=0.5, tta=('center',)"),
        ("", "prob=0.5, tta=('center','crop')"),
    }
    effect = whole["mixing.prob", "prob=0.5"]
    assert float(effect["difference"]) > 0 and effect["seeds"] == "1"
    assert {row["class"] for row in rows} == {"", "a", "b", "c"}
    page = page_reader.read(workdir / findings.PAGE)
    assert "mixing.prob: prob=0.5" in " ".join(page.text.split())
    # Once more: nothing is trained, the same is printed.
    code, again = run(fake_root, arguments)
    assert code == 0 and len(calls(workdir)) == 4
    assert again.splitlines()[-3:] == told.splitlines()[-3:]


def test_a_failed_run_is_told_and_the_others_go_on(fake_root, tmp_path):
    workdir = tmp_path / "study"
    code, told = run(fake_root, words(workdir, "mixing.prob=0.0,0.9,0.5"))
    assert code == 1
    assert told.count("failed: this one fails; choose another") == 2
    assert len(calls(workdir)) == 6
    page = page_reader.read(workdir / findings.PAGE)
    assert "2 results are still missing" in page.text
    assert "prob=0.9, seed 42 failed" in page.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_study_goes_on(
    fake_root, tmp_path, number
):
    workdir = tmp_path / "study"
    arguments = words(workdir, "mixing.prob=0.0,0.8", seeds=1)
    process = start(fake_root, arguments)
    folder = workdir / "runs" / "prob=0.8" / "seed-42"
    pid = int(wait_for(folder / "pid", process))
    process.send_signal(number)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "the same command continues" in told
    assert not is_alive(pid)
    (folder / "waited").touch()
    code, told = run(fake_root, arguments)
    assert code == 0, told
    assert "1 of 2 runs are finished already" in told
    assert len(calls(workdir)) == 3


def test_a_killed_study_takes_its_run_with_it(fake_root, tmp_path):
    workdir = tmp_path / "study"
    arguments = words(workdir, "mixing.prob=0.8,0.0", seeds=1)
    process = start(fake_root, arguments)
    folder = workdir / "runs" / "prob=0.8" / "seed-42"
    pid = int(wait_for(folder / "pid", process))
    process.kill()
    process.wait()
    for _ in range(100):
        if not is_alive(pid):
            break
        time.sleep(0.1)
    assert not is_alive(pid)
    (folder / "waited").touch()
    code, told = run(fake_root, arguments)
    assert code == 0, told


def test_two_studies_share_the_work(fake_root, tmp_path):
    workdir = tmp_path / "study"
    arguments = words(workdir, "mixing.prob=0.0,0.1,0.2,0.3", seeds=1)
    both = [start(fake_root, arguments) for _ in range(2)]
    for process in both:
        told, _ = process.communicate(timeout=60)
        assert process.returncode == 0, told
    assert len(calls(workdir)) == 4


def test_a_busy_run_is_left_to_who_has_it(tmp_path):
    with training.claim(tmp_path / "run") as lock:
        assert lock is not None
        with training.claim(tmp_path / "run") as other:
            assert other is None
    with training.claim(tmp_path / "run") as lock:
        assert lock is not None


def test_results_of_other_fields_are_refused(fake_root, tmp_path):
    workdir = tmp_path / "study"
    arguments = words(workdir, "mixing.prob=0.0,0.5", seeds=1)
    assert run(fake_root, arguments)[0] == 0
    code, told = run(fake_root, [*arguments, "--config.epochs=3"])
    assert code == 2 and "study with other fields" in told
    code, told = run(fake_root, [*arguments, "--config.data.root=elsewhere"])
    assert code == 0, told  # The same data may have moved.


def test_the_folder_of_a_shared_run_names_what_its_cells_share():
    made = axes.make_cells(
        DEMO,
        [],
        [
            axes.parse_grid("eval.tta=('center',),('crop',)"),
            axes.parse_grid("mixing.prob=0.0,0.5"),
        ],
        problems,
    )
    study = grid.Grid(made, [7], Path("study"))
    found = [str(one.folder) for one in study.trainings()]
    assert found == [
        "study/runs/prob=0.0/seed-7",
        "study/runs/prob=0.5/seed-7",
    ]


def test_trainings_of_one_axis_have_folders_of_their_own():
    views = ("('center',)", "('crop',)")
    levels = [
        axes.Level(f"{rate} {view}", {"mixing.prob": rate, "eval.tta": view})
        for rate in ("0.0", "0.5")
        for view in views
    ]
    made = axes.make_cells(DEMO, [], [axes.Axis("way", levels)], problems)
    found = grid.Grid(made, [7], Path("study")).trainings()
    assert [len(one.cells) for one in found] == [2, 2]
    assert len({one.folder for one in found}) == 2


def test_exports_that_nobody_scores_are_not_compared():
    axis = axes.parse_grid("eval.tta=('center',),('crop',)")
    made = axes.make_cells(DEMO, [], [axis], problems)
    grid.Grid(made, [7], Path("study")).check()
    for cell in made:
        cell.config.task = "verify"
    with pytest.raises(UserError, match="differ only in what"):
        grid.Grid(made, [7], Path("study")).check()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grid"], "--workdir"),
        (["grid", "--workdir=x"], "--config is missing"),
        (["grid", "--workdir=x", f"--config={DEMO}"], "nothing to compare"),
        (["gird"], "choose one of grid"),
        (
            [
                "grid",
                "--workdir=gs://b/x",
                f"--config={DEMO}",
                "--grid=seed=1,2",
            ],
            "bucket",
        ),
        (
            [*words("x", "mixing.prob=0.0,0.5"), "--sedes=3"],
            "did you mean --seeds",
        ),
        ([*words("x", "mixing.prob=0.0,0.5", seeds=0)], "1 or more"),
        (
            [*words("nowhere", "mixing.prob=0.0,0.5"), "--report"],
            "no run of .* is finished",
        ),
    ],
)
def test_mistakes_are_one_sentence(arguments, said, capsys):
    from studies.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.count("\n") == 1
    assert re.search(said, told), told


def test_help_names_every_command(capsys):
    from studies.__main__ import COMMANDS, main

    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in COMMANDS)
    assert os.sep not in told.splitlines()[0]
