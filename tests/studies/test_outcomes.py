"""What a run folder says of a run, whatever its task."""

import numpy as np
import pytest
from made_runs import write_history, write_run

from core.errors import UserError
from metrics import classification, segmentation
from run_folder import layout
from studies import outcomes


@pytest.fixture
def classified(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 50)
    logits = rng.normal(0, 1, (50, 3)) + 1.5 * np.eye(3)[labels]
    write_run(tmp_path, logits, labels)
    return tmp_path, logits, labels


def test_a_classifier_is_scored_by_its_predictions(classified):
    run, logits, labels = classified
    found = outcomes.read(run)
    answers = logits.argmax(axis=1)
    assert found.metric == "val_macro_f1" and found.sign == 1
    expected = classification.macro_f1(labels, answers, 3)
    assert found.value == pytest.approx(expected)
    accuracy = outcomes.read(run, "val_accuracy")
    assert accuracy.value == pytest.approx(np.mean(labels == answers))
    assert found.examples.classes == ("a", "b", "c")


def test_the_loss_is_better_when_lower(classified):
    run, logits, labels = classified
    found = outcomes.read(run, "val_loss")
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -log_p[np.arange(50), labels].mean()
    assert found.sign == -1
    assert found.value == pytest.approx(expected, rel=1e-5)


def test_sums_over_drawn_rows_are_scores_of_those_rows(classified):
    run, logits, labels = classified
    examples = outcomes.read(run).examples
    weights = np.random.default_rng(1).integers(0, 3, 50)
    sums = (weights[:, None, None] * examples.counts).sum(axis=0)[None]
    # Rows are sorted by id, as text.
    order = np.repeat(np.argsort(np.arange(50).astype(str)), weights)
    expected = classification.macro_f1(
        labels[order], logits[order].argmax(1), 3
    )
    assert examples.score(sums)[0] == pytest.approx(expected)


def test_a_segmentation_is_scored_by_its_counts(tmp_path):
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 40, (6, 3, 3))
    path = tmp_path / layout.MASK_COUNTS
    path.parent.mkdir()
    np.savez(
        path,
        ids=np.array(list("fedcba")),
        confusion=confusion,
        boundary=np.ones((6, 3, 2), np.int64),
        classes=np.array(["x", "y", "z"]),
    )
    expected = segmentation.scores(confusion)
    write_history(tmp_path, {"val_mean_dice": 0.1, "val_loss": 2.0})
    for name, value in expected.items():
        found = outcomes.read(tmp_path, f"val_{name}")
        assert found.value == pytest.approx(value), name
        assert found.examples.ids.tolist() == list("abcdef")
    # Pixels have no loss of their own there.
    assert outcomes.read(tmp_path, "val_loss").examples is None


@pytest.mark.parametrize(("sign", "metric"), [(1, "score"), (-1, "distance")])
def test_any_other_task_has_the_score_of_its_best_evaluation(
    tmp_path, sign, metric
):
    write_history(tmp_path, {metric: 0.25, "other": 3.0}, sign)
    found = outcomes.read(tmp_path)
    assert (found.metric, found.value, found.sign) == (metric, 0.25, sign)
    assert found.examples is None
    with pytest.raises(UserError, match="other"):
        outcomes.read(tmp_path, "nothing")


@pytest.mark.parametrize(
    ("metric", "sign"),
    [("val_eer", -1), ("val_fnmr_at_fmr_10", -1), ("val_auc", 1)],
)
def test_less_of_an_error_rate_is_better_whatever_ranks(tmp_path, metric, sign):
    scores = {"val_auc": 0.9, "val_eer": 0.1, "val_fnmr_at_fmr_10": 0.2}
    write_history(tmp_path, scores)
    assert outcomes.read(tmp_path, metric).sign == sign
