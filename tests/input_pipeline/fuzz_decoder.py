"""Feeds the decoder with files that someone has damaged, and times it.

    python tests/input_pipeline/fuzz_decoder.py --files 10000

File number k is always the same. They are decoded in child processes of a
bounded address space, a few hundred files each, so that a crash is seen and
told with the number of its file.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import json
import re
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from input_pipeline.decoding import BadImage, decode
from input_pipeline.transforms.policy import Augment, TrainTransform

# An image of the most pixels that are allowed needs about a gigabyte.
ADDRESS_SPACE = 4 << 30
FILES_PER_CHILD = 400
CHILD_SECONDS = 400

WIDTH, HEIGHT = 45, 37
SIZE = 16

# What breaks size computations.
NUMBERS = (0, 1, 255, 9000, 9459, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)


def pixels(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth with some noise, uint8 [height, width, channels]."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c)) + np.cos(y / (4 + c)) for c in range(channels)]
    smooth = np.stack(waves, -1) * 50 + 128
    return (smooth + rng.integers(-9, 10, smooth.shape)).astype(np.uint8)


@functools.cache
def healthy() -> dict[str, bytes]:
    """One small file of every kind, by name."""
    rgb = Image.fromarray(pixels(HEIGHT, WIDTH, 3))
    rgba = Image.fromarray(pixels(HEIGHT, WIDTH, 4), "RGBA")
    grey = rgb.convert("L")
    palette = rgb.quantize(40)
    wide = Image.fromarray(
        pixels(HEIGHT, WIDTH, 1)[..., 0].astype(np.uint16) * 257
    )
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    frames = {"save_all": True, "append_images": [rgb.rotate(90)] * 2}
    kinds = {
        "jpeg": (rgb, "JPEG", {}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg exif": (rgb, "JPEG", {"exif": exif, "quality": 95}),
        "jpeg grey": (grey, "JPEG", {}),
        "jpeg cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg mpo": (rgb, "MPO", frames),
        "png": (rgb, "PNG", {"exif": exif}),
        "png alpha": (rgba, "PNG", {}),
        "png palette": (palette, "PNG", {"transparency": 3}),
        "png 16 bit": (wide, "PNG", {}),
        "png 1 bit": (grey.convert("1"), "PNG", {}),
        "png animated": (rgb, "PNG", frames),
        "webp": (rgb, "WEBP", {}),
        "webp lossless": (rgba, "WEBP", {"lossless": True}),
        "webp animated": (rgb, "WEBP", frames),
        "gif": (palette, "GIF", {}),
        "gif animated": (rgb, "GIF", frames),
        "bmp": (rgb, "BMP", {}),
        "bmp palette": (palette, "BMP", {}),
        "tiff": (rgb, "TIFF", {}),
        "tiff pages": (rgb, "TIFF", frames),
        "tiff 16 bit": (wide, "TIFF", {}),
        "tiff float": (grey.convert("F"), "TIFF", {}),
        "ppm": (rgb, "PPM", {}),
        "pgm 16 bit": (wide, "PPM", {}),
        "avif": (rgb, "AVIF", {"speed": 10}),
    }
    for method in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        kinds[f"tiff {method}"] = (rgb, "TIFF", {"compression": method})
    kinds["tiff group4"] = (
        grey.convert("1"),
        "TIFF",
        {"compression": "group4"},
    )
    files = {}
    for name, (image, kind, options) in kinds.items():
        buffer = io.BytesIO()
        # Copies: saving leaves settings behind that other kinds trip over.
        if options is frames:
            more = [frame.copy() for frame in frames["append_images"]]
            options = frames | {"append_images": more}
        image.copy().save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    return files


def mutated(number: int) -> tuple[str, bytes]:
    """The kind of file number `number`, and its bytes."""
    rng = np.random.default_rng(number)
    files = healthy()
    names = list(files)
    name = names[number % len(names)]
    data = bytearray(files[name])
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        way = WAYS[rng.integers(len(WAYS))]
        data = way(data, rng)
    if name.startswith("png") and rng.random() < 0.5:
        data = fix_checksums(data)
    return name, bytes(data)


def flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Changes a few bytes anywhere."""
    for _ in range(rng.integers(1, 20)):
        data[rng.integers(len(data))] = rng.integers(256)
    return data


