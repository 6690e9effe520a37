"""Declared fields: their defaults, their checks, and where these apply."""

import math

import pytest

from configs import common, fields, loading, mae
from run_folder.identity import flatten


def complaints(config):
    return list(fields.complaints(flatten(loading.plain(config))))


# ---- Checks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "accepted", "refused"),
    [
        (fields.positive, (1e-12, 1, 2.5), (0, -1e-12, -3)),
        (fields.not_negative, (0, 0.0, 7), (-1, -1e-12)),
        (fields.share, (0, 0.5, 1), (-0.01, 1.01)),
        (fields.below_one, (0, 0.999), (1, 1.0, -0.1)),
        (fields.between(0, 1), (0.01, 0.99), (0, 1, -1, 2)),
        (fields.at_least(2), (2, 3.5), (1, 1.99, -1)),
        (fields.at_least_or_all(0), (0, 5, -1), (-2, -7)),
        (fields.at_least_or_all(1), (1, 8, -1), (0, -2)),
        (fields.up_to(30), (0, 9, 30), (-1, 31)),
        (
            fields.renames,
            ((), (r"^(a)\. -> \1_",)),
            (("a",), ("( -> b",), (r"a -> \1",)),
        ),
        (fields.one_of("a", "b"), ("a", "b"), ("", "c", "ab")),
        (
            fields.ascending(),
            ((0.1, 0.2), (0.3, 0.3), (1, 50)),
            ((), (1,), (1, 2, 3), (0, 1), (-1, 1), (2, 1)),
        ),
        (fields.ascending(1), ((0.5, 1.0), (1, 1)), ((0.5, 1.1), (2, 3))),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_a_check_accepts_and_refuses(check, accepted, refused):
    for value in accepted:
        assert check(value) == "", value
    for value in refused:
        assert check(value), value
        assert "\n" not in check(value)


def test_one_of_lists_what_there_is():
    assert fields.one_of("a", "b")("c") == "choose one of a, b"


# ---- Declarations -----------------------------------------------------------


def test_a_group_has_the_defaults_of_its_fields():
    group = fields.declare(
        "test_defaults",
        plain="text",
        checked=fields.Field(3, fields.at_least(2)),
        nested=fields.declare("test_defaults.nested", deep=fields.Field(0.5)),
    )
    assert group.to_dict() == {
        "plain": "text",
        "checked": 3,
        "nested": {"deep": 0.5},
    }


def test_a_field_is_checked_under_the_path_of_its_group():
    fields.declare("test_paths", n=fields.Field(1, fields.at_least(1)))
    fields.declare("test_paths.inner", n=fields.Field(1, fields.at_least(5)))
    plain = {"test_paths.n": 0, "test_paths.inner.n": 4}
    assert list(fields.complaints(plain)) == [
        "test_paths.n is 0: take 1 or more",
        "test_paths.inner.n is 4: take 5 or more",
    ]
    assert not list(fields.complaints({"elsewhere.n": 0}))


def test_text_in_place_of_a_number_is_a_complaint_and_no_crash():
    fields.declare("test_types", x=fields.Field((1.0, 2.0), fields.ascending()))
    (message,) = fields.complaints({"test_types.x": [1.0, "two"]})
    assert message == "test_types.x is [1.0, 'two']: it must hold numbers"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_config_may_be_infinite(value):
    """Also in a field that has no check of its own, and inside of lists."""
    plain = {"unknown.a": value, "b": [1.0, value]}
    messages = list(fields.complaints(plain))
    assert len(messages) == 2
    assert all("it must be finite" in message for message in messages)


def test_the_defaults_pass_their_own_checks():
    config = common.base("mae", mae=mae.fields())
    config.stages = (
        common.stage(param_groups=(common.group(common.HEAD),)),
        common.one_cycle(),
    )
    assert complaints(config) == []


# ---- Fields of recipes ------------------------------------------------------

# A value out of range for every field of a stage that can be out of range.
WRONG = {
    "epochs": 0.0,
    "batch_size": 1,
    "accumulate": 0,
    "schedule": "cosin",
    "learning_rate": 0.0,
    "end_rate": -1e-6,
    "start_factor": 0.0,
    "warmup": 1.0,
    "restart_epochs": 0.0,
    "restart_factor": 0.5,
    "step_epochs": -1.0,
    "step_factor": 0.0,
    "weight_decay": -0.1,
    "betas": (0.9, 1.0),
    "clip_norm": -1.0,
    "layer_decay": 0.0,
    "ema_decay": 1.0,
    "patience": -1,
    "label_smoothing": 1.0,
    "focal_gamma": -1.0,
    "class_weight": -1.0,
    "effective_number": 1.0,
    "time_decay": -0.1,
    "logit_adjustment": -1.0,
    "distill_temperature": 0.0,
    "distill_alpha": 1.5,
}


@pytest.mark.parametrize("field", WRONG)
def test_a_stages_field_is_checked_and_named_with_its_number(field):
    config = common.base()
    config.stages = (common.stage(), common.stage(**{field: WRONG[field]}))
    (message,) = complaints(config)
    assert message.startswith(f"stages[1].{field} is "), message


def test_all_fields_of_a_stage_are_checked_but_those_that_take_anything():
    unchecked = set(common.stage()) - set(WRONG)
    assert unchecked == {
        "loss",  # by the task
        "distill_from",
        "augment",  # field by field
        "mixing",
        "param_groups",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"augment": {"flip": 7.0}}, "stages[0].augment.flip is 7.0: it must"),
        (
            {"augment": {"jitter": (0.4, 0.4, 0.4, 0.9)}},
            "stages[0].augment.jitter is [0.4, 0.4, 0.4, 0.9]: it must be four",
        ),
        ({"mixing": {"prob": -0.5}}, "stages[0].mixing.prob is -0.5: it must"),
        (
            {"mixing": {"erase_area": (0.5, 3.0)}},
            "stages[0].mixing.erase_area is [0.5, 3.0]: a share",
        ),
    ],
)
def test_what_a_stage_overrides_is_checked_as_the_whole_configs(
    overrides, message
):
    config = common.base()
    config.stages = (common.stage(**overrides),)
    (found,) = complaints(config)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            common.group("^head/", rate=0.0),
            "stages[0].param_groups[1].rate is 0.0: it must be positive",
        ),
        (
            common.group("^head/", weight_decay=-0.5),
            "stages[0].param_groups[1].weight_decay is -0.5: take 0 or more, "
            "or -1",
        ),
    ],
)
def test_parameter_groups_are_checked(group, message):
    config = common.base()
    rows = (common.group("a"), group)
    config.stages = (common.stage(param_groups=rows),)
    assert complaints(config) == [message]


def test_a_stage_has_no_fields_but_its_own():
    with pytest.raises(ValueError, match=r"no field drop, rate$"):
        common.stage(rate=1.0, drop=0.5)
    with pytest.raises(AttributeError):
        common.stage().epoch = 3.0
