"""Tasks by name, and what each refuses of a config."""

import subprocess
import sys

import pytest

from configs import (
    common,
    generation,
    loading,
    mae,
    segmentation,
    simclr,
    verification,
)
from core.errors import UserError
from training.tasks import registry
from training.tasks.base import Task
from training.tasks.unread_fields import LOSS_FIELDS

# A value of each field that the default is not.
CHANGED = {
    "loss": "focal",
    "label_smoothing": 0.2,
    "focal_gamma": 1.0,
    "class_weight": 0.5,
    "logit_adjustment": 1.0,
    "distill_from": "teacher",
    "distill_temperature": 2.0,
    "distill_alpha": 0.5,
    "mixing": {"prob": 0.5},
    "effective_number": 0.99,
}


def config_of(task, **fields):
    bases = {
        "segment": segmentation.base,
        "generate": generation.base,
        "verify": verification.base,
    }
    if task in bases:
        config = bases[task]()
        if task == "verify":
            verification.set_batches(config, 16, 4)
    else:
        groups = {"mae": mae.fields, "simclr": simclr.fields}
        own = {task: groups[task]()} if task in groups else {}
        config = common.base(task, **own)
    config.stages = (common.stage(), common.stage(**fields))
    return config


def refusal(config):
    with pytest.raises(UserError) as caught:
        registry.check(config)
    return str(caught.value)


def test_names_are_known_without_jax():
    program = (
        "import sys; from training.tasks import registry; "
        "assert 'classify' in registry.names(); "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_test_time_view_is_refused():
    config = config_of("classify")
    config.eval.tta = ("centre",)
    said = refusal(config)
    assert (
        "eval.tta: there is no view 'centre' (did you mean 'center'?)" in said
    )


def test_every_task_has_its_name_and_a_metric():
    for name in registry.names():
        task = registry.get(name)
        assert task.name == name
        assert set(task.metrics.values()) <= {"max", "min"}
        assert task.metrics and task.loss_fields <= set(LOSS_FIELDS)
        assert registry.check(config_of(name)) is task


def test_an_unknown_task_is_reported_with_the_known_ones():
    with pytest.raises(UserError, match=r"'clasify': choose one of classify"):
        registry.get("clasify")


def test_a_registered_task_is_found_and_checked(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    @registry.register
    class Counting(Task):
        name = "count"
        metrics = {"val_error": "min"}  # noqa: RUF012 (as a task has it)

    assert registry.get("count") is Counting
    assert registry.names()[-1] == "count"
    message = refusal(config_of("count", loss="focal"))
    assert message == (
        "stages[1].loss has no effect on the count task: leave it out"
    )


@pytest.mark.parametrize("field", LOSS_FIELDS)
def test_a_field_that_a_task_does_not_read_must_stay_as_it_is(field):
    change = {field: CHANGED[field]}
    message = refusal(config_of("mae", **change))
    assert f"stages[1].{field} has no effect on the mae task" in message
    assert registry.check(config_of("classify", **change)).name == "classify"


@pytest.mark.parametrize("task", ["mae", "simclr", "generate"])
def test_mixing_is_refused_where_nothing_is_mixed(task):
    config = config_of(task)
    for field, value in (("prob", 0.5), ("mixup_alpha", 0.3)):
        changed = config.copy_and_resolve_references()
        changed.mixing.update({"prob": 0.0, "erase_prob": 0.0, field: value})
        assert refusal(changed) == (
            f"mixing.{field} is {value} and has no effect on the {task} task: "
            "leave it out"
        )
    config.mixing.update(prob=0.0, erase_prob=0.0)
    assert registry.check(config).name == task
    config = config_of("classify")
    config.mixing.prob = 0.5
    assert registry.check(config).name == "classify"


def test_a_task_that_chooses_no_views_is_not_asked_to():
    config = config_of("mae")
    config.eval.tta = ("auto", "center")
    assert "the mae task chooses no views" in refusal(config)
    config = config_of("classify")
    config.eval.tta = ("auto", "center")
    assert registry.check(config).chooses_views


def test_a_metric_that_the_task_does_not_measure_is_refused():
    config = config_of("mae")
    config.checkpoint.metric = "val_macro_f1"
    message = refusal(config)
    assert message == (
        "checkpoint.metric is 'val_macro_f1': the mae task has val_loss"
    )
    config = config_of("classify")
    config.checkpoint.metric = "val_f1"
    assert "val_macro_f1, val_accuracy, val_loss" in refusal(config)


def test_all_complaints_of_a_task_come_at_once():
    config = config_of("classify", loss="focall")
    config.checkpoint.metric = "val_f1"
    message = refusal(config)
    assert "stages[1].loss is 'focall': choose one of cross_entropy" in message
    assert "checkpoint.metric" in message


@pytest.mark.parametrize(
    ("metric", "merit"),
    [("", 0.5), ("val_macro_f1", 0.5), ("val_loss", -2.0)],
)
def test_more_merit_is_better_whatever_the_metric(metric, merit):
    config = loading.load("configs/miniconvnext.py:demo")
    config.checkpoint.metric = metric
    task = registry.check(config)(config, ("a", "b"))
    scores = {"val_macro_f1": 0.5, "val_accuracy": 0.7, "val_loss": 2.0}
    assert task.merit(scores, 1) == merit
