"""The images in a folder, and which file belongs to an id."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError
from input_pipeline.decoding import EXTENSIONS
from input_pipeline.sources.base import FileExamples


class Folder:
    """A folder's listing: one pass over it instead of a question per file."""

    def __init__(self, path: Path, flag: str):
        self.path = path
        if not path.is_dir():
            problem = "is not a folder" if path.exists() else "does not exist"
            raise UserError(
                f"image folder {path} {problem}; create it or set "
                f"--config.{flag}"
            )
        self._entries = entries(path)
        self._by_stem: dict[str, list[str]] | None = None

    def image_names(self) -> list[str]:
        """Every entry that is called like an image, numbers in their order."""
        names = [name for name in self._entries if _is_image_name(name)]
        return sorted(names, key=_natural_order)

    def find_all(
        self, ids: Sequence[str], extension: str, table: Path
    ) -> list[str]:
        """The file of every id, or an error that names the first without."""
        names = [self._find(image_id, extension) for image_id in ids]
        if None in names:
            culprit = ids[names.index(None)]
            count = names.count(None)
            others = f" (and {count - 1} more)" if count > 1 else ""
            raise UserError(
                f"id '{culprit}' of {table} has no image in {self.path}"
                f"{others}; add the file, remove the row, or set "
                "--config.data.extension"
            )
        return names

    def _find(self, image_id: str, extension: str) -> str | None:
        if image_id + extension in self._entries:
            return image_id + extension
        if image_id in self._entries and _is_image_name(image_id):
            return image_id
        if "/" in image_id:
            for name in _candidates(image_id, extension):
                if (self.path / name).exists():
                    return name
            return None
        if self._by_stem is None:
            self._by_stem = {}
            for name in self.image_names():
                key = unicodedata.normalize("NFC", stem(name))
                self._by_stem.setdefault(key, []).append(name)
        # macOS writes é as two characters, spreadsheets as one.
        key = unicodedata.normalize("NFC", image_id)
        return self._by_stem.get(key, [None])[0]

    def sizes(self, names: Iterable[str]) -> list[int]:
        """Bytes per file, -1 where nobody can say."""
        return [self._file_size(name) for name in names]

    def _file_size(self, name: str) -> int:
        try:
            if name in self._entries:
                return self._entries[name].stat().st_size
            return (self.path / name).stat().st_size
        except OSError:
            return -1


def entries(folder: Path) -> dict[str, os.DirEntry]:
    """The entries of a folder, by name."""
    try:
        with os.scandir(folder) as found:
            return {entry.name: entry for entry in found}
    except OSError as error:
        raise UserError(
            f"cannot list folder {folder}: {error.strerror}; check its "
            "permissions"
        ) from error


def every_image(folder: Folder) -> FileExamples:
    """Returns all images of a test folder, without labels."""
    names = folder.image_names()
    if not names:
        raise UserError(
            f"test folder {folder.path} holds no image "
            f"({', '.join(EXTENSIONS)}); put the images there or remove it"
        )
    check_readable_names(folder.path, names)
    ids = [stem(name) for name in names]
    if len(set(ids)) < len(ids):
        ids = names  # 1.jpg beside 1.png: only full names tell them apart.
    return unlabelled(ids, folder, names)


def unlabelled(
    ids: Sequence[str], folder: Folder, names: Sequence[str]
) -> FileExamples:
    """Returns images of a folder without labels.

    Args:
      ids: one for each.
      folder: that holds them.
      names: one for each, inside the folder.
    """
    unknown = np.full(len(ids), -1, np.int32)
    return FileExamples(np.array(ids), unknown, str(folder.path), names)


def check_readable_names(folder: Path, names: Iterable[str]) -> None:
    """Raises UserError if a name in `folder` cannot be an id in a csv."""
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            raise UserError(
                f"the name '{shown}' in {folder} is not UTF-8; rename it"
            ) from None


def _candidates(image_id: str, extension: str) -> list[str]:
    names = [image_id] if _is_image_name(image_id) else []
    names += [image_id + suffix for suffix in (extension, *EXTENSIONS)]
    return names + [image_id + suffix.upper() for suffix in EXTENSIONS]


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def stem(name: str) -> str:
    """An image's name without its extension."""
    return name[: name.rindex(".")]


def _natural_order(name: str) -> list[tuple[int, int | str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
