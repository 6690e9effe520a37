"""Each mistake in the data is one sentence: the culprit and the remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest
from sample_images import encoded, photo

from core.errors import UserError
from input_pipeline.decoding import BadImage
from input_pipeline.sources import listing, open_source


def sentence_for(data):
    with pytest.raises(UserError) as error:
        open_source(data)
    message = str(error.value)
    assert "\n" not in message and ";" in message  # What is wrong; what to do.
    assert not message.endswith(".")
    return message


def edit_answers(folder, change):
    path = folder / "train_answers.csv"
    path.write_text(change(path.read_text()))
    return str(path)


def test_missing_root(tmp_path, data_config):
    root = str(tmp_path / "photos")
    message = sentence_for(data_config(root=root))
    assert f"{root} does not exist" in message
    assert "--config.data.root" in message


def test_root_is_a_file(tmp_path, data_config):
    path = tmp_path / "photos"
    path.write_text("")
    message = sentence_for(data_config(root=str(path)))
    assert f"{path} is not a folder" in message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("cvs", "data.source is 'cvs'.*did you mean 'csv'"),
        ("folders", "data.root is empty.*--config.data.root"),
    ],
)
def test_source_that_cannot_be(data_config, source, words):
    import re

    assert re.search(words, sentence_for(data_config(source=source)))


def test_missing_answers_file_suggests_the_near_one(competition, data_config):
    data = data_config(
        root=str(competition), source="csv", answers="train_answer.csv"
    )
    message = sentence_for(data)
    assert "train_answer.csv does not exist" in message
    assert "--config.data.answers (did you mean 'train_answers.csv'?)" in (
        message
    )


@pytest.mark.parametrize(
    ("field", "value", "near"),
    [
        ("id_column", "image_id", "img_id"),
        ("target_column", "target_featur", "target_feature"),
        ("target_column", "Target_Feature", "target_feature"),
    ],
)
def test_wrong_column(competition, data_config, field, value, near):
    message = sentence_for(data_config(root=str(competition), **{field: value}))
    assert "train_answers.csv" in message and f"'{value}'" in message
    assert "'img_id', 'target_feature'" in message
    assert f"--config.data.{field} (did you mean '{near}'?)" in message


def test_wrong_column_of_the_sample(competition, data_config):
    data = data_config(root=str(competition), submission_id_column="img_id")
    message = sentence_for(data)
    assert "sample_submission.csv has no column 'img_id'" in message
    assert "--config.data.submission_id_column" in message


def test_id_without_a_file(competition, data_config):
    (competition / "img_train" / "7.jpg").unlink()
    (competition / "img_train" / "9.jpg").unlink()
    message = sentence_for(data_config(root=str(competition)))
    assert "id '7' of" in message and "(and 1 more)" in message
    assert "train_answers.csv has no image in" in message


def test_sample_row_without_a_file(competition, data_config):
    (competition / "img_test" / "2.jpg").unlink()
    message = sentence_for(data_config(root=str(competition)))
    assert "id '2' of" in message and "sample_submission.csv" in message


def test_duplicate_ids(competition, data_config):
    edit_answers(competition, lambda text: text + "5,3\n")
    message = sentence_for(data_config(root=str(competition)))
    assert "train_answers.csv has id '5' 2 times in column 'img_id'" in message


def test_missing_label(competition, data_config):
    edit_answers(competition, lambda text: text.replace("4,11", "4,"))
    message = sentence_for(data_config(root=str(competition)))
    assert "has no label for id '4' in column 'target_feature'" in message


def test_label_in_one_file_only(competition, data_config):
    path = competition / "classes.csv"
    path.write_text("target_feature,name\n0,cat\n3,dog\n")
    message = sentence_for(data_config(root=str(competition)))
    assert "label '11' is in" in message and "but not in" in message
    assert "train_answers.csv" in message and "classes.csv" in message

    path.write_text("target_feature,name\n0,cat\n3,dog\n11,cow\n12,elk\n")
    message = sentence_for(data_config(root=str(competition)))
    assert "label '12' is in" in message

    path.write_text("target_feature,name\n0,cat\n3,dog\n11,cow\n")
    assert open_source(data_config(root=str(competition)))


@pytest.mark.parametrize("folder", ["img_train", "img_test"])
def test_missing_image_folder(competition, data_config, folder):
    shutil.rmtree(competition / folder)
    message = sentence_for(data_config(root=str(competition)))
    assert f"{competition / folder} does not exist" in message
    flag = "train_images" if folder == "img_train" else "test_images"
    assert f"--config.data.{flag}" in message


@pytest.mark.parametrize(
    "evil",
    [
        "../secret",
        "/etc/passwd",
        "a/../../b",
        "..",
        "a\\..\\..\\b",
        "\\\\host\\share",
        "",
        "x" * 300,
        "tab\there",
        "null\0byte",
    ],
)
def test_ids_that_would_leave_the_folder(competition, data_config, evil):
    (competition / "secret.jpg").write_bytes(encoded(photo()))
    edit_answers(competition, lambda text: text + f"{evil},3\n")
    message = sentence_for(data_config(root=str(competition)))
    assert "data row 13, column 'img_id'" in message


@pytest.mark.parametrize("evil", ["../secret", "/etc/hostname", "a/../../b"])
def test_sample_ids_that_would_leave_the_folder(competition, data_config, evil):
    path = competition / "sample_submission.csv"
    path.write_text(path.read_text() + f"{evil},3\n")
    message = sentence_for(data_config(root=str(competition)))
    assert "sample_submission.csv, data row 5" in message
    assert "points out of the image folder" in message


def test_links_are_followed_but_only_to_regular_files(
    competition, data_config, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "photo.jpg").write_bytes(encoded(photo(seed=77)))
    targets = [elsewhere / "photo.jpg", "/dev/zero", elsewhere, "nowhere"]
    folder = competition / "img_train"
    for row, target in enumerate([*targets, "4.jpg"]):
        (folder / f"{row}.jpg").unlink()
        (folder / f"{row}.jpg").symlink_to(target)
    images = open_source(data_config(root=str(competition))).labelled
    assert images.read(0)["image"] == encoded(photo(seed=77))
    reasons = ["not a regular file", "a folder", "No such file", "links"]
    for row, reason in enumerate(reasons, 1):
        with pytest.raises(BadImage, match=reason):
            images.read(row)


def test_ids_may_lie_in_folders_below(competition, data_config):
    below = competition / "img_train" / "a" / "b"
    below.mkdir(parents=True)
    (below / "c.PNG").write_bytes(encoded(photo(), "PNG"))
    edit_answers(competition, lambda text: text + "a/b/c,3\n")
    images = open_source(data_config(root=str(competition))).labelled
    assert images.ids[-1] == "a/b/c"
    assert images.read(12)["image"] == (below / "c.PNG").read_bytes()


@pytest.mark.parametrize("name", ["4.png", "4.JPG", "4.JPEG", "4.webp"])
def test_other_extensions_are_found(competition, data_config, name):
    folder = competition / "img_train"
    (folder / "4.jpg").rename(folder / name)
    images = open_source(data_config(root=str(competition))).labelled
    assert images.path(4) == str(folder / name)


def test_ids_may_carry_their_extension(competition, data_config):
    edit_answers(competition, lambda text: text.replace("\n4,", "\n4.jpg,"))
    images = open_source(data_config(root=str(competition))).labelled
    assert images.ids[4] == "4.jpg"
    assert images.path(4).endswith("/4.jpg")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "has no content"),
        (lambda text: "img_id,target_feature\n", "has no rows"),
        (lambda text: text + "12,3,extra\n", "line 14 has 3 fields"),
        (lambda text: text.replace("img_id", "target_feature"), "two columns"),
        (lambda text: text + '"' + "x" * 10_000_000, "cannot be read as csv"),
        (lambda text: text + "x" * 10_000_000 + ",3", "cannot be read as csv"),
        (lambda text: text + "12," + "3" * 300, "a label of 300 characters"),
        (lambda text: text + "," * 1_000_000, "line 14 has 1000001 fields"),
    ],
)
def test_malformed_csv(competition, data_config, change, words):
    path = edit_answers(competition, change)
    message = sentence_for(data_config(root=str(competition)))
    assert path in message and words in message
    assert len(message) < 400


def test_a_csv_of_gigabytes_is_not_even_opened(competition, data_config):
    path = competition / "train_answers.csv"
    with open(path, "r+b") as file:
        file.truncate(3 << 30)  # A hole: it takes no space.
    start = time.process_time()
    message = sentence_for(data_config(root=str(competition)))
    assert "has 3072 MB, more than the 256" in message
    assert time.process_time() - start < 1


def test_csv_that_is_not_text(competition, data_config):
    (competition / "train_answers.csv").write_bytes(b"img_id,\xff\xfe\n1,2\n")
    message = sentence_for(data_config(root=str(competition)))
    assert "is not UTF-8 text; save it as UTF-8" in message


def test_what_spreadsheets_do_to_a_csv_is_harmless(competition, data_config):
    plain = open_source(data_config(root=str(competition)))
    edit_answers(
        competition,
        lambda text: "\ufeff" + text.replace(",", " , ").replace("\n", "\r\n"),
    )
    again = open_source(data_config(root=str(competition)))
    assert again.labelled.ids.tolist() == plain.labelled.ids.tolist()
    assert again.classes == plain.classes
    assert again.fingerprint == plain.fingerprint


def test_text_labels_are_sorted_as_text(competition, data_config):
    edit_answers(competition, lambda text: text.replace(",11", ",b c"))
    source = open_source(data_config(root=str(competition)))
    assert source.classes == ("0", "3", "b c")


def test_fingerprint_follows_labels_and_files(competition, data_config):
    data = data_config(root=str(competition))
    first = open_source(data).fingerprint
    (competition / "img_train" / "3.jpg").write_bytes(encoded(photo(99, 99)))
    second = open_source(data).fingerprint
    edit_answers(competition, lambda text: text.replace("1,3\n", "1,0\n"))
    third = open_source(data).fingerprint
    assert len({first, second, third}) == 3


MILLION_ROWS = """
import resource, sys, time
from types import SimpleNamespace
from core.errors import UserError
from input_pipeline import sources
data = SimpleNamespace(
    root=sys.argv[1], source="csv", answers="train_answers.csv",
    id_column="img_id", target_column="target_feature",
    train_images="img_train", extension=".jpg", group_column="")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    sources.open_source(data)
