"""A generator through the real command: its images, what it saw, their use."""

import hashlib
import json

import numpy as np
import pytest
from commands import ROOT
from in_process import training
from PIL import Image

from run_folder import folds_file
from training.loop import recorder
from training.multihost import sharding
from training.tasks.judge import Judge

RECIPE = f"--config={ROOT / 'tests/end_to_end/generation_recipe.py'}"
LARGE = f"--config={ROOT / 'configs/flow.py'}"
# Rows of 20 folds, as the recipe has.
CLASSIFIER = "--config.data.folds=20"


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "judge"
    assert training(folder) == 0
    return folder


@pytest.fixture(scope="module")
def run(judge):
    folder = judge.parent / "flow"
    assert training(folder, RECIPE, "--config.generate.judge=judge") == 0
    return folder


def manifest(run):
    return json.loads((run / "samples/manifest.json").read_text())


def said(capsys):
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_images_of_each_class_and_what_the_generator_saw(run):
    about = manifest(run)
    assert len(about["images"]) == 30
    for image in about["images"]:
        with Image.open(run / image["file"]) as picture:
            assert picture.size == (32, 32) and picture.mode == "RGB"
        folder = image["file"].split("/")[1]
        assert folder == about["classes"][image["label"]]
    folds = folds_file.read_folds(run / "folds.csv")
    assert set(about["saw"]) == set(folds.ids[folds.folds != 0])
    assert about["folds_hash"] == folds_file.folds_hash(folds.ids, folds.folds)
    counts = np.bincount([image["label"] for image in about["images"]])
    assert counts.tolist() == [3] * 10  # As the digits are, nearly.


def test_scores_name_their_judge_and_the_report_shows_all(run, judge):
    scores = json.loads((run / "samples/scores.json").read_text())
    assert scores["judge"]["run"] == judge.name
    assert len(scores["judge"]["fingerprint"]) >= 12
    sets = scores["sets"]
    assert set(sets) == {"generated", "real", "gaussian", "blurred"}
    # A generator of twelve steps makes noise, which no real half is.
    assert sets["generated"]["kid"] > sets["real"]["kid"]
    assert sets["generated"]["frechet"] > sets["real"]["frechet"]
    grids = sorted(path.name for path in (run / "grids").iterdir())
    report = (run / "report.html").read_text()
    assert len(grids) == 4 and report.count("images at step") == 4
    assert "Nearest training images" in report and "no FID" in report


def test_a_run_that_was_killed_ends_with_the_same_bits(
    run, tmp_path, monkeypatch
):
    def killed(self, step, measured):
        before(self, step, measured)
        if step == 8:
            raise SystemExit(9)

    before = recorder.Recorder.step
    monkeypatch.setattr(recorder.Recorder, "step", killed)
    again = tmp_path / "flow"
    assert training(again, RECIPE) == 9
    monkeypatch.undo()
    assert training(again, RECIPE) == 0
    lines = (run / "metrics.jsonl").read_text()
    assert (again / "metrics.jsonl").read_text() == lines
    for image in manifest(run)["images"]:
        one, two = (folder / image["file"] for folder in (run, again))
        assert one.read_bytes() == two.read_bytes(), image["file"]


def test_how_images_are_sampled_is_no_part_of_the_run(run, capsys):
    before = manifest(run)["images"]
    fewer = ("--export", "--config.generate.count=10")
    # Of an export of more, that was killed.
    (run / "samples/0/00999.png").write_bytes(b"half a picture")
    try:
        assert training(run, RECIPE, *fewer) == 0
        kept = {image["file"] for image in manifest(run)["images"]}
        assert len(kept) == 10
        found = {
            f"samples/{path.parent.name}/{path.name}"
            for path in (run / "samples").glob("*/*.png")
        }
        assert found == kept
    finally:
        judge = "--config.generate.judge=judge"
        assert training(run, RECIPE, judge, "--export") == 0
    assert manifest(run)["images"] == before


@pytest.mark.parametrize("share", ["0.5", "1.0"])
def test_a_classifier_trains_on_them(run, tmp_path, capsys, share):
    workdir = run.parent / f"mixed-{share}"
    arguments = (
        CLASSIFIER,
        "--config.data.generated=flow",
        f"--config.data.generated_share={share}",
    )
    assert training(workdir, *arguments) == 0
    assert (
        f"{float(share):.0%} of what is trained on" in capsys.readouterr().out
    )
    ids = np.load(workdir / "logits/val.npz")["ids"]
    assert not [name for name in ids if "samples" in str(name)]
    folds = folds_file.read_folds(workdir / "folds.csv")
    assert len(folds.ids) == 1437  # No generated row is in a fold.


def test_a_classifier_trains_on_those_of_rare_classes(run, capsys):
    workdir = run.parent / "rare"
    arguments = (
        CLASSIFIER,
        "--config.data.generated=flow",
        "--config.data.generated_share=0.25",
        "--config.data.generated_classes=rare",
    )
    assert training(workdir, *arguments) == 0
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if "images of" in line]
    named = line.partition("images of ")[2].partition(" in ")[0].split(", ")
    counts = json.loads((run / "samples/manifest.json").read_text())["classes"]
    assert 0 < len(named) < len(counts)
    assert "25% of what is trained on" in told


