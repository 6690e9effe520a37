"""Photos with masks in, masks out: trained, killed, resumed, predicted."""

import importlib.util
import json
import os
import re
import shutil
import signal
import time

import commands
import numpy as np
import pytest
from PIL import Image

RECIPE = commands.ROOT / "tests/end_to_end/segmentation_recipe.py"
# Compiled quickly rather than well: there is next to nothing to compute.
HASTY = (
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
PALETTE = [20, 20, 20, 220, 30, 30, 30, 30, 220]


def write_data(root):
    """Squares or bars on a noisy ground, of several sizes, palette masks."""
    rng = np.random.default_rng(0)
    count = {"train": 12, "val": 5, "test": 3}
    for split, images in count.items():
        for kind in ("img", "mask"):
            (root / f"{kind}_{split}").mkdir(parents=True)
        for row in range(images):
            height, width = rng.integers(30, 50, 2)
            mask = np.zeros((height, width), np.uint8)
            top, left = rng.integers(2, 10, 2)
            kind = 1 + row % 2
            shape = (12, 14) if kind == 1 else (5, 18)
            mask[top : top + shape[0], left : left + shape[1]] = kind
            image = rng.normal(90, 10, (height, width, 3))
            image += 70 * mask[..., None]
            image = np.uint8(image.clip(0, 255))
            Image.fromarray(image).save(root / f"img_{split}/p{row}.png")
            if split == "test":
                continue
            picture = Image.fromarray(mask)
            picture.putpalette(PALETTE)
            picture.save(root / f"mask_{split}/p{row}.png")
    (root / "classes.csv").write_text(
        "index,name,ignore\n0,ground,0\n1,square,0\n2,bar,0\n"
    )
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("masks") / "data")


def words(workdir, data, *arguments):
    return [
        *("train.py", f"--config={RECIPE}", f"--workdir={workdir}"),
        f"--config.data.root={data}",
        f"--config.cache_dir={commands.CACHE}",
        *arguments,
    ]


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
    assert page.count("data:image/png;base64,") == 5
    manifest = json.loads((whole[0] / "artifacts.json").read_text())
    assert "masks/val.npz" in manifest["files"]
    assert "masks/test/p2.png" in manifest["files"]


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
        shares = json.loads(line)["shares"]
        assert list(shares) == ["ground", "square", "bar"]
        assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("devices", "fields", "room"),
    [
        pytest.param(
            *(4, ("--config.mesh.fsdp=2",), 1e-3),
            id="on four devices",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(1, ("--config.dtype=bfloat16",), 0.05), id="in bfloat16"
        ),
    ],
)
def test_layout_and_precision_keep_the_losses(
    whole, data, tmp_path, monkeypatch, devices, fields, room
):
    monkeypatch.setenv(
        "XLA_FLAGS",
        f"--xla_force_host_platform_device_count={devices} {HASTY}",
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


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU's compiler, is not installed",
)
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
