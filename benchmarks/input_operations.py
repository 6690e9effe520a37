"""Where an augmented image's time goes: our operations beside torchvision's.

    python benchmarks/input_operations.py [--write]

A 480x360 JPEG to 224 px by the default recipe. Both sides do the same to the
same images on one core; "share" is how often an image has the operation done.
Ours flips while it resizes.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import pairs
from benchmarks.input_pipeline import PHOTOS, SIZE
from input_pipeline import decoding
from input_pipeline.backends import image_backend
from input_pipeline.backends.image_backend import AnyImage
from input_pipeline.transforms import operations, policy
from input_pipeline.transforms.operations import Operation

# An average crop of the default recipe.
CROP = (40, 20, 455, 332)
JITTER = {"brightness": 1.2, "contrast": 1.2, "saturation": 1.2, "hue": 0.05}
SAMPLE = 8


def cpu_seconds(work: Callable, items: Sequence) -> float:
    """Returns CPU time per item."""
    start = time.process_time()
    for item in items:
        work(item)
    return (time.process_time() - start) / len(items)


def decoded(data: bytes) -> Image.Image:
    """As our pipeline decodes."""
    return decoding.upright_rgb(decoding.open_image(data))


def theirs_decoded(data: bytes) -> Image.Image:
    """As people decode for torchvision."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def does(
    operation: Operation | None,
) -> Callable[[AnyImage], None]:
    """Returns a function that does one operation of ours."""
    listed = [] if operation is None else [operation]
    return lambda image: operations.apply(image, listed)


def lines(files: list[bytes]) -> list[tuple]:
    """Returns (name, share, our work, torchvision's work).

    Work is a function and what to call it with, one after the other.
    """
    from benchmarks.torch_input import v2

    functional = v2.functional

    full = [decoded(data) for data in files]
    ours = [image_backend.resized(image, SIZE, CROP) for image in full]
    theirs = [Image.fromarray(image_backend.pixels(image)) for image in ours]
    left, top, right, bottom = CROP
    window = (top, left, bottom - top, right - left, [SIZE, SIZE])
    found = [
        ("decode", 1.0, (decoded, files), (theirs_decoded, files)),
        (
            "crop and resize",
            1.0,
            (lambda image: image_backend.resized(image, SIZE, CROP), full),
            (lambda image: functional.resized_crop(image, *window), full),
        ),
        (
            "flip",
            0.5,
            (lambda image: image, ours),
            (functional.horizontal_flip, theirs),
        ),
    ]
    theirs_policy = v2.RandAugment(2, 9)
    for name in policy.RANDAUGMENT:
        strength = policy.magnitude(name, 9, SIZE, SIZE)

        def transform(image, name=name, strength=strength):
            nearest = v2.InterpolationMode.NEAREST
            return theirs_policy._apply_image_or_video_transform(
                image, name, strength, interpolation=nearest, fill={}
            )

        work = does(policy.randaugment(name, strength))
        sides = (work, ours), (transform, theirs)
        found.append((f"RandAugment {name}", 2 / 14, *sides))
    for name, value in JITTER.items():
        adjust = getattr(functional, f"adjust_{name}")

        def jitter(image, adjust=adjust, value=value):
            return adjust(image, value)

        sides = (does(Operation(name, value)), ours), (jitter, theirs)
        found.append((f"jitter {name}", 1.0, *sides))
    sides = (image_backend.pixels, ours), (functional.pil_to_tensor, theirs)
    return [*found, ("to bytes", 1.0, *sides)]


def main() -> None:
    """Prints the table."""
    import torch

    options = pairs.parse(__doc__, rounds=15)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        PHOTOS[0].write(folder)
        files = [path.read_bytes() for path in folder.iterdir()][:SAMPLE]
    rows, sums = [], [0.0, 0.0]
    for name, share, ours, theirs in lines(files):
        found = pairs.alternate(
            {
                "ours": lambda work=ours: cpu_seconds(*work),
                "theirs": lambda work=theirs: cpu_seconds(*work),
            },
            options.rounds,
        )
        medians = [found[side].median for side in ("ours", "theirs")]
        sums = [
            total + share * median
            for total, median in zip(sums, medians, strict=True)
        ]
        cells = [f"{1e3 * median:.3f}" for median in medians]
        cells += [f"{1e3 * share * median:.3f}" for median in medians]
        rows.append((name, f"{share:.2f}", *cells))
    sums = [f"{1e3 * total:.3f}" for total in sums]
    rows.append(("sum", "", "", "", *sums))
    head = (
        "ms",
        "share",
        "ours",
        "torchvision",
        "ours, per image",
        "torchvision, per image",
    )
    machine = pairs.describe_machine("pillow", "torch", "torchvision")
    text = pairs.table(head, rows)
    pairs.publish("input_operations", text, machine, options.write)


if __name__ == "__main__":
    main()
