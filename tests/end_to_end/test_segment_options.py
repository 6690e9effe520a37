"""Segmentation with other weights, splits and plans than the plain run."""

import json
import re
import shutil

import commands
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from masked_pictures import words, write_data
from PIL import Image

import jax_models


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("masks") / "data")


@pytest.mark.slow
def test_it_starts_from_a_file_of_weights_and_needs_it_once(data, tmp_path):
    def write_weights(name, seed):
        model = jax_models.create_model("miniconvnext_demo", 9, nnx.Rngs(seed))
        weights = jax_models.export_torch(model)
        safetensors.numpy.save_file(weights, tmp_path / name)
        return f"--config.init_from={tmp_path / name}"

    mine = write_weights("mine.safetensors", 1)
    command = words(tmp_path / "run", data, "--config.epochs=1")
    done = commands.run(*command, mine)
    assert done.returncode == 0, done.stderr
    assert f"starts from the encoder in {tmp_path}/mine.saf" in done.stdout
    assert "initialised anew: decoder, head" in done.stdout
    spec = json.loads((tmp_path / "run/inference.json").read_text())
    assert spec["mean"] == pytest.approx([0.485, 0.456, 0.406])
    # The file is needed no more; if it is elsewhere now, it must be the same.
    (tmp_path / "mine.safetensors").rename(tmp_path / "moved.safetensors")
    for name in ("mine", "moved"):
        fields = (f"--config.init_from={tmp_path / name}.safetensors",)
        again = commands.run(*command, *fields)
        assert "this run is finished" in again.stdout, again.stderr
    other = commands.run(*command, write_weights("other.safetensors", 2))
    assert other.returncode == 2, other.stdout
    assert "has started from other weights" in other.stderr
    without = commands.run(*command)
    assert without.returncode == 2
    assert "init_from" in without.stderr


def test_an_unreadable_validation_photo_shifts_nothing(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    (root / "img_val/p1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    workdir = tmp_path / "run"
    done = commands.run(*words(workdir, root, "--config.epochs=2"))
    assert done.returncode == 0, done.stderr
    assert "p1.png" in done.stderr
    with np.load(workdir / "masks/val.npz") as counts:
        ids = counts["ids"].tolist()
        assert ids == [f"val/p{row}" for row in (0, 2, 3, 4)]
        assert len(counts["confusion"]) == len(counts["boundary"]) == 4
        for name, confusion in zip(ids, counts["confusion"], strict=True):
            truth = Image.open(root / f"mask_val/{name[4:]}.png")
            pixels = np.bincount(np.asarray(truth).ravel(), minlength=3)
            assert confusion.sum(1).tolist() == pixels.tolist()


@pytest.mark.slow
def test_all_folds_join_their_scores(data, tmp_path):
    fields = ("--config.data.val_images=", "--config.data.folds=2")
    short = ("--config.epochs=1", "--all-folds")
    workdir = tmp_path / "all"
    done = commands.run(*words(workdir, data, *fields, *short))
    assert done.returncode == 0, done.stderr
    assert "out-of-fold mDice" in done.stdout
    with np.load(workdir / "masks/val.npz") as counts:
        assert sorted(counts["ids"]) == sorted(f"p{row}" for row in range(12))
    assert "boundary IoU" in (workdir / "report.html").read_text()


def test_a_plan_tells_the_shares_of_the_classes(data, tmp_path):
    done = commands.run(*words(tmp_path / "run", data, "--plan"))
    assert done.returncode == 0, done.stderr
    assert "12 to train, 5 to validate (as the folders say)" in done.stdout
    assert "bar" in done.stdout and "%" in done.stdout
    assert "cross_entropy + dice" in done.stdout


@pytest.mark.slow
@commands.needs_libtpu
def test_a_plan_for_chips_that_are_not_here(data, tmp_path):
    flags = ("--plan", "--topology=v5e:2x4")
    done = commands.run(*words(tmp_path / "run", data, *flags))
    assert done.returncode == 0, done.stderr
    for pattern in (
        r"bfloat16, 32 px",
        r"devices  8 x TPU v5 lite",
        r"fits  yes, \d+% of a chip",
        r"exchange  \d+ all-reduce of \d+ KiB in all",
    ):
        assert re.search(pattern, done.stdout), pattern
