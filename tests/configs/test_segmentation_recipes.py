"""Recipes for masks: every variant passes all checks, and says what it is."""

import pytest

from configs import loading
from core.errors import UserError
from training import config as config_lib
from training.tasks import registry

VARIANTS = {
    "unet": ("", ":pretrained", ":short", ":demo"),
    "deeplabv3plus": ("", ":short", ":demo"),
}


@pytest.mark.parametrize(
    "recipe",
    [f"{name}.py{v}" for name, found in VARIANTS.items() for v in found],
)
def test_every_variant_passes_all_checks(recipe):
    config = loading.load(f"configs/{recipe}")
    assert config.task == "segment"
    assert not list(config_lib.problems(config))
    registry.check(config)
    assert bool(config.init_from) == recipe.endswith(":pretrained")


def test_another_variant_is_refused():
    with pytest.raises(UserError, match="pretrained, short, demo"):
        loading.load("configs/unet.py:long")
