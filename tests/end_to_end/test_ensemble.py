"""make ensemble: photos in, submission out; stopped and started again."""

import csv
import json
import os
import signal
import subprocess
import time

import pytest
from commands import CACHE, ROOT, in_background, write_competition

PHOTOS = ROOT.parent / "shared/data/photos16"


def ensemble(data, runs, *settings):
    """Starts make ensemble with settings such as "SIZE=32"."""
    return in_background(
        [
            "make",
            "ensemble",
            f"DATA={data}",
            f"RUNS={runs}",
            f"ARGS=--config.cache_dir={CACHE}",
            *settings,
        ],
        stdout=subprocess.PIPE,
    )


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def check_submission(data, runs):
    sample = read_csv(data / "sample_submission.csv")
    answer = read_csv(runs / "stack/submission.csv")
    assert [row[0] for row in answer] == [row[0] for row in sample]
    assert answer[0] == sample[0]
    classes = {row[1] for row in read_csv(data / "train_answers.csv")[1:]}
    assert {row[1] for row in answer[1:]} <= classes
    assert (runs / "stack/report.html").stat().st_size > 1000
    assert json.loads((runs / "stack/scores.json").read_text())


def test_a_stopped_ensemble_resumes_to_the_submission(tmp_path):
    data, runs = tmp_path / "my photos", tmp_path / "runs"
    write_competition(data, classes=("0", "4", "16"), per_class=40)
    models = "MODELS=miniconvnext tinyvit"
    settings = (models, "VARIANT=demo", "EPOCHS=4", "SIZE=32")
    first = ensemble(data, runs, *settings)
    logged = runs / "miniconvnext/metrics.jsonl"
    while first.poll() is None and not logged.exists():
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGINT)  # As Ctrl-C in a terminal does.
    output, _ = first.communicate(timeout=120)
    assert first.returncode != 0, output
    assert not (runs / "stack").exists()
    assert "Traceback" not in output, output

    second = ensemble(data, runs, *settings)
    output, _ = second.communicate(timeout=600)
    assert second.returncode == 0, output
    check_submission(data, runs)


@pytest.mark.slow
@pytest.mark.skipif(
    not PHOTOS.is_dir(), reason="the photos16 folder is not beside the repo"
)
def test_real_photos_give_a_submission(tmp_path):
    models = "MODELS=tinyvit_mae tinyvit_ssl efficientnetv2"
    process = ensemble(
        PHOTOS, tmp_path, models, "VARIANT=short", "EPOCHS=1", "SIZE=64"
    )
    output, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, output
    check_submission(PHOTOS, tmp_path)
