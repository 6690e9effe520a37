"""All that is needed to use a trained run: `inference.json`.

With it and a checkpoint, new images are predicted without the images that
the run was trained on.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.atomic_files import write_text
from core.errors import UserError
from run_folder import layout

# Changes whenever a field does: an older file is refused in one sentence.
FORMAT = 3


@dataclass(frozen=True)
class InferenceSpec:
    """How to build the model of a run, and what to feed it.

    Attributes:
      task: name in the registry of tasks.
      model: name in `jax_models.list_models()`.
      model_options: further arguments of `create_model`, JSON-able.
      num_outputs: C, of the model's last layer.
      classes: C original label values, in column order; () for a task
        without classes.
      mean: of the three channels, over values 0..1.
      std: standard deviations of the channels, over values 0..1.
      image_size: side in pixels of what the model sees.
      resize: the rule that cuts `image_size` out of an image:
        "center_crop", "whole" (squeezed into a square), or "windows 0.5",
        windows that overlap by half.
      views: test-time views whose outputs are averaged.
      dtype: of the activations, "float32" or "bfloat16".
      mask_values: of each class, what its pixels hold in a mask file; ()
        for a task without masks.
      mask_palette: of mask files, R, G, B for each value; () makes them grey.
      id_column: of a submission; None where the data had none.
      target_column: of a submission; None where the data had none.
      sample_submission: path of the sample; None where the data had none.
      similarity: of a verification: weights of a pair's cosine and of the
        log-probability that both pictures are real, and what is added, for
        the log-odds that they match; () for another task.
    """

    task: str
    model: str
    model_options: dict[str, Any]
    num_outputs: int
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    resize: str
    views: tuple[str, ...]
    dtype: str
    mask_values: tuple[int, ...] = ()
    mask_palette: tuple[int, ...] = ()
    id_column: str | None = None
    target_column: str | None = None
    sample_submission: str | None = None
    similarity: tuple[float, ...] = ()


def write(workdir: Path, spec: InferenceSpec) -> None:
    """Writes `inference.json`, whole or not at all.

    Raises:
      UserError: the folder cannot be written.
      ValueError: a field of `spec` has a value that `read` refuses.
    """
    content = {"format": FORMAT, **dataclasses.asdict(spec)}
    content = json.loads(json.dumps(content))
    if problem := _problem(content):
        raise ValueError(problem)
    write_text(workdir / layout.INFERENCE, json.dumps(content, indent=1) + "\n")


def read(workdir: Path) -> InferenceSpec:
    """Reads and checks `inference.json`.

    Raises:
      UserError: it is missing, of another version, or a field is missing,
        unknown or of a value that cannot be.
    """
    path = workdir / layout.INFERENCE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir} has no {layout.INFERENCE}; name the --workdir of a "
            "run that has begun to train"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); restore it, or run the "
            "training's command again"
        ) from error
    if problem := _problem(content):
        raise UserError(
            f"{path}: {problem}; restore it, or run the training's command "
            "again"
        )
    del content["format"]
    return InferenceSpec(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
    )


def _problem(content: Any) -> str:
    """What is wrong with the content of the file, or ''."""
    if not isinstance(content, dict):
        return "it holds no object"
    if content.get("format") != FORMAT:
        return f"it has format {content.get('format')}, not {FORMAT}"
    names = {field.name for field in dataclasses.fields(InferenceSpec)}
    names.add("format")
    if content.keys() != names:
        odd = sorted(content.keys() ^ names)[0]
        what = "unknown" if odd in content else "missing"
        return f"field {odd!r} is {what}"
    for name, is_valid in _CHECKS.items():
        if not is_valid(content[name]):
            return f"{name} is {content[name]!r}, which cannot be"
    classes = len(content["classes"])
    if classes and classes != content["num_outputs"]:
        return f"{classes} classes for {content['num_outputs']} outputs"
    values = len(content["mask_values"])
    if values and values != classes:
        return f"{values} mask_values for {classes} classes"
    return ""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_optional_name(value: Any) -> bool:
    return value is None or _is_name(value)


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _are_bytes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(v) is int and 0 <= v <= 255 for v in value
    )


def _are_channels(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 3
    return numbers and all(
        type(v) in (int, float) and math.isfinite(v) for v in value
    )


_CHECKS = {
    "task": _is_name,
    "model": _is_name,
    "model_options": lambda value: isinstance(value, dict),
    "num_outputs": _is_positive,
    "classes": _are_names,
    "mean": _are_channels,
    "std": lambda value: _are_channels(value) and min(value) > 0,
    "image_size": _is_positive,
    "resize": _is_name,
    "views": lambda value: _are_names(value) and bool(value),
    "dtype": lambda value: value in ("float32", "bfloat16"),
    "mask_values": _are_bytes,
    "mask_palette": lambda value: (
        _are_bytes(value) and len(value) % 3 == 0 and len(value) <= 768
    ),
    "id_column": _is_optional_name,
    "target_column": _is_optional_name,
    "sample_submission": _is_optional_name,
    "similarity": lambda value: value == [] or _are_channels(value),
}
