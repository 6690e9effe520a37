"""Files that are damaged beside their pixels, made such that they decode.

Nothing is guessed: either all pixels are in the file, or it stays refused.
What is taken out of a file is never decompressed.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
_XMP = b"XML:com.adobe.xmp\0\0"  # Not compressed; may hold the orientation.
_MOST_XMP = 1 << 20

_END = b"\xff\xd9"
_ZEROS = bytes(16)

# What may follow the last byte of a JPEG, if nothing is missing before it:
# nothing, ones, or anything at all.
_FILLINGS = [b"", b"\xff\x00" * 64] + [
    np.random.default_rng(seed).integers(1, 255, 128, np.uint8).tobytes()
    for seed in range(4)
]


def png_without_text(data: bytes) -> bytes | None:
    """Takes out of a PNG what decides no pixel, such as profile and comments.

    Returns:
      The shorter file; None if it is no PNG, or there is nothing to take out.
    """
    if not data.startswith(_PNG):
        return None
    kept = [_PNG]
    for kind, start, end in _png_chunks(data):
        body = data[start + 8 : end - 4]
        intact = data[end - 4 : end] == struct.pack(
            ">I", zlib.crc32(data[start + 4 : end - 4])
        )
        if (
            kind[0] & 32 == 0  # The standard's mark of what must be read.
            or kind == b"tRNS"
            or (kind == b"eXIf" and intact)
            or (
                kind == b"iTXt"
                and intact
                and body.startswith(_XMP)
                and len(body) <= _MOST_XMP
            )
        ):
            kept.append(data[start:end])
    shorter = b"".join(kept)
    return None if shorter == data else shorter


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the kind of each chunk, where it starts and where it ends."""
    start = len(_PNG)
    while start + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = min(start + 12 + length, len(data))
        yield data[start + 4 : start + 8], start, end
        start = end


def jpeg_with_end(data: bytes) -> bytes | None:
    """Completes a JPEG that lacks its end marker and nothing else.

    If something else is missing, the decoder takes it from what follows: the
    pixels then depend on that. They must not.

    Returns:
      The whole file; None if it is no JPEG, or more is missing.
    """
    if not data.startswith(b"\xff\xd8") or not _has_all_scans(data):
        return None
    if is_jpeg_filled_up(data):
        data = data.rstrip(b"\0")
    data = data.rstrip(b"\xff")  # A half of the marker.
    fillings = _FILLINGS
    if b"\xff\xdd" in data:  # Restart markers: the next one may be missing.
        fillings = fillings + [
            b"\xff" + bytes([0xD0 + number]) + _FILLINGS[-1]
            for number in range(8)
        ]
    first = None
    for filling in fillings:
        try:
            image = Image.open(
                io.BytesIO(data + filling + _END), formats=("JPEG",)
            )
            pixels = hashlib.blake2b(image.tobytes()).digest()
        except Exception:  # Pillow's parsers raise nearly anything.
            return None
        if first is None:
            first = pixels
        elif pixels != first:
            return None
    return data + _END


def is_jpeg_filled_up(data: bytes) -> bool:
    """Whether zeros stand for the end of a JPEG, as after a broken download.

    Decoders take them for pixels.
    """
    return (
        data.startswith(b"\xff\xd8")
        and data.endswith(_ZEROS)
        and not data.rstrip(b"\0").endswith(_END)
    )


def _has_all_scans(data: bytes) -> bool:
    """Whether every coefficient of every component has its last bit.

    A progressive JPEG that ends between two scans decodes, coarsely.
    """
    missing: dict[int, np.ndarray] = {}  # The lowest bit still to come.
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            place = data.find(b"\xff", place)
            if place < 0:
                break
            continue
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        body = data[place + 4 : place + 2 + length]
        try:
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                for part in range(body[5]):
                    missing[body[6 + 3 * part]] = np.full(64, 99)
            elif marker == 0xDA:
                first, last, bits = body[-3:]
                for part in range(body[0]):
                    missing[body[1 + 2 * part]][first : last + 1] = bits & 15
        except (IndexError, KeyError, ValueError):
            return False
        place += 2 + length
    return bool(missing) and not any(bits.any() for bits in missing.values())
