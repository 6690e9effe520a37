"""Weights from and to PyTorch: exact, complete, and without running code."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import golden_models
import golden_recipe as recipe
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import jax_models
from core.errors import UserError
from jax_models.torch import conversion, files

GOLDENS = Path(__file__).parents[1] / "goldens"
DEMOS = [name for name in jax_models.list_models() if name.endswith("_demo")]


@pytest.fixture
def model():
    return blank("tinyvit_demo")


@pytest.fixture
def weights(model):
    return golden_models.recipe_weights(model)


def blank(name, classes=recipe.CLASSES, **options):
    return golden_models.blank(
        lambda: jax_models.create_model(name, classes, **options)
    )


@pytest.mark.parametrize("name", DEMOS)
def test_round_trips_are_bit_exact(name):
    model = blank(name)
    weights = golden_models.recipe_weights(model)
    assert jax_models.import_torch(model, weights) is model
    exported = jax_models.export_torch(model)
    assert set(exported) == set(weights)
    for key, value in weights.items():
        assert exported[key].dtype == value.dtype
        np.testing.assert_array_equal(exported[key], value)
    other = blank(name)
    jax_models.import_torch(other, exported)
    kinds = (nnx.Param, nnx.BatchStat)
    for ours, theirs in zip(
        nnx.to_flat_state(nnx.state(model, *kinds)[0]),
        nnx.to_flat_state(nnx.state(other, *kinds)[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours[1][...], theirs[1][...])


def test_counters_are_optional(model, weights):
    without = {k: v for k, v in weights.items() if "num_batches" not in k}
    assert len(without) < len(weights)
    jax_models.import_torch(model, without)


def test_all_mismatches_are_in_one_error_and_nothing_is_loaded(model, weights):
    before = jax_models.export_torch(model)
    weights["extra.weight"] = np.zeros(3, np.float32)
    weights["nobody.num_batches_tracked"] = np.zeros((), np.int64)
    del weights["head.norm.bias"]
    del weights["stages.1.blocks.0.attn.qkv.weight"]
    weights["stages.0.blocks.0.conv1.conv.weight"] = np.zeros((5, 5))
    with pytest.raises(UserError) as raised:
        jax_models.import_torch(model, weights)
    for part in (
        "missing: head.norm.bias, stages.1.blocks.0.attn.qkv.weight",
        "unexpected: extra.weight, nobody.num_batches_tracked",
        "stages.0.blocks.0.conv1.conv.weight has shape [5, 5] where the model "
        "needs [128, 32, 1, 1]",
    ):
        assert part in str(raised.value)
    for key, value in jax_models.export_torch(model).items():
        np.testing.assert_array_equal(value, before[key])


def test_another_number_of_classes_draws_a_new_head(model, weights):
    weights["head.fc.weight"] = np.ones((1000, 96), np.float32)
    weights["head.fc.bias"] = np.ones(1000, np.float32)
    model.head.fc.kernel[...] = 5.0
    model.head.fc.bias[...] = 5.0
    with pytest.warns(UserWarning, match="the head was initialised anew"):
        jax_models.import_torch(model, weights)
    assert 0 < np.abs(model.head.fc.kernel[...]).max() < 0.2
    np.testing.assert_array_equal(model.head.fc.bias[...], 0)
    name = "patch_embed.conv1.conv.weight"
    exported = jax_models.export_torch(model)
    np.testing.assert_array_equal(exported[name], weights[name])


def test_biases_for_other_windows_are_resized_as_timm_does():
    golden = np.load(GOLDENS / "resized_biases.npz")
    for old, new in recipe.RESIZES:
        options = dict(heads=(3, 3, 3, 3), dims=(24, 24, 24, 24))
        small = blank("tinyvit_demo", 4, windows=(old,) * 4, **options)
        weights = jax_models.export_torch(small)
        name = "stages.1.blocks.0.attn.attention_biases"
        weights[name] = recipe.weight("attention_biases", (3, old**2))
        large = blank("tinyvit_demo", 4, windows=(new,) * 4, **options)
        with pytest.warns(UserWarning, match="resized the attention biases"):
            jax_models.import_torch(large, weights)
        resized = jax_models.export_torch(large)[name]
        expected = golden[f"{old} to {new}"]
        np.testing.assert_allclose(resized, expected, atol=2e-6)


@pytest.mark.parametrize(
    "name", ["plain.pth", "wrapped.pth", "old.pth", "plain.safetensors"]
)
def test_files_that_pytorch_wrote(name):
    state = files.read(GOLDENS / name)
    numbers = np.arange(24, dtype=np.float32)
    expected = {
        "plain": numbers[:6].reshape(2, 3),
        "transposed": numbers.reshape(4, 6).T,
        "offset": numbers[5:9],
        "half": numbers[:4].astype(np.float16),
        "brain": numbers[:4].astype(ml_dtypes.bfloat16),
        "count": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": numbers[:2],
    }
    assert set(state) == set(expected)
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        np.testing.assert_array_equal(state[key], value)


def test_import_takes_a_path(model, weights, tmp_path):
    header, body = {}, b""
    for key, value in weights.items():
        kind = {"float32": "F32", "int64": "I64"}[value.dtype.name]
        span = [len(body), len(body) + value.nbytes]
        header[key] = dict(
            dtype=kind, shape=list(value.shape), data_offsets=span
        )
        body += value.tobytes()
    text = json.dumps(header).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    jax_models.import_torch(model, path)
    exported = jax_models.export_torch(model)
    for key, value in weights.items():
        np.testing.assert_array_equal(exported[key], value)


class Payload:
    """Unpickled by Python itself, this would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_pth(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)


