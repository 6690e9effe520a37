"""Nothing in a data folder is passed over in silence."""

from __future__ import annotations

import collections
import os
import shutil
import socket
import threading

import pytest
from sample_images import encoded, photo

from core.errors import UserError
from input_pipeline import audit, decoding
from input_pipeline.findings import loses
from input_pipeline.sources import listing, open_source

HEIC = b"\0\0\0\x18ftypheic" + bytes(40)


def put(path, data=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(photo(seed=seed)) if data is None else data)


@pytest.fixture
def class_folders(tmp_path):
    for number, name in enumerate(("cat", "dog")):
        for row in range(5):
            put(tmp_path / f"train/{name}/{row}.jpg", seed=10 * number + row)
    for row in range(3):
        put(tmp_path / f"test/{row}.jpg", seed=50 + row)
    return tmp_path


def problems(source):
    return dict(collections.Counter(file.problem for file in source.left_out))


def refused(data, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(data)
    assert "\n" not in str(error.value) and ";" in str(error.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"a{ending}", "JPEG") for ending in (".jfif", ".JPE", ".mpo")),
        ("a.apng", "PNG"),
        ("a.dib", "BMP"),
        ("a.pnm", "PPM"),
        # Endings of other kinds, or none: what is inside counts.
        ("0001", "JPEG"),
        ("a.jpg_large", "JPEG"),
        ("a.v2", "PNG"),
        ("a.HEIC", "JPEG"),
        ("a.x", "WEBP"),
        ("a.x", "GIF"),
        ("a.x", "BMP"),
        ("a.x", "PPM"),
        ("a.x", "TIFF"),
        ("a.x", "AVIF"),
    ],
)
def test_what_can_be_decoded_is_taken_whatever_its_ending(
    class_folders, data_config, name, kind
):
    put(class_folders / "train" / "cat" / name, encoded(photo(), kind))
    put(class_folders / "test" / name, encoded(photo(), kind))
    source = open_source(data_config(root=str(class_folders)))
    assert f"cat/{name}" in source.labelled.ids
    row = source.labelled.ids.tolist().index(f"cat/{name}")
    decoding.decode(source.labelled.read(row)["image"])
    assert len(source.test) == 4 and problems(source) == {}


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.heic", HEIC, "no decoder"),
        ("a.HEIF", b"", "no decoder"),
        ("a.jxl", b"\xff\x0a", "no decoder"),
        ("phone", HEIC, "no decoder"),
        # A camera's raw file is a TIFF that holds a small preview.
        ("a.nef", encoded(photo(), "TIFF"), "no decoder"),
        ("a.txt", b"words", "no image"),
        ("a", b"", "no image"),
        ("BM.csv", b"BM,1\n2,3\n" * 9, "no image"),
        ("._a.jpg", b"\0\5\x16\7", ""),
        ("Thumbs.db", b"x", ""),
        ("__MACOSX/cat/a.jpg", None, ""),
        ("@eaDir/a.jpg/thumb.jpg", None, ""),
        (".ipynb_checkpoints/a.jpg", None, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("where", ["train/cat", "train/dog/below", "test"])
def test_what_cannot_be_decoded_is_counted_and_named(
    class_folders, data_config, name, data, problem, where
):
    path = class_folders / where / name
    put(path, data)
    source = open_source(data_config(root=str(class_folders)))
    assert len(source.labelled) == 10 and len(source.test) == 3
    if not problem:
        assert list(source.left_out) == [] and source.describe() == {}
        return
    (file,) = source.left_out
    assert file == (where.split("/")[0], str(path), problem, "")
    told = source.describe()["left out"]
    assert told == f"1 × {problem} (first: {path})"
    findings = audit.audit(source, 5)
    assert [(one.problem, one.file) for one in findings] == [
        (problem, str(path))
    ]
    assert loses(findings) == (problem == "no decoder")
    assert str(path) in "\n".join(audit.summary(source, findings))


def test_a_format_without_a_decoder_is_one_of_those(
    class_folders, data_config, monkeypatch
):
    """As with a Pillow that was built without AVIF."""
    monkeypatch.setattr(listing, "EXTENSIONS", (".jpg",))
    monkeypatch.setattr(listing, "OTHER_EXTENSIONS", (".avif",))
    monkeypatch.setattr(
        listing, "looks_like_image", lambda data: data[:2] == b"\xff\xd8"
    )
    put(class_folders / "train/cat/a.avif", encoded(photo(), "AVIF"))
    source = open_source(data_config(root=str(class_folders)))
    assert problems(source) == {"no decoder": 1}


def test_images_below_the_folder_of_their_class_are_taken(
    class_folders, data_config
):
    for row in range(4):
        put(class_folders / f"train/cat/2023/may/{row}.jpg", seed=20 + row)
        put(class_folders / f"test/more/{row}.jpg", seed=60 + row)
    (class_folders / "train/cat/2023/circle").symlink_to(
        class_folders / "train/cat"
    )
    source = open_source(data_config(root=str(class_folders)))
    ids = source.labelled.ids.tolist()
    assert ids.count("cat/2023/may/3.jpg") == 1
    assert source.labelled.labels[ids.index("cat/2023/may/3.jpg")] == 0
    assert source.test.ids.tolist()[-1] == "more/3"
    assert source.describe()["notes"] == (
        f"{len(ids) - 10} training images lie in subfolders and are taken; "
        "4 test images lie in subfolders and are taken"
    )


@pytest.mark.parametrize("splits", [("training", "holdout"), ("a", "b", "c")])
def test_splits_are_not_taken_for_classes_and_the_advice_works(
    tmp_path, data_config, splits
):
    for split in splits:
        for name in ("cat", "dog"):
            put(tmp_path / split / name / "1.jpg")
            for row in range(2, 8):
                put(tmp_path / splits[0] / name / f"{row}.jpg")
    put(tmp_path / splits[1] / "overview.jpg")
    root = tmp_path / splits[0]  # The largest.
    refused(
        data_config(root=str(tmp_path)),
        f"same folder 'cat' in .*--config.data.root={root};",
    )
    source = open_source(data_config(root=str(root)))
    assert source.classes == ("cat", "dog")


def test_one_folder_around_the_classes(tmp_path, data_config):
    for name in ("cat", "dog"):
        put(tmp_path / "images" / name / "1.jpg")
    refused(
        data_config(root=str(tmp_path)),
        f"one class folder.*--config.data.root={tmp_path / 'images'} if",
    )


def test_a_class_within_another_is_refused(class_folders, data_config):
    put(class_folders / "train/cat/old/dog/1.jpg")
    put(class_folders / "train/cat/dog/1.jpg")
    refused(
        data_config(root=str(class_folders)), "cat has 2 images .* 'dog', which"
    )
    shutil.rmtree(class_folders / "train/cat/old")
    shutil.rmtree(class_folders / "train/cat/dog")
    put(class_folders / "train/cat/cat/1.jpg")  # Unpacked twice.
    assert len(open_source(data_config(root=str(class_folders))).labelled) == 11


def test_images_in_no_class_folder_are_counted(class_folders, data_config):
    put(class_folders / "train/loose.jpg")
    put(class_folders / "val/cat/1.jpg")
    put(class_folders / "val/dog/1.jfif")
    put(class_folders / "cover.png", encoded(photo(), "PNG"))
    source = open_source(data_config(root=str(class_folders)))
    assert problems(source) == {"no class": 4}
    assert loses(audit.audit(source, 5))


def test_images_that_no_row_names_are_counted(competition, data_config):
    put(competition / "img_train/extra.jpg")
    put(competition / "img_train/below/extra.png", encoded(photo(), "PNG"))
    put(competition / "img_train/phone.heic", HEIC)
    put(competition / "img_test/extra.jpg")
    source = open_source(data_config(root=str(competition)))
    assert len(source.labelled) == 12 and len(source.test) == 4
    assert problems(source) == {"no row": 3, "no decoder": 1}
    assert [file.split for file in source.left_out].count("test") == 1


def test_one_folder_for_both_splits(competition, data_config):
    for number, path in enumerate((competition / "img_test").iterdir()):
        path.rename(competition / f"img_train/q{number}.jpg")
    rows = [f"q{number},0" for number in range(4)]
    sample = competition / "sample_submission.csv"
    sample.write_text("\n".join(["id,target_feature", *rows]))
    data = data_config(root=str(competition), test_images="img_train")
    assert problems(open_source(data)) == {}
    put(competition / "img_train/extra.jpg")
    assert problems(open_source(data)) == {"no row": 1}


def test_ids_without_the_folders_that_their_images_lie_in(
    competition, data_config
):
    for row in range(12):
        part = competition / f"img_train/part_{row % 2}"
        part.mkdir(exist_ok=True)
        (competition / f"img_train/{row}.jpg").rename(part / f"{row}.jpg")
    source = open_source(data_config(root=str(competition)))
    assert source.labelled.path(3).endswith("/part_1/3.jpg")
    assert problems(source) == {}


@pytest.mark.parametrize(
    "files", [("4.png", "4.webp"), ("a/4.jpg", "b/4.jpg"), ("4.PNG", "4.bmp")]
)
def test_two_files_for_one_id_are_refused(competition, data_config, files):
    folder = competition / "img_train"
    (folder / "4.jpg").unlink()
    for name in files:
        put(folder / name)
    data = data_config(root=str(competition))
    refused(data, f"id '4' of .* has 2 files in .*: {files[0]} and {files[1]}")
    # One with the configured ending, or in the folder itself, is meant.
    put(folder / "4.JPG")
    assert open_source(data).labelled.path(4) == str(folder / "4.JPG")
    put(folder / "4.jpg")
    source = open_source(data)
    assert source.labelled.path(4) == str(folder / "4.jpg")
    assert problems(source) == {"no row": 3}
    (folder / "4.jpg").unlink()
    (folder / "4.JPG").unlink()
    if "/" not in files[0]:  # The advice works.
        data.extension = os.path.splitext(files[0])[1]
        assert open_source(data).labelled.path(4) == str(folder / files[0])


def test_one_file_for_two_ids_is_refused(competition, data_config):
    path = competition / "train_answers.csv"
    path.write_text(path.read_text() + "4.jpg,3\n")
    refused(
        data_config(root=str(competition)), "'4' and '4.jpg' of .* one file"
    )


def test_an_id_that_has_only_an_image_of_another_kind(competition, data_config):
    (competition / "img_train/4.jpg").unlink()
    put(competition / "img_train/4.heic", HEIC)
    data = data_config(root=str(competition))
    refused(data, "there is only 4.heic: save it as")
    path = competition / "train_answers.csv"
    path.write_text(path.read_text().replace("\n4,", "\n4.heic,"))
    refused(data, "there is only 4.heic: save it as")


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("4", "4.0"),
        ("0004", "4"),
        ("04", "4.0"),
        ("Img4", "img4"),
        ("0", "0.0"),
    ],
)
def test_an_id_that_a_spreadsheet_changed(
    competition, data_config, name, image_id
):
    folder, path = competition / "img_train", competition / "train_answers.csv"
    for old in ("4", "0"):
        (folder / f"{old}.jpg").unlink()
    put(folder / f"{name}.jpg")
    rows = path.read_text().replace("\n0,3", "").split("\n4,11")
    path.write_text(f"\n{image_id},11".join(rows))
    data = data_config(root=str(competition))
    refused(data, f"id '{image_id}' .*; write it as in the name of {name}.jpg")
    path.write_text(f"\n{name},11".join(rows))
    assert f"{name}.jpg" in open_source(data).labelled.path(3)


