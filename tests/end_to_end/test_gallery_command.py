"""gallery.py: its formats, and mistakes in the command."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import gallery
from configs import common, verify
from input_pipeline.transforms.views import AlignedTransform
from training import gallery as known_photos
from training import saved_run
from training.tasks.verification_prediction import Embeddings

ANSWERS = [
    {"identity": "a", "picture": "a/1.jpg", "cosine": 0.5, "similarity": 0.25},
    {"identity": "b", "picture": "b,1.jpg", "cosine": 0.1, "similarity": 0.1},
]
FOUND = [(Path("new.jpg"), ANSWERS), (Path("bad.jpg"), None)]


def written(capsys, form):
    bad = gallery.write(iter(FOUND), form)
    assert bad == 1
    return capsys.readouterr().out


def test_csv_has_a_row_for_each_answer(capsys):
    rows = list(csv.DictReader(io.StringIO(written(capsys, "csv"))))
    assert [row["photo"] for row in rows] == ["new.jpg", "new.jpg", "bad.jpg"]
    assert [row["rank"] for row in rows] == ["1", "2", ""]
    assert rows[1]["picture"] == "b,1.jpg"
    assert float(rows[0]["cosine"]) == 0.5


def test_json_has_a_line_for_each_photo(capsys):
    lines = written(capsys, "json").splitlines()
    first, second = map(json.loads, lines)
    assert first == {"photo": "new.jpg", "bad": False, "nearest": ANSWERS}
    assert second == {"photo": "bad.jpg", "bad": True, "nearest": []}


def test_a_table_is_for_people(capsys):
    head, one, two, bad = written(capsys, "table").splitlines()
    assert head.split() == list(gallery.COLUMNS)
    assert one.split() == ["new.jpg", "1", "a", "a/1.jpg", "0.5000", "0.2500"]
    assert two.split()[1:3] == ["2", "b"]
    assert bad == "bad.jpg  cannot be read"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gallery={t}", "{t}/1.jpg"], "--run"),
        (["--run=x", "--gallery={t}/none", "{t}/1.jpg"], "none does not exist"),
        (["--run=x", "--gallery={t}/1.jpg", "{t}"], "1.jpg is not a folder"),
        (["--run=x", "--gallery={t}", "{t}/2.jpg"], "2.jpg does not exist"),
        (["--run=x", "--gallery={t}", "--top=0", "{t}"], "--top is 0"),
        (["--run={t}/none", "--gallery={t}", "{t}"], "none"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, words):
    (tmp_path / "1.jpg").write_bytes(b"")
    words_given = [word.format(t=tmp_path) for word in arguments]
    with pytest.raises(SystemExit) as ended:
        gallery.main(words_given)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = [x for x in told.err.splitlines() if x.startswith("error")]
    assert words in line


@pytest.mark.parametrize("clean", [False, True])
def test_photos_are_cleaned_as_those_of_the_training(
    tmp_path, monkeypatch, clean
):
    pixels = np.full((16, 16, 3), 100, np.uint8)
    pixels[8, 8] = 0
    for name in ("known", "new"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "people").mkdir()
    (tmp_path / "known.png").rename(tmp_path / "people/known.png")
    darkest = []

    def embed_photos(photos, *weights):
        (batch,) = photos.batches(
            photos.examples, photos.rows, AlignedTransform(16)
        )
        darkest.append(batch["image"].min())
        unit = np.ones((1, 1), np.float32)
        return Embeddings(unit, unit[:, 0], np.zeros(1, bool))

    config = verify.get_config("demo")
    config.data.clean_impulses = clean
    task = SimpleNamespace(
        config=config,
        embed_photos=embed_photos,
        probability=lambda cosine, *logits: cosine,
    )
    run = SimpleNamespace(task=task, weights=({}, {}))
    monkeypatch.setattr(saved_run, "open_run", lambda *_: run)
    monkeypatch.setattr(known_photos, "model_key", lambda *_: str(tmp_path))
    monkeypatch.setattr(common, "CACHE_DIR", str(tmp_path / "cache"))
    new = [tmp_path / "new.png"]
    ((_, nearest),) = gallery.search(tmp_path, tmp_path / "people", new, 1)
    assert nearest[0]["identity"] == "known"
    assert [value < 100 for value in darkest] == [not clean] * 2
