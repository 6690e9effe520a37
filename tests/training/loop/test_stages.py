"""Stages on the axis of global steps."""

import itertools

import pytest

from configs import common
from training.loop import stages


def plan_of(*parts, epochs=0.0, every=1.0, rows=100):
    config = common.base()
    config.stages = tuple(
        common.stage(epochs=e, batch_size=b) for e, b in parts
    )
    config.epochs = epochs
    config.eval.every_epochs = every
    return stages.plan_stages(config, rows)


def test_stages_follow_each_other_without_gap():
    plan = plan_of((3.0, 10), (2.0, 32), (0.5, 7))
    assert [stage.steps for stage in plan] == [30, 6, 7]
    for earlier, later in itertools.pairwise(plan):
        assert later.start == earlier.end


def test_every_stage_ends_with_an_evaluation():
    plan = plan_of((2.5, 10), every=1.0)
    evaluated = [s for s in range(1, 26) if plan[0].evaluates_at(s)]
    assert evaluated == [10, 20, 25]


def test_fewer_rows_than_a_batch_still_make_one_step_an_epoch():
    plan = plan_of((4.0, 64), rows=5)
    assert plan[0].steps_per_epoch == 1
    assert plan[0].steps == 4


def test_rates_over_a_run_have_every_stages_ends():
    config = common.base()
    config.stages = (
        common.one_cycle(1e-3, epochs=10.0, batch_size=10),
        common.stage(epochs=20.0, batch_size=20, end_rate=1e-6),
    )
    rates = stages.rates_over(stages.plan_stages(config, 100), points=20)
    assert len(rates) < 60
    first = [r["learning_rate"] for r in rates if r["stage"] == 0]
    second = [r for r in rates if r["stage"] == 1]
    assert first[0] == pytest.approx(1e-4) and first[-1] == pytest.approx(2e-7)
    assert second[0]["learning_rate"] == pytest.approx(3e-4)
    assert second[-1]["learning_rate"] == pytest.approx(1e-6)
    epochs = [r["epoch"] for r in rates]
    assert epochs == sorted(epochs) and second[0]["epoch"] == 10.0


def test_lookups_at_the_seams():
    plan = plan_of((1.0, 10), (1.0, 20))
    assert stages.stage_after(plan, 9) is plan[0]
    assert stages.stage_after(plan, 10) is plan[1]
    assert stages.stage_after(plan, 15) is None
    assert stages.stage_of(plan, 10) is plan[0]
    assert stages.stage_of(plan, 11) is plan[1]
    assert stages.images_until(plan, 12) == 10 * 10 + 2 * 20
    assert stages.images_until(plan, 15) == 200


def test_a_stage_is_described_in_one_line():
    config = common.base()
    config.stages = (
        common.one_cycle(
            1e-3,
            epochs=2.0,
            batch_size=10,
            layer_decay=0.75,
            param_groups=(
                common.group("^stem/", frozen=True),
                common.group(common.HEAD, rate=10.0),
                common.group(common.ENCODER, frozen=True),
            ),
        ),
    )
    (stage,) = stages.plan_stages(config, 1000)
    assert stage.describe() == (
        "2 epochs = 200 steps of 10, one_cycle lr 0.0001 -> 0.001 -> 2e-07, "
        "weight decay 0.0001, ^stem/ frozen, head at 10 times the rate, "
        "encoder frozen, layer decay 0.75"
    )
