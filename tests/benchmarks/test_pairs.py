from __future__ import annotations

import pytest

from benchmarks import pairs


def test_sides_take_turns_and_the_warm_up_does_not_count():
    calls = []

    def side(name, cost):
        def work():
            calls.append(name)
            return cost + len(calls)

        return work

    found = pairs.alternate(
        {"a": side("a", 0), "b": side("b", 100)}, rounds=3, warm_up=1
    )
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert found["a"].values == [4, 5, 8]
    assert found["b"].values == [103, 106, 107]


def test_ratio_is_of_rounds_not_of_medians():
    ours, theirs = pairs.Sample([1, 10, 2]), pairs.Sample([2, 30, 1])
    assert pairs.times_faster(ours, theirs) == 2


def test_sample_describes_median_and_quartiles():
    sample = pairs.Sample([0.001, 0.002, 0.003, 0.004, 0.009])
    assert sample.describe(".0f", 1e3) == "3 (2-4)"
    assert pairs.Sample([2.0]).describe() == "2.0 (2.0-2.0)"


def test_table_is_aligned_markdown():
    assert pairs.table(("model", "ms"), [("a", 12), ("longer", 3)]) == (
        "| model  |  ms |\n| ------ | --: |\n| a      |  12 |\n| longer |   3 |"
    )


def test_the_command_that_is_published_can_be_typed(monkeypatch, capsys):
    words = ["x.py", "--forms", "eager, channels_last", "--write"]
    monkeypatch.setattr("sys.argv", words)
    pairs.publish("x", "table", "a machine", write=False)
    told = capsys.readouterr().out
    command = "python benchmarks/x.py --forms 'eager, channels_last'"
    assert told == f"table\n\n`{command}`, a machine\n"


def test_section_is_replaced_and_the_rest_stays():
    page = "head\n<!-- x: begin -->\nold\n<!-- x: end -->\ntail\n"
    new = pairs.with_section(page, "x", "new")
    assert new == "head\n<!-- x: begin -->\nnew\n<!-- x: end -->\ntail\n"
    assert pairs.with_section(new, "x", "new") == new
    with pytest.raises(ValueError, match="y: begin"):
        pairs.with_section(page, "y", "new")
