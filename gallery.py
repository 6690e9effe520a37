"""Finds new photos in a folder of known ones, with a trained verification.

    python gallery.py --run runs/verify --gallery people/ photo.jpg new/

`people/` holds a folder of photos for each person, or just photos. Who is to
be found is added there: nothing is trained anew, and what is known already is
not embedded again. Of a photo that lies in the gallery, the others are found.

Exit codes: 0 every photo was compared; 1 some could not be read; 2 a mistake
in the command; 75 the run is in a bucket that does not answer now; 141 stdout
is a pipe that was closed, as by `head`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import hardware, output, signals

    output.install(results=True)
    hardware.keep_freed_memory()  # Before there is any other thread.
    signals.install()  # And before the imports below, which take seconds.

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs import loading
from core import paths
from core.errors import UserError, exit_on_user_error
from predict import FORMATS, PHOTOS_AT_ONCE, find_photos

COLUMNS = ("photo", "rank", "identity", "picture", "cosine", "similarity")


def main(argv: Sequence[str]) -> int:
    """Parses the command line and searches.

    Returns:
      The exit code.

    Raises:
      SystemExit: a mistake in the command, told in one sentence.
    """
    with exit_on_user_error(), paths.reaching(argv):
        known = make_parser().parse_args(argv)
        if known.top < 1:
            raise UserError(f"--top is {known.top}; take 1 or more")
        folder = Path(known.gallery)
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(
                f"--gallery {folder} {problem}; name the folder of the known "
                "photos"
            )
        photos = [path for path, _ in find_photos(known.photos)]
        found = search(paths.make_path(known.run), folder, photos, known.top)
        return int(write(found, known.format) > 0)


def make_parser() -> loading.Parser:
    """Returns the parser of the command line."""
    parser = loading.Parser(
        prog="gallery.py",
        description="Finds photos in a folder of known ones.",
    )
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument(
        "--gallery",
        required=True,
        metavar="DIR",
        help="known photos, best in one folder for each identity",
    )
    parser.add_argument("photos", nargs="+", help="files, or folders of them")
    parser.add_argument(
        "--top", type=int, default=5, help="answers to each photo (default: 5)"
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    return parser


def search(
    run_folder: Path, folder: Path, photos: Sequence[Path], top: int
) -> Iterator[tuple[Path, list[dict[str, Any]] | None]]:
    """Yields (photo, its nearest pictures, nearest first), in order.

    None stands for a photo that cannot be read.

    Args:
      run_folder: of a verification with an evaluated checkpoint.
      folder: of the known pictures.
      photos: to find.
      top: how many answers to each.

    Raises:
      UserError: it is no such run, or the folder holds no picture.
    """
    from configs import common
    from training import gallery, runtime, saved_run
    from training.multihost import sharding
    from training.photos import Photos

    # The run may come from a machine whose cache folder does not exist here.
    cache = Path(common.CACHE_DIR).expanduser()
    runtime.start(common.CACHE_DIR)
    mesh = sharding.make_mesh()
    run = saved_run.open_run(run_folder, mesh)
    gallery.check(run.task)

    def embed(names: Sequence[str]):
        config = run.task.config
        size = config.eval.batch_size
        # Filling a batch up is cheaper than compiling for one of its own
        # size, unless it is small.
        given = Photos(
            list(names),
            size,
            mesh,
            shrinks=len(names) < size / 4,
            config=config,
        )
        return run.task.embed_photos(given, *run.weights)

    key = gallery.model_key(run.task, run.weights)
    known = gallery.open_gallery(folder, embed, key, cache, _note)
    about = f"{len(known):,} pictures"
    if known.bad:
        about += f" (and {len(known.bad):,} that cannot be read)"
    _note(f"gallery {folder}: {about}")
    for start in range(0, len(photos), PHOTOS_AT_ONCE):
        chunk = photos[start : start + PHOTOS_AT_ONCE]
        queries = embed([str(path.absolute()) for path in chunk])
        answers = known.answers(queries, chunk, top, run.task.probability)
        yield from zip(chunk, answers, strict=True)


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def write(
    found: Iterator[tuple[Path, list[dict[str, Any]] | None]], form: str
) -> int:
    """Writes answers to stdout as they come.

    Args:
      found: from `search`.
      form: one of `FORMATS`; a row of a csv is one answer, a line of JSON all
        answers to one photo.

    Returns:
      How many photos could not be read.
    """
    bad, begun = 0, False
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    for path, nearest in found:
        if form != "json" and not begun:  # Not before what may go wrong.
            print((",", "  ")[form == "table"].join(COLUMNS))
            begun = True
        bad += nearest is None
        if form == "json":
            record = {"photo": str(path), "bad": nearest is None}
            print(json.dumps({**record, "nearest": nearest or []}), flush=True)
        elif nearest is None:
            if form == "csv":
                writer.writerow({"photo": str(path)})
            else:
                print(f"{path}  cannot be read")
        for rank, answer in enumerate(nearest or (), 1):
            row = {"photo": str(path), "rank": rank, **answer}
            if form == "csv":
                writer.writerow(row)
            elif form == "table":
                print("  ".join(_cell(value) for value in row.values()))
    return bad


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
