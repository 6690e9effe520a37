"""`from-coco`: COCO annotations as masks."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from configs import loading
from core import atomic_files, class_colours, csv_table
from core.class_colours import IGNORE
from core.errors import UserError
from input_pipeline import parallel_scan
from input_pipeline.coco import regions
from input_pipeline.decoding import MAX_PIXELS
from input_pipeline.sources import listing


def run(argv: list[str]) -> None:
    """Writes masks from a file of COCO annotations.

    Args:
      argv: the command line without the program's name and `from-coco`.
    """
    parser = loading.Parser(
        prog="python -m input_pipeline from-coco",
        description="Writes a mask for each image of a COCO file, and "
        "classes.csv beside the folder of the masks. Of overlapping "
        "annotations the smaller one is seen; crowds are ignored pixels.",
    )
    parser.add_argument("--annotations", metavar="JSON", required=True)
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="such as data/mask_train"
    )
    parser.add_argument(
        "--background",
        metavar="CLASS",
        help="of pixels without annotation, '' to ignore them; 'background', "
        "unless the file says otherwise",
    )
    parser.add_argument(
        "--skip-crowds",
        action="store_true",
        help="leave crowds out instead of ignoring their pixels",
    )
    known = parser.parse_args(argv)
    content = read(Path(known.annotations))
    print(
        write_masks(
            content,
            Path(known.out),
            known.background and known.background.strip(),
            known.skip_crowds,
        )
    )


class Content(NamedTuple):
    """A COCO file, checked as far as its ids go.

    Attributes:
      path: of the file.
      images: of each image `id`, `file_name`, `width` and `height`.
      annotations: of each image's id, its annotations.
      names: of the categories that are classes, by id.
      background: `id` and `name` of what the file says is the background;
        None if all pixels are annotated, {} if it does not say.
    """

    path: Path
    images: list[Mapping[str, Any]]
    annotations: Mapping[Any, list[Mapping[str, Any]]]
    names: Mapping[int, str]
    background: Mapping[str, Any] | None


def read(path: Path) -> Content:
    """Reads a file of COCO annotations.

    Raises:
      UserError: it is none, or its parts do not belong together.
    """

    def refuse(problem: str) -> UserError:
        return UserError(
            f"{path} {problem}; give a file of COCO annotations, such as "
            "instances_train.json"
        )

    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise refuse(f"cannot be read as JSON ({reason})") from error
    parts = {}
    for name in ("images", "annotations", "categories"):
        found = content.get(name) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(
            isinstance(one, dict) for one in found
        ):
            raise refuse(f"has no list '{name}'")
        parts[name] = found
    names: dict[int, str] = {}
    ignored = set()
    for one in parts["categories"]:
        number, name = one.get("id"), one.get("name")
        if type(number) is not int or not (
            isinstance(name, str) and _is_utf8(name.strip())
        ):
            raise refuse(f"has a category without id or name, {one!a}")
        name = name.strip()  # As a list of classes is read.
        if number in names or number in ignored or name in names.values():
            raise refuse(f"has the category {number}, '{name}', twice")
        if regions.IGNORED_CATEGORY.items() <= one.items():
            ignored.add(number)
        else:
            names[number] = name
    seen = set()
    for one in parts["images"]:
        _check_image(one, refuse)
        if one["id"] in seen:
            raise refuse(f"has image id {one['id']} twice")
        seen.add(one["id"])
    annotations = defaultdict(list)
    for one in parts["annotations"]:
        about = f"annotation {one.get('id')}"
        if not _is_in(one.get("image_id"), seen):
            raise refuse(f"has {about} of image {one.get('image_id')}, unknown")
        if not _is_in(one.get("category_id"), names.keys() | ignored):
            raise refuse(
                f"has {about} of category {one.get('category_id')}, unknown"
            )
        annotations[one["image_id"]].append(one)
    info = content.get("info")
    background: Any = {}
    if isinstance(info, dict):
        background = info.get("background", {})
    if background and (
        not isinstance(background, dict)
        or type(background.get("id")) is not int
        or not isinstance(background.get("name"), str)
    ):
        background = {}
    return Content(path, parts["images"], annotations, names, background)


def _is_in(number: Any, known: Collection) -> bool:
    return isinstance(number, (int, str)) and number in known


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _check_image(one: Mapping[str, Any], refuse: Any) -> None:
    name, number = one.get("file_name"), one.get("id")
    if not isinstance(number, (int, str)) or not (
        isinstance(name, str) and _is_utf8(name)
    ):
        raise refuse(f"has an image without id or file_name, {one!a}")
    sides = one.get("height"), one.get("width")
    if (
        not all(type(side) is int and side > 0 for side in sides)
        or sides[0] * sides[1] > MAX_PIXELS
    ):
        raise refuse(f"has image '{name}' without a possible height and width")
    if problem := csv_table.id_problem(name):
        raise refuse(f"has file_name '{name[:80]}', which {problem}")


def write_masks(
    content: Content,
    out: Path,
    background: str | None = None,
    skip_crowds: bool = False,
) -> str:
    """Writes the masks of a COCO file, all or none, and the list of classes.

    Args:
      content: of `read`.
      out: folder of the masks; it must hold nothing yet. `classes.csv` comes
        beside it.
      background: class of pixels without annotation; '' ignores them, None
        does what the file says.
      skip_crowds: whether crowds are left out, not ignored.

    Returns:
      A sentence on what was written.

    Raises:
      UserError: an annotation means no region, or something is there already.
    """
    regions.pycocotools_mask()
    values, rest, table = _classes(content, background)
    stems = _stems(content)
    class_list = out.parent / "classes.csv"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; choose another --out")
    if class_list.is_file() and class_list.read_bytes() != table.encode():
        raise UserError(
            f"{class_list} lists other classes than {content.path}; give all "
            "files of a data set the same categories, or choose another --out"
        )

    def value_of(annotation: Mapping[str, Any]) -> int:
        if annotation.get("iscrowd"):
            return IGNORE
        return values.get(annotation["category_id"], IGNORE)

    palette = np.zeros((256, 3), np.uint8)
    palette[: len(values)] = class_colours.palette(len(values))
    palette[IGNORE] = 255

    def look(content: Content, row: int) -> bytes:
        image = content.images[row]
        annotations = content.annotations.get(image["id"], [])
        if skip_crowds:
            annotations = [one for one in annotations if not one.get("iscrowd")]
        sides = image["height"], image["width"]
        try:
            mask = draw(annotations, *sides, value_of, rest)
        except regions.BadAnnotation as error:
            raise UserError(
                f"{content.path}: the mask of '{image['file_name']}' cannot "
                f"be drawn: {error}; correct or remove it"
            ) from error
        picture, file = Image.fromarray(mask), io.BytesIO()
        picture.putpalette(palette.ravel().tolist())
        picture.save(file, "PNG")
        return file.getvalue()

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.temporary_folder(out.parent, ".masks-") as folder:
            paths = [folder / f"{stem}.png" for stem in stems]
            for parent in {path.parent for path in paths}:
                parent.mkdir(parents=True, exist_ok=True)
            rows = np.arange(len(stems))
            files = parallel_scan.every_image(look, content, rows, "masks")
            for path, file in zip(paths, files, strict=True):
                path.write_bytes(file)
            atomic_files.write_text(class_list, table)
            folder.chmod(atomic_files.mode_of_new(0o777))
            os.replace(folder, out)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; free some space "
            "or choose another --out"
        ) from error
    return (
        f"{len(stems):,} masks in {out}, {len(table.splitlines()) - 1} rows in "
        f"{class_list}"
    )


def _classes(
    content: Content, background: str | None
) -> tuple[dict[int, int], int, str]:
    """The value of each category, that of other pixels, and classes.csv."""
    names = dict(content.names)
    first = min(names, default=1) - 1
    known = content.background
    if background is not None:
        known = {"id": first, "name": background} if background else None
    elif known == {}:
        own = [n for n in names.values() if n.lower() in regions.BACKGROUNDS]
        known = {"id": first, "name": (*own, "background")[0]}
    rest = IGNORE
    if known is not None:
        own = [number for number in names if names[number] == known["name"]]
        place = own[0] if own else known["id"]
        if names.setdefault(place, known["name"]) != known["name"]:
            place = first
            names[place] = known["name"]
    order = sorted(names)
    if not 2 <= len(order) < IGNORE:
        raise UserError(
            f"{content.path} has {len(order)} classes with the background, and "
            f"a mask holds 2 to {IGNORE - 1}; name the background with "
            "--background, or leave categories out"
        )
    values = {number: value for value, number in enumerate(order)}
    if known is not None:
        rest = values[place]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "name", "ignore"])
    writer.writerows([values[number], names[number], 0] for number in order)
    writer.writerow([IGNORE, "(ignored)", 1])
    return values, rest, text.getvalue()


def _stems(content: Content) -> list[str]:
    """The masks' names: the images', without the folder that they share."""
    names = [
        os.path.normpath(one["file_name"].replace("\\", "/"))
        for one in content.images
    ]
    if not names:
        raise UserError(f"{content.path} has no image; there is nothing to do")
    shared = os.path.commonpath([os.path.dirname(name) for name in names])
    stems = [
        listing.stem(os.path.relpath(name, shared or ".")) for name in names
    ]
    seen: dict[str, str] = {}
    for stem, name in zip(stems, names, strict=True):
        other = seen.setdefault(stem, name)
        if other is not name:
            raise UserError(
                f"{content.path} has {other} and {name}, whose masks would "
                "have one name; rename one of them"
            )
    return stems


def draw(
    annotations: Sequence[Mapping[str, Any]],
    height: int,
    width: int,
    value_of: Callable[[Mapping[str, Any]], int],
    background: int,
) -> UInt8[np.ndarray, "H W"]:
    """Returns the mask of an image's annotations.

    Crowds lie at the bottom, then larger regions below smaller ones, so that
    small objects stay to be seen.

    Args:
      annotations: of the image.
      height: of the image.
      width: of the image.
      value_of: what an annotation's pixels are.
      background: what pixels without any are.

    Raises:
      BadAnnotation: one of them means no region.
    """
    mask = np.full(height * width, background, np.uint8)
    drawn = []
    for one in annotations:
        try:
            drawn.append((one, regions.pixels_of(one, height, width)))
        except regions.BadAnnotation as error:
            raise regions.BadAnnotation(
                f"annotation {one.get('id')}: {error}"
            ) from error
    drawn.sort(key=lambda pair: (not pair[0].get("iscrowd"), -len(pair[1])))
    for annotation, pixels in drawn:
        mask[pixels] = value_of(annotation)
    return np.ascontiguousarray(mask.reshape(height, width, order="F"))
