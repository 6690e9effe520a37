"""New photos are loaded in batches that the devices share."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline.transforms.views import WholeTransform
from training.multihost import sharding
from training.photos import Photos


@pytest.mark.parametrize(
    ("shrinks", "batch_size", "sizes"),
    [(True, 32, [3]), (False, 32, [32]), (True, 2, [2, 2])],
)
def test_few_photos_make_a_small_batch(tmp_path, shrinks, batch_size, sizes):
    paths = [str(tmp_path / f"{row}.png") for row in range(3)]
    for row, path in enumerate(paths):
        Image.new("RGB", (20 + row, 30)).save(path)
    mesh = sharding.make_mesh()
    photos = Photos(paths, batch_size, mesh, shrinks=shrinks)
    batches = list(
        photos.batches(photos.examples, photos.rows, WholeTransform(8))
    )
    shared = [-(-size // mesh.size) * mesh.size for size in sizes]
    assert [len(batch["row"]) for batch in batches] == shared
    rows = np.concatenate([batch["row"] for batch in batches])
    assert rows[rows >= 0].tolist() == [0, 1, 2]
    assert batches[0]["size"][0].tolist() == [20, 30]
