"""Resized, recompressed, mirrored and turned copies are found, others not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sample_images import encoded

from input_pipeline import audit, near_copies
from input_pipeline.decoding import decode
from input_pipeline.near_copies import ORIENTATIONS, SIDE
from input_pipeline.sources.base import FileExamples, Source


def picture(seed, height=90, width=120):
    """Smooth blobs of three colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = rng.uniform(3, 14, (8, 3, 2))
    phases = rng.uniform(0, 6, (8, 3))
    total = sum(
        np.sin(fy * y[..., None] + fx * x[..., None] + phase)
        for fy, fx, phase in zip(
            waves[..., 0], waves[..., 1], phases, strict=True
        )
    )
    return np.uint8(np.clip(128 + 28 * total, 0, 255))


def thumbnail(pixels):
    return near_copies.thumbnail(Image.fromarray(pixels))


def find(pictures, groups=None):
    groups = groups or [str(row) for row in range(len(pictures))]
    names = [str(row).encode() for row in range(len(pictures))]
    thumbnails = np.stack([thumbnail(pixels) for pixels in pictures])
    return near_copies.find(thumbnails, groups, names)


def oriented(pixels, orientation):
    number = ORIENTATIONS.index(orientation)
    if number >= 4:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(np.rot90(pixels, number % 4))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_found_and_named(orientation):
    pictures = [picture(seed) for seed in range(5)]
    moved = oriented(pictures[3], orientation)
    *others, match = find([*pictures, moved])
    assert others == [None] * 5
    assert (match.row, match.orientation) == (3, orientation)
    assert match.correlation > 0.99


@settings(max_examples=30, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    quality=st.integers(30, 95),
    scale=st.floats(0.5, 2.0),
    contrast=st.floats(0.7, 1.0),
    brightness=st.integers(-15, 15),
    seed=st.integers(0, 40),
)
def test_copies_as_people_make_them(
    orientation, quality, scale, contrast, brightness, seed
):
    pixels = picture(seed)
    size = round(120 * scale), round(90 * scale)
    changed = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    changed = (np.asarray(changed) - 128.0) * contrast + 128 + brightness
    changed = np.uint8(np.clip(changed, 0, 255))
    changed = decode(encoded(oriented(changed, orientation), quality=quality))
    others = [picture(100 + other) for other in range(4)]
    *_, match = find([*others, pixels, changed])
    assert match is not None and match.row == 4
    assert match.orientation == orientation


def test_the_quick_bound_never_hides_a_pair():
    """Comparing all pairs in all orientations finds the same."""
    rng = np.random.default_rng(1)
    base = rng.normal(0, 1, (8, SIDE, SIDE))
    noisy = [
        np.rot90(one, turns) + rng.normal(0, noise, one.shape)
        for one, turns, noise in zip(
            base, rng.integers(0, 4, 8), np.linspace(0.2, 0.5, 8), strict=True
        )
    ]
    thumbnails = np.concatenate([base, noisy])
    thumbnails = np.uint8(np.clip(128 + 30 * thumbnails, 0, 255))
    count = len(thumbnails)

    coefficients = near_copies._coefficients
    best = np.max(
        [
            coefficients(thumbnails) @ coefficients(turned).T
            for mirrored in (thumbnails, thumbnails[:, :, ::-1])
            for turned in (np.rot90(mirrored, k, (1, 2)) for k in range(4))
        ],
        axis=0,
    )
    expected = [
        row > 0 and best[:row, row].max() >= near_copies.ALIKE
        for row in range(count)
    ]
    names = [str(row).encode() for row in range(count)]
    found = near_copies.find(thumbnails, list(map(str, range(count))), names)
    assert [match is not None for match in found] == expected
    assert 1 < sum(expected) < 8
    for row, match in enumerate(found):
        if match is not None:
            assert match.correlation == pytest.approx(best[match.row, row])


