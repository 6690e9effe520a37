"""Signals, in small processes that do what a command does."""

import os
import signal
import subprocess
import sys
import time

import pytest

SIGNALS = [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
BEGIN = "import sys, time; from core import signals; signals.install()\n"
READY = "print('ready', flush=True)\n"
BUSY = "while True: pass\n"
# A call into compiled code: Python handles no signal before it returns.
STUCK = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
# A loop that needs a while after it was asked to stop.
LOOP = """
with signals.StopSignals() as stop:
    print('ready', flush=True)
    while not stop.received:
        time.sleep(0.01)
    print('asked', flush=True)
    time.sleep(SECONDS)
sys.exit(signals.exit_code(stop.received))
"""


class Script:
    def __init__(self, text):
        words = ["env", "--default-signal=INT", sys.executable, "-c", text]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_for(self, word):
        assert self.process.stdout.readline().strip() == word

    def send(self, number):
        self.process.send_signal(number)

    def end(self):
        """The exit code, and what it said on stderr."""
        _, said = self.process.communicate(timeout=20)
        assert "Traceback" not in said
        return self.process.returncode, said


@pytest.mark.parametrize(("number", "code", "name"), SIGNALS)
@pytest.mark.parametrize("work", [BUSY, STUCK])
def test_a_process_exits_at_once_whatever_it_does(number, code, name, work):
    script = Script(BEGIN + READY + work)
    script.wait_for("ready")
    time.sleep(0.1)
    script.send(number)
    assert script.end() == (code, f"stopped by {name}\n")


@pytest.mark.parametrize(("number", "code", "name"), SIGNALS)
def test_a_loop_finishes_its_step(number, code, name):
    script = Script(BEGIN + LOOP.replace("SECONDS", "0.3"))
    script.wait_for("ready")
    script.send(number)
    script.wait_for("asked")
    assert script.end() == (code, "")


def test_a_second_signal_ends_a_loop_at_once():
    script = Script(BEGIN + LOOP.replace("SECONDS", "1000"))
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    script.wait_for("asked")
    script.send(signal.SIGINT)
    assert script.end() == (130, "stopped by Ctrl-C\n")


def test_a_loop_that_takes_too_long_is_given_up():
    hurry = "signals.SECONDS_TO_STOP = 0.5\n"
    script = Script(BEGIN + hurry + LOOP.replace("SECONDS", "1000"))
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    script.wait_for("asked")
    code, said = script.end()
    assert code == 143 and said.startswith("stopped by SIGTERM; the step took")


def test_after_the_loop_a_process_exits_at_once_again():
    script = Script(BEGIN + "with signals.StopSignals(): pass\n" + READY + BUSY)
    script.wait_for("ready")
    script.send(signal.SIGINT)
    assert script.end()[0] == 130


def test_signals_taken_by_an_event_loop_are_forwarded():
    loop = """
import asyncio, uvloop
async def work():
    print('ready', flush=True)
    await asyncio.sleep(1000)
uvloop.new_event_loop().run_until_complete(work())
"""
    script = Script(BEGIN + loop)
    script.wait_for("ready")
    time.sleep(0.1)
    script.send(signal.SIGTERM)
    assert script.end()[0] == 143


def test_half_written_files_are_removed_silently(tmp_path):
    writing = f"""
from core import atomic_files as files
with files.atomic_write({str(tmp_path / "new")!r}) as path:
    path.write_text("half")
    with files.temporary_folder({str(tmp_path)!r}) as folder:
        (folder / "file").write_text("")
        print('ready', flush=True)
        while path.exists(): pass
"""
    script = Script(BEGIN + writing)
    script.wait_for("ready")
    assert len(list(tmp_path.iterdir())) == 2
    script.send(signal.SIGINT)
    assert script.end() == (130, "stopped by Ctrl-C\n")
    assert list(tmp_path.iterdir()) == []


def test_what_was_started_in_the_background_ignores_ctrl_c():
    text = BEGIN + READY + "time.sleep(0.5)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 0
