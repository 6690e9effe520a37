"""The records of a run, read back from metrics.jsonl."""

import json

from run_folder.history import (
    Evaluation,
    History,
    Rollback,
    TrainRecord,
    read_histories,
    read_history,
)


def write(run, *entries, end=""):
    run.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (run / "metrics.jsonl").write_text(lines + end)


def entry(kind, step, stage=0, **values):
    where = {"kind": kind, "step": step, "stage": stage, "epoch": step / 10}
    return where | values


def test_each_kind_of_record_is_read(tmp_path):
    write(
        tmp_path,
        entry("train", 10, loss=1.5, grad_norm=None, skipped=2),
        entry("eval", 10, val_loss=1.0, val_accuracy=0.5, best=True),
        entry("rollback", 10, rate=0.3),
    )
    assert read_history(tmp_path) == History(
        (TrainRecord(10, 0, 1.0, {"loss": 1.5}, skipped=2),),
        (Evaluation(10, 0, 1.0, {"val_loss": 1.0, "val_accuracy": 0.5}, True),),
        (Rollback(10, 0, 1.0, 0.3),),
    )


def test_the_last_evaluation_marked_best_was_kept(tmp_path):
    marks = (True, True, False)
    write(
        tmp_path,
        *(entry("eval", 10 * i, best=best) for i, best in enumerate(marks)),
    )
    assert read_history(tmp_path).best.step == 10
    write(tmp_path, entry("eval", 10, best=False))
    assert read_history(tmp_path).best is None


def test_a_stage_starts_where_the_last_one_ends(tmp_path):
    stages = (0, 0, 1, 1, 2)
    write(
        tmp_path,
        *(entry("train", 10 * i, stage) for i, stage in enumerate(stages)),
    )
    assert read_history(tmp_path).stage_starts == [1.0, 3.0]


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    write(
        tmp_path,
        entry("train", 10, loss=1.0),
        [1, 2],
        "text",
        {"kind": "train", "step": 20},
        entry("train", 30) | {"step": None},
        end='{"kind": "train", "step": 41, "lo',
    )
    assert [record.step for record in read_history(tmp_path).train] == [10]


def test_nothing_recorded_is_no_history(tmp_path):
    assert read_history(tmp_path) is None
    write(tmp_path, end="\n")
    assert read_history(tmp_path) is None


def test_a_run_over_all_folds_has_the_histories_inside_it(tmp_path):
    for fold in (10, 0, 9):
        write(tmp_path / f"fold-{fold}", entry("train", fold))
    (tmp_path / "fold-1").mkdir()
    steps = [history.train[0].step for history in read_histories(tmp_path)]
    assert steps == [0, 9, 10]
    write(tmp_path, entry("train", 5))
    assert [h.train[0].step for h in read_histories(tmp_path)] == [5]


def test_the_merit_of_an_evaluation_is_none_of_its_scores(tmp_path):
    write(tmp_path, entry("eval", 10, val_loss=2.0, merit=-2.0, best=True))
    (found,) = read_history(tmp_path).evaluations
    assert found.merit == -2.0 and dict(found.values) == {"val_loss": 2.0}
    write(tmp_path, entry("eval", 10, val_loss=2.0, best=True))
    (found,) = read_history(tmp_path).evaluations
    assert found.merit is None  # Of an earlier version.


def test_the_last_record_may_be_an_evaluation():
    train = TrainRecord(400, 0, 23.5, {})
    end = Evaluation(408, 0, 24.0, {})
    assert History((train,), (end,)).last is end
    assert History((train,)).last is train
    assert History().last is None
