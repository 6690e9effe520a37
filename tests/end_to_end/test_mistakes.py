"""Each mistake a user can make: one sentence, exit code 2, nothing left."""

import re
import shutil

import pytest
from commands import SHORT, run, write_competition

import train


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    write_competition(root)
    return root


def edit_answers(root, old, new):
    path = root / "train_answers.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def no_images(root):
    shutil.rmtree(root / "img_train")


def no_such_column(root):
    edit_answers(root, "img_id,target_feature", "img_id,target_featur")


def id_without_file(root):
    (root / "img_train/7.jpg").unlink()


def id_twice(root):
    edit_answers(root, "\n5,", "\n4,0\n5,")


def lonely_class(root):
    edit_answers(root, "\n8,4", "\n8,99")


def id_that_leaves_the_folder(root):
    edit_answers(root, "\n8,", "\n../../8,")


def no_answers_left(root):
    (root / "train_answers.csv").write_text("img_id,target_feature\n")


@pytest.mark.parametrize(
    ("damage", "culprits"),
    [
        (no_images, ["img_train"]),
        (no_such_column, ["target_feature", "target_featur"]),
        (id_without_file, ["7"]),
        (id_twice, ["4", "train_answers.csv"]),
        (lonely_class, ["99", "1 image"]),
        (id_that_leaves_the_folder, ["../../8"]),
        (no_answers_left, ["train_answers.csv"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_folder_is_one_sentence(
    good, tmp_path, capsys, damage, culprits
):
    root = tmp_path / "photos"
    shutil.copytree(good, root)
    damage(root)
    check_refused(capsys, tmp_path, culprits, f"--config.data.root={root}")


@pytest.mark.parametrize(
    ("flag", "culprits"),
    [
        ("--config.data.root=/no/such/folder", ["/no/such/folder"]),
        ("--config.data.sorce=csv", ["data.sorce", "data.source"]),
        ("--config.model=tinyvit_111m", ["tinyvit_111m", "tinyvit_11m"]),
        ("--config.data.source=cvs", ["cvs", "csv"]),
        ("--config.eval.tta=('centre',)", ["centre", "center"]),
        ("--config.data.fold=5", ["data.fold", "0 to 4"]),
    ],
)
def test_a_wrong_flag_is_one_sentence(tmp_path, capsys, flag, culprits):
    check_refused(capsys, tmp_path, culprits, flag)


def check_refused(capsys, tmp_path, culprits, *flags):
    workdir = tmp_path / "runs" / "refused"
    try:
        code = train.main([f"--workdir={workdir}", *SHORT, *flags])
    except SystemExit as end:
        code = end.code
    check(code, capsys.readouterr().err, workdir, culprits)


def check(code, said, workdir, culprits):
    assert code == 2, said
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    assert re.match(r"error: .{20,}", lines[0])
    for culprit in culprits:
        assert culprit in lines[0], lines[0]
    assert not workdir.exists(), "something was written all the same"


def test_the_process_ends_as_it_says(tmp_path):
    """The others stay in this process, which takes a tenth of the time."""
    workdir, root = tmp_path / "refused", f"{tmp_path}/none"
    flag = f"--config.data.root={root}"
    process = run("train.py", f"--workdir={workdir}", *SHORT, flag)
    check(process.returncode, process.stderr, workdir, [root])
