"""Photos in ArrayRecord shards are the photos that they were made from."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import common
from core.errors import UserError
from input_pipeline.decoding import BadImage, decode
from input_pipeline.sources import open_source, records_writer
from input_pipeline.sources.base import ArrayExamples, Source

ROOT = Path(__file__).resolve().parents[3]


def data_at(root):
    data = common.data()
    data.root, data.source = str(root), "records"
    return data


@pytest.fixture(scope="module")
def digits():
    return open_source(common.data())


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


READ = """
import resource, sys
import numpy as np
from configs import common
from input_pipeline import sources
data = common.data()
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
