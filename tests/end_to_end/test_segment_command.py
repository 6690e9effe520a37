"""Photos with masks in, masks out: trained, killed, resumed, predicted."""

import json
import os
import shutil
import signal
import time

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import answers
from masked_pictures import PALETTE, words, write_data
from PIL import Image

from training import saved_run
from training.multihost import sharding


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("masks") / "data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("segment") / "run"
    done = commands.run(*words(workdir, data))
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_masks_have_the_size_and_palette_of_the_data(whole, data):
    workdir, stdout = whole
    assert "validation mDice" in stdout
    for split, count in (("val", 5), ("test", 3)):
        masks = sorted((workdir / f"masks/{split}").glob("*.png"))
        assert [path.stem for path in masks] == [f"p{r}" for r in range(count)]
        for path in masks:
            found = Image.open(path)
            photo = Image.open(data / f"img_{split}/{path.stem}.png")
            assert found.size == photo.size
            assert found.getpalette("RGB")[:9] == PALETTE
            assert set(np.unique(np.asarray(found))) <= {0, 1, 2}


def test_the_score_told_is_that_of_the_files(whole, data):
    workdir, stdout = whole
    counts = np.zeros((3, 3), int)
    for path in (workdir / "masks/val").glob("*.png"):
        truth = np.asarray(Image.open(data / "mask_val" / path.name))
        found = np.asarray(Image.open(path))
        np.add.at(counts, (truth.ravel(), found.ravel()), 1)
    sizes = counts.sum(0) + counts.sum(1)
    dice = (2 * np.diag(counts) / np.maximum(sizes, 1))[sizes > 0].mean()
    assert f"validation mDice {dice:.4f}" in stdout
    best = max(
        record["val_mean_dice"]
        for record in commands.records(workdir)
        if record["kind"] == "eval"
    )
    # While training one view is scored, of the export two.
    assert abs(best - dice) < 0.2


def test_the_report_shows_classes_and_pictures(whole):
    page = (whole[0] / "report.html").read_text()
    for text in ("validation mDice", "boundary IoU", "square", "Worst", "p0"):
        assert text in page
    assert page.count("data:image/png;base64,") == 10  # Two for each image.
    manifest = json.loads((whole[0] / "artifacts.json").read_text())
    assert "masks/val.npz" in manifest["files"]
    assert "masks/test/p2.png" in manifest["files"]


def test_exported_it_answers_alike_without_this_project(whole, tmp_path):
    run, out = f"--run={whole[0]}", f"--out={tmp_path}"
    done = commands.run("export.py", run, out, "--format=stablehlo")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "model.json").read_text())
    side = told["input"]["shape"][1]
    pixels = np.random.default_rng(0).integers(
        0, 256, (2, side, side, 3), np.uint8
    )
    one, found = answers(tmp_path, pixels)
    assert list(found.shape) == [2, *told["output"]["shape"][1:]]
    np.testing.assert_allclose(one[0], found[0], atol=1e-4)
    opened = saved_run.open_run(whole[0], sharding.make_mesh())
    model = opened.task.abstract_model.merge(*opened.weights)
    model.eval()
    mean, std = (np.float32(told["input"][name]) for name in ("mean", "std"))
    images = jnp.asarray((pixels / np.float32(255) - mean) / std)
    answer = jax.jit(lambda images: opened.task.answer(model, images))
    np.testing.assert_allclose(found, answer(images), atol=1e-4)


