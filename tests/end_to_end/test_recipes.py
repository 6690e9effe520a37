"""Pretraining, teachers, patience and folds, through the real command."""

import numpy as np
import pytest
from commands import records, run, train

from run_folder.predictions import read_logits

SMALL = "--config.model=convnextv2_demo"


def epochs(number: float) -> str:
    return f"--config.epochs={number}"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A short masked autoencoding in a folder called tinyvit_mae."""
    workdir = tmp_path_factory.mktemp("runs") / "tinyvit_mae"
    recipe = "--config=configs/tinyvit_mae.py:demo"
    process = train(workdir, recipe, SMALL, epochs(1))
    assert process.returncode == 0, process.stderr
    return workdir, process


@pytest.mark.slow
def test_pretraining_says_what_it_hides_and_shows_what_it_paints(pretrained):
    workdir, process = pretrained
    assert "75% of 2 x 2 units" in process.stdout
    assert "--config.init_from=" in process.stdout
    assert (workdir / "reconstructions.png").stat().st_size > 1000
    page = (workdir / "report.html").read_text()
    assert "what was painted" in page and "data:image/png;base64," in page
    assert (workdir / "report.html").stat().st_size > 1000
    losses = [r["val_loss"] for r in records(workdir) if r["kind"] == "eval"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_fine_tuning_takes_the_encoder_and_names_what_it_did_not_find(
    pretrained,
):
    workdir = pretrained[0].parent / "tinyvit_ssl"
    recipe = "--config=configs/tinyvit_ssl.py:demo"
    process = train(workdir, recipe, SMALL, epochs(2))
    assert process.returncode == 0, process.stderr
    assert f"starts from the encoder in {pretrained[0]}" in process.stdout
    told = process.stdout.partition("initialised anew: ")[2].splitlines()[0]
    assert {name.split("/")[0] for name in told.split(", ")} == {"head"}
    assert "encoder frozen" in process.stdout
    # A second start needs the pretraining no more.
    hidden = pretrained[0].rename(pretrained[0].parent / "elsewhere")
    try:
        again = train(workdir, recipe, SMALL, epochs(2))
    finally:
        hidden.rename(pretrained[0])
    assert "finished" in again.stdout, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--config.model=miniconvnext_demo"], "same architecture"),
        (["--config.init_from=nowhere"], "init_from names"),
        (
            ["--config.stages[0].param_groups[0].match=^hed/", SMALL],
            "'^hed/', which no parameter",
        ),
        (
            ["--config.stages[0].distill_from=tinyvit_mae", SMALL],
            "without a classifier",
        ),
        (["--config.checkpoint.metric=val_f1", SMALL], "val_macro_f1"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_in_one_sentence(
    pretrained, overrides, words
):
    workdir = pretrained[0].parent / "refused"
    process = train(workdir, "--config=configs/tinyvit_ssl.py:demo", *overrides)
    assert process.returncode == 2
    assert words in process.stderr
    assert process.stderr.count("\n") == 1, process.stderr


def test_patience_ends_the_stage_and_the_run_goes_on_after_it(tmp_path):
    workdir = tmp_path / "patient"
    # A rate of nothing: no evaluation after the first is better.
    stuck = (
        "--config.stages[0].learning_rate=1e-12",
        "--config.stages[0].end_rate=0.0",
        "--config.stages[0].patience=2",
        "--config.eval.every_epochs=0.25",
        epochs(4),
    )
    process = train(workdir, *stuck)
    assert process.returncode == 0, process.stderr
    found = [r for r in records(workdir) if r["kind"] == "eval"]
    first = [r["step"] for r in found if r["stage"] == 0]
    second = [r["step"] for r in found if r["stage"] == 1]
    assert first == [4, 8, 12]
    assert second[0] == 55 and second[-1] == 68
    assert "finished" in train(workdir, *stuck).stdout


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """All of three folds: (workdir, finished process)."""
    workdir = tmp_path_factory.mktemp("folds") / "all"
    process = train(workdir, "--all-folds", "--config.data.folds=3", epochs(1))
    assert process.returncode == 0, process.stderr
    return workdir, process


def test_all_folds_predict_every_row_once_and_average_the_test(folds):
    workdir, process = folds
    whole = read_logits(workdir / "logits/val.npz")
    parts = [
        read_logits(workdir / f"fold-{k}/logits/val.npz") for k in range(3)
    ]
    assert len(whole) == 1437 and len(set(whole.ids)) == 1437
    assert sorted(set(whole.fold)) == [0, 1, 2]
    row = list(whole.ids).index(parts[2].ids[5])
    np.testing.assert_array_equal(whole.logits[row], parts[2].logits[5])
    assert whole.fold[row] == 2
    test = read_logits(workdir / "logits/test.npz")
    expected = np.mean(
        [
            read_logits(workdir / f"fold-{k}/logits/test.npz").logits
            for k in range(3)
        ],
        axis=0,
    )
    np.testing.assert_allclose(test.logits, expected, rtol=1e-6)
    assert "out-of-fold macro-F1" in process.stdout
    assert (workdir / "report.html").exists()


def test_one_fold_and_all_folds_do_not_share_a_folder(folds):
    process = train(folds[0], "--config.data.folds=3", epochs(1))
    assert process.returncode == 2
    assert "holds a run over all folds" in process.stderr


def test_finished_folds_are_not_repeated(folds):
    workdir, _ = folds
    lost = workdir / "fold-1/logits/val.npz"
    before = lost.read_bytes()
    lost.unlink()
    again = train(workdir, "--all-folds", "--config.data.folds=3", epochs(1))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("this run is finished") == 2
    assert "loss" not in again.stdout.replace("val_loss", "")
    assert lost.read_bytes() == before


@pytest.mark.slow
def test_all_folds_can_be_stacked(folds, tmp_path):
    process = run(
        "-m", "stacking", "--runs", str(folds[0]), "--out", str(tmp_path)
    )
    assert process.returncode == 0, process.stderr
    assert "1437" in process.stdout.replace(",", "")
    assert (tmp_path / "submission.csv").exists()


@pytest.mark.slow
def test_a_teacher_must_not_have_seen_the_validation_rows(folds, tmp_path):
    teacher = f"--config.stages[0].distill_from={folds[0]}"
    shared = f"--config.data.folds_file={folds[0] / 'folds.csv'}"
    options = (teacher, shared, "--config.data.folds=3", epochs(1))
    student = tmp_path / "student"
    process = train(student, "--config.data.fold=1", *options)
    assert process.returncode == 0, process.stderr
    assert f"distilled from {folds[0]}" in process.stdout
    assert "note: the teacher" not in process.stdout
    small = ("--config.image_size=48", "--config.data.fold=1", "--plan")
    process = train(tmp_path / "small", *options, *small)
    assert "learned from images of 32 px and sees those of 48" in process.stdout
    leaking = train(
        tmp_path / "leak",
        "--config.data.fold=1",
        f"--config.init_from={folds[0] / 'fold-0'}",
        *options[1:],
    )
    assert leaking.returncode == 2
    assert "init_from names" in leaking.stderr
    assert "trained on rows that validate here" in leaking.stderr
    wrong = f"{teacher}/fold-0"
    refused = train(
        tmp_path / "wrong", "--config.data.fold=1", *options[1:], wrong
    )
    assert refused.returncode == 2
    assert "which was trained on rows that" in refused.stderr
    assert not (tmp_path / "wrong").exists()
