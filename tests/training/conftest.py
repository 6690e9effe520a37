"""What the tests of run folders in a bucket share."""

import pytest
from machines import Machine

from training.multihost import coordinated_shutdown, lease, mirror


@pytest.fixture
def impatient(monkeypatch):
    """Short times, and a process that is not ended by what a test does."""
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.05)
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.01)
    monkeypatch.setattr(mirror, "RETRY_SECONDS", 0.01)
    # Sending is asked for, unless a test wants it done in the background.
    monkeypatch.setattr(mirror, "POLL_SECONDS", 1000.0)
    lost = []
    monkeypatch.setattr(coordinated_shutdown, "shutdown", lost.append)
    yield
    assert not lost


@pytest.fixture
def one(tmp_path, impatient):
    """The first of the machines that train in one bucket."""
    return Machine(tmp_path)
