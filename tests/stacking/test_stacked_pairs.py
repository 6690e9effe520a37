"""Fusing verifications: what is chosen, how it is scored, what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_pairs import (
    changed,
    pairs_of,
    rewrite,
    run_of,
    shuffled,
    without,
)

from core.errors import UserError
from metrics import verification
from metrics.verification import equal_error_rate
from run_folder import layout
from run_folder.pair_files import read_pair_scores
from stacking import pair_fusion, pairs
from stacking.pair_members import PairTable, find_members, make_table


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Intervals of fewer draws than people get, which take seconds."""
    draw = verification.bootstrap_interval
    monkeypatch.setattr(
        verification,
        "bootstrap_interval",
        lambda *args, **options: draw(*args, **{**options, "draws": 60}),
    )


def stacked(tmp_path, *runs, lines=None, **options):
    out = tmp_path / "stack"
    told = [] if lines is None else lines
    results = pairs.stack(
        list(map(str, runs)), out, note=told.append, **options
    )
    return results, out


def submission_of(out):
    with open(out / "submission.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return rows[0], {pair: float(answer) for pair, answer in rows[1:]}


def hidden_eer(out, people=40):
    """Of the submission, against kinds of pairs that no run has seen."""
    ids, kind, _ = pairs_of("test", people)
    answers = submission_of(out)[1]
    scores = np.array([answers[pair] for pair in ids.tolist()])
    return equal_error_rate(scores, kind == 0)


def test_one_run_alone_is_its_own_answer(tmp_path):
    run = run_of(tmp_path / "a", person=2.0)
    results, out = stacked(tmp_path, run)
    assert results["choice"] == "a"
    header, answers = submission_of(out)
    assert header == ["pair_id", "similarity"]
    test = read_pair_scores(layout.pairs_path(run, "test"))
    assert list(answers) == test.ids.tolist()
    assert (
        np.float32(list(answers.values())).tolist() == test.similarity.tolist()
    )
    assert json.loads((out / "scores.json").read_text()) == json.loads(
        json.dumps(results)
    )


def test_forgery_scores_are_used_where_they_help(tmp_path):
    # The run's own similarity is its cosine: it knows nothing of forgeries.
    run = run_of(tmp_path / "a", person=3.0, forgery=3.0)
    results, out = stacked(tmp_path, run)
    assert results["choice"] == "logistic"
    alone, fused = results["scores"]["a"], results["scores"]["logistic"]
    assert fused["eer"] < alone["eer"] - 0.1
    assert alone["by_kind"]["one_forged"]["eer"] == pytest.approx(0.5, abs=0.06)
    assert fused["by_kind"]["one_forged"]["eer"] < 0.2
    # Validation foretells the hidden pairs.
    low, high = results["scores"]["chosen"]["eer_interval"]
    assert low - 0.02 < hidden_eer(out) < high + 0.02


def test_several_runs_are_better_than_each(tmp_path):
    runs = [
        run_of(tmp_path / name, person=1.5, forgery=1.5, seed=n, scale=10.0**n)
        for n, name in enumerate("abc")
    ]
    results, out = stacked(tmp_path, *runs)
    singles = [results["scores"][name]["eer"] for name in "abc"]
    assert results["scores"]["chosen"]["eer"] < min(singles) - 0.05
    # Scales differ a hundredfold: z-norm and ranks do not mind.
    for way in ("z_norm", "rank"):
        assert results["scores"][way]["eer"] < min(singles)
    low, high = results["scores"]["chosen"]["eer_interval"]
    assert low - 0.02 < hidden_eer(out) < high + 0.02
    page = (out / "report.html").read_text()
    for words in ("z_norm", "chosen", "Errors by kind", "Hardest pairs"):
        assert words in page
    fused = read_pair_scores(layout.pairs_path(out, "val"))
    assert equal_error_rate(fused.similarity, fused.kind == 0) == pytest.approx(
        results["scores"]["chosen"]["eer"], abs=1e-6
    )


def test_one_run_may_know_people_and_another_forgeries(tmp_path):
    """Then cosines are averaged, and one run alone judges forgeries."""
    runs = [
        run_of(tmp_path / "a", person=3.0, forgery=0.3, seed=1),
        run_of(tmp_path / "b", person=3.0, forgery=3.0, seed=2),
        run_of(tmp_path / "c", person=3.0, seed=3),
    ]
    results, out = stacked(tmp_path, *runs)
    scores = results["scores"]
    assert scores["cosines+b"]["eer"] < scores["b"]["eer"] - 0.02
    assert scores["cosines+b"]["eer"] < scores["cosines+all"]["eer"] - 0.02
    assert "cosines+c" not in scores
    assert hidden_eer(out) < scores["b"]["eer"]
    members = find_members(list(map(str, runs)), tmp_path)
    val = make_table([member.val for member in members])
    test = make_table([member.test for member in members])
    known, asked = (
        [table.features[:, :3].mean(axis=1), table.features[:, 4]]
        for table in (val, test)
    )
    np.testing.assert_allclose(
        pair_fusion.cosines_and(1, 3)(val)(test),
        pair_fusion.fit_product(*known, val.positive)(*asked),
    )


def draw_pairs(count, slope=2.0, bias=-0.5, power=0.5, seed=0):
    """Pairs that are positive with the probability of the product."""
    rng = np.random.default_rng(seed)
    cosine = rng.normal(0.2, 0.3, count)
    log_real = -rng.exponential(2.0, count)
    same = 1 / (1 + np.exp(-(slope * (cosine - 0.2) / 0.3 + bias)))
    probability = same * np.exp(power * log_real)
    return cosine, log_real, probability, rng.random(count) < probability


def test_a_product_finds_the_probabilities_that_pairs_were_drawn_with():
    cosine, log_real, probability, positive = draw_pairs(20_000)
    log_odds = pair_fusion.fit_product(cosine, log_real, positive)
    found = 1 / (1 + np.exp(-log_odds(cosine, log_real)))
    assert np.abs(found - probability).max() < 0.05
    # A sum of both scores cannot be as near.
    features = np.stack([cosine, log_real], axis=1)
    logistic = verification.fit_logistic(features, positive)
    far = np.abs(logistic.probabilities(features) - probability).mean()
    assert np.abs(found - probability).mean() < far / 3


@pytest.mark.parametrize("log_real", [0.0, -1e-30, -1e4])
def test_a_product_is_finite_at_its_ends(log_real):
    cosine = np.repeat([-1.0, 1.0], 30)
    positive = cosine > 0  # A score that separates them, and one of no use.
    fit = pair_fusion.fit_product(cosine, np.full(60, log_real), positive)
    found = fit(np.array([-1.0, 1.0]), np.array([log_real, 0.0]))
    assert np.isfinite(found).all() and found[0] < found[1]


def test_where_all_are_real_a_product_ranks_as_the_cosine_does():
    cosine, _, _, positive = draw_pairs(400, power=0.0)
    zeros = np.zeros(len(cosine))
    found = pair_fusion.fit_product(cosine, zeros, positive)(cosine, zeros)
    np.testing.assert_array_equal(np.argsort(found), np.argsort(cosine))


def test_weak_runs_take_nothing_from_a_strong_one(tmp_path):
    runs = [run_of(tmp_path / "strong", person=2.5, forgery=2.5, seed=10)]
    _, out = stacked(tmp_path, *runs)
    alone = hidden_eer(out)
    for n, skill in enumerate((0.0, 0.2, 0.0)):
        weak = dict(person=skill, forgery=skill, seed=11 + n)
        runs.append(run_of(tmp_path / f"weak{n}", **weak))
    results, out = stacked(tmp_path, *runs)
    scores = results["scores"]
    assert scores["chosen"]["eer"] < scores["strong"]["eer"] + 0.01
    assert hidden_eer(out) < alone + 0.01


def test_a_run_may_be_called_as_a_way_is(tmp_path):
    names = "all", "a", "cosines+a"
    for seed, name in enumerate(names):
        run_of(tmp_path / name, forgery=1.0, seed=seed)
    results, _ = stacked(tmp_path, *(tmp_path / name for name in names))
    assert set(results["runs"]) == {"run all", "a", "run cosines+a"}
    assert {"cosines+a", "cosines+all"} < set(results["scores"])


def test_noise_scores_as_noise(tmp_path):
    """With this many weights, a fit to the pairs it is scored on looks good."""
    runs = [
        run_of(tmp_path / f"r{n}", person=0.0, forgery=0.0, seed=n, people=24)
        for n in range(12)
    ]
    results, _ = stacked(tmp_path, *runs)
    # Held-out parts of noise are even a little worse than chance: what is by
    # accident more in one part is less in the others.
    for way in ("logistic", "chosen"):
        assert 0.47 < results["scores"][way]["eer"] < 0.65
    members = find_members(list(map(str, runs)), tmp_path)
    table = make_table([member.val for member in members])
    in_sample = pair_fusion.logistic(table)(table)
    assert equal_error_rate(in_sample, table.positive) < 0.44


def test_the_order_of_pairs_does_not_matter(tmp_path):
    runs = [
        run_of(tmp_path / n, person=2.0, forgery=1.0, seed=s)
        for s, n in enumerate("ab")
    ]
    _, out = stacked(tmp_path, *runs)
    first = submission_of(out)[1]
    for split in ("val", "test"):
        rewrite(runs[1], split, shuffled)
    # Each of them wrote a manifest of its own.
    (runs[1] / layout.ARTIFACTS).unlink()
    _, out = stacked(tmp_path, *runs)
    assert submission_of(out)[1] == first


@settings(deadline=None, max_examples=60)
@given(st.integers(5, 40), st.integers(0, 2**32))
def test_no_identity_is_fitted_on_and_scored(people, seed):
    _, _, identities = pairs_of("val", people, seed)
    folds = pair_fusion.folds_of(identities, seed)
    _, one_of = np.unique(identities, return_index=True)
    assert np.ptp(np.bincount(folds.ravel()[one_of])) <= 1
    scored_times = np.zeros(len(folds), int)
    for fit, scored in verification.held_out_parts(folds):
        scored_times += scored
        assert not set(identities[fit].ravel()) & set(
            identities[scored].ravel()
        )
    assert scored_times.tolist() == [1] * len(folds)


def test_folds_depend_on_names_alone():
    _, _, identities = pairs_of("val", 30)
    order = np.random.default_rng(0).permutation(len(identities))
    folds = pair_fusion.folds_of(identities, 3)
    again = pair_fusion.folds_of(identities[order], 3)
    assert folds[order].tolist() == again.tolist()
    assert folds.tolist() != pair_fusion.folds_of(identities, 4).tolist()


def test_ranks_of_equal_scores_are_equal():
    table = PairTable(
        np.array([[3.0], [1.0], [3.0], [2.0]]),
        np.zeros((4, 1)),
        np.zeros(4, np.int8),
        np.full((4, 2), "a"),
    )
    ranks = pair_fusion.rank(table)(table)
    assert ranks.tolist() == [3.5 / 4, 1 / 4, 3.5 / 4, 2 / 4]


def test_few_identities_fit_nothing(tmp_path):
    lines = []
    runs = [
        run_of(tmp_path / n, person=2.0, seed=s, people=4)
        for s, n in enumerate("ab")
    ]
    results, out = stacked(tmp_path, *runs, lines=lines)
    assert results["choice"] == "rank"
    assert "too few to fit" in lines[0]
    assert "no pair was held out" in " ".join(lines)
    page = (out / "report.html").read_text()
    assert "too few to hold any out" in page and "made anew" not in page
    assert len(submission_of(out)[1]) == 4 * 24


def test_the_sample_decides_rows_columns_and_order(tmp_path):
    ids, _, _ = pairs_of("test", 40)
    sample = tmp_path / "sample.csv"
    rows = "".join(f"0,{pair}\n" for pair in ids[::-1])
    sample.write_text(f"answer,pair\n{rows}")
    run = run_of(tmp_path / "a", sample_submission=str(sample))
    _, out = stacked(tmp_path, run)
    text = (out / "submission.csv").read_text().splitlines()
    assert text[0] == "answer,pair"
    assert [line.split(",")[1] for line in text[1:]] == ids[::-1].tolist()
    _, out = stacked(tmp_path, run, sample_submission="none")
    assert submission_of(out)[0] == ["pair_id", "similarity"]
    rows = "".join(f"{pair},0\n" for pair in ids)
    sample.write_text(f"pair_id,answer\n{rows}zzz,0\n")
    with pytest.raises(UserError, match=r"1 pairs are only in .*'zzz'"):
        stacked(tmp_path, run)


def test_without_a_test_there_is_no_submission(tmp_path):
    results, out = stacked(tmp_path, run_of(tmp_path / "a", test=False))
    assert results["test_pairs"] == 0
    assert not (out / "submission.csv").exists()


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("val", lambda s: without(s, 5), r"validated on other pairs \(960 and"),
        ("val", changed(metadata={}), r"metadata has no 'model'"),
        ("test", lambda s: without(s, 5), r"compared other pairs for the sub"),
        ("val", lambda s: changed(kind=s.kind * 0)(s), r"the kind of each"),
        ("val", lambda s: changed(kind=s.kind + 4)(s), r"0 of the first and"),
        ("val", lambda s: changed(kind=s.kind - 1)(s), r"of unknown kind"),
        (
            "val",
            lambda s: changed(identities=np.full((960, 2), ""))(s),
            r"pairs without identities",
        ),
        (
            "val",
            lambda s: changed(fold=s.fold + 1)(s),
            r"validated on other pairs",
        ),
    ],
)
def test_runs_that_do_not_belong_together(tmp_path, split, change, message):
    runs = [run_of(tmp_path / name, seed=s) for s, name in enumerate("ab")]
    with pytest.raises(UserError, match=message):
        rewrite(runs[1], split, change)
        (runs[1] / layout.ARTIFACTS).unlink()
        stacked(tmp_path, *runs)