except UserError as error:
    print(error)
print(time.process_time())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_million_rows_are_read_fast_and_in_little_memory(tmp_path):
    rows = "\n".join(f"{row},{row % 7}" for row in range(1_000_000))
    path = tmp_path / "train_answers.csv"
    path.write_text("img_id,target_feature\n" + rows)
    (tmp_path / "img_train").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", MILLION_ROWS, tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    message, seconds, kilobytes = result.stdout.splitlines()
    assert "id '0' of" in message and "(and 999999 more)" in message
    assert float(seconds) < 20
    assert int(kilobytes) < 700_000


@pytest.fixture
def class_folders(tmp_path):
    for label in ("cat", "dog"):
        for row in range(3):
            path = tmp_path / "train" / label / f"{row}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(seed=row)))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "7.png").write_bytes(encoded(photo(), "PNG"))
    return tmp_path


def test_folders_source(class_folders, data_config):
    source = open_source(data_config(root=str(class_folders)))
    assert source.name == "folders"
    assert source.classes == ("cat", "dog")
    assert source.labelled.ids[3] == "dog/0.jpg"
    assert source.labelled.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test.ids.tolist() == ["7"]
    # The same without train/ and test/.
    source = open_source(data_config(root=str(class_folders / "train")))
    assert source.labelled.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test is None


