"""A file that is damaged beside its pixels gives all of them, or none."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, eval_image, photo, train_image

from input_pipeline import audit, decoding, repair
from input_pipeline.backends import cpp
from input_pipeline.decoding import BadImage, decode, decode_mask
from input_pipeline.findings import loses
from input_pipeline.sources import open_source
from input_pipeline.transforms.policy import Augment

PACKED = zlib.compress(bytes(1_200_000))


def chunk(kind, body, crc=None):
    whole = kind + body
    crc = zlib.crc32(whole) if crc is None else crc
    return struct.pack(">I", len(body)) + whole + struct.pack(">I", crc)


def with_chunk(data, extra, where):
    place = 33 if where == "before the pixels" else data.index(b"IEND") - 4
    return data[:place] + extra + data[place:]


CHUNKS = {
    "a large profile": chunk(b"iCCP", b"icc\0\0" + PACKED),
    "a large comment": chunk(b"zTXt", b"Comment\0\0" + PACKED),
    "a large text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + PACKED),
    "more text than memory": chunk(b"tEXt", b"Comment\0" + bytes(65 << 20)),
    "a checksum that is wrong": chunk(b"tEXt", b"Comment\0x", crc=1),
    "a packing that is unknown": chunk(b"iCCP", b"icc\0\7x"),
    "a chunk that is too short": chunk(b"gAMA", b"1"),
}


@pytest.mark.parametrize("where", ["before the pixels", "after them"])
@pytest.mark.parametrize("what", CHUNKS)
def test_a_png_with_an_odd_chunk_keeps_its_pixels(what, where):
    rgba = np.dstack([photo(), photo(seed=1)[..., :1]])
    images = [
        Image.fromarray(photo()),
        Image.fromarray(rgba),
        Image.fromarray(photo()).quantize(16),
    ]
    for image in images:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encoded(np.asarray(image), "PNG", exif=exif)
        damaged = with_chunk(data, CHUNKS[what], where)
        np.testing.assert_array_equal(decode(damaged), decode(data))
    mask = encoded(np.eye(9, dtype=np.uint8), "PNG")
    np.testing.assert_array_equal(
        decode_mask(with_chunk(mask, CHUNKS[what], where)), decode_mask(mask)
    )


def test_an_orientation_in_xmp_is_kept():
    text = b'<x xmlns:tiff="t" tiff:Orientation="6"/>'
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
    data = with_chunk(encoded(photo(), "PNG"), xmp, "before the pixels")
    assert decode(data).shape == (32, 24, 3)
    large = with_chunk(data, CHUNKS["a large text"], "before the pixels")
    np.testing.assert_array_equal(decode(large), decode(data))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_bomb_of_text_does_not_go_off(kind):
    """Ten chunks that unpack to a quarter of a gigabyte each."""
    body = zlib.compress(bytes(1 << 28), 1)
    before = b"C\0\1\0\0\0" if kind == b"iTXt" else b"C\0\0"
    data = encoded(photo(), "PNG")
    damaged = with_chunk(data, chunk(kind, before + body) * 10, "after them")
    tracemalloc.start()
    start = time.process_time()
    np.testing.assert_array_equal(decode(damaged), decode(data))
    assert tracemalloc.get_traced_memory()[1] < 3 * len(damaged) + 8e6
    tracemalloc.stop()
    assert time.process_time() - start < 5


def test_a_bomb_of_pixels_stays_refused(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 24 * 32 - 1)
    for data in (
        with_chunk(
            encoded(photo(), "PNG"),
            CHUNKS["a large profile"],
            "before the pixels",
        ),
        encoded(photo())[:-2],
    ):
        with pytest.raises(BadImage, match="32x24 is more than"):
            decode(data)


JPEGS = {
    "plain": {},
    "full colour": {"subsampling": 0},
    "progressive": {"progressive": True},
    "own tables": {"optimize": True},
    "restart markers": {"restart_marker_blocks": 1},
    "restart rows": {"restart_marker_rows": 1},
    "coarse": {"quality": 10},
    "fine": {"quality": 99},
}


@pytest.mark.parametrize("what", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end_keeps_its_pixels_or_is_refused(what, mode):
    """However much is cut off: never a pixel that is not in the file."""
    taken = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        image = Image.fromarray(photo(*rng.integers(9, 40, 2), seed=seed))
        if seed == 5:
            image = Image.linear_gradient("L").resize((99, 99))
        out = io.BytesIO()
        image.convert(mode).save(out, "JPEG", **JPEGS[what])
        data = out.getvalue()
        pixels = decode(data)
        for cut in range(1, 25):
            try:
                found = decode(data[:-cut])
            except BadImage:
                assert cut > 2
                continue
            taken += 1
            np.testing.assert_array_equal(found, pixels)
        # What a download leaves that was to be longer.
        for lost in (30, len(data) // 3):
            with pytest.raises(BadImage, match="filled up with zeros"):
                decode(data[:-lost] + bytes(4096))
        np.testing.assert_array_equal(decode(data + bytes(4096)), pixels)
        if not data.endswith(b"\0\xff\xd9"):  # A zero of its own.
            filled_up = data[:-2] + bytes(4096)
            np.testing.assert_array_equal(decode(filled_up), pixels)
    assert taken >= 12


def test_a_progressive_jpeg_that_lacks_whole_scans_is_refused():
    data = encoded(photo(64, 64), progressive=True)
    scans = [
        place
        for place in range(len(data) - 1)
        if data[place : place + 2] in (b"\xff\xda", b"\xff\xc4")
    ]
    for place in scans[1:]:
        with pytest.raises(BadImage):
            decode(data[:place])


def test_rubbish_is_not_completed():
    rng = np.random.default_rng(0)
    whole = encoded(photo(), progressive=True)
    assert repair.jpeg_with_end(b"") is None
    assert repair.png_without_text(b"\x89PNG\r\n\x1a\n") is None
    for _ in range(300):
        broken = bytearray(whole[: rng.integers(2, len(whole))])
        broken[rng.integers(2, len(broken) + 1) - 1] ^= 1 << rng.integers(8)
        repair.jpeg_with_end(bytes(broken))
        broken[:8] = b"\x89PNG\r\n\x1a\n"
        repair.png_without_text(bytes(broken))


@pytest.mark.parametrize("native", [True, False])
def test_both_back_ends_see_the_same_pixels(monkeypatch, native):
    if not native:
        monkeypatch.setattr(cpp, "available", lambda: False)
    large = photo(300, 400)  # Decoded at an eighth of its size.
    png = encoded(photo(), "PNG")
    for whole, damaged in (
        (encoded(large), encoded(large)[:-2]),
        (encoded(large), encoded(large)[:-1]),
        (png, with_chunk(png, CHUNKS["a large profile"], "after them")),
    ):
        for of in (
            lambda data: train_image(
                data, Augment(), 32, np.random.default_rng(0)
            ),
            lambda data: eval_image(data, ("center", "crop_flip"), 32, "x"),
        ):
            np.testing.assert_array_equal(of(damaged), of(whole))


def test_the_audit_tells_of_what_it_could_read_all_the_same(
    competition, data_config
):
    train = competition / "img_train"
    (train / "4.jpg").write_bytes((train / "4.jpg").read_bytes()[:-2])
    (competition / "img_test/2.jpg").write_bytes(
        with_chunk(
            encoded(photo(seed=99), "PNG"),
            CHUNKS["a large comment"],
            "before the pixels",
        )
    )
    source = open_source(data_config(root=str(competition)))
    found = audit.audit(source, 3)
    assert not loses(found)
    assert [(one.problem, one.id) for one in found] == [
        ("repaired", "4"),
        ("repaired", "2"),
    ]
    assert found[0].detail == "its end is missing, but no pixel"
    assert "read without text and profiles" in found[1].detail
    assert "Decompressed data too large" in found[1].detail
