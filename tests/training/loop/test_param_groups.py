"""Which parameters learn, at what rate, with what weight decay.

What a step does with frozen ones is in test_state.py.
"""

import functools

import jax
import pytest
import tiny
from flax import nnx

import jax_models
from configs import common
from core.errors import UserError
from training.loop import param_groups, state
from training.loop.param_groups import ParamGroup

MODELS = (
    "convnextv2_demo",
    "tinyvit_demo",
    "efficientnetv2_demo",
    "miniconvnext_demo",
    "resnet_demo",
    "efficientnet_lite_demo",
)


@functools.cache
def shapes(name):
    """The parameters of a demo model."""
    model = nnx.eval_shape(
        lambda: jax_models.create_model(name, num_classes=4, rngs=nnx.Rngs(0))
    )
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def by_path(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {param_groups.path_of(path): leaf for path, leaf in leaves}


def assigned(model, *rows, **fields):
    """{path: group} of a model under rows of (match, options)."""
    groups = tuple(common.group(match, **options) for match, options in rows)
    stage = common.stage(param_groups=groups, **fields)
    return by_path(param_groups.assign(shapes(model), stage))


# ---- Rows -------------------------------------------------------------------


def test_what_no_row_matches_trains_at_rate_1():
    found = assigned("convnextv2_demo", weight_decay=0.1)
    assert set(found.values()) == {ParamGroup(1.0, 0.1), ParamGroup(1.0, 0.0)}


def test_the_first_row_that_matches_decides():
    found = assigned(
        "convnextv2_demo",
        ("^stem/norm/", {"rate": 3.0}),
        ("^stem/", {"frozen": True}),
        ("^stem/conv/", {"rate": 5.0}),  # Too late.
        ("^head/", {"rate": 10.0}),
    )
    for path, group in found.items():
        if path.startswith("stem/norm/"):
            assert group.rate == 3.0 and not group.frozen
        elif path.startswith("stem/"):
            assert group.frozen
        else:
            rate = 10.0 if path.startswith("head/") else 1.0
            assert group.rate == rate and not group.frozen, path


def test_head_and_encoder_are_all_there_is_and_do_not_overlap():
    for model in MODELS:
        found = assigned(
            model,
            (common.HEAD, {"rate": 2.0}),
            (common.ENCODER, {"frozen": True}),
        )
        for path, group in found.items():
            head = path.startswith("head/")
            assert group.frozen is not head and (group.rate == 2.0) is head


@pytest.mark.parametrize("model", MODELS)
def test_only_kernels_decay(model):
    leaves = by_path(shapes(model))
    found = assigned(model, weight_decay=0.1)
    for path, group in found.items():
        kernel = path.endswith("/kernel")
        assert group.weight_decay == (0.1 if kernel else 0.0), path
        assert not kernel or leaves[path].ndim >= 2


def test_a_row_may_have_a_weight_decay_of_its_own_for_its_kernels():
    found = assigned(
        "convnextv2_demo",
        ("^stem/", {"weight_decay": 0.5}),
        ("^head/", {"weight_decay": 0.0}),
        weight_decay=0.1,
    )
    for path, group in found.items():
        top = path.split("/")[0]
        own = {"stem": 0.5, "head": 0.0}.get(top, 0.1)
        assert group.weight_decay == (own if "kernel" in path else 0.0), path


def test_rates_are_those_of_what_learns():
    stage = common.stage(
        param_groups=(
            common.group("^stem/", frozen=True, rate=7.0),
            common.group("^head/", rate=2.0),
        )
    )
    groups = param_groups.assign(shapes("convnextv2_demo"), stage)
    assert param_groups.rates(groups) == (1.0, 2.0)


# ---- Layer-wise decay -------------------------------------------------------


def depth_of(path):
    """Where a parameter stands in a demo model, written down by hand."""
    top, *rest = path.split("/")
    if top in ("stem", "patch_embed", "conv_stem", "bn1"):
        return (0,)
    if top in ("head", "conv_head", "bn2"):
        return (2,)
    # EfficientNet's blocks/<stage>/<block>, ResNet's stages/<stage>/<block>.
    if rest[1].isdigit():
        return (1, int(rest[0]), int(rest[1]))
    assert top == "stages", path
    if rest[1] == "downsample":  # Belongs to the block after it.
        return (1, int(rest[0]), 0)
    assert rest[1] == "blocks", path
    return (1, int(rest[0]), int(rest[2]))


@pytest.mark.parametrize("model", MODELS)
def test_rates_rise_block_by_block_from_the_stem_to_the_head(model):
    found = assigned(model, layer_decay=0.5)
    depths = sorted({depth_of(path) for path in found})
    for path, group in found.items():
        below_head = len(depths) - 1 - depths.index(depth_of(path))
        assert group.rate == 0.5**below_head, path
    assert {g.rate for p, g in found.items() if p.startswith("head/")} == {1.0}


@pytest.mark.parametrize("model", MODELS)
def test_layer_decay_changes_nothing_but_rates(model):
    plain = assigned(model, weight_decay=0.1)
    decayed = assigned(model, weight_decay=0.1, layer_decay=0.9)
    for path, group in decayed.items():
        assert group.weight_decay == plain[path].weight_decay
        assert not group.frozen


def test_a_row_scales_what_layer_decay_has_left():
    row = ("^(stem|head)/", {"rate": 4.0})
    plain = assigned("tinyvit_demo", layer_decay=0.5)
    scaled = assigned("tinyvit_demo", row, layer_decay=0.5)
    for path, group in scaled.items():
        factor = 4.0 if path.startswith(("stem/", "head/")) else 1.0
        assert group.rate == factor * plain[path].rate


def test_the_tenth_block_comes_after_the_ninth():
    paths = [f"stages/0/blocks/{block}/fc/kernel" for block in range(12)]
    layers = param_groups.layer_of(paths)
    assert [layers[path] for path in paths] == list(range(1, 13))


def test_around_an_encoder_the_rest_is_last():
    """As in a masked autoencoder, whose decoder has numbered layers too."""
    layers = param_groups.layer_of(
        [
            "encoder/stem/conv/kernel",
            "encoder/stages/0/blocks/0/fc/kernel",
            "encoder/stages/0/blocks/1/fc/kernel",
            "layers/0/fc/kernel",
            "mask_token",
        ]
    )
    assert list(layers.values()) == [0, 1, 2, 3, 3]


# ---- Frozen parts -----------------------------------------------------------


def modes(*rows):
    """{path: whether it is in evaluation mode} of the tiny model's modules."""
    model = tiny.build()
    stage = common.stage(param_groups=rows)
    param_groups.set_train_mode(model, stage)
    return {
        "norm": model.norm.use_running_average,
        "first": model.first.deterministic,
        "second": model.second.deterministic,
    }


def test_nothing_frozen_is_all_in_training_mode():
    assert not any(modes().values())


def test_a_frozen_norm_is_in_evaluation_mode_and_the_rest_is_not():
    assert modes(common.group("^(conv|norm)/", frozen=True)) == {
        "norm": True,
        "first": False,
        "second": False,
    }


def test_what_has_no_parameters_is_frozen_by_its_path():
    encoder = common.group(common.ENCODER, frozen=True)
    assert all(modes(encoder).values())
    assert modes(common.group("^first/"), encoder) == {
        "norm": True,
        "first": False,
        "second": True,
    }


def test_a_module_that_learns_in_part_stays_in_training_mode():
    assert not modes(common.group("^norm/scale", frozen=True))["norm"]


# ---- Refusals ---------------------------------------------------------------


def refusal(*rows):
    stages = (common.stage(), common.stage(param_groups=rows))
    with pytest.raises(UserError) as caught:
        param_groups.check(shapes("convnextv2_demo"), stages)
    return str(caught.value)


def test_a_pattern_that_matches_nothing_is_reported_with_what_there_is():
    message = refusal(common.group("^stem/"), common.group("^hed/", rate=2.0))
    assert message == (
        "stages[1].param_groups has match '^hed/', which no parameter of the "
        "model has in its path; paths begin with head, stages, stem"
    )


def test_a_stage_in_which_nothing_learns_is_refused():
    assert "freezes every parameter" in refusal(common.group("", frozen=True))
    message = refusal(
        common.group(common.HEAD, frozen=True),
        common.group(common.ENCODER, frozen=True),
    )
    assert message.startswith("stages[1].param_groups freezes every")


def test_rows_that_match_are_fine():
    params = state.pure_shapes(tiny.Run().abstract_model)[0]
    rows = (common.group(common.HEAD), common.group("norm", frozen=True))
    param_groups.check(params, (common.stage(param_groups=rows),))
