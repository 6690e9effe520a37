"""Whoever does what an error says gets further, and at last through."""

from __future__ import annotations

import re

import pytest

from core.errors import UserError
from input_pipeline.sources import open_source


@pytest.fixture
def follow(competition, data_config):
    """Opens the data, doing what each error says, which no error says twice.

    `fixes` are (words of the error, what a person does about them); what it
    says to set in the config is set.
    """

    def go(fixes=(), **fields):
        data = data_config(**{"root": str(competition), **fields})
        said = []
        while True:
            try:
                return open_source(data), said
            except UserError as error:
                assert str(error) not in said
                said.append(str(error))
            for words, fix in fixes:
                if re.search(words, said[-1]):
                    fix(said[-1])
                    break
            else:
                found = re.search(
                    r"set --config\.data\.(\w+)(?:=(\S*)| \(did you mean "
                    r"'(\w+)')",
                    said[-1],
                )
                assert found, said[-1]
                name, value, guess = found.groups()
                setattr(data, name, guess or value or "")

    return go


def edit(path, change):
    return lambda said="": path.write_text(change(path.read_text()))


def test_semicolons_and_tabs(competition, follow):
    path = competition / "train_answers.csv"
    for mark, name in ((";", "';'"), ("\t", "tabs")):
        edit(path, lambda text, mark=mark: text.replace(",", mark))()
        save = edit(path, lambda text, mark=mark: text.replace(mark, ","))
        source, (said,) = follow([("save it with commas", save)])
        assert f"separates its columns by {name}" in said
        assert len(source.labelled) == 12


@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_ids_with_their_folder(competition, follow, ending):
    for name, folder in (
        ("train_answers", "img_train"),
        ("sample_submission", "img_test"),
    ):
        path = competition / f"{name}.csv"
        header, *lines = path.read_text().splitlines()
        rows = [line.replace(",", f"{ending},") for line in lines]
        path.write_text("\n".join([header, *(f"{folder}/{x}" for x in rows)]))
    source, said = follow()
    assert len(said) == 2
    assert f"set --config.data.train_images={competition}" in said[0]
    assert f"set --config.data.test_images={competition}" in said[1]
    assert source.labelled.ids[3] == f"img_train/3{ending}"
    assert list(source.left_out) == []


@pytest.mark.parametrize("form", ["{}", "{}.0"])
def test_labels_that_are_one_column_per_class(competition, follow, form):
    pandas = pytest.importorskip("pandas")
    path = competition / "train_answers.csv"
    classes = ("mel", "nv", "bcc")
    rows = [
        ",".join(
            [str(row), *(form.format(int(row % 3 == c)) for c in range(3)), "x"]
        )
        for row in range(12)
    ]
    path.write_text("\n".join([f"img_id,{','.join(classes)},site", *rows]))

    def use_pandas(said):
        table = pandas.read_csv(path)
        code = re.search(r"in pandas with (.*)", said).group(1)
        exec(code, {"table": table})
        table.to_csv(path)  # With its index, as people do.

    source, (said,) = follow([("in pandas", use_pandas)])
    assert "but one for each of 3 classes" in said
    assert source.classes == ("bcc", "mel", "nv")
    assert [source.classes[label] for label in source.labelled.labels[:3]] == [
        *classes
    ]


def test_a_sample_whose_answer_is_not_known(competition, follow):
    path = competition / "sample_submission.csv"
    rows = [f"{row},public,0" for row in (10, 1, 2, 3)]
    text = "\n".join(["image,usage,label", *rows])
    path.write_text(text)
    fix = edit(path, lambda text: text.replace("label", "target_feature"))
    source, said = follow(
        [("call the column", fix)], submission_id_column="imge"
    )
    assert "did you mean 'image'?" in said[0] and len(said) == 2
    assert source.test.ids.tolist() == ["10", "1", "2", "3"]
    # Or without it.
    path.write_text(text)
    source, said = follow(submission_id_column="image")
    assert "--config.data.sample_submission= to predict every" in said[0]
    assert source.test.ids.tolist() == ["1", "2", "3", "10"]


@pytest.mark.parametrize(
    "text",
    [
        ",id,target_feature\n0,10,0\n1,1,0\n",
        "target_feature,id\n0,10\n0,1\n",
        "id , answer\n10 , 0\n 1, 0\n",
        "id,3,0,11\n10,.1,.1,.8\n1,.1,.1,.8\n",
        "id,target_feature,\n10,0,\n1,0,\n",
    ],
)
def test_samples_as_they_are_found(competition, follow, text):
    (competition / "sample_submission.csv").write_text(text)
    source, said = follow()
    assert said == [] and source.test.ids.tolist() == ["10", "1"]


def test_class_folders_beside_a_csv(tmp_path, follow, competition):
    """Such as the one that the audit wrote there."""
    root = competition / "photos"
    for row in range(4):
        folder = root / ("cat" if row % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (competition / f"img_train/{row}.jpg").rename(folder / f"{row}.jpg")
    (root / "audit.csv").write_text("split,id\n")
    source, (said,) = follow(root=str(root))
    assert "--config.data.source=folders if each" in said
    assert source.classes == ("cat", "dog")
