"""Photos in ArrayRecord shards are the photos that they were made from."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mask_folders import CLASSES, mask_of, write_split
from PIL import Image

from configs import inputs
from core.errors import UserError
from input_pipeline import loader
from input_pipeline.decoding import BadImage, decode
from input_pipeline.folds import check_given_folds, folds_for
from input_pipeline.samplers import ShuffledSampler
from input_pipeline.sources import open_source, records_writer
from input_pipeline.sources.base import ArrayExamples, Source
from input_pipeline.transforms.policy import Augment, TrainTransform

ROOT = Path(__file__).resolve().parents[3]


def data_at(root):
    data = inputs.data()
    data.root, data.source = str(root), "records"
    return data


@pytest.fixture(scope="module")
def digits():
    return open_source(inputs.data())


@pytest.fixture(scope="module")
def converted(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "digits"
    records_writer.convert(digits, str(folder), 400)
    return folder


def test_everything_comes_back(digits, converted):
    found = open_source(data_at(converted))
    assert found.classes == digits.classes
    assert found.fingerprint == digits.fingerprint
    for one, two in (
        (found.labelled, digits.labelled),
        (found.test, digits.test),
    ):
        np.testing.assert_array_equal(one.ids, two.ids)
        np.testing.assert_array_equal(one.labels, two.labels)
        assert one.labels.dtype == np.int32
        for row in (0, 7, len(one) // 2, len(one) - 1):
            np.testing.assert_array_equal(
                decode(one.read(row)["image"]), two.pixels[row]
            )
    shards = sorted(path.name for path in converted.glob("labelled-*"))
    assert shards[0] == "labelled-00000-of-00004.array_record"
    assert len(shards) == 4


def test_a_file_is_kept_byte_for_byte_and_a_bad_one_keeps_its_row(tmp_path):
    class Files(ArrayExamples):
        def read(self, row):
            if row == 1:
                raise BadImage("lost")
            return {"image": b"photo %d" % row}

    images = Files(
        np.array(["a", "b", "ä,\n"]), np.array([0, 1, 0], np.int32), None
    )
    source = Source("csv", images, None, ("x", "y"), None, "i", "t", "f")
    records_writer.convert(source, str(tmp_path / "out"), 2)
    found = open_source(data_at(tmp_path / "out"))
    assert found.test is None
    assert list(found.labelled.ids) == ["a", "b", "ä,\n"]
    assert found.labelled.read(2) == {"image": b"photo 2"}
    with pytest.raises(BadImage, match="could not be read"):
        found.labelled.read(1)


def test_what_is_wrong_is_said_in_one_sentence(digits, converted, tmp_path):
    with pytest.raises(UserError, match="holds records already"):
        records_writer.convert(digits, str(converted), 400)
    with pytest.raises(UserError, match=r"records\.json cannot be read"):
        open_source(data_at(tmp_path))
    copy = tmp_path / "copy"
    records_writer.convert(digits, str(copy), 1000)
    (copy / "labelled-00001-of-00002.array_record").unlink()
    with pytest.raises(UserError, match="lacks labelled-00001-of-00002"):
        open_source(data_at(copy))


# ---- Masks and columns -------------------------------------------------------

BATCH = {"batch_size": 4, "seed": 3}


def batches_of(source, count=3):
    examples = source.labelled
    augment = Augment(rotate=20.0, zoom=(0.8, 1.3), crop_max_share=0.9)
    with loader.train_batches(
        examples,
        TrainTransform(augment, 32),
        ShuffledSampler(np.arange(len(examples)), 5),
        **BATCH,
    ) as stream:
        return list(itertools.islice(stream, count))


@pytest.fixture
def masked(tmp_path, data_config):
    """Images with palette masks, splits, an ignored value and photos to do."""
    root = tmp_path / "masked"
    write_split(root, "train", 5)
    write_split(root, "val", 2, start=5)
    write_split(root, "test", 2, start=7)
    (root / "classes.csv").write_text(CLASSES + "9,void,1\n")
    for row in range(5):
        mask = mask_of(row)
        mask[-2:] = 9
        picture = Image.fromarray(mask)
        picture.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0])
        picture.save(root / f"mask_train/p{row}.png")
    return open_source(data_config(root=str(root)))


def test_masks_come_back_and_batches_are_the_same(masked, tmp_path):
    told = records_writer.convert(masked, str(tmp_path / "records"), 3)
    assert "9 photos" in told
    found = open_source(data_at(tmp_path / "records"))
    for name in (
        *("classes", "fingerprint", "id_column", "target_column"),
        *("given_folds", "mask_pixels", "mask_sizes", "mask_digests"),
    ):
        ours, theirs = getattr(found, name), getattr(masked, name)
        np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
    assert found.labelled.kinds == masked.labelled.kinds
    assert found.test.kinds == masked.test.kinds
    assert found.labelled.format == found.test.format == masked.labelled.format
    for row in range(7):
        # The very file: its palette and its compression stay.
        assert found.labelled.mask_file(row) == masked.labelled.mask_file(row)
        np.testing.assert_array_equal(
            found.labelled.read(row)["mask"], masked.labelled.read(row)["mask"]
        )
    for one, other in zip(batches_of(found), batches_of(masked), strict=True):
        assert one.keys() == other.keys() >= {"image", "mask"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_same_run_goes_on_with_records(masked, tmp_path):
    """What a run is known by does not change with the form of its data."""
    records_writer.convert(masked, str(tmp_path / "records"), 3)
    found = open_source(data_at(tmp_path / "records"))
    assert [
        folds_for(one, 5, 0, tmp_path / "f").tolist() for one in (masked, found)
    ] == [[1] * 5 + [0] * 2] * 2
    data = data_at(tmp_path / "records")
    data.fold = 1
    with pytest.raises(UserError, match="convert again with"):
        check_given_folds(found, data)


def test_drawn_masks_are_written_as_png(tmp_path):
    data = inputs.data()
    data.source = "digit_scenes"
    scenes = open_source(data)
    few = dataclasses.replace(
        scenes,
        labelled=dataclasses.replace(
            scenes.labelled,
            ids=scenes.labelled.ids[:6],
            labels=scenes.labelled.labels[:6],
        ),
        test=None,
    )
    records_writer.convert(few, str(tmp_path / "records"), 4)
    found = open_source(data_at(tmp_path / "records"))
    for row in range(6):
        ours, theirs = found.labelled.read(row), scenes.labelled.read(row)
        np.testing.assert_array_equal(decode(ours["image"]), theirs["image"])
        np.testing.assert_array_equal(ours["mask"], theirs["mask"])


def test_columns_and_groups_come_back(tmp_path):
    count = 7
    rng = np.random.default_rng(0)
    images = ArrayExamples(
        np.array([f"i{row}" for row in range(count)]),
        np.arange(count, dtype=np.int32) % 2,
        rng.integers(0, 255, (count, 40, 40, 3), np.uint8),
        columns={
            "share": rng.random(count).astype(np.float32),
            "person": rng.integers(0, 9, (count, 2)),
        },
    )
    groups = np.array(list("aabbccd"))
    source = Source(
        *("csv", images, images, ("x", "y"), None, "i", "t", "f"), groups=groups
    )
    records_writer.convert(source, str(tmp_path / "records"), 3)
    found = open_source(data_at(tmp_path / "records"))
    np.testing.assert_array_equal(found.groups, groups)
    for examples in (found.labelled, found.test):
        assert examples.kinds == images.kinds
        for name, values in images.columns.items():
            np.testing.assert_array_equal(examples.columns[name], values)
            assert examples.columns[name].dtype == values.dtype
    for one, other in zip(batches_of(found), batches_of(source), strict=True):
        for name in ("image", "share", "person", "label"):
            np.testing.assert_array_equal(one[name], other[name])


def test_pairs_come_back(tmp_path, data_config):
    source = open_source(data_config(source="digit_pairs"))
    records_writer.convert(source, str(tmp_path / "records"), 1000)
    again = open_source(
        data_config(source="records", root=str(tmp_path / "records"))
    )
    assert again.labelled.columns["forged"].tolist() == (
        source.labelled.columns["forged"].tolist()
    )
    ours, theirs = source.test_pairs, again.test_pairs
    assert ours.hash(source.test.ids) == theirs.hash(again.test.ids)
    assert again.given_folds.tolist() == source.given_folds.tolist()
    plain = dataclasses.replace(
        source,
        strata=np.arange(len(source.labelled), dtype=np.int32),
        test_pairs=dataclasses.replace(ours, kind=None),
    )
    records_writer.convert(plain, str(tmp_path / "plain"), 1000)
    again = open_source(
        data_config(source="records", root=str(tmp_path / "plain"))
    )
    assert again.test_pairs.kind is None
    assert again.strata.tolist() == plain.strata.tolist()


def test_what_is_missing_of_masks_is_said_in_one_sentence(masked, tmp_path):
    folder = tmp_path / "records"
    records_writer.convert(masked, str(folder), 3)
    (folder / "labelled_mask-00001-of-00003.array_record").unlink()
    with pytest.raises(UserError, match="lacks labelled_mask-00001-of-00003"):
        open_source(data_at(folder))
    (folder / "labelled.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"labelled\.npz cannot be read"):
        open_source(data_at(folder))
    (folder / "labelled.npz").unlink()
    with pytest.raises(UserError, match=r"labelled\.npz cannot be read"):
        open_source(data_at(folder))


def test_a_mask_that_is_lost_meanwhile_ends_the_conversion(masked, tmp_path):
    (tmp_path / "masked/mask_train/p2.png").unlink()
    with pytest.raises(UserError, match="mask of 'p2' can no longer be read"):
        records_writer.convert(masked, str(tmp_path / "records"), 3)
    assert not (tmp_path / "records/records.json").exists()


# ---- Memory -----------------------------------------------------------------

READ = """
import resource, sys
import numpy as np
from configs import inputs
from input_pipeline import sources
data = inputs.data()
data.root, data.source = sys.argv[1], "records"
images = sources.open_source(data).labelled
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
rows = np.random.default_rng(0).permutation(len(images))
for row in rows[:2000]: images.read(row)
early = peak()
for row in rows: images.read(row)
print(len(images), early, peak())
"""


@pytest.mark.slow
def test_reading_100_000_photos_takes_constant_memory(tmp_path):
    class Made(ArrayExamples):
        def read(self, row):
            return {"image": np.random.default_rng(row).bytes(4096)}

    count = 100_000
    ids = np.char.add("photo-", np.arange(count).astype(str))
    images = Made(ids, np.zeros(count, np.int32), None)
    source = Source("csv", images, None, ("x", "y"), None, "i", "t", "f")
    records_writer.convert(source, str(tmp_path / "many"), 10_000)
    process = subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "many"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found, early, late = map(int, process.stdout.split())
    assert found == count
    # 390 MiB went through; what stays is the shards' own tables.
    assert late - early < 40, (early, late)
