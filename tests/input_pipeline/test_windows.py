"""Windows cover an image, at the scale of training crops."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from sample_images import encoded, photo

from input_pipeline import decoding, loader
from input_pipeline.decoding import BadImage
from input_pipeline.sources.base import ArrayExamples, FileExamples
from input_pipeline.transforms import windows
from input_pipeline.transforms.windows import Windows, WindowTransform

lengths = st.integers(1, 9000)


@given(
    lengths,
    lengths,
    st.sampled_from([32, 96, 256]),
    st.floats(0.0, 0.9),
    st.floats(0.02, 1.0),
    st.sampled_from([0.5, 0.75, 1.0, 1.5]),
)
def test_windows_cover_every_pixel_and_overlap_as_asked(
    width, height, size, overlap, share, scale
):
    grid = Windows(size, overlap, share, scale).grid(width, height)
    for starts, length in ((grid.lefts, grid.width), (grid.tops, grid.height)):
        assert starts[0] == 0
        assert starts[-1] == max(0, length - size)  # Moved inwards.
        gaps = np.diff(starts)
        # Half a pixel is rounded away on either side.
        assert (gaps <= math.ceil(size * (1 - overlap)) + 1).all()
        assert (gaps > 0).all() and (gaps <= size).all()


@given(lengths, lengths)
def test_a_window_shows_the_share_of_the_area_that_a_crop_has(width, height):
    share = 0.1
    cut = Windows(128, 0.5, share)
    left, top, right, bottom = cut.boxes(width, height)[0]
    if max(width, height) > 10 * min(width, height):
        return  # Then it is as high as the image is.
    area = (right - left) * (bottom - top)
    assert area == pytest.approx(share * width * height, rel=0.05, abs=4)
    # As wide as it is high, where the whole would be squeezed.
    assert right - left == pytest.approx(bottom - top, rel=0.05, abs=1)


@pytest.mark.parametrize("size", [(89_000_000, 1), (1, 50_000), (1, 1)])
def test_the_thinnest_image_has_few_windows(size):
    for scale in (0.5, 1.0):
        count = len(Windows(64, 0.5, 0.5, scale).grid(*size))
        assert 1 <= count <= 2 * windows.MOST_ALONG


def test_a_long_image_is_cut_along_its_length_alone():
    grid = Windows(256, 0.0, 0.75).grid(1600, 256)
    assert (grid.width, grid.height, grid.tops) == (1600, 256, (0,))
    assert len(grid.lefts) == 7


def cut_all(examples, rows, cut, fill=(9, 9, 9)):
    sizes = [windows.image_size(examples, row) for row in rows]
    cells = windows.cut(examples, np.array(rows), np.array(sizes), cut)
    transform = WindowTransform(cut.size, fill)
    return cells, transform, sizes


def arrays(*pictures):
    ids = np.array([f"p{row}" for row in range(len(pictures))])
    labels = np.full(len(pictures), -1, np.int32)
    return ArrayExamples(ids, labels, pictures)


def test_at_their_own_scale_windows_are_the_pixels_themselves():
    image = photo(96, 160)
    cut = Windows(32, 0.5, 32 * 32 / (96 * 160))
    cells, transform, sizes = cut_all(arrays(image), [0], cut)
    assert sizes == [(160, 96)]
    grid = cut.grid(160, 96)
    assert (grid.width, grid.height) == (160, 96)
    assert len(cells) == len(grid) == 9 * 5
    places = [(top, left) for top in grid.tops for left in grid.lefts]
    for row, (top, left) in enumerate(places):
        example = {**cells.read(row), "id": str(cells.ids[row])}
        shown = transform(example)["image"]
        assert shown.shape == (1, 32, 32, 3)
        expected = image[top : top + 32, left : left + 32]
        assert np.abs(shown[0].astype(int) - expected).max() <= 1


def test_a_window_is_the_part_of_the_resized_image():
    """Within rounding: also at its border, where pixels are smoothed."""
    image = photo(300, 420)
    cut = Windows(64, 0.25, 0.1)
    grid = cut.grid(420, 300)
    whole = np.asarray(
        Image.fromarray(image).resize(
            (grid.width, grid.height), Image.Resampling.BILINEAR
        )
    ).astype(int)
    cells, transform, _ = cut_all(arrays(image), [0], cut)
    places = [(top, left) for top in grid.tops for left in grid.lefts]
    for row, (top, left) in enumerate(places):
        shown = transform({**cells.read(row), "id": "p0"})["image"][0]
        expected = whole[top : top + 64, left : left + 64]
        # Pillow leaves out what lies beyond the box it is given.
        inner = np.abs(shown.astype(int) - expected)[4:-4, 4:-4]
        assert inner.max() <= 2


def test_what_lies_beyond_the_image_is_filled():
    image = photo(40, 60)
    cut = Windows(32, 0.5, 1.0, scale=0.5)
    cells, transform, _ = cut_all(arrays(image), [0], cut, fill=(1, 2, 3))
    grid = cut.grid(60, 40)
    assert (grid.width, grid.height) == (24, 16)
    assert len(cells) == 1
    shown = transform({**cells.read(0), "id": "p0"})["image"][0]
    assert (shown[16:] == (1, 2, 3)).all()
    assert (shown[:, 24:] == (1, 2, 3)).all()
    whole = Image.fromarray(image).resize((24, 16), Image.Resampling.BILINEAR)
    assert np.abs(shown[:16, :24].astype(int) - np.asarray(whole)).max() <= 2


def test_an_image_is_decoded_once_for_all_of_its_windows(monkeypatch):
    calls = []
    decode = windows.upright_rgb
    monkeypatch.setattr(
        windows, "upright_rgb", lambda image: calls.append(1) or decode(image)
    )
    pictures = arrays(photo(64, 64), photo(64, 64, seed=1))
    cells, transform, _ = cut_all(pictures, [1, 0], Windows(32, 0.5, 0.25))
    calls.clear()
    batches = loader.eval_batches(
        cells, np.arange(len(cells)), transform, batch_size=4
    )
    shown = np.concatenate([batch["image"] for batch in batches])
    assert len(calls) == 2
    assert len(cells) == 18
    assert cells.ids.tolist() == ["p1"] * 9 + ["p0"] * 9
    assert not np.array_equal(shown[0], shown[9])


def test_turned_and_unreadable_photos(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # A quarter turn.
    for name, data in {
        "turned.jpg": encoded(photo(40, 80), exif=exif),
        "turned.png": encoded(photo(40, 80), "PNG", exif=exif),
        "cut.jpg": encoded(photo(200, 200))[:900],
        "none.jpg": b"no photo",
    }.items():
        (tmp_path / name).write_bytes(data)
    names = ["turned.jpg", "turned.png", "cut.jpg", "none.jpg", "gone.jpg"]
    examples = FileExamples(
        np.array(names),
        np.full(len(names), -1, np.int32),
        folder=str(tmp_path),
        names=names,
    )
    rows = range(len(names))
    cells, transform, sizes = cut_all(examples, rows, Windows(32, 0.5, 0.5))
    assert sizes == [(40, 80), (40, 80), (200, 200), (0, 0), (0, 0)]
    batches = loader.eval_batches(
        cells, np.arange(len(cells)), transform, batch_size=3
    )
    bad = np.concatenate([b["bad"][b["row"] >= 0] for b in batches])
    per_image = {
        name: set(bad[cells.image_rows == row].tolist())
        for row, name in enumerate(names)
    }
    assert per_image == {
        "turned.jpg": {False},
        "turned.png": {False},
        "cut.jpg": {True},
        "none.jpg": {True},
        "gone.jpg": {True},
    }
    told = capsys.readouterr().err
    assert told.count("cut.jpg") == 1  # Not once for each window.


def test_sizes_are_told_without_decoding(monkeypatch, tmp_path):
    """A PNG, too, unless it says that it is turned, wherever it does so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    files = {
        "plain.png": encoded(photo(40, 80), "PNG"),
        "plain.jpg": encoded(photo(40, 80)),
        "exif.png": encoded(photo(40, 80), "PNG", exif=exif),
        "xmp.png": encoded(photo(40, 80), "PNG", pnginfo=text),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    decoded = []
    decode = windows.upright_rgb
    monkeypatch.setattr(
        windows, "upright_rgb", lambda image: decoded.append(1) or decode(image)
    )
    examples = FileExamples(
        np.array(list(files)),
        np.full(len(files), -1, np.int32),
        folder=str(tmp_path),
        names=list(files),
    )
    found = [windows.image_size(examples, row) for row in range(len(files))]
    upright = [decoding.decode(data).shape[1::-1] for data in files.values()]
    assert found == upright == [(80, 40), (80, 40), (40, 80), (40, 80)]
    assert len(decoded) == 2


def test_loader_processes_get_no_image_along():
    transform = WindowTransform(32, (0, 0, 0))
    example = {"image": photo(64, 64), "id": "a", "box": np.array([0, 0, 9, 9])}
    empty = len(pickle.dumps(transform))
    transform(example)
    assert len(pickle.dumps(transform)) > empty  # As it stands in a worker.
    with pytest.raises(BadImage):
        transform({**example, "id": "b", "image": b"nothing"})