def test_the_judge_leaves_out_what_it_doubts(run):
    def opinions(images):
        pixels = [np.asarray(Image.open(run / i["file"])) for i in images]
        found = judge.look(np.stack(pixels), mesh).probabilities
        return found[np.arange(len(images)), [i["label"] for i in images]]

    before, mesh = manifest(run)["images"], sharding.make_mesh()
    data = json.loads((run / "data.json").read_text())
    judge = Judge("judge", run, data, fold=0)
    sure = opinions(before)
    least = float(np.median(sure))
    flags = ("--export", "--config.generate.judge=judge")
    try:
        doubting = f"--config.generate.filter={least}"
        assert training(run, RECIPE, *flags, doubting) == 0
        about = manifest(run)
        assert about["left_out_by_judge"] >= 15 and len(about["images"]) >= 15
        assert opinions(about["images"]).min() >= least
        kept = {image["file"] for image in about["images"]}
        for image, probability in zip(before, sure, strict=True):
            assert (image["file"] in kept) == (probability >= least)
    finally:
        assert training(run, RECIPE, *flags) == 0
    assert manifest(run)["images"] == before


def test_a_generator_that_saw_validation_photos_is_refused(run, capsys):
    workdir = run.parent / "leak"
    code = training(
        workdir,
        CLASSIFIER,
        "--config.data.fold=1",
        "--config.data.generated=flow",
    )
    error = said(capsys)
    assert code == 2 and "photos that validate here (72 of them" in error
    assert not workdir.exists()


def test_a_judge_that_learned_from_generated_images_is_refused(run, capsys):
    mixed = run.parent / "mixed-judge"
    learned = (CLASSIFIER, "--config.data.generated=flow")
    assert training(mixed, *learned, "--config.data.generated_share=0.5") == 0
    judged = "--config.generate.judge=mixed-judge"
    assert training(run.parent / "other", RECIPE, judged) == 2
    assert "which learned from generated images" in said(capsys)


def test_a_judge_of_another_fold_is_refused(judge, capsys):
    code = training(
        judge.parent / "other",
        RECIPE,
        "--config.data.fold=1",
        "--config.generate.judge=judge",
    )
    assert code == 2
    assert "generate.judge names" in (error := said(capsys))
    assert "trained on rows that validate here" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            (RECIPE, "--config.augment.flip=0.5"),
            "augment.flip is 0.5: generated images would show",
        ),
        ((LARGE, "--config.model=miniconvnext"), "which generates no images"),
        ((RECIPE, "--config.init_from=x"), "init_from has no effect"),
        (
            (RECIPE, "--config.mixing.prob=0.5"),
            "mixing.prob is 0.5 and has no effect on the generate task",
        ),
        (
            ("--config.data.generated_share=1.0",),
            "data.generated_share is 1.0 and there are no generated images",
        ),
        (
            (RECIPE, "--config.generate.filter=0.5"),
            "there is no classifier to filter by",
        ),
        (
            (RECIPE, "--config.model_options.patch=5"),
            "multiples of 5, not 32 x 32",
        ),
        (
            (RECIPE, "--config.generate.sampler=rk4"),
            "choose one of euler, heun",
        ),
        ((RECIPE, "--config.generate.judge=nowhere"), "which is no run folder"),
        (("--config.model=dit",), "the classify task cannot train"),
        (("--config.data.generated=nowhere",), "there is no such folder"),
        (
            (
                f"--config={ROOT / 'configs/tinyvit_simclr.py'}:demo",
                "--config.data.generated=nowhere",
            ),
            "the simclr task cannot train",
        ),
        (
            (f"{LARGE}:demo", "--config.model_options.attention=(1,2)"),
            "has attention=(1, 2) and 2 levels",
        ),
        (
            (RECIPE, "--config.data.generated=nowhere"),
            "the generate task cannot train",
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path, capsys, arguments, words):
    assert training(tmp_path / "run", *arguments) == 2
    error = said(capsys)
    assert words in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_images_of_a_run_cannot_be_exchanged(run, capsys):
    """They are part of the identity of the run that learns from them."""
    workdir = run.parent / "mixed-0.5"
    first = run / manifest(run)["images"][0]["file"]
    kept = first.read_bytes()
    artifacts = json.loads((run / "artifacts.json").read_text())
    try:
        first.unlink()
        arguments = (CLASSIFIER, "--config.data.generated=flow")
        assert training(workdir, *arguments) == 2
        error = said(capsys)
        assert f"{first.name} is gone or has changed" in error
        # What was exported with other fields than the training's command has.
        for words in ("--export", "generate.count=30", "generate.judge=judge"):
            assert words in error
        # Another picture, and an export that says so.
        Image.new("RGB", (32, 32), "white").save(first)
        content = first.read_bytes()
        name = manifest(run)["images"][0]["file"]
        changed = json.loads(json.dumps(artifacts))
        changed["files"][name] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        (run / "artifacts.json").write_text(json.dumps(changed))
        assert training(workdir, *arguments) == 2
        assert "the images of data.generated are not those" in said(capsys)
    finally:
        first.write_bytes(kept)
        (run / "artifacts.json").write_text(json.dumps(artifacts))


def test_a_plan_says_what_the_step_needs(tmp_path, capsys):
    assert training(tmp_path / "run", RECIPE, "--plan") == 0
    told = capsys.readouterr().out
    assert "12% of each change, 0% mirrored, as a condition" in told
    assert "fits" in told and "FLOPs a step" in told
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["plan.html"]
