"""Mask files as strangers make them: taken, or refused in one sentence."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from mask_folders import CLASSES, mask_of, save_mask, write_split
from PIL import Image

from core.errors import UserError
from input_pipeline import audit
from input_pipeline.sources import open_source
from input_pipeline.transforms.policy import Augment, TrainTransform
from input_pipeline.transforms.views import WholeTransform


@pytest.fixture
def root(tmp_path):
    """Four images to train."""
    write_split(tmp_path, "train", 4)
    (tmp_path / "classes.csv").write_text(CLASSES)
    return tmp_path


@pytest.fixture
def opened(root, data_config):
    def open_(**fields):
        return open_source(data_config(root=str(root), **fields))

    return open_


def written(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    image = (
        pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    )
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(pixels):
    exif = Image.Exif()
    exif[0x0112] = 3
    return written(pixels, exif=exif)


def palette(mask, **options):
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    return written(image, **options)


COLOURS = np.uint8([[0, 0, 0], [200, 0, 0], [0, 200, 0]])
MASK = mask_of(0)


@pytest.mark.parametrize(
    "data",
    [
        palette(MASK),
        palette(MASK, transparency=0),
        palette(MASK, transparency=bytes([0, 255, 9])),
        written(MASK.astype(np.uint16)),
        written(MASK, "TIFF"),
        written(MASK, "BMP"),
        written(MASK, "GIF"),
        written(MASK.astype(bool)),
    ],
    ids=["P", "P-tRNS", "P-alpha", "16 bit", "TIFF", "BMP", "GIF", "1 bit"],
)
def test_masks_that_are_taken_whatever_the_file(root, opened, data):
    """Named .png: what a file is, its bytes say."""
    (root / "mask_train/p0.png").write_bytes(data)
    np.testing.assert_array_equal(opened().labelled.mask(0), MASK)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (written(MASK)[:60], "damaged|broken"),
        (b"hello", "not an image"),
        (written(COLOURS[MASK], "JPEG"), "JPEG"),
        (written(MASK, "JPEG"), "JPEG"),
        (written(COLOURS[MASK]), "mode RGB, not one channel"),
        (written(np.dstack([COLOURS[MASK], MASK + 255])), "mode RGBA"),
        (written(Image.fromarray(MASK).convert("LA")), "mode LA"),
        (written(COLOURS[MASK], "WEBP"), "mode RGB"),
        (written(MASK.astype(np.uint16) * 1000), "outside 0 to 255"),
        (written(MASK.astype(np.float32), "TIFF"), "mode F"),
        (turned(MASK), "EXIF entry turns the mask"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_masks_that_are_refused(root, opened, data, words):
    (root / "mask_train/p0.png").write_bytes(data)
    with pytest.raises(UserError, match=words) as refused:
        opened()
    assert "p0.png" in str(refused.value)
    assert "1 of 4 masks" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_of_a_list_are_taken_with_or_without_alpha(root, opened, alpha):
    (root / "classes.csv").write_text(
        "index,name,r,g,b\n0,a,0,0,0\n1,b,200,0,0\n2,c,0,200,0\n"
    )
    pixels = COLOURS[MASK]
    if alpha:
        pixels = np.dstack([pixels, np.full_like(MASK, 128)])
    (root / "mask_train/p0.png").write_bytes(written(pixels))
    np.testing.assert_array_equal(opened().labelled.mask(0), MASK)


def test_two_classes_of_one_colour_are_refused(root, opened):
    (root / "classes.csv").write_text(
        "index,name,r,g,b\n0,a,0,0,0\n1,b,9,0,0\n2,c,9,0,0\n"
    )
    with pytest.raises(UserError, match=r"colour \(9, 0, 0\) twice"):
        opened()


def test_names_as_people_write_them(root, opened):
    """Dots, capitals, other endings, other scripts, links."""
    images, masks = root / "img_train", root / "mask_train"
    (images / "p0.jpg").rename(images / "scan.v1.2.JPG")
    (masks / "p0.png").rename(masks / "scan.v1.2.PNG")
    (images / "p1.jpg").rename(images / "фото 1.jpeg")
    (masks / "p1.png").rename(masks / "фото 1.bmp")
    os.symlink(images / "p2.jpg", images / "link.jpg")
    os.symlink(masks / "p2.png", masks / "link.png")
    (masks / "Thumbs.db").write_bytes(b"x")
    found = opened().labelled
    assert sorted(found.ids) == ["link", "p2", "p3", "scan.v1.2", "фото 1"]
    for row in range(5):
        assert found.read(row)["mask"].shape == (16, 20)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda root: os.symlink("nowhere", root / "mask_train/p4.png"),
            r"1 of 5 files .*mask_train have no image .*p4\.png",
        ),
        (
            lambda root: (
                (root / "mask_train/p0.png").unlink()
                or os.symlink("nowhere", root / "mask_train/p0.png")
            ),
            "No such file",
        ),
        (
            lambda root: (
                (root / "mask_train/p0.png").unlink()
                or (root / "mask_train/p0.png").mkdir()
            ),
            "a folder, not a file",
        ),
        (
            lambda root: save_mask(root, MASK, "mask_train/p0.tif"),
            r"p0\.png and p0\.tif for 'p0'",
        ),
        (
            lambda root: (root / "mask_train/p0.png").rename(
                root / "mask_train/P0.png"
            ),
            r"1 of 4 files .* \(for one, p0\.jpg\)",
        ),
        (
            lambda root: [p.unlink() for p in root.glob("mask_train/*")],
            "4 of 4 files in .*img_train have no mask",
        ),
        (
            lambda root: (root / "classes.csv").write_text("name\na\nb\n"),
            "has no column 'index'",
        ),
        (
            lambda root: (root / "classes.csv").write_text(""),
            "has no content",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folders_that_are_refused(root, opened, spoil, words):
    spoil(root)
    with pytest.raises(UserError, match=words) as refused:
        opened()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 5000), (3, 2)])
def test_images_of_any_shape_go_through_both_transforms(root, opened, size):
    width, height = size
    for kind, mode in (("img", "RGB"), ("mask", "L")):
        Image.new(mode, size, 1 if mode == "L" else (9, 8, 7)).save(
            root / f"{kind}_train/wide.png"
        )
    source = opened()
    row = source.labelled.ids.tolist().index("wide")
    assert source.mask_sizes[row].tolist() == [width, height]
    example = source.labelled.read(row)
    augment = Augment(rotate=20.0, zoom=(0.5, 2.0), crop_max_share=0.7)
    for seed in range(3):
        done = TrainTransform(augment, 32)(example, np.random.default_rng(seed))
        assert done["image"].shape == (32, 32, 3)
        assert set(np.unique(done["mask"])) <= {1, 255}
    whole = WholeTransform(32, (64, 48))(example)
    across, down = whole["mask_size"]
    assert (whole["mask"][:down, :across] == 1).all()
    assert whole["size"].tolist() == [width, height]
    found = {one.problem for one in audit.audit(source, 2)}
    assert "bad training image" not in found


def test_a_photo_turned_upside_down_is_told_as_no_size_says_it(root, opened):
    assert "turned photo" not in {
        one.problem for one in audit.audit(opened(), 2)
    }
    path = root / "img_train/p1.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)
    found = {one.problem: one.id for one in audit.audit(opened(), 2)}
    assert found["turned photo"] == "p1"
