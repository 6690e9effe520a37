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


def coco_file(tmp_path, annotations, **changes):
    content = {
        "images": [
            {"id": 7, "file_name": "images/a.jpg", "width": 6, "height": 4}
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 17, "name": "dog"}],
        "annotations": [
            {"id": number, "image_id": 7, **one}
            for number, one in enumerate(annotations)
        ],
    }
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(content | changes))
    return path


def box(category, left, top, right, bottom, **fields):
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {"category_id": category, "segmentation": [polygon], **fields}


def imported(tmp_path, annotations, **fields):
    path = coco_file(tmp_path, annotations)
    from_coco.write_masks(from_coco.read(path), tmp_path / "mask", **fields)
    mask = Image.open(tmp_path / "mask/a.png")
    assert mask.mode == "P"
    return np.asarray(mask), (tmp_path / "classes.csv").read_text()


def test_sparse_ids_and_small_objects_on_top(tmp_path):
    """The order of the file does not matter, nor do the ids."""
    small, large = box(90, 1, 1, 3, 3), box(17, 0, 0, 5, 4)
    expected = np.zeros((4, 6), int)
    expected[:, :5], expected[1:3, 1:3] = 1, 2
    for number, order in enumerate(([small, large], [large, small])):
        folder = tmp_path / str(number)
        folder.mkdir()
        mask, classes = imported(folder, order)
        np.testing.assert_array_equal(mask, expected)
        assert classes == (
            "index,name,ignore\n0,background,0\n1,dog,0\n2,cat,0\n"
            "255,(ignored),1\n"
        )


def test_crowds_are_ignored_or_left_out_and_lie_below(tmp_path):
    crowd = {
        "category_id": 90,
        "iscrowd": 1,
        "segmentation": {"size": [4, 6], "counts": [0, 12, 12]},
    }
    object_ = box(17, 2, 0, 4, 4)
    for number, (fields, value) in enumerate(
        (({}, 255), ({"skip_crowds": True}, 0))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        mask, _ = imported(folder, [object_, crowd], **fields)
        expected = np.zeros((4, 6), int)
        expected[:, :3] = value
        expected[:, 2:4] = 1
        np.testing.assert_array_equal(mask, expected)


def test_pixels_without_annotation_may_be_ignored_or_of_a_class(tmp_path):
    for number, (background, rest, names) in enumerate(
        (
            ("", 255, ["dog", "cat", "(ignored)"]),
            ("sky", 0, ["sky", "dog", "cat", "(ignored)"]),
            ("cat", 1, ["dog", "cat", "(ignored)"]),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        mask, classes = imported(
            folder, [box(17, 0, 0, 2, 2)], background=background
        )
        assert mask[3, 5] == rest
        listed = [line.split(",")[1] for line in classes.splitlines()[1:]]
        assert listed == names


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("Background", ["Background", "cat"]),
        ("_background_", ["_background_", "cat"]),
        ("0", ["background", "0", "cat"]),
    ],
)
def test_a_category_that_is_called_background_is_the_background(
    tmp_path, name, listed
):
    """As labelme and others write it; a digit may be an object."""
    categories = [{"id": 0, "name": name}, {"id": 3, "name": "cat"}]
    path = coco_file(tmp_path, [box(3, 0, 0, 2, 2)], categories=categories)
    from_coco.write_masks(from_coco.read(path), tmp_path / "mask")
    mask = np.asarray(Image.open(tmp_path / "mask/a.png"))
    assert (mask[0, 0], mask[3, 5]) == (len(listed) - 1, 0)
    lines = (tmp_path / "classes.csv").read_text().splitlines()[1:-1]
    assert [line.split(",")[1] for line in lines] == listed


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
    ("changes", "annotations", "words"),
    [
        ({"images": None}, [], "no list 'images'"),
        ({"categories": [{"id": 1}]}, [], "category without id or name"),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            [],
            "the category 1, 'b', twice",
        ),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
            [],
            "the category 2, 'a', twice",
        ),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a "}]},
            [],
            "the category 2, 'a', twice",
        ),
        ({"categories": [{"id": 1, "name": " "}]}, [], "without id or name"),
        ({}, [box(3, 0, 0, 2, 2)], "annotation 0 of category 3"),
        ({}, [box([3], 0, 0, 2, 2)], r"annotation 0 of category \[3\]"),
        ({}, [box(90, 0, 0, 2, 2, image_id=8)], "annotation 0 of image 8"),
        (
            {},
            [{"category_id": 90}],
            "'images/a.jpg' cannot be drawn: annotation 0: it has",
        ),
        (
            {"images": [{"id": 7, "file_name": "a", "width": 0, "height": 4}]},
            [],
            "'a' without a possible height and width",
        ),
        (
            {
                "images": [{"id": 7, "file_name": "a", "width": 6, "height": 4}]
                * 2
            },
            [],
            "image id 7 twice",
        ),
        (
            {
                "images": [
                    {"id": row, "file_name": name, "width": 6, "height": 4}
                    for row, name in enumerate(("a.jpg", "a.png"))
                ]
            },
            [],
            "a.jpg and a.png, whose masks would have one name",
        ),
        (
            {
                "images": [
                    {"id": 7, "file_name": "../a", "width": 6, "height": 4}
                ]
            },
            [],
            "points out of the image folder",
        ),
        ({"images": []}, [], "has no image"),
        ({"categories": []}, [], "1 classes with the background"),
        (
            {
                "categories": [
                    {"id": row, "name": str(row)} for row in range(300)
                ]
            },
            [],
            "301 classes",
        ),
        (
            {"categories": [{"id": 1, "name": "\ud800"}]},
            [],
            "category without id or name",
        ),
    ],
)
def test_files_that_cannot_be_masks(tmp_path, changes, annotations, words):
    path = coco_file(tmp_path, annotations, **changes)
    with pytest.raises(UserError, match=words) as refused:
        from_coco.write_masks(from_coco.read(path), tmp_path / "mask")
    assert "\n" not in str(refused.value)
    # Nothing is left, whole or in part.
    assert [one.name for one in tmp_path.iterdir()] == ["theirs.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\ud800"])
def test_files_that_are_no_coco(tmp_path, text):
    path = tmp_path / "theirs.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="COCO annotations"):
        from_coco.read(path)
    with pytest.raises(UserError, match="No such file"):
        from_coco.read(tmp_path / "none.json")


def test_what_is_there_is_not_written_over(tmp_path):
    path = coco_file(tmp_path, [])
    content = from_coco.read(path)
    (tmp_path / "classes.csv").write_text("index,name\n0,a\n1,b\n")
    with pytest.raises(UserError, match=r"classes\.csv lists other classes"):
        from_coco.write_masks(content, tmp_path / "mask")
    (tmp_path / "classes.csv").unlink()
    (tmp_path / "mask").mkdir()  # An empty folder is no harm.
    from_coco.write_masks(content, tmp_path / "mask")
    with pytest.raises(UserError, match="is there already"):
        from_coco.write_masks(content, tmp_path / "mask")


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
