"""Runs beside each other: what differs, and what cannot be compared."""

import json
import re

import numpy as np
import pytest
from page_reader import read, write_entries, write_metrics

from core.errors import UserError
from reports import compare
from reports.__main__ import main
from run_folder import layout
from run_folder.pair_files import REQUIRED_METADATA, PairScores
from run_folder.predictions import Logits, write_logits


def make_run(path, *, wrong=3, rows="r", config=None, parameters=None):
    write_metrics(path)
    labels = np.arange(60) % 3
    predicted = labels.copy()
    predicted[:wrong] = (predicted[:wrong] + 1) % 3
    write_logits(
        layout.logits_path(path, "val"),
        Logits(
            ids=np.array([f"row-{i}" for i in range(60)]),
            logits=3 * np.eye(3, dtype=np.float32)[predicted],
            labels=labels,
            classes=np.array(["a", "b", "c"]),
            fold=np.zeros(60, np.int32),
            metadata={
                "model": "tiny",
                "config_hash": "c",
                "folds_hash": "f",
                "tta_views": ["center"],
            },
        ),
    )
    config = {"model": "tiny", "data": {"fold": 0}, **(config or {})}
    (path / layout.CONFIG).write_text(json.dumps(config))
    (path / layout.DATA).write_text(json.dumps({"rows_hash": rows}))
    step = path / layout.CHECKPOINTS / "40"
    step.mkdir(parents=True)
    if parameters is not None:
        lines = [
            {"kind": "start", "parameters": parameters},
            {"kind": "speed", "step": 20, "epoch": 2.0, "seconds": 30.0},
            {"kind": "start", "parameters": parameters},
            {"kind": "speed", "step": 40, "epoch": 4.0, "seconds": 50.0},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / layout.TELEMETRY).write_text(text + '{"kind": "spe')


def test_what_differs_and_what_came_out(tmp_path, capsys):
    same = {"seed": 42, "stages": [{"epochs": 4.0}]}
    make_run(tmp_path / "one", wrong=12, config=same)
    other = {"seed": 42, "stages": [{"epochs": 8.0}], "new": "<x>"}
    make_run(tmp_path / "two", wrong=3, config=other, parameters=1234567)
    page = tmp_path / "compare.html"
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["compare", *runs, f"--out={page}"]) == 0
    head, first, second, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == [
        *("run", "macro-F1", "accuracy", "steps", "time", "parameters")
    ]
    # The best first; the time is that of both processes.
    assert first.split()[0] == "two" and second.split()[0] == "one"
    assert "0.9500 (" in first and "0.8000 (" in second
    assert first.endswith("40  1 min 20 s   1,234,567")
    fields = {line.split()[0]: line.split()[1:] for line in rest if line}
    assert fields["stages.0.epochs"] == ["8.0", "4.0"]
    assert fields["new"] == ["<x>", "–"]
    assert "seed" not in fields and "model" not in fields
    reader = read(page)
    assert "stages.0.epochs8.04.0" in reader.text
    assert "<x>" in reader.text and "1 min 20 s" in reader.text


def test_a_group_that_a_run_lacks_is_one_field(tmp_path):
    stage = {"epochs": 4.0, "rate": 4.0000000000000003e-07}
    make_run(tmp_path / "one", config={"stages": [stage, stage]})
    verify = {"margin": 1.0, "scale": 20}
    other = {**stage, "rate": 2e-7}
    make_run(tmp_path / "two", config={"stages": [other], "verify": verify})
    names = [str(tmp_path / name) for name in ("one", "two")]
    rows, _ = compare.read_rows(names)
    assert compare.differing(rows) == {
        "stages.0.rate": ["4e-07", "2e-07"],
        "stages.1": ["set", "–"],
        "verify": ["–", "set"],
    }


def test_many_fields_end_with_a_hint(tmp_path):
    for number, name in enumerate(("one", "two")):
        fields = {f"field_{one}": number for one in range(100)}
        make_run(tmp_path / name, config=fields)
    rows, _ = compare.read_rows([str(tmp_path / n) for n in ("one", "two")])
    told = compare.lines(rows)
    assert told[-1] == "… and 60 more: see the page"
    page = read(compare.compare_report(tmp_path / "compare.html", rows))
    assert "field_99" in page.text


def test_the_interval_holds_the_score(tmp_path):
    make_run(tmp_path / "one", wrong=12)
    (row,), _ = compare.read_rows([str(tmp_path / "one")])
    score = row.scores["accuracy"]
    assert score.low < score.value == 0.8 < score.high
    # Of 60 rows, four in five right: plus and minus about a tenth.
    assert 0.15 < score.high - score.low < 0.25


def test_other_rows_cannot_be_compared(tmp_path):
    make_run(tmp_path / "one", rows="r")
    make_run(tmp_path / "two", rows="s")
    names = [str(tmp_path / name) for name in ("one", "two")]
    rows, _ = compare.read_rows(names)
    (remark,) = compare.remarks(rows)
    assert "different rows" in remark
    assert remark in compare.lines(rows)
    path = compare.compare_report(tmp_path / "compare.html", rows)
    assert remark in read(path).text


