"""SimCLR, distillation and the strong chain, as their papers have them."""

import pytest

from configs import common, loading
from training import config as config_lib
from training.tasks import registry

VARIANTS = [
    *(
        f"tinyvit_{name}{variant}"
        for name in ("simclr.py", "distilled.py")
        for variant in ("", ":short", ":demo")
    ),
    "tinyvit.py:strong",
    "tinyvit.py:short_strong",
]


def recipe(name):
    return loading.load(f"configs/{name}")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_passes_all_checks(name):
    config = recipe(name)
    assert not list(config_lib.problems(config))
    registry.check(config)


@pytest.mark.parametrize("name", ["tinyvit_simclr", "tinyvit_distilled"])
def test_an_unknown_variant_is_told(name):
    with pytest.raises(Exception, match="not one of short, demo"):
        recipe(f"{name}.py:smal")


@pytest.mark.parametrize(("variant", "s"), [("", 1.0), (":short", 0.5)])
def test_views_are_augmented_as_simclr_does(variant, s):
    augment = recipe(f"tinyvit_simclr.py{variant}").augment
    assert tuple(augment.jitter) == pytest.approx((0.8 * s,) * 3 + (0.2 * s,))
    assert augment.jitter_prob == 0.8 and augment.grayscale == 0.2
    assert augment.flip == 0.5 and augment.randaugment_ops == 0
    crop, blur = ((0.08, 1.0), 0.5) if s == 1 else ((0.2, 1.0), 0.0)
    assert tuple(augment.crop_scale) == crop and augment.blur == blur


def test_what_simclr_compares():
    config = recipe("tinyvit_simclr.py")
    assert config.simclr.temperature == 0.5 and config.simclr.outputs == 128
    (stage,) = config.stages
    assert stage.batch_size == 256  # 128 photos
    assert stage.learning_rate == 1e-3 and stage.weight_decay == 1e-2


@pytest.mark.parametrize("variant", ["", ":short", ":demo"])
def test_a_student_has_soft_targets_of_the_teacher_alone(variant):
    config = recipe(f"tinyvit_distilled.py{variant}")
    for stage in config.stages:
        assert stage.label_smoothing == 0  # Hard labels beside it.
        assert stage.distill_from == "convnextv2_small"
        assert stage.distill_temperature == 4 and stage.distill_alpha == 0.7
    assert not config.init_from


def erasers(config, stage):
    """How many things take pixels away from one image."""
    augment = common.merged(config, stage, "augment")
    mixing = common.merged(config, stage, "mixing")
    return (augment["coarse_dropout"] > 0) + (mixing["erase_prob"] > 0)


@pytest.mark.parametrize("name", VARIANTS)
def test_no_recipe_erases_an_image_twice(name):
    config = recipe(name)
    for stage in config.stages:
        strong = name.endswith("strong")
        assert erasers(config, stage) <= 1
        assert erasers(config, stage) == 1 or not strong


@pytest.mark.parametrize("short", ["", "short_"])
def test_the_strong_variant_differs_in_augmentation_alone(short):
    plain = recipe(f"tinyvit.py:{short}".rstrip(":_"))
    strong = recipe(f"tinyvit.py:{short}strong")
    one, two = (loading.plain(config) for config in (plain, strong))
    # A short training erases nothing before.
    changed = {"augment"} if short else {"augment", "mixing"}
    assert {key for key in one if one[key] != two[key]} == changed
    assert strong.augment.randaugment_ops == 2
    assert strong.augment.randaugment_magnitude == 9
    assert tuple(strong.augment.crop_scale) == (0.65, 1.0)
    for name in ("gamma", "blur", "downscale", "jpeg"):
        assert strong.augment[name] == 0.2
