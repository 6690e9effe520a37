"""Signals, in small processes that do what a command does."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import signals
from core.signals import Action, Stop

SIGNALS = [
    (signal.SIGINT, 130, "Ctrl-C"),
    (signal.SIGTERM, 143, "SIGTERM"),
    (signal.SIGHUP, 129, "SIGHUP"),
]
AGAIN = "saving; Ctrl-C again to stop at once\n"
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
        words = ["env", "--default-signal=INT,HUP", sys.executable, "-c", text]
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
    said = AGAIN if name == "Ctrl-C" else f"{name}: saving\n"
    assert script.end() == (code, said)


def test_a_second_ctrl_c_a_second_later_ends_a_loop_at_once():
    script = Script(BEGIN + LOOP.replace("SECONDS", "1000"))
    script.wait_for("ready")
    script.send(signal.SIGINT)
    script.wait_for("asked")
    time.sleep(signals.SECONDS_OF_A_BURST + 0.1)
    script.send(signal.SIGINT)
    assert script.end() == (130, AGAIN + "stopped by Ctrl-C\n")


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_burst_is_one_wish(number):
    script = Script(BEGIN + LOOP.replace("SECONDS", "0.6"))
    script.wait_for("ready")
    for _ in range(5):
        script.send(number)
        time.sleep(0.05)
    assert script.end()[0] == 128 + number


def test_ctrl_c_then_sigterm_then_hangup_is_one_wish():
    """As a scheduler does that gives up step by step."""
    script = Script(BEGIN + LOOP.replace("SECONDS", "2.5"))
    script.wait_for("ready")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        script.send(number)
        time.sleep(0.8)
    assert script.end() == (130, AGAIN)


def test_the_same_wish_may_arrive_after_the_loop():
    """What is left to do then, such as closing files, is not cut short."""
    loop = LOOP.replace("SECONDS", "0")
    after = "print('saved', flush=True); time.sleep(0.5)\nsys.exit("
    script = Script(BEGIN + loop.replace("sys.exit(", after))
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    script.wait_for("asked")
    script.wait_for("saved")
    script.send(signal.SIGTERM)
    assert script.end() == (143, "SIGTERM: saving\n")


def test_a_stop_by_agreement_after_the_loop_is_not_cut_short_either():
    text = """
