"""The sections on a segmentation: scores, best and worst pictures."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from metrics import segmentation as scores
from reports import segmentation
from run_folder import layout

CLASSES = ("ground", "crack", "<b>hole")


def truth_of(row):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 5:15] = 1 + row % 2
    mask[0] = 255
    return mask


def predicted_of(row):
    """The further on, the more is missed."""
    mask = np.where(truth_of(row) == 255, 0, truth_of(row))
    mask[:, 5 : 5 + row] = 0
    return mask.astype(np.uint8)


@pytest.fixture
def workdir(tmp_path):
    rows = range(8)
    masks = [(truth_of(row), predicted_of(row)) for row in rows]
    path = tmp_path / layout.MASK_COUNTS
    path.parent.mkdir()
    np.savez(
        path,
        ids=np.array([f"p{row}" for row in rows]),
        confusion=np.stack(
            [scores.confusion_matrix(*pair, 3, 255) for pair in masks]
        ),
        boundary=np.stack(
            [scores.boundary_counts(*pair, 3, 255) for pair in masks]
        ),
        classes=np.array(CLASSES),
    )
    return tmp_path


def examples(ids):
    for name in ids:
        row = int(name[1:])
        image = np.full((20, 30, 3), 200, np.uint8)
        yield segmentation.Example(
            name, image, truth_of(row), predicted_of(row)
        )


def test_scores_classes_and_pictures(workdir):
    classes, confusion, gallery = segmentation.segmentation_sections(
        workdir, examples
    )
    (dice, iou, per_image, edges) = classes.figures
    counts = np.load(workdir / layout.MASK_COUNTS)
    found = scores.scores(counts["confusion"])
    assert dice.number == f"{found['mean_dice']:.4f}"
    assert iou.number == f"{found['mean_iou']:.4f}"
    assert f"{found['image_dice']:.4f}" in per_image.number
    assert 0 < float(edges.number) < 1
    assert "interval" in dice.note
    assert "&lt;b&gt;hole" in classes.body and "<b>hole" not in classes.body
    assert "svg" in confusion.body
    order = re.findall(r'class="name">(p\d)<', gallery.body)
    # The worst first: p7 has lost most of its crack.
    assert order[0] == "p7" and len(order) == 8


def test_a_strip_shows_image_truth_prediction_and_errors():
    (example,) = examples(["p7"])
    data = segmentation.strip(example, len(CLASSES)).partition(",")[2]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    image, truth, predicted, errors = np.split(strip, 4, axis=1)
    colours = segmentation.palette(len(CLASSES))
    np.testing.assert_array_equal(image, example.image)
    np.testing.assert_array_equal(predicted, colours[example.predicted])
    counted = example.truth != 255
    np.testing.assert_array_equal(
        truth[counted], colours[example.truth[counted]]
    )
    assert (truth[~counted] == 255).all()
    red = (errors == segmentation._ERROR).all(-1)
    wrong = counted & (example.truth != example.predicted)
    np.testing.assert_array_equal(red, wrong)


def test_colours_of_many_classes_differ():
    colours = segmentation.palette(40)
    assert len({tuple(colour) for colour in colours.tolist()}) == 40


def test_without_pictures_or_with_broken_ones_the_scores_stay(workdir):
    def broken(ids):
        raise UserError("the photos are gone")

    for reader in (None, broken):
        *_, gallery = segmentation.segmentation_sections(workdir, reader)
        assert gallery.body.count("no picture") == 8
    assert "the photos are gone" in gallery.note


def test_a_run_without_counts_has_no_sections_and_damage_is_told(workdir):
    assert segmentation.segmentation_sections(workdir / "masks") == []
    (workdir / layout.MASK_COUNTS).write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="--export"):
        segmentation.segmentation_sections(workdir)
