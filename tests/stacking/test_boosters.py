"""Boosters learn what the mean cannot say, and know when to stop."""

import time

import numpy as np
import pytest
from made_up_runs import made_up, make_calibrated
from sklearn.metrics import log_loss

from core.errors import UserError
from metrics import classification
from stacking import boosters, search, search_storage
from stacking.stack_model import Settings, fit_stack_model
from stacking.stratified import stratified_folds


def booster_on(logits, labels, kind, seeds=1, weights=None, **parameters):
    inputs = make_calibrated(logits, labels)
    folds = stratified_folds(labels, 3, seed=0)
    specs = boosters.fit_specs((kind,), folds, seeds, seed=0)
    weights = np.ones(len(labels)) if weights is None else weights
    settings = {**boosters.PARAMETERS[kind], **parameters}
    fits = [
        boosters.fit(
            spec,
            inputs.features,
            inputs.base,
            labels,
            folds,
            weights,
            settings,
        )
        for spec in specs
    ]
    booster, out_of_fold = boosters.average(
        specs, fits, inputs.features, inputs.base, folds, 1
    )
    return booster, out_of_fold, inputs


@pytest.mark.parametrize("kind", boosters.KINDS)
def test_boosters_learn_and_stop(kind):
    logits, labels = made_up(150, 4, 2, seed=0)
    booster, out_of_fold, inputs = booster_on(logits, labels, kind)
    assert len(booster.fits) == 3
    np.testing.assert_allclose(out_of_fold.sum(axis=1), 1, rtol=1e-5)
    assert classification.accuracy(labels, out_of_fold.argmax(axis=1)) > 0.5
    # It knows the rows it was fitted on better than those held out.
    fitted = booster.predict(inputs.features, inputs.base, 1)
    assert log_loss(labels, fitted) < log_loss(labels, out_of_fold)


@pytest.mark.parametrize("kind", boosters.KINDS)
def test_boosters_on_few_rows_are_no_worse_than_the_mean(kind):
    """Forty rows of each class: too few to find the vote by thresholds."""
    logits, labels = made_up(160, 4, 3, seed=0)
    _, out_of_fold, inputs = booster_on(logits, labels, kind)
    mean = log_loss(labels, inputs.base)
    assert log_loss(labels, out_of_fold) < 1.02 * mean
    right = np.mean(out_of_fold.argmax(axis=1) == labels)
    assert right > np.mean(inputs.base.argmax(axis=1) == labels) - 0.02


