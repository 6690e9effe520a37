"""The report of a run is one file, whole and true, whatever a run lacks."""

import json
import re

import numpy as np
import pytest
from page_reader import read, write_entries, write_metrics

from core.errors import UserError
from reports import Figure, Section, plan_report, run_report
from reports.classification import classification_sections
from reports.curves import loss_chart, ranking_metric, score_charts
from run_folder.history import read_history
from run_folder.layout import logits_path
from run_folder.predictions import Logits, write_logits
from training.tasks import registry

CLASSES = ["cat", "dog & co", "<b>bird</b>"]


def write_predictions(run):
    """Predictions of 30 rows, 6 of them wrong."""
    labels = np.arange(30) % 3
    logits = 3 * np.eye(3, dtype=np.float32)[labels]
    logits[:6] = np.roll(logits[:6], 1, axis=1)
    write_logits(
        logits_path(run, "val"),
        Logits(
            ids=np.array([f"row-{i}" for i in range(30)]),
            logits=logits,
            labels=labels,
            classes=np.array(CLASSES),
            fold=np.zeros(30, np.int32),
            metadata={
                "model": "tiny",
                "config_hash": "c",
                "folds_hash": "f",
                "tta_views": ["center"],
            },
        ),
    )
    (run / "config.json").write_text(json.dumps({"model": "<tiny>"}))


def test_a_classifier(tmp_path):
    run = tmp_path / "run"
    write_metrics(run)
    write_predictions(run)
    path = run_report(run, classification_sections(run))
    assert path == run / "report.html"
    reader = read(path)
    assert "<tiny>: training report" in reader.text
    assert "validation accuracy 0.8000" in reader.text  # 24 of 30
    assert "best macro-F1 while training 0.8000 epoch 3" in reader.text
    assert "6 of 30 validation rows went wrong" in reader.text
    assert "<b>bird</b>" in reader.text
    assert reader.tags.count("figure") == 6
    assert "do not say where their images are" in reader.text


def test_without_predictions_there_are_no_sections_of_them(tmp_path):
    assert classification_sections(tmp_path) == []


def test_sections_and_figures_of_any_task(tmp_path):
    write_metrics(tmp_path)
    figure = Figure("mean <colour>", "0.5", "of 3 images")
    sections = [Section("Colours", "<i>escaped</i>", figures=(figure,))]
    reader = read(run_report(tmp_path, sections))
    assert "mean <colour> 0.5 of 3 images" in reader.text
    assert "Colours <i>escaped</i>" in reader.text
    # The task's own numbers come first.
    assert reader.text.index("mean <colour>") < reader.text.index("trained")


def test_a_run_over_all_folds_shows_the_curves_inside_it(tmp_path):
    for fold in range(3):
        write_metrics(tmp_path / f"fold-{fold}")
    (tmp_path / "fold-0/config.json").write_text('{"model": "tiny"}')
    reader = read(run_report(tmp_path))
    assert "tiny: training report" in reader.text
    assert "0.8000 mean of 3 folds" in reader.text
    assert "40 steps, 3 folds" in reader.text
    # Two losses, two scores, rate and gradient, three times each.
    assert reader.tags.count("polyline") == 18
    assert len(re.findall(r"macro-F1\s+accuracy", reader.text)) == 1


def test_skips_and_rollbacks_are_listed(tmp_path):
    write_entries(tmp_path, [{"kind": "train", "loss": 1.0}])
    assert "Skipped" not in read(run_report(tmp_path)).text
    write_entries(
        tmp_path,
        [
            {"kind": "train", "step": 10, "skipped": 2},
            {"kind": "train", "step": 20, "skipped": 7},
            {"kind": "rollback", "step": 10, "rate": 0.3},
            {"kind": "train", "step": 30, "stage": 1},
            {"kind": "train", "step": 40, "stage": 1, "skipped": 1234},
        ],
    )
    text = read(run_report(tmp_path)).text
    assert "7 steps of stage 1 changed nothing" in text
    assert "1,234 steps of stage 2 changed nothing" in text
    assert "stage 1 diverged and went back to step 10" in text
    assert "0.3 times its learning rate" in text


def test_a_pretraining_without_labels(tmp_path):
    write_entries(
        tmp_path,
        [
            {"kind": "train", "loss": 1.0},
            {"kind": "eval", "val_loss": 0.75, "best": True},
        ],
    )
    reader = read(run_report(tmp_path))
    assert "Confusions" not in reader.text
    assert "training loss" in reader.text
    assert "best loss while training 0.7500 epoch 1" in reader.text


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics\.jsonl and no"):
        run_report(tmp_path)


def test_a_plan_draws_the_rates_of_every_group(tmp_path):
    rates = [
        {
            "epoch": float(step),
            "stage": step // 3,
            "learning_rate": 1e-3,
            "learning_rate_head": 1e-2,
        }
        for step in range(6)
    ]
    path = plan_report(tmp_path / "plan.html", "tiny", {"data": "a<b"}, rates)
    reader = read(path)
    assert "dataa<b" in reader.text
    assert reader.tags.count("polyline") == 2
    assert "learning rate head" in reader.text


def evaluations(run, **scores):
    entries = [
        {"kind": "eval", "epoch": epoch, "best": True, **scores}
        for epoch in (1.0, 2.0, 3.0)
    ]
    write_entries(run, entries)
    return [read_history(run)]