def edit_header(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Changes a byte among the first to an extreme."""
    place = rng.integers(min(len(data), 80))
    data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
    return data


def put_number(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Writes a number that is too large, mostly among the first bytes."""
    end = 80 if rng.random() < 0.7 else len(data)
    place = int(rng.integers(min(len(data), end)))
    size = int(rng.choice([2, 4]))
    order = "little" if rng.random() < 0.5 else "big"
    number = int(rng.choice(NUMBERS)) % (1 << 8 * size)
    data[place : place + size] = number.to_bytes(size, order)
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Loses its end."""
    return data[: rng.integers(len(data))]


def splice(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Goes on as another file."""
    files = list(healthy().values())
    other = files[rng.integers(len(files))]
    return data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]


def insert(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Gets random bytes in between."""
    place = rng.integers(len(data))
    return data[:place] + rng.bytes(rng.integers(1, 200)) + data[place:]


def repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Has a part of it several times, or not at all."""
    start, end = sorted(rng.integers(len(data), size=2).tolist())
    return data[:start] + data[start:end] * rng.integers(0, 5) + data[end:]


def enlarge(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Claims more pixels than it has, up to too many."""
    order = "little" if rng.random() < 0.5 else "big"
    for side in (WIDTH, HEIGHT):
        claimed = int(rng.choice([side, 1000, 9000, 9459, 60000]))
        for size in (4, 2):
            old = side.to_bytes(size, order)
            place = data.find(old, 4, 700)
            if place >= 0:
                data[place : place + size] = claimed.to_bytes(size, order)
                break
    return data


def fix_checksums(data: bytearray) -> bytearray:
    """Gives every chunk of a PNG the checksum of what it holds now."""
    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        checksum = zlib.crc32(data[place + 4 : end])
        data[end : end + 4] = checksum.to_bytes(4, "big")
        place = end + 4
    return data


WAYS = (flip, edit_header, put_number, cut, splice, insert, repeat, enlarge)


def most_kilobytes() -> int:
    """Returns the most memory that this process has held.

    Not getrusage's: that of a new process begins with what its parent held.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def child(first: int, count: int) -> None:
    """Decodes files and prints what came of them as one line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    transform = TrainTransform(Augment(), SIZE)
    outcomes = collections.Counter()
    slowest = (0.0, -1)
    for number in range(first, first + count):
        name, data = mutated(number)
        print(number, file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            image = decode(data)
            if image.dtype != np.uint8 or image.ndim != 3:
                raise AssertionError(f"{image.dtype} {image.shape}")
            # Training decodes large JPEGs at a part of their size.
            transform({"image": data}, np.random.default_rng(number))
            outcome = "read"
        except BadImage:
            outcome = "refused"
        slowest = max(slowest, (time.perf_counter() - start, number))
        outcomes[name, outcome] += 1
    print(
        json.dumps(
            {
                "outcomes": [[*key, n] for key, n in outcomes.items()],
                "slowest": slowest,
                "kilobytes": most_kilobytes(),
            }
        )
    )


def fuzz(count: int, first: int = 0) -> dict:
    """Decodes `count` damaged files.

    Returns:
      `read` and `refused` counts by kind of file, the slowest file's
      `seconds` and `number`, the most `megabytes` that a child took.

    Raises:
      AssertionError: a child crashed or hung; says on which file.
    """
    read, refused = collections.Counter(), collections.Counter()
    slowest, kilobytes = (0.0, -1), 0
    for start in range(first, first + count, FILES_PER_CHILD):
        portion = min(FILES_PER_CHILD, first + count - start)
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(start), str(portion)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = process.communicate(timeout=CHILD_SECONDS)
            ended = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            ended = "hangs"
        if not output:
            raise AssertionError(f"decoding {ended}: {errors[-3000:]}")
        answer = json.loads(output)
        for name, outcome, number in answer["outcomes"]:
            (read if outcome == "read" else refused)[name] += number
        slowest = max(slowest, tuple(answer["slowest"]))
        kilobytes = max(kilobytes, answer["kilobytes"])
    return {
        "read": read,
        "refused": refused,
        "seconds": slowest[0],
        "number": slowest[1],
        "megabytes": kilobytes / 1024,
    }


def report(figures: dict) -> str:
    """The figures in one paragraph."""
    read, refused = figures["read"].total(), figures["refused"].total()
    return (
        f"{read + refused:,} damaged files of {len(healthy())} kinds: "
        f"{read:,} read, {refused:,} refused, no crash, no hang; slowest "
        f"{figures['seconds']:.2f} s (file {figures['number']}), largest "
        f"process {figures['megabytes']:.0f} MB"
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    print(report(fuzz(options.files, options.first)))


if __name__ == "__main__":
    main()
