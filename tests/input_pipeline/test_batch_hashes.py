"""The batches of every recipe, byte for byte what they were when recorded.

Whatever is changed in the pipeline, these must not change: runs that were
begun go on, and scores stay comparable. `python
tests/input_pipeline/test_batch_hashes.py` records them anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from configs import loading
from input_pipeline import loader
from input_pipeline.samplers import BalancedSampler
from input_pipeline.sources.base import ArrayExamples
from input_pipeline.transforms.policy import Augment, TrainTransform
from input_pipeline.transforms.views import EvalTransform

GOLDENS = Path(__file__).parent / "goldens/batch_hashes.json"
# Those that were recorded before the pipeline was rebuilt.
RECIPES = (
    "convnextv2_base",
    "convnextv2_small",
    "efficientnetv2",
    "miniconvnext",
    "tinyvit",
    "tinyvit_mae",
    "tinyvit_ssl",
)
SIZES = ((48, 64), (300, 200), (97, 511), (240, 240), (33, 31), (500, 700))


def photos() -> ArrayExamples:
    """Smooth colours with edges and noise, in sizes of all proportions."""
    rng = np.random.Generator(np.random.Philox(key=7))
    images = []
    for index in range(24):
        height, width = SIZES[index % len(SIZES)]
        y, x = np.mgrid[:height, :width]
        waves = [
            np.sin(x / (5 + 3 * channel + index)) + np.cos(y / (7 + index))
            for channel in range(3)
        ]
        pixels = 128 + 50 * np.stack(waves, axis=-1)
        pixels[height // 3 : height // 2] += 40
        pixels += rng.integers(-20, 21, pixels.shape)
        images.append(np.clip(pixels, 0, 255).astype(np.uint8))
    held = np.empty(len(images), object)
    held[:] = images
    ids = np.array([f"photo-{index}" for index in range(len(images))])
    return ArrayExamples(ids, np.arange(len(images), dtype=np.int32) % 4, held)


def digest(batch: dict[str, np.ndarray]) -> str:
    """Names the bytes of a batch, feature by feature."""
    found = hashlib.sha256()
    for name in sorted(batch):
        values = np.ascontiguousarray(batch[name])
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.tobytes())
    return found.hexdigest()[:16]


def hashes(recipe: str) -> dict[str, list[str]]:
    """By variant and stage: the hashes of three batches, near and far."""
    found = {}
    images = photos()
    for variant in ("", "short", "demo"):
        name = f"configs/{recipe}.py" + (f":{variant}" if variant else "")
        config = loading.load(str(ROOT / name))
        for index, stage in enumerate(config.stages):
            seed = config.seed + 7919 * index
            for device in (False, True):
                augment = {**config.augment, **stage.augment, "device": device}
                batches = []
                for step in (0, 1, 1000):
                    with loader.train_batches(
                        images,
                        TrainTransform(Augment(**augment), config.image_size),
                        BalancedSampler(
                            np.arange(len(images)),
                            images.labels,
                            seed,
                            0.5 if device else config.data.balance,
                        ),
                        batch_size=stage.batch_size,
                        local_rows=range(3),
                        seed=seed,
                        start_step=step,
                    ) as stream:
                        batches.append(digest(next(stream)))
                kind = "device" if device else "host"
                found[f"{variant or 'full'} stage {index} {kind}"] = batches
        if variant != "short":
            with loader.eval_batches(
                images,
                np.arange(9),
                EvalTransform(config.eval.tta, config.image_size),
                batch_size=8,
            ) as stream:
                views = [digest(batch) for batch in stream]
            found[f"{variant or 'full'} views"] = views
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_batches_are_what_was_recorded(recipe):
    assert hashes(recipe) == json.loads(GOLDENS.read_text())[recipe]


if __name__ == "__main__":
    recorded = {recipe: hashes(recipe) for recipe in RECIPES}
    GOLDENS.write_text(json.dumps(recorded, indent=1) + "\n")
