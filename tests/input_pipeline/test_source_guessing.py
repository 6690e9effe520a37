"""With no data.source, the folder itself tells; a wrong guess is an error."""

import pytest

from core.errors import UserError
from input_pipeline.sources import open_source


def test_a_csv_with_another_name_is_not_taken_for_class_folders(
    competition, data_config
):
    (competition / "train_answers.csv").rename(competition / "labels.csv")
    with pytest.raises(UserError, match=r"train_answers\.csv"):
        open_source(data_config(root=str(competition), source=""))


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_a_split_among_class_folders_is_not_a_class(
    competition, data_config, tmp_path, name
):
    root = tmp_path / "classes"
    photo = next((competition / "img_train").iterdir()).read_bytes()
    for folder in ("cat", "dog", name):
        (root / folder).mkdir(parents=True)
        for i in range(3):
            (root / folder / f"{folder}{i}.jpg").write_bytes(photo)
    with pytest.raises(UserError, match=f"test_folder={name}"):
        open_source(data_config(root=str(root), source=""))
    told = data_config(root=str(root), source="", test_folder=name)
    source = open_source(told)
    assert source.classes == ("cat", "dog")
    assert len(source.test) == 3


def test_a_sample_submission_that_was_named_must_exist(
    competition, data_config
):
    named = data_config(root=str(competition), sample_submission="sampel.csv")
    with pytest.raises(UserError, match=r"sampel\.csv does not exist"):
        open_source(named)
    (competition / "sample_submission.csv").unlink(missing_ok=True)
    source = open_source(data_config(root=str(competition)))
    assert source.sample_submission is None
