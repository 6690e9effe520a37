"""An audit of images with masks lists what training refuses, and more."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest
from mask_folders import (
    CLASSES,
    mask_of,
    save_mask,
    write_folder,
)
from PIL import Image
from sample_images import encoded, photo

from core.errors import UserError
from input_pipeline import audit
from input_pipeline.findings import DOUBTS, LOSSES
from input_pipeline.sources import open_source


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "data")


def found_in(root, data_config, **fields):
    """Audits a folder: {(split, problem, file or id): detail}."""
    data = data_config(root=str(root), **fields)
    source = open_source(data, keep_going=True)
    return {
        (one.split, one.problem, one.file.rpartition("/")[2]): one.detail
        for one in audit.audit(source, data.folds)
    }


def run(root, *more):
    return subprocess.run(
        [
            sys.executable,
            *("-m", "input_pipeline", "audit", "--config=configs/unet.py"),
            f"--config.data.root={root}",
            *more,
        ],
        capture_output=True,
        text=True,
    )


def test_a_clean_folder_has_no_findings_and_a_table_of_shares(
    root, data_config
):
    assert found_in(root, data_config) == {}
    source = open_source(data_config(root=str(root)))
    heading, *table, last = audit.summary(source, [])
    assert heading == (
        "'masks': 6 images to train, 3 to validate in 3 classes, 2 to predict"
    )
    assert last.strip() == "every image can be read, and nothing else is odd"
    cells = [line.split() for line in table]
    assert cells[0] == ["pixels", "of", "train", "images", "val", "images"]
    assert [row[0] for row in cells[1:]] == ["ground", "crack", "hole"]
    for label, row in enumerate(cells[1:]):
        for column, split in ((1, "train"), (3, "val")):
            rows = range(6) if split == "train" else range(6, 9)
            masks = np.stack([mask_of(row) for row in rows])
            share = (masks == label).mean()
            assert row[column] == f"{share:.2%}"
            images = (masks == label).any(axis=(1, 2)).sum()
            assert row[column + 1] == str(images)


def test_everything_that_training_refuses_is_listed(root, data_config):
    train = root / "mask_train"
    (train / "p1.png").unlink()
    (root / "img_val/p7.jpg").unlink()
    save_mask(root, mask_of(2), "mask_train/p2.bmp")
    save_mask(root, mask_of(3) * 5, "mask_train/p3.png")
    save_mask(root, mask_of(4, (16, 20)), "mask_train/p4.png")
    (train / "p5.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    Image.fromarray(mask_of(8)).save(root / "mask_val/p8.jpg")
    (root / "mask_val/p8.png").unlink()
    with pytest.raises(UserError):
        open_source(data_config(root=str(root)))
    found = found_in(root, data_config)
    refused = {key: text for key, text in found.items() if key[1] in LOSSES}
    assert refused.keys() == {
        ("train", "no mask", "p1.jpg"),
        ("val", "no photo", "p7.png"),
        ("train", "two files", "p2.png"),
        ("train", "mask values", "p3.png"),
        ("train", "mask size", "p4.png"),
        ("train", "bad mask", "p5.png"),
        ("val", "bad mask", "p8.jpg"),
    }
    assert refused["train", "mask values", "p3.png"] == "holds 10"
    assert (
        "16x20 pixels and its image 20x16"
        in (refused["train", "mask size", "p4.png"])
    )
    assert "JPEG" in refused["val", "bad mask", "p8.jpg"]


def test_the_command_lists_them_in_its_csv(root, tmp_path):
    save_mask(root, mask_of(3) * 5, "mask_train/p3.png")
    (root / "mask_train/p4.png").write_bytes(b"")
    out = tmp_path / "audit.csv"
    done = run(root, f"--out={out}")
    assert done.returncode == 1, done.stderr
    assert "1 × mask values: " in done.stdout
    assert "1 × bad mask: " in done.stdout
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"].rpartition("/")[2] for row in rows} == {
        "p3.png",
        "p4.png",
    }


def test_where_nothing_is_left_the_audit_says_what_training_says(
    root, data_config
):
    for path in root.glob("mask_*/*.png"):
        path.write_bytes(b"")
    data = data_config(root=str(root))
    sentences = set()
    for keep_going in (False, True):
        with pytest.raises(UserError, match="9 of 9 masks") as refused:
            open_source(data, keep_going=keep_going)
        sentences.add(str(refused.value))
    assert len(sentences) == 1


def test_empty_masks_and_masks_of_one_class(root, data_config):
    (root / "classes.csv").write_text(CLASSES + "255,void,1\n")
    ground = np.zeros((16, 20), np.uint8)
    save_mask(root, ground, "mask_train/p0.png")
    save_mask(root, ground + 2, "mask_train/p1.png")
    save_mask(root, ground + 255, "mask_val/p6.png")
    half = ground.copy()
    half[:8] = 255
    save_mask(root, half, "mask_val/p7.png")
    # The crack and the hole of the others stay.
    found = found_in(root, data_config)
    assert found.pop(("val", "class not validated", "")) == (
        "class 'hole' is in no mask to validate on"
    )
    assert found == {
        ("train", "empty mask", "p0.jpg"): "all pixels are 'ground'",
        ("train", "one-class mask", "p1.jpg"): "all pixels are 'hole'",
        ("val", "empty mask", "p6.jpg"): "all pixels are ignored",
        ("val", "empty mask", "p7.jpg"): "all pixels are 'ground'",
    }
    assert {problem for _, problem, _ in found} <= set(DOUBTS)
    source = open_source(data_config(root=str(root)))
    *_, ignored = [
        line for line in audit.summary(source, []) if "ignored" in line
    ]
    assert ignored.split() == ["ignored", "0.00%", "0", "50.00%", "2"]


def test_a_class_that_cannot_be_learned_is_doubtful_but_loses_nothing(
    root, data_config
):
    """Training takes such a list of classes as it is."""
    (root / "classes.csv").write_text(CLASSES + "3,dent,0\n4,rust,0\n")
    mask = mask_of(6)
    mask[-1] = 4
    save_mask(root, mask, "mask_val/p6.png")
    source = open_source(data_config(root=str(root)))
    found = [
        one.detail
        for one in audit.audit(source, folds=5)
        if one.problem == "class in no mask"
    ]
    assert found == [
        "class 'dent' is in no mask",
        "class 'rust' is in no mask to train on",
    ]
    assert "class in no mask" in DOUBTS


def test_copies_with_other_masks_and_copies_across_splits(root, data_config):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for path in (root / f"img_{split}").iterdir():
            seed = int(path.stem[1:]) + 100 * count
            path.write_bytes(encoded(photo(16, 20, seed)))
    images = root / "img_train"
    (images / "p1.jpg").write_bytes((images / "p0.jpg").read_bytes())
    (images / "p3.jpg").write_bytes((images / "p2.jpg").read_bytes())
    save_mask(root, mask_of(2), "mask_train/p3.png")
    (root / "img_val/p6.jpg").write_bytes((images / "p4.jpg").read_bytes())
    (root / "img_test/p9.jpg").write_bytes((images / "p5.jpg").read_bytes())
    assert found_in(root, data_config) == {
        ("train", "two masks", "p1.jpg"): "same pixels as train id 'p0'",
        ("train", "copy", "p3.jpg"): "same pixels as train id 'p2'",
        ("val", "copy across splits", "p6.jpg"): "same pixels as train id 'p4'",
        ("test", "copy across splits", "p9.jpg"): (
            "same pixels as train id 'p5'"
        ),
    }


@pytest.mark.parametrize("field", ["folds_file=folds.csv", "fold=1"])
def test_folds_where_the_folders_divide_are_refused_as_in_training(root, field):
    done = run(root, f"--config.data.{field}", f"--out={root / 'a.csv'}")
    assert done.returncode == 2
    assert "says itself which images validate" in done.stderr
    assert len(done.stderr.splitlines()) == 1
