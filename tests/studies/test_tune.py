"""A search that is stopped, resumed and shared; spaces; the recipe it gives."""

import json

import numpy as np
import optuna
import pytest

from configs import loading
from core import signals
from core.errors import UserError
from studies import lr_range, recipe_file, space, training, tune
from studies.training import End, Ended
from training.config import problems

DEMO = "configs/miniconvnext.py:demo"
CONFIG = loading.load(DEMO)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stages[0].learning_rate=1e-4..1e-2 log", (1e-4, 1e-2, True, False)),
        ("mixing.prob=0..0.5", (0.0, 0.5, False, False)),
        ("augment.randaugment_ops=0..4", (0.0, 4.0, False, True)),
    ],
)
def test_a_range_is_of_the_fields_own_type(text, expected):
    found = space.parse_parameter(text, CONFIG)
    assert (found.low, found.high, found.log, found.whole) == expected


def test_choices_may_be_anything():
    found = space.parse_parameter("eval.tta=('center',),('crop',)", CONFIG)
    assert found.choices == ("('center',)", "('crop',)")


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a=1", "a=2..1", "a=0..1 log", "=1..2x", "a=b", "a=1.2.3..4"),
        *("augment.randaugment_ops=0.5..2 log", "augment.randaugment_op=1..2"),
        "mixing.prob=0.0,often",
    ],
)
def test_no_space_is_one_sentence(text):
    with pytest.raises(UserError, match="--search"):
        space.parse_parameter(text, CONFIG)


@pytest.fixture
def search(tmp_path):
    parameters = [
        space.parse_parameter(text, CONFIG)
        for text in (
            "stages[0].learning_rate=1e-4..1e-1 log",
            "mixing.prob=0.0,0.5",
        )
    ]
    return tune.Search(
        DEMO,
        ["--config.epochs=2.0"],
        CONFIG,
        parameters,
        tmp_path,
        str(tmp_path / tune.JOURNAL),
        12,
        problems,
    )


