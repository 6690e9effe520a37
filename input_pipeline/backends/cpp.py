"""Operations on pixels in C++ (*.cc here), where they are compiled.

The functions of pillow.py, with the same result to the bit, on arrays of
uint8 `[H, W, 4]`: red, green, blue and a byte that means nothing, as Pillow's
own memory has them, so that nothing is copied on the way in. No function
works in place. Nothing else may be called unless `available()`.
"""

from __future__ import annotations

import ctypes
import functools
import math
import platform
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from core import native_build
from input_pipeline.backends import pillow, pixel_math

HERE = Path(__file__).parent
CODE = native_build.Library(
    "image_ops",
    [HERE / "color.cc", HERE / "nearest.cc", HERE / "resize.cc"],
    [HERE / "pixels.h"],
    flags=(
        "-Wall",
        "-Wextra",
        # Rounds as Pillow and NumPy, which multiply and add in two steps.
        "-ffp-contract=off",
        "-mprefer-vector-width=512",
    ),
)

# Side of an image; Pillow moves pixels of larger ones by other arithmetic.
LARGEST = 8192

# Side of what is resized.
_LONGEST = 1 << 14

_Pointer, _Int, _Long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_FUNCTIONS = {
    "affine": (_Pointer, _Int, _Int, _Pointer, _Pointer),
    "affine_mask": (_Pointer, _Int, _Int, _Pointer, _Int, _Pointer),
    "grayscale": (_Pointer, _Long, _Pointer),
    "grey_sum": (_Pointer, _Long),
    "histograms": (_Pointer, _Long, _Pointer),
    "hue": (_Pointer, _Long, _Int, _Pointer, _Pointer, _Pointer),
    "look_up": (_Pointer, _Long, _Pointer, _Int, _Pointer),
    "mix_colours": (_Pointer, _Long, _Pointer, _Pointer),
    "pack": (_Pointer, _Long, _Pointer),
    "resize": (_Pointer, _Long, *[_Int] * 3, _Pointer, *[_Int] * 3, _Pointer),
    "resize_mask": (_Pointer, _Int, _Int, _Pointer, _Int, _Int, _Pointer),
    "sharpen": (
        *(_Pointer, _Int, _Int),
        *(ctypes.c_float, ctypes.c_float),
        _Pointer,
    ),
}


def begin_compiling() -> None:
    """Begins to compile what `available` will wait for, where it is of use."""
    if _is_of_use():
        CODE.begin()


@functools.cache
def available() -> bool:
    """Whether there is compiled code, and this Pillow computes as it does.

    The first call on a machine compiles for seconds.
    """
    return _is_of_use() and _library() is not None and _agrees()


def _is_of_use() -> bool:
    # Pillow's own code is compiled without fused multiply-adds for this
    # processor, and elsewhere as its compiler likes.
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return hasattr(Image.Image, "__arrow_c_array__")  # Pillow 11.2


@functools.cache
def _library() -> ctypes.CDLL | None:
    path = CODE.path()
    if path is None:
        return None
    try:
        loaded = ctypes.CDLL(str(path))
        for name, arguments in _FUNCTIONS.items():
            function = getattr(loaded, f"sextet_{name}")
            function.argtypes = arguments
            function.restype = _Long if name == "grey_sum" else None
    except (OSError, AttributeError):
        return None
    return loaded


