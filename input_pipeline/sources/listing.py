"""The images in a folder, and which file belongs to an id.

What lies in a folder and is not taken is known, too: nothing is passed over
in silence but what systems leave behind.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError
from input_pipeline.decoding import (
    BEGINNING_BYTES,
    EXTENSIONS,
    OTHER_EXTENSIONS,
    looks_like_image,
)
from input_pipeline.sources.base import FileExamples, LeftOut

# Of systems and notebooks, besides all that begins with a dot.
_LITTER = frozenset(
    (
        *("__macosx", "__pycache__", "@eadir", "$recycle.bin", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini"),
    )
)


class Folder:
    """A folder's listing: one pass over it instead of a question per file.

    Files in folders below belong to it; their names are paths inside it.

    Args:
      path: the folder.
      flag: the config field that names it.
    """

    def __init__(self, path: Path, flag: str):
        self.path, self._flag = path, flag
        if not path.is_dir():
            problem = "is not a folder" if path.exists() else "does not exist"
            raise UserError(
                f"image folder {path} {problem}; create it or set "
                f"--config.{flag}"
            )
        self._entries = dict(_walk(path, "", ()))
        self._by_kind: dict[str, list[str]] | None = None
        self._by_id: dict[str, list[str]] | None = None

    def image_names(self) -> list[str]:
        """Every file that is an image, numbers in their order."""
        return sorted(self._kinds()["image"], key=_natural_order)

    def left_out(
        self, split: str, taken: Iterable[str] | None = None
    ) -> list[LeftOut]:
        """Returns what is not taken.

        Args:
          split: `train` or `test`.
          taken: names of the images that are; None for all of them.
        """
        kinds = dict(self._kinds())
        images = kinds.pop("image")
        if taken is not None:
            taken = set(taken)
            kinds["no row"] = [name for name in images if name not in taken]
        return [
            LeftOut(split, f"{self.path}/{name}", problem)
            for problem, names in kinds.items()
            for name in sorted(names, key=_natural_order)
        ]

    def _kinds(self) -> dict[str, list[str]]:
        """The names by `kind_of`."""
        if self._by_kind is None:
            found = {"image": [], "no decoder": [], "no image": []}
            for name, entry in self._entries.items():
                if kind := kind_of(entry):
                    found[kind].append(name)
            self._by_kind = found
        return self._by_kind

    def find_all(
        self, ids: Sequence[str], extension: str, table: Path
    ) -> list[str]:
        """The file of every id, or an error that names the first without."""
        names = [self._find(image_id, extension, table) for image_id in ids]
        if None in names:
            culprit = ids[names.index(None)]
            count = names.count(None)
            others = f" (and {count - 1} more)" if count > 1 else ""
            raise UserError(
                f"id '{culprit}' of {table} has no image in {self.path}"
                f"{others}; {self._remedy(culprit, extension)}"
            )
        first: dict[str, str] = {}
        for image_id, name in zip(ids, names, strict=True):
            other = first.setdefault(name, image_id)
            if other != image_id:
                raise UserError(
                    f"ids '{other}' and '{image_id}' of {table} mean one file, "
                    f"{self.path / name}; keep one row per image"
                )
        return names

    def _remedy(self, image_id: str, extension: str) -> str:
        """What to do about an id without an image."""
        for name in self._kinds()["no decoder"]:
            if normal_path(image_id) in _keys(name):
                return f"there is only {name}: save it as JPEG or PNG"
        for folder in self.path.parents:
            for name in (image_id, image_id + extension):
                if "/" in image_id and (folder / name).is_file():
                    return (
                        "it has one from another folder on: set "
                        f"--config.{self._flag}={folder}"
                    )
        for name in self._kinds()["image"]:
            if _loosely(stem(name)) == _loosely(stem(image_id)):
                return f"write it as in the name of {name}"
        return "add the file, remove the row, or set --config.data.extension"

    def _find(self, image_id: str, extension: str, table: Path) -> str | None:
        if image_id + extension in self._entries:
            return image_id + extension
        own = self._entries.get(image_id)
        if own is not None and kind_of(own) == "image":
            return image_id
        if self._by_id is None:
            self._by_id = {}
            for name in sorted(self._kinds()["image"]):
                for key in _keys(name):
                    self._by_id.setdefault(key, []).append(name)
        # macOS writes é as two characters, spreadsheets as one.
        found = self._by_id.get(normal_path(image_id), [])
        # An id without its folder will do, where no other file is meant.
        depth = normal_path(image_id).count("/")
        found = [name for name in found if name.count("/") == depth] or found
        if len(found) > 1:
            ending = (extension or "/").lower()
            found = [
                name for name in found if name.lower().endswith(ending)
            ] or found
        if len(found) > 1:
            raise UserError(
                f"id '{image_id}' of {table} has {len(found)} files in "
                f"{self.path}: {' and '.join(found[:2])}; keep one of them, or "
                "set --config.data.extension to the right one's"
            )
        return found[0] if found else None

    def sizes(self, names: Iterable[str]) -> list[int]:
        """Bytes per file, -1 where nobody can say."""
        return [self._file_size(name) for name in names]

    def _file_size(self, name: str) -> int:
        try:
            return self._entries[name].stat().st_size
        except OSError:
            return -1


def entries(folder: Path | str) -> dict[str, os.DirEntry]:
    """The entries of a folder, by name."""
    try:
        with os.scandir(folder) as found:
            return {entry.name: entry for entry in found}
    except OSError as error:
        raise UserError(
            f"cannot list folder {folder}: {error.strerror}; check its "
            "permissions"
        ) from error


def is_litter(name: str) -> bool:
    """Whether a file or folder was left there by a system, for itself."""
    return name.startswith(".") or name.lower() in _LITTER


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _walk(
    folder: Path | str, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.DirEntry]]:
    """Yields the files below a folder, with their paths inside it.

    A folder that is called like an image counts as a file, and will be a bad
    image. Links are followed, but not in a circle.
    """
    for name, entry in entries(folder).items():
        if not is_folder(entry) or _has_image_name(name):
            yield prefix + name, entry
        elif not is_litter(name):
            about = entry.stat()
            identity = (about.st_dev, about.st_ino)
            if identity not in above:
                below = f"{prefix}{name}/"
                yield from _walk(entry.path, below, (*above, identity))


def kind_of(entry: os.DirEntry) -> str:
    """What a file is by its name, or else by how it begins.

    Only a regular file is opened: a pipe that nobody writes to would keep its
    reader waiting for ever.

    Returns:
      "image"; "no decoder", one that cannot be decoded; "no image", a file of
      another kind; or "" for litter.
    """
    if is_litter(entry.name):
        return ""
    if _has_image_name(entry.name):
        return "image"
    other = entry.name.lower().endswith(OTHER_EXTENSIONS)
    beginning = b""
    try:
        if entry.is_file():  # A regular one, or a link to one.
            with open(entry.path, "rb") as file:
                beginning = file.read(BEGINNING_BYTES)
    except OSError:  # It may not be read, or is a link to itself.
        pass
    # The TIFF inside a camera's raw file is but a small preview.
    if looks_like_image(beginning) and not (
        other and beginning.startswith((b"II", b"MM"))
    ):
        return "image"
    return "no decoder" if other or b"ftyphei" in beginning else "no image"


def every_image(
    folder: Folder, labelled: FileExamples | None = None
) -> FileExamples:
    """Returns all images of a test folder, without labels.

    Args:
      folder: that holds them.
      labelled: images that are none of them, should they lie there as well.
    """
    taken = set()
    if labelled is not None:
        taken = {f"{labelled.folder}/{name}" for name in labelled.names}
    names = [
        name
        for name in folder.image_names()
        if f"{folder.path}/{name}" not in taken
    ]
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


def check_files(
    root: Path, names: Iterable[str], table: Path, what: str = "identities"
) -> None:
    """Refuses names in a table that are no files below `root`.

    Args:
      root: that they are paths in.
      names: of files.
      table: where they stand.
      what: field of `config.data` that names the table.
    """
    names = dict.fromkeys(names)
    lacking = [name for name in names if not (root / name).is_file()]
    if lacking:
        raise UserError(
            f"{len(lacking):,} of {len(names):,} paths in {table} are no file "
            f"in {root} (for one, '{lacking[0]}'); add the files, or correct "
            f"the table or --config.data.{what}"
        )


def refuse_case_doubles(names: Iterable[str], what: str) -> None:
    """Refuses names that many disks and spreadsheets cannot tell apart.

    Args:
      names: different ones.
      what: they are, for the message.
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"the {what} have '{other}' and '{name}', which differ only "
                "in case; give one of them another name"
            )


def _has_image_name(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def stem(name: str) -> str:
    """An image's name without the ending that says so, if it has one."""
    return name[: name.rindex(".")] if _has_image_name(name) else name


def _keys(name: str) -> set[str]:
    """The ids that a file may have."""
    base = posixpath.basename(name)
    ending = posixpath.splitext(name)[1]
    keys = {name, stem(name), base, stem(base), name.removesuffix(ending)}
    return {unicodedata.normalize("NFC", key) for key in keys}


def _loosely(image_id: str) -> str:
    """The same for ids that differ as numbers in a spreadsheet, or in case."""
    text = image_id.casefold().removesuffix(".0")
    return text.lstrip("0") or "0"


def normal_path(image_id: str) -> str:
    """The same for paths that differ in separators, `./` or accents."""
    path = posixpath.normpath(image_id.replace("\\", "/"))
    return unicodedata.normalize("NFC", path)


def _natural_order(name: str) -> list[tuple[int, int | str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]
