"""Commands end as they should wherever their output goes.

What a failed write means is in core/output.py; here are whole commands, with
file names that are not UTF-8.
"""

import contextlib
import fcntl
import os
import re
import shutil
import struct
import subprocess
import termios
import time

import pytest
from commands import ROOT, SHORT, command, environment, write_competition
from in_process import TINY
from made_up_runs import made_up, write_run

# Lines of sh in which "$@" is the command.
NOBODY_READS = '"$@" 2>&1 | true; exit ${PIPESTATUS[0]}'
ONE_LINE = '"$@" | head -n 1; exit ${PIPESTATUS[0]}'
FULL = '"$@" > /dev/full 2>&1'
CLOSED = '"$@" <&- >&- 2>&-'
ASCII = 'PYTHONIOENCODING=ascii COLUMNS=40 "$@"'
C_LOCALE = 'LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"'
EVERYWHERE = (NOBODY_READS, ONE_LINE, FULL, CLOSED, ASCII, C_LOCALE)


def run(line, *words):
    done = subprocess.run(
        ["bash", "-c", line, "sh", *command(*map(str, words))],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=200,
        check=False,
    )
    said = done.stdout + done.stderr
    for sign in (b"Traceback", b"Error:", b"Exception ignored"):
        assert sign not in said, said.decode("utf-8", "backslashreplace")
    return done


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The competition's layout, in a folder and with a photo not in UTF-8."""
    root = tmp_path_factory.mktemp("data") / os.fsdecode(b"caf\xe9")
    write_competition(root)
    photo = root / "img_test/900.jpg"
    shutil.copy(photo, root / os.fsdecode(b"caf\xe9.jpg"))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was trained while nobody read what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    done = run(NOBODY_READS, "train.py", *TINY, f"--workdir={workdir}")
    assert done.returncode == 0
    assert (workdir / "report.html").exists()
    return workdir


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logits")
    logits, labels = made_up(60, 4, 2, seed=0)
    for model in range(2):
        write_run(folder / f"model-{model}", (logits[model], labels))
    return folder


def stacking(logits, out):
    return (
        *("-m", "stacking", "--runs", f"{logits}/*", "--out", out),
        *("--boosters", "none", "--trials", "5"),
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [(NOBODY_READS, 141), (FULL, 2), (ASCII, 0)],
)
def test_predictions_end_with_who_reads_them(trained, photos, line, code):
    done = run(line, "predict.py", "--run", trained, photos, photos, photos)
    assert done.returncode == code
    if code == 0:
        assert b"caf\xe9.jpg" in done.stdout


@pytest.mark.parametrize("line", [NOBODY_READS, C_LOCALE])
def test_files_are_written_anyway(photos, logits, tmp_path, line):
    config = f"--config={ROOT}/configs/miniconvnext.py:demo"
    data = (config, f"--config.data.root={photos}")
    table = tmp_path / os.fsdecode(b"audit\xe9.csv")
    (photos / "img_test/900.jpg").write_bytes(b"")
    done = run(line, "-m", "input_pipeline", "audit", *data, f"--out={table}")
    assert done.returncode == 1  # What the audit found, and nothing else.
    assert b"caf\xe9/img_test/900.jpg" in table.read_bytes()
    out = tmp_path / os.fsdecode(b"stack\xe9")
    assert run(line, *stacking(logits, out)).returncode == 0
    assert (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("line", EVERYWHERE)
def test_every_command_everywhere(trained, photos, logits, tmp_path, line):
    config = f"--config={ROOT}/configs/miniconvnext.py:demo"
    data = (config, f"--config.data.root={photos}")
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    pipeline = ("-m", "input_pipeline")
    shutil.copy(photos / "img_test/901.jpg", photos / "img_test/900.jpg")
    done = {
        name: run(line, *words).returncode
        for name, words in {
            "train": ("train.py", *TINY, f"--workdir={tmp_path / 'run'}"),
            "plan": (
                "train.py",
                *data,
                "--plan",
                f"--workdir={tmp_path / 'plan'}",
            ),
            "odd run": ("train.py", *data, "--plan", f"--workdir={odd}-plan"),
            "mistake": ("train.py", f"--config={odd}.py"),
            "audit": (*pipeline, "audit", *data, f"--out={odd}.csv"),
            "draw": (*pipeline, *data, f"--out={odd}.png", "--batches=0"),
            "convert": (*pipeline, "convert", *data, f"--out={odd}-records"),
            "stack": stacking(logits, f"{odd}-stack"),
        }.items()
    }
    # Neither Orbax nor ArrayRecord takes such a name.
    refused = dict.fromkeys(("mistake", "odd run", "convert"), 2)
    assert done == dict.fromkeys(done, 0) | refused
    codes = {NOBODY_READS: (141,), ONE_LINE: (0, 141), FULL: (2,), CLOSED: (2,)}
    models = run(line, "-m", "jax_models", "resnet_demo").returncode
    assert models in codes.get(line, (0,))


# ---- Terminals ---------------------------------------------------------------


def _without_width():
    """The environment without COLUMNS, which pytest-xdist sets."""
    found = environment()
    found.pop("COLUMNS", None)
    return found


@contextlib.contextmanager
def terminal(words, columns, **settings):
    """Starts a command in a terminal of its own; yields it and our end."""
    mine, theirs = os.openpty()
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)

    def own_session():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        ["env", "--default-signal=INT,HUP", *map(str, words)],
        cwd=ROOT,
        env=_without_width() | {"TERM": "xterm", "NO_COLOR": "1", **settings},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=own_session,
    )
    os.close(theirs)
    try:
        yield process, mine
    finally:
        with contextlib.suppress(OSError):
            os.close(mine)
        process.kill()
        process.wait()


def read_to_the_end(terminal):
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end was closed.
        while part := os.read(terminal, 4096):
            said += part
    return said


def test_forty_columns_of_latin_1_hold_whole_numbers(logits, tmp_path):
    words = command(*stacking(logits, tmp_path / "stack"))
    settings = {"PYTHONIOENCODING": "latin-1"}
    with terminal(words, 40, **settings) as (process, mine):
        said = read_to_the_end(mine)
        assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode("latin-1"))
    table = [line for line in text.splitlines() if "|" in line]
    assert len([line for line in table if re.search(r" 0\.\d{4}\|", line)]) == 6
    assert max(map(len, table)) <= 40
    assert "\\u" not in text


def test_a_training_whose_terminal_is_closed_saves_and_stops(tmp_path):
    workdir = tmp_path / "run"
    words = command("train.py", f"--workdir={workdir}", *SHORT)
    metrics = workdir / "metrics.jsonl"
    with terminal(words, 80) as (process, mine):
        os.set_blocking(mine, False)
        until = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size):
            with contextlib.suppress(BlockingIOError):
                os.read(mine, 4096)  # Else the terminal is full in the end.
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        os.close(mine)  # SIGHUP, and every further print fails.
        assert process.wait(timeout=30) == 129
    assert [path.name for path in (workdir / "checkpoints").iterdir()]
