"""TensorBoard's event files, without TensorFlow.

A file is a sequence of records in TFRecord's framing, each an `Event` of
tensorflow/core/util/event.proto with, of its summary, scalars alone.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_VERSION = b"brain.Event:2"
# CRC-32C (Castagnoli), its polynomial reversed.
_POLYNOMIAL = 0x82F63B78


class EventFile:
    """Scalars over steps, in a new file of a folder.

    Args:
      folder: that TensorBoard is pointed at; made if absent.
      purge_step: TensorBoard drops what earlier files of the folder have from
        this step on; None keeps it.

    Raises:
      OSError: the file cannot be written; by every method.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
        path = folder / f"{name}.{os.getpid()}"
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 (close)
        self._append(_bytes(3, _VERSION))
        if purge_step is not None:
            start = _varint(1, 1)  # SessionLog.START
            self._append(_varint(2, purge_step) + _bytes(7, start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends values by name, as one record."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + b"\x15" + _float(value))
            for name, value in values.items()
        )
        self._append(_varint(2, step) + _bytes(5, summary))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, fields: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(event))
        # Whole or not at all, as far as a disk allows: one write.
        self._file.write(
            length + _masked_crc(length) + event + _masked_crc(event)
        )


def _varint(field: int, value: int) -> bytes:
    """A protobuf field of wire type 0."""
    return _plain_varint(field << 3) + _plain_varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    """A protobuf field of wire type 2."""
    return _plain_varint(field << 3 | 2) + _plain_varint(len(value)) + value


def _plain_varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _float(value: float) -> bytes:
    """Four bytes; infinite where they cannot hold the value."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C of `data` (RFC 3720)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return tuple(found)
