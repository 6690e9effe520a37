"""Ways to train on from given weights: what learns, and what stays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_models
from configs import common, loading, transfer
from jax_models import layers
from training.config import problems
from training.loop import param_groups

RECIPE = "configs/efficientnet_lite0.py"
VARIANTS = (
    "",
    ":fine_tune",
    ":linear_probe",
    ":layer_decay",
    ":gradual",
    ":scratch",
    ":short",
    ":demo",
)
MODELS = (
    "efficientnet_lite_demo",
    "convnextv2_demo",
    "efficientnetv2_demo",
    "resnet_demo",
    "tinyvit_demo",
)


@functools.cache
def params(name):
    model = nnx.eval_shape(lambda: jax_models.create_model(name, 4))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def by_path(stage, model="efficientnet_lite_demo"):
    groups = param_groups.assign(params(model), stage)
    leaves = jax.tree_util.tree_flatten_with_path(groups)[0]
    return {param_groups.path_of(path): group for path, group in leaves}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_train(variant):
    config = loading.load(RECIPE + variant)
    assert not list(problems(config))
    for stage in config.stages:
        # All patterns mean something, and something learns.
        model = "efficientnet_lite0"
        param_groups.check(params(model), [stage])
    assert bool(config.init_from) == (variant not in (":scratch", ":demo"))


def test_an_unknown_variant_is_told():
    with pytest.raises(Exception, match="not one of fine_tune"):
        loading.load(f"{RECIPE}:finetune")


def test_the_encoder_learns_after_the_head_and_more_slowly():
    first, second = transfer.fine_tune(2e-3, 9.0, encoder_rate=0.1)
    assert {p for p, g in by_path(first).items() if not g.frozen} == {
        "head/fc/kernel",
        "head/fc/bias",
    }
    found = by_path(second)
    assert not any(group.frozen for group in found.values())
    assert found["head/fc/kernel"].rate == 1.0
    assert found["conv_stem/kernel"].rate == 0.1


def test_layer_decay_is_slowest_at_the_stem():
    (stage,) = transfer.layer_decay(decay=0.5)
    found = by_path(stage)
    assert found["head/fc/kernel"].rate == 1.0
    rates = [found[f"blocks/{i}/0/bn1/scale"].rate for i in range(5)]
    assert rates == sorted(rates) and rates[0] < rates[-1] < 1
    assert found["conv_stem/kernel"].rate < rates[0]


def test_gradual_unfreezing_thaws_one_part_more_in_each_stage():
    parts = (r"^head/", r"^(conv_head|bn2)/", "")
    stages = transfer.gradual_unfreezing(parts, 1e-3, 9.0)
    learning = [
        {p.split("/")[0] for p, g in by_path(stage).items() if not g.frozen}
        for stage in stages
    ]
    assert learning[0] == {"head"}
    assert learning[1] == {"head", "conv_head", "bn2"}
    assert learning[2] == {"head", "conv_head", "bn2"} | {
        *("conv_stem", "bn1", "blocks")
    }
    assert [stage.learning_rate for stage in stages] == [1e-3, 5e-4, 2.5e-4]
    assert [stage.epochs for stage in stages] == [3.0, 3.0, 3.0]


# ---- Normalisation ----------------------------------------------------------


def learning_norms(stage, model):
    """Whether each BatchNorm learns from batches; test_state.py runs one."""
    made = nnx.eval_shape(lambda: jax_models.create_model(model, 4))
    param_groups.set_train_mode(made, stage)
    return [
        not module.use_running_average
        for _, module in nnx.iter_modules(made)
        if isinstance(module, layers.BatchNorm)
    ]


@pytest.mark.parametrize("model", ["efficientnet_lite_demo", "resnet_demo"])
def test_frozen_statistics_stay_and_others_move(model):
    (probe,) = transfer.linear_probe()
    (plain,) = transfer.layer_decay()
    (frozen,) = transfer.with_frozen_norms([plain])
    (thawed,) = transfer.with_training_norms([probe])
    assert len(learning_norms(plain, model)) > 5
    assert not any(learning_norms(probe, model))
    assert all(learning_norms(plain, model))
    assert not any(learning_norms(frozen, model))
    assert all(learning_norms(thawed, model))
    # The convolutions go on learning without their norms.
    found = by_path(frozen, model)
    assert not any(g.frozen for p, g in found.items() if "conv" in p)


@pytest.mark.parametrize("model", MODELS)
def test_norms_are_found_by_their_names_in_every_model(model):
    made = nnx.eval_shape(lambda: jax_models.create_model(model, 4))
    kinds = ("BatchNorm", "LayerNorm")
    norms = {
        "/".join(map(str, path))
        for path, module in nnx.iter_modules(made)
        if type(module).__name__ in kinds
    }
    stage = common.stage(
        param_groups=(common.group(transfer.NORMS, frozen=True),)
    )
    found = by_path(stage, model)
    frozen = {
        path.rpartition("/")[0] for path, group in found.items() if group.frozen
    }
    assert frozen == norms


# ---- A classifier that starts from zero -------------------------------------


def test_a_zero_head_answers_nothing_and_learns_at_once():
    name = "efficientnet_lite_demo"
    made = jax_models.create_model(name, 4, nnx.Rngs(0), zero_head=True)
    other = jax_models.create_model(name, 4, nnx.Rngs(0))
    ours, theirs = (
        dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
        for model in (made, other)
    )
    differ = {
        path
        for path, value in ours.items()
        if not np.array_equal(value[...], theirs[path][...])
    }
    assert differ == {("head", "fc", "kernel")}
    width = made.head.fc.kernel.shape[0]
    features = np.random.default_rng(0).random((2, 3, 3, width))
    features = jnp.asarray(features, "float32")
    made.head.eval()
    assert not np.any(made.head(features) - made.head.fc.bias[...])

    def loss(head):
        return -jax.nn.log_softmax(head(features))[:, 0].sum()

    assert np.any(nnx.grad(loss)(made.head).fc.kernel[...])


def test_a_zero_head_is_no_matter_of_the_encoder():
    assert jax_models.encoder_name("unet", zero_head=True) == "resnet34"
