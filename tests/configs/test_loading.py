"""From a recipe's name and overrides to a config, with a hint for a slip."""

import pytest

from configs import loading
from core.errors import UserError

DEMO = "--config=configs/tinyvit_ssl.py:demo"


def parse(*overrides):
    return loading.parse(loading.Parser(), [DEMO, *overrides])[1]


def refusal(override):
    with pytest.raises(UserError) as caught:
        parse(f"--config.{override}")
    return str(caught.value)


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        ("drop_path_rate=0.1", "config.model_options.drop_path_rate?"),
        (
            "stages[1].head_learning_rate=3e-3",
            "config.stages[1].param_groups[…].rate, a factor?",
        ),
        (
            "stages[0].frozen=('encoder',)",
            "config.stages[0].param_groups[…].frozen?",
        ),
        ("stages[1].mixup_prob=0.5", "config.stages[1].mixing.mixup_prob?"),
        ("stages[0].mixup_alpha=0.5", "config.stages[0].mixing.mixup_alpha?"),
        ("stages[0].cutmix_alpha=0.5", "config.stages[0].mixing.cutmix_alpha?"),
    ],
)
def test_a_renamed_field_is_reported_with_its_new_name(earlier, now):
    assert refusal(earlier).endswith(f"did you mean {now}")


def test_no_renamed_field_is_still_there():
    config = parse()
    assert not set(loading._RENAMED) & {*config, *config.stages[0]}


def test_the_fields_that_replace_them_can_be_set():
    config = parse(
        "--config.model_options.drop_path_rate=0.1",
        "--config.stages[1].mixing.mixup_prob=0.5",
        "--config.stages[0].param_groups[0].frozen=False",
        "--config.stages[0].param_groups[0].rate=10",
    )
    assert config.model_options.drop_path_rate == 0.1
    assert config.stages[1].mixing.mixup_prob == 0.5
    assert list(config.stages[1].mixing) == ["mixup_prob"]
    (group,) = config.stages[0].param_groups
    assert not group.frozen and group.rate == 10.0


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("data.rot=x", "config.data.root"),
        ("fold=1", "config.data.fold"),
        ("stages[0].epoch=1", "config.stages[0].epochs"),
        ("stages[7].epochs=1", "config.stages[1].epochs"),
        ("augment.flop=0.5", "config.augment.flip"),
        (
            "stages[0].param_groups[0].frozn=True",
            "config.stages[0].param_groups[0].frozen",
        ),
    ],
)
def test_a_misspelt_field_is_reported_with_the_nearest(override, nearest):
    assert f"did you mean {nearest}?" in refusal(override)


def test_an_option_of_the_model_takes_the_type_of_its_value():
    config = parse(
        "--config.model_options.depths=(2,2)",
        "--config.model_options.drop_path_rate=0.5",
        "--config.model_options.kind=wide",
    )
    assert config.model_options.to_dict() == {
        "depths": (2, 2),
        "drop_path_rate": 0.5,
        "kind": "wide",
    }


def test_an_override_has_the_type_of_its_field():
    assert parse("--config.stages[0].epochs=7").stages[0].epochs == 7.0
    assert "seed=large" in refusal("seed=large")
    assert "give a value of the field's own type" in refusal("image_size=1.5")


def test_of_a_tuple_that_is_given_twice_the_last_one_counts():
    config = parse(
        "--config.eval.tta=('crop','crop_flip')",
        "--config.seed=1",
        "--config.eval.tta=('center',)",
        "--config.seed=2",
    )
    assert config.eval.tta == ("center",)
    assert config.seed == 2