def test_folders_source_with_a_test_folder_of_its_own(
    class_folders, data_config
):
    (class_folders / "train" / "unknown").mkdir()
    path = class_folders / "train" / "unknown" / "1.jpg"
    path.write_bytes(encoded(photo()))
    source = open_source(
        data_config(root=str(class_folders / "train"), test_folder="unknown")
    )
    assert source.classes == ("cat", "dog")
    assert source.test.ids.tolist() == ["1"]


def test_empty_class_folder(class_folders, data_config):
    (class_folders / "train" / "elk").mkdir()
    message = sentence_for(data_config(root=str(class_folders)))
    assert "train/elk holds no image" in message


def test_no_class_folder_at_all(tmp_path, data_config):
    message = sentence_for(data_config(root=str(tmp_path)))
    assert "neither train_answers.csv nor one folder of images per" in message


def test_only_one_class(class_folders, data_config):
    shutil.rmtree(class_folders / "train" / "dog")
    message = sentence_for(data_config(root=str(class_folders)))
    assert "one class folder, 'cat'" in message


def test_missing_test_folder(class_folders, data_config):
    data = data_config(root=str(class_folders), test_folder="tset")
    message = sentence_for(data)
    assert "tset does not exist" in message
    assert "--config.data.test_folder" in message


def test_class_folders_in_the_test_folder(class_folders, data_config):
    (class_folders / "test" / "dog").mkdir()
    message = sentence_for(data_config(root=str(class_folders)))
    assert "has a folder 'dog' like a class" in message


