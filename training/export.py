"""A trained run for other runtimes: StableHLO, ONNX, weights for PyTorch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors.numpy
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from core import atomic_files
from core.errors import UserError
from input_pipeline.transforms import mixing
from jax_models.target import for_platform
from jax_models.torch import conversion
from run_folder import inference
from training import upscaling
from training.tasks.base import Task

# Where what is exported runs; "cuda" is JAX's name for NVIDIA's GPUs.
PLATFORMS = ("cpu", "cuda", "tpu")

# The rules that cut what a model sees out of an image, for people.
_RESIZE = {
    "center_crop": "short side to 256/224 of the model's, then the middle",
    "whole": "the whole image, squeezed into a square",
    "windows": "overlapping windows, whose answers are averaged",
}

# What the only array of an answer is.
_LOGITS = (
    "logits, whose softmax over the last axis is the probability of each class"
)

# Of answers under ONNX Runtime, beside those of JAX.
LARGEST_DIFFERENCE = 1e-4

# One array, or several by name.
Answers = Float[Array, "B ..."] | dict[str, Float[Array, "B ..."]]
Answer = Callable[[UInt8[Array, "B H W 3"]], Answers]


@dataclasses.dataclass(frozen=True)
class Exported:
    """A run that is exported.

    Attributes:
      task: of the run.
      model: with its best weights, in evaluation mode.
      spec: of the run.
      folder: where the files go.
    """

    task: Task
    model: nnx.Module
    spec: inference.InferenceSpec
    folder: Path

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return self.spec.image_size

    def answer(self) -> Answer:
        """Returns what is exported: pixels in 0..255 to the task's answer.

        The channels are normalised in it, so nobody has to know how. It is
        traced without the code for CPUs of ours, which other runtimes lack.
        """
        statistics, model, task = self.task.statistics, self.model, self.task

        def answer(pixels):
            with for_platform("gpu", 1):
                images = mixing.normalize(
                    pixels, statistics.mean, statistics.std
                )
                return task.answer(model, images)

        return answer

    def example(self) -> np.ndarray:
        """Returns two images of noise, uint8 [2, H, W, 3]."""
        rng = np.random.default_rng(0)
        shape = 2, self.side, self.side, 3
        return rng.integers(0, 256, shape, np.uint8)


def stablehlo(exported: Exported) -> Path:
    """Writes `model.stablehlo`: weights and normalisation are in it.

    `jax.export.deserialize` reads it back, without this repository, for
    batches of any size, on each of `PLATFORMS`.
    """
    side = exported.side
    shape = jax.export.symbolic_shape(f"b, {side}, {side}, 3")
    pixels = jax.ShapeDtypeStruct(shape, np.uint8)
    lowered = jax.export.export(
        jax.jit(exported.answer()), platforms=PLATFORMS
    )(pixels)
    path = exported.folder / "model.stablehlo"
    _write(path, bytes(lowered.serialize()))
    return path


def torch_weights(exported: Exported) -> Path:
    """Writes `model.safetensors`: the weights in PyTorch's names and shapes.

    Raises:
      UserError: the architecture has no counterpart in PyTorch.
    """
    arrays = conversion.export_torch(exported.model)
    whole = {
        name: np.ascontiguousarray(array)
        for name, array in arrays.items()
        if name.split(".")[0] not in exported.task.not_exported
    }
    path = exported.folder / "model.safetensors"
    _write(path, safetensors.numpy.save(whole))
    return path


def onnx(exported: Exported) -> Path:
    """Writes `model.onnx`, once ONNX Runtime has answered as JAX does.

    Raises:
      UserError: jax2onnx or onnxruntime is not installed, jax2onnx cannot
        convert the model, or the answers differ.
    """
    try:
        import jax2onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"--format onnx needs {error.name}; install it with: pip install "
            "-r requirements-onnx.txt"
        ) from error
    answer, side = exported.answer(), exported.side
    try:
        model = jax2onnx.to_onnx(
            lambda images: answer(images),
            [jax.ShapeDtypeStruct(("B", side, side, 3), np.uint8)],
            model_name=exported.spec.model,
            # JAX sorts the keys of a dict.
            output_names=sorted(exported.task.answers) or None,
        )
    # A converter fails in as many ways as there are operations.
    except Exception as error:
        raise UserError(
            f"jax2onnx cannot convert {exported.spec.model} "
            f"({_first_line(error)}); take --format stablehlo"
        ) from error
    data = model.SerializeToString()
    pixels = exported.example()
    try:
        session = onnxruntime.InferenceSession(
            data, providers=["CPUExecutionProvider"]
        )
        found = session.run(None, {session.get_inputs()[0].name: pixels})
    except Exception as error:
        raise UserError(
            f"ONNX Runtime cannot run {exported.spec.model} as jax2onnx "
            f"converted it ({_first_line(error)}); take --format stablehlo"
        ) from error
    expected = jax.tree.leaves(jax.jit(answer)(pixels))
    difference = max(
        np.abs(one - np.asarray(other)).max()
        for one, other in zip(found, expected, strict=True)
    )
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"ONNX Runtime's answers for {exported.spec.model} are "
            f"{difference:.1e} off those of JAX; take --format stablehlo"
        )
    path = exported.folder / "model.onnx"
    _write(path, data)
    return path


def describe(exported: Exported) -> Path:
    """Writes `model.json`: what goes in, what comes out, for programs."""
    spec, side = exported.spec, exported.side
    outputs = jax.eval_shape(exported.answer(), exported.example())
    content: dict[str, Any] = {
        "task": spec.task,
        "model": spec.model,
        "classes": list(spec.classes),
        "input": {
            "shape": ["b", side, side, 3],
            "dtype": "uint8",
            "what": "RGB pixels from 0 to 255, upright; the channels are "
            "normalised inside the model",
            "resize": spec.resize,
            "resize_means": _RESIZE.get(spec.resize.split()[0], ""),
            "before_resizing": _before(exported.task.config),
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "output": {
            name: _output(outputs[name], what)
            for name, what in exported.task.answers.items()
        }
        or _output(outputs, _LOGITS),
        "test_time_views": list(spec.views),
        "platforms": list(PLATFORMS),
        "weights_alone": "model.safetensors has PyTorch's names and expects "
        "images that are normalised with mean and std",
    }
    if spec.similarity:
        content["similarity"] = {
            **dict(
                zip(
                    ("cosine", "log_real", "bias"), spec.similarity, strict=True
                )
            ),
            "what": "of a pair, the sigmoid of cosine * its cosine + log_real "
            "* the sum of both pictures' log sigmoid(real_logit) + bias is the "
            "probability that both are real and show the same",
        }
    path = exported.folder / "model.json"
    atomic_files.write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def _output(array: jax.ShapeDtypeStruct, what: str) -> dict[str, Any]:
    return {
        "shape": ["b", *array.shape[1:]],
        "dtype": str(array.dtype),
        "what": what,
    }


def _before(config: ConfigDict) -> list[str]:
    """What a photo goes through first; runs of before have no such fields."""
    steps = []
    if config.data.get("clean_impulses", False):
        steps.append("single black or white pixels are filled")
    if method := config.data.get("upscale", ""):
        side = upscaling.side_of(config)
        steps.append(f"short sides under {side} px are enlarged: {method}")
    return steps


WRITERS: dict[str, Callable[[Exported], Path]] = {
    "stablehlo": stablehlo,
    "safetensors": torch_weights,
    "onnx": onnx,
}


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _write(path: Path, data: bytes) -> None:
    with atomic_files.atomic_write(path) as whole:
        whole.write_bytes(data)
