"""Small photos are enlarged: as they are read, or once by a network."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from input_pipeline.decoding import BadImage, decode
from input_pipeline.sources import upscaled
from input_pipeline.sources.base import ArrayExamples, FileExamples

SIDE = 20

# Width and height of photos, and of what is made of them.
SIZES = {
    "small": ((10, 12), (20, 24)),
    "odd": ((16, 9), (36, 20)),
    "large": ((20, 30), (20, 30)),
    "strip": ((200, 2), (200, 2)),
    "pixel": ((1, 1), (20, 20)),
}


def double(pixels):
    return pixels.repeat(2, 0).repeat(2, 1)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, ((width, height), _) in SIZES.items():
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "bad.png").write_bytes(b"no image")
    names = [f"{name}.png" for name in (*SIZES, "bad")]
    labels = np.full(len(names), -1, np.int32)
    return FileExamples(np.array(names), labels, str(folder), names)


def step(tmp_path, method):
    return upscaled.Upscaling(method, SIDE, tmp_path / "cache")


def check(examples, files, method):
    for row, (_, (width, height)) in enumerate(SIZES.values()):
        image = examples.read(row)["image"]
        raw = files.read(row)["image"]
        pixels = decode(image)
        assert pixels.shape == (height, width, 3)
        if decode(raw).shape == pixels.shape:
            assert image == raw
        else:
            expected = decode(raw)
            while method == "network" and min(expected.shape[:2]) < SIDE:
                expected = double(expected)
            kind = upscaled.FILTERS.get(method, Image.Resampling.LANCZOS)
            expected = Image.fromarray(expected).resize((width, height), kind)
            np.testing.assert_array_equal(pixels, np.asarray(expected))
    with pytest.raises(BadImage):
        examples.read(len(SIZES))


@pytest.mark.parametrize("method", upscaled.FILTERS)
def test_filters_enlarge_what_is_small_and_nothing_else(
    method, files, tmp_path
):
    examples = upscaled.upscaled(files, step(tmp_path, method))
    check(pickle.loads(pickle.dumps(examples)), files, method)
    assert not (tmp_path / "cache").exists()


def test_a_network_works_once_for_each_photo(files, tmp_path):
    examples = upscaled.upscaled(files, step(tmp_path, "network"))
    with pytest.raises(UserError, match="run the same command again"):
        examples.read(0)
    calls = []

    def counted(pixels):
        calls.append(pixels.shape)
        return double(pixels)

    rows = np.arange(len(files))
    lacking = upscaled.lacking(examples, rows)
    assert lacking.tolist() == [0, 1, 4]
    upscaled.fill(examples, lacking, counted)
    assert len(calls) == 1 + 2 + 5
    upscaled.fill(examples, lacking, counted)
    assert len(calls) == 1 + 2 + 5
    assert not len(upscaled.lacking(examples, rows))
    check(pickle.loads(pickle.dumps(examples)), files, "network")


def test_pixels_and_other_sizes_have_places_of_their_own(tmp_path):
    pixels = np.arange(2 * 6 * 4 * 3, dtype=np.uint8).reshape(2, 6, 4, 3)
    labels, names = np.zeros(2, np.int32), np.array(["a", "b"])
    for side in (10, 12):
        how = upscaled.Upscaling("network", side, tmp_path)
        for images in (pixels, pixels.reshape(2, 4, 6, 3)):
            raw = ArrayExamples(names, labels, images)
            examples = upscaled.upscaled(raw, how)
            lacking = upscaled.lacking(examples, np.arange(2))
            assert len(lacking) == 2
            upscaled.fill(examples, lacking, double)
            shape = decode(examples.read(1)["image"]).shape
            assert min(shape[:2]) == side
    assert len(list(tmp_path.rglob("*.png"))) == 8


CHILD = """
import sys, time
import numpy as np
from input_pipeline.sources import upscaled
from input_pipeline.sources.base import ArrayExamples

def double(pixels):
    time.sleep(0.02)
    return pixels.repeat(2, 0).repeat(2, 1)

count = 60
images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
raw = ArrayExamples(np.arange(count).astype(str), np.zeros(count, int), images)
how = upscaled.Upscaling("network", 16, __import__("pathlib").Path(sys.argv[1]))
examples = upscaled.upscaled(raw, how)
rows = upscaled.lacking(examples, np.arange(count))
print(len(rows), flush=True)
upscaled.fill(examples, rows, double)
"""


def test_a_killed_process_has_lost_nothing_that_was_done(tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "60\n"
    while len(list(tmp_path.rglob("*.png"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = list(tmp_path.rglob("[!.]*.png"))
    assert 5 <= len(done) < 60
    for path in done:
        assert decode(path.read_bytes()).shape == (16, 16, 3)
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert again.stdout == f"{60 - len(done)}\n"
    assert len(list(tmp_path.rglob("[!.]*.png"))) == 60


def test_masks_are_refused(data_config, tmp_path):
    from input_pipeline.sources import open_source

    source = open_source(data_config(source="digit_scenes"))
    with pytest.raises(UserError, match=r"upscale is 'lanczos'.* has masks"):
        upscaled.upscaled_source(source, step(tmp_path, "lanczos"))
