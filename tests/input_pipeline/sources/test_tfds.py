from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from sample_images import encoded, photo

from core.errors import UserError
from input_pipeline import loader
from input_pipeline.samplers import ShuffledSampler
from input_pipeline.sources import open_source
from input_pipeline.transforms.policy import Augment, TrainTransform

NAMES = ["cat", "dog", "elk"]


def picture(row):
    return encoded(photo(10, 12, seed=row), "PNG")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset on disk, written without TensorFlow."""
    import tensorflow_datasets as tfds
    from etils import epath

    folder = tmp_path_factory.mktemp("tfds")

    class TinyAnimals(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        # Where metadata files of the builder would lie: nowhere.
        pkg_dir_path = epath.Path(folder)

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=NAMES),
                    "number": np.int64,
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, download_manager):
            return {
                "train": self._generate_examples(range(12)),
                "test": self._generate_examples(range(12, 16)),
            }

        def _generate_examples(self, rows):
            for row in rows:
                example = {"image": picture(row), "label": row % 3}
                yield row, example | {"number": row}

    builder = TinyAnimals(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return str(folder)


def test_rows_and_labels_belong_together(prepared, data_config):
    source = open_source(data_config(root=prepared, source="tfds:tiny_animals"))
    assert source.name == "tfds:tiny_animals"
    assert source.classes == tuple(NAMES)
    assert (len(source.labelled), len(source.test)) == (12, 4)
    assert len(set(source.labelled.ids)) == 12
    assert source.test.labels.tolist() == [-1] * 4
    label_of = {picture(row): row % 3 for row in range(12)}
    for row, label in enumerate(source.labelled.labels):
        assert label_of[source.labelled.read(row)["image"]] == label


def test_workers_read_it_too(prepared, data_config):
    images = open_source(
        data_config(root=prepared, source="tfds:tiny_animals")
    ).labelled

    def batches(workers):
        with loader.train_batches(
            images,
            TrainTransform(Augment(), 8),
            ShuffledSampler(np.arange(12), 0),
            batch_size=4,
            seed=0,
            workers=workers,
        ) as stream:
            return list(itertools.islice(stream, 3))

    for left, right in zip(batches(0), batches(1), strict=True):
        np.testing.assert_array_equal(left["image"], right["image"])


def test_no_tensorflow_is_imported(prepared):
    script = f"""
import sys
from types import SimpleNamespace
from input_pipeline import sources
source = sources.open_source(SimpleNamespace(
    root={prepared!r}, source="tfds:tiny_animals", tfds_split_train="train",
    tfds_split_test="", tfds_image="image", tfds_label="label",
    submission_id_column="id", target_column="label", group_column=""))
assert source.test is None
print(len(source.labelled.read(0)["image"]) > 0, "tensorflow" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert result.stdout.strip() == "True False", result.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "tfds:tiny_animalz"}, "tfds build tiny_animalz"),
        ({"tfds_split_train": "trian"}, "no split 'trian'.*'train'"),
        ({"tfds_image": "img"}, "no Image feature 'img', only 'image'"),
        ({"tfds_label": "number"}, "no ClassLabel feature 'number'"),
        ({"tfds_split_test": "test[:x]"}, "split 'test"),
    ],
)
def test_bad_names(prepared, data_config, change, words):
    fields = {"root": prepared, "source": "tfds:tiny_animals"} | change
    with pytest.raises(UserError, match=words) as error:
        open_source(data_config(**fields))
    assert "\n" not in str(error.value)
