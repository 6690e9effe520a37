"""What a config must fulfil as a whole, and what of it makes up a run."""

import json

import pytest

from configs import common, loading
from run_folder import identity
from training import config as config_lib

DEMO = "configs/miniconvnext.py:demo"


def problems_of(recipe=DEMO, **fields):
    config = loading.load(recipe)
    for path, value in fields.items():
        config.update_from_flattened_dict({path.replace("__", "."): value})
    return list(config_lib.problems(config))


def test_the_recipes_own_fields_are_fine():
    assert problems_of() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__fold": 9}, "data.fold is 9: with 5 folds it runs from 0 to 4"),
        ({"task": "clasify"}, "task is 'clasify': choose one of classify, mae"),
        ({"stages": ()}, "stages is empty: list at least one stage"),
        ({"eval__tta": ()}, "eval.tta is empty: name at least the view"),
        (
            {"data__generated_share": 1.0},
            "data.generated_share is 1.0 and there are no generated images",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_named(fields, message):
    (found,) = problems_of(**fields)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_size": 64, "accumulate": 5},
            "accumulate is 5: take a divisor of batch_size, 64",
        ),
        (
            {"learning_rate": 1e-3, "end_rate": 1.0},
            "end_rate is 1.0: it is above learning_rate",
        ),
        (
            {"param_groups": (common.group("(", rate=2.0),)},
            "param_groups[0].match is '(': it is no regular expression",
        ),
        (
            {"param_groups": (common.group("a"), {"match": "b"})},
            "param_groups[1] is {'match': 'b'}: list them in the recipe",
        ),
        ({"param_groups": ("^head/",)}, "param_groups[0] is '^head/': list"),
        ({"augment": {"flop": 0.5}}, "augment.flop is no field of"),
        ({"mixing": {"alpha": 0.5}}, "mixing.alpha is no field of"),
    ],
)
def test_a_mistake_in_a_stage_is_reported_with_its_number(fields, message):
    config = loading.load(DEMO)
    config.stages = (common.stage(), common.stage(**fields))
    (found,) = config_lib.problems(config)
    assert found.startswith(f"stages[1].{message}")


def test_values_that_are_wrong_alone_are_not_compared():
    config = loading.load(DEMO)
    config.stages = (
        common.stage(accumulate=0, batch_size=1),
        common.stage(end_rate=1.0),
    )
    config.data.folds = 1
    found = list(config_lib.problems(config))
    assert [message.partition(" ")[0] for message in found] == [
        "data.folds",
        "stages[0].accumulate",
        "stages[0].batch_size",
        "stages[1].end_rate",
    ]


def with_overrides(**fields):
    config = loading.load(DEMO)
    config.update(fields)
    return config


def test_hash_changes_with_what_shapes_the_run_and_with_nothing_else():
    def hash_of(config):
        return identity.config_hash(loading.plain(config), {})

    plain = hash_of(with_overrides())
    assert hash_of(with_overrides(workers=3, cache_dir="/x")) == plain
    faster = with_overrides(remat=True)
    faster.mesh.fsdp = 4
    faster.stages[0].accumulate = 2
    assert hash_of(faster) == plain
    assert hash_of(with_overrides(seed=1)) != plain
    decayed = with_overrides()
    decayed.stages[1].weight_decay = 0.5
    assert hash_of(decayed) != plain
    grouped = with_overrides()
    grouped.stages[1].param_groups = (common.group(common.HEAD, rate=2.0),)
    assert hash_of(grouped) != plain


def test_differences_name_field_and_both_values():
    config = loading.load(DEMO)
    earlier = json.loads(json.dumps(loading.plain(config)))
    now = loading.plain(config)
    assert identity.differences(now, earlier) == []
    earlier["seed"] = 7
    earlier["stages"][0]["epochs"] = 1.5
    earlier["workers"] = 12
    assert identity.differences(now, earlier) == [
        "seed: 7 -> 42",
        "stages.0.epochs: 1.5 -> 18.0",
    ]


@pytest.mark.parametrize("name", ["num_classes", "dtype", "rngs", "remat"])
def test_what_has_a_field_of_its_own_is_no_model_option(name):
    (message,) = problems_of(model_options={name: 1})
    assert message.startswith(f"model_options.{name} cannot be set")


def test_epochs_scale_all_stages_in_proportion():
    config = loading.load("configs/miniconvnext.py")
    config.epochs = 35.0
    stages = config_lib.scaled_stages(config)
    assert sum(stage.epochs for stage in stages) == pytest.approx(35)
    assert [stage.epochs for stage in stages] == pytest.approx(
        [7.5, 7.5, 10, 5, 5]
    )
    assert stages[2].restart_epochs == pytest.approx(2)
    assert config.stages[0].epochs == 75  # The recipe itself is unchanged.