with signals.StopSignals() as stop: pass
stop.agree(15)
print('ready', flush=True)
time.sleep(0.5)
print('closed')
"""
    script = Script(BEGIN + text)
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    script.wait_for("closed")
    assert script.end() == (0, "")


@pytest.mark.parametrize("flags", [(), ("--foreground",)])
def test_the_command_timeout_lets_a_loop_save(flags):
    """It signals its child, and then the whole group with the child in it."""
    text = BEGIN + LOOP.replace("SECONDS", "0.5")
    timeout = ["timeout", *flags, "--preserve-status", "1"]
    done = subprocess.run(
        [*timeout, sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=20,
        start_new_session=True,
    )
    assert (done.returncode, done.stderr) == (143, "SIGTERM: saving\n")


@pytest.mark.parametrize("work", [BUSY, LOOP.replace("SECONDS", "0.2")])
def test_nohup_keeps_a_command_from_hearing_that_its_terminal_closed(work):
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", BEGIN + READY + work],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143


# ---- The decision -----------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(sorted(signals.STOP_SIGNALS)),
        st.floats(0, 40, allow_nan=False),  # seconds since the one before
    ),
    min_size=1,
)


def decisions(events):
    """(state before, number, time, state after, action) of each event."""
    stop, now = Stop(), 1000.0
    for number, seconds in events:
        now += seconds
        before = stop
        stop, action = signals.decide(stop, number, now)
        yield before, number, now, stop, action
        if action is Action.EXIT:
            return


@given(EVENTS)
def test_only_a_person_who_was_told_stops_the_saving(events):
    told = pressed = None
    for before, number, now, after, action in decisions(events):
        if not before.number:
            assert action is Action.SAVE
            assert (after.number, after.since) == (number, now)
        else:  # The first wish stands, with its time and its exit code.
            assert action is not Action.SAVE
            assert after[:2] == before[:2]
        if action is Action.EXIT:
            assert number == signal.SIGINT
            assert told is not None
            assert now - pressed >= signals.SECONDS_OF_A_BURST
        elif action is Action.TELL or (
            action is Action.SAVE and number == signal.SIGINT
        ):
            assert told is None
            told = now
        if number == signal.SIGINT:
            pressed = now


@given(EVENTS, st.floats(10, 60), st.floats(0, signals.SECONDS_TO_STOP))
def test_a_key_that_is_held_is_one_wish(events, hertz, seconds):
    """However long; letting go for a second and pressing again is another."""
    now, stop = 1000.0, Stop()
    for number, _ in events:  # Of the same moment.
        stop, _ = signals.decide(stop, number, now)
    for i in range(int(seconds * hertz)):
        now += 1 / hertz
        stop, action = signals.decide(stop, signal.SIGINT, now)
        assert action in (Action.SAVE, Action.TELL, Action.IGNORE), i
    if stop.pressed is not None:
        # Of a sum of floats, the difference may be a little less.
        now = stop.pressed + 1.001 * signals.SECONDS_OF_A_BURST
        assert signals.decide(stop, signal.SIGINT, now)[1] is Action.EXIT


def test_ctrl_c_held_for_two_seconds_lets_a_loop_save():
    script = Script(BEGIN + LOOP.replace("SECONDS", "2.5"))
    script.wait_for("ready")
    for _ in range(60):
        script.send(signal.SIGINT)
        time.sleep(1 / 30)
    assert script.end() == (130, AGAIN)


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_stop_by_agreement_has_the_time_limit_too(number):
    """The listener, which waits for a signal, hears of it."""
    text = f"""
signals.SECONDS_TO_STOP = 0.5
with signals.StopSignals() as stop:
    time.sleep(0.3)
    stop.agree({int(number)})
    stop.agree({int(number)})
    time.sleep(15)
"""
    code, said = Script(BEGIN + text).end()
    assert code == 128 + number
    assert "not done saving after" in said


@given(EVENTS)
def test_a_person_is_heard_at_the_second_ctrl_c(events):
    """However many other signals came in between."""
    calls = [
        (now, action)
        for _, number, now, _, action in decisions(events)
        if number == signal.SIGINT
    ]
    for (first, _), (second, action) in itertools.pairwise(calls):
        if second - first >= signals.SECONDS_OF_A_BURST:
            assert action is Action.EXIT


@given(EVENTS, st.floats(0, 100))
def test_nothing_moves_the_time_limit(events, seconds):
    first = None
    for _, _, now, stop, _ in decisions(events):
        first = now if first is None else first
        left = stop.seconds_left(now + seconds)
        limit = first + signals.SECONDS_TO_STOP
        assert left == max(limit - (now + seconds), 0.0)
    assert Stop().seconds_left(seconds) is None


def test_a_loop_that_takes_too_long_is_given_up():
    hurry = "signals.SECONDS_TO_STOP = 0.5\n"
    script = Script(BEGIN + hurry + LOOP.replace("SECONDS", "1000"))
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    script.wait_for("asked")
    code, said = script.end()
    assert code == 143
    assert "\nstopped by SIGTERM; not done saving after" in said


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


def test_a_folder_that_is_still_being_filled_is_removed_whole(tmp_path):
    writing = f"""
import itertools
from core import atomic_files as files
with files.temporary_folder({str(tmp_path)!r}) as folder:
    for number in itertools.count():
        (folder / str(number % 5000)).write_bytes(b"file")
        if number == 2000:
            print('ready', flush=True)
"""
    script = Script(BEGIN + writing)
    script.wait_for("ready")
    script.send(signal.SIGTERM)
    assert script.end() == (143, "stopped by SIGTERM\n")
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
