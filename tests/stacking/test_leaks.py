"""A run that has seen its validation rows is caught; an honest one is not."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_runs import made_up, write_run

from core.errors import UserError
from stacking.leaks import leak_scores, refuse_leaks
from stacking.runs import find_runs, read_runs


def write_runs(folder, seed, leak=None, harder=0.0, rows=300):
    """Three runs; `leak` of them learnt some rows by heart."""
    logits, labels = made_up(2 * rows, 4, 3, seed=seed)
    logits[:, rows:] *= 1 - harder
    if leak is not None:
        logits[leak, np.arange(rows), labels[:rows]] += 2.0
    for index in range(3):
        write_run(
            folder / f"run{index}",
            (logits[index, :rows], labels[:rows]),
            (logits[index, rows:], np.full(rows, -1, np.int32)),
        )
    return leak_scores(read_runs(find_runs([f"{folder}/*"]), ("val", "test")))


def test_planted_leak_stops_the_stack_and_is_named(tmp_path):
    found = write_runs(tmp_path, seed=0, leak=1)
    with pytest.raises(UserError, match=r"/run1 has seen its validation") as e:
        refuse_leaks(found)
    assert "leave it out" in str(e.value) and "\n" not in str(e.value)
    assert [score.is_leak for score in found] == [False, True, False]


@pytest.mark.parametrize("seed", range(8))
def test_honest_runs_pass(tmp_path, seed):
    refuse_leaks(write_runs(tmp_path, seed=seed, rows=200))


def test_harder_test_images_accuse_nobody(tmp_path):
    refuse_leaks(write_runs(tmp_path, seed=0, harder=0.5))


def test_scale_of_the_logits_does_not_matter(tmp_path):
    first = write_runs(tmp_path / "a", seed=0, leak=1)
    logits, labels = made_up(600, 4, 3, seed=0)
    logits[1, np.arange(300), labels[:300]] += 2.0
    for index in range(3):
        scaled = logits[index] * 10.0 ** (index - 1)
        write_run(
            tmp_path / "b" / f"run{index}",
            (scaled[:300], labels[:300]),
            (scaled[300:], np.full(300, -1, np.int32)),
        )
    runs = read_runs(find_runs([f"{tmp_path}/b/*"]), ("val", "test"))
    for one, two in zip(first, leak_scores(runs), strict=True):
        assert one.excess == pytest.approx(two.excess, abs=1e-3)


def test_one_run_alone_cannot_be_judged(tmp_path):
    logits, labels = made_up(40, 4, 1, seed=0)
    write_run(tmp_path / "a", (logits[0], labels), (logits[0], labels))
    runs = read_runs([tmp_path / "a"], ("val", "test"))
    assert leak_scores(runs) == []


def joined_runs(folder, leak=None, keep_parts=True):
    """Three models over three folds each, the first the most changeable."""
    rows = 300
    for index, noise in enumerate((9.0, 0.3, 0.3)):
        rng = np.random.default_rng(index)
        shared, labels = made_up(2 * rows, 4, 1, seed=7, noise=0.0)
        test, whole = [], np.empty((rows, 4), np.float32)
        run, fold = folder / f"run{index}", np.arange(rows) % 3
        for k in range(3):
            own = noise * rng.normal(size=shared[0].shape) + shared[0]
            own = own.astype(np.float32)
            if leak == index:
                own[np.arange(rows), labels[:rows]] += 2.0
            whole[fold == k] = own[:rows][fold == k]
            test.append(own[rows:])
            unknown = np.full(rows, -1, np.int32)
            if keep_parts:
                write_run(
                    run / f"fold-{k}",
                    (own[:rows][fold == k], labels[:rows][fold == k]),
                    (own[rows:], unknown),
                    fold=k,
                )
        write_run(
            run,
            (whole, labels[:rows]),
            (np.mean(test, axis=0), unknown),
            fold=fold,
            fold_runs=[f"fold-{k}" for k in range(3)],
        )
    return leak_scores(read_runs(find_runs([f"{folder}/*"]), ("val", "test")))


def test_joined_folds_are_judged_by_the_models_inside(tmp_path):
    # The mean of three models is less sure than each: that is no leak.
    refuse_leaks(joined_runs(tmp_path / "honest"))
    with pytest.raises(UserError, match=r"/run2 has seen its validation"):
        refuse_leaks(joined_runs(tmp_path / "leak", leak=2))


def test_joined_folds_without_their_parts_are_not_judged(tmp_path):
    assert joined_runs(tmp_path, keep_parts=False) == []
