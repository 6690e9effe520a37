"""Names of run folders, and what a bucket's errors mean."""

import errno
from pathlib import Path

import pytest

from core import atomic_files, paths
from core.errors import TransientError, UserError


def test_a_local_name_is_a_plain_path():
    for name in ("runs/a", "/x", "-x", "a:b", "a/b://c", "[x]", "~/x"):
        assert paths.make_path(name) == Path(name)
        assert not paths.is_remote(paths.make_path(name))
    assert paths.make_path("file:///data/run") == Path("/data/run")


@pytest.mark.parametrize(
    "name",
    [
        "gs://bucket",
        "gs://bucket/",
        "gs:///run",
        "gs://bucket/a//b",
        "gs://bucket/../b",
        "gs://bucket/a[x]",
        "gs://bucket/a*",
        "gs://bucket/a?b",
        "gs://bucket/a#b",
        "s3://bucket/new\nline",
        "http://host/run",
        "memory://a/b",
    ],
)
def test_what_is_no_folder_in_a_bucket_is_refused(name):
    with pytest.raises(UserError, match=r"names no run folder; give a local"):
        paths.make_path(name)


def test_a_missing_driver_is_one_sentence(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install s3fs etils"):
        paths.make_path("s3://bucket/run")


def test_files_in_a_bucket_are_read_and_written(url):
    folder = paths.make_path(url + "/")
    assert paths.is_remote(folder) and str(folder) == url
    assert paths.absolute(folder) == folder and folder.name == "run"
    path = folder / "deep" / "file.txt"
    assert not path.exists() and not folder.exists()
    atomic_files.write_text(path, "häuser")
    assert path.read_text() == "häuser" and paths.size(path) == 7
    with pytest.raises(ZeroDivisionError), atomic_files.atomic_write(path) as t:
        t.write_text("half")
        _ = 1 / 0
    assert path.read_text() == "häuser"
    path.unlink()
    assert not folder.exists()


class HttpError(Exception):
    """As gcsfs raises it."""

    __module__ = "gcsfs.retry"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HttpError("Service Unavailable"), TransientError),
        (HttpError("Forbidden: no right"), UserError),
        (ValueError("UNAVAILABLE: CURL error[6]"), TransientError),
        (ValueError("PERMISSION_DENIED: gs://b"), UserError),
        (TimeoutError(), TransientError),
        (ConnectionResetError("by peer"), TransientError),
        (FileNotFoundError("gs://bucket"), UserError),
    ],
)
def test_errors_of_a_bucket_are_one_sentence(error, kind):
    with (
        pytest.raises(UserError, match=r"^gs://b/x cannot be read") as told,
        paths.reaching(["photo.jpg", "--run=gs://b/x"]),
    ):
        raise error
    assert type(told.value) is kind
    with pytest.raises(type(error)), paths.reaching(["runs/x"]):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError(),
        ValueError("a bug"),
        BrokenPipeError(),
        OSError(errno.ENOSPC, "full", "a file"),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EMFILE, "too many open files"),
        UserError("told already"),
    ],
)
def test_other_errors_pass_through(error):
    with pytest.raises(type(error)) as told, paths.reaching(["gs://b/x"]):
        raise error
    assert told.value is error


def test_a_disk_that_is_full_here_is_not_the_buckets_fault(url):
    path = paths.make_path(url) / "file.txt"
    with (
        pytest.raises(
            UserError, match=r"cannot write gs://.*: full in"
        ) as told,
        atomic_files.atomic_write(path),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert not isinstance(told.value, TransientError)
    assert not path.exists()
