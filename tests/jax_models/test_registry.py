"""Names, parameter counts, and what a wrong name or option says."""

from __future__ import annotations

import jax
import pytest
from flax import nnx

import jax_models
from errors import UserError

PARAMETERS = {  # at 16 classes
    "miniconvnext": 1_599_824,
    "tinyvit_11m": 10_555_156,
    "efficientnetv2_m": 52_878_852,
    "convnextv2_small": 49_561_744,
    "convnextv2_base": 87_709_200,
}


def count(name, **overrides):
    def make():
        return jax_models.create_model(name, 16, **overrides)

    params = nnx.state(nnx.eval_shape(make), nnx.Param)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_model(name):
    assert count(name) == PARAMETERS[name]


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean tinyvit_11m"):
        jax_models.create_model("tinyvit11m", 16)


def test_a_wrong_option_lists_the_options():
    with pytest.raises(UserError, match=r"droppath.*drop_path_rate"):
        jax_models.create_model("tinyvit_11m", 16, droppath=0.1)
