"""Data as it is found in the field, from the plan to the submission."""

from __future__ import annotations

import csv
import os

import commands
import numpy as np
import pytest
from in_process import training

import predict
from input_pipeline import __main__ as inputs
from stacking.__main__ import main as stacking

CONFIG = "--config=configs/miniconvnext.py:demo"


@pytest.fixture
def competition(tmp_path):
    commands.write_competition(tmp_path / "data", per_class=20)
    return tmp_path / "data"


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def train(workdir, root, *fields):
    return training(
        workdir, f"--config.data.root={root}", "--config.data.folds=2", *fields
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained run, and the competition that it is of."""
    folder = tmp_path_factory.mktemp("field")
    commands.write_competition(folder / "data", per_class=20)
    data = folder / "data"
    assert train(folder / "runs/a", data) == 0
    return folder


@pytest.mark.parametrize(
    "kind", ["spaces", "index", "order", "wide", "wide index"]
)
def test_a_sample_is_the_same_to_training_and_to_the_stack(
    runs, tmp_path, capsys, kind
):
    data, out = runs / "data", tmp_path / "stack"
    header, *rows = read(data / "sample_submission.csv")
    classes = sorted({row[1] for row in read(data / "train_answers.csv")[1:]})
    if kind.startswith("wide"):
        header = [header[0], *classes[::-1]]
        rows = [[row[0], *["0"] * len(classes)] for row in rows]
    if kind.endswith("index"):
        header = ["", *header]
        rows = [[str(n), *row] for n, row in enumerate(rows)]
    if kind == "order":
        header, rows = header[::-1], [row[::-1] for row in rows]
    blank = " , " if kind == "spaces" else ","
    lines = [blank.join(line) for line in (header, *rows)]
    sample = tmp_path / "sample.csv"
    sample.write_text("\n".join(lines) + "\n")
    field = f"--config.data.sample_submission={sample}"
    assert train(tmp_path / "plan", data, field, "--plan") == 0
    assert f"{len(rows)} to predict" in capsys.readouterr().out
    stacking(
        [
            *("--runs", str(runs / "runs/a"), "--out", str(out)),
            *("--boosters", "none", "--trials", "5", "--no-leak-check"),
            *("--sample-submission", str(sample)),
        ]
    )
    first, *found = read(out / "submission.csv")
    assert first == header
    place = header.index("id")
    assert [row[place] for row in found] == [row[place] for row in rows]
    if kind.startswith("wide"):
        values = np.array([row[place + 1 :] for row in found], float)
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
    else:
        answer = header.index("target_feature")
        assert {row[answer] for row in found} <= set(classes)
    if kind.endswith("index"):
        assert [row[0] for row in found] == [row[0] for row in rows]


def test_plan_audit_sheet_and_conversion_count_the_same(
    competition, tmp_path, capsys, monkeypatch
):
    images = competition / "img_train"
    names = sorted(os.listdir(images))
    (images / "extra.jfif").write_bytes((images / names[0]).read_bytes())
    (images / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    answers = read(competition / "train_answers.csv")
    rows = [f"{row[0]},{row[1]}.0" for row in answers[1:]]
    path = competition / "train_answers.csv"
    path.write_text("\n".join([",".join(answers[0]), *rows]) + "\n")
    folds = competition / "folds.csv"
    lines = [f"{row[0]},{n % 2 + 1}.0,x" for n, row in enumerate(answers[1:])]
    folds.write_text("\n".join(["img_id,fold,more", *lines]))
    told = [
        f"1 × no decoder (first: {images}/phone.heic); "
        f"1 × no row (first: {images}/extra.jfif)",
        "is read as '",
    ]
    file = f"--config.data.folds_file={folds}"
    assert train(tmp_path / "run", competition, file, "--plan") == 0
    out = capsys.readouterr().out
    for words in (*told, "folds 1, 2 of the file are 0 to 1"):
        assert words in out
    assert len(answers) - 1 == 2 * int(out.split(" to train")[0].split()[-1])
    fields = [CONFIG, f"--config.data.root={competition}", file]
    fields.append("--config.data.folds=2")
    monkeypatch.chdir(commands.ROOT)
    assert inputs.check([*fields, f"--out={tmp_path / 'audit.csv'}"]) == 1
    out = capsys.readouterr().out
    assert "1 × no decoder" in out and "1 × no row" in out
    assert "folds 1, 2 of the file are 0 to 1" in out and told[1] in out
    inputs.convert([*fields, f"--out={tmp_path / 'records'}"])
    out = capsys.readouterr().out
    assert all(words in out for words in told)
    sheet = tmp_path / "sheet.png"
    inputs.draw([*fields, f"--out={sheet}", "--batches=0", "--rows=1"])
    out = capsys.readouterr().out
    assert all(words in out for words in told)


def test_photos_below_a_folder_and_those_without_a_decoder_are_predicted(
    runs, tmp_path, capsys
):
    photo = next((runs / "data/img_test").iterdir()).read_bytes()
    (tmp_path / "below").mkdir()
    (tmp_path / "below/a.jfif").write_bytes(photo)
    (tmp_path / "b.jpg").write_bytes(photo[:-2])
    (tmp_path / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "notes.txt").write_text("words")
    assert predict.main(["--run", str(runs / "runs/a"), str(tmp_path)]) == 1
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "photo"
    names = [line.split()[0] for line in lines]
    assert sorted(names) == [
        str(tmp_path / name) for name in ("b.jpg", "below/a.jfif", "c.heic")
    ]
    assert [line for line in lines if "cannot be read" in line] == [
        f"{tmp_path / 'c.heic'}  cannot be read"
    ]
