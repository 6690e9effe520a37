"""Recipes for digits of 32 px: what was wrong in the reference is right."""

from pathlib import Path

import pytest

import jax_models
from configs import loading
from core.errors import UserError
from training import config as config_lib
from training.tasks import registry

RECIPES = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "configs").glob("digits32_*.py")
)


@pytest.mark.parametrize("variant", ["", ":short"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_variant_passes_all_checks(name, variant):
    config = loading.load(f"configs/{name}.py{variant}")
    assert not list(config_lib.problems(config))
    registry.check(config)
    assert config.model in jax_models.list_models()
    assert config.data.clean_impulses
    assert config.data.group_column == "group"
    assert config.augment.flip == 0  # A mirrored digit is another digit.
    assert config.augment.rotate <= 15
    (stage,) = config.stages
    assert stage.schedule == "one_cycle" and stage.weight_decay > 0
    assert (stage.epochs < 50) == (variant == ":short")


def test_there_are_some_and_another_variant_is_refused():
    assert len(RECIPES) == 6
    with pytest.raises(UserError, match="short"):
        loading.load("configs/digits32_densenet.py:demo")
