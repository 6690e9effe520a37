"""Bytes to RGB pixels, whatever the file holds.

One decoder, Pillow. Every failure is a `BadImage` with a reason, never a
crash: what to do about it (leave the row out, keep it with the class prior) is
the caller's decision.
"""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from PIL import Image, features

from core import hardware
from input_pipeline import repair

# Formats that people keep photos in. The list is closed because Pillow's full
# list holds some that run other programs (EPS starts Ghostscript).
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
}

# Those that this Pillow was built without.
_LACKING = {
    name for name in ("WEBP", "AVIF") if not features.check(name.lower())
}

FORMATS = tuple(name for name in _ENDINGS if name not in _LACKING)

EXTENSIONS = tuple(ending for name in FORMATS for ending in _ENDINGS[name])

# Of images that are not decoded: of cameras, phones and drawing programs.
OTHER_EXTENSIONS = (
    *(ending for name in _LACKING for ending in _ENDINGS[name]),
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx"),
    *(".jxr", ".wdp", ".hdp", ".bpg", ".svg", ".eps", ".psd", ".xcf", ".tga"),
    *(".ico", ".icns", ".pcx", ".qoi", ".dds", ".exr", ".hdr", ".dcm"),
    *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)

# How files of these formats begin.
_BEGINNINGS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM............[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II\*\0|MM\0\*",
    "PPM": rb"P[1-6f]\s+[#\d]",
    "AVIF": rb"....ftypavi[fs]",
}
_BEGINNING = re.compile(
    b"|".join(_BEGINNINGS[name] for name in FORMATS), re.DOTALL
)

# So many bytes tell what a file is.
BEGINNING_BYTES = 18

# Pillow warns of oddities in files that it can read all the same.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# Pillow's own store (PILLOW_BLOCKS_MAX) is not enough, as it sizes each block
# anew by realloc().
hardware.keep_freed_memory(limit=1 << 26)
Image.core.set_blocks_max(4)

# Refused before any pixel is decoded. A photo of 89 megapixels is larger than
# any camera makes; decoded it already takes 360 MB.
MAX_PIXELS = 89_478_485

# In `Image.info`: what is wrong with a file whose pixels are all there.
REPAIRED = "repaired"

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """An image that cannot be read; the message is the reason in words."""


def looks_like_image(beginning: bytes) -> bool:
    """Whether a file that begins like this is of one of `FORMATS`.

    Args:
      beginning: the first `BEGINNING_BYTES`.
    """
    return _BEGINNING.match(beginning) is not None


