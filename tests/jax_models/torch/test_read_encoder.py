"""An encoder's weights among published ones, for whatever is around it."""

from __future__ import annotations

import functools

import golden_recipe as recipe
import numpy as np
import pytest
from blocks import small_autoencoder
from flax import nnx

import jax_models
from core.errors import UserError
from jax_models.torch.conversion import export_torch, read_encoder

ENCODER = "efficientnet_lite_demo"


def make(network, encoder=ENCODER):
    return jax_models.create_model(network, 3, encoder=encoder)


@functools.cache
def published(encoder=ENCODER):
    """Of a classifier for 10 classes, random."""
    model = jax_models.create_model(encoder, 10)
    shapes = {k: v.shape for k, v in export_torch(model).items()}
    return recipe.state_dict(shapes)


def imported(encoder=ENCODER):
    """The same weights as {path: array}, through import_torch."""
    model = jax_models.create_model(encoder, 10)
    jax_models.import_torch(model, published(encoder))
    state = nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))
    return {
        tuple(map(str, path)): np.asarray(value[...])
        for path, value in nnx.to_flat_state(state)
    }


def check(found, inside=()):
    expected = imported()
    for path, array in found.arrays.items():
        assert path[: len(inside)] == inside
        right = expected[path[len(inside) :]]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, right)


def test_a_classifiers_go_into_a_network_around_it():
    model = nnx.eval_shape(lambda: make("unet"))
    found = read_encoder(model, published(), "x.pth")
    check(found, ("encoder",))
    kinds = nnx.Any(nnx.Param, nnx.BatchStat)
    assert len(found.arrays) == len(
        nnx.to_flat_state(nnx.state(model.encoder, kinds))
    )
    behind = {name.split(".")[0] for name in found.unused}
    assert behind == {"bn2", "classifier", "conv_head"}


def test_a_classifiers_go_into_a_classifier_for_other_classes():
    model = nnx.eval_shape(lambda: jax_models.create_model(ENCODER, 4))
    found = read_encoder(model, published(), "x.pth")
    check(found)
    assert found.unused == ["classifier.bias", "classifier.weight"]


def test_a_classifiers_go_into_a_masked_autoencoder():
    model = nnx.eval_shape(lambda: small_autoencoder(ENCODER))
    found = read_encoder(model, published(), "x.pth")
    check(found, ("encoder",))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["encoder.", "encoder.model."])
def test_of_a_whole_network_the_encoder_and_an_equal_decoder_are_taken(prefix):
    network = make("unet")
    jax_models.import_torch(
        network,
        recipe.state_dict(
            {k: v.shape for k, v in export_torch(network).items()}
        ),
    )
    weights = {
        prefix + name.removeprefix("encoder.")
        if name.startswith("encoder.")
        else name: array
        for name, array in export_torch(network).items()
    }
    same = read_encoder(nnx.eval_shape(lambda: make("unet")), weights, "x")
    state = nnx.state(network, nnx.Any(nnx.Param, nnx.BatchStat))
    own = {
        tuple(map(str, path)): np.asarray(value[...])
        for path, value in nnx.to_flat_state(state)
    }
    assert set(own) - set(same.arrays) == {
        ("head", "fc", "kernel"),
        ("head", "fc", "bias"),
    }
    for path, array in same.arrays.items():
        np.testing.assert_array_equal(array, own[path])
    assert same.unused == [
        "segmentation_head.0.bias",
        "segmentation_head.0.weight",
    ]
    other = nnx.eval_shape(lambda: make("deeplabv3plus"))
    found = read_encoder(other, weights, "x")
    assert {path[0] for path in found.arrays} == {"encoder"}
    assert any(name.startswith("decoder.") for name in found.unused)


def test_what_does_not_fit_is_named_and_where_it_is_from():
    model = nnx.eval_shape(lambda: make("unet"))
    weights = dict(published())
    stem = weights["conv_stem.weight"]
    weights["conv_stem.weight"] = np.repeat(stem, 2, axis=1)
    del weights["bn1.bias"]
    weights["blocks.0.0.bn1.weight"] = np.zeros(7)
    with pytest.raises(UserError) as raised:
        read_encoder(model, weights, "mine.pth")
    for part in (
        "mine.pth does not fit EfficientNetLite, the encoder",
        "missing: bn1.bias;",
        "conv_stem.weight takes images of 6 channels where the model takes 3",
        "blocks.0.0.bn1.weight has shape [7]",
    ):
        assert part in str(raised.value)


def test_weights_of_another_architecture_are_refused_in_a_short_sentence():
    model = nnx.eval_shape(lambda: make("unet", "resnet18"))
    with pytest.raises(UserError, match=r"missing: bn1.bias, .* and .* more"):
        read_encoder(model, {"a": np.zeros(3)}, "x.pth")
    with pytest.raises(UserError) as raised:
        read_encoder(model, published(), "x.pth")
    assert len(str(raised.value)) < 500