def test_no_code_is_run(tmp_path):
    trap = tmp_path / "trap"
    content = pickle.dumps({"weight": Payload(trap)})
    write_pth(tmp_path / "evil.pth", content)
    with pytest.raises(UserError, match=r"it wants to call \w+\.mkdir"):
        files.read(tmp_path / "evil.pth")
    assert not trap.exists()
    pickle.loads(content)  # What it would have done.
    assert trap.exists()


def test_damaged_and_foreign_files_are_one_sentence(tmp_path):
    whole = (GOLDENS / "plain.safetensors").read_bytes()
    pth = (GOLDENS / "plain.pth").read_bytes()
    length = struct.unpack_from("<Q", whole)[0]
    header = json.loads(whole[8 : 8 + length])
    header["plain"]["data_offsets"] = [0, 10**9]
    text = json.dumps(header).encode()
    beyond = struct.pack("<Q", len(text)) + text + whole[8 + length :]
    damaged = {
        "cut.safetensors": whole[:-4],
        "short.safetensors": b"\0\0",
        "huge.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "beyond.safetensors": beyond,
        "text.safetensors": struct.pack("<Q", 4) + b"[3]]",
        "cut.pth": pth[: len(pth) // 2],
        "text.pth": b"hello",
        "empty.pth": b"",
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            files.read(tmp_path / name)
    for content in (b"", b"nonsense", pickle.dumps([1, 2]), pickle.dumps({})):
        write_pth(tmp_path / "odd.pth", content)
        if content == pickle.dumps({}):
            assert files.read(tmp_path / "odd.pth") == {}
            continue
        with pytest.raises(UserError, match=r"odd\.pth"):
            files.read(tmp_path / "odd.pth")
    with pytest.raises(UserError, match="check the path"):
        files.read(tmp_path / "absent.pth")


def test_a_damaged_file_of_old_pytorch_is_one_sentence(tmp_path):
    whole = (GOLDENS / "old.pth").read_bytes()
    path = tmp_path / "old.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"old\.pth"):
            files.read(path)
    # Any byte may be wrong: an error or other numbers, nothing worse.
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            files.read(path)


def test_an_old_file_runs_no_code(tmp_path):
    trap = tmp_path / "trap"
    parts = (files._OLD_MAGIC, files._OLD_VERSION, {"little_endian": True})
    content = b"".join(map(pickle.dumps, (*parts, {"weight": Payload(trap)})))
    (tmp_path / "evil.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"it wants to call \w+\.mkdir"):
        files.read(tmp_path / "evil.pth")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (
            "mobilenetv2",
            {
                "features.0.1.bias": "bn1.bias",
                "features.1.conv.0.0.weight": "blocks.0.0.conv_dw.weight",
                "features.1.conv.1.weight": "blocks.0.0.conv_pw.weight",
                "features.3.conv.3.bias": "blocks.1.1.bn3.bias",
                "features.17.conv.2.weight": "blocks.6.0.conv_pwl.weight",
                "features.18.0.weight": "conv_head.weight",
                "classifier.1.bias": "classifier.bias",
                "blocks.6.0.bn1.weight": "blocks.6.0.bn1.weight",
            },
        ),
        (
            "densenet_demo",
            {
                "features.denseblock2.denselayer1.norm.2.weight": (
                    "features.denseblock2.denselayer1.norm2.weight"
                ),
                "features.norm5.bias": "features.norm5.bias",
            },
        ),
    ],
)
def test_torchvisions_names_become_those_of_the_model(model, names):
    model = nnx.eval_shape(lambda: jax_models.create_model(model, 16))
    given = {name: np.array(number) for number, name in enumerate(names)}
    found = model.published_names(given)
    assert found == {names[name]: value for name, value in given.items()}
    assert set(found) <= set(conversion._entries(model))
