"""Stores what torchvision and albumentations make of small images.

Run where torch, torchvision 0.29 (requirements-torch.txt) and albumentations
2.0.8 (pip install albumentations==2.0.8) are installed, from the repository
root:

    python tools/make_augment_goldens.py

Writes augment.npz and degradations.npz in tests/input_pipeline/goldens. Random
draws inside torchvision are recorded beside its answers, so that the tests can
replay them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from albumentations.augmentations.blur import functional as blur
from albumentations.augmentations.dropout import functional as dropout
from albumentations.augmentations.pixel import functional as pixel
from PIL import Image

# torchvision's C++ operators are not needed here, only their names.
_LIBRARY = torch.library.Library("torchvision", "DEF")
_LIBRARY.define("nms(Tensor dets, Tensor scores, float iou) -> Tensor")
_LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou) -> Tensor")

from torchvision import transforms  # noqa: E402
from torchvision.transforms import autoaugment, functional  # noqa: E402

OUTPUT = Path(__file__).parents[1] / "tests" / "input_pipeline" / "goldens"
SIZES = ((224, 224), (64, 48), (331, 500), (32, 32))  # height, width


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colours, some noise, and flat patches: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height))).astype(int)
    noisy = smooth * 0.8 + 20 + rng.integers(-15, 16, smooth.shape)
    noisy[: height // 4, : width // 4] = noisy[0, 0]
    noisy[-height // 5 :, -width // 5 :] = 128  # grey: no hue
    return np.clip(noisy, 0, 255).astype(np.uint8)


def randaugment_space(height: int, width: int) -> dict:
    """Name -> (magnitudes of all bins or one, signed)."""
    return autoaugment.RandAugment()._augmentation_space(31, (height, width))


def randaugment(image: np.ndarray, name: str, strength: float) -> np.ndarray:
    """One operation as RandAugment applies it."""
    nearest = transforms.InterpolationMode.NEAREST
    result = autoaugment._apply_op(
        Image.fromarray(image), name, strength, nearest, None
    )
    return np.asarray(result)


def all_operations(image: np.ndarray, bins: Sequence[int]) -> dict:
    """`<op>/<bin>/<sign>` -> image after the operation."""
    answers = {}
    for name, (values, signed) in randaugment_space(*image.shape[:2]).items():
        for level in bins if values.ndim else bins[:1]:
            value = float(values[level] if values.ndim else values)
            for sign in (1, -1) if signed else (1,):
                key = f"{name}/{level}/{sign}"
                answers[key] = randaugment(image, name, sign * value)
    return answers


class Recorder:
    """Notes every uniform and integer draw that torch makes."""

    def __init__(self):
        self.uniform: list[float] = []
        self.integers: list[int] = []

    def __enter__(self):
        uniform, randint = torch.Tensor.uniform_, torch.randint

        def noting_uniform(tensor, low, high):
            result = uniform(tensor, low, high)
            self.uniform.append(float(result))
            return result

        def noting_randint(*arguments, **options):
            result = randint(*arguments, **options)
            self.integers.append(int(result))
            return result

        self._patches = [
            mock.patch.object(torch.Tensor, "uniform_", noting_uniform),
            mock.patch.object(torch, "randint", noting_randint),
        ]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *error):
        for patch in self._patches:
            patch.stop()


def crops() -> dict:
    """RandomResizedCrop's boxes with the draws that led to them."""
    rows, draws = [], []
    settings = itertools.product(
        ((40, 48), (64, 64), (3, 200), (200, 3), (1, 1), (17, 90)),
        ((0.5, 1.0), (0.9, 1.0), (0.08, 0.2)),
    )
    for (height, width), scale in settings:
        for _ in range(4):
            with Recorder() as recorder:
                box = transforms.RandomResizedCrop.get_params(
                    torch.zeros(3, height, width), scale, (0.75, 1.3333)
                )
            rows.append([height, width, *box])
            integers = [*recorder.integers, -1, -1][:2]
            padded = [*recorder.uniform, *[np.nan] * 20]
            draws.append([*scale, *integers, *padded[:20]])
    return {"crops/boxes": np.array(rows), "crops/draws": np.array(draws)}


def erasing() -> dict:
    """RandomErasing's rectangles with the draws that led to them."""
    rows, draws = [], []
    for height, width in ((40, 48), (64, 64), (10, 90), (6, 5)):
        for area in ((0.02, 0.2), (0.3, 0.9)):
            for _ in range(6):
                image = torch.zeros(3, height, width)
                with Recorder() as recorder:
                    _, _, h, w, _ = transforms.RandomErasing.get_params(
                        image, area, (0.3, 3.3), [0.0]
                    )
                found = len(recorder.integers) > 0
                rows.append([height, width, h * found, w * found])
                padded = [*recorder.uniform, *[np.nan] * 20]
                draws.append(padded[:20])
    return {"erasing/sizes": np.array(rows), "erasing/draws": np.array(draws)}


