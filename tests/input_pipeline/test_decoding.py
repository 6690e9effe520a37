from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, eval_image, photo, train_image

from input_pipeline import decoding
from input_pipeline.decoding import BadImage, decode
from input_pipeline.sources.base import FileExamples
from input_pipeline.transforms.policy import Augment


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_odd_image_behaves_as_its_manifest_says(shared_data):
    folder = shared_data / "odd_images"
    with open(folder / "manifest.csv", encoding="utf-8") as file:
        manifest = list(csv.DictReader(file))
    names = [row["file"] for row in manifest]
    assert len(names) >= 17
    images = FileExamples(
        np.array(names), np.zeros(len(names), np.int32), str(folder), names
    )
    rng = np.random.default_rng(0)
    for number, row in enumerate(manifest):
        if row["expected"] == "bad":
            with pytest.raises(BadImage) as error:
                decode(images.read(number)["image"])
            assert re.search(REASONS[row["file"]], str(error.value))
            continue
        data = images.read(number)["image"]
        pixels = decode(data)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3, row
        assert train_image(data, Augment(), 32, rng).shape == (32, 32, 3)
        views = eval_image(data, ("center", "crop_flip"), 32, row["file"])
        assert views.shape == (2, 32, 32, 3)


REASONS = {
    "truncated.jpg": "truncated",
    "empty.jpg": "empty",
    "text.jpg": "not an image",
    "bomb.png": f"more than {decoding.MAX_PIXELS} pixels",
    "folder.jpg": "a folder",
}


def test_odd_images_show_what_is_in_them(shared_data):
    """Against Pillow's own ways for single kinds of images."""
    folder = shared_data / "odd_images"

    def ours_and_pillow(name):
        path = folder / name
        with Image.open(path) as image:
            image.load()
        return decode(path.read_bytes()), image

    for name in ("gray.jpg", "palette.png", "photo.webp", "photo.bmp"):
        pixels, image = ours_and_pillow(name)
        np.testing.assert_array_equal(pixels, image.convert("RGB"))
    pixels, image = ours_and_pillow("png_inside.jpg")
    assert image.format == "PNG"
    np.testing.assert_array_equal(pixels, image.convert("RGB"))

    pixels, image = ours_and_pillow("gray16.png")
    exact = np.asarray(image) / 257
    assert exact.max() > 128 and np.ptp(pixels[..., 0]) > 100
    assert np.abs(pixels - exact[..., None]).max() <= 0.5

    pixels, image = ours_and_pillow("exif_rotated.jpg")
    assert image.getexif()[0x0112] == 6
    stored = np.asarray(image)
    np.testing.assert_array_equal(pixels, np.rot90(stored, -1))

    pixels, image = ours_and_pillow("rgba.png")
    *colors, alpha = np.moveaxis(np.asarray(image, float), 2, 0)
    assert alpha.min() < 255
    share = alpha[..., None] / 255
    over_white = np.stack(colors, -1) * share + 255 * (1 - share)
    assert np.abs(pixels - over_white).max() <= 1

    pixels, image = ours_and_pillow("cmyk.jpg")
    assert image.mode == "CMYK"
    # The photo is of a banana before a bright wall: inverted it is dark.
    assert pixels.mean() > 128
    assert pixels[..., 0].mean() > pixels[..., 2].mean() + 20

    pixels, image = ours_and_pillow("animated.gif")
    np.testing.assert_array_equal(pixels, image.convert("RGB"))
    assert decode((folder / "one_pixel.png").read_bytes()).shape == (1, 1, 3)
    assert decode((folder / "thin.png").read_bytes()).shape == (3, 2000, 3)


def test_pixels_from_memory_are_taken_as_they_are():
    np.testing.assert_array_equal(decode(photo()), photo())


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(4, 0)
    for kind in ("PNG", "TIFF"):
        pixels = decode(saved(Image.fromarray(ramp), kind))
        expected = np.round(ramp / 257)
        for channel in range(3):
            np.testing.assert_array_equal(pixels[..., channel], expected)


def test_alpha_is_composited_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, 0, 3], rgba[0, 1, 3], rgba[1, 0, 3] = 255, 0, 128
    pixels = decode(saved(Image.fromarray(rgba), "PNG"))
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[0, 1].tolist() == [255, 255, 255]
    np.testing.assert_allclose(pixels[1, 0], [227, 127, 127], atol=1)


def test_a_transparent_palette_colour_is_composited_too():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    pixels = decode(saved(image, "PNG", transparency=0))
    assert pixels[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    from PIL import ImageOps

    image = Image.fromarray(photo(16, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), np.asarray(expected))
    is_turned = orientation >= 5
    assert decode(data).shape[:2] == ((24, 16) if is_turned else (16, 24))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_does_not_lose_the_pixels():
    data = encoded(photo(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x00\x99junk")
    assert decode(data).shape == (24, 32, 3)


@pytest.mark.parametrize("extra", [b"", b"\0" * 1000])
def test_the_first_frame_of_an_animation_counts(extra):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data + extra)[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"these are words", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (encoded(photo())[:600], "damaged|broken"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4), np.uint8), "not uint8"),
    ],
)
def test_bad_data_has_a_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode(data)


def test_a_bomb_is_refused_before_its_pixels_are_decoded(monkeypatch):
    data = saved(Image.new("L", (1000, 1000)), "PNG")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 999_999)
    loads = []
    monkeypatch.setattr(Image.Image, "load", lambda *_: loads.append(1))
    with pytest.raises(BadImage, match="1000x1000"):
        decode(data)
    assert not loads


def test_unreadable_files_are_bad_images_not_errors(tmp_path):
    import os

    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = ["folder.jpg", "pipe.jpg", "gone.jpg"]
    images = FileExamples(
        np.array(names), np.zeros(3, np.int32), str(tmp_path), names
    )
    for row, reason in enumerate(["folder", "regular", "No such file"]):
        with pytest.raises(BadImage, match=reason):
            images.read(row)


def test_extreme_shapes_stay_small_in_memory():
    """Resized whole, 30000x2 at this height would be 1.1 gigapixels."""
    import tracemalloc

    data = encoded(photo(2, 30000), "PNG")
    tracemalloc.start()
    views = eval_image(data, ("center", "crop"), 224, "thin")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert views.shape == (2, 224, 224, 3)
    assert views.std() > 1
    assert peak < 50e6
