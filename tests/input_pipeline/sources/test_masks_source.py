"""Images beside masks: pairs, values, splits, and one sentence for mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from mask_folders import (
    CLASSES,
    mask_of,
    save_mask,
    write_folder,
    write_split,
)
from PIL import Image

from configs import inputs
from core.errors import UserError
from input_pipeline.decoding import BadImage
from input_pipeline.folds import folds_for
from input_pipeline.sources import open_source
from input_pipeline.sources.base import Kind


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "data")


def opened(root, cache=None, **fields):
    data = inputs.data()
    data.root = str(root)
    data.update(fields)
    return open_source(data, cache)


def test_pairs_classes_and_given_splits(root):
    source = opened(root)
    assert source.name == "masks"
    assert source.classes == ("ground", "crack", "hole")
    assert source.labelled.ids.tolist() == [f"p{row}" for row in range(9)]
    assert source.labelled.kinds["mask"] is Kind.MASK
    assert source.given_folds.tolist() == [1] * 6 + [0] * 3
    np.testing.assert_array_equal(
        folds_for(source, 5, 0, root / "folds.csv"), source.given_folds
    )
    for row in (0, 7):
        np.testing.assert_array_equal(
            source.labelled.read(row)["mask"], mask_of(row)
        )
        counts = np.bincount(mask_of(row).ravel(), minlength=3)
        assert source.mask_pixels[row].tolist() == counts.tolist()
    # Stratified by the rarest class that an image has.
    assert set(source.labelled.labels[::2].tolist()) == {1}
    assert set(source.labelled.labels[1::2].tolist()) == {2}
    assert source.test.ids.tolist() == ["p9", "p10"]
    assert "mask" not in source.test.kinds


def test_without_validation_folders_the_images_are_folded(root):
    source = opened(root, val_images="")
    assert source.given_folds is None
    assert len(source.labelled) == 6
    folds = folds_for(source, 3, 0, root / "folds.csv")
    assert np.bincount(folds).tolist() == [2, 2, 2]


def test_a_class_of_one_image_is_no_reason_to_refuse(root):
    mask = mask_of(0)
    mask[-2:, :2] = 3
    save_mask(root, mask)
    (root / "classes.csv").write_text(CLASSES + "3,dent,0\n")
    source = opened(root, val_images="")
    assert source.mask_pixels[:, 3].tolist() == [4, 0, 0, 0, 0, 0]
    assert 3 not in source.labelled.labels
    folds_for(source, 3, 0, root / "folds.csv")


@pytest.mark.parametrize(
    "folders",
    [
        ("images/{}", "masks/{}"),
        ("{}/images", "{}/masks"),
        ("img_dir/{}", "ann_dir/{}"),
        ("images", "masks"),
        ("photos", "labels"),
    ],
    ids=str,
)
def test_common_layouts_are_found_and_others_named(tmp_path, folders):
    write_split(tmp_path, "train", 4, folders=folders)
    fields = {}
    if folders[0] == "photos":
        fields = {"train_images": "photos", "train_masks": "labels"}
    source = opened(tmp_path, **fields)
    assert (source.name, len(source.labelled)) == ("masks", 4)
    assert source.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    "folders", [("img_{}", "mask_{}"), ("{}/images", "{}/masks")]
)
def test_validation_folders_can_be_left_out_of_any_layout(tmp_path, folders):
    write_split(tmp_path, "train", 4, folders=folders)
    write_split(tmp_path, "val", 2, start=4, folders=folders)
    assert opened(tmp_path).given_folds.tolist() == [1] * 4 + [0] * 2
    source = opened(tmp_path, val_images="")
    assert source.given_folds is None and len(source.labelled) == 4


@pytest.mark.parametrize("field", ["train_images", "val_images", "test_images"])
def test_a_folder_that_the_config_names_must_exist(root, field):
    with pytest.raises(UserError, match="typo does not exist"):
        opened(root, **{field: "typo"}, source="masks")


def test_class_folders_may_be_called_masks(tmp_path):
    for name in ("masks", "no_masks"):
        (tmp_path / name).mkdir()
        for row in range(3):
            picture = Image.fromarray(np.full((8, 8, 3), row, np.uint8))
            picture.save(tmp_path / name / f"{row}.png")
    assert opened(tmp_path).name == "folders"


def test_values_that_are_no_indices_are_listed(root):
    for path in root.glob("mask_*/*.png"):
        values = np.asarray(Image.open(path))
        Image.fromarray((values > 0) * np.uint8(128)).save(path)
    (root / "classes.csv").unlink()
    with pytest.raises(UserError, match="mask_values=0,128"):
        opened(root)
    assert opened(root, mask_values="0,128").classes == ("0", "1")


def test_images_in_subfolders_are_paired(root):
    for kind, ending in (("img", "jpg"), ("mask", "png")):
        folder = root / f"{kind}_train"
        (folder / "a").mkdir()
        (folder / f"p0.{ending}").rename(folder / f"a/p1.{ending}")
    ids = opened(root).labelled.ids.tolist()
    assert "a/p1" in ids and "p1" in ids


def test_masks_beside_images_in_one_folder(tmp_path):
    write_split(tmp_path, "train", 4, folders=("mixed", "masks_{}"))
    for path in (tmp_path / "masks_train").glob("*.png"):
        path.rename(tmp_path / "mixed" / f"{path.stem}_mask.png")
    fields = {"train_images": "mixed", "train_masks": "mixed"}
    source = opened(tmp_path, **fields, mask_suffix="_mask")
    assert source.labelled.ids.tolist() == ["p0", "p1", "p2", "p3"]
    assert not source.left_out


def test_equal_names_in_two_splits_are_told_apart(root):
    write_split(root, "val", 1, start=0)
    ids = opened(root).labelled.ids.tolist()
    assert len(set(ids)) == len(ids)
    assert {"train/p0", "val/p0"} <= set(ids)


def test_a_list_of_classes_may_skip_values_and_ignore_some(root):
    (root / "classes.csv").write_text(
        "name,index,ignore\nhole,2,0\nground,0,0\nvoid,9,1\ncrack,1,0\n"
    )
    mask = mask_of(0)
    mask[-3:] = 9
    save_mask(root, mask)
    source = opened(root)
    assert source.classes == ("ground", "crack", "hole")
    read = source.labelled.read(0)["mask"]
    assert (read[-3:] == 255).all()
    np.testing.assert_array_equal(read[:-3], mask[:-3])
    np.testing.assert_array_equal(source.labelled.format.encode(read), mask)


def test_colours_and_palettes(root):
    (root / "classes.csv").write_text(
        "index,name,ignore,r,g,b\n0,ground,0,0,0,0\n1,crack,0,128,0,0\n"
        "2,hole,0,0,128,0\n9,void,1,255,255,255\n"
    )
    colours = np.uint8([[0, 0, 0], [128, 0, 0], [0, 128, 0]])
    save_mask(root, colours[mask_of(0)])
    indexed = Image.fromarray(mask_of(1))
    indexed.putpalette(colours.ravel().tolist())
    indexed.save(root / "mask_train/p1.png")
    source = opened(root)
    for row in (0, 1):
        np.testing.assert_array_equal(
            source.labelled.read(row)["mask"], mask_of(row)
        )
    # What is written shows in the same colours.
    palette = np.reshape(source.labelled.format.palette, (-1, 3))
    np.testing.assert_array_equal(palette[:3], colours)
    assert palette[9].tolist() == [255, 255, 255]
    colours[1, 0] = 127
    save_mask(root, colours[mask_of(0)])
    with pytest.raises(UserError, match=r"1 of 9 masks .*colour \(127, 0, 0\)"):
        opened(root)


def test_binaries_are_mapped_on_request(root):
    for path in root.glob("mask_*/*.png"):
        values = np.asarray(Image.open(path))
        Image.fromarray((values > 0) * np.uint8(255)).save(path)
    (root / "classes.csv").unlink()
    with pytest.raises(UserError, match="mask_values=0,255"):
        opened(root)
    source = opened(root, mask_values="0,255")
    assert source.classes == ("0", "1")
    assert source.labelled.read(3)["mask"].max() == 1


def test_255_needs_a_meaning(root):
    mask = mask_of(0)
    mask[0] = 255
    save_mask(root, mask)
    with pytest.raises(UserError, match=r"1 of 9 .*ignore_index=255"):
        opened(root)
    (root / "classes.csv").unlink()
    with pytest.raises(UserError, match="ignore_index=255"):
        opened(root)
    source = opened(root, ignore_index=255)
    assert source.classes == ("0", "1", "2")
    assert source.mask_pixels[0].sum() == mask.size - mask.shape[1]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda root: (root / "mask_train/p3.png").unlink(),
            r"1 of 6 files in .*img_train have no mask .*p3\.jpg",
        ),
        (
            lambda root: (root / "img_val/p7.jpg").unlink(),
            r"1 of 3 files in .*mask_val have no image .*p7\.png",
        ),
        (
            lambda root: [
                p.rename(p.with_name(f"{p.stem}_mask.png"))
                for p in root.glob("mask_*/*.png")
            ],
            r"mask_suffix=_mask",
        ),
        (
            lambda root: (
                save_mask(root, mask_of(0), "mask_train/p0.jpg")
                or (root / "mask_train/p0.png").unlink()
            ),
            r"1 of 9 masks .*p0\.jpg.*JPEG",
        ),
        (
            lambda root: save_mask(root, mask_of(0, (16, 20))),
            r"1 of 9 masks .* 16x20 pixels and its image 20x16",
        ),
        (
            lambda root: save_mask(root, mask_of(0) * 3),
            r"1 of 9 masks .*p0\.png holds 3",
        ),
        (
            lambda root: (root / "mask_train/p0.png").write_bytes(b"\x89PNG"),
            r"1 of 9 masks cannot be used: .*p0\.png",
        ),
        (
            lambda root: save_mask(root, mask_of(0), "mask_train/p0.bmp"),
            r"has p0\.\w+ and p0\.\w+ for",
        ),
        (
            lambda root: (root / "classes.csv").write_text(
                CLASSES.replace("2,hole", "1,hole")
            ),
            "index '1' twice",
        ),
        (
            lambda root: [p.unlink() for p in root.glob("*_train/*")],
            "img_train holds no image",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_refused_in_one_sentence(root, spoil, words):
    spoil(root)
    with pytest.raises(UserError, match=words) as refused:
        opened(root)
    assert "\n" not in str(refused.value)
    assert ";" in str(refused.value) or ":" in str(refused.value)


def test_a_photo_that_exif_turns_beside_a_mask_that_is_not(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.open(root / "img_train/p0.jpg")
    photo.save(root / "img_train/p0.jpg", exif=exif)
    with pytest.raises(UserError, match="EXIF"):
        opened(root)
    save_mask(root, np.rot90(mask_of(0), -1))
    assert opened(root).labelled.read(0)["mask"].shape == (20, 16)


def test_masks_are_counted_once_and_again_after_a_change(root, tmp_path):
    cache = tmp_path / "cache"
    first = opened(root, cache)
    (kept,) = cache.glob("masks-*.npz")
    before = kept.stat().st_mtime_ns
    again = opened(root, cache)
    assert kept.stat().st_mtime_ns == before
    np.testing.assert_array_equal(first.mask_pixels, again.mask_pixels)
    kept.write_bytes(b"PK\x03\x04 spoilt")
    np.testing.assert_array_equal(
        opened(root, cache).mask_pixels, first.mask_pixels
    )
    save_mask(root, mask_of(4))
    assert opened(root, cache).mask_pixels[0, 1] > first.mask_pixels[0, 1]


def test_a_mask_is_known_by_what_it_holds_not_by_its_file(root):
    first = opened(root)
    assert first.mask_digests.shape == (9, 16)
    assert len(np.unique(first.mask_digests[:6], axis=0)) == 6
    save_mask(root, mask_of(0), compress_level=1)
    again = opened(root)
    np.testing.assert_array_equal(first.mask_digests, again.mask_digests)
    # As many pixels of each class, elsewhere.
    save_mask(root, mask_of(0)[:, ::-1])
    moved = opened(root)
    np.testing.assert_array_equal(first.mask_pixels, moved.mask_pixels)
    changed = (first.mask_digests != moved.mask_digests).any(axis=1)
    assert changed.tolist() == [True] + [False] * 8


def test_a_mask_that_changes_later_is_a_bad_image(root):
    source = opened(root)
    save_mask(root, mask_of(0) + 7)
    with pytest.raises(BadImage, match="no class"):
        source.labelled.read(0)


@pytest.mark.parametrize("name", ["steel3", "blood3", "camvid"])
def test_real_data_is_read_as_its_list_of_classes_says(shared_data, name):
    folder = shared_data / name
    source = opened(folder)
    lines = (folder / "classes.csv").read_text().split()[1:]
    rows = [line.split(",") for line in lines]
    counted = [int(row[3]) for row in rows if row[2] == "0"]
    train = source.mask_pixels[source.given_folds == 1]
    assert train.sum(0).tolist() == counted