def test_copies_are_found_among_more_images_than_one_block_has():
    rng = np.random.default_rng(2)
    count = 2 * near_copies._BLOCK + 5
    thumbnails = rng.integers(0, 256, (count, SIDE, SIDE), np.uint8)
    pairs = {count - 1: 3, near_copies._BLOCK: near_copies._BLOCK - 1, 40: 39}
    for later, earlier in pairs.items():
        thumbnails[later] = thumbnails[earlier][:, ::-1]
    names = list(map(str, range(count)))
    found = near_copies.find(thumbnails, names, [n.encode() for n in names])
    assert {
        row: (match.row, match.orientation)
        for row, match in enumerate(found)
        if match is not None
    } == {later: (earlier, "mirrored") for later, earlier in pairs.items()}


def test_images_of_one_group_or_of_the_same_pixels_are_not_compared():
    one = picture(0)
    assert find([one, one[:, ::-1]], ["a", "a"]) == [None, None]
    thumbnails = np.stack([thumbnail(one)] * 2)
    same = near_copies.find(thumbnails, ["a", "b"], [b"x", b"x"])
    assert same == [None, None]


def test_what_shows_too_little_has_no_thumbnail():
    assert thumbnail(picture(0, 31, 80)) is None
    assert thumbnail(np.full((64, 64, 3), 90, np.uint8)) is None


def test_an_audit_names_both_images(tmp_path):
    pictures = [picture(seed) for seed in range(4)]
    pictures.append(np.ascontiguousarray(np.rot90(pictures[1])))
    names = [f"{row}.jpg" for row in range(5)]
    for name, pixels in zip(names, pictures, strict=True):
        (tmp_path / name).write_bytes(encoded(pixels))

    def find_in(labelled, tested, **fields):
        parts = [
            FileExamples(
                np.array(list(rows)),
                np.zeros(len(rows), np.int32),
                str(tmp_path),
                [f"{row}.jpg" for row in rows],
            )
            for rows in (labelled, tested)
        ]
        parts[1] = parts[1] if tested else None
        source = Source(
            "csv", *parts, ("x", "y"), None, "id", "t", "f", **fields
        )
        return {
            (one.split, one.id, one.problem): one.detail
            for one in audit.audit(source, 2)
            if "near" in one.problem
        }

    (((split, name, problem), detail),) = find_in("0123", "4").items()
    assert (split, name, problem) == ("test", "4", "near copy across splits")
    assert detail.startswith("looks like train id '1' turned by 90° (")
    # Folds may part them, unless they are of one group.
    assert list(find_in("01234", "")) == [("train", "4", "near copy")]
    groups = np.array(list("abcdb"))
    assert find_in("01234", "", groups=groups) == {}
    # Given splits part only what they part.
    given = np.array([1, 1, 0, 0, 1])
    assert find_in("01234", "", given_folds=given) == {}
    given = np.array([1, 1, 0, 0, 0])
    assert list(find_in("01234", "", given_folds=given)) == [
        ("val", "4", "near copy across splits")
    ]


@pytest.mark.parametrize(
    ("name", "known"),
    # One cell was photographed twice, and parted.
    [("steel3", []), ("blood3", [("a157", "a158")])],
)
def test_photos_of_one_kind_are_told_apart_and_their_copies_found(
    shared_data, name, known
):
    """Copies as in NEU_Seg, which spreads each photo over its splits."""
    rng = np.random.default_rng(0)
    files = sorted((shared_data / name).glob("img_*/*.jpg"))
    pictures = [decode(path.read_bytes()) for path in files]
    groups = [path.parent.name for path in files]
    found = [
        {files[row].stem, files[match.row].stem}
        for row, match in enumerate(find(pictures, groups))
        if match is not None
    ]
    assert found == [set(pair) for pair in known]
    originals = pictures[::10]
    copies = [
        decode(
            encoded(
                oriented(pixels, ORIENTATIONS[rng.integers(8)]),
                quality=int(rng.integers(60, 96)),
            )
        )
        for pixels in originals
    ]
    groups = ["before"] * len(originals) + ["after"] * len(copies)
    matches = find(originals + copies, groups)[len(originals) :]
    right = [
        match is not None and match.row == row
        for row, match in enumerate(matches)
    ]
    assert np.mean(right) > 0.97