@pytest.mark.parametrize("kind", boosters.KINDS)
def test_boosters_learn_what_no_mean_can_say(kind):
    """One model confuses two classes: only trees see when to believe it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 600).astype(np.int32)
    logits = (2 * np.eye(4)[labels] + rng.normal(size=(2, 600, 4))).astype(
        np.float32
    )
    logits[0] = logits[0][:, [0, 1, 3, 2]]
    _, out_of_fold, inputs = booster_on(logits, labels, kind)
    mean = np.mean(inputs.base.argmax(axis=1) == labels)
    right = np.mean(out_of_fold.argmax(axis=1) == labels)
    assert right > mean + 0.05


def test_early_stopping_keeps_the_best_round():
    logits, labels = made_up(120, 4, 2, seed=1, noise=2.0)
    fits = booster_on(logits, labels, "lightgbm", learning_rate=0.5)[0].fits
    rounds = [fit.model.decode().count("Tree=") / 4 for fit in fits]
    assert max(rounds) < 100


@pytest.mark.parametrize("kind", boosters.KINDS)
def test_boosters_survive_classes_absent_from_a_fold(kind):
    logits, labels = made_up(80, 5, 2, seed=2)
    labels = np.where(labels == 4, 0, labels)
    labels[7] = 4
    booster, out_of_fold, inputs = booster_on(logits, labels, kind)
    assert out_of_fold.shape == (80, 5)
    assert (out_of_fold > 0).all()
    np.testing.assert_allclose(out_of_fold.sum(axis=1), 1, rtol=1e-5)
    # The fits that did not see class 4 give it what the models give it.
    blind = [fit for fit in booster.fits if 4 not in fit.present]
    assert blind
    found = blind[0].predict(inputs.features, inputs.base, 1)
    np.testing.assert_allclose(found[:, 4], inputs.base[:, 4], rtol=1e-5)


def test_seeds_are_averaged():
    logits, labels = made_up(90, 4, 2, seed=3)
    booster, _, inputs = booster_on(logits, labels, "lightgbm", seeds=2)
    assert len(booster.fits) == 6
    each = [
        fit.predict(inputs.features, inputs.base, 1) for fit in booster.fits
    ]
    assert (each[0] != each[3]).any()
    np.testing.assert_allclose(
        booster.predict(inputs.features, inputs.base, 1),
        np.mean(each, axis=0),
        rtol=1e-4,
        atol=1e-6,
    )


def test_balanced_class_weights_favour_the_rare_class():
    logits, labels = made_up(
        300, 3, 1, seed=4, skill=1.0, shares=[0.8, 0.15, 0.05]
    )
    recall = {}
    for kind in ("none", "balanced"):
        settings = Settings(
            trials=1, boosters=("lightgbm",), class_weights=kind, threads=1
        )
        stack = fit_stack_model(logits, labels, settings)
        ((_, found),) = stack.predict(logits)
        hits = found["lightgbm"].argmax(axis=1)[labels == 2] == 2
        recall[kind] = hits.mean()
    assert recall["balanced"] > recall["none"]


def test_search_stops_in_time_and_resumes(tmp_path):
    logits, labels = made_up(60, 3, 2, seed=5)
    inputs = make_calibrated(logits, labels)
    folds = stratified_folds(labels, 3, seed=0)
    lines = []

    def run(seconds, rows=slice(None), storage="deep/search.journal"):
        return search.best_parameters(
            "lightgbm",
            inputs.features[rows],
            labels[rows],
            inputs.base[rows],
            folds[rows],
            np.ones(len(labels[rows])),
            seconds=seconds,
            storage=str(tmp_path / storage),
            seed=0,
            threads=1,
            progress=lines.append,
        )

    first = run(0.0)
    assert first == boosters.PARAMETERS["lightgbm"] and len(lines) == 1
    # The time is spent: nothing is tried again.
    assert run(0.0) == first and len(lines) == 1
    started = time.monotonic()
    best = run(3.0)
    trials = len(lines)
    assert trials > 1 and "trial 2" in lines[1]
    assert time.monotonic() - started < 30
    assert run(3.0) == best and len(lines) == trials
    # Other rows are another search: it starts from the beginning.
    run(0.0, rows=slice(0, 50))
    assert "trial 1," in lines[-1]
    # A line that a killed process left half written is lost, and no other.
    journal, trials = tmp_path / "deep/search.journal", len(lines)
    journal.write_bytes(journal.read_bytes() + b'{"op_code":8,"trial_id"')
    for _ in range(2):
        assert run(3.0) == best and len(lines) == trials
        run(0.0, rows=slice(0, 40))
        trials = len(lines)


def test_a_database_holds_a_search(tmp_path):
    logits, labels = made_up(60, 3, 1, seed=5)
    inputs = make_calibrated(logits, labels)
    folds = stratified_folds(labels, 3, seed=0)
    lines = []
    for _ in range(2):
        search.best_parameters(
            "lightgbm",
            inputs.features,
            labels,
            inputs.base,
            folds,
            np.ones(len(labels)),
            seconds=0.0,
            storage=f"sqlite:///{tmp_path / 'search.db'}",
            seed=0,
            threads=1,
            progress=lines.append,
        )
    assert len(lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["search.db"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"op_code":0,"worker',
        b'{"op_code":0,"worker_id":"a","study_name":"s","directions":[1]}\n',
        b'{"op_code":0,"worker_id":"a","study_name":"s","directions":[1]}\n\0\0',
    ],
)
def test_a_journal_that_was_cut_anywhere_can_be_used(tmp_path, content):
    journal = tmp_path / "search.journal"
    journal.write_bytes(content)
    search_storage.check_storage(str(journal))
    whole = content[: content.rfind(b"\n") + 1]
    assert journal.read_bytes() == whole


@pytest.mark.parametrize(
    "storage",
    [
        "mysql://me:secret@127.0.0.1:1/searches",
        "nothing://me:secret@127.0.0.1:1/searches",
        "redis://me:secret@127.0.0.1:1/0",
        "sqlite:////nowhere/search.db",
        "/dev/null/search.journal",
    ],
)
def test_a_storage_that_cannot_be_used_is_one_sentence(storage):
    with pytest.raises(UserError, match="search storage") as refused:
        search_storage.check_storage(storage)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_bytes(b"id,label\n1,2")
    with pytest.raises(UserError, match="cannot be used"):
        search_storage.check_storage(str(path))
    assert path.read_bytes() == b"id,label\n1,2"
