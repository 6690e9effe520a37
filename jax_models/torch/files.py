"""Reads .safetensors and torch.save files without PyTorch, running no code.

A file that torch.save wrote is a zip archive with a pickle in it or, before
PyTorch 1.6, several pickles and the tensors' bytes behind them. Unpickling can
call anything that it names; this reader knows only the handful of names that
tensors need and refuses every other one.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from core.errors import UserError

# How a file of old PyTorch begins, after which comes the format's version.
_OLD_MAGIC = 0x1950A86A20F9469CFC6C
_OLD_VERSION = 1001

# Training scripts wrap the state dict in a dictionary, under these names.
WRAPPERS = ("state_dict", "model")

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict: name -> array.

    Args:
      path: a .safetensors file, or one that torch.save wrote, holding a state
        dict or a dictionary with one under "state_dict" or "model".

    Raises:
      UserError: the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_torch(path)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; check the path"
        ) from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is no whole .safetensors file ({error}); download or "
            "export it again"
        ) from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            is_archive = zipfile.is_zipfile(file)
            file.seek(0)
            content = _read_archive(file) if is_archive else _read_old(file)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        # What a pickle of nonsense makes the unpickler raise.
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"cannot read {path}: {error}; save only the state dict, with "
            "torch.save(model.state_dict(), path)"
        ) from error
    return _state_dict(content, path)


def _state_dict(content: object, path: Path) -> dict[str, np.ndarray]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(
            content.get(wrapper), Mapping
        ):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray)
        for name, array in content.items()
    ):
        raise UserError(
            f"{path} holds no state dict; save one with "
            "torch.save(model.state_dict(), path)"
        )
    return dict(content)


def _read_archive(file: io.BufferedIOBase) -> object:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        pickles = [
            name for name in names if name.rpartition("/")[2] == "data.pkl"
        ]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names:
            order = archive.read(f"{folder}byteorder")
            if order != b"little":
                raise pickle.UnpicklingError("it is big-endian")

        def storage(name: str, dtype: np.dtype, count: int) -> np.ndarray:
            data = archive.read(f"{folder}data/{name}")
            array = np.frombuffer(data, dtype)
            if len(array) != count:
                raise pickle.UnpicklingError(f"its storage {name} is cut short")
            return array

        with archive.open(pickles[0]) as pickled:
            return _Unpickler(pickled, storage).load()


def _read_old(file: io.BufferedIOBase) -> object:
    size = os.fstat(file.fileno()).st_size
    storages = {}

    def storage(name: str, dtype: np.dtype, count: int) -> np.ndarray:
        if not 0 <= count * dtype.itemsize <= size:
            raise pickle.UnpicklingError(f"its storage {name} is cut short")
        # Several tensors may share one. Its bytes come behind all of them.
        return storages.setdefault(name, np.empty(count, dtype))

    def next_pickle() -> Any:
        return _Unpickler(file, storage).load()

    if next_pickle() != _OLD_MAGIC or next_pickle() != _OLD_VERSION:
        raise pickle.UnpicklingError("torch.save did not write it")
    if not next_pickle()["little_endian"]:
        raise pickle.UnpicklingError("it is big-endian")
    content = next_pickle()
    for name in next_pickle():
        array = storages[name]
        count = int.from_bytes(file.read(8), "little")
        data = file.read(array.nbytes)
        if count != len(array) or len(data) != array.nbytes:
            raise pickle.UnpicklingError(f"its storage {name} is cut short")
        array[:] = np.frombuffer(data, array.dtype)
        del storages[name]
    if storages:
        raise pickle.UnpicklingError("it lacks some of its storages")
    return content


class _Storage:
    """Stands for torch.FloatStorage and its like: only names a dtype."""

    def __init__(self, dtype: type[np.generic]):
        self.dtype = np.dtype(dtype)


class _Unpickler(pickle.Unpickler):
    """Builds arrays and dictionaries; refuses to import anything."""

    def __init__(
        self,
        file: io.BufferedIOBase,
        storage: Callable[[str, np.dtype, int], np.ndarray],
    ):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """The handful of names that a state dict needs."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return _Storage(_STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        raise pickle.UnpicklingError(
            f"it wants to call {module}.{name}, which no state dict needs"
        )

    def persistent_load(self, key: tuple) -> np.ndarray:
        """The bytes of one storage, as a flat array."""
        kind, storage, name, _, count, *view = key
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"it refers to a {kind!r}")
        return self._storage(name, storage.dtype, count)


def _rebuild_tensor(
    storage: np.ndarray,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_: Any,
) -> np.ndarray:
    """A tensor as a view of its storage, checked against its bounds."""
    last = offset + sum(
        (length - 1) * stride
        for length, stride in zip(shape, strides, strict=True)
    )
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    if min((offset, *strides, *shape)) < 0 or last >= len(storage):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, steps, writeable=False
    )


def _rebuild_parameter(array: np.ndarray, *_: Any) -> np.ndarray:
    return array