def open_image(data: bytes | np.ndarray) -> Image.Image:
    """Opens an image without decoding its pixels.

    Args:
      data: an encoded file, or pixels uint8 `[H, W, 3]`.

    Returns:
      A Pillow image whose size is known. `upright_rgb` decodes it.

    Raises:
      BadImage: not an image, or more than `MAX_PIXELS` pixels.
    """
    if isinstance(data, np.ndarray):
        check_pixels(data)
        return Image.fromarray(data)
    if not data:
        raise BadImage("the file is empty")
    try:
        image = _opened(data)
    except BadImage as error:
        shorter = repair.png_without_text(data)
        if shorter is None:
            raise
        image = _opened(shorter)
        image.info[REPAIRED] = f"read without text and profiles: {error}"
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}x{height} is more than {MAX_PIXELS} pixels")
    if width < 1 or height < 1:
        raise BadImage("the image has no pixels")
    return image


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise BadImage("not an image in a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(f"more than {MAX_PIXELS} pixels") from None
    except MemoryError:
        raise BadImage("decoding needs too much memory") from None
    except Exception as error:  # Pillow's parsers raise nearly anything.
        raise BadImage(f"broken header ({error})") from error


def _loaded(image: Image.Image) -> Image.Image:
    """Decodes the pixels of what `open_image` opened.

    Returns:
      The same image, or another one of the same pixels where the file is
      damaged, but not in them; the given one's `info` then has `REPAIRED`.
    """
    file = getattr(image, "fp", None)  # Pixels from memory have none.
    data = file.getvalue() if isinstance(file, io.BytesIO) else b""
    try:
        if repair.is_jpeg_filled_up(data):
            raise OSError("the file is filled up with zeros")
        image.load()
        return image
    except MemoryError:
        raise
    except Exception as error:
        if whole := repair.jpeg_with_end(data):
            problem = "its end is missing, but no pixel"
        elif whole := repair.png_without_text(data):
            problem = f"read without text and profiles: {error}"
        else:
            raise
        other = _opened(whole)
        if image.format in ("JPEG", "MPO") and image.decoderconfig:
            reduce_jpeg(other, image.decoderconfig[0])
        other.load()
        image.info[REPAIRED] = problem
        return other


def check_pixels(pixels: np.ndarray) -> None:
    """Raises BadImage unless these are uint8 `[H, W, 3]` with a pixel."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise BadImage(
            f"pixels are {pixels.dtype} {pixels.shape}, not uint8 [H, W, 3]"
        )
    if not pixels.size:
        raise BadImage("the image has no pixels")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of what `upright_rgb` makes of a JPEG, undecoded."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


def reduce_jpeg(image: Image.Image, factor: int) -> int:
    """Has a JPEG decoded at a half, a quarter or an eighth of its size.

    The decoder then computes one pixel for each 2x2, 4x4 or 8x8 of them,
    their mean or nearly so, straight from the low frequencies.

    Args:
      image: a JPEG from `open_image`, not decoded yet; changed in place.
      factor: 1, 2, 4 or 8.

    Returns:
      The factor; 1 if this file can only be decoded as it is.
    """
    width, height = image.size
    if factor > 1:
        image.draft(image.mode, (width // factor, height // factor))
    return factor if image.size != (width, height) else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decodes what `open_image` opened, to mode RGB, the right way up.

    Grey and palette images become RGB, 16-bit values are scaled to 8 bits,
    alpha is composited over white, CMYK is converted, the EXIF orientation is
    applied, and of an animation the first frame counts.

    Raises:
      BadImage: the pixel data is damaged or cut off.
    """
    try:
        image = _loaded(image)
        turn = orientation(image)
        rgb = image if image.mode == "RGB" else None
        if rgb is None or "transparency" in image.info:
            rgb = _to_rgb(image)
        return rgb.transpose(_TURNS[turn]) if turn in _TURNS else rgb
    except MemoryError:
        raise BadImage("decoding needs too much memory") from None
    except Exception as error:
        raise BadImage(f"damaged pixel data ({error})") from error


def is_transparent(image: Image.Image) -> bool:
    """Whether no pixel of an image that `upright_rgb` decoded can be seen."""
    if image.mode[0] in "IF" or not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[1] == 0


def decode(data: bytes | np.ndarray) -> np.ndarray:
    """Decodes one image.

    Args:
      data: an encoded file, or pixels uint8 `[H, W, 3]`.

    Returns:
      uint8 `[H, W, 3]`, upright (see `upright_rgb`).

    Raises:
      BadImage: the data cannot be read.
    """
    return np.asarray(upright_rgb(open_image(data)))


def decode_mask(
    data: bytes | np.ndarray, *, colours: bool = False
) -> np.ndarray:
    """Decodes a segmentation mask.

    Values are taken as they are, those of a palette image as the indices.

    Args:
      data: an encoded file, or uint8 `[H, W]`.
      colours: whether a mask may be in colour.

    Returns:
      uint8 `[H, W]`, a value per pixel; of a mask in colour `[H, W, 3]`,
      whatever its alpha.

    Raises:
      BadImage: the data cannot be read, values are not exact (JPEG), not of
        one channel, or above 255, or an EXIF entry turns it: programs differ
        in whether they do so with masks.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 2 or not data.size:
            raise BadImage(
                f"mask is {data.dtype} {data.shape}, not uint8 [H, W]"
            )
        return data
    image = open_image(data)
    if image.format in ("JPEG", "MPO"):
        raise BadImage("JPEG does not keep a mask's values; save it as PNG")
    if orientation(image) != 1:
        raise BadImage("its EXIF entry turns the mask; save it without")
    try:
        values = np.array(_loaded(image))
    except MemoryError:
        raise BadImage("decoding needs too much memory") from None
    except Exception as error:
        raise BadImage(f"damaged mask data ({error})") from error
    if colours and image.mode in ("RGB", "RGBA"):
        return values[..., :3]
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise BadImage(
            f"mask has mode {image.mode}, not one channel; save class indices, "
            "or list the classes' colours as r, g, b"
        )
    if values.min() < 0 or values.max() > 255:
        raise BadImage("mask has values outside 0 to 255")
    return values.astype(np.uint8)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation 1 to 8; 1 if there is none, or it is broken.

    Args:
      image: from `open_image`.
    """
    if image.format is None:
        return 1
    if image.format in ("JPEG", "MPO") and "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # Broken EXIF around intact pixels: keep the pixels.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to RGB without clipping 16 bits or dropping alpha."""
    if image.mode.startswith("I"):
        # Pillow clips these to 255 in convert(); 65535 / 257 is 255. In
        # place, for an image of the largest size takes 360 MB here.
        values = np.array(image, np.int32)
        np.clip(values, 0, 65535, out=values)
        values += 128
        values //= 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.array(image, np.float32), copy=False)
        if values.max() <= 1.0:
            values *= 255.0
        values += 0.5
        np.clip(values, 0, 255, out=values)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        white.alpha_composite(rgba)
        return white.convert("RGB")
    return image.convert("RGB")
