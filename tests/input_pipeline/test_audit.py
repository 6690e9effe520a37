from __future__ import annotations

import csv
import os
import pty
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sample_images import encoded, photo

from core.errors import UserError
from input_pipeline import audit, inspection
from input_pipeline import findings as findings_lib
from input_pipeline.sources import open_source


def run(root, out, *more, config="configs/miniconvnext.py"):
    return subprocess.run(
        [
            sys.executable,
            *("-m", "input_pipeline", "audit", f"--config={config}"),
            f"--config.data.root={root}",
            f"--out={out}",
            *more,
        ],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def findings(competition, data_config):
    """Audits the folder as it is by then: {(problem, id): detail}."""

    def find(folds=3, **changes):
        data = data_config(root=str(competition), **changes)
        found = audit.audit(open_source(data), folds)
        details = {(one.problem, one.id): one.detail for one in found}
        assert len(details) == len(found)
        return details

    return find


def test_a_clean_folder(findings):
    assert findings() == {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_images_that_are_wholly_transparent(competition, findings, mode):
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[..., :3] = np.arange(40)[:, None, None]
    image = Image.fromarray(pixels).convert(mode)
    options = {"transparency": bytes(256)} if mode == "P" else {}
    for name in ("5", "6"):
        (competition / f"img_train/{name}.jpg").unlink()
    image.save(competition / "img_train/5.png", **options)
    pixels[0, 0, 3] = 1  # A single pixel that can hardly be seen.
    Image.fromarray(pixels).save(competition / "img_train/6.png")
    found = findings()
    assert [id_ for problem, id_ in found if problem == "transparent"] == ["5"]


def test_bad_files(competition, findings):
    (competition / "img_train" / "5.jpg").write_bytes(b"")
    (competition / "img_train" / "6.jpg").write_bytes(b"words")
    whole = encoded(photo(99, 99))
    (competition / "img_test" / "10.jpg").write_bytes(whole[: len(whole) // 2])
    found = findings(folds=2)
    assert found[("bad training image", "5")] == "the file is empty"
    assert "not an image" in found[("bad training image", "6")]
    assert "truncated" in found[("bad test image", "10")]
    assert len(found) == 3


def test_copies_even_in_another_format(competition, findings):
    train, test = competition / "img_train", competition / "img_test"
    # Rows 0 to 3 are class 3, rows 4 to 7 class 11.
    (train / "1.jpg").write_bytes((train / "0.jpg").read_bytes())
    (train / "4.jpg").write_bytes((train / "0.jpg").read_bytes())
    from input_pipeline.decoding import decode

    pixels = decode((train / "9.jpg").read_bytes())
    (test / "2.jpg").write_bytes(encoded(pixels, "PNG"))
    (test / "3.jpg").write_bytes((test / "1.jpg").read_bytes())
    assert findings() == {
        ("copy", "1"): "same pixels as train id '0'",
        ("two labels", "4"): "same pixels as train id '0'",
        ("copy across splits", "2"): "same pixels as train id '9'",
        ("copy", "3"): "same pixels as test id '1'",
    }


def test_images_of_equal_bytes_but_other_shapes_are_no_copies(
    competition, findings
):
    for row, shape in ((0, (24, 32, 3)), (1, (32, 24, 3))):
        flat = encoded(np.full(shape, 90, np.uint8), "PNG")
        (competition / "img_train" / f"{row}.jpg").write_bytes(flat)
    assert findings() == {}


def test_sizes(competition, findings):
    train = competition / "img_train"
    (train / "0.jpg").write_bytes(encoded(photo(120, 160)))
    (train / "1.jpg").write_bytes(encoded(photo(5, 7)))
    (train / "2.jpg").write_bytes(encoded(photo(20, 90)))
    (train / "3.jpg").write_bytes(
        encoded(photo(90, 100, 7))
    )  # Not too far off.
    assert findings() == {
        ("unusual size", "0"): "160x120, the median is 32x24",
        ("unusual size", "1"): "7x5, the median is 32x24",
        ("long and narrow", "2"): "90x20, the median is 32x24",
    }
    for path in (competition / "img_test").iterdir():
        path.write_bytes(encoded(photo(72, 96, seed=int(path.stem))))
    assert findings()[("sizes differ", "")] == (
        "median 32x24 in training, 96x72 in test"
    )


def test_classes(competition, findings):
    path = competition / "train_answers.csv"
    path.write_text(path.read_text().replace("11,0", "11,Dog"))
    assert "class 'Dog' has 1 image" in findings()[("class too small", "")]
    path.write_text(path.read_text().replace("10,0", "10,Dog") + "12,0\n")
    (competition / "img_train" / "12.jpg").write_bytes(encoded(photo(seed=12)))
    assert findings(folds=2) == {}
    detail = findings(folds=3)[("class misses folds", "")]
    assert detail == "class 'Dog' has 2 images to train on, in 3 folds"
    (competition / "img_train" / "10.jpg").write_bytes(b"")
    (competition / "img_train" / "11.jpg").write_bytes(b"")
    detail = findings(folds=2)[("class too small", "")]
    assert detail == "class 'Dog' has 0 images to train on"


def test_class_folders_whose_names_are_doubtful(tmp_path, data_config):
    for name in ("old dog", "Old  Dog", "nan"):
        for row in range(5):
            path = tmp_path / "train" / name / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(seed=len(name) * 10 + row)))
    source = open_source(data_config(root=str(tmp_path)))
    found = {one.problem: one.detail for one in audit.audit(source, 5)}
    assert found == {
        "labels alike": "classes 'Old  Dog' and 'old dog' differ only in how "
        "they are written",
        "missing label": "class 'nan' is how a missing value is written",
    }
    assert set(found.values()) == set(source.notes)


def test_command_on_a_clean_folder(competition, tmp_path):
    result = run(competition, tmp_path / "audit.csv", "--config.data.folds=3")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "'csv': 12 labelled images in 3 classes, 4 to predict",
        "  every image can be read, and nothing else is odd",
    ]
    text = (tmp_path / "audit.csv").read_text()
    assert text == "split,id,file,problem,detail\n"


def test_command_on_a_folder_that_would_lose_an_image(competition, tmp_path):
    bad = competition / "img_train" / "5.jpg"
    bad.write_bytes(b"")
    (competition / "img_test" / "3.jpg").write_bytes(
        (competition / "img_test" / "1.jpg").read_bytes()
    )
    out = tmp_path / "audit.csv"
    result = run(competition, out, "--config.data.folds=3")
    assert result.returncode == 1, result.stderr
    assert "1 × bad training image" in result.stdout
    assert f"{bad}: the file is empty" in result.stdout
    assert f"all 2 of them: {out}" in result.stdout
    with open(out, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["problem"] for row in rows] == ["bad training image", "copy"]
    assert rows[0] == {
        "split": "train",
        "id": "5",
        "file": str(bad),
        "problem": "bad training image",
        "detail": "the file is empty",
    }


@pytest.mark.parametrize(
    "arguments",
    [("--config.data.source=cvs",), ("--config.data.folds=x",), ("--rows=3",)],
)
def test_command_with_a_mistake(competition, tmp_path, arguments):
    result = run(competition, tmp_path / "audit.csv", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "audit.csv").exists()


def test_a_report_that_cannot_be_written(competition, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(competition, tmp_path / "file" / "audit.csv")
    assert result.returncode == 2
    assert "cannot write" in result.stderr


def test_a_terminal_sees_a_bar(competition, tmp_path):
    main, end = pty.openpty()
    with os.fdopen(main, "rb", 0) as terminal:
        result = subprocess.run(
            [
                sys.executable,
                *("-m", "input_pipeline", "audit"),
                "--config=configs/miniconvnext.py",
                f"--config.data.root={competition}",
                f"--out={tmp_path / 'audit.csv'}",
            ],
            stdout=subprocess.PIPE,
            stderr=end,
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(end)
        seen = terminal.read(1 << 16).decode()
    assert result.returncode == 0
    assert "train images" in seen and "%" in seen


def test_photos_with_an_image_of_two_labels_are_found(shared_data, data_config):
    """The sample photos have three such pairs."""
    source = open_source(data_config(root=str(shared_data / "photos16")))
    rows = np.isin(source.labelled.ids, ["448", "4442", "589", "4682"])
    inspected = [
        inspection._inspect(source.labelled, row)
        for row in np.flatnonzero(rows)
    ]
    labels = source.labelled.labels[rows]
    assert len({image.digest for image in inspected}) == 2
    assert len(set(labels.tolist())) > 1


def test_digits_need_no_file(data_config, tmp_path):
    source = open_source(data_config())
    assert audit.audit(source, 5) == []
    assert source.labelled.path(0) == ""


def test_summary_names_what_has_no_file():
    finding = findings_lib.Finding("train", "digit-1", "", "copy", "of digit-0")
    assert findings_lib._first(finding) == "digit-1: of digit-0"
    assert not findings_lib.loses([finding])


def test_unwritable_findings_leave_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        findings_lib.write_findings(tmp_path / "file" / "x.csv", [])


def test_colours_and_sharpness_of_an_image(data_config):
    """Means and squares as NumPy has them; a blurred image is less sharp."""
    examples = open_source(data_config()).labelled
    pixels = examples.read(3)["image"].astype(np.float64) / 255
    found = inspection._inspect(examples, 3)
    np.testing.assert_allclose(found.means, pixels.mean((0, 1)))
    np.testing.assert_allclose(found.squares, (pixels**2).mean((0, 1)))
    assert found.brightness == pytest.approx(pixels.mean())
    image = Image.fromarray(np.uint8(pixels * 255)).resize((64, 64))
    blurred = image.resize((4, 4)).resize((64, 64))
    assert inspection._sharpness(blurred) < inspection._sharpness(image)
    assert inspection._sharpness(Image.new("RGB", (2, 9))) == 0