def _agrees() -> bool:
    """Whether what Pillow does in C is what the C++ follows.

    Its order of passes has changed before, and with it the last bits.
    """
    noise = np.random.default_rng(0).integers(0, 256, (67, 40, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    mask = noise[..., 0].astype(np.uint8)
    cosine, sine = math.cos(0.35), math.sin(0.35)  # about the middle
    turn = (
        *(cosine, -sine, 12 * (1 - cosine + sine)),
        *(sine, cosine, 12 * (1 - cosine - sine)),
    )
    shift = (1.0, 0.0, -5.0, 0.0, 1.0, 0.0)
    crops = (0, 0, 40, 67), (3, 5, 40, 37), (8, 2, 20, 17), (0, 0, 39, 55)
    for crop in crops:
        plain = pillow.resized(image, 24, crop)
        native = resized(image, 24, crop)
        plain_mask = pillow.resized_mask(mask, 24, crop)
        native_mask = resized_mask(mask, 24, crop)
        for matrix in (turn, shift):
            plain = pillow.affine(plain, matrix)
            native = affine(native, matrix)
            plain_mask = pillow.affine_mask(plain_mask, matrix, 255)
            native_mask = affine_mask(native_mask, matrix, 255)
        plain = pillow.saturation(plain, 1.3)
        native = saturation(native, 1.3)
        for mine, theirs in (
            (pixels(native), plain),
            (pixels(grayscale(native)), pillow.grayscale(plain)),
            (native_mask, plain_mask),
        ):
            if not np.array_equal(mine, theirs):
                return False
    return True


def resized(
    image: Image.Image | np.ndarray,
    size: int,
    crop: tuple[int, int, int, int] | None = None,
    box: tuple[float, float, float, float] | None = None,
    mirrored: bool = False,
) -> np.ndarray:
    """As `pillow.resized`."""
    try:
        # The pixels are there for as long as what holds them.
        address, width, height, channels, _holder = _memory(image)
    except ValueError:
        plain = pillow.resized(image, size, crop, box, mirrored)
        return from_pillow(plain)
    left, top, right, bottom = crop or (0, 0, width, height)
    shown = box or (0, 0, right - left, bottom - top)
    result = np.empty((size, size, 4), np.uint8)
    _library().sextet_resize(
        address + (top * width + left) * channels,
        width * channels,
        channels,
        right - left,
        bottom - top,
        (ctypes.c_float * 4)(*shown),
        size,
        _down_first(right - left, bottom - top, size),
        mirrored,
        result.ctypes.data,
    )
    return result


def _down_first(width: int, height: int, size: int) -> bool:
    """Whether Pillow changes the height before the width.

    The values are rounded in between, so that the order shows. From 13 on it
    is chosen by what the two take off the image.
    """
    if int(PIL.__version__.partition(".")[0]) < 13:
        return False
    return height - size > 2 * max(width - size, 0)


def _memory(
    image: Image.Image | np.ndarray,
) -> tuple[int, int, int, int, object]:
    """Where an image has its pixels.

    Returns:
      Address, width, height, bytes per pixel, and what holds the memory.

    Raises:
      ValueError: it is for Pillow: in several blocks, as photos of many
        megapixels are, or so long that whole vectors of rows take too much.
    """
    if isinstance(image, np.ndarray):
        height, width, channels = image.shape
    else:
        (width, height), channels = image.size, 4
    if max(width, height) > _LONGEST:
        raise ValueError(f"{width}x{height} is too long")
    if isinstance(image, np.ndarray):
        image = np.ascontiguousarray(image)
        return image.ctypes.data, width, height, channels, image
    holder = image.__arrow_c_array__()
    return _first_pixel(holder[1]), width, height, channels, holder


class _ArrowArray(ctypes.Structure):
    """https://arrow.apache.org/docs/format/CDataInterface.html"""


_ArrowArray._fields_ = [
    *((name, _Long) for name in ("length", "null_count", "offset")),
    *((name, _Long) for name in ("n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(_Pointer)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    *((name, _Pointer) for name in ("dictionary", "release", "private_data")),
]

# Of its own: `ctypes.pythonapi.PyCapsule_GetPointer` is one object for all, and
# others say that it returns something else.
_capsule_pointer = ctypes.PYFUNCTYPE(
    ctypes.POINTER(_ArrowArray), ctypes.py_object, ctypes.c_char_p
)(("PyCapsule_GetPointer", ctypes.pythonapi))


def _first_pixel(capsule: object) -> int:
    """The address of a Pillow image's pixels, lists of four bytes in Arrow."""
    array = _capsule_pointer(capsule, b"arrow_array").contents
    return array.children[0].contents.buffers[1]


def size(image: np.ndarray) -> tuple[int, int]:
    """Returns width and height."""
    return image.shape[1::-1]


def pixels(image: np.ndarray) -> np.ndarray:
    """Returns uint8 `[H, W, 3]`."""
    packed = np.empty((*image.shape[:2], 3), np.uint8)
    _library().sextet_pack(image.ctypes.data, _count(image), packed.ctypes.data)
    return packed


def to_pillow(image: np.ndarray) -> Image.Image:
    """Returns it in mode RGB."""
    return Image.frombytes("RGB", size(image), image, "raw", "RGBX")


def from_pillow(image: Image.Image) -> np.ndarray:
    """Returns what was mode RGB."""
    flat = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8)
    return flat.reshape(image.height, image.width, 4)


def affine(image: np.ndarray, matrix: pixel_math.Matrix) -> np.ndarray:
    """As `pillow.affine`."""
    height, width, _ = image.shape
    moved = np.empty_like(image)
    _library().sextet_affine(
        image.ctypes.data,
        width,
        height,
        (ctypes.c_double * 6)(*matrix),
        moved.ctypes.data,
    )
    return moved


def resized_mask(
    mask: np.ndarray,
    size: int,
    box: tuple[float, float, float, float],
    mirrored: bool = False,
) -> np.ndarray:
    """As `pillow.resized_mask`."""
    mask = np.ascontiguousarray(mask)
    height, width = mask.shape
    result = np.empty((size, size), np.uint8)
    _library().sextet_resize_mask(
        mask.ctypes.data,
        width,
        height,
        (ctypes.c_float * 4)(*box),
        size,
        mirrored,
        result.ctypes.data,
    )
    return result


def affine_mask(
    mask: np.ndarray, matrix: pixel_math.Matrix, fill: int
) -> np.ndarray:
    """As `pillow.affine_mask`."""
    mask = np.ascontiguousarray(mask)
    height, width = mask.shape
    moved = np.empty_like(mask)
    _library().sextet_affine_mask(
        mask.ctypes.data,
        width,
        height,
        (ctypes.c_double * 6)(*matrix),
        fill,
        moved.ctypes.data,
    )
    return moved


def look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """As `pillow.look_up`."""
    table = np.ascontiguousarray(table)
    step = 0 if table.ndim == 1 else 256  # from channel to channel
    return _changed("look_up", image, table.ctypes.data, step)


def mean_grey(image: np.ndarray) -> float:
    """As `pillow.mean_grey`."""
    count = _count(image)
    return _library().sextet_grey_sum(image.ctypes.data, count) / count


def histograms(image: np.ndarray) -> np.ndarray:
    """As `pillow.histograms`."""
    found = np.empty((3, 256), np.int64)
    _library().sextet_histograms(
        image.ctypes.data, _count(image), found.ctypes.data
    )
    return found


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """As `pillow.saturation`."""
    matrix = (ctypes.c_float * 12)(*pixel_math.saturation_matrix(factor))
    return _changed("mix_colours", image, matrix)


def grayscale(image: np.ndarray) -> np.ndarray:
    """As `pillow.grayscale`."""
    return _changed("grayscale", image)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """As `pillow.sharpness`."""
    height, width, _ = image.shape
    sharpened = np.empty_like(image)
    _library().sextet_sharpen(
        image.ctypes.data,
        width,
        height,
        *pixel_math.sharpness_weights(factor),
        sharpened.ctypes.data,
    )
    return sharpened


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """As `pillow.hue`."""
    hues, deductions = pixel_math.hue_tables()
    steps = pixel_math.hue_steps(shift)
    return _changed(
        "hue", image, steps, hues.ctypes.data, deductions.ctypes.data
    )


def _changed(name: str, image: np.ndarray, *arguments: object) -> np.ndarray:
    """What a function makes of every pixel by itself."""
    changed = np.empty_like(image)
    function = getattr(_library(), f"sextet_{name}")
    function(image.ctypes.data, _count(image), *arguments, changed.ctypes.data)
    return changed


def _count(image: np.ndarray) -> int:
    return image.shape[0] * image.shape[1]
