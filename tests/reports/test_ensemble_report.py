"""The report of a stack, with and without the runs and images behind it."""

import functools
import re

import numpy as np
from page_reader import read, write_metrics

from reports import ensemble_report
from reports.classification import Predictions

CLASSES = ["cat", "dog & co", "<b>bird</b>"]


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
        "members": {
            "macro_f1": 0.8,
            "without": [],
            "gain_interval": [],
            "error_correlation": [[1.0]],
        },
        "final": {
            "blend_weights": {"soft_vote": 1.0},
            "soft_vote_weights": {"tiny & co": 1.0},
            "greedy_vote_weights": {"tiny & co": 1.0},
        },
    }


def predictions(wrong=3, ids=None):
    labels = np.arange(30) % 3
    predicted = labels.copy()
    predicted[:wrong] = (labels[:wrong] + 1) % 3
    return Predictions(
        title="validation, out of fold",
        ids=np.array(ids or [f"row-{i}" for i in range(30)]),
        labels=labels,
        predicted=predicted,
        confidence=np.linspace(0.5, 0.9, 30),
        true=np.full(30, 0.1),
    )


def report(folder, found, pictures=None, run=None, **changes):
    content = results(run or folder) | changes
    path = folder / "report.html"
    return read(ensemble_report(path, content, [found], pictures))


def test_a_stack(tmp_path):
    write_metrics(tmp_path / "run")
    reader = report(tmp_path, predictions(), run=tmp_path / "run")
    for words in ("final blend", "tiny & co", "95 % interval", "Confusions"):
        assert words in reader.text
    assert "best macro-F1 0.8000 at epoch 3" in reader.text
    assert "All 3 mistakes, the most confident first" in reader.text
    assert reader.tags.count("polyline") == 4


def test_a_stack_of_joined_folds(tmp_path):
    for fold in range(3):
        write_metrics(tmp_path / f"run/fold-{fold}")
    reader = report(tmp_path, predictions(), run=tmp_path / "run")
    assert reader.tags.count("polyline") == 12
    assert "0.8000, mean of 3 folds" in reader.text


def test_scores_on_labelled_test_rows(tmp_path):
    scores = results(tmp_path)["scores"]
    reader = report(tmp_path, predictions(), test_scores=scores, test_rows=9)
    assert "macro-F1, test 0.8000 9 rows nothing has seen" in reader.text
    assert "test acc." in reader.text


def test_without_history_or_mistakes(tmp_path):
    text = report(tmp_path, predictions(wrong=0)).text
    assert "No training history" in text
    assert "Nothing: every prediction is right." in text


def test_mistakes_show_the_digits_themselves(tmp_path):
    from configs.inputs import data
    from input_pipeline.sources import open_source
    from input_pipeline.sources.pictures import read_pictures

    config = data()
    ids = [str(name) for name in open_source(config).labelled.ids[:30]]
    pictures = functools.partial(read_pictures, config.to_dict())
    reader = report(tmp_path, predictions(ids=ids), pictures)
    assert reader.tags.count("img") == 3
    assert (tmp_path / "report.html").stat().st_size < 200_000


def test_images_that_are_gone_are_said_to_be(tmp_path):
    def gone(ids):
        raise OSError("no such folder")

    def one(ids):
        yield ids[0], np.zeros((300, 200, 3), np.uint8)

    text = report(tmp_path, predictions(), gone).text
    assert "The images could not be opened: no such folder" in text
    reader = report(tmp_path, predictions(), one)
    assert "Some images are gone or cannot be read" in reader.text
    assert reader.tags.count("img") == 1
    assert reader.text.count("no picture") == 2


def test_many_classes_have_no_heatmap_but_the_pairs(tmp_path):
    labels = np.arange(200) % 100
    many = Predictions(
        "validation",
        np.array([f"row-{i}" for i in range(200)]),
        labels,
        (labels + (np.arange(200) < 60)) % 100,
        np.full(200, 0.5),
        np.full(200, 0.1),
    )
    classes = [f"c{i}" for i in range(100)]
    reader = report(tmp_path, many, classes=classes)
    assert "Most frequent" in reader.text and "rect" not in reader.tags
    assert "The 48 most confident of 60 mistakes" in reader.text


def test_ids_of_mistakes_are_whole(tmp_path):
    long = [f"folder/of/many/pictures/photo-{i:030}.jpeg" for i in range(30)]
    reader = report(tmp_path, predictions(ids=long))
    assert all(name in reader.text for name in long[:3])
    page = (tmp_path / "report.html").read_text()
    style = re.search(r"\.name {[^}]*}", page)[0]
    assert "overflow-wrap: anywhere" in style and "ellipsis" not in style


def of_two_models(folder):
    """The report on a stack of two models."""
    entry = results(folder)["scores"]["blend"]
    worse = {**entry, "macro_f1": 0.7, "f1_per_class": [0.9, 0.5, None]}
    members = {
        "macro_f1": 0.75,
        "without": [0.76, 0.65],
        "gain_interval": [[-0.02, 0.01], [0.05, 0.15]],
        "error_correlation": [[1.0, 0.25], [0.25, None]],
    }
    return report(
        folder,
        predictions(),
        families=[
            {"name": name, "model": "m", "runs": [str(folder)]}
            for name in ("one", "two")
        ],
        scores={"one": worse, "two": worse, "soft_vote": entry, "blend": entry},
        members=members,
    )


def test_what_each_model_adds(tmp_path):
    text = of_two_models(tmp_path).text
    # The most useful first; its columns follow.
    assert "two0.70000.6500+0.1000+0.0500 to +0.1500helps" in text
    assert "one0.70000.7600-0.0100-0.0200 to +0.0100unclear" in text
    assert "two–0.25" in text and "one0.251.00" in text
    assert "cat0.9000.800-0.100" in text
    assert "dog & co0.5000.800+0.300" in text
