"""metrics.jsonl over restarts, diverged runs, and the clock."""

import json
import resource

import jax.numpy as jnp
import pytest

from configs import common
from core.errors import UserError
from training.loop import metrics_log, recorder, stages, throughput


def plan(patience=0, epochs=4.0):
    config = common.base()
    config.stages = (
        common.stage(epochs=epochs, batch_size=10, patience=patience),
    )
    return stages.plan_stages(config, 50)


def make_recorder(path, history, every=2, patience=0):
    made = recorder.Recorder(path, history, plan(patience), every)
    made.start_stage(plan(patience)[0], {"learning_rate": lambda step: 0.1})
    return made


def measured(loss=1.0, grad_norm=2.0, skipped=0, in_a_row=0):
    return {
        "loss": jnp.float32(loss),
        "grad_norm": jnp.float32(grad_norm),
        "skipped": jnp.int32(skipped),
        "skipped_in_a_row": jnp.int32(in_a_row),
    }


def evaluate(log, step, f1):
    log.evaluation(step, {"f1": f1}, "f1", f1)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_steps_and_evaluations_are_logged_in_order(tmp_path, capsys):
    log = make_recorder(tmp_path / "m.jsonl", {})
    for step in range(1, 6):
        log.step(step, measured(loss=step))
    log.finish_steps()
    evaluate(log, 5, 0.5)
    found = lines(tmp_path / "m.jsonl")
    assert [(r["kind"], r["step"]) for r in found] == [
        ("train", 2),
        ("train", 4),
        ("eval", 5),
    ]
    assert found[1]["loss"] == 4.0 and found[1]["learning_rate"] == 0.1
    assert found[2]["best"] is True
    assert "best so far" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("epochs", "told"), [(4.0, "epoch 0.4/4 "), (0.4, "epoch 0.4/0.4 ")]
)
def test_parts_of_an_epoch_are_not_rounded_away(epochs, told, tmp_path, capsys):
    schedule = plan(epochs=epochs)
    log = recorder.Recorder(tmp_path / "m.jsonl", {}, schedule, 2)
    log.start_stage(schedule[0], {"learning_rate": lambda step: 0.1})
    evaluate(log, 2, 0.5)
    assert told in capsys.readouterr().out


def test_best_is_remembered_over_a_restart(tmp_path, capsys):
    path = tmp_path / "m.jsonl"
    first = make_recorder(path, {})
    evaluate(first, 5, 0.5)
    history = json.loads(json.dumps(first.history(5)))
    first.close()
    second = make_recorder(path, history)
    evaluate(second, 10, 0.5)
    assert lines(path)[-1]["best"] is False
    assert "best 0.5000 at step 5" in capsys.readouterr().out


def test_of_a_loss_the_lowest_is_best(tmp_path):
    path = tmp_path / "m.jsonl"
    log = make_recorder(path, {})
    for step, loss in ((5, 2.0), (10, 1.5), (15, 1.7)):
        log.evaluation(step, {"val_loss": loss}, "val_loss", -loss)
    assert [line["best"] for line in lines(path)] == [True, True, False]
    best = {"step": 10, "merit": -1.5, "value": 1.5}
    assert log.history(15)["best"] == best


def test_the_best_score_keeps_its_sign(tmp_path, capsys):
    log = make_recorder(tmp_path / "m.jsonl", {})
    for step, score in ((5, -0.2), (10, -0.3)):
        log.evaluation(step, {"correlation": score}, "correlation", score)
    assert "(best -0.2000 at step 5)" in capsys.readouterr().out


def test_patience_ends_a_stage_also_when_it_was_continued(tmp_path):
    log = make_recorder(tmp_path / "m.jsonl", {}, patience=2)
    evaluate(log, 5, 0.5)
    assert log.history(5)["resume_step"] == 5
    evaluate(log, 6, 0.4)
    assert not log.out_of_patience
    history = json.loads(json.dumps(log.history(6)))
    log.close()
    log = make_recorder(tmp_path / "m.jsonl", history, patience=2)
    evaluate(log, 7, 0.5)
    assert log.out_of_patience
    assert log.history(7)["resume_step"] == plan()[0].end
    log.close()
    endless = make_recorder(tmp_path / "n.jsonl", {})
    for step in range(1, 9):
        evaluate(endless, step, 0.5)
    assert not endless.out_of_patience


