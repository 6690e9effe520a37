from __future__ import annotations

import ctypes
import shutil

import pytest

import compiled

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
    return compiled.library_path(
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
def test_what_does_not_compile_leaves_nothing(source, cache):
    source.write_text("this is no C++\n")
    assert path_of(source) is None
    assert list(cache.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_error(source, cache):
    cache.parents[1].write_text("a file where a folder should be")
    assert path_of(source) is None