def test_one_class_in_a_csv(competition, data_config):
    edit_answers(
        competition,
        lambda text: text.replace(",11", ",3").replace(",0", ",3"),
    )
    message = sentence_for(data_config(root=str(competition)))
    assert "every label in column 'target_feature' is '3'" in message


def test_images_survive_the_way_to_a_worker(competition, data_config):
    import pickle

    images = open_source(data_config(root=str(competition))).labelled
    copy = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(copy.ids, images.ids)
    assert copy.read(3) == images.read(3)


def test_a_link_to_nowhere_in_a_class_folder(class_folders, data_config):
    path = class_folders / "train" / "cat" / "9.jpg"
    path.symlink_to("nowhere")
    images = open_source(data_config(root=str(class_folders))).labelled
    row = images.ids.tolist().index("cat/9.jpg")
    with pytest.raises(BadImage, match="No such file"):
        images.read(row)


@pytest.mark.parametrize("where", ["train/cat", "test"])
def test_file_names_that_are_not_utf8(class_folders, data_config, where):
    name = os.fsencode(class_folders / where) + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(encoded(photo()))
    message = sentence_for(data_config(root=str(class_folders)))
    assert "the name 'caf\\xe9.jpg' in" in message
    assert "is not UTF-8; rename it" in message


def test_class_folders_that_are_not_utf8(class_folders, data_config):
    name = os.fsencode(class_folders / "train") + b"/caf\xe9"
    os.mkdir(name)
    with open(name + b"/1.jpg", "wb") as file:
        file.write(encoded(photo()))
    message = sentence_for(data_config(root=str(class_folders)))
    assert "is not UTF-8; rename it" in message
    message.encode()  # It can be printed.


def test_names_that_no_row_means_may_be_anything(competition, data_config):
    name = os.fsencode(competition / "img_train") + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(b"")
    (competition / "img_train" / "4.jpg").rename(
        competition / "img_train" / "4.png"
    )
    images = open_source(data_config(root=str(competition))).labelled
    assert images.path(4).endswith("/4.png")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_may_be_written_in_two_ways(competition, data_config, form):
    name = unicodedata.normalize(form, "é ö фото.jpg")
    (competition / "img_train" / "4.jpg").rename(
        competition / "img_train" / name
    )
    for written in ("NFC", "NFD"):
        image_id = unicodedata.normalize(written, "é ö фото")
        edit_answers(
            competition,
            lambda text, image_id=image_id: "\n".join(
                f"{image_id},11" if number == 5 else line
                for number, line in enumerate(text.splitlines())
            ),
        )
        source = open_source(data_config(root=str(competition)))
        assert source.labelled.ids[4] == image_id
        assert source.labelled.path(4) == str(competition / "img_train" / name)


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list folder .* permissions"):
        listing.Folder(tmp_path, "data.train_images")
