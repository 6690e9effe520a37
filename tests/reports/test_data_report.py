"""The page on a data folder: what is odd is shown, with what to do."""

import re

import numpy as np
import pytest
from page_reader import read
from PIL import Image

from core.errors import UserError
from input_pipeline.findings import DOUBTS, LOSSES
from reports.__main__ import main
from reports.data_findings import REMEDIES
from run_folder import layout
from run_folder.predictions import Logits, write_logits

RECIPE = "--config=configs/miniconvnext.py"


def photo(seed, size=(48, 40)):
    """Smooth random shapes: no two photos are alike."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folders(tmp_path):
    """Two classes of six photos, each in a folder of its own."""
    root = tmp_path / "data"
    for number, name in enumerate(("cat", "dog")):
        (root / "train" / name).mkdir(parents=True)
        for row in range(6):
            image = photo(10 * number + row)
            image.save(root / "train" / name / f"{row}.png")
    return root


def page(root, tmp_path, *more):
    out = tmp_path / "data.html"
    arguments = [RECIPE, f"--config.data.root={root}", f"--out={out}"]
    arguments += ["--config.data.folds=2"]
    assert main(["data", *arguments, *more]) == 0
    return read(out)


def test_every_problem_has_a_remedy():
    assert REMEDIES.keys() == (LOSSES | DOUBTS).keys()
    for remedy in REMEDIES.values():
        assert re.fullmatch(r"[A-Z].*\.", remedy)


def test_a_clean_folder(folders, tmp_path):
    reader = page(folders, tmp_path)
    assert "labelled images 12 folders" in reader.text
    assert "nothing else is odd" in reader.text
    assert "cat633" in reader.text  # Six images, three in each fold.
    assert "All images are 48x40." in reader.text
    # Twelve samples, and six of three kinds of outliers.
    assert reader.tags.count("img") == 12 + 18


def test_findings_are_shown_with_what_to_do(folders, tmp_path):
    cats = folders / "train/cat"
    photo(3).save(folders / "train/dog/again.png")
    photo(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(cats / "m.png")
    (cats / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (40, 400)).save(cats / "dark.png")
    reader = page(folders, tmp_path)
    for problem in (
        "bad training image",
        "near copy",
        "two labels",
        "long and narrow",
    ):
        assert f"1 × {problem}" in reader.text
        assert REMEDIES[problem] in reader.text
    assert "mirrored (" in reader.text
    assert "2 different sizes" in reader.text
    assert "0, far off" in reader.text  # The black one.


def test_a_copy_is_shown_beside_what_it_is_a_copy_of(folders, tmp_path):
    photo(3).save(folders / "train/dog/again.png")
    page(folders, tmp_path)
    html = (tmp_path / "data.html").read_text()
    (couple,) = re.findall(r'<div class="two">(.*?)</div>', html, re.S)
    names = re.findall(r'alt="image ([^"]*)"', couple)
    assert sorted(names) == ["cat/3.png", "dog/again.png"]


def test_pairs_are_counted_by_identity(tmp_path):
    out = tmp_path / "data.html"
    recipe = "--config=configs/verify.py:demo"
    assert main(["data", recipe, f"--out={out}"]) == 0
    text = read(out).text
    assert "two real pictures or more" in text and "forged" in text
    assert "macro-F1" not in text and "class weights" not in text


def test_labels_that_a_model_contradicts(folders, tmp_path):
    ids = [f"{name}/{row}.png" for name in ("cat", "dog") for row in range(6)]
    labels = np.repeat([0, 1], 6)
    logits = 4 * np.eye(2, dtype=np.float32)[labels]
    logits[2] = [0, 5]  # Sure that this cat is a dog,
    logits[3] = [0.9, 1]  # and undecided here.
    run = tmp_path / "run"
    write_logits(
        layout.logits_path(run, "val"),
        Logits(
            ids=np.array(ids),
            logits=logits,
            labels=labels,
            classes=np.array(["cat", "dog"]),
            fold=np.arange(12, dtype=np.int32) % 2,
            metadata={
                "model": "tiny",
                "config_hash": "c",
                "folds_hash": "f",
                "tta_views": ["center"],
            },
        ),
    )
    reader = page(folders, tmp_path, f"--predictions={run}")
    assert "Of 12 labels" in reader.text
    assert "1 are contradicted" in reader.text
    with pytest.raises(UserError, match="has no predicted labels"):
        page(folders, tmp_path, f"--predictions={tmp_path}")


def test_masks(tmp_path):
    root = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("img", "mask"):
            (root / f"{kind}_{split}").mkdir(parents=True)
        for row in range(count):
            photo(row + count).save(root / f"img_{split}/{split}{row}.png")
            mask = np.zeros((40, 48), np.uint8)
            mask[2:6, 4:8] = 1
            path = root / f"mask_{split}/{split}{row}.png"
            Image.fromarray(mask).save(path)
    (root / "classes.csv").write_text("index,name\n0,ground\n1,crack\n")
    reader = page(
        root, tmp_path, "--config=configs/unet.py", "--config.data.source=masks"
    )
    # 16 of 1,920 pixels, in six images, in both splits.
    assert "crack0.83%60.83%0.83%" in reader.text
    assert "Under one per cent: crack" in reader.text
    assert "validate" in reader.text


def test_classes_of_too_few_images_still_have_a_page(folders, tmp_path):
    (folders / "train/owl").mkdir()
    photo(99).save(folders / "train/owl/0.png")
    reader = page(folders, tmp_path)
    assert "1 × class too small" in reader.text
