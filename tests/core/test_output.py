"""What commands print, in small processes, wherever it goes."""

import os
import subprocess
import sys

import pytest

from core import atomic_files, output
from core.errors import UserError

BEGIN = (
    "import sys; from core import output; output.install(results={results})\n"
)
# A name that is not UTF-8, our own signs, and text in other scripts.
TEXT = "1 × 2 → 3… caf\udce9.jpg 日本 🦊 \ud800"
PRINT = f"""
for stream in (sys.stdout, sys.stderr):
    print({TEXT!a}, file=stream)
"""


def run(text, results=False, command="", **settings):
    """Runs a script under `command`, a line of sh in which "$@" is it."""
    words = [sys.executable, "-c", BEGIN.format(results=results) + text]
    return subprocess.run(
        ["bash", "-c", command or '"$@"', "sh", *words],
        capture_output=True,
        env=os.environ | settings,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "1 × 2 → 3… caf\udce9.jpg 日本 🦊 \\ud800"),
        ("latin-1", "1 × 2 -> 3... caf\udce9.jpg \\u65e5\\u672c \\U0001f98a"),
        ("ascii", "1 x 2 -> 3... caf\udce9.jpg \\u65e5\\u672c \\U0001f98a"),
        ("cp1252", "1 × 2 -> 3… caf\udce9.jpg \\u65e5\\u672c \\U0001f98a"),
        ("shift_jis", "1 × 2 → 3… caf\udce9.jpg 日本 \\U0001f98a"),
        ("ascii:replace", "1 ? 2 ? 3? caf?.jpg ?? ?"),
    ],
)
def test_text_that_an_encoding_lacks_is_escaped(encoding, printed):
    done = run(PRINT, PYTHONIOENCODING=encoding)
    codec = encoding.partition(":")[0]
    assert done.returncode == 0
    line = printed.encode(codec, "surrogateescape")
    assert done.stdout.startswith(line)
    if ":" not in encoding:  # stderr always escapes.
        assert done.stderr.startswith(line)


@pytest.mark.parametrize(
    "settings",
    [
        {"PYTHONIOENCODING": "utf-16"},
        {"LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_it_prints_in_every_locale(settings):
    done = run(PRINT, **settings)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stdout.replace(b"\0", b"").count(b"\n") == 1


LINES = """
for i in range(20000):
    print("line", i)
print("result", file=open({path!r}, "w"))
"""
BROKEN = {
    "closed pipe": ('"$@" | head -n 1; exit ${PIPESTATUS[0]}', 141, ""),
    "pipe closed at once": ('"$@" | true; exit ${PIPESTATUS[0]}', 141, ""),
    "full disk": ('"$@" > /dev/full', 2, "No space left"),
    "no stdout": ('"$@" >&-', 2, "cannot write to stdout"),
}


@pytest.mark.parametrize("command", BROKEN)
def test_work_goes_on_when_nobody_reads_what_is_printed(tmp_path, command):
    path = tmp_path / "file"
    done = run(LINES.format(path=str(path)), False, BROKEN[command][0])
    assert (done.returncode, done.stderr) == (0, b"")
    assert path.read_text() == "result\n"


@pytest.mark.parametrize("command", BROKEN)
def test_a_command_whose_result_cannot_be_printed_ends(tmp_path, command):
    words, code, reason = BROKEN[command]
    path = tmp_path / "file"
    begin = "from core.errors import exit_on_user_error\n"
    text = "with exit_on_user_error():\n"
    text += LINES.format(path=str(path)).replace("\n", "\n    ")
    done = run(begin + text, True, words)
    assert done.returncode == code
    if not reason:
        assert done.stderr == b""
    else:
        assert done.stderr.startswith(b"error: cannot write to stdout")
        assert reason.encode() in done.stderr
        assert done.stderr.count(b"\n") == 1
    assert not path.exists()


@pytest.mark.parametrize("results", [False, True])
@pytest.mark.parametrize(
    "command", ['"$@" 2>&-', '"$@" 2> /dev/full', '"$@" <&- 2>&-']
)
def test_stderr_holds_no_result(command, results):
    text = "for i in range(9): print(i, file=sys.stderr)\nprint('end')\n"
    done = run(text, results, command)
    assert (done.returncode, done.stdout) == (0, b"end\n")


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    path = tmp_path / "file"
    text = f"""
file = open({str(path)!r}, "w")
print("printed")
print("printed", file=sys.stderr)
import os
os.write(1, b"") if file.fileno() != 1 else None
file.write("written")
sys.exit(file.fileno() < 3)
"""
    done = run(text, False, '"$@" <&- >&- 2>&-')
    assert done.returncode == 0
    assert path.read_text() == "written"


def test_a_file_takes_every_text(tmp_path):
    path = tmp_path / "file"
    atomic_files.write_text(path, TEXT)
    expected = "1 × 2 → 3… caf\udce9.jpg 日本 🦊 \\ud800"
    assert path.read_text("utf-8", "surrogateescape") == expected


def test_what_was_printed_is_there_when_a_process_is_killed():
    done = run("import os; print('before'); os.kill(os.getpid(), 9)")
    assert done.stdout == b"before\n"


def test_a_pipe_that_does_not_block_is_waited_for():
    text = "import os; os.set_blocking(1, False)\n" + LINES.format(
        path=os.devnull
    )
    done = run(text, False, '"$@" | (sleep 0.5; cat)')
    assert done.returncode == 0
    assert done.stdout.count(b"\n") == 20000


def test_output_to_a_terminal_that_was_closed_is_dropped(tmp_path):
    """Writing to one fails with EIO, after the SIGHUP."""
    path, mine = tmp_path / "file", None
    mine, theirs = os.openpty()
    text = "import time; time.sleep(0.3)\n" + LINES.format(path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN.format(results=False) + text],
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.close(mine)
    assert process.wait(timeout=30) == 0
    assert path.read_text() == "result\n"


def test_the_last_line_alone(capsys):
    with output.last_line_only():
        print("one")
        print("two", end="")
        print(" and three")
        print()
    assert capsys.readouterr().out == "two and three\n"
    with pytest.raises(SystemExit), output.last_line_only():
        print("stopped at step 3")
        raise SystemExit(143)
    assert capsys.readouterr().out == "stopped at step 3\n"
    with pytest.raises(UserError), output.last_line_only():
        print("step 3")
        raise UserError("the disk is full")
    assert capsys.readouterr().out == ""
