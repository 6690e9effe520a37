from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from errors import UserError
from input_pipeline import contact_sheet, sources
from input_pipeline.augment import Augment, eval_image


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
    source = sources.open_source(data_config(root=str(competition)))
    path = tmp_path / "sheet.png"
    settings = {"size": 100, "rows": 6, "columns": 3}
    chosen = contact_sheet.write_contact_sheet(
        path, source, Augment(), **settings
    )
    labels = source.labelled.labels[chosen]
    assert sorted(labels[:3]) == sorted(labels[3:]) == [0, 1, 2]
    assert len(set(chosen.tolist())) == 6
    sheet = np.asarray(Image.open(path))
    plain = eval_image(source.labelled.read(chosen[0]), ("center",), 100, "")
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
    source = sources.open_source(data_config(root=str(competition)))
    path = tmp_path / "sheet.png"
    contact_sheet.write_contact_sheet(path, source, Augment(), size=50)
    red = np.array([0xB0, 0, 0x20])
    assert (np.abs(np.asarray(Image.open(path)).astype(int) - red) < 9).all(
        axis=-1
    ).sum() > 20


def test_a_sheet_that_cannot_be_written(competition, data_config, tmp_path):
    source = sources.open_source(data_config(root=str(competition)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        contact_sheet.write_contact_sheet(
            tmp_path / "file" / "sheet.png", source, Augment(), size=50
        )
