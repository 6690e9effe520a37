"""Reports are one file each, whole and true, whatever a run lacks."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from core.errors import UserError
from reports import ensemble_report, run_report
from reports.charts import Line, line_chart, nice_ticks
from reports.curves import read_history, score_chart
from reports.mistakes import Answers

CLASSES = ["cat", "dog & co", "<b>bird</b>"]
VOID = {"meta", "link", "img", "br", "path", "rect", "circle", "polyline"}


class Reader(HTMLParser):
    """Collects addresses, text and tags left open."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "action", "srcset", "data"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    """The parsed page, checked to be well formed and to load nothing."""
    page = path.read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert all(address.startswith("data:") for address in reader.addresses)
    assert "script" not in reader.tags
    assert not re.search(r"@import|url\(|https?://", page)
    assert "prefers-color-scheme: dark" in page
    return reader


def write_metrics(run, epochs=4):
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(1, 10 * epochs + 1):
            stage, epoch = int(step > 20), step / 10
            entry = {
                "kind": "train",
                "step": step,
                "stage": stage,
                "epoch": epoch,
                "loss": 2 / step,
                "learning_rate": 1e-3,
                "grad_norm": 1.0,
            }
            file.write(json.dumps(entry) + "\n")
            if step % 10 == 0:
                entry = {
                    "kind": "eval",
                    "step": step,
                    "stage": stage,
                    "epoch": epoch,
                    "val_loss": 2 / step,
                    "val_macro_f1": 0.5 + 0.1 * min(epoch, 3),
                    "val_accuracy": 0.6,
                    "best": epoch <= 3,
                }
                file.write(json.dumps(entry) + "\n")
        file.write('{"kind": "train", "step": 41, "lo')


def write_run(run):
    """A run of 30 rows of the embedded digits, 6 of them wrong."""
    write_metrics(run)
    labels = np.arange(30) % 3
    logits = 3 * np.eye(3, dtype=np.float32)[labels]
    logits[:6] = np.roll(logits[:6], 1, axis=1)
    (run / "logits").mkdir()
    np.savez(
        run / "logits" / "val.npz",
        ids=np.array([f"digit-{i:04}" for i in range(30)]),
        logits=logits,
        labels=labels,
        classes=np.array(CLASSES),
        fold=np.zeros(30, np.int32),
        metadata=np.array(json.dumps({"model": "tiny"})),
    )
    (run / "config.json").write_text(json.dumps({"model": "<tiny>"}))


def test_run_report(tmp_path):
    write_run(tmp_path / "run")
    path = run_report(tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    reader = read(path)
    assert "<tiny>: training report" in reader.text
    assert "0.8000" in reader.text  # accuracy, 24 of 30
    assert "0.8000epoch 3, centre crop" in reader.text
    assert "6 of 30 validation rows went wrong" in reader.text
    assert "<b>bird</b>" in reader.text
    assert reader.tags.count("figure") == 6
    assert "do not say where their images are" in reader.text


def test_run_over_all_folds_shows_the_curves_inside_it(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    for fold in range(3):
        write_metrics(tmp_path / "run" / f"fold-{fold}")
    reader = read(run_report(tmp_path / "run"))
    assert "0.8000mean of 3 folds, centre crop" in reader.text
    assert "40 steps, 3 folds" in reader.text
    # Two losses, two scores, rate and gradient, three times each.
    assert reader.tags.count("polyline") == 18
    assert reader.text.count("macro-F1accuracy") == 1
    path = ensemble_report(
        tmp_path / "r.html", results(tmp_path / "run"), [answers()]
    )
    assert read(path).tags.count("polyline") == 12
    assert "0.8000, mean of 3 folds" in read(path).text


def test_skips_and_rollbacks_are_told(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert "Skipped" not in read(tell(run, [])).text
    entries = [
        {"kind": "train", "step": 10, "stage": 0, "skipped": 2},
        {"kind": "train", "step": 20, "stage": 0, "skipped": 7},
        {"kind": "rollback", "step": 10, "stage": 0, "rate": 0.3},
        {"kind": "train", "step": 30, "stage": 1},
        {"kind": "train", "step": 40, "stage": 1, "skipped": 1234},
    ]
    text = read(tell(run, entries)).text
    assert "7 steps of stage 1 changed nothing" in text
    assert "1,234 steps of stage 2 changed nothing" in text
    assert "stage 1 diverged and went back to step 10" in text
    assert "0.3 times its learning rate" in text


def tell(run, entries):
    first = {"kind": "train", "step": 1, "loss": 1.0}
    lines = [json.dumps({**e, "epoch": 1.0}) for e in (first, *entries)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run_report(run)


def test_run_report_of_a_pretraining_without_labels(tmp_path):
    run = tmp_path / "mae"
    run.mkdir()
    entry = {"kind": "train", "step": 1, "epoch": 0.1, "loss": 1.0}
    other = {"kind": "eval", "step": 1, "epoch": 0.1, "val_loss": 1.0}
    (run / "metrics.jsonl").write_text(
        json.dumps(entry) + "\n" + json.dumps(other) + "\n"
    )
    reader = read(run_report(run))
    assert "Confusions" not in reader.text
    assert "training loss" in reader.text


def test_run_report_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"neither metrics\.jsonl nor"):
        run_report(tmp_path)


def test_history_knows_stages_best_and_survives_a_cut_line(tmp_path):
    write_metrics(tmp_path)
    history = read_history(tmp_path)
    assert len(history.train) == 40 and len(history.evals) == 4
    assert history.stage_starts == [2.0]
    # The mark says which was kept; without marks, the first of two equals.
    assert history.best["epoch"] == 3.0
    for entry in history.evals:
        del entry["best"]
    assert history.best["epoch"] == 3.0
    # A run that keeps the checkpoint of the lowest loss marks another one.
    history.evals[1]["best"] = True
    assert history.best["epoch"] == 2.0


def results(run):
    entry = {
        "macro_f1": 0.8,
        "macro_f1_interval": [0.7, 0.9],
        "accuracy": 0.8,
        "accuracy_interval": [0.7, 0.9],
        "log_loss": 0.5,
        "calibration_error": 0.1,
        "f1_per_class": [0.8, 0.8, None],
    }
    return {
        "rows": 30,
        "test_rows": 0,
        "classes": CLASSES,
        "families": [{"name": "tiny & co", "model": "m", "runs": [str(run)]}],
        "most_common_class": {"macro_f1": 0.2, "accuracy": 0.4},
        "scores": {"tiny & co": entry, "soft_vote": entry, "blend": entry},
        "test_scores": None,
        "final": {
            "blend_weights": {"soft_vote": 1.0},
            "soft_vote_weights": {"tiny & co": 1.0},
            "greedy_vote_weights": {"tiny & co": 1.0},
        },
    }


def answers(wrong=3, ids=None):
    labels = np.arange(30) % 3
    predicted = labels.copy()
    predicted[:wrong] = (labels[:wrong] + 1) % 3
    return Answers(
        title="validation, out of fold",
        ids=np.array(ids or [f"row-{i}" for i in range(30)]),
        labels=labels,
        predicted=predicted,
        confidence=np.linspace(0.5, 0.9, 30),
        true=np.full(30, 0.1),
    )


def test_ensemble_report(tmp_path):
    write_metrics(tmp_path / "run")
    path = ensemble_report(
        tmp_path / "report.html", results(tmp_path / "run"), [answers()]
    )
    reader = read(path)
    for words in ("final blend", "tiny & co", "95 % interval", "Confusions"):
        assert words in reader.text
    assert "All 3 mistakes, the surest first" in reader.text
    assert reader.tags.count("polyline") == 4


def test_ensemble_report_without_history_or_mistakes(tmp_path):
    path = ensemble_report(
        tmp_path / "report.html", results(tmp_path), [answers(wrong=0)]
    )
    text = read(path).text
    assert "No training history" in text
    assert "Nothing: every answer is right." in text


def test_mistakes_show_the_digits_themselves(tmp_path):
    from configs.common import data
    from input_pipeline.sources import open_source

    config = data()
    ids = [str(name) for name in open_source(config).labelled.ids[:30]]
    path = ensemble_report(
        tmp_path / "report.html",
        results(tmp_path),
        [answers(ids=ids)],
        data=config.to_dict(),
    )
    reader = read(path)
    assert reader.tags.count("img") == 3
    assert path.stat().st_size < 200_000


def test_images_that_are_gone_are_said_to_be(tmp_path):
    path = ensemble_report(
        tmp_path / "report.html",
        results(tmp_path),
        [answers()],
        data={"root": str(tmp_path / "gone")},
    )
    assert "The images could not be opened" in read(path).text


def test_many_classes_have_no_heatmap_but_the_pairs(tmp_path):
    labels = np.arange(200) % 100
    many = Answers(
        "validation",
        np.array([f"row-{i}" for i in range(200)]),
        labels,
        (labels + (np.arange(200) < 60)) % 100,
        np.full(200, 0.5),
        np.full(200, 0.1),
    )
    content = results(tmp_path) | {"classes": [f"c{i}" for i in range(100)]}
    reader = read(ensemble_report(tmp_path / "r.html", content, [many]))
    assert "Most frequent" in reader.text and "rect" not in reader.tags
    assert "The 48 surest of 60 mistakes" in reader.text


def test_accuracy_shows_where_macro_f1_is_the_same(tmp_path):
    """Both lines can be seen, in the chart and in its key."""
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for epoch in (1.0, 2.0, 3.0):
            entry = {"kind": "eval", "epoch": epoch, "val_loss": 1.0}
            entry |= {"val_macro_f1": 0.9, "val_accuracy": 0.9}
            file.write(json.dumps(entry) + "\n")
    chart = score_chart([read_history(tmp_path)])
    lines = re.findall("<polyline[^>]*>", chart)
    assert len(lines) == 2
    assert "dasharray" not in lines[0] and "dasharray" in lines[1]
    assert chart.index("macro-F1</span>") < chart.index("class=dashed")


def test_ids_of_mistakes_are_whole(tmp_path):
    long = [f"folder/of/many/pictures/photo-{i:030}.jpeg" for i in range(30)]
    path = ensemble_report(
        tmp_path / "report.html", results(tmp_path), [answers(ids=long)]
    )
    assert all(name in read(path).text for name in long[:3])
    style = re.search(r"\.name {[^}]*}", path.read_text())[0]
    assert "overflow-wrap: anywhere" in style and "ellipsis" not in style


def test_numbers_of_one_axis_are_written_alike():
    x = np.arange(3.0)
    chart = line_chart([Line("rate", x, np.array([0, 1e-3, 2e-3]))], "rate")
    ticks = re.findall('text-anchor="end">([^<]*)<', chart)
    assert ticks == ["0", "5e-4", "1e-3", "1.5e-3", "2e-3"]


def test_chart_of_odd_numbers_is_still_a_chart():
    x = np.array([0.0, 1, 2, 3])
    y = np.array([np.nan, np.inf, 1.0, 1.0])
    chart = line_chart([Line("loss", x, y)], "loss")
    assert "nan" not in chart and "inf" not in chart
    assert "Nothing was recorded" in line_chart(
        [Line("loss", x, np.full(4, np.nan))], "loss"
    )


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (1e-7, 3e-7), (-5, 9000), (2, 2), (0, 0)]
)
def test_ticks_are_round_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high, 4)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
