"""Images by id, for reports."""

import numpy as np
import pytest
from PIL import Image

from configs import inputs
from core.errors import UserError
from input_pipeline.sources.pictures import read_pictures


def test_images_are_found_in_any_class_and_bad_ones_left_out(tmp_path):
    for name, value in (("cat/a.png", 10), ("dog/b.png", 20)):
        (tmp_path / name).parent.mkdir()
        pixels = np.full((4, 6, 3), value, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "dog/broken.png").write_bytes(b"no image")
    data = {**inputs.data().to_dict(), "root": str(tmp_path)}
    found = dict(
        read_pictures(data, ["dog/b.png", "dog/broken.png", "cat/a.png", "x"])
    )
    assert {name: int(pixels[0, 0, 0]) for name, pixels in found.items()} == {
        "cat/a.png": 10,
        "dog/b.png": 20,
    }
    assert found["cat/a.png"].shape == (4, 6, 3)


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    data = {**inputs.data().to_dict(), "root": str(tmp_path / "gone")}
    with pytest.raises(UserError, match="does not exist"):
        list(read_pictures(data, ["a"]))
