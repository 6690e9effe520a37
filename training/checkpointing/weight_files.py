"""Published weights to start from: files of PyTorch, weights in packages."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import jax_models
from core import paths, weight_packages
from core.errors import UserError
from jax_models.segmentation import ENCODER
from jax_models.torch import conversion, files
from training.loop.state import AbstractModel
from training.multihost import comm

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class WeightFile:
    """A file with a state dict of PyTorch, opened for one model.

    Args:
      path: of the file.
      model: whose encoder it has.
      renames: `config.init_names`.

    Attributes:
      pin: what names the weights, as JSON.
      channels: `mean` and `std` of images, which the weights expect, as JSON.

    Raises:
      UserError: it cannot be read, or does not fit the model.
    """

    def __init__(
        self, path: Path, model: AbstractModel, renames: Sequence[str] = ()
    ):
        self._path = path
        shapes = nnx.merge(*model[:4])
        encoder = getattr(shapes, ENCODER, shapes)
        arrays = files.read(path)
        names = renamed(arrays, renames)
        self._weights = conversion.read_encoder(
            shapes, {names[name]: arrays[name] for name in names}, str(path)
        )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        self.pin: dict[str, Any] = {"fingerprint": digest, "family": digest}
        self.channels = {
            "mean": list(encoder.PUBLISHED_MEAN),
            "std": list(encoder.PUBLISHED_STD),
        }

    def encoder_into(
        self, params: dict, batch_stats: dict
    ) -> tuple[dict, dict, str]:
        """Replaces what the file has of a model.

        Args:
          params: of a freshly initialised model.
          batch_stats: of the same.

        Returns:
          params, batch_stats, laid out as they were, and a sentence that
          names what stays as it was, and what of the file is not used.
        """
        ours = {"params": params, "batch_stats": batch_stats}
        leaves, structure = jax.tree_util.tree_flatten_with_path(ours)
        found, absent, merged = [], [], []
        for path, leaf in leaves:
            _, *names = (str(key.key) for key in path)
            array = self._weights.arrays.get(tuple(names))
            (absent if array is None else found).append(names)
            merged.append(leaf if array is None else _placed(array, leaf))
        merged = jax.tree.unflatten(structure, merged)
        told = sentence(
            str(self._path),
            found,
            absent,
            [name.split(".") for name in self._weights.used],
            [name.split(".") for name in self._weights.unused],
        )
        return merged["params"], merged["batch_stats"], told


def find(config: ConfigDict) -> Path | None:
    """Returns the file that `init_from` means; None where it means a run.

    Args:
      config: of the run.

    Raises:
      UserError: no package has the weights, or the file is in a bucket.
    """
    name = config.init_from
    if name == weight_packages.IMAGENET:
        encoder = jax_models.encoder_name(config.model, **config.model_options)
        return comm.run_on_all(lambda: weight_packages.path_of(encoder))
    path = paths.make_path(name)
    if path.suffix not in SUFFIXES:
        return None
    if paths.is_remote(path):
        raise UserError(
            f"init_from names {name}, a file in a bucket; copy it to a disk, "
            "and name it there"
        )
    return None if path.is_dir() else path


def renamed(names: Iterable[str], rows: Sequence[str]) -> dict[str, str]:
    """Returns what the model calls the arrays of a source.

    Args:
      names: of the source.
      rows: `config.init_names`, "pattern -> replacement".

    Returns:
      {name there: name here}.

    Raises:
      UserError: a row changes nothing, or two arrays get one name.
    """
    found = {name: name for name in names}
    for row in rows:
        pattern, _, replacement = row.partition(" ->")
        changed = {
            name: re.sub(pattern, replacement.strip(), now)
            for name, now in found.items()
        }
        if changed == found:
            begin = ", ".join(sorted(found.values())[:3])
            raise UserError(
                f"init_names has {row!r}, which no name of the weights that "
                f"init_from names has in it; they are such as {begin}"
            )
        found = changed
    if len(set(found.values())) < len(found):
        given = sorted(found.values())
        twice = next(a for a, b in itertools.pairwise(given) if a == b)
        raise UserError(
            f"init_names gives two arrays the name {twice}; make its patterns "
            "narrower"
        )
    return found


def open_file(
    path: Path, model: AbstractModel, renames: Sequence[str] = ()
) -> WeightFile:
    """Opens a file of weights; to be called in all processes.

    Raises:
      UserError: as `WeightFile`, or the processes see different files.
    """
    opened = comm.run_on_all(lambda: WeightFile(path, model, renames))
    comm.check_all_equal({"init_from": opened.pin})
    return opened


def sentence(
    source: str,
    found: Iterable[Iterable[str]],
    absent: Iterable[Iterable[str]],
    used: Iterable[Iterable[str]],
    unused: Iterable[Iterable[str]],
) -> str:
    """Says what a model takes from where.

    Args:
      source: where from.
      found: paths of the model's arrays that were taken from there.
      absent: paths of its other arrays.
      used: what the source calls those that were taken.
      unused: names of its other arrays.
    """
    found, absent = list(found), list(absent)
    told = f"starts from the encoder in {source}: "
    told += f"{len(found)} of {len(found) + len(absent)} arrays"
    if left := _outermost(unused, used):
        told += f"; of no use: {', '.join(left)}"
    if anew := _outermost(absent, found):
        told += f"; initialised anew: {', '.join(anew)}"
    return told


def _outermost(
    names: Iterable[Iterable[str]], others: Iterable[Iterable[str]]
) -> list[str]:
    """Groups that hold some of `names` and none of `others`."""
    taken = {
        prefix for other in map(tuple, others) for prefix in _prefixes(other)
    }
    groups = {}
    for name in map(tuple, names):
        free = (prefix for prefix in _prefixes(name) if prefix not in taken)
        groups[next(free, name)] = None
    return ["/".join(group) for group in groups]


def _prefixes(name: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    return (name[:length] for length in range(1, len(name) + 1))


def _placed(array: np.ndarray, like: jax.Array) -> jax.Array:
    """The array on devices, as `like` is."""
    array = array.astype(like.dtype)
    return jax.make_array_from_callback(
        array.shape, like.sharding, lambda index: array[index]
    )
