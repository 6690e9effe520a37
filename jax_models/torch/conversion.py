"""Weights from and to PyTorch, in the names and shapes of published code.

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from core.errors import UserError
from jax_models import convnext, layers
from jax_models.embedding import EmbeddingModel
from jax_models.model import HEAD, ImageModel
from jax_models.segmentation import ENCODER, SegmentationModel
from jax_models.torch import files

Model = ImageModel | SegmentationModel | EmbeddingModel

# Under which segmentation_models_pytorch keeps an encoder, its own or timm's.
SMP_PREFIXES = ("encoder.model.", "encoder.")

# What BatchNorm counts in PyTorch; with a fixed momentum nothing reads it.
COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where one array of the state dict lives in the model."""

    path: tuple[str, ...]
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
    """Loads weights of its PyTorch counterpart into `model`, in place.

    That is timm's; torchvision's for ResNets; segmentation_models_pytorch's
    for segmentation networks over ResNets; an embedding has none, and takes
    what `export_torch` gave.

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
    if isinstance(model, ImageModel):
        state_dict = model.published_names(state_dict)
    given = _given(state_dict, entries)
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
                resized.append(name)
            array = _fitted(name, entry, array)
            if array is None:
                complaints.append(_complaint(name, entry, given[name]))
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


class EncoderWeights(NamedTuple):
    """What a state dict has for the encoder of a model.

    Attributes:
      arrays: float32, by their path in the model.
      used: their names in the state dict, as published.
      unused: the other names there.
    """

    arrays: dict[tuple[str, ...], np.ndarray]
    used: list[str]
    unused: list[str]


def read_encoder(
    model: nnx.Module, state_dict: Mapping[str, np.ndarray], source: str
) -> EncoderWeights:
    """Finds the weights of a model's encoder among published ones.

    These are a classifier's, or those of one of segmentation_models_pytorch's
    networks over it, whose decoder is taken as well if the model has the same.

    Args:
      model: a classifier, or a network that keeps one as its `encoder`;
        shapes are enough.
      state_dict: name -> array.
      source: names the state dict in an error.

    Raises:
      UserError: it has not the whole encoder; what it lacks is named.
    """
    inside = hasattr(model, ENCODER)
    encoder = model.encoder if inside else model
    within = (ENCODER,) if inside else ()
    entries = {
        name: entry
        for name, entry in _entries(encoder).items()
        if inside or entry.path[0] != HEAD
    }
    prefix = next(
        (p for p in SMP_PREFIXES if any(n.startswith(p) for n in state_dict)),
        "",
    )
    own, others = {}, {}
    for name, array in state_dict.items():
        part = own if name.startswith(prefix) else others
        part[name.removeprefix(prefix)] = array
    given = _given(encoder.published_names(own), entries)
    arrays, complaints = {}, []
    missing = sorted(set(entries) - set(given))
    if missing:
        complaints.append(f"missing: {', '.join(missing[:5])}")
        if len(missing) > 5:
            complaints[0] += f" and {len(missing) - 5} more"
    for name in sorted(set(entries) & set(given)):
        entry = entries[name]
        array = _fitted(name, entry, given[name])
        if array is None:
            complaints.append(_complaint(name, entry, given[name]))
        else:
            arrays[(*within, *entry.path)] = entry.from_torch(array)
    if complaints:
        raise UserError(
            f"{source} does not fit {type(encoder).__name__}, the encoder: "
            f"{'; '.join(complaints)}; choose the model that the weights are "
            "for"
        )
    used = set(entries)
    if isinstance(model, SegmentationModel):
        decoder = {
            name: entry
            for name, entry in _entries(model).items()
            if entry.path[0] not in (ENCODER, HEAD)
        }
        others = _given(others, decoder)
        if all(
            name in others and np.shape(others[name]) == entry.shape
            for name, entry in decoder.items()
        ):
            for name, entry in decoder.items():
                arrays[entry.path] = entry.from_torch(others[name])
            used |= set(decoder)
    return EncoderWeights(
        {path: np.asarray(x, np.float32) for path, x in arrays.items()},
        sorted(used),
        sorted((set(given) | set(others)) - used),
    )


def export_torch(model: Model) -> dict[str, np.ndarray]:
    """The weights of `model` as PyTorch's counterpart has them.

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
    if not isinstance(model, ImageModel):
        entries = {
            f"{ENCODER}.{name}": dataclasses.replace(
                entry, path=(ENCODER, *entry.path)
            )
            for name, entry in _entries(model.encoder).items()
        }
    for path, module in nnx.iter_modules(model):
        if entries and path[:1] == (ENCODER,):
            continue  # Its names are its own class's affair.
        here = tuple(map(str, path))
        for name, entry in _layer_entries(module, here).items():
            full = ".".join((*here, name))
            for pattern, replacement in model.TORCH_NAMES:
                full = re.sub(pattern, replacement, full)
            entries[full] = entry
    return entries