def test_killed_and_run_again_it_comes_to_the_same_bits(whole, data, tmp_path):
    workdir = tmp_path / "run"
    with open(tmp_path / "out", "w") as output:
        process = commands.in_background(
            commands.command(*words(workdir, data)), output
        )
    log = workdir / "metrics.jsonl"
    end = time.monotonic() + 120
    while not log.exists() or log.read_text().count('"eval"') < 2:
        assert process.poll() is None, (tmp_path / "out").read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = commands.run(*words(workdir, data))
    assert again.returncode == 0, again.stderr
    assert log.read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()
    for path in (whole[0] / "masks").rglob("*.png"):
        same = workdir / path.relative_to(whole[0])
        assert same.read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--config.data.fold=1",), "which images validate"),
        (("--config.segment.class_weights=1,2",), "2 numbers and the data 3"),
        (("--config.data.train_masks=nothere",), "nothere does not exist"),
        (("--config.image_size=40", "--config.eval.tta=('crop',)"), "choose"),
    ],
    ids=str,
)
def test_mistakes_are_refused_in_one_sentence(
    data, tmp_path, arguments, answer
):
    done = commands.run(*words(tmp_path / "run", data, *arguments))
    assert done.returncode == 2, done.stdout
    assert answer in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_predicts_photos_without_its_data(whole, data):
    photos = str(data / "img_test")
    done = commands.run(
        "predict.py", "--run", str(whole[0]), photos, "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        record = json.loads(line)
        assert "mask" not in record
        assert list(record["shares"]) == ["ground", "square", "bar"]
        assert sum(record["shares"].values()) == pytest.approx(1)


@pytest.fixture(scope="module")
def exported(whole, data, tmp_path_factory):
    """The run exported anew: windows, a scaled view, probabilities."""
    workdir = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(whole[0], workdir)
    done = commands.run(
        *words(workdir, data, "--export"),
        "--config.segment.windows=0.5",
        "--config.segment.probabilities=True",
        "--config.eval.tta=('whole','flip','whole@0.75')",
    )
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_windows_scales_and_probabilities(exported, whole, data):
    workdir, stdout = exported
    assert "validation mDice" in stdout
    differ = 0
    for path in (workdir / "masks").rglob("*.png"):
        split, name = path.parent.name, path.stem
        with Image.open(path) as image:
            mask = np.asarray(image)
            assert image.getpalette("RGB")[:9] == PALETTE
        before = np.asarray(Image.open(whole[0] / f"masks/{split}/{path.name}"))
        assert mask.shape == before.shape
        differ += int((mask != before).sum())
        with np.load(workdir / f"probabilities/{split}/{name}.npz") as file:
            values = file["probabilities"].astype(int)
            assert values.shape == (*mask.shape, 3)
            assert np.abs(values.sum(-1) - 255).max() <= 2
            best = np.take_along_axis(values, mask[..., None].astype(int), 2)
            assert (best[..., 0] >= values.max(-1) - 1).all()
            assert ("labels" in file.files) == (split == "val")
            if split == "val":
                truth = Image.open(data / f"mask_val/{path.name}")
                np.testing.assert_array_equal(file["labels"], truth)
    assert differ > 0  # Windows are another way to look.
    assert len(list((workdir / "probabilities").rglob("*.npz"))) == 8


def test_photos_get_the_masks_of_the_export(exported, data, tmp_path):
    """In the palette of the training, by the views of the last export."""
    workdir = shutil.copytree(exported[0], tmp_path / "run")
    out = tmp_path / "out"
    (tmp_path / "photos/more").mkdir(parents=True)
    for name in ("p0.png", "p1.png"):
        shutil.copy(data / "img_test" / name, tmp_path / "photos")
    shutil.copy(data / "img_test/p2.png", tmp_path / "photos/more/p0.png")
    (tmp_path / "photos/broken.jpg").write_bytes(b"no photo")
    done = commands.run(
        *("predict.py", "--run", str(workdir), str(tmp_path / "photos")),
        *("--out", str(out), "--probabilities", "--format", "json"),
    )
    assert done.returncode == 1, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    named = {r["photo"].partition("photos/")[2]: r for r in records}
    assert named["broken.jpg"]["bad"] and named["broken.jpg"]["mask"] == ""
    assert "broken.jpg" in done.stderr
    for name, test in (
        ("p0", "p0"),
        ("p1", "p1"),
        ("more/p0", "p2"),
    ):
        assert named[f"{name}.png"]["mask"] == str(out / f"{name}.png")
        for ours, theirs in (
            (f"{name}.png", f"masks/test/{test}.png"),
            (f"{name}.npz", f"probabilities/test/{test}.npz"),
        ):
            assert (out / ours).exists()
            if ours.endswith(".png"):
                a, b = (Image.open(p) for p in (out / ours, workdir / theirs))
                assert a.getpalette("RGB")[:9] == PALETTE
                # Batches of another size round otherwise.
                assert (np.asarray(a) != np.asarray(b)).mean() < 0.01
    assert not list(out.glob("broken*")) and not list(out.glob(".*"))


@pytest.mark.parametrize(
    ("photos", "flags", "answer"),
    [
        (("a/p0.png", "b/p0.png"), ("--out", "{}/o"), "would both become"),
        (("a/p0.png", "a/P0.bmp"), ("--out", "{}/o"), "would both become"),
        (("a/p0.png",), ("--out", "{}/a"), "is one of the photos"),
        (("a",), ("--out", "{}/a/o"), "would be photos the next time"),
        (("a/p0.png",), ("--probabilities",), "name a folder with --out"),
    ],
    ids=str,
)
def test_photos_whose_files_would_clash_are_refused(
    whole, data, tmp_path, photos, flags, answer
):
    for name in photos:
        if name == "a":  # The folder.
            (tmp_path / name).mkdir()
            name = "a/p0.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(data / "img_test/p0.png", tmp_path / name)
    done = commands.run(
        *("predict.py", "--run", str(whole[0])),
        *(str(tmp_path / name) for name in photos),
        *(flag.format(tmp_path) for flag in flags),
    )
    assert done.returncode == 2
    assert answer in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_two_runs_become_one_answer(exported, whole, data, tmp_path):
    second = shutil.copytree(exported[0], tmp_path / "second")
    done = commands.run(
        *words(second, data, "--export"),
        "--config.segment.probabilities=True",
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "stack"
    done = commands.run(
        *("-m", "stacking.masks", "--runs", str(exported[0]), str(second)),
        *("--out", str(out), "--trials", "20"),
    )
    assert done.returncode == 0, done.stderr
    assert "weighted mean" in done.stdout
    assert len(list((out / "masks/test").glob("*.png"))) == 3
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 10  # Two for each image.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "fields", "room"),
    [
        (4, ("--config.mesh.fsdp=2",), 1e-3),
        (1, ("--config.dtype=bfloat16",), 0.05),
    ],
    ids=["on four devices", "in bfloat16"],
)
def test_layout_and_precision_keep_the_losses(
    whole, data, tmp_path, monkeypatch, devices, fields, room
):
    monkeypatch.setenv(
        "XLA_FLAGS",
        f"--xla_force_host_platform_device_count={devices} {commands.HASTY}",
    )
    workdir = tmp_path / "run"
    done = commands.run(*words(workdir, data, *fields))
    assert done.returncode == 0, done.stderr
    found, right = (
        [record["loss"] for record in commands.records(run) if "loss" in record]
        for run in (workdir, whole[0])
    )
    assert found != right  # Sums in another order, or rounded.
    np.testing.assert_allclose(found, right, rtol=room)
    assert len(list((workdir / "masks/test").glob("*.png"))) == 3
