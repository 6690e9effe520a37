"""Impulse noise is found and filled, areas stay, and every reader agrees."""

from __future__ import annotations

import pickle
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import common, inputs
from core.errors import UserError
from input_pipeline import audit, impulses
from input_pipeline.contact_sheet import write_contact_sheet
from input_pipeline.decoding import decode
from input_pipeline.sources import open_source
from input_pipeline.transforms.policy import Augment


def noisy(seed: int, share: float, side: int = 32):
    """A smooth picture, the same with noise, and where that is."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:side, :side]
    wave = 120 + 60 * np.sin(rows / 7 + seed) + 40 * np.cos(columns / 5)
    picture = np.stack([wave, wave * 0.8, wave * 0.6 + 20], -1)
    picture = picture.astype(np.uint8)
    where = rng.random((side, side)) < share
    spoilt = picture.copy()
    spoilt[where] = 255 * rng.integers(0, 2, (int(where.sum()), 1))
    return picture, spoilt, where


def by_the_words(pixels):
    """`clean` as its docstring says it, pixel by pixel."""
    height, width, _ = pixels.shape

    def around(y, x):
        return [
            (v, u)
            for v in range(max(0, y - 1), min(height, y + 2))
            for u in range(max(0, x - 1), min(width, x + 2))
            if (v, u) != (y, x)
        ]

    def colour(y, x):
        values = set(pixels[y, x].tolist())
        return values.pop() if values in ({0}, {255}) else None

    def inside(y, x):
        others = around(y, x)
        alike = sum(colour(*one) == colour(y, x) for one in others)
        return alike >= 0.75 * len(others)

    def is_noise(y, x):
        same = [one for one in around(y, x) if colour(*one) == colour(y, x)] + [
            (y, x)
        ]
        return colour(y, x) is not None and not any(inside(*o) for o in same)

    noise = np.array(
        [[is_noise(y, x) for x in range(width)] for y in range(height)]
    )
    result = pixels.copy()
    for y, x in np.argwhere(noise):
        clean = [one for one in around(y, x) if not noise[one]]
        if clean:
            mean = np.mean([pixels[one] for one in clean], axis=0)
            result[y, x] = np.floor(mean + 0.5)
    return noise, result


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    side=st.integers(1, 9),
)
def test_cleaning_is_what_its_words_say(seed, share, side):
    _, spoilt, _ = noisy(seed, share, side)
    before = spoilt.copy()
    noise, cleaned = by_the_words(spoilt)
    np.testing.assert_array_equal(impulses.find(spoilt), noise)
    np.testing.assert_array_equal(impulses.clean(spoilt), cleaned)
    np.testing.assert_array_equal(spoilt, before)  # From the untouched one.


def test_nearly_all_noise_is_found_and_the_picture_is_back():
    for seed in range(5):
        picture, spoilt, where = noisy(seed, 0.15)
        found = impulses.find(spoilt)
        assert not (found & ~where).any()
        assert (found & where).sum() > 0.99 * where.sum()
        error = np.abs(impulses.clean(spoilt).astype(int) - picture)
        assert error.mean() < 2 < np.abs(spoilt.astype(int) - picture).mean()


def test_areas_stay_to_their_borders_and_noise_in_them_goes():
    picture, _, _ = noisy(1, 0.0)
    picture[4:12, 4:12] = 255
    picture[20:, 20:] = 0
    assert impulses.clean(picture) is picture
    spoilt = picture.copy()
    spoilt[8, 8] = 0
    spoilt[26, 26] = 255
    np.testing.assert_array_equal(impulses.clean(spoilt), picture)


@pytest.fixture
def street(tmp_path):
    """Twelve noisy digits with their set-ups in a csv of their own."""
    for folder in ("img_train", "img_test"):
        (tmp_path / folder).mkdir()
        for number in range(12):
            Image.fromarray(noisy(number, 0.1)[1]).save(
                tmp_path / folder / f"{number}.png"
            )
    rows = [f"{number},{number % 2}" for number in range(12)]
    for name in ("train_answers.csv", "sample_submission.csv"):
        (tmp_path / name).write_text("\n".join(["Id,Category", *rows]))
    rows = [f"{number},set {number // 3}" for number in range(12)]
    path = tmp_path / "train_groups.csv"
    path.write_text("\n".join(["Id,group", *reversed(rows)]))
    data = inputs.data()
    data.update(
        root=str(tmp_path),
        id_column="Id",
        target_column="Category",
        submission_id_column="Id",
        extension=".png",
        groups_file="train_groups.csv",
        group_column="group",
        clean_impulses=True,
    )
    return data


def test_training_and_test_pictures_are_cleaned_where_they_are_read(street):
    source = open_source(street)
    for examples in (source.labelled, source.test):
        for row in range(len(examples)):
            raw = decode(examples.raw.read(row)["image"])
            pixels = examples.read(row)["image"]
            np.testing.assert_array_equal(pixels, impulses.clean(raw))
            assert (pixels != raw).any()
    street.clean_impulses = False
    other = open_source(street)
    assert other.fingerprint != source.fingerprint


def test_masks_stay_as_they_are_and_workers_can_be_sent_them(data_config):
    data = data_config(source="digit_scenes", clean_impulses=True)
    examples = pickle.loads(pickle.dumps(open_source(data).labelled))
    data.clean_impulses = False
    raw = open_source(data).labelled
    np.testing.assert_array_equal(examples.mask(3), raw.mask(3))
    np.testing.assert_array_equal(examples.read(3)["mask"], raw.mask(3))
    assert examples.format == raw.format
    assert examples.kinds == raw.kinds


def test_groups_are_read_from_a_csv_of_their_own(street, tmp_path):
    groups = open_source(street).groups
    assert groups.tolist() == [f"set {number // 3}" for number in range(12)]
    path = tmp_path / "train_groups.csv"
    path.write_text("Id,group\n0,a\n")
    with pytest.raises(UserError, match=r"no group for id '1' \(11 of 12"):
        open_source(street)


def test_the_audit_tells_the_share_with_and_without_cleaning(street):
    for on in (True, False):
        street.clean_impulses = on
        found = audit.audit(open_source(street), folds=2)
        told = [one for one in found if one.problem == "impulse noise"]
        assert [one.split for one in told] == ["train", "test"]
        before, after = (
            float(part.split("%")[0].split()[-1])
            for part in told[0].detail.split(";")
        )
        assert 8 < before < 12
        assert after < 0.1
        assert told[0].detail.endswith("on" if on else "off")


def test_no_noise_is_told_of_drawings_and_of_dark_photos(street, tmp_path):
    street.clean_impulses = False
    rng = np.random.default_rng(0)
    for number in range(12):
        dark = rng.integers(0, 3, (32, 32, 1)).repeat(3, 2).astype(np.uint8)
        drawing = np.zeros((32, 32, 3), np.uint8)
        drawing[5 + number : 7 + number, 4:28] = 255
        drawing[4:28, 9:11] = 255
        picture = drawing if number % 2 else dark
        for folder in ("img_train", "img_test"):
            path = tmp_path / folder / f"{number}.png"
            Image.fromarray(picture).save(path)
    found = audit.audit(open_source(street), folds=2)
    assert "impulse noise" not in {one.problem for one in found}


def test_the_contact_sheet_shows_pictures_before_and_after(street, tmp_path):
    widths = {}
    for on in (True, False):
        street.clean_impulses = on
        path = tmp_path / f"{on}.png"
        options = dict(size=32, rows=2, columns=3)
        write_contact_sheet(path, open_source(street), Augment(), **options)
        widths[on] = Image.open(path).width
    assert widths[True] > widths[False]


def test_new_photos_are_cleaned_as_the_run_was(street, tmp_path):
    from training.photos import Photos

    paths = [str(tmp_path / "img_test" / f"{n}.png") for n in range(3)]
    mesh = types.SimpleNamespace(size=1)
    examples = open_source(street).test
    config = common.base()
    config.data.clean_impulses = True
    photos = Photos(paths, 2, mesh, config=config).examples
    for row in range(3):
        np.testing.assert_array_equal(
            photos.read(row)["image"], examples.read(row)["image"]
        )
