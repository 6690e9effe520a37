"""Intervals of paired differences: right where the truth is known."""

import numpy as np
import pytest

from core.errors import UserError
from studies.effects import Scores
from studies.outcomes import Examples, Outcome


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def outcome(rows):
    counts = np.stack([rows, np.ones(len(rows))], axis=1)
    ids = np.arange(len(rows)).astype(str)
    return Outcome("m", float(rows.mean()), 1, Examples(ids, counts, mean))


def simulated(
    rng, seeds=3, rows=100, effect=0.1, of_rows=0.5, of_seeds=0.1, noise=0.5
):
    """Two cells whose difference has a part per row and one per seed."""
    by_row = rng.normal(0, of_rows, rows)
    found = {}
    for seed in range(seeds):
        base = rng.normal(0, 1, rows)
        difference = effect + by_row + rng.normal(0, of_seeds)
        found[0, seed] = outcome(base)
        found[1, seed] = outcome(base + difference + rng.normal(0, noise, rows))
    return found


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"of_seeds": 0.4, "of_rows": 0.1},
        {"of_seeds": 0.0, "of_rows": 1.0, "noise": 0.1},
        {"seeds": 2},
        {"seeds": 6, "of_seeds": 0.2},
    ],
)
def test_the_interval_holds_the_true_effect_in_95_of_100(parts):
    rng = np.random.default_rng(1)
    tries, hits = 150, 0
    for number in range(tries):
        found = simulated(rng, **parts)
        seeds = range(len(found) // 2)
        scores = Scores(found, seed=number, draws=200)
        estimate = scores.contrast([(1, 0)], seeds).estimate
        hits += estimate.low <= 0.1 <= estimate.high
    assert hits / tries >= 0.9


def test_a_strong_effect_is_shown_and_rows_in_common_cancel_out():
    # Rows differ far more from each other than the cells do.
    rng = np.random.default_rng(0)
    found = simulated(rng, rows=400, of_rows=0.05, of_seeds=0.01, noise=0.05)
    estimate = Scores(found).contrast([(1, 0)], range(3)).estimate
    assert 0.07 < estimate.low < estimate.high < 0.13
    plain = np.mean([found[1, s].value - found[0, s].value for s in range(3)])
    assert estimate.value == pytest.approx(plain)


def test_a_main_effect_is_the_mean_over_the_other_axes():
    values = {(0, 0): 0.1, (1, 0): 0.3, (2, 0): 0.2, (3, 0): 0.8}
    values |= {(cell, 1): v + 0.05 for (cell, _), v in values.items()}
    found = {key: Outcome("m", v, 1, None) for key, v in values.items()}
    contrast = Scores(found).contrast([(1, 0), (3, 2)], [0, 1])
    assert contrast.estimate.value == pytest.approx(0.4)
    # The seeds agree exactly, so nothing is uncertain.
    assert contrast.estimate.low == pytest.approx(0.4)
    assert contrast.seeds == 2


def test_only_seeds_with_all_runs_count():
    rng = np.random.default_rng(0)
    found = simulated(rng)
    del found[0, 1]
    assert Scores(found).contrast([(1, 0)], range(3)).seeds == 2
    assert Scores(found).contrast([(1, 0)], [1]) is None


def test_one_seed_has_the_uncertainty_of_rows_alone():
    rng = np.random.default_rng(0)
    found = simulated(rng, seeds=1, of_rows=0.5, noise=0.0)
    estimate = Scores(found).contrast([(1, 0)], [0]).estimate
    assert estimate.high - estimate.low == pytest.approx(
        2 * 1.96 * 0.5 / 10, rel=0.2
    )


def test_one_seed_without_rows_tells_nothing_of_chance():
    """An interval of no width looked like certainty."""
    found = {
        (cell, 0): Outcome("m", 0.3 - cell / 10, 1, None) for cell in (0, 1)
    }
    contrast = Scores(found).contrast([(1, 0)], [0])
    assert contrast.estimate.value == pytest.approx(-0.1)
    assert np.isnan([contrast.estimate.low, contrast.estimate.high]).all()


def test_by_class_a_class_without_rows_has_no_interval():
    def of(hits):
        true = np.eye(3)[[0, 0, 0, 1, 1, 1]]
        counts = np.stack([true, true * hits[:, None], true], axis=1)
        return Outcome(
            "m",
            float(hits.mean()),
            1,
            Examples(
                np.arange(6).astype(str),
                counts,
                lambda s: s[..., 1, :].sum(-1) / s[..., 0, :].sum(-1),
                ("a", "b", "c"),
                lambda s: np.divide(
                    s[..., 1, :],
                    s[..., 0, :],
                    out=np.full(s[..., 0, :].shape, np.nan),
                    where=s[..., 0, :] > 0,
                ),
            ),
        )

    found = {
        (0, 0): of(np.array([0, 0, 0, 1, 0, 1.0])),
        (1, 0): of(np.array([1, 1, 1, 1, 0, 1.0])),
    }
    classes = Scores(found).contrast([(1, 0)], [0]).classes
    assert classes["a"].value == classes["a"].low == classes["a"].high == 1
    assert classes["b"].value == 0
    assert np.isnan(classes["c"].value) and np.isnan(classes["c"].low)


def test_draws_in_blocks_are_the_same_draws(monkeypatch):
    found = simulated(np.random.default_rng(0))
    whole = Scores(found, draws=50).contrast([(1, 0)], range(3))
    monkeypatch.setattr("studies.effects._DRAWN_AT_ONCE", 700)
    parts = Scores(found, draws=50).contrast([(1, 0)], range(3))
    assert parts.estimate.low == pytest.approx(whole.estimate.low, rel=1e-12)
    assert parts.estimate.high == pytest.approx(whole.estimate.high, rel=1e-12)


def test_other_validation_images_cannot_be_paired():
    found = {(0, 0): outcome(np.zeros(5)), (1, 0): outcome(np.zeros(6))}
    with pytest.raises(UserError, match="cannot be paired"):
        Scores(found)
