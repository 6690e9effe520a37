"""export.py: a run for other runtimes, which have nothing of this project."""

import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import answers
from flax import nnx
from in_process import training

import export
from jax_models import create_model
from jax_models.torch import conversion


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    enlarged = "--config.data.upscale=lanczos"
    assert training(folder / "run", enlarged) == 0
    run, out = f"--run={folder / 'run'}", f"--out={folder / 'out'}"
    assert export.main([run, out]) == 0
    return folder


@pytest.mark.slow
def test_a_fresh_process_answers_alike_for_any_batch(exported):
    out = exported / "out"
    told = json.loads((out / "model.json").read_text())
    side = told["input"]["shape"][1]
    before = [
        f"short sides under {round(side * 8 / 7)} px are enlarged: lanczos"
    ]
    assert told["input"]["before_resizing"] == before
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, side, side, 3), np.uint8)
    one, found = answers(out, pixels)
    assert found.shape == (5, len(told["classes"]))
    np.testing.assert_allclose(one[0], found[0], atol=1e-5, rtol=1e-5)
    # From the weights in PyTorch's names, normalised as model.json says.
    model = create_model(told["model"], num_classes=10, rngs=nnx.Rngs(1))
    conversion.import_torch(model, out / "model.safetensors")
    model.eval()
    mean, std = (np.float32(told["input"][name]) for name in ("mean", "std"))
    images = jnp.asarray((pixels / np.float32(255) - mean) / std)
    expected = np.asarray(jax.jit(lambda images: model(images))(images))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_code_for_cpus_of_ours_is_in_it(exported):
    """No other runtime has it: calls of C++ are custom calls."""
    from jax import export as jax_export

    data = (exported / "out/model.stablehlo").read_bytes()
    text = jax_export.deserialize(bytearray(data)).mlir_module()
    assert "stablehlo.convolution" in text or "dot_general" in text
    assert "sextet" not in text and "xla_ffi" not in text
    assert "stablehlo.custom_call" not in text.replace(
        "stablehlo.custom_call @shape_assertion", ""
    )


def test_a_folder_that_is_no_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main([f"--run={tmp_path}", f"--out={tmp_path / 'out'}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["jax2onnx", "onnxruntime"])
def test_onnx_without_its_packages(exported, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    run, out = f"--run={exported / 'run'}", f"--out={exported / 'onnx'}"
    with pytest.raises(SystemExit) as ended:
        export.main([run, out, "--format=onnx"])
    assert ended.value.code == 2
    assert "requirements-onnx.txt" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))),
    reason="optional: pip install -r requirements-onnx.txt",
)
def test_onnx_runtime_answers_alike(exported):
    import onnxruntime
    from jax import export as jax_export

    out = exported / "out"
    run = f"--run={exported / 'run'}"
    assert export.main([run, f"--out={out}", "--format=onnx"]) == 0
    side = json.loads((out / "model.json").read_text())["input"]["shape"][1]
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (3, side, side, 3), np.uint8)
    session = onnxruntime.InferenceSession(
        out / "model.onnx", providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    (found,) = session.run(None, {name: pixels})
    data = (out / "model.stablehlo").read_bytes()
    expected = jax_export.deserialize(bytearray(data)).call(pixels)
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-4)
