"""Tables of steps that were compiled for TPUs that are not here."""

from __future__ import annotations

import pytest

from benchmarks import tpu_check, tpu_scaling, tpu_steps
from benchmarks.tpu_steps import Step
from training.chips import parse_slice, roofline
from training.collectives import Collective
from training.topology_plan import StepCost


def step(recipe="tinyvit", topology="v5e:2x4", batch=64, accessed=819 * 10**6):
    chips = parse_slice(topology)
    collectives = {
        "all-reduce": Collective(55, 28 * 10**6, 49e6, 0),
        "all-gather": Collective(2, 10**6, 1e6, 1),
    }
    cost = StepCost(
        arguments=2**27,
        temporaries=2**29,
        flops=98.5e9,
        accessed=accessed,
        padding=accessed // 4,
        collectives=collectives,
        bound=roofline(chips, 98.5e9, accessed, 50e6),
        estimate=8e-3,
    )
    return Step(recipe, topology, batch, "ab12", 250.0, cost)


def cells(table, row):
    return [cell.strip() for cell in table.splitlines()[row].split("|")[1:-1]]


def test_a_step_is_the_same_after_it_was_kept(tmp_path):
    for kept in (step(), Step("big", "v5e:2x4", 64, "cd", 1.0, None)):
        path = tmp_path / "found" / f"{kept.recipe}.json"
        tpu_steps.save(kept, path)
        assert tpu_steps.load(path) == kept
    found = tpu_check.read_folder(tmp_path / "found")
    assert list(found) == ["tinyvit", "big"]


def test_the_table_has_a_line_for_every_recipe():
    steps = {"tinyvit": step(), "big": Step("big", "v5e:2x4", 64, "", 1, None)}
    table = tpu_check.steps_table(steps)
    assert cells(table, 2) == [
        *("tinyvit", "8", "128", "512", "4%", "254", "98", "819", "25%"),
        *("1.00", "memory", "64,000", "8.0"),
    ]
    assert cells(table, 3)[:3] == ["big", "8", "does not fit"]


def test_collectives_are_told_by_kind():
    table = tpu_check.collectives_table({"tinyvit": step()})
    assert cells(table, 2) == [
        *("tinyvit", "55", "28.0", "2", "1.0", "50.0", "0.40", "40%"),
        "1 of 57",
    ]


def test_a_comparison_leaves_out_what_is_not_on_both_sides():
    table = tpu_check.comparison_table(
        {"tinyvit": step(accessed=1638 * 10**6)},
        {"tinyvit": step(), "miniconvnext": step("miniconvnext")},
    )
    assert len(table.splitlines()) == 3
    assert cells(table, 2)[2:4] == [
        "1,638 -> 819 (-50%)",
        "2.00 -> 1.00 (-50%)",
    ]


def test_weak_scaling_keeps_a_chips_images_and_strong_the_batch():
    works = list(tpu_scaling.works("miniconvnext"))
    assert works == [
        ("weak", "v5e:2x4", 0),
        ("weak", "v5e:4x8", 1024),
        ("weak", "v5e:16x16", 8192),
        ("strong", "v5e:4x8", 256),
        ("strong", "v5e:16x16", 256),
    ]
    # Eight images a chip: too few for 256 chips.
    strong = [
        work for work in tpu_scaling.works("tinyvit") if work[0] != "weak"
    ]
    assert strong == [("strong", "v5e:4x8", 64)]


def test_what_scales_perfectly_gives_a_chip_as_much():
    found = [
        ("weak", step()),
        ("weak", step(topology="v5e:4x8", batch=256)),
        ("strong", step(topology="v5e:4x8", batch=64)),
    ]
    rows = list(tpu_scaling.rows_of(found))
    assert [row[-1] for row in rows] == ["100%", "100%", "25%"]
    assert rows[1][1:5] == ("weak", "v5e:4x8", "256", 8)


def test_a_plan_is_shown_as_the_command_prints_it():
    text = tpu_check.printed_plan(step())
    assert "--config=configs/tinyvit.py --plan --topology=v5e:2x4" in text
    assert "bound  1 ms a step by the roofline" in text


@pytest.mark.parametrize("recipe", tpu_check.RECIPES)
def test_every_recipe_has_a_heaviest_batch_for_eight_chips(recipe):
    assert tpu_steps.heaviest_batch(recipe) % 8 == 0
