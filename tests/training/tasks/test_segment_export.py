"""What a segmentation leaves in its run folder, and beside new photos."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from masked_pictures import PALETTE, write_data
from PIL import Image

from configs import common
from configs import segmentation as segmentation_config
from core.errors import UserError
from run_folder import inference
from run_folder.artifacts import ArtifactWriter, is_complete
from training import finish
from training.data import Data
from training.multihost import sharding
from training.photos import PhotoFiles, Photos
from training.tasks.segment import Segmentation
from training.tasks.statistics import Statistics


class Brightness(nnx.Module):
    """The brighter, the higher the class: right but for noise."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, images):
        value = images.mean(-1, keepdims=True) * 255
        centres = jnp.array([90.0, 160.0, 230.0])
        return -jnp.square((value - centres) / 25) * self.scale[...]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a task, its data and its weights."""
    monkeypatch.setattr(Segmentation, "build", lambda self: Brightness())
    root = write_data(tmp_path / "data")

    def made(**changes):
        config = segmentation_config.base()
        config.image_size = 32
        config.stages = (common.stage(),)
        config.cache_dir = str(tmp_path / "cache")
        config.data.root = str(root)
        config.eval.batch_size = 8
        config.augment.crop_scale = (0.5, 0.5)
        config.update_from_flattened_dict(changes)
        mesh = sharding.make_mesh()
        data = Data(config, tmp_path / "run", mesh, 0, Segmentation)
        task = Segmentation(config, data.source.classes)
        channels = np.zeros(3, np.float32), np.ones(3, np.float32)
        task.statistics = Statistics.of(data, *channels)
        return task, data, ({"scale": jnp.ones(())}, {})

    return made


def export(task, data, weights, workdir):
    writer = ArtifactWriter(workdir, 1)
    writer.begin()
    told = task.export(data, writer, *weights)
    finish.save_inference_spec(task, data.source, workdir)
    writer.finish()
    return told


WINDOWS = {
    "segment.windows": 0.5,
    "segment.probabilities": True,
    "eval.tta": ("whole", "flip", "whole@0.75"),
}


@pytest.mark.parametrize("changes", [{}, WINDOWS], ids=["whole", "windows"])
def test_masks_scores_and_probabilities(make, tmp_path, changes):
    task, data, weights = make(**changes)
    told = export(task, data, weights, tmp_path / "run")
    assert "validation mDice 0.9" in told
    assert is_complete(tmp_path / "run")
    files = json.loads((tmp_path / "run/artifacts.json").read_text())["files"]
    assert len([name for name in files if name.endswith(".png")]) == 8
    assert len(files) == (17 if changes else 9)
    for row in range(5):
        with Image.open(tmp_path / f"run/masks/val/p{row}.png") as image:
            assert image.getpalette("RGB")[:9] == PALETTE
            found = np.asarray(image)
        truth = np.asarray(Image.open(tmp_path / f"data/mask_val/p{row}.png"))
        assert (found == truth).mean() > 0.95
        if changes:
            path = tmp_path / f"run/probabilities/val/p{row}.npz"
            with np.load(path) as file:
                np.testing.assert_array_equal(file["labels"], truth)
                values = file["probabilities"].astype(int)
            assert np.abs(values.sum(-1) - 255).max() <= 2
            best = np.take_along_axis(values, found[..., None].astype(int), 2)
            assert (best[..., 0] >= values.max(-1) - 1).all()
    with np.load(tmp_path / "run/masks/val.npz") as counts:
        assert counts["ids"].tolist() == [f"val/p{row}" for row in range(5)]


@pytest.mark.parametrize("changes", [{}, WINDOWS], ids=["whole", "windows"])
def test_photos_are_predicted_as_the_export_did(make, tmp_path, changes):
    task, data, weights = make(**changes)
    export(task, data, weights, tmp_path / "run")
    spec = inference.read(tmp_path / "run")
    assert spec.resize == ("windows 0.5" if changes else "whole")
    # A run that was begun otherwise.
    other, _, _ = make()
    other.restore(spec)
    names = [str(tmp_path / f"data/img_test/p{row}.png") for row in range(3)]
    (tmp_path / "bad.png").write_bytes(b"no photo")
    names.insert(1, str(tmp_path / "bad.png"))
    files = PhotoFiles(tmp_path / "out", ["p0", "bad", "in/p1", "p2"], True)
    photos = Photos(names, 8, data.mesh)
    records = list(other.predict(photos, *weights, files))
    assert [record["bad"] for record in records] == [False, True, False, False]
    assert records[1]["mask"] == ""
    for row, name in ((0, "p0"), (1, "in/p1"), (2, "p2")):
        ours = tmp_path / f"out/{name}.png"
        theirs = tmp_path / f"run/masks/test/p{row}.png"
        found, expected = (np.asarray(Image.open(p)) for p in (ours, theirs))
        np.testing.assert_array_equal(found, expected)
        record = records[row + (row > 0)]
        assert record["mask"] == str(ours)
        shares = np.bincount(found.ravel(), minlength=3) / found.size
        np.testing.assert_allclose(list(record["shares"].values()), shares)
        with np.load(tmp_path / f"out/{name}.npz") as file:
            assert file["probabilities"].shape == (*found.shape, 3)
    alone = list(other.predict(photos, *weights))
    assert [r["shares"] for r in alone] == [r["shares"] for r in records]
    assert not any("mask" in record for record in alone)


def test_a_run_of_before_there_were_windows(make):
    task, *_ = make()
    config = task.config.copy_and_resolve_references()
    with config.unlocked():
        del config.segment.windows
        del config.segment.probabilities
    assert Segmentation(config, task.classes).resize == "whole"


def test_the_plan_tells_how_masks_are_predicted(make):
    assert make()[0].describe() == {"masks": "whole images; whole, flip"}
    told = make(**WINDOWS)[0].describe()["masks"]
    assert told == (
        "windows of 50.0% of an image, 50% overlapping; whole, flip, whole@0.75"
    )


def test_no_validation_image_that_can_be_read(make, tmp_path):
    task, data, weights = make()
    for path in (tmp_path / "data/img_val").iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(UserError, match="none of the validation images"):
        export(task, data, weights, tmp_path / "run")


def test_a_new_format_of_masks_is_written(make, tmp_path):
    """0, 255 and 7 in the files, no palette: photos get the same."""
    for path in (tmp_path / "data").glob("mask_*/*.png"):
        values = np.uint8([0, 255, 7])[np.asarray(Image.open(path))]
        Image.fromarray(values).save(path)
    (tmp_path / "data/classes.csv").unlink()
    task, data, weights = make(**{"data.mask_values": "0,255,7"})
    export(task, data, weights, tmp_path / "run")
    spec = inference.read(tmp_path / "run")
    assert (spec.mask_values, spec.mask_palette) == ((0, 255, 7), ())
    task.restore(dataclasses.replace(spec))
    photos = Photos([str(tmp_path / "data/img_test/p0.png")], 8, data.mesh)
    list(task.predict(photos, *weights, PhotoFiles(tmp_path / "o", ["a"])))
    with Image.open(tmp_path / "o/a.png") as image:
        assert image.mode == "L"
        assert set(np.unique(np.asarray(image))) <= {0, 255, 7}
