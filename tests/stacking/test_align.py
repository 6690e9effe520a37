"""Runs become one table, or one sentence that names what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_runs import (
    CLASSES,
    made_up,
    refused,
    table_of,
    write_folds_of,
    write_run,
)

from core.errors import UserError
from run_folder.predictions import read_logits, write_logits
from stacking.align import make_table
from stacking.runs import find_runs, read_runs


def test_rows_are_matched_by_id_not_by_place(tmp_path):
    logits, labels = made_up(50, 4, 2, seed=0)
    ids = np.array([f"{i:03}" for i in range(50)])
    shuffled = np.random.default_rng(1).permutation(50)
    write_run(tmp_path / "a", (logits[0], labels), ids=ids)
    write_run(
        tmp_path / "b",
        (logits[1][shuffled], labels[shuffled]),
        ids=ids[shuffled],
    )
    table = table_of(tmp_path)
    assert table.names == ("a", "b")
    np.testing.assert_array_equal(table.val.ids, ids)
    np.testing.assert_array_equal(table.val.logits, logits)
    np.testing.assert_array_equal(table.val.labels, labels)
    assert table.test is None


def test_test_rows_keep_the_order_of_the_first_run(tmp_path):
    logits, labels = made_up(30, 4, 2, seed=0)
    unknown = np.full(30, -1, np.int32)
    for index, name in enumerate("ab"):
        folder = write_run(tmp_path / name, (logits[index], labels))
        rows = np.random.default_rng(index).permutation(30)
        other = write_run(
            tmp_path / "other" / name,
            (logits[index][rows], unknown),
            ids=np.array([f"t{i:02}" for i in range(30)])[rows],
            model=name,
            config_hash=f"hash of {name}",
        )
        # The same file under another split's name.
        test = read_logits(other / "logits" / "val.npz")
        write_logits(folder / "logits" / "test.npz", test)
    table = make_table(
        read_runs([tmp_path / "a", tmp_path / "b"], ("val", "test"))
    )
    rows = np.array([int(name[1:]) for name in table.test.ids])
    assert list(rows) != sorted(rows)
    np.testing.assert_array_equal(table.test.logits, logits[:, rows])


def test_folds_of_one_model_are_one_family(tmp_path):
    logits, labels = made_up(60, 4, 2, seed=0)
    test, _ = made_up(20, 4, 3, seed=1)
    unknown = np.full(20, -1, np.int32)
    ids = np.array([f"{i:03}" for i in range(60)])
    for fold in range(3):
        part = slice(20 * fold, 20 * fold + 20)
        for index, model in enumerate(("vit", "conv")):
            write_run(
                tmp_path / f"{model}_{fold}",
                (logits[index, part], labels[part]),
                (test[fold], unknown),
                ids=ids[part],
                fold=fold,
                val_fold=fold,
                model=model,
                config={
                    "model": model,
                    "seed": 0,
                    "data": {"fold": fold, "root": "photos"},
                },
            )
    table = table_of(tmp_path)
    assert table.names == ("conv", "vit")
    assert [len(family.runs) for family in table.families] == [3, 3]
    np.testing.assert_array_equal(table.val.logits, logits[::-1])
    np.testing.assert_allclose(
        table.test.logits[0], test.mean(axis=0), rtol=1e-6
    )


def test_seeds_of_one_model_are_averaged(tmp_path):
    logits, labels = made_up(40, 4, 2, seed=0)
    for seed in range(2):
        write_run(
            tmp_path / f"vit_{seed}",
            (logits[seed], labels),
            model="vit",
            config_hash="same",
            seed=seed,
        )
    table = table_of(tmp_path)
    assert table.names == ("vit",)
    np.testing.assert_allclose(
        table.val.logits[0], logits.mean(axis=0), rtol=1e-6
    )


def test_joined_folds_and_single_folds_of_two_seeds_are_one_family(tmp_path):
    logits, labels = made_up(30, 4, 2, seed=0)
    test, _ = made_up(20, 4, 6, seed=1)
    write_folds_of(tmp_path / "a", 0, logits[0], labels, test[:3], join=True)
    write_folds_of(tmp_path / "b", 1, logits[1], labels, test[3:])
    table = make_table(
        read_runs(
            find_runs([f"{tmp_path}/a", f"{tmp_path}/b/*"]), ("val", "test")
        )
    )
    assert table.names == ("vit",)
    assert len(table.families[0].runs) == 4
    np.testing.assert_allclose(
        table.val.logits[0], logits.mean(axis=0), rtol=1e-5
    )
    # Each seed has the same say, in one piece or in three.
    np.testing.assert_allclose(
        table.test.logits[0], test.mean(axis=0), rtol=1e-4, atol=1e-6
    )


def test_a_run_over_all_folds_is_one_run_of_the_glob(tmp_path):
    logits, labels = made_up(30, 4, 2, seed=0)
    test, _ = made_up(20, 4, 3, seed=1)
    for name, seed in (("a", 0), ("b", 1)):
        write_folds_of(
            tmp_path / name, seed, logits[seed], labels, test, join=True
        )
    table = table_of(tmp_path)
    assert table.names == ("vit",)
    assert [run.path.name for run in table.families[0].runs] == ["a", "b"]


def test_names_with_brackets_are_names_and_globs_are_globs(
    tmp_path, monkeypatch
):
    logits, labels = made_up(30, 4, 2, seed=0)
    runs = tmp_path / "a[x]" / "st*r"
    (tmp_path / "ax" / "star" / "r9").mkdir(parents=True)
    for name in ("r[1]", "r2", "r1"):
        write_run(runs / name, (logits[0], labels))
    for pattern, found in (
        ("r[1]", ["r[1]"]),  # It exists, so it is that.
        ("r*", ["r1", "r2", "r[1]"]),
        ("r[2-9]", ["r2"]),
        ("../st*r/r[2-9]", ["r2"]),
    ):
        assert [p.name for p in find_runs([f"{runs}/{pattern}"])] == found
        monkeypatch.chdir(runs)
        assert [p.name for p in find_runs([pattern])] == found


def test_two_recipes_of_one_model_are_two_families(tmp_path):
    logits, labels = made_up(40, 4, 2, seed=0)
    for index, name in enumerate(("tinyvit", "tinyvit_mae")):
        write_run(
            tmp_path / name,
            (logits[index], labels),
            model="tinyvit_11m",
            config={"model": "tinyvit_11m", "seed": 0, "init": name},
        )
    assert table_of(tmp_path).names == ("tinyvit", "tinyvit_mae")


def two_runs(tmp_path, change, **kwargs):
    """A good run `a`, and a run `b` with `change` made to its arrays."""
    logits, labels = made_up(40, 4, 2, seed=0)
    given = {
        "ids": np.array([f"{i:03}" for i in range(40)]),
        "logits": logits[1],
        "labels": labels.copy(),
    }
    write_run(tmp_path / "a", (logits[0], labels), ids=given["ids"])
    given = change(given) if change else given
    write_run(
        tmp_path / "b",
        (given["logits"], given["labels"]),
        ids=given["ids"],
        **kwargs,
    )


def test_other_classes(tmp_path):
    two_runs(tmp_path, None, classes=("10", "11", "13", "21"))
    refused(tmp_path, r"/b has other classes than .*/a: class '20'")


def test_classes_in_another_order(tmp_path):
    two_runs(tmp_path, None, classes=CLASSES[::-1])
    refused(tmp_path, "they are in another order")


def test_other_folds(tmp_path):
    two_runs(tmp_path, None, folds_hash="others")
    refused(tmp_path, r"/b was trained on other folds than .*/a \(folds_hash")


def test_other_labels(tmp_path):
    def change(given):
        given["labels"][7] = (given["labels"][7] + 1) % 4
        return given

    two_runs(tmp_path, change)
    refused(tmp_path, "b and a disagree on the label of id '007'")


def test_row_never_predicted(tmp_path):
    two_runs(tmp_path, lambda given: {k: v[:-2] for k, v in given.items()})
    refused(tmp_path, r"b \(.*/b\) never predicts ids '038', '039' of split")


def test_row_of_no_other_run(tmp_path):
    def change(given):
        given["ids"] = np.array([f"{i:03}" for i in range(1, 41)])
        return given

    two_runs(tmp_path, change)
    refused(tmp_path, "b .* never predicts id '000'")


def test_row_that_the_model_was_trained_on(tmp_path):
    fold = np.zeros(40, np.int32)
    fold[[5, 9]] = 3
    two_runs(tmp_path, None, fold=fold, val_fold=0)
    refused(
        tmp_path,
        r"/b was trained on rows that it predicts: it held out fold 0, but "
        "ids '005', '009' belong to fold 3",
    )


def test_row_in_different_folds(tmp_path):
    logits, labels = made_up(40, 4, 2, seed=0)
    fold = np.arange(40) % 5
    write_run(tmp_path / "a", (logits[0], labels), fold=fold)
    fold = fold.copy()
    fold[3] = 0
    write_run(tmp_path / "b", (logits[1], labels), fold=fold)
    refused(tmp_path, "b and a disagree on the fold of id 'val-00003'")


def test_row_predicted_twice(tmp_path):
    logits, labels = made_up(40, 4, 2, seed=0)
    for index, name in enumerate(("vit", "vit_again")):
        write_run(
            tmp_path / name,
            (logits[index], labels),
            model="vit",
            config_hash="same",
        )
    refused(
        tmp_path,
        "vit predicts ids 'val-00000', 'val-00001', 'val-00002' and 37 more "
        "twice with one seed, in .*/vit and .*/vit_again",
    )


def test_seed_that_lacks_a_fold(tmp_path):
    logits, labels = made_up(40, 4, 2, seed=0)
    ids = np.array([f"{i:03}" for i in range(40)])
    for seed, rows in ((0, slice(0, 40)), (1, slice(0, 20))):
        write_run(
            tmp_path / f"vit_{seed}",
            (logits[seed, rows], labels[rows]),
            ids=ids[rows],
            model="vit",
            config_hash="same",
            seed=seed,
        )
    refused(tmp_path, "vit never predicts ids '020'.*with some of its seeds")


def test_unlabelled_validation_rows(tmp_path):
    def change(given):
        given["labels"][4] = -1
        return given

    two_runs(tmp_path, change)
    refused(tmp_path, "b/logits/val.npz has no label for id '004'")


def test_run_without_test_logits(tmp_path):
    logits, labels = made_up(40, 4, 2, seed=0)
    write_run(tmp_path / "a", (logits[0], labels), (logits[0], labels))
    write_run(tmp_path / "b", (logits[1], labels))
    refused(tmp_path, "/b has no logits/test.npz, which the others have")


def test_run_without_validation_logits(tmp_path):
    logits, labels = made_up(40, 4, 2, seed=0)
    write_run(tmp_path / "a", (logits[0], labels), (logits[0], labels))
    write_run(tmp_path / "b", None, (logits[1], labels))
    refused(tmp_path, "/b has no logits/val.npz, which the others have")


def test_unfinished_runs_are_left_out_with_a_note(three_runs):
    (three_runs / "unfinished").mkdir()
    (three_runs / "stack").mkdir()
    notes = []
    found = find_runs([f"{three_runs}/*"], three_runs / "stack", notes.append)
    assert [path.name for path in found] == ["first", "second", "third"]
    assert len(notes) == 1 and "unfinished has no logits" in notes[0]


def test_shell_expanded_and_repeated_names(three_runs):
    names = [str(three_runs / "second"), f"{three_runs}/*"]
    found = [path.name for path in find_runs(names)]
    assert found == ["second", "first", "third"]


def test_missing_folder_is_named(three_runs):
    with pytest.raises(UserError, match="fourth, which does not exist"):
        find_runs([f"{three_runs}/first", f"{three_runs}/fourth"])


def test_nothing_found(tmp_path):
    with pytest.raises(UserError, match=r"no-such-\*, which does not exist"):
        find_runs([f"{tmp_path}/no-such-*"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds logits/val\.npz"):
        find_runs([f"{tmp_path}/*"])


def test_a_run_together_with_its_own_folds(tmp_path):
    logits, labels = made_up(30, 4, 1, seed=0)
    test, _ = made_up(20, 4, 3, seed=1)
    write_folds_of(tmp_path / "a", 0, logits[0], labels, test, join=True)
    with pytest.raises(
        UserError, match=r"/a/fold-0 is a part of .*/a, .* leave one of the two"
    ):
        make_table(
            read_runs(
                find_runs([f"{tmp_path}/*", f"{tmp_path}/*/fold-*"]),
                ("val", "test"),
            )
        )


def test_all_folds_of_one_model_and_one_fold_of_another(tmp_path):
    logits, labels = made_up(30, 4, 2, seed=0)
    test, _ = made_up(20, 4, 3, seed=1)
    write_folds_of(tmp_path / "a", 0, logits[0], labels, test, join=True)
    ids = np.array([f"{i:03}" for i in range(0, 30, 3)])
    write_run(
        tmp_path / "conv",
        (logits[1, ::3], labels[::3]),
        (test[0], np.full(20, -1, np.int32)),
        ids=ids,
        fold=0,
        val_fold=0,
    )
    refused(
        tmp_path,
        r"conv \(.*/conv\) never predicts ids '001', '002', '004' and 17 more"
        " of split val, which vit does; one validates fold 0, 1, 2, the other"
        " fold 0: train both on all folds, or give runs of the same single",
    )
