from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import native_build

needs_compiler = pytest.mark.skipif(
    not shutil.which("c++"), reason="there is no C++ compiler"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SEXTET_NATIVE", raising=False)
    return tmp_path / "cache" / "sextet" / "native"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "number.h").write_text("#define NUMBER 7\n")
    path = tmp_path / "number.cc"
    path.write_text(
        '#include "number.h"\nextern "C" int number() { return NUMBER; }\n'
    )
    return path


def path_of(source, **options):
    return library_of(source, **options).path()


def library_of(source, **options):
    return native_build.Library(
        "number", [source], [source.with_suffix(".h")], **options
    )


@needs_compiler
def test_compiles_once_for_the_same_and_again_for_anything_else(source, cache):
    first = path_of(source)
    assert ctypes.CDLL(str(first)).number() == 7
    made = first.stat().st_mtime_ns
    assert path_of(source) == first
    assert first.stat().st_mtime_ns == made
    others = {path_of(source, flags=["-g"]), path_of(source, versions=["2"])}
    source.with_suffix(".h").write_text("#define NUMBER 8\n")
    changed = path_of(source)
    assert ctypes.CDLL(str(changed)).number() == 8
    others |= {first, changed}
    assert set(cache.iterdir()) == others and len(others) == 4


def test_nothing_where_it_is_not_wanted_or_there_is_no_compiler(
    source, cache, monkeypatch
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert path_of(source) is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("SEXTET_NATIVE", "0")
    assert path_of(source) is None
    assert not cache.exists()


@needs_compiler
def test_what_does_not_compile_leaves_nothing_and_is_told(source, cache, capfd):
    library = library_of(source)
    source.write_text("int good;\nthis is no C++\n")
    for _ in range(2):
        assert library.path() is None
    assert list(cache.iterdir()) == []
    told = capfd.readouterr().err
    assert told.count("the C++ library number cannot be built") == 1
    assert f"{source}:2:1: error: " in told
    assert "Going on without this C++ library" in told


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C.UTF-8"},
    ],
    ids=str,
)
def test_what_a_compiler_says_is_shown_in_every_locale(
    source, tmp_path, locale
):
    """In UTF-8 or not: it quotes the source, and its own quotes are curly."""
    compiler = tmp_path / "compiler"
    compiler.write_bytes(
        b"#!/bin/sh\n"
        b'if [ "$1" = --version ]; then echo 1; exit; fi\n'
        b"echo 'caf\xe9.cc: error: \xe2\x80\x98x\xe2\x80\x99'\n"
        b"exit 1\n"
    )
    compiler.chmod(0o700)
    (tmp_path / "made_up.py").write_text(
        "from pathlib import Path\nfrom core import native_build\n"
        f"X = native_build.Library('x', [Path({str(source)!r})])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "core.native_build", "made_up:X"],
        cwd=Path(__file__).parents[2],
        env=os.environ
        | {"PYTHONPATH": str(tmp_path), "CXX": str(compiler)}
        | locale,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"the C++ library x cannot be built" in done.stderr
    assert b"caf\\xe9.cc: error: " in done.stderr


def test_a_compiler_that_cannot_be_parsed_is_none(source, monkeypatch):
    monkeypatch.setenv("CXX", "c++ 'an open quote")
    assert path_of(source) is None


@needs_compiler
def test_a_folder_that_cannot_be_written_is_told(source, cache, capfd):
    cache.parents[1].write_text("a file where a folder should be")
    assert path_of(source) is None
    assert "number cannot be built" in capfd.readouterr().err


@needs_compiler
def test_warnings_are_shown_and_do_no_harm(source, capfd):
    source.write_text(f"{source.read_text()}static int unused = 1;\n")
    assert ctypes.CDLL(str(path_of(source))).number() == 7
    assert "defined but not used" in capfd.readouterr().err


@needs_compiler
def test_compiled_in_the_background_it_is_the_same(source, cache):
    library = library_of(source)
    library.begin()
    library.begin()
    path = library.path()
    assert ctypes.CDLL(str(path)).number() == 7
    assert list(cache.iterdir()) == [path]
    assert path_of(source) == path


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
def test_what_fails_in_the_background_is_nothing_worse(source, monkeypatch):
    def fail(*_):
        raise ValueError("of a kind that nobody thought of")

    monkeypatch.setattr(native_build, "_cache_key", fail)
    library = library_of(source)
    library.begin()
    assert library.path() is None


@needs_compiler
def test_the_command_builds_and_tells_what_fails(tmp_path, cache):
    (tmp_path / "made_up.py").write_text(
        "from pathlib import Path\n"
        "from core import native_build\n"
        "GOOD, BAD = (\n"
        "    native_build.Library(name, [Path(__file__).with_name(name)])\n"
        "    for name in ('good.cc', 'bad.cc')\n"
        ")\n"
    )
    (tmp_path / "good.cc").write_text("int good;\n")
    (tmp_path / "bad.cc").write_text("no C++\n")
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "core.native_build"),
            *("made_up:GOOD", "made_up:BAD"),
        ],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    (built,) = cache.iterdir()
    assert str(built) in ran.stdout
    assert "bad.cc cannot be built" in ran.stderr


# Takes its time, as two processes of a group.
ENDLESS = """#!/bin/sh
if [ "$1" = --version ]; then echo 1; exit; fi
sleep 1000 &
echo $! $$ >> "$PIDS"
wait
"""
WITH_A_COMPILER_BEHIND = """
import pathlib, sys, time
from core import native_build, signals
signals.install()
library = native_build.Library("number", [pathlib.Path(sys.argv[1])])
library.begin()
"""


@pytest.fixture
def endless(tmp_path, monkeypatch):
    """Makes the compiler one that does not end; returns who is one."""
    compiler, pids = tmp_path / "endless", tmp_path / "pids"
    compiler.write_text(ENDLESS)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("PIDS", str(pids))

    def running():
        return pids.read_text().split() if pids.exists() else []

    return running


@pytest.mark.parametrize(
    ("then", "number", "code"),
    [
        ("library.path()", signal.SIGTERM, 143),
        ("time.sleep(1000)", signal.SIGINT, 130),
        ("sys.stdin.read(); sys.exit(2)", None, 2),
    ],
)
def test_a_process_that_ends_takes_the_compiler_with_it(
    endless, source, cache, then, number, code
):
    words = [sys.executable, "-c", WITH_A_COMPILER_BEHIND + then, str(source)]
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *words], stdin=subprocess.PIPE
    )
    wait_until(lambda: len(endless()) == 2)
    process.stdin.close()
    if number:
        process.send_signal(number)
    assert process.wait(timeout=20) == code
    wait_until(lambda: not any(map(is_running, endless())))
    assert list(cache.iterdir()) == []


def wait_until(reached):
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False
    return state.split()[0] not in "ZX"


def test_a_forked_process_compiles_for_itself(cache):
    """The thread that waits for the compiler is not in the fork."""
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from core import native_build
library = native_build.Library("forked", [])
library._path = lambda: "here"
library.begin()
library.path()
library._pending = native_build.futures.Future()
child = os.fork()
if not child:
    os._exit(0 if library.path() == "here" else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[2])],
        check=True,
        timeout=60,
    )


def test_loader_processes_begin_nothing(endless, cache):
    """They import train.py anew, under another name."""
    code = "import runpy; runpy.run_path('train.py', run_name='__mp_main__')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not cache.exists() and endless() == []