def color_jitter(image: np.ndarray) -> dict:
    """ColorJitter in all orders, with the image after each of its steps."""
    answers, parameters = [], []
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.2)
    for order in itertools.permutations(range(4)):
        _, *factors = jitter.get_params(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        after = [Image.fromarray(image)]
        for step in order:
            name = ("brightness", "contrast", "saturation", "hue")[step]
            adjust = getattr(functional, f"adjust_{name}")
            after.append(adjust(after[-1], factors[step]))
        drawn = (torch.tensor(order), *factors)
        with mock.patch.object(jitter, "get_params", return_value=drawn):
            whole = jitter(after[0])
        if np.any(np.asarray(whole) != np.asarray(after[-1])):
            raise AssertionError("these are not the steps of ColorJitter")
        answers.append(np.stack([np.asarray(step) for step in after[1:]]))
        parameters.append([*order, *factors])
    return {
        "jitter/images": np.stack(answers),
        "jitter/parameters": np.array(parameters),
    }


def single_adjustments(image: np.ndarray) -> dict:
    """Each adjustment of ColorJitter alone, to its very ends."""
    picture = Image.fromarray(image)
    answers = {}
    for factor in (0.0, 0.6, 1.0, 1.4, 2.0):
        for name in ("brightness", "contrast", "saturation", "sharpness"):
            adjust = getattr(functional, f"adjust_{name}")
            answers[f"{name}/{factor}"] = np.asarray(adjust(picture, factor))
    for shift in (-0.5, -0.2, -0.003, 0.0, 0.1, 0.5):
        answers[f"hue/{shift}"] = np.asarray(
            functional.adjust_hue(picture, shift)
        )
    answers["grayscale"] = np.asarray(functional.to_grayscale(picture, 3))
    return answers


def evaluation(images: list[np.ndarray]) -> dict:
    """Resize and CenterCrop, and resized crops, at several sizes."""
    answers = {}
    for number, image in enumerate(images):
        for size in (16, 32, 56):
            chain = transforms.Compose(
                [
                    transforms.Resize(round(size * 256 / 224)),
                    transforms.CenterCrop(size),
                ]
            )
            center = chain(Image.fromarray(image))
            answers[f"center/{number}/{size}"] = np.asarray(center)
        crop = functional.resized_crop(
            Image.fromarray(image), 3, 2, 30, 25, [32, 32]
        )
        answers[f"resized_crop/{number}"] = np.asarray(crop)
    return answers


def degradations(image: np.ndarray) -> dict:
    """albumentations' gamma, blur, downscale, compression and dropout."""
    answers = {}
    for exponent in (0.5, 0.8, 0.93, 1.2, 2.2):
        answers[f"gamma/{exponent}"] = pixel.gamma_transform(image, exponent)
    for sigma in (0.1, 0.4, 0.75, 1.3, 2.0, 5.0):
        kernel = blur.create_gaussian_kernel_1d(sigma, 0)
        answers[f"gaussian_blur/{sigma}"] = pixel.separable_convolve(
            image, kernel
        )
    for scale in (0.03, 0.251, 0.37, 0.512, 0.749, 0.987):
        answers[f"downscale/{scale}"] = pixel.downscale(
            image, scale, cv2.INTER_NEAREST, cv2.INTER_NEAREST
        )
    for quality in (1, 40, 65, 90, 100):
        # It encodes what it is given as BGR.
        swapped = np.ascontiguousarray(image[..., ::-1])
        swapped = pixel.image_compression(swapped, quality, ".jpg")
        answers[f"jpeg/{quality}"] = swapped[..., ::-1]
    holes = np.array([[0, 0, 4, 9], [2, 5, 11, 10], [30, 20, 40, 48]])
    answers["coarse_dropout/holes"] = dropout.cutout(
        image, holes, 0, np.random.default_rng(0)
    )
    return {"small": image, "holes": holes} | run_on_all("after", answers)


def run_on_all(name: str, answers: dict) -> dict:
    """Many answers of one shape as two arrays, which compress far better."""
    return {
        f"{name}/keys": np.array(list(answers)),
        f"{name}/images": np.stack(list(answers.values())),
    }


def main() -> None:
    """Writes the file."""
    torch.manual_seed(0)
    tiny, small = picture(13, 16, 1), picture(48, 40, 2)
    wide = picture(37, 61, 3)
    stored = {"tiny": tiny, "small": small, "wide": wide}
    stored |= run_on_all("randaugment/tiny", all_operations(tiny, range(31)))
    stored |= run_on_all("randaugment/small", all_operations(small, [9, 30]))
    for height, width in SIZES:
        for name, (values, _) in randaugment_space(height, width).items():
            stored[f"magnitudes/{height}x{width}/{name}"] = np.atleast_1d(
                values.numpy()
            )
    stored |= crops() | erasing() | color_jitter(tiny)
    stored |= run_on_all("adjust", single_adjustments(small))
    for key, image in evaluation([small, wide]).items():
        stored[f"evaluation/{key}"] = image
    save("augment", stored)
    save("degradations", degradations(small))


def save(name: str, stored: dict) -> None:
    """Writes one file and says so."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.npz"
    np.savez_compressed(path, **stored)
    print(f"{path}: {len(stored)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
