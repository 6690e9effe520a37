"""predict.py needs the run folder, and nothing else."""

import json
import shutil

import commands
import numpy as np
import pytest
from PIL import Image

from metrics.classification import log_softmax
from run_folder.predictions import read_logits

TINY = f"--config={commands.ROOT / 'tests/end_to_end/tiny_recipe.py'}"


@pytest.fixture(scope="module")
def orphan(tmp_path_factory):
    """A run without its photos and caches, and copies of its test photos."""
    folder = tmp_path_factory.mktemp("predict")
    commands.write_competition(folder / "data", per_class=20)
    done = commands.run(
        "train.py",
        TINY,
        f"--workdir={folder / 'run'}",
        f"--config.data.root={folder / 'data'}",
        "--config.data.folds=2",
        "--config.epochs=4",
        f"--config.cache_dir={folder / 'cache'}",
    )
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "data/img_test", folder / "photos")
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "cache")
    return folder


def predict(*arguments):
    return commands.run("predict.py", *map(str, arguments))


def test_it_answers_as_the_run_did_without_photos_and_cache(orphan):
    done = predict(
        "--run", orphan / "run", orphan / "photos", "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    logits = read_logits(orphan / "run/logits/test.npz")
    assert len(found) == len(logits.ids)
    expected = dict(
        zip(logits.ids, np.exp(log_softmax(logits.logits)), strict=True)
    )
    for record in found:
        name = record["photo"].split("/")[-1].removesuffix(".jpg")
        np.testing.assert_allclose(
            list(record["probabilities"].values()), expected[name], atol=1e-6
        )
        best = logits.classes[expected[name].argmax()]
        assert record["class"] == str(best)


def test_it_takes_the_views_of_the_last_export(orphan, tmp_path):
    """`--export` may use other views than those in config.json."""
    shutil.copytree(orphan / "run", tmp_path / "run")
    path = tmp_path / "run/inference.json"
    spec = json.loads(path.read_text())
    assert spec["views"] == ["center"]
    path.write_text(json.dumps({**spec, "views": ["center_flip"]}))
    photo = next((orphan / "photos").iterdir())
    flipped, straight = (
        predict("--run", run, photo, "--format", "json").stdout
        for run in (tmp_path / "run", orphan / "run")
    )
    flipped, straight = json.loads(flipped), json.loads(straight)
    assert flipped["photo"] == straight["photo"]
    assert flipped["probabilities"] != straight["probabilities"]


def test_a_bad_photo_is_told_and_the_others_go_on(orphan, tmp_path):
    good = next((orphan / "photos").iterdir())
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    done = predict("--run", orphan / "run", tmp_path / "bad.jpg", good)
    assert done.returncode == 1
    head, first, second = done.stdout.splitlines()
    assert head == "photo  class  probability"
    assert "bad.jpg  cannot be read" in first
    assert str(good) in second
    assert "bad.jpg" in done.stderr


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--run", "/nowhere", "README.md"), "is no run folder"),
        (("--run", "{run}", "/nowhere.jpg"), "/nowhere.jpg does not exist"),
        (("--run", "{run}", "gs://b/x.jpg"), "gs://b/x.jpg is not on a disk"),
        (("--run", "{run}", "{empty}"), "holds no photo"),
        (("--run", "{run}"), "no photos are named"),
    ],
)
def test_a_mistake_is_one_sentence(orphan, tmp_path, words, answer):
    (tmp_path / "empty").mkdir()
    places = {"run": orphan / "run", "empty": tmp_path / "empty"}
    done = predict(*(word.format(**places) for word in words))
    assert done.returncode == 2
    assert done.stdout == ""
    assert answer in done.stderr and done.stderr.count("\n") == 1


def test_it_draws_where_it_looked(orphan, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    done = predict(
        *("--run", orphan / "run", orphan / "photos", tmp_path / "bad.jpg"),
        *("--explain", "--out", tmp_path / "out", "--format", "json"),
    )
    assert done.returncode == 1, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found[-1]["bad"] and found[-1]["explanation"] == ""
    for record in found[:-1]:
        with Image.open(record["explanation"]) as picture:
            assert picture.size == (32, 32)
    without = predict("--run", orphan / "run", orphan / "photos", "--explain")
    assert without.returncode == 2 and "--out" in without.stderr


def test_a_gallery_asks_for_a_run_that_embeds(orphan):
    photos = str(orphan / "photos")
    done = commands.run(
        "gallery.py", "--run", str(orphan / "run"), "--gallery", photos, photos
    )
    assert done.returncode == 2
    assert "the classify task embeds no photos" in done.stderr
