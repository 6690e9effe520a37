"""The audit and the contact sheet of identities, forgeries and pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, photo

from input_pipeline import audit, pair_audit
from input_pipeline.contact_sheet import write_contact_sheet
from input_pipeline.sources import open_source
from input_pipeline.transforms.policy import Augment


@pytest.fixture
def people(tmp_path, data_config):
    """Opens people with so many real and forged pictures, all different."""

    def made(real, forged, pairs=2, same=(), test_of=()):
        seed, flags = 0, {}
        for who, (r, f) in enumerate(zip(real, forged, strict=True)):
            for n in range(r + f):
                name = f"train/{who:02d}/{n}.jpg"
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                seed += 1
                path.write_bytes(encoded(photo(40, 40, seed)))
                flags[name] = int(n >= r)
        for pair in range(pairs):
            for n in range(2):
                path = tmp_path / f"test/{pair}/{n}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                seed += 1
                path.write_bytes(encoded(photo(40, 40, seed)))
        for source, target in same:
            (tmp_path / target).write_bytes((tmp_path / source).read_bytes())
        (tmp_path / "meta.json").write_text(json.dumps(flags))
        return open_source(data_config(source="pairs", root=str(tmp_path)))

    return made


def problems_of(source):
    return {(finding.problem, finding.id) for finding in audit.audit(source, 5)}


def test_the_summary_counts_identities_and_forgeries(people):
    source = people([1, 1, 2, 3, 9], [0, 2, 0, 2, 0])
    found = audit.audit(source, 5)
    assert found == []  # Few pictures of an identity are no loss.
    heading, *lines = audit.summary(source, found)
    assert "20 labelled images in 5 identities, 4 to predict" in heading
    assert "2 with 1, 2 with 2 to 3, 1 with 8 to 15; 9 at most" in lines[0]
    assert "4 of 20 pictures (20.0%), of 2 identities" in lines[1]
    assert "2 pairs of 4 pictures, each in up to 1" in lines[2]


def test_the_same_picture_where_it_should_not_be(people):
    source = people(
        [3, 3],
        [1, 1],
        same=[
            ("train/00/0.jpg", "train/01/0.jpg"),
            ("train/00/1.jpg", "train/00/3.jpg"),
            ("train/01/1.jpg", "train/01/2.jpg"),
            ("train/01/1.jpg", "test/0/0.jpg"),
            ("test/0/1.jpg", "test/1/1.jpg"),
        ],
    )
    assert problems_of(source) == {
        ("two identities", "01/0.jpg"),
        ("two flags", "00/3.jpg"),
        ("copy", "01/2.jpg"),
        ("copy across splits", "0/0.jpg"),
    }


def test_near_copies_of_two_identities(people, tmp_path):
    source = people([2, 2, 2], [0, 0, 0])
    with Image.open(tmp_path / "train/00/1.jpg") as image:
        near = image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    near.save(tmp_path / "train/02/0.jpg", quality=90)
    near.save(tmp_path / "train/00/0.jpg", quality=90)
    assert ("near copy", "02/0.jpg") in problems_of(source)
    # One person may well look alike twice.
    assert ("near copy", "00/0.jpg") not in problems_of(source)


def test_donors_join_identities(people):
    source = people([2, 2], [0, 0])
    joined = np.full(len(source.labelled), "one")
    object.__setattr__(source, "groups", joined)
    lines = pair_audit.summary_lines(source)
    assert "donors join the 2 identities to 1 groups" in lines[2]


def test_a_sheet_shows_pairs_of_each_kind(people, tmp_path):
    source = people([3, 3, 3], [2, 2, 0])
    sheets = {}
    for size in (96, 128):
        path = tmp_path / "sheet.png"
        write_contact_sheet(
            path, source, Augment(), size=size, rows=2, columns=4
        )
        with Image.open(path) as image:
            sheets[size] = image.size
    # Two lines of augmentations, four kinds and pairs to compare.
    assert sheets[128][1] - sheets[96][1] == 7 * 32


def test_a_sheet_without_forgeries_or_readable_pictures(people, tmp_path):
    source = people([2, 2], [0, 0], pairs=0)
    (tmp_path / "train/00/0.jpg").write_bytes(b"none")
    path = tmp_path / "sheet.png"
    write_contact_sheet(path, source, Augment(), size=96, rows=2, columns=4)
    with Image.open(path) as image:
        assert image.height > 4 * 96
