"""Folders of masks to COCO files and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from mask_folders import write_split
from PIL import Image
from pycocotools.coco import COCO

from core.errors import UserError
from input_pipeline.coco import from_coco, to_coco
from input_pipeline.sources import open_source

CLASSES = "index,name,ignore\n0,background,0\n1,crack,0\n2,hole,0\n9,void,1\n"


def mask_of(row):
    rng = np.random.default_rng(row)
    coarse = rng.choice([0, 0, 0, 1, 2, 9], (9, 12))
    mask = np.repeat(np.repeat(coarse, 4, 0), 3, 1).astype(np.uint8)
    mask[3, 5:9] = 1  # thin
    return mask


@pytest.fixture
def root(tmp_path):
    """Five images to train, two to validate; two in a subfolder."""
    folder = tmp_path / "data"
    names = ["p0", "p1", "sub/p2", "sub/p1", "p.4", "v0", "v1"]
    for row, name in enumerate(names):
        split = "val" if name.startswith("v") else "train"
        image = folder / f"img_{split}" / f"{name}.jpg"
        mask = folder / f"mask_{split}" / f"{name}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.full((36, 36, 3), 20 * row, np.uint8))
        picture.save(image)
        Image.fromarray(mask_of(row)).save(mask)
    (folder / "classes.csv").write_text(CLASSES)
    return folder


@pytest.fixture
def source(root, data_config):
    return open_source(data_config(root=str(root)))


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_there_and_back_changes_no_pixel(
    source, root, tmp_path, data_config, polygons, whole
):
    style = to_coco.Style(0, polygons, whole)
    told = to_coco.export(source, tmp_path / "coco", style)
    assert "7 masks as" in told and "instances_val.json" in told
    back = tmp_path / "back"
    for split in ("train", "val"):
        content = from_coco.read(tmp_path / f"coco/instances_{split}.json")
        from_coco.write_masks(content, back / f"mask_{split}")
        os.symlink(root / f"img_{split}", back / f"img_{split}")
    found = open_source(data_config(root=str(back)))
    assert found.classes == source.classes
    assert found.labelled.ids.tolist() == source.labelled.ids.tolist()
    for row in range(len(source.labelled)):
        np.testing.assert_array_equal(
            found.labelled.mask(row), source.labelled.mask(row)
        )


def test_pycocotools_reads_what_is_written(source, tmp_path, capsys):
    to_coco.export(source, tmp_path, to_coco.Style(0))
    coco = COCO(str(tmp_path / "instances_train.json"))
    capsys.readouterr()
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    assert names == {2: "crack", 3: "hole", 4: "ignored"}
    assert {one["file_name"] for one in coco.imgs.values()} == {
        *("p.4.jpg", "p0.jpg", "p1.jpg", "sub/p1.jpg", "sub/p2.jpg")
    }
    for number, image in coco.imgs.items():
        row = number - 1
        mask = source.labelled.mask(row)
        seen = np.zeros_like(mask)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=number)):
            region = coco.annToMask(one).astype(bool)
            assert one["area"] == region.sum()
            ys, xs = np.nonzero(region)
            left, top = xs.min(), ys.min()
            assert one["bbox"] == [
                *(left, top, xs.max() + 1 - left, ys.max() + 1 - top)
            ]
            assert one["iscrowd"] == (one["category_id"] == 4)
            seen[region] = {2: 1, 3: 2, 4: 255}[one["category_id"]]
        np.testing.assert_array_equal(seen, mask)
        assert (image["height"], image["width"]) == mask.shape


@pytest.mark.parametrize("layout", ["img_{0} mask_{0}", "images/{0} masks/{0}"])
def test_names_that_splits_share_lie_in_the_folder_of_the_split(
    tmp_path, data_config, layout
):
    for split in ("train", "val"):
        write_split(tmp_path, split, 2, folders=layout.format(split).split())
    source = open_source(data_config(root=str(tmp_path)))
    assert "val/p1" in source.labelled.ids
    to_coco.export(source, tmp_path / "coco", to_coco.Style(0))
    for split in ("train", "val"):
        path = tmp_path / f"coco/instances_{split}.json"
        images = json.loads(path.read_text())["images"]
        assert [one["file_name"] for one in images] == ["p0.jpg", "p1.jpg"]


@pytest.mark.parametrize(
    ("classes", "name", "background"),
    [
        (("background", "crack"), None, 0),
        (("Background", "crack"), None, 0),
        (("0", "1"), None, 0),
        (("sky", "road"), None, None),
        (("background", "crack"), "", None),
        (("sky", "road"), "road", 1),
    ],
)
def test_which_class_is_no_category(classes, name, background):
    assert to_coco._background_of(classes, name) == background


def test_any_class_may_be_the_background_there_and_back(
    source, tmp_path, root, data_config
):
    for number, background in enumerate((None, 1, 2)):
        folder = tmp_path / str(number)
        to_coco.export(source, folder, to_coco.Style(background))
        content = from_coco.read(folder / "instances_val.json")
        from_coco.write_masks(content, folder / "mask_train")
        os.symlink(root / "img_val", folder / "img_train")
        found = open_source(data_config(root=str(folder)))
        assert found.classes == source.classes
        for row, given in enumerate(np.flatnonzero(source.given_folds == 0)):
            np.testing.assert_array_equal(
                found.labelled.mask(row), source.labelled.mask(given)
            )


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "input_pipeline", *map(str, words)],
        capture_output=True,
        text=True,
    )


def test_commands(root, tmp_path):
    config = ("--config=configs/unet.py", f"--config.data.root={root}")
    done = run("to-coco", *config, f"--out={tmp_path / 'coco'}", "--polygons")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("7 masks as ")
    path = tmp_path / "coco/instances_train.json"
    done = run(
        "from-coco",
        f"--annotations={path}",
        f"--out={tmp_path / 'new/mask_train'}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 masks in ")
    wrong = run("to-coco", *config, "--out=x", "--background=crak")
    assert wrong.returncode == 2
    assert "did you mean 'crack'?" in wrong.stderr
    wrong = run("to-coc", *config)
    assert wrong.returncode == 2
    assert "did you mean 'to-coco'?" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_a_source_without_masks(competition, tmp_path):
    done = run(
        "to-coco",
        "--config=configs/tinyvit.py",
        f"--config.data.root={competition}",
        f"--out={tmp_path / 'coco'}",
    )
    assert done.returncode == 2
    assert "has no masks" in done.stderr
    assert not (tmp_path / "coco").exists()


def test_without_pycocotools_one_sentence_says_what_to_install(
    source, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match="pip install pycocotools"):
        to_coco.export(source, tmp_path, to_coco.Style(0))
