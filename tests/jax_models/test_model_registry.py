"""Names, sizes, published rates, and what a wrong name or option says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from core.errors import UserError
from jax_models import costs, layers, registry

# Parameters at 16 classes, as timm 1.0.31 and torchvision 0.29 count them;
# stochastic depth of the last block and dropout before the classifier, as
# published for training from scratch (EfficientNetV2's last of n blocks has
# .2 * (n - 1) / n).
PUBLISHED = {
    "miniconvnext": (1_599_824, 0, 0),
    "tinyvit_5m": (5_076_900, 0, 0),
    "tinyvit_11m": (10_555_156, 0.1, 0),
    "tinyvit_21m": (20_630_800, 0.2, 0),
    "efficientnetv2_s": (20_197_984, 0.2 * 39 / 40, 0.2),
    "efficientnetv2_m": (52_878_852, 0.2 * 56 / 57, 0.3),
    "efficientnetv2_l": (117_254_768, 0.2 * 78 / 79, 0.4),
    "convnextv2_atto": (3_392_536, 0.1, 0),
    "convnextv2_femto": (4_854_400, 0.1, 0),
    "convnextv2_pico": (8_561_488, 0.1, 0),
    "convnextv2_nano": (14_993_056, 0.1, 0),
    "convnextv2_tiny": (27_878_800, 0.1, 0),
    "convnextv2_small": (49_561_744, 0.4, 0),
    "convnextv2_base": (87_709_200, 0.5, 0),
    "convnextv2_large": (196_444_432, 0.5, 0),
    "resnet18": (11_184_720, 0, 0),
    "resnet34": (21_292_880, 0, 0),
    "resnet50": (23_540_816, 0, 0),
    "efficientnet_lite0": (3_391_504, 0.2 * 14 / 16, 0.2),
    "efficientnet_lite1": (4_156_176, 0.2 * 19 / 21, 0.2),
    "efficientnet_lite2": (4_831_568, 0.2 * 19 / 21, 0.3),
    "efficientnet_b0": (4_028_044, 0.2 * 14 / 16, 0.2),
    "mobilenetv2": (2_244_368, 0, 0.2),
    "inception_v4": (41_167_408, 0, 0.2),
    "densenet121": (6_970_256, 0, 0),
}
# Those for images of 32 px at 10 classes, as their papers count them, and
# the largest ones of families at 1000.
AT_10 = {
    "densenet_bc_100_12": 769_162,
    "densenet_40_12": 1_019_722,
    "densenet_bc_190_40": 25_624_430,
    "wide_resnet_28_10": 36_479_194,
    "wide_resnet_16_8": 10_961_370,
    "wide_resnet_16_4": 2_748_890,
    "wide_resnet_40_4": 8_949_210,
}
AT_1000 = {
    "densenet121": 7_978_856,
    "mobilenetv2": 3_504_872,
    "inception_v4": 42_679_816,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
}
# All numbers and the trained ones at 10 classes, as Keras counts them.
REFERENCE = {
    "digits_cnn2": (334_562, 334_258),
    "digits_cnn3": (334_562, 334_258),
    "digits_resnet1": (5_194_762, 5_188_490),
    "digits_resnet2": (5_194_762, 5_188_490),
    "digits_resnet3": (5_194_762, 5_188_490),
    "digits_unet1": (11_232_997, None),
    "digits_unet2": (4_897_517, None),
    "digits_densenet1": (7_053_642, None),
    "digits_densenet2": (1_533_997, 1_506_495),
    "digits_densenet22": (1_533_997, 1_506_495),
}
LATER = (
    *("efficientnetv2_s", "efficientnetv2_l", "convnextv2_large"),
    *("inception_v4", "densenet121"),
)
QUICK = ("wide_resnet_16_4", "densenet_40_12", "efficientnet_b1")


def test_every_name_is_published_or_a_demo():
    names = jax_models.list_models()
    demos = [name for name in names if name.endswith("_demo")]
    others = {*AT_10, *AT_1000, *REFERENCE}
    assert set(names) == {*PUBLISHED, *demos} | others
    assert len(names) == len(set(names))


def test_models_are_listed_by_patterns():
    names = jax_models.list_models()
    assert names.matching(["*"]) == names
    found = names.matching(["tinyvit_demo", "resnet[13]*"])
    assert found == ("tinyvit_demo", "resnet18", "resnet34")
    *head, small, middle, large = found.table()
    assert len(head) == 2
    assert small.split()[0] == "tinyvit_demo"
    assert middle.split() == [
        "resnet18",
        "11,689,512",
        "1.81",
        "G",
        "224",
        "px",
    ]
    assert large.split()[:2] == ["resnet34", "21,797,672"]
    with pytest.raises(UserError, match=r"'resnet19' .* did you mean resnet18"):
        names.matching(["resnet*", "resnet19"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LATER else name
        for name in PUBLISHED
    ],
)
def test_parameters_and_rates_are_the_published_ones(name):
    model = nnx.eval_shape(lambda: jax_models.create_model(name, 16))
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    rates = [
        module.rate
        for _, module in nnx.iter_modules(model)
        if isinstance(module, layers.DropPath)
    ]
    parameters, drop_path, dropout = PUBLISHED[name]
    assert sum(leaf.size for leaf in params) == parameters
    np.testing.assert_allclose(max(rates, default=0), drop_path, rtol=1e-6)
    # EfficientNet's first blocks have no shortcut, and so has its last.
    assert min(rates, default=0) == 0 or name.startswith("efficientnet_")
    assert model.head.dropout.rate == dropout


def abstract(name, classes, **options):
    return nnx.eval_shape(
        lambda: jax_models.create_model(name, classes, **options)
    )


def count(model, *kinds):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, kinds)))


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        pytest.param(
            *(name, classes, parameters),
            marks=[] if name in QUICK else pytest.mark.slow,
        )
        for classes, table in ((10, AT_10), (1000, AT_1000))
        for name, parameters in table.items()
    ],
)
def test_parameters_of_the_zoo(name, classes, parameters):
    assert count(abstract(name, classes), nnx.Param) == parameters


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("digits_densenet1", "digits_densenet22")
        else name
        for name in REFERENCE
    ],
)
def test_numbers_of_the_reference_for_digits(name):
    """BatchNorm's statistics among them."""
    model = abstract(name, 10)
    everything, trained = REFERENCE[name]
    assert count(model, nnx.Param, nnx.BatchStat) == everything
    assert trained in (None, count(model, nnx.Param))