def test_what_was_logged_after_the_checkpoint_is_cut_and_sizes_stay_true(
    tmp_path,
):
    path = tmp_path / "m.jsonl"
    first = make_recorder(path, {})
    evaluate(first, 5, 0.5)
    history = first.history(5)
    kept = path.read_bytes()
    evaluate(first, 10, 0.6)
    first.close()
    second = make_recorder(path, history)
    # Stopped again before anything new is logged.
    assert second.history(5) == history
    second.close()
    assert path.read_bytes() == kept
    third = make_recorder(path, history)
    evaluate(third, 10, 0.6)
    third.close()
    assert history["log_bytes"] == len(kept)
    assert [r["step"] for r in lines(path)] == [5, 10]


def test_skipped_steps_are_told_and_too_many_in_a_row_are_a_divergence(
    tmp_path,
):
    log = make_recorder(tmp_path / "m.jsonl", {})
    log.step(1, measured())
    log.step(2, measured(loss=float("nan"), skipped=3, in_a_row=3))
    log.finish_steps()
    found = lines(tmp_path / "m.jsonl")
    assert found[-1]["skipped"] == 3 and found[-1]["loss"] is None
    log.step(3, measured(skipped=10, in_a_row=10))
    with pytest.raises(
        recorder.Diverged, match=r"by step 3 .10 steps in a row"
    ):
        log.finish_steps()


def test_a_divergence_between_two_logged_steps_is_noticed(tmp_path):
    log = make_recorder(tmp_path / "m.jsonl", {}, every=100)
    bad = recorder.STEPS_TO_DIVERGE
    for step in range(1, bad + 1):
        log.step(step, measured(skipped=step, in_a_row=step))
    # The next one is finite again, and the next line is far off.
    with pytest.raises(recorder.Diverged, match=rf"by step {bad} \({bad} "):
        log.step(bad + 1, measured(skipped=bad))


def test_fewer_than_that_are_passed_over(tmp_path):
    log = make_recorder(tmp_path / "m.jsonl", {}, every=100)
    for step in range(1, recorder.STEPS_TO_DIVERGE):
        log.step(step, measured(skipped=step, in_a_row=step))
    log.step(step + 1, measured(skipped=step))
    assert log.finish_steps()


def test_half_a_line_is_taken_back_when_the_disk_is_full(tmp_path):
    path = tmp_path / "m.jsonl"
    log = make_recorder(path, {})
    evaluate(log, 5, 0.5)
    kept = path.read_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 10, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*m\.jsonl: File"):
            evaluate(log, 10, 0.6)
        assert path.read_bytes() == kept
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_rollback_forgets_what_came_after_and_happens_once(tmp_path):
    path = tmp_path / "m.jsonl"
    log = make_recorder(path, {})
    evaluate(log, 5, 0.5)
    history = log.history(5)
    evaluate(log, 10, 0.9)
    why = recorder.Diverged("it diverged; lower the rate")
    log.roll_back(plan()[0], 5, history, why)
    assert [(r["kind"], r["step"]) for r in lines(path)] == [
        ("eval", 5),
        ("rollback", 5),
    ]
    assert log.rate_factor(plan()[0]) == recorder.RATE_AFTER_ROLLBACK
    evaluate(log, 10, 0.6)
    assert log.history(10)["best"]["merit"] == 0.6
    with pytest.raises(recorder.Diverged, match="lower the rate"):
        log.roll_back(plan()[0], 5, history, why)
    again = recorder.Recorder(path, log.history(10), plan(), 2)
    assert again.rate_factor(plan()[0]) == recorder.RATE_AFTER_ROLLBACK


def test_a_score_that_is_not_finite_is_an_error(tmp_path):
    log = make_recorder(tmp_path / "m.jsonl", {})
    with pytest.raises(UserError, match="learning_rate"):
        scores = {"f1": 0.1, "val_loss": float("nan")}
        log.evaluation(5, scores, "f1", 0.1)
    assert (tmp_path / "m.jsonl").read_text() == ""


def test_speed_is_told_although_every_epoch_is_evaluated(
    tmp_path, capsys, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    log = make_recorder(tmp_path / "m.jsonl", {}, every=4)
    for step in range(1, 21):
        now[0] += 1.0
        log.step(step, measured())
        if step % 3 == 0:
            log.finish_steps()
            now[0] += 500.0  # The evaluation: no part of the speed.
            evaluate(log, step, 0.1)
    output = capsys.readouterr().out
    speeds = [
        float(line.split(" img/s")[0].split()[-1])
        for line in output.splitlines()
        if "img/s" in line
    ]
    # Ten images a second; the step that ends a pause starts the clock anew.
    assert speeds and all(10 <= speed <= 20 for speed in speeds), output


def test_other_processes_keep_no_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_log.comm, "is_primary", lambda: False)
    log = metrics_log.MetricsLog(tmp_path / "m.jsonl")
    log.append(b"{}\n")
    log.sync()
    assert log.size() == 0 and not (tmp_path / "m.jsonl").exists()
