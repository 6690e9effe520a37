from __future__ import annotations

import pytest

from benchmarks import campaign
from core.errors import UserError

NETWORKS = {
    "tinyvit_11m": {
        "ours": {
            "train": {
                "by_batch": {"64": 2000.0, "256": 4000.0},
                "images_per_s": 4000.0,
            },
            "evaluate": {"images_per_s": 9000.0},
        }
    }
}


def test_rate_between_and_beyond_the_measured_batches():
    rates = {"64": 100.0, "256": 200.0}
    assert campaign.rate_at(rates, 64) == 100
    assert campaign.rate_at(rates, 128) == pytest.approx(150)
    assert campaign.rate_at(rates, 256) == campaign.rate_at(rates, 999) == 200
    assert campaign.rate_at(rates, 16) == 25


def test_recipe_costs_what_its_stages_say():
    given = campaign.GIVEN | {"input_images_per_s": 1e9}
    cost = campaign.cost_of("tinyvit", NETWORKS, given)
    assert cost.epochs == 275  # 75 + 75 + 75 + 50
    steps = 9_900 // 64 * 275
    assert cost.images == steps * 64
    assert cost.step == pytest.approx(steps * 64 / 2000)
    assert cost.input == 0
    looked_at = 275 * 2_473 + 3 * (2_473 + 5_300)
    assert cost.evaluation == pytest.approx(looked_at / 9000)
    assert cost.starting == given["start_s"] + 3 * given["stage_s"]


def test_slow_input_is_waited_for():
    given = campaign.GIVEN | {"input_images_per_s": 1000.0}
    cost = campaign.cost_of("tinyvit", NETWORKS, given)
    assert cost.input == pytest.approx(cost.images * (1 / 1000 - 1 / 2000))


def test_unmeasured_network_is_named():
    with pytest.raises(UserError, match="efficientnetv2_m"):
        campaign.cost_of("efficientnetv2", NETWORKS, campaign.GIVEN)


def test_total_names_what_dominates():
    cost = campaign.cost_of("tinyvit", NETWORKS, campaign.GIVEN)
    text = campaign.describe([cost], stacking=60.0)
    assert f"In all {(cost.total + 60) / 60:.1f} min" in text
    assert ": step " in text