def test_the_reference_for_digits_cropped():
    model = abstract("digits_resnet3", 10, image_size=(32, 26))
    assert count(model, nnx.Param, nnx.BatchStat) == 5_174_282
    with pytest.raises(UserError, match="32 x 26 pixels, not 32 x 32"):
        model.check(jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("convnextv2_atto", "0.55"),
        ("tinyvit_5m", "1.3"),
        ("mobilenetv2", "0.30"),
        pytest.param("efficientnet_b0", "0.39", marks=pytest.mark.slow),
        pytest.param("tinyvit_21m", "4.3", marks=pytest.mark.slow),
        pytest.param("convnextv2_base", "15.4", marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_are_the_published_ones(name, published):
    """In units of 1e9, at 224 px and 1000 classes, to the papers' digits."""
    model = nnx.eval_shape(lambda: jax_models.create_model(name, 1000))
    digits = len(published.partition(".")[2])
    found = costs.measure(model).multiply_adds / 1e9
    assert f"{found:.{digits}f}" == published


def test_multiply_adds_of_one_layer():
    """Each kind of layer, by hand."""
    model = nnx.eval_shape(
        lambda: jax_models.create_model(
            "miniconvnext_demo", 10, depths=(1,), dims=(8,)
        )
    )
    cells = 4 * 4
    block = cells * 8 * 7 * 7 + 2 * cells * 8 * 32
    by_hand = cells * 8 * (4 * 4 * 3) + block + 8 * 10
    assert costs.measure(model, 16).multiply_adds == by_hand


def test_the_table_names_every_model_once():
    names = registry.ModelNames(("miniconvnext_demo", "tinyvit_demo"))
    lines = str(names).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(names)
    assert "336,776" in lines[2]


def test_a_wrong_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean tinyvit_11m"):
        jax_models.create_model("tinyvit11m", 16)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 10.0])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(UserError, match="from 0 to below 1"):
        jax_models.create_model("convnextv2_demo", 16, drop_path_rate=rate)
    with pytest.raises(UserError, match=f"share of {rate:g}"):
        jax_models.create_model("tinyvit_demo", 16, dropout=rate)


def test_a_wrong_option_lists_the_options():
    with pytest.raises(UserError, match=r"droppath.*drop_path_rate"):
        jax_models.create_model("tinyvit_11m", 16, droppath=0.1)
