"""A run enlarges its photos before it starts, and new photos as well."""

import numpy as np
import pytest
from PIL import Image

from configs import common
from core import weight_packages
from core.errors import UserError
from input_pipeline.decoding import decode
from input_pipeline.samplers import ShuffledSampler
from input_pipeline.sources.base import Kind
from training import data as data_lib
from training import photos, upscaling
from training.loop import stages
from training.multihost import sharding
from training.tasks.base import Task


class Doubler:
    """In the place of waifu2x, whose weights are in a package."""

    calls = 0

    def __call__(self, pixels):
        Doubler.calls += 1
        return pixels.repeat(2, 0).repeat(2, 1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A config and its open data: eight photos of 40 px and one of 100."""
    rng = np.random.default_rng(0)
    rows = ["img_id,target_feature"]
    for folder in ("img_train", "img_test"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number in range(9):
        side = 100 if number == 8 else 40
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/img_train/{number}.png")
        rows.append(f"{number},{number % 2}")
    Image.fromarray(pixels[:30, :50]).save(tmp_path / "data/img_test/new.png")
    (tmp_path / "data/train_answers.csv").write_text("\n".join(rows))
    (tmp_path / "data/sample_submission.csv").write_text(
        "id,target_feature\nnew,0\n"
    )
    monkeypatch.setattr(weight_packages, "path_of", lambda name: None)
    monkeypatch.setattr(upscaling, "Waifu2x", Doubler)
    monkeypatch.setattr(Doubler, "calls", 0)
    monkeypatch.setattr(common, "CACHE_DIR", str(tmp_path / "other_cache"))
    config = common.base()
    config.image_size = 56  # Which is cut out of 64 px.
    config.stages = (common.stage(epochs=1.0, batch_size=2),)
    config.cache_dir = str(tmp_path / "cache")
    config.data.update(
        root=str(tmp_path / "data"),
        extension=".png",
        folds=2,
        upscale="waifu2x",
    )
    task = type("Learner", (Task,), {"features": {"image": Kind.IMAGE}})
    mesh = sharding.make_mesh()
    data = data_lib.Data(config, tmp_path / "run", mesh, 0, task)
    return config, data


def sizes(examples):
    rows = range(len(examples))
    return [decode(examples.read(row)["image"]).shape[:2] for row in rows]


def test_photos_are_enlarged_before_the_first_batch(run, tmp_path, capsys):
    config, data = run
    assert "images of under 64 px are enlarged: waifu2x" in str(data.describe())
    # The plan asks for shapes when nothing is enlarged yet.
    stage = stages.plan_stages(config, len(data.train_rows))[0]
    sampler = ShuffledSampler(data.train_rows, seed=0)
    assert data.example(stage, sampler)["image"].shape == (1, 56, 56, 3)
    assert not (tmp_path / "cache").exists()
    data.prepare(tmp_path / "cache")
    assert Doubler.calls == 8 + 2  # The one of 30 px twice.
    assert sizes(data.source.labelled) == [(64, 64)] * 8 + [(100, 100)]
    assert sizes(data.source.test) == [(64, 107)]
    data.prepare(tmp_path / "cache")
    assert Doubler.calls == 10


def test_new_photos_are_enlarged_as_the_run_was(run, tmp_path):
    config, data = run
    data.prepare(tmp_path / "cache")
    names = [str(tmp_path / "data/img_test/new.png")]
    given = photos.Photos(names, 2, data.mesh, config=config)
    assert given.examples.read(0)["image"] == data.source.test.read(0)["image"]
    assert list((tmp_path / "other_cache").rglob("*.png"))
    assert sizes(photos.Photos(names, 2, data.mesh).examples) == [(30, 50)]


def test_a_missing_package_is_told_before_anything_is_written(
    run, tmp_path, monkeypatch
):
    config, _ = run
    monkeypatch.undo()
    package = weight_packages.Package("no-such-upscaler", "x", "0")
    monkeypatch.setitem(weight_packages.PACKAGES, "waifu2x", package)
    with pytest.raises(UserError, match="run pip install no-such-upscaler"):
        upscaling.step_of(config, tmp_path)