def _given(
    state_dict: Mapping[str, np.ndarray], entries: Mapping[str, _Entry]
) -> dict[str, np.ndarray]:
    """The arrays of a state dict, without what only PyTorch has."""
    return {
        name: np.asarray(array)
        for name, array in state_dict.items()
        if not _is_counter(name, entries)
    }


def _fitted(name: str, entry: _Entry, array: np.ndarray) -> np.ndarray | None:
    """The array in the shape that the model needs; None if it cannot be."""
    if array.shape == entry.shape:
        return array
    if _is_other_window(name, entry, array):
        return _resize_biases(array, entry.shape)
    # A matrix and a 1x1 convolution are the same thing.
    if _without_ones(array.shape) == _without_ones(entry.shape):
        return array.reshape(entry.shape)
    return None


def _complaint(name: str, entry: _Entry, array: np.ndarray) -> str:
    shape = entry.shape
    if array.ndim == 4 and shape[1] == 3 and array.shape[1] != 3:
        other = array.shape[:1] + array.shape[2:]
        if other == shape[:1] + shape[2:]:
            return (
                f"{name} takes images of {array.shape[1]} channels where the "
                "model takes 3"
            )
    return (
        f"{name} has shape {list(array.shape)} where the model needs "
        f"{list(shape)}"
    )


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _transpose(array: np.ndarray) -> np.ndarray:
    return array.T


def _matrix_to_filter(array: np.ndarray) -> np.ndarray:
    return array.T[:, :, None, None]


def _filter_to_matrix(array: np.ndarray) -> np.ndarray:
    return array[:, :, 0, 0].T


def _conv_to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1)


def _conv_from_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0)


def _layer_entries(
    module: nnx.Module, path: tuple[str, ...]
) -> dict[str, _Entry]:
    """The rules: what PyTorch calls a layer's arrays, how it turns them."""
    scale = {"scale": ("weight", _same, _same)}
    match module:
        case layers.Linear(torch_conv=True):
            rules = {"kernel": ("weight", _matrix_to_filter, _filter_to_matrix)}
        case layers.Linear():
            rules = {"kernel": ("weight", _transpose, _transpose)}
        case layers.Conv():
            rules = {"kernel": ("weight", _conv_to_torch, _conv_from_torch)}
        case layers.BatchNorm():
            rules = scale | {
                "mean": ("running_mean", _same, _same),
                "var": ("running_var", _same, _same),
            }
        case layers.LayerNorm() | convnext.GlobalResponseNorm():
            rules = scale
        case _:
            rules = {}
    entries = {}
    for attribute, value in vars(module).items():
        if isinstance(value, (nnx.Param, nnx.BatchStat)):
            name, there, back = rules.get(attribute, (attribute, _same, _same))
            entries[name] = _Entry((*path, attribute), value, there, back)
    return entries


def _is_counter(name: str, entries: Mapping[str, _Entry]) -> bool:
    prefix, _, last = name.rpartition(".")
    return last == COUNTER and f"{prefix}.running_var" in entries


def _is_other_head(model: Model, entry: _Entry, array: np.ndarray) -> bool:
    if isinstance(model, EmbeddingModel):
        return False
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
