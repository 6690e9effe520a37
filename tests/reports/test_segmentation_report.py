"""The sections on a segmentation: scores, best and worst pictures."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from core import class_colours
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
    return write_run(tmp_path)


def write_run(folder):
    rows = range(8)
    masks = [(truth_of(row), predicted_of(row)) for row in rows]
    path = folder / layout.MASK_COUNTS
    path.parent.mkdir(parents=True)
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
    return folder


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
    dice, iou, image_dice, image_iou, edges = classes.figures
    counts = np.load(workdir / layout.MASK_COUNTS)
    found = scores.scores(counts["confusion"])
    assert dice.number == f"{found['mean_dice']:.4f}"
    assert iou.number == f"{found['mean_iou']:.4f}"
    assert image_dice.number == f"{found['image_dice']:.4f}"
    assert image_iou.number == f"{found['image_iou']:.4f}"
    assert 0 < float(edges.number) < 1
    assert "interval" in dice.note
    assert "&lt;b&gt;hole" in classes.body and "<b>hole" not in classes.body
    assert "svg" in confusion.body
    order = re.findall(r'class="name">(p\d)<', gallery.body)
    # The worst first: p7 has lost most of its crack.
    assert order[0] == "p7" and len(order) == 8


def test_a_class_that_nobody_has_is_named_below_the_table(workdir):
    path = workdir / layout.MASK_COUNTS
    counts = dict(np.load(path))
    counts["confusion"] = np.pad(counts["confusion"], ((0, 0), (0, 1), (0, 1)))
    counts["boundary"] = np.pad(counts["boundary"], ((0, 0), (0, 1), (0, 0)))
    counts["classes"] = np.array([*CLASSES, "dent"])
    np.savez(path, **counts)
    classes, *_ = segmentation.segmentation_sections(workdir)
    assert "dent" not in classes.body
    assert classes.note.endswith("nor in predictions: dent.")


def parts_of(example):
    """Image, truth, prediction and errors, without the gaps between."""
    parts = []
    for half in segmentation.halves(example, len(CLASSES)):
        data = base64.b64decode(half.partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        side = (pixels.shape[1] - segmentation._GAP) // 2
        assert (pixels[:, side:-side, 3] == 0).all()
        for part in (pixels[:, :side], pixels[:, -side:]):
            assert (part[..., 3] == 255).all()
            parts.append(part[..., :3])
    return parts


def test_the_pictures_show_image_truth_prediction_and_errors():
    (example,) = examples(["p7"])
    image, truth, predicted, errors = parts_of(example)
    # Small ones are enlarged to whole multiples.
    times = segmentation._SIDE // 30
    assert image.shape == (20 * times, 30 * times, 3)
    wide = [
        np.repeat(np.repeat(part, times, 0), times, 1)
        for part in (example.image, example.truth, example.predicted)
    ]
    colours = class_colours.palette(len(CLASSES))
    np.testing.assert_array_equal(image, wide[0])
    np.testing.assert_array_equal(predicted, colours[wide[2]])
    counted = wide[1] != 255
    np.testing.assert_array_equal(truth[counted], colours[wide[1][counted]])
    red = (errors == segmentation._ERROR).all(-1)
    np.testing.assert_array_equal(red, counted & (wide[1] != wide[2]))
    # Ignored pixels are striped, in the error map too, and of no class.
    for part in (truth, errors):
        stripes = np.unique(part[~counted], axis=0)
        assert len(stripes) == 2
        assert not {*map(tuple, stripes)} & {*map(tuple, colours)}


def test_large_pictures_are_reduced():
    (example,) = examples(["p7"])
    large = [np.repeat(np.repeat(part, 40, 0), 40, 1) for part in example[1:]]
    image, truth, *_ = parts_of(segmentation.Example("p7", *large))
    assert image.shape == truth.shape == (147, 220, 3)


def test_the_legend_names_classes_errors_and_ignored_pixels(workdir):
    *_, gallery = segmentation.segmentation_sections(workdir, examples)
    legend = gallery.body.partition("</p>")[0]
    for words in ("ground", "crack", "&lt;b&gt;hole", "wrong", "ignored"):
        assert words in legend
    for colour in class_colours.palette(3).tolist():
        assert "rgb({},{},{})".format(*colour) in legend


def test_confusions_are_per_cent_of_the_row(workdir):
    _, confusion, _ = segmentation.segmentation_sections(workdir, examples)
    numbers = re.findall(r'pointer-events="none">([^<]+)<', confusion.body)
    total = np.load(workdir / layout.MASK_COUNTS)["confusion"].sum(0)
    share = 100 * total / total.sum(1, keepdims=True)
    expected = [
        f"{one:.0f}" if one > 0.5 else "&lt;1" for one in share[share > 0]
    ]
    assert numbers == expected


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