def test_runs_of_other_folds(tmp_path):
    runs = [
        run_of(tmp_path / "a", folds_hash="1"),
        run_of(tmp_path / "b", folds_hash="2"),
    ]
    with pytest.raises(UserError, match="trained on other folds"):
        stacked(tmp_path, *runs)


def test_folders_without_pairs(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="holds pairs/val"):
        stacked(tmp_path, tmp_path / "other")
    with pytest.raises(UserError, match="does not exist"):
        stacked(tmp_path, tmp_path / "nowhere")
    run = run_of(tmp_path / "a")
    layout.pairs_path(run, "test").unlink()
    with pytest.raises(UserError, match="not exported to its end"):
        stacked(tmp_path, run)


def test_a_stack_is_no_member_and_a_run_no_place_for_one(tmp_path):
    lines = []
    run_of(tmp_path / "runs" / "a")
    pairs.stack([f"{tmp_path}/runs/*"], tmp_path / "runs/s", note=lines.append)
    results = pairs.stack(
        [f"{tmp_path}/runs/*"], tmp_path / "runs/t", note=lines.append
    )
    assert list(results["runs"]) == ["a"]
    assert any("s is a stack itself" in line for line in lines)
    with pytest.raises(UserError, match="holds a run"):
        pairs.stack([f"{tmp_path}/runs/s"], tmp_path / "runs/a")


def test_names_of_runs_do_not_hide_rows_of_the_table(tmp_path):
    runs = [
        run_of(tmp_path / "one" / "chosen"),
        run_of(tmp_path / "two" / "chosen", seed=1),
    ]
    results, _ = stacked(tmp_path, *runs)
    assert len(results["runs"]) == 2
    assert "chosen" not in results["runs"]
    assert set(results["runs"]) < set(results["scores"])
