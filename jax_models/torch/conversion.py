"""Weights from and to PyTorch, in timm's names and shapes.

The modules carry timm's names, so the rules are few: one per kind of layer
(which array is called what, and how its axes are turned) and, per family, the
few modules that are called differently (`TORCH_NAMES` of the model class).
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from core.errors import UserError
from jax_models import convnext, layers
from jax_models.model import ImageModel
from jax_models.segmentation import ENCODER, SegmentationModel
from jax_models.torch import files

Model = ImageModel | SegmentationModel

# What BatchNorm counts in PyTorch; with a fixed momentum nothing reads it.
COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where one array of the state dict lives in the model."""

    variable: nnx.Variable
    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in PyTorch."""
        zeros = np.broadcast_to(np.float32(0), self.variable.shape)
        return self.to_torch(zeros).shape


def import_torch(
    model: Model,
    state_dict: Mapping[str, np.ndarray] | str | os.PathLike,
    rngs: nnx.Rngs | None = None,
) -> Model:
    """Loads weights of timm's counterpart into `model`, in place.

    A classifier for another number of classes is not taken: the head is drawn
    anew, and a warning says so. TinyViT's attention biases for another window
    are resized (bicubic, as timm does), and a warning says so.

    Args:
      model: what `create_model` gave.
      state_dict: name -> array, or the path of a .safetensors file or of a
        .pth, .pt or .bin file that torch.save wrote. No code in it is run.
      rngs: where a new head is drawn from; `nnx.Rngs(0)` when left out.

    Returns:
      `model`.

    Raises:
      UserError: entries are missing, unexpected or have wrong shapes (the
        sentence lists all of them and nothing is loaded), or the file cannot
        be read.
    """
    source = "the state dict"
    if isinstance(state_dict, (str, os.PathLike)):
        source = os.fspath(state_dict)
        state_dict = files.read(state_dict)
    entries = _entries(model)
    given = {
        name: np.asarray(array)
        for name, array in state_dict.items()
        if not _is_counter(name, entries)
    }
    complaints = []
    missing = sorted(set(entries) - set(given))
    if missing:
        complaints.append(f"missing: {', '.join(missing)}")
    unexpected = sorted(set(given) - set(entries))
    if unexpected:
        complaints.append(f"unexpected: {', '.join(unexpected)}")
    new_head, resized, values = False, [], {}
    for name in sorted(set(entries) & set(given)):
        array, entry = given[name], entries[name]
        if array.shape != entry.shape:
            if _is_other_head(model, entry, array):
                new_head = True
                continue
            if _is_other_window(name, entry, array):
                array = _resize_biases(array, entry.shape)
                resized.append(name)
            elif array.size == np.prod(entry.shape) and (
                _without_ones(array.shape) == _without_ones(entry.shape)
            ):
                # A matrix and a 1x1 convolution are the same thing.
                array = array.reshape(entry.shape)
            else:
                complaints.append(
                    f"{name} has shape {list(array.shape)} where the model "
                    f"needs {list(entry.shape)}"
                )
                continue
        values[name] = entry.from_torch(array)
    if complaints:
        raise UserError(
            f"{source} does not fit {type(model).__name__}: "
            f"{'; '.join(complaints)}; choose the model that the weights are "
            "for"
        )
    for name, value in values.items():
        variable = entries[name].variable
        variable.set_value(jnp.asarray(value, jnp.float32))
    if resized:
        warnings.warn(
            f"resized the attention biases {', '.join(resized)} of {source} "
            "to the model's windows",
            stacklevel=2,
        )
    if new_head:
        model.head.reset(nnx.Rngs(0) if rngs is None else rngs)
        warnings.warn(
            f"{source} has a classifier for another number of classes; the "
            "head was initialised anew",
            stacklevel=2,
        )
    return model


def export_torch(model: Model) -> dict[str, np.ndarray]:
    """The weights of `model` as timm's counterpart names and shapes them.

    `import_torch` reads them back bit for bit. BatchNorm's counters, which
    only PyTorch has, are zero.

    Returns:
      Name -> array on the host, float32 (the counters int64).
    """
    arrays = {}
    for name, entry in _entries(model).items():
        value = np.asarray(jax.device_get(entry.variable[...]))
        arrays[name] = np.ascontiguousarray(entry.to_torch(value))
        if name.endswith(".running_var"):
            counter = name.removesuffix("running_var") + COUNTER
            arrays[counter] = np.zeros((), np.int64)
    return arrays


def _entries(model: Model) -> dict[str, _Entry]:
    entries = {}
    if isinstance(model, SegmentationModel):
        encoder = _entries(model.encoder)
        entries = {
            f"{ENCODER}.{name}": entry for name, entry in encoder.items()
        }
    for path, module in nnx.iter_modules(model):
        if entries and path[:1] == (ENCODER,):
            continue  # Its names are its own class's affair.
        for name, entry in _layer_entries(module).items():
            full = ".".join(map(str, (*path, name)))
            for pattern, replacement in model.TORCH_NAMES:
                full = re.sub(pattern, replacement, full)
            entries[full] = entry
    return entries


def _layer_entries(module: nnx.Module) -> dict[str, _Entry]:
    """The rules: what PyTorch calls a layer's arrays, how it turns them."""

    def same(array: np.ndarray) -> np.ndarray:
        return array

    def transpose(array: np.ndarray) -> np.ndarray:
        return array.T

    def matrix_to_filter(array: np.ndarray) -> np.ndarray:
        return array.T[:, :, None, None]

    def filter_to_matrix(array: np.ndarray) -> np.ndarray:
        return array[:, :, 0, 0].T

    def conv_to_torch(array: np.ndarray) -> np.ndarray:
        return array.transpose(3, 2, 0, 1)

    def conv_from_torch(array: np.ndarray) -> np.ndarray:
        return array.transpose(2, 3, 1, 0)

    scale = {"scale": ("weight", same, same)}
    match module:
        case layers.Linear(torch_conv=True):
            rules = {"kernel": ("weight", matrix_to_filter, filter_to_matrix)}
        case layers.Linear():
            rules = {"kernel": ("weight", transpose, transpose)}
        case layers.Conv():
            rules = {"kernel": ("weight", conv_to_torch, conv_from_torch)}
        case layers.BatchNorm():
            rules = scale | {
                "mean": ("running_mean", same, same),
                "var": ("running_var", same, same),
            }
        case layers.LayerNorm() | convnext.GlobalResponseNorm():
            rules = scale
        case _:
            rules = {}
    entries = {}
    for attribute, value in vars(module).items():
        if isinstance(value, (nnx.Param, nnx.BatchStat)):
            name, there, back = rules.get(attribute, (attribute, same, same))
            entries[name] = _Entry(value, there, back)
    return entries


def _is_counter(name: str, entries: Mapping[str, _Entry]) -> bool:
    prefix, _, last = name.rpartition(".")
    return last == COUNTER and f"{prefix}.running_var" in entries


def _is_other_head(model: Model, entry: _Entry, array: np.ndarray) -> bool:
    classifier = model.head.fc
    parts = (classifier.kernel, classifier.bias)
    return (
        any(entry.variable is part for part in parts)
        and array.shape[1:] == entry.shape[1:]
    )


def _is_other_window(name: str, entry: _Entry, array: np.ndarray) -> bool:
    return (
        name.endswith("attention_biases")
        and array.ndim == 2
        and array.shape[0] == entry.shape[0]
        and all(
            round(length**0.5) ** 2 == length
            for length in (array.shape[1], entry.shape[1])
        )
    )


def _resize_biases(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    heads, cells = array.shape
    old, new = round(cells**0.5), round(shape[1] ** 0.5)
    square = jnp.asarray(array, jnp.float32).reshape(heads, old, old)
    resized = jax.image.resize(square, (heads, new, new), "bicubic")
    return np.asarray(resized).reshape(shape)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)
