from __future__ import annotations

import numpy as np
import pytest
from sklearn import datasets

from core.errors import UserError
from input_pipeline.sources import digits, open_source


def test_digits_need_no_folder(data_config):
    source = open_source(data_config())
    assert source.name == "digits"
    assert source.classes == tuple("0123456789")
    assert (len(source.labelled), len(source.test)) == (1437, 360)
    pixels = source.labelled.read(0)["image"]
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert not set(source.labelled.ids) & set(source.test.ids)
    # Stratified: every digit is about a tenth of the held-out rows.
    assert np.bincount(source.test.labels).min() >= 34


@pytest.mark.parametrize("source", ["digits", "digit_scenes"])
def test_a_folder_is_not_ignored_in_silence(competition, data_config, source):
    """As with the demo of a recipe for masks, on photos of one's own."""
    with pytest.raises(UserError) as refused:
        open_source(data_config(root=str(competition), source=source))
    assert str(refused.value) == (
        f"data.source is '{source}', which ignores data.root ({competition}); "
        "leave one of them out: for your own images take the recipe without "
        ":demo, or set --config.data.source="
    )


def test_digits_are_those_that_scikit_learn_loads():
    expected = datasets.load_digits()
    pixels, labels = digits._read()
    np.testing.assert_array_equal(pixels, expected.images)
    np.testing.assert_array_equal(labels, expected.target)


def test_csv_source_reads_the_competition_layout(competition, data_config):
    source = open_source(data_config(root=str(competition)))
    assert source.name == "csv"
    assert source.classes == ("0", "3", "11")  # numeric, not text order
    assert source.labelled.ids.tolist() == [str(row) for row in range(12)]
    assert source.labelled.labels.tolist() == [1] * 4 + [2] * 4 + [0] * 4
    assert source.test.ids.tolist() == ["10", "1", "2", "3"]  # the sample's
    assert source.test.labels.tolist() == [-1] * 4
    data = source.test.read(0)["image"]
    assert data == (competition / "img_test" / "10.jpg").read_bytes()


def test_without_a_sample_every_test_image_is_predicted(
    competition, data_config
):
    (competition / "sample_submission.csv").unlink()
    source = open_source(data_config(root=str(competition)))
    assert source.sample_submission is None
    assert source.test.ids.tolist() == ["1", "2", "3", "10"]
