"""The sentence, the tables and the page, from results made by hand."""

import csv
import json
import re

import numpy as np
import page_reader
import pytest
from made_runs import write_history, write_run

from core.errors import UserError
from studies import axes, findings, grid
from training.config import problems

DEMO = "configs/miniconvnext.py:demo"


def study(tmp_path, *grids, seeds=3):
    made = [axes.parse_grid(text) for text in grids]
    cells = axes.make_cells(DEMO, [], made, problems)
    return grid.Grid(cells, range(seeds), tmp_path), made


def finish(of, cell, seed, write, seconds=60.0):
    """Writes the result of a cell as `grid.run` leaves it."""
    folder = of.result(of.cells[cell], seed)
    write(folder)
    note = {
        "config": of.cells[cell].digest,
        "flags": [],
        "seconds": seconds,
    }
    (folder / "result.json").write_text(json.dumps(note))


def classified(gain, seed, rows=600):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    noise = np.random.default_rng(seed + 100).normal(0, 1, (rows, 3))
    logits = (1 + gain) * np.eye(3)[labels] + noise
    return lambda folder: write_run(folder, logits, labels)


def scored(value, name="val_eer", sign=-1):
    return lambda folder: write_history(folder, {name: value}, sign)


def test_what_helps_is_to_be_used_and_what_it_costs_is_told(tmp_path):
    of, made = study(tmp_path, "mixing.prob=0.0,0.5,1.0")
    for seed in range(3):
        finish(of, 0, seed, classified(0.0, seed))
        finish(of, 1, seed, classified(1.0, seed), 150.0)
        finish(of, 2, seed, classified(-1.5, seed), 60.0)
    found = findings.write(of, made, "Study")
    (sentence,) = found.sentences
    assert re.match(
        r"mixing\.prob: use prob=0\.5 rather than prob=0\.0, \+0\.\d+ "
        r"\(\+0\.\d+ to \+0\.\d+\) for 1\.5 min more; worse: prob=1\.0 -0\.",
        sentence,
    ), sentence
    page = page_reader.read(found.page)
    assert sentence in page.text and "600" in page.text
    assert "Cells" in page.text and "By class" in page.text
    with open(tmp_path / findings.RUNS_CSV) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and rows[0]["minutes"] == "1.00"


def test_a_null_result_is_said_to_be_one(tmp_path):
    of, made = study(tmp_path, "mixing.prob=0.0,0.5")
    rng = np.random.default_rng(0)
    for seed in range(3):
        finish(of, 0, seed, classified(0.0, seed))
        finish(of, 1, seed, classified(rng.normal(0, 1e-3), seed))
    (sentence,) = findings.write(of, made, "Study").sentences
    assert "keep prob=0.0, nothing tried is shown to be better" in sentence
    assert "too close to tell: prob=0.5" in sentence


def test_less_is_better_where_the_runs_say_so(tmp_path):
    of, made = study(tmp_path, "mixing.prob=0.0,0.5")
    for seed in range(3):
        finish(of, 0, seed, scored(0.30 + 0.01 * seed))
        finish(of, 1, seed, scored(0.10 + 0.011 * seed))
    found = findings.write(of, made, "Study")
    assert "use prob=0.5" in found.sentences[0]
    page = page_reader.read(found.page)
    assert "best mean 0.1110" in page.text
    assert "over seeds alone" in page.text


def test_what_harms_is_not_to_be_used(tmp_path):
    of, made = study(tmp_path, "mixing.prob=0.0,0.5")
    for seed in range(3):
        finish(of, 0, seed, scored(0.1 + 0.01 * seed))
        finish(of, 1, seed, scored(0.3 + 0.011 * seed))
    (sentence,) = findings.write(of, made, "Study").sentences
    assert sentence.startswith("mixing.prob: use prob=0.0; worse: prob=0.5")


def test_half_a_study_has_a_page_that_says_so(tmp_path):
    of, made = study(tmp_path, "mixing.prob=0.0,0.5")
    finish(of, 0, 0, classified(0.0, 0))
    found = findings.write(of, made, "Study")
    assert found.sentences == []
    assert "5 results are still missing" in page_reader.read(found.page).text
    finish(of, 1, 0, classified(1.0, 0))
    found = findings.write(of, made, "Study")
    assert found.effects[0].seeds == 1


def test_nothing_finished_is_an_error_with_the_reason(tmp_path):
    of, made = study(tmp_path, "mixing.prob=0.0,0.5")
    failures = [grid.Failure("a", "no memory left")]
    with pytest.raises(UserError, match="no memory left"):
        findings.write(of, made, "Study", failures=failures)
