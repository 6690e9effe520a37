"""What a logistic regression on hand-made features gives on the same rows.

    python benchmarks/without_a_network.py DATA

Histograms of oriented gradients (Dalal & Triggs, CVPR 2005: cells of 8x8
pixels, 9 orientations, blocks of 2x2 cells, clipped at .2) and a histogram of
8x8x8 colours, of photos at 64 px; the rows that train and validate are those
of the recipes, and the regression's strength is chosen by folds inside the
training rows. Networks that do not beat this have learnt nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


import numpy as np
from PIL import Image
from sklearn import linear_model, metrics, model_selection, pipeline
from sklearn.preprocessing import StandardScaler

from configs import inputs
from input_pipeline.decoding import decode
from input_pipeline.folds import folds_for
from input_pipeline.sources import open_source

SIDE, CELL, ORIENTATIONS, COLOURS = 64, 8, 9, 8
STRENGTHS = (3e-4, 1e-3, 3e-3)


def oriented_gradients(grey: np.ndarray) -> np.ndarray:
    """Describes a square image, float [S, S] from 0 to 1, by its edges."""
    down, right = np.gradient(grey)
    angle = np.mod(np.arctan2(down, right), np.pi) / np.pi * ORIENTATIONS
    below = np.floor(angle)
    cells = grey.shape[0] // CELL
    histogram = np.zeros((cells, cells, ORIENTATIONS))
    # An edge between two orientations counts for both.
    for shift, share in ((0, 1 - (angle - below)), (1, angle - below)):
        kind = (below.astype(int) + shift) % ORIENTATIONS
        weight = np.hypot(down, right) * share
        for orientation in range(ORIENTATIONS):
            votes = np.where(kind == orientation, weight, 0)
            votes = votes.reshape(cells, CELL, cells, CELL)
            histogram[..., orientation] += votes.sum((1, 3))
    blocks = np.concatenate(
        [
            histogram[row : cells - 1 + row, column : cells - 1 + column]
            for row in (0, 1)
            for column in (0, 1)
        ],
        axis=-1,
    )
    for largest in (0.2, 1.0):
        length = np.sqrt(np.square(blocks).sum(-1, keepdims=True) + 1e-4)
        blocks = np.minimum(blocks / length, largest)
    return blocks.ravel()


def colours(pixels: np.ndarray) -> np.ndarray:
    """Roots of the shares of colours in an image, uint8 [S, S, 3] in HSV."""
    bins = pixels.reshape(-1, 3).astype(int) * COLOURS // 256
    index = bins @ (COLOURS**2, COLOURS, 1)
    counts = np.bincount(index, minlength=COLOURS**3)
    return np.sqrt(counts / counts.sum())


def features(data: bytes | np.ndarray) -> np.ndarray:
    """Both descriptions of a photo, joined."""
    photo = Image.fromarray(decode(data)).resize((SIDE, SIDE), Image.BICUBIC)
    grey = np.asarray(photo.convert("L"), np.float64) / 255
    hsv = np.asarray(photo.convert("HSV"))
    return np.concatenate([oriented_gradients(grey), colours(hsv)])


def main(root: str) -> None:
    """Prints accuracy and macro-F1 on the validation rows."""
    config = inputs.data()
    config.root = root
    source = open_source(config)
    folds = folds_for(
        source, config.folds, config.folds_seed, Path("no folds file")
    )
    images = source.labelled
    described = np.stack(
        [features(images.read(i)["image"]) for i in range(len(images))]
    )
    train = np.flatnonzero(folds != config.fold)
    val = np.flatnonzero(folds == config.fold)
    search = model_selection.GridSearchCV(
        pipeline.make_pipeline(
            StandardScaler(),
            linear_model.LogisticRegression(max_iter=300),
        ),
        {"logisticregression__C": STRENGTHS},
        scoring="f1_macro",
        cv=3,
    )
    search.fit(described[train], images.labels[train])
    found = search.predict(described[val])
    true = images.labels[val]
    macro_f1 = metrics.f1_score(true, found, average="macro")
    print(
        f"{len(train):,} rows to train, {len(val):,} to validate: macro-F1 "
        f"{macro_f1:.4f}, accuracy {(found == true).mean():.4f} "
        f"({search.best_params_})"
    )


if __name__ == "__main__":
    main(sys.argv[1])
