from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sample_images import eval_image

from core.errors import UserError
from input_pipeline import contact_sheet
from input_pipeline.sources import open_source
from input_pipeline.transforms.mixing import Mixing
from input_pipeline.transforms.policy import Augment


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "input_pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_command_writes_a_sheet_of_the_digits(tmp_path):
    path = tmp_path / "sheet.png"
    result = run("--config=configs/tinyvit.py:demo", f"--out={path}")
    assert result.returncode == 0, result.stderr
    assert "8 images of 'digits'" in result.stdout
    assert "4 batches of stage 1 with their soft labels" in result.stdout
    with Image.open(path) as image:
        width, height = image.size
        assert width >= 8 * 96 and height >= 8 * 96
        assert np.asarray(image).std() > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config=configs/"),
        (["--config=configs/nope.py"], "no config file configs/nope.py"),
        (["--config=configs/tinyvit.py:x"], "variant 'x'"),
        (
            ["--config=configs/tinyvit.py", "--config.augment.flp=1"],
            "did you mean config.augment.flip?",
        ),
        (
            ["--config=configs/tinyvit.py", "--config.augment.flip=often"],
            "'often'",
        ),
        (
            ["--config=configs/tinyvit.py", "--config.data.root=/no/where"],
            "/no/where does not exist",
        ),
        (["--config=configs/tinyvit.py", "sheet"], "'sheet'"),
        (["--config=configs/tinyvit.py", "--stage=5"], "4 stages"),
    ],
)
def test_bad_command_lines_are_one_sentence(arguments, words, tmp_path):
    result = run(f"--out={tmp_path / 'sheet.png'}", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_sheet_shows_each_class_and_the_plain_image_first(
    competition, data_config, tmp_path
):
    source = open_source(data_config(root=str(competition)))
    path = tmp_path / "sheet.png"
    settings = {"size": 100, "rows": 6, "columns": 3}
    chosen = contact_sheet.write_contact_sheet(
        path, source, Augment(), **settings
    )
    labels = source.labelled.labels[chosen]
    assert sorted(labels[:3]) == sorted(labels[3:]) == [0, 1, 2]
    assert len(set(chosen.tolist())) == 6
    sheet = np.asarray(Image.open(path))
    plain = eval_image(
        source.labelled.read(chosen[0])["image"], ("center",), 100, ""
    )
    margin = contact_sheet._MARGIN
    top = margin + contact_sheet._TEXT
    cell = sheet[top : top + 100, margin : margin + 100]
    np.testing.assert_array_equal(cell, plain[0])
    again = tmp_path / "again.png"
    contact_sheet.write_contact_sheet(again, source, Augment(), **settings)
    assert again.read_bytes() == path.read_bytes()


def test_a_bad_image_is_named_on_the_sheet(competition, data_config, tmp_path):
    for path in (competition / "img_train").iterdir():
        path.write_bytes(b"")
    source = open_source(data_config(root=str(competition)))
    path = tmp_path / "sheet.png"
    contact_sheet.write_contact_sheet(path, source, Augment(), size=50)
    red = np.array([0xB0, 0, 0x20])
    assert (np.abs(np.asarray(Image.open(path)).astype(int) - red) < 9).all(
        axis=-1
    ).sum() > 20


def test_a_sheet_that_cannot_be_written(competition, data_config, tmp_path):
    source = open_source(data_config(root=str(competition)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        contact_sheet.write_contact_sheet(
            tmp_path / "file" / "sheet.png", source, Augment(), size=50
        )


@pytest.fixture
def flat_classes(tmp_path, data_config):
    """Two classes, one all red and one all blue: a mixed pixel tells lambda."""
    from sample_images import encoded

    for name, color in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        (tmp_path / name).mkdir()
        for row in range(4):
            flat = np.tile(np.array(color, np.uint8), (48, 48, 1))
            path = tmp_path / name / f"{row}.png"
            path.write_bytes(encoded(flat, "PNG"))
    return open_source(data_config(root=str(tmp_path)))


NOTHING = Augment(flip=0.0, randaugment_ops=0, jitter=(0.0, 0.0, 0.0, 0.0))


def test_mixed_images_have_the_share_that_their_label_says(flat_classes):
    kinds = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        batch = contact_sheet._batch(flat_classes.labelled, NOTHING, 48, 8, rng)
        images, targets = contact_sheet._mixed(
            batch, Mixing(erase_prob=0.0), 2, rng
        )
        for image, (blue, red) in zip(images, targets, strict=True):
            np.testing.assert_allclose(image[..., 0].mean(), 250 * red, atol=1)
            np.testing.assert_allclose(image[..., 2].mean(), 250 * blue, atol=1)
            if 0.02 < red < 0.98:
                kinds.add("CutMix" if image.std(axis=(0, 1))[0] else "MixUp")
    assert kinds == {"CutMix", "MixUp"}


def test_batches_stand_below_an_unchanged_sheet(
    flat_classes, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        contact_sheet,
        "_mixed",
        lambda batch, *_: (list(batch["image"]), np.full((4, 2), 0.5)),
    )
    settings = {"size": 96, "rows": 2, "columns": 4}
    sheets = []
    for mixing in (None, Mixing()):
        contact_sheet.write_contact_sheet(
            tmp_path / "sheet.png",
            flat_classes,
            NOTHING,
            mixing=mixing,
            batches=2,
            **settings,
        )
        sheets.append(np.asarray(Image.open(tmp_path / "sheet.png")))
    plain, mixed = sheets
    height = len(plain) - contact_sheet._MARGIN
    np.testing.assert_array_equal(mixed[:height], plain[:height])
    # Two batches, each a title, two lines of labels, and the images.
    line = 3 * contact_sheet._TEXT + 96 + contact_sheet._MARGIN
    assert len(mixed) - len(plain) == 2 * line


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([1.0, 0.0], "blue  100%\n"),
        ([0.3, 0.7], "red  70%\nblue  30%"),
        ([0.999, 0.001], "blue  100%\n"),
    ],
)
def test_soft_labels_in_words(flat_classes, target, words):
    assert contact_sheet._soft_label(flat_classes, np.array(target)) == words


def test_long_class_names_keep_their_share_in_sight():
    from PIL import ImageFont

    font = ImageFont.load_default(12)
    text = contact_sheet._fitted("a very long name of a class  37%", font, 96)
    assert font.getlength(text) <= 96
    assert text.startswith("…") and text.endswith("37%")


# ---- Masks -------------------------------------------------------------------


def test_with_masks_each_image_stands_beside_its_overlay(tmp_path, data_config):
    from core import class_colours

    data = data_config(source="digit_scenes")
    source = open_source(data)
    path = tmp_path / "sheet.png"
    size = 128
    chosen = contact_sheet.write_contact_sheet(
        path, source, NOTHING, size=size, rows=2, columns=3
    )
    sheet = np.asarray(Image.open(path))
    example = source.labelled.read(chosen[0])
    mask = np.repeat(np.repeat(example["mask"], 2, 0), 2, 1)
    margin, text = contact_sheet._MARGIN, contact_sheet._TEXT
    # The legend is above: as many lines as it takes.
    top = len(sheet) - margin - 2 * (size + text + margin)
    assert top >= text
    assert len(np.unique(sheet[:top].reshape(-1, 3), axis=0)) > 12
    top += margin + text
    image = sheet[top : top + size, margin : margin + size]
    beside = sheet[top : top + size, margin + size : margin + 2 * size]
    np.testing.assert_array_equal(
        beside, class_colours.overlay(image, mask, len(source.classes))
    )
    difference = np.abs(image[::2, ::2].astype(int) - example["image"])
    assert difference.mean() < 25  # Enlarged bilinearly.


def test_mixed_batches_with_masks_show_the_mixed_masks():
    rng = np.random.default_rng(0)
    batch = {
        "image": np.uint8(
            [[[[250, 0, 0]] * 32] * 32, [[[0, 0, 250]] * 32] * 32]
        ),
        "mask": np.stack([np.full((32, 32), one, np.uint8) for one in (0, 1)]),
        "label": np.zeros(2, np.int32),
        "weight": np.ones(2, np.float32),
    }
    mixing = Mixing(mixup_prob=0.0, erase_prob=0.0)
    mixed = 0
    for _ in range(6):
        images, masks = contact_sheet._mixed(batch, mixing, 2, rng)
        for image, mask in zip(images, masks, strict=True):
            np.testing.assert_array_equal(image[..., 2] > 125, mask == 1)
            mixed += 0 < mask.mean() < 1
    assert mixed


def test_command_with_masks(tmp_path):
    path = tmp_path / "sheet.png"
    result = run("--config=configs/unet.py:demo", f"--out={path}", "--rows=3")
    assert result.returncode == 0, result.stderr
    with Image.open(path) as image:
        assert image.width > 8 * 2 * 96