def test_accuracy_shows_where_macro_f1_is_the_same(tmp_path):
    """Both lines can be seen, in the chart and in its key."""
    histories = evaluations(
        tmp_path, val_macro_f1=0.9, val_accuracy=0.9, val_loss=1.0
    )
    (chart,) = score_charts(histories, "val_macro_f1")
    lines = re.findall("<polyline[^>]*>", chart.svg)
    assert len(lines) == 2
    assert "dasharray" not in lines[0] and "dasharray" in lines[1]
    assert [(line.name, line.dashed) for line in chart.key] == [
        ("macro-F1", False),
        ("accuracy", True),
    ]


def test_every_score_of_a_task_is_in_a_key(tmp_path):
    for task in registry.names():
        metrics = registry.get(task).metrics
        run = tmp_path / task
        run.mkdir()
        histories = evaluations(run, **dict.fromkeys(metrics, 0.5))
        charts = score_charts(histories, next(iter(metrics)))
        lines = [line for chart in charts for line in chart.key]
        shown = len(set(metrics) - {"val_loss"})
        assert len({line.name for line in lines}) == shown, task
        looks = {(line.colour, line.dashed) for line in lines}
        assert len(looks) == shown, task


def test_a_score_that_is_no_share_has_a_chart_of_its_own(tmp_path):
    histories = evaluations(tmp_path, val_fid=31.0, val_recall=0.5)
    charts = score_charts(histories, "val_fid")
    names = [[line.name for line in chart.key] for chart in charts]
    assert names == [["fid"], ["recall"]]


def test_the_metric_that_ranks_checkpoints_is_ringed(tmp_path):
    histories = evaluations(tmp_path, val_macro_f1=0.9, val_loss=1.0)
    config = {"checkpoint": {"metric": "val_loss"}}
    assert ranking_metric(histories, config) == "val_loss"
    for config in (None, {"checkpoint": {"metric": ""}}):
        assert ranking_metric(histories, config) == "val_macro_f1"
    assert ranking_metric([], None) == ""
    for metric, rings in (("val_loss", (1, 0)), ("val_macro_f1", (0, 1))):
        charts = [
            *loss_chart(histories, metric),
            *score_charts(histories, metric),
        ]
        assert tuple(c.svg.count("best: ") for c in charts) == rings


def write_telemetry(run, waiting=0.25):
    start = {
        "kind": "start",
        "command": "python train.py --config=<x>",
        "parameters": 12345,
        "packages": {"jax": "0.10.2"},
    }
    speed = {"kind": "speed", "step": 20, "epoch": 2.0, "seconds": 90.0}
    entries = [
        start,
        {**speed, "images_per_second": 400.0, "waiting": waiting},
        start,
        {**speed, "images_per_second": 600.0, "waiting": None},
    ]
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (run / "telemetry.jsonl").write_text(text)


def test_speed_machine_and_command(tmp_path):
    write_metrics(tmp_path)
    write_telemetry(tmp_path)
    text = read(run_report(tmp_path, told="It still trains.")).text
    assert "It still trains." in text
    assert "time 3 min 0 s with evaluations and compilation, in 2" in text
    assert "The median is 500 images a second." in text
    assert "waited for images for 25.0%" in text and "workers" in text
    assert "python train.py --config=<x>" in text
    assert "parameters12,345" in text and "jax (package)0.10.2" in text


def test_augmentations_that_are_on_by_stage(tmp_path):
    write_metrics(tmp_path)
    config = {
        "augment": {
            "flip": 0.5,
            "jitter": [0.0, 0.0],
            "jitter_prob": 1.0,
            "crop_ratio": [1.0, 1.0],
        },
        "mixing": {"mixup_prob": 0.0},
        "stages": [{"mixing": {"mixup_prob": 0.8}}, {"augment": {"flip": 0.0}}],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    reader = read(run_report(tmp_path))
    assert "augment.flip0.50" in reader.text
    assert "mixing.mixup_prob0.80" in reader.text
    assert "augment.jitter" not in reader.text
    assert "augment.crop" not in reader.text
    config["stages"] = [{}]
    config["augment"] = {"flip": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "leaves images as they are" in read(run_report(tmp_path)).text


def test_an_augmentation_of_no_probability_is_not_on(tmp_path):
    write_metrics(tmp_path)
    config = {
        "augment": {"jitter": [0.4, 0.4], "jitter_prob": 0.0, "flip": 0.5},
        "mixing": {"prob": 0.0, "mixup_prob": 0.5, "mixup_alpha": 1.0},
        "stages": [{}, {"augment": {"jitter_prob": 1.0}}],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = read(run_report(tmp_path)).text
    assert "augment.jitter0.4, 0.40.4, 0.4" in text
    assert "mixing." not in text
    config["stages"] = [{}]
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = read(run_report(tmp_path)).text
    assert "augment.flip0.5" in text
    assert "augment.jitter" not in text


def test_calibration_is_told_in_words(tmp_path):
    """3 and 0, 0 are a confidence of 90.9 %; 24 of 30 are right."""
    write_predictions(tmp_path)
    sections = classification_sections(tmp_path)
    (found,) = [s for s in sections if s.title.startswith("Calibration")]
    assert "too sure of itself" in found.note
    assert "confidence is 90.9%, its accuracy 80.0%" in found.note
    assert "calibration error is 0.109" in found.note
