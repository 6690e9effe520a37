"""A mask goes where its image goes, and nothing else happens to it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from mask_scenes import (
    COLOURS,
    Scenes,
    first_batches,
    scene,
    scenes,
    seen_classes,
)
from PIL import Image
from sample_images import encoded, photo

from core.class_colours import IGNORE
from input_pipeline import loader
from input_pipeline.decoding import BadImage, decode_mask
from input_pipeline.sources.base import Examples
from input_pipeline.transforms import geometry, policy
from input_pipeline.transforms.policy import Augment, TrainTransform
from input_pipeline.transforms.views import EvalTransform


@pytest.fixture
def geometry_alone(monkeypatch):
    """RandAugment draws nothing but moves."""
    moves = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    monkeypatch.setattr(policy, "RANDAUGMENT", dict.fromkeys(moves, True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "pixels"])
def test_masks_stay_on_their_images(kind, geometry_alone):
    """Also where a JPEG is decoded at a part of its size."""
    size = 32 if kind == "JPEG" else 64
    for batch in first_batches(
        scenes(kind), size=size, randaugment_ops=2, randaugment_magnitude=15
    ):
        classes, certain = seen_classes(batch["image"])
        assert certain.mean() > 0.5
        agree = (classes == batch["mask"])[certain]
        # Where a class begins, smoothing and the nearest pixel may differ.
        assert agree.mean() > 0.985
        outside = classes == IGNORE
        assert outside.any()
        np.testing.assert_array_equal(
            batch["mask"][outside], np.full(outside.sum(), IGNORE)
        )
        assert set(np.unique(batch["mask"])) <= {0, 1, 2, IGNORE}


def test_a_moved_picture_of_one_class_is_ignored_in_the_corners(
    geometry_alone,
):
    class Flat(Scenes):
        def read(self, row):
            mask = np.ones((80, 80), np.uint8)
            return {"image": COLOURS[mask], "mask": mask}

    flat = Flat(*(getattr(scenes(), name) for name in ("ids", "labels")))
    for batch in first_batches(flat, randaugment_ops=2):
        outside = ~batch["image"].any(-1)
        assert outside.any()
        np.testing.assert_array_equal(
            batch["mask"], np.where(outside, IGNORE, 1)
        )


def test_colour_and_degradations_leave_masks_alone():
    still = {"randaugment_ops": 0, "flip": 1.0}
    plain = first_batches(scenes(), **still)
    loud = first_batches(
        scenes(),
        **still,
        jitter=(0.9, 0.9, 0.9, 0.4),
        grayscale=0.5,
        gamma=1.0,
        blur=1.0,
        downscale=1.0,
        jpeg=1.0,
        coarse_dropout=1.0,
    )
    for one, other in zip(plain, loud, strict=True):
        assert (one["image"] != other["image"]).any()
        np.testing.assert_array_equal(one["mask"], other["mask"])


def test_with_colour_on_the_device_masks_are_the_same():
    for one, other in zip(
        first_batches(scenes(), jitter=(0.4, 0.4, 0.4, 0.1)),
        first_batches(scenes(), jitter=(0.4, 0.4, 0.4, 0.1), device=True),
        strict=True,
    ):
        assert other["operation"].any()
        np.testing.assert_array_equal(one["mask"], other["mask"])


def test_a_mask_changes_no_bit_of_its_image():
    class WithoutMask(Scenes):
        kinds = Examples.kinds

        def read(self, row):
            return {"image": super().read(row)["image"]}

    bare = WithoutMask(*(getattr(scenes(), name) for name in ("ids", "labels")))
    for one, other in zip(
        first_batches(scenes()), first_batches(bare), strict=True
    ):
        assert "mask" not in other
        np.testing.assert_array_equal(one["image"], other["image"])


def test_a_batch_holds_masks_labels_and_columns_from_workers_as_well():
    examples = scenes()
    here = first_batches(examples)
    there = first_batches(examples, workers=2)
    for one, other in zip(here, there, strict=True):
        assert set(one) == {
            *("image", "mask", "label", "person", "weight", "row")
        }
        assert one["mask"].shape == (8, 64, 64)
        assert one["mask"].dtype == np.uint8
        np.testing.assert_array_equal(one["person"], one["row"] + 100)
        np.testing.assert_array_equal(one["label"], one["row"] % 2)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def views_of(examples, rows, views):
    transform = EvalTransform(views, 56)
    with loader.eval_batches(examples, rows, transform, batch_size=5) as found:
        return list(found)


def test_evaluation_has_the_masks_of_the_centre_view():
    batches = views_of(scenes(), np.arange(12), ("crop", "center"))
    assert len(batches) == 3
    for batch in batches:
        real = batch["weight"] > 0
        assert batch["mask"].shape == (5, 56, 56)
        classes, certain = seen_classes(batch["image"][real, 1])
        agree = (classes == batch["mask"][real])[certain]
        assert agree.mean() > 0.985
        assert IGNORE not in batch["mask"]
        np.testing.assert_array_equal(
            batch["person"], np.where(real, batch["row"] + 100, 0)
        )
    [batch] = views_of(scenes(), np.arange(5), ("crop",))
    assert "mask" not in batch


@pytest.mark.parametrize("transform", ["train", "views"])
def test_a_mask_that_cannot_be_is_a_bad_image(transform, capsys):
    class Broken(Scenes):
        def read(self, row):
            example = super().read(row)
            match row:
                case 0:
                    example["mask"] = b"nothing"
                case 1:
                    example["mask"] = encoded(scene(1, 90, 60), "PNG")
                case 2:
                    example["mask"] = encoded(scene(2, 168), "JPEG")
            return example

    broken = Broken(*(getattr(scenes(), name) for name in ("ids", "labels")))
    if transform == "train":
        batches = first_batches(broken)
        good = np.concatenate([batch["weight"] > 0 for batch in batches])
    else:
        batches = views_of(broken, np.arange(10), ("center",))
        good = np.concatenate([~batch["bad"] for batch in batches])
    rows = np.concatenate([batch["row"] for batch in batches])
    np.testing.assert_array_equal(good, rows > 2)
    told = capsys.readouterr().err
    assert "bad image 'scene-0': not an image in a known format" in told
    assert "the mask has 60x90 pixels and its image 190x159" in told
    assert "JPEG does not keep a mask's values; save it as PNG" in told


def saved(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_values_of_a_mask_are_taken_as_they_are():
    values = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
    palette = Image.fromarray(values, "L").convert("P")
    palette.putdata(values.ravel().tolist())
    palette.putpalette([7, 7, 7] * 256)
    for image in (
        Image.fromarray(values),
        palette,
        Image.fromarray(values.astype(np.uint16)),
    ):
        np.testing.assert_array_equal(decode_mask(saved(image)), values)
    np.testing.assert_array_equal(decode_mask(values), values)
    bits = Image.fromarray(values > 100)
    np.testing.assert_array_equal(decode_mask(saved(bits)), values > 100)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(Image.new("RGB", (3, 3))), "mode RGB, not one channel"),
        (np.zeros((3, 3), np.float32), "float32"),
        (np.zeros((3, 3, 1), np.uint8), r"\(3, 3, 1\)"),
        (
            saved(Image.fromarray(np.full((3, 3), 256, np.uint16))),
            "outside 0 to 255",
        ),
        (encoded(photo()[..., 0], "PNG")[:300], "damaged|broken"),
    ],
)
def test_what_is_no_mask(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode_mask(data)


def test_a_mask_of_an_image_turned_by_exif_has_the_size_of_the_turned_one():
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = scene(0, 60, 80)
    image = encoded(COLOURS[mask], exif=exif)
    transform = TrainTransform(Augment(), 16)
    upright = np.rot90(mask, -1)
    done = transform(
        {"image": image, "mask": upright}, np.random.default_rng(0)
    )
    assert done["mask"].shape == (16, 16)
    with pytest.raises(BadImage, match="80x60 pixels and its image 60x80"):
        transform({"image": image, "mask": mask}, np.random.default_rng(0))


def test_the_full_mask_is_seen_although_the_jpeg_is_decoded_smaller():
    """Single pixels of a mask survive, which an eighth would not show."""
    mask = np.zeros((400, 400), np.uint8)
    mask[4::8, 4::8] = 9  # The middle of each new pixel, a little beside it.
    image = encoded(np.zeros((400, 400, 3), np.uint8))
    whole = Augment(
        crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0,
        randaugment_ops=0,
    )  # fmt: skip
    done = TrainTransform(whole, 50)(
        {"image": image, "mask": mask}, np.random.default_rng(0)
    )
    assert (done["mask"] == 9).all()
    assert geometry.resized_mask(mask, (400, 400), 50, (0, 0, 400, 400)).all()
