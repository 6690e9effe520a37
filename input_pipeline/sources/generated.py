"""Images of a generator, to train on beside photos, and what it has seen.

They are examples of the training stream alone: they have no fold, and no
part in validation or prediction.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core import paths
from core.csv_table import did_you_mean
from core.errors import UserError
from input_pipeline.samplers import MixedSampler, Sampler, ShuffledSampler
from input_pipeline.sources.base import Examples, FileExamples, Source
from run_folder import layout, sample_manifest

# In `data.generated_classes`: those of fewer photos than the mean.
RARE = "rare"


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedExamples(Examples):
    """Photos, and behind them generated images.

    Attributes:
      first: the photos.
      second: the generated images.
      weight: what each of the second counts in a loss.
    """

    first: Examples
    second: Examples
    weight: float

    def path(self, row: int) -> str:
        """The absolute path of a row's file; empty where it has none."""
        part, row = self._find(row)
        return part.path(row)

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """What rows count in a loss: float32 `[n]` for int `[n]`."""
        generated = np.asarray(rows) >= len(self.first)
        return np.where(generated, self.weight, 1.0).astype(np.float32)

    def read(self, row: int) -> dict[str, bytes | np.ndarray]:
        """Returns `image`; see `Examples.read`."""
        part, row = self._find(row)
        return {"image": part.read(row)["image"]}

    def _find(self, row: int) -> tuple[Examples, int]:
        count = len(self.first)
        if row < count:
            return self.first, row
        return self.second, row - count


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a generator has exported.

    Attributes:
      folder: of its run.
      examples: the images.
      digest: names their content.
      rows_hash: of the photos that the generator saw, and the others.
      classes: whose images these are, where others are left out.
    """

    folder: Path
    examples: FileExamples
    digest: str
    rows_hash: str
    classes: tuple[str, ...] = ()

    def of_classes(
        self, wanted: Sequence[Any], classes: Sequence[str], shares: np.ndarray
    ) -> Generated:
        """Returns the images of some classes alone.

        Args:
          wanted: `data.generated_classes`.
          classes: of the data, C names.
          shares: float [C], of the photos that are trained on.

        Raises:
          UserError: there is no such class, or no image of them.
        """
        wanted = [str(name) for name in wanted]  # Of digits, perhaps.
        if not wanted:
            return self
        where = f"data.generated_classes is {', '.join(wanted)}"
        if wanted == [RARE] and RARE not in classes:
            chosen = shares < shares.mean() * (1 - 1e-9)
            if not chosen.any():
                raise UserError(
                    f"{where}, and all classes have as many photos; leave it "
                    "out"
                )
        else:
            for name in wanted:
                if name not in classes:
                    raise UserError(
                        f"{where}, and the data have no class '{name}'"
                        f"{did_you_mean(name, classes)}; choose from "
                        f"{', '.join(classes)}, or give {RARE!r} alone"
                    )
            chosen = np.isin(classes, wanted)
        names = tuple(np.asarray(classes)[chosen].tolist())
        rows = np.flatnonzero(chosen[self.examples.labels])
        if not len(rows):
            raise UserError(
                f"{where}, and {self.folder} has no image of "
                f"{', '.join(names)}; export more there, with "
                "--config.generate.count"
            )
        one = self.examples
        examples = FileExamples(
            one.ids[rows],
            one.labels[rows],
            folder=one.folder,
            names=[one.names[row] for row in rows],
        )
        return dataclasses.replace(self, examples=examples, classes=names)

    def describe(self, data: Any, rows_hash: str) -> dict[str, str]:
        """Returns what the plan says of it, as {heading: text}.

        Args:
          data: `config.data`.
          rows_hash: of the data.
        """
        doubt = ""
        if rows_hash != self.rows_hash:
            doubt = (
                "; its generator learned from other data, so if photos that "
                "validate here were among them by other ids, scores are too "
                "high"
            )
        of = f" of {', '.join(self.classes)}" if self.classes else ""
        return {
            "generated": f"{len(self.examples):,} images{of} in {self.folder}: "
            f"{data.generated_share:.0%} of what is trained on, weight "
            f"{data.generated_weight:g}{doubt}"
        }

    def prior(self, photos: np.ndarray, data: Any) -> np.ndarray:
        """Returns each class's share of a loss over both: float [C].

        Args:
          photos: float [C], of the photos.
          data: `config.data`, the share and the weight of these images.
        """
        labels, share = self.examples.labels, data.generated_share
        images = np.bincount(labels, minlength=len(photos)) / len(labels)
        both = (1 - share) * photos + share * data.generated_weight * images
        return both / both.sum()

    def mixed(
        self, photos: Examples, sampler: Sampler, data: Any, seed: int
    ) -> tuple[JoinedExamples, MixedSampler]:
        """Returns photos with these images behind them, and their order.

        Args:
          photos: that `sampler` takes rows of.
          sampler: of the photos.
          data: `config.data`, the share and the weight of these images.
          seed: of their order.
        """
        both = JoinedExamples(
            np.concatenate([photos.ids, self.examples.ids]),
            np.concatenate([photos.labels, self.examples.labels]),
            photos,
            self.examples,
            data.generated_weight,
        )
        rows = np.arange(len(self.examples))
        # Not in step with the photos, where there are as many of them.
        order = ShuffledSampler(rows, seed + 1)
        mixed = MixedSampler(
            sampler, order, data.generated_share, len(photos), seed + 2
        )
        return both, mixed


def open_generated(
    name: str,
    source: Source,
    val_rows: np.ndarray,
    beside: Path,
    fold: int,
) -> Generated:
    """Opens the images of a generator's run; changes nothing in it.

    Args:
      name: of the run folder, or the bare name of one in `beside`.
      source: that they are mixed into.
      val_rows: int [n], rows of `source.labelled` that validate.
      beside: folder of runs.
      fold: that validates; of a run over all folds the same one is taken.

    Raises:
      UserError: there are none, they are of other classes, or the generator
        has seen a photo that validates.
    """
    folder = paths.make_path(name)
    if len(folder.parts) == 1 and not folder.is_dir():
        folder = beside / name
        if not folder.is_dir():  # This run is one fold of a run over all.
            folder = beside.parent / name
    if paths.is_remote(folder):
        raise UserError(
            f"data.generated names {folder}, in a bucket: copy its samples/ "
            f"and {layout.ARTIFACTS} into a folder here, and name that"
        )
    if not folder.is_dir():
        raise UserError(
            f"data.generated is {name}, and there is no such folder, neither "
            f"here nor in {beside}; name the --workdir of a run of "
            "configs/flow.py"
        )
    if (within := layout.fold_folder(folder, fold)).is_dir():
        folder = within
    folder = folder.absolute()
    try:
        manifest = json.loads((folder / layout.SAMPLES).read_text("utf-8"))
        written = json.loads((folder / layout.ARTIFACTS).read_text("utf-8"))
        saw, classes = set(manifest["saw"]), manifest["classes"]
        files = [image["file"] for image in manifest["images"]]
        labels = [int(image["label"]) for image in manifest["images"]]
        _ = files[0]
        digests = {file: written["files"][file]["sha256"] for file in files}
        rows_hash = manifest["rows_hash"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"data.generated names {folder}, which has no finished export of "
            "generated images; run its training's command again, with "
            "--export if it is finished, or name a run of configs/flow.py"
        ) from error
    # Their content names them in this run's identity, so it must be theirs.
    changed = (
        file for file in files if _sha256(folder / file) != digests[file]
    )
    if first := next(changed, ""):
        raise UserError(
            f"data.generated names {folder}, whose image {first} is gone or "
            "has changed; make the same ones again by its training's command "
            f"with {sample_manifest.flags(manifest)}"
        )
    if tuple(classes) != tuple(source.classes):
        raise UserError(
            f"data.generated names {folder}, which makes images of other "
            "classes than the data has; train a generator on these data"
        )
    if not saw.intersection(source.labelled.ids.tolist()):
        raise UserError(
            f"data.generated names {folder}, whose generator saw photos by "
            "other ids, so nothing tells whether one of them validates here; "
            "train a generator on these data"
        )
    leaked = [str(i) for i in source.labelled.ids[val_rows] if str(i) in saw]
    if leaked:
        raise UserError(
            f"data.generated names {folder}, whose generator was trained on "
            f"photos that validate here ({len(leaked):,} of them, such as "
            f"'{leaked[0]}'), so scores would be too high; take a generator "
            f"over the same folds and of fold {fold}; that one is of fold "
            f"{manifest.get('fold')} of its own"
        )
    examples = FileExamples(
        np.array(files),
        np.array(labels, np.int32),
        folder=str(folder),
        names=files,
    )
    text = json.dumps([digests, labels], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Generated(folder, examples, digest, rows_hash)


def _sha256(path: Path) -> str:
    """Of a file; '' where there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
