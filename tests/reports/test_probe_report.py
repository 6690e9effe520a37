"""The section on what a pretrained encoder knows."""

import json

import pytest

import reports
from core.errors import UserError
from reports.probe import probe_sections
from reports.scores import read_scores


def scored(accuracy):
    interval = [accuracy - 0.02, accuracy + 0.02]
    return {
        "accuracy": accuracy,
        "accuracy_interval": interval,
        "macro_f1": accuracy - 0.01,
        "macro_f1_interval": interval,
    }


PROBE = {
    "fitted_on": 1150,
    "scored_on": 287,
    "linear": {"C": 0.01, **scored(0.93)},
    "knn": {"k": 20, "temperature": 0.07, **scored(0.88)},
    "most_frequent_class": 0.101,
}


def test_both_scores_are_shown_with_their_intervals(tmp_path):
    (tmp_path / "probe.json").write_text(json.dumps(PROBE))
    page = reports.run_report(tmp_path, probe_sections(tmp_path)).read_text()
    for part in ("93.0%", "91.0% to 95.0%", "0.8700", "1,150", "10.1%"):
        assert part in page
    found, wrong = read_scores(tmp_path)
    assert not wrong
    assert found["linear probe macro-F1"].value == pytest.approx(0.92)
    assert found["kNN macro-F1"].low == pytest.approx(0.86)


def test_without_a_probe_there_is_no_section(tmp_path):
    assert probe_sections(tmp_path) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"linear": {}}'])
def test_a_damaged_file_is_told(tmp_path, text):
    (tmp_path / "probe.json").write_text(text)
    with pytest.raises(UserError, match="again with --export"):
        probe_sections(tmp_path)