def made_up(monkeypatch, at=lambda number: Ended(End.DONE)):
    """Runs whose score is best at a rate of .01; returns their words."""
    made = []

    def train(folder, words, lock, stop, look):
        made.append(words)
        rate = next(w for w in words if "learning_rate" in w).split("=")[1]
        score = 1 - abs(np.log10(float(rate)) + 2) / 4
        lines = [
            {
                "kind": "eval",
                "step": step,
                "stage": 0,
                "epoch": 1.0,
                "val_macro_f1": score * step / 3,
                "merit": score * step / 3,
                "best": True,
            }
            for step in (1, 2, 3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        manifest = {
            "step": 1,
            "files": {"metrics.jsonl": {"bytes": len(text)}},
        }
        (folder / "artifacts.json").write_text(json.dumps(manifest))
        look._looked = 0.0  # It looks once a second.
        if look():
            return Ended(End.CUT)
        return at(len(made))

    monkeypatch.setattr(training, "train", train)
    return made


def test_the_best_config_is_a_recipe(search, monkeypatch):
    made = made_up(monkeypatch)
    study = tune.run(search, signals.StopSignals())
    assert len(made) == 12
    # The recipe's own values come first.
    assert "--config.stages[0].learning_rate=0.004" in made[0]
    states = [trial.state.name for trial in study.trials]
    assert "PRUNED" in states and states.count("COMPLETE") >= 4
    config = loading.load(str(search.workdir / tune.BEST))
    assert config.epochs == 2.0
    best = study.best_trial.user_attrs["words"]
    expected = loading.load(DEMO)
    assert not loading.apply_overrides(expected, ["--config.epochs=2", *best])
    assert loading.plain(config) == loading.plain(expected)


def test_a_stopped_trial_is_resumed_with_its_values(search, monkeypatch):
    stop = signals.StopSignals()

    def at(number):
        if number < 3:
            return Ended(End.DONE)
        stop._stop = signals.Stop(15, 0.0)
        return Ended(End.STOPPED)

    first = made_up(monkeypatch, at)
    tune.run(search, stop)
    assert len(first) == 3
    again = made_up(monkeypatch)
    study = tune.run(search, signals.StopSignals())
    assert again[0] == first[2]
    assert len(study.trials) == 12
    assert all(trial.state.is_finished() for trial in study.trials)


def test_other_fields_do_not_go_on_with_a_search(search, monkeypatch):
    made_up(monkeypatch)
    tune.run(search, signals.StopSignals())
    other = tune.dataclasses.replace(search, overrides=[])
    with pytest.raises(UserError, match="other fields"):
        tune.run(other, signals.StopSignals())


def test_three_failures_in_a_row_are_a_mistake(search, monkeypatch):
    made = made_up(monkeypatch, lambda number: Ended(End.FAILED, "no memory"))
    with pytest.raises(UserError, match=r"three trials .* no memory"):
        tune.run(search, signals.StopSignals())
    assert len(made) == 3


def test_a_storage_of_a_database(search, monkeypatch):
    made_up(monkeypatch)
    url = f"sqlite:///{search.workdir}/search.db"
    search = tune.dataclasses.replace(search, storage=url, trials=2)
    tune.run(search, signals.StopSignals())
    (name,) = optuna.get_all_study_names(url)
    assert len(optuna.load_study(study_name=name, storage=url).trials) == 2


# ---- Recipes that are written -----------------------------------------------


def test_a_written_recipe_says_what_it_is(tmp_path):
    path = recipe_file.write(
        tmp_path / "it.py",
        'It\'s "good".',
        DEMO,
        ["--config.mixing.prob=0.25", "--config.stages[0].augment.flip=0.5"],
        {"stages": "config.stages[:1]"},
    )
    config = loading.load(str(path))
    assert config.mixing.prob == 0.25 and len(config.stages) == 1
    assert config.stages[0].augment.flip == 0.5
    assert path.read_text().startswith("\"\"\"It's 'good'.")


# ---- Learning-rate range test -----------------------------------------------


def curve(steepest=1e-3, lowest=1e-2, noise=0.02):
    rates = np.geomspace(1e-6, 1, 200)
    at = np.log10(rates)
    loss = 2.3 - 1.2 / (1 + np.exp(-6 * (at - np.log10(steepest))))
    loss += np.exp(3 * np.clip(at - np.log10(lowest), -9, 1))
    return rates, loss + np.random.default_rng(0).normal(0, noise, 200)


def test_the_steepest_fall_is_suggested():
    found = lr_range.suggest(*curve())
    assert 5e-4 < found.rate < 2e-3 < found.lowest < 1e-2


def test_a_range_test_of_other_fields_is_refused(tmp_path, monkeypatch):
    rates, losses = curve()

    def train(folder, words, lock, stop, look):
        lines = [
            {
                **{"kind": "train", "step": i + 1, "stage": 0, "epoch": i},
                **{"learning_rate": rate, "loss": loss},
            }
            for i, (rate, loss) in enumerate(zip(rates, losses, strict=True))
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        return Ended(End.CUT)

    monkeypatch.setattr(training, "train", train)
    stop = signals.StopSignals()
    given = DEMO, [], tmp_path, 1e-6
    page = lr_range.run(*given, 1.0, 200, stop)
    assert page.exists()
    with pytest.raises(UserError, match="range test with other fields"):
        lr_range.run(*given, 0.1, 200, stop)
    assert lr_range.run(*given, 1.0, 200, stop) == page


def test_a_loss_that_only_rises_is_told():
    rates = np.geomspace(1e-6, 1, 50)
    with pytest.raises(UserError, match="lower --low"):
        lr_range.suggest(rates, np.linspace(1, 9, 50))
    with pytest.raises(UserError, match="too few"):
        lr_range.suggest(rates[:4], np.ones(4))
