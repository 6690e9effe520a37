"""Sections on a generator, from what its run has written."""

import json

import numpy as np
import pytest
from PIL import Image

import reports
from core.errors import UserError
from reports.generation import generation_sections


def kind(kid, accuracy):
    return {
        "kid": kid,
        "kid_std": 0.01,
        "frechet": 2.5,
        "precision": 0.8,
        "recall": 0.7,
        "density": 0.9,
        "coverage": 0.6,
        "accuracy": accuracy,
    }


SCORES = {
    "judge": {
        "run": "judge",
        "model": "miniconvnext",
        "step": 70,
        "fingerprint": "0123456789abcdef",
    },
    "images": 500,
    "sets": {
        "generated": kind(0.0321, 0.91),
        "real": kind(0.001, 0.99),
        "gaussian": kind(0.2, 0.7),
        "blurred": kind(0.9, 0.3),
    },
    "held_out_accuracy": 0.97,
    "accuracy": 0.92,
    "accuracy_of_class": {"<a>": 0.9, "b": 0.94},
    "memorised": {
        "share": 0.013,
        "median_distance": 1.5,
        "held_out_median_distance": 1.25,
    },
    "nearest": [
        {"file": "samples/b/00001.png", "id": "photo-7", "distance": 0.25},
        {"file": "samples/b/00002.png", "id": "gone", "distance": 0.5},
    ],
}


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "white").save(path)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


def write_run(folder):
    for step in range(1, 12):
        save(folder / f"grids/{100 * step:08d}.png")
    save(folder / "samples/b/00001.png")
    (folder / "samples/scores.json").write_text(json.dumps(SCORES))
    return folder


def pictures(ids):
    for name in ids:
        if name != "gone":
            yield name, np.zeros((8, 8, 3), np.uint8)


def test_the_report_tells_scores_grids_and_pairs(run):
    sections = generation_sections(run, pictures)
    page = reports.run_report(run, sections).read_text()
    for words in ("0.0321", "the floor", "the ceiling", "the baseline"):
        assert words in page
    assert "0123456789ab" in page and "no FID" in page
    assert "&lt;a&gt;" in page and "<a>" not in page
    # At the most eight, the first and the last among them.
    assert page.count("images at step") == 8
    assert "step 100<" in page and "step 1,100<" in page
    assert "1.3% of the generated images" in page
    assert page.count('alt="training image') == 1 and "photo-7" in page
    assert page.count('alt="generated"') == 1 and "gone" in page


def test_a_judge_that_chose_the_images_flatters_them(run):
    def told():
        return generation_sections(run, pictures)[0].note

    assert "flatter" not in told()
    chosen = {**SCORES, "filter": 0.6}
    (run / "samples/scores.json").write_text(json.dumps(chosen))
    assert "probability of 0.6 or more, so its scores of them flatter" in told()


def test_without_scores_or_grids_there_is_less(run):
    (run / "samples/scores.json").unlink()
    assert [s.title for s in generation_sections(run)] == [
        "Images over the training"
    ]
    for path in (run / "grids").iterdir():
        path.unlink()
    assert generation_sections(run) == []


def test_data_that_has_gone_leaves_the_generated_images(run):
    def gone(ids):
        raise UserError("data.root does not exist")

    sections = generation_sections(run, gone)
    assert "photo-7" in str(sections[-1].body)
    assert 'alt="training image' not in str(sections[-1].body)


def test_damaged_scores_are_told(run):
    (run / "samples/scores.json").write_text("{")
    with pytest.raises(UserError, match="--export"):
        generation_sections(run)
