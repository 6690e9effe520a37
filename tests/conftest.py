"""What the tests of several packages share."""

import os
import sys

import pytest

from tests.bucket_emulator import Bucket


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Or a process holds all that its tests compiled, gigabytes in the end.

    And a command that ran inside it has all later programs kept on the disk,
    which takes longer than to compile the small ones of tests.
    """
    yield
    if "jax" in sys.modules:
        from jax.experimental.compilation_cache import compilation_cache

        jax = sys.modules["jax"]
        jax.clear_caches()
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def _bucket():
    with Bucket() as bucket:
        # Before gcsfs and TensorStore look, which they do once.
        os.environ.update(bucket.environment)
        yield bucket


@pytest.fixture
def bucket(_bucket):
    """A bucket without faults; its objects outlive the test."""
    _bucket.fault = lambda method, path: None
    _bucket.requests.clear()
    yield _bucket
    _bucket.fault = lambda method, path: None


@pytest.fixture
def url(bucket, tmp_path):
    """Of a folder in the bucket that is this test's own."""
    return f"{bucket.url}/{tmp_path.parent.name}-{tmp_path.name}/run"