def test_no_image_is_trained_on_and_predicted(tmp_path, data_config):
    """Wherever one of the two folders lies in the other."""
    for name in ("cat", "dog"):
        put(tmp_path / f"folders/{name}/1.jpg")
    put(tmp_path / "folders/cat/new/1.jpg")
    data = data_config(root=str(tmp_path / "folders"), test_folder="cat/new")
    source = open_source(data)
    assert source.labelled.ids.tolist() == ["cat/1.jpg", "dog/1.jpg"]
    assert source.test.ids.tolist() == ["1"]

    rows = ["img_id,target_feature", "1,a", "2,b"]
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/train_answers.csv").write_text("\n".join(rows))
    for name in ("train/1.jpg", "train/2.jpg", "q.jpg", "q2/3.jpg"):
        put(tmp_path / "csv/all" / name)
    data = data_config(
        root=str(tmp_path / "csv"), train_images="all/train", test_images="all"
    )
    assert set(open_source(data).test.ids) == {"q", "q2/3"}
    data.train_images = "all"
    source = open_source(data)
    assert set(source.test.ids) == {"q", "q2/3"}
    assert list(source.left_out) == []


def test_ids_with_backslashes(competition, data_config):
    put(competition / "img_train/sub/4.jpg")
    path = competition / "train_answers.csv"
    path.write_text(path.read_text().replace("\n4,", "\nsub\\4.jpg,"))
    source = open_source(data_config(root=str(competition)))
    assert source.labelled.path(4).endswith("/sub/4.jpg")


@pytest.mark.parametrize("folder", ["train/cat", "train", "test"])
def test_what_is_no_regular_file_is_not_opened(
    class_folders, data_config, folder
):
    """Opening a pipe would wait for ever, and take what is meant for others."""
    folder = class_folders / folder
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / ".hidden")
    (folder / "linked").symlink_to("pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "nowhere").symlink_to("missing")
    (folder / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket"))
    # A reader gets an image, so that one that opens the pipe fails below.
    writer = threading.Thread(
        target=(folder / "pipe").write_bytes, args=(encoded(photo()),)
    )
    writer.start()
    try:
        source = open_source(data_config(root=str(class_folders)))
        assert writer.is_alive()
    finally:
        if writer.is_alive():
            (folder / "pipe").read_bytes()
        writer.join()
    assert len(source.labelled) == 10
    assert len(source.test) == 3
    assert problems(source) == {"no image": 6}