def test_other_tasks_are_told(tmp_path):
    for task in ("segment", "classify"):
        make_run(tmp_path / task, rows=task, config={"task": task})
    names = [str(tmp_path / name) for name in ("segment", "classify")]
    (remark,) = compare.remarks(compare.read_rows(names)[0])
    assert "different tasks (classify, segment)" in remark


def test_other_rows_of_one_task_are_told_beside_another_task(tmp_path):
    for number, task in enumerate(("segment", "classify", "classify")):
        name = f"{task}{number}"
        make_run(tmp_path / name, rows=name, config={"task": task})
    rows, _ = compare.read_rows([str(run) for run in tmp_path.iterdir()])
    tasks, remark = compare.remarks(rows)
    assert "different tasks" in tasks
    assert "different rows" in remark


def test_a_stack_of_pairs_has_scores_and_no_fields(tmp_path):
    """It has no config: all fields of the others would differ from it."""
    for seed, name in enumerate(("one", "two")):
        make_run(tmp_path / name, config={"task": "verify", "seed": seed})
    write_pairs(layout.pairs_path(tmp_path / "stack", "val"))
    names = [str(tmp_path / name) for name in ("one", "two", "stack")]
    rows, left_out = compare.read_rows(names)
    assert not left_out and {row.name for row in rows} == {
        "one",
        "two",
        "stack",
    }
    told = compare.lines(rows)
    assert any(re.match(r"stack .* 0\.0000 \(", line) for line in told)
    assert [line.split() for line in told[-2:]] == [
        ["field", "one", "two"],
        ["seed", "0", "1"],
    ]
    page = compare.compare_report(tmp_path / "compare.html", rows)
    assert "different rows" not in read(page).text


def write_pairs(path):
    """Ten pairs of ten people, the positives more alike."""
    names = np.array([f"person-{number}" for number in range(11)])
    kind = (np.arange(10) % 2).astype(np.int8)
    score = np.float32(1 - kind)
    pairs = PairScores(
        ids=np.array([f"pair-{number}" for number in range(10)]),
        first=names[:-1],
        second=names[1:],
        cosine=score,
        log_real=np.zeros(0, np.float32),
        similarity=score,
        kind=kind,
        identities=np.stack(
            [names[:-1], np.where(kind, names[1:], names[:-1])], axis=1
        ),
        fold=np.zeros(10, np.int32),
        metadata={name: "x" for name in REQUIRED_METADATA},
    )
    path.parent.mkdir(parents=True)
    np.savez(path, **pairs.arrays)


def test_a_run_that_still_trains_has_its_best_evaluation(tmp_path):
    write_entries(
        tmp_path / "run",
        [
            {"kind": "train", "loss": 1.0},
            {"kind": "eval", "val_loss": 0.75, "best": True},
        ],
    )
    (row,), _ = compare.read_rows([str(tmp_path / "run")])
    assert row.scores["loss"].value == 0.75
    assert row.scores["loss"].low is None
    assert any("while training" in text for text in compare.lines([row]))
    read(compare.compare_report(tmp_path / "compare.html", [row]))


def test_the_best_run_has_the_lowest_error_rate(tmp_path):
    for name, rate in (("worse", 0.3), ("better", 0.1)):
        entry = {"val_eer": rate, "merit": -rate, "best": True}
        write_entries(tmp_path / name, [{"kind": "eval", **entry}])
    names = [str(tmp_path / name) for name in ("worse", "better")]
    rows, _ = compare.read_rows(names)
    assert [row.name for row in rows] == ["better", "worse"]
    (table,) = compare._score_rows(rows)
    assert [entry["is_best"] for entry in table["entries"]] == [True, False]


def test_a_folder_that_is_no_run_is_left_out_and_told(tmp_path, capsys):
    make_run(tmp_path / "one")
    (tmp_path / "notes").mkdir()
    page = f"--out={tmp_path / 'compare.html'}"
    names = [str(tmp_path / name) for name in ("one", "notes")]
    assert main(["compare", *names, page]) == 0
    assert "notes is no run folder: left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no run in"):
        main(["compare", names[1], page])
    with pytest.raises(UserError, match="does not exist"):
        main(["compare", str(tmp_path / "gone"), page])


def test_damaged_logits_are_told_and_the_others_go_on(tmp_path):
    make_run(tmp_path / "one")
    make_run(tmp_path / "two")
    layout.logits_path(tmp_path / "two", "val").write_bytes(b"no archive")
    names = [str(tmp_path / name) for name in ("one", "two")]
    rows, _ = compare.read_rows(names)
    assert [row.name for row in rows] == ["one", "two"]
    assert any("two/logits" in text for text in compare.remarks(rows))


def test_runs_of_one_name_are_told_apart(tmp_path):
    make_run(tmp_path / "a/run")
    make_run(tmp_path / "b/run")
    names = [str(tmp_path / name) for name in ("a/run", "b/run")]
    rows, _ = compare.read_rows(names)
    assert {row.name for row in rows} == {"a/run", "b/run"}


def test_a_command_that_is_none():
    with pytest.raises(UserError, match="did you mean 'compare'"):
        main(["comapre"])
    with pytest.raises(UserError, match="name a command"):
        main([])
