"""Event files, bit by bit as TensorBoard's own libraries write them."""

import struct

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import event_file

# What tensorboardX 2.6.5 wrote for these events, at time 1.5.
VERSION = "09000000000000f83f1a0d627261696e2e4576656e743a32"
PURGE = "09000000000000f83f10053a020801"
SCALARS = (
    "09000000000000f83f10ac022a260a110a0a747261696e2f6c6f73731500000040"
    "0a110a0a747261696e2f726174651500000000"
)


def records(data):
    """The records of a file, each with its checksums compared."""

    def masked(part):
        crc = google_crc32c.value(part)
        rotated = (crc >> 15) | (crc << 17) & 0xFFFFFFFF
        return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)

    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event, end = data[12 : 12 + size], 16 + size
        assert data[8:12] == masked(data[:8])
        assert data[12 + size : end] == masked(event)
        yield event
        data = data[end:]


@given(st.binary(max_size=200))
def test_crc32c_is_that_of_google(data):
    assert event_file.crc32c(data) == google_crc32c.value(data)


def test_the_events_are_those_of_another_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(event_file.time, "time", lambda: 1.5)
    log = event_file.EventFile(tmp_path, purge_step=5)
    log.scalars(300, {"train/loss": 2.0, "train/rate": 0.0})
    log.close()
    (path,) = tmp_path.iterdir()
    assert ".tfevents." in path.name
    found = [event.hex() for event in records(path.read_bytes())]
    assert found == [VERSION, PURGE, SCALARS]


def test_a_value_too_large_for_four_bytes_is_infinite(tmp_path):
    log = event_file.EventFile(tmp_path)
    log.scalars(1, {"loss": 1e300, "other": -1e300})
    log.close()
    (path,) = tmp_path.iterdir()
    _, event = records(path.read_bytes())
    assert struct.pack("<f", float("inf")) in event
    assert struct.pack("<f", float("-inf")) in event


def test_two_files_of_one_process_do_not_meet(tmp_path, monkeypatch):
    event_file.EventFile(tmp_path).close()
    event_file.EventFile(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(event_file.time, "time", lambda: 1.5)
    event_file.EventFile(tmp_path).close()
    with pytest.raises(FileExistsError):
        event_file.EventFile(tmp_path)
