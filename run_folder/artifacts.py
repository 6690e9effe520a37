"""What a finished run exports, and the manifest that says it is complete.

`artifacts.json` names the step of the weights, and each file with its size
and SHA-256. It is written last: without it, or with a file of another size,
the export is not complete and has to be made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from core import paths
from core.atomic_files import atomic_write, cannot_write, write_text
from core.output import ESCAPE
from run_folder import layout, mask_files, pair_files, submission_file
from run_folder.pair_files import PairScores
from run_folder.predictions import Logits, save_logits
from run_folder.submission_file import Sample


class ArtifactWriter:
    """Writes the files of one export, each atomically.

    Names are paths inside the run folder, such as `embeddings/val.npz`: files
    at its top, in one of `layout.PREDICTION_FOLDERS`, or in a folder below
    `masks` or `probabilities`. From `begin` to `finish` the folder counts as
    not exported, so a process killed in between leaves nothing that passes for
    an export. Every process of a run may have a writer; one of them calls its
    methods.

    Args:
      workdir: the run folder.
      step: of the checkpoint whose weights predict.

    Attributes:
      workdir: the run folder.

    Raises:
      UserError: the folder cannot be written (by each method).
    """

    def __init__(self, workdir: Path, step: int):
        self.workdir, self._step = paths.make_path(workdir), step
        self._files: dict[str, dict[str, Any]] = {}

    def begin(self) -> None:
        """Deletes the manifest of an earlier export; to be called first."""
        path = self.workdir / layout.ARTIFACTS
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if paths.is_remote(path):  # Told by `paths.reaching`.
                raise
            raise cannot_write(path, error) from error

    def logits(self, split: str, logits: Logits) -> Path:
        """Writes `logits/<split>.npz`; see `run_folder.predictions`."""
        path = layout.logits_path(self.workdir, split)
        with self._new(path.relative_to(self.workdir).as_posix()) as temporary:
            save_logits(temporary, logits, path)
        return path

    def pairs(self, split: str, scores: PairScores) -> Path:
        """Writes `pairs/<split>.npz`; see `run_folder.pair_files`."""
        path = layout.pairs_path(self.workdir, split)
        name = path.relative_to(self.workdir).as_posix()
        return self.array(name, **pair_files.checked(path, scores).arrays)

    def similarities(
        self, sample: Sample, ids: np.ndarray, similarity: np.ndarray
    ) -> Path:
        """Writes `submission.csv`; see `submission_file.with_similarities`."""
        name = "submission.csv"
        text = submission_file.with_similarities(sample, ids, similarity)
        with self._new(name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return self.workdir / name

    def array(self, name: str, **arrays: np.ndarray) -> Path:
        """Writes arrays to an `.npz` file, by name."""
        with self._new(name, ".npz") as temp, open(temp, "wb") as file:
            np.savez(file, **arrays)
        return self.workdir / name

    def image(self, name: str, pixels: np.ndarray) -> Path:
        """Writes uint8 [H, W], [H, W, 3] or [H, W, 4] to a `.png` file."""
        from PIL import Image  # Needed by this method alone.

        with self._new(name, ".png") as temporary:
            Image.fromarray(pixels).save(temporary, format="png")
        return self.workdir / name

    def mask(
        self, name: str, values: np.ndarray, palette: Sequence[int] = ()
    ) -> Path:
        """Writes a mask uint8 [H, W] to a `.png` file.

        Args:
          name: of the file.
          values: what it holds.
          palette: R, G, B for each value; () makes it grey.
        """
        with self._new(name, ".png") as temporary:
            mask_files.save_mask(temporary, values, palette)
        return self.workdir / name

    @contextlib.contextmanager
    def probabilities(
        self, name: str, *args: Any, **kwargs: Any
    ) -> Iterator[mask_files.AddStripe]:
        """Writes the probabilities of an image's pixels to an `.npz` file.

        Args:
          name: of the file.
          *args: of `mask_files.write_probabilities`.
          **kwargs: the same.

        Yields:
          As that does.
        """
        with (
            self._new(name, ".npz") as temporary,
            mask_files.write_probabilities(temporary, *args, **kwargs) as add,
        ):
            yield add

    def text(self, name: str, text: str) -> Path:
        """Writes text as UTF-8."""
        with self._new(name) as temporary:
            temporary.write_bytes(text.encode("utf-8", ESCAPE))
        return self.workdir / name

    def json(self, name: str, value: Any) -> Path:
        """Writes JSON to a `.json` file."""
        text = json.dumps(value, indent=1) + "\n"
        with self._new(name, ".json") as temporary:
            temporary.write_text(text, encoding="utf-8")
        return self.workdir / name

    def finish(self) -> None:
        """Writes the manifest: the export is complete."""
        files = dict(sorted(self._files.items()))
        text = json.dumps({"step": self._step, "files": files}, indent=1)
        write_text(self.workdir / layout.ARTIFACTS, text + "\n")

    @contextlib.contextmanager
    def _new(self, name: str, suffix: str = "") -> Iterator[Path]:
        """As `atomic_write`; takes the file into the manifest."""
        folder = PurePosixPath(name).parent.as_posix()
        known = folder in (".", *layout.PREDICTION_FOLDERS)
        # A file for each image of a split.
        parts = PurePosixPath(name).parts
        known |= len(parts) > 2 and parts[0] in layout.FOLDERS_BY_SPLIT
        known &= ".." not in parts
        if not known or not name.endswith(suffix):
            raise ValueError(f"no artifact may be called {name!r}")
        with atomic_write(self.workdir / name) as temporary:
            yield temporary
            # Here: in a bucket it would have to be fetched again.
            with open(temporary, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            about = {"bytes": temporary.stat().st_size, "sha256": digest}
        self._files[name] = about


def is_complete(workdir: Path) -> bool:
    """Whether an export came to its end, and all of its files are there."""
    try:
        manifest = json.loads((workdir / layout.ARTIFACTS).read_text("utf-8"))
        return all(
            paths.size(workdir / name) == file["bytes"]
            for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False
