"""COCO files of other tools become masks, or are refused in one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from input_pipeline.coco import from_coco


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
