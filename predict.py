"""Predicts photos with a trained run.

    python predict.py --run runs/tinyvit photo.jpg folder/ --format csv
    python predict.py --stack runs/stack folder/ --format json
    python predict.py --run runs/tinyvit folder/ --explain --out looked-at/
    python predict.py --run runs/unet folder/ --out masks/

Needs the run folder alone: neither the training photos nor a cache. A photo
that cannot be read is reported, and the others go on. Exit codes: 0 all photos
were predicted; 1 some could not be read; 2 a mistake in the command; 75 the run
is in a bucket that does not answer now; 141 stdout is a pipe that was closed,
as by `head`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from core import hardware, output, signals

    output.install(results=True)
    hardware.keep_freed_memory()  # Before there is any other thread.
    signals.install()  # And before the imports below, which take seconds.

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from configs import loading
from core import paths
from core.errors import UserError, exit_on_user_error

# Photos per round: memory does not grow with their number.
PHOTOS_AT_ONCE = 512

FORMATS = ("table", "csv", "json")


def main(argv: Sequence[str]) -> int:
    """Parses the command line and predicts.

    Returns:
      The exit code.

    Raises:
      SystemExit: a mistake in the command, told in one sentence.
    """
    with exit_on_user_error(), paths.reaching(argv):
        known = make_parser().parse_args(argv)
        if not known.photos:
            raise UserError(
                "no photos are named; put files, or folders of them, behind "
                "the flags"
            )
        photos = dict(find_photos(known.photos))
        out = None
        if known.out is not None:
            out = paths.make_path(known.out)
            check_names(known.photos, photos, out)
        elif known.explain:
            raise UserError(
                "--explain draws pictures, and --out does not say where to put "
                "them; name a folder with --out"
            )
        elif known.probabilities:
            raise UserError(
                "--probabilities are files, and --out does not say where to "
                "put them; name a folder with --out"
            )
        if (known.run is None) == (known.stack is None):
            raise UserError(
                "name what predicts: either --run, a run folder, or --stack, "
                "what python -m stacking has made of several"
            )
        if known.stack is not None:
            if out is not None:
                raise UserError(
                    "a stack answers with classes alone; leave --out away, or "
                    "name one of its runs with --run"
                )
            found = predict_stack(paths.make_path(known.stack), photos)
        else:
            found = predict(
                paths.make_path(known.run),
                photos,
                out,
                known.probabilities,
                known.explain,
            )
        bad = write(found, known.format)
        return int(bad > 0)


def make_parser() -> loading.Parser:
    """Returns the parser of the command line."""
    parser = loading.Parser(
        prog="predict.py",
        description="Predicts photos with the best checkpoint of a run.",
    )
    parser.add_argument("--run", metavar="DIR")
    parser.add_argument(
        "--stack",
        metavar="DIR",
        help="in place of --run: a folder that python -m stacking has made; "
        "all of its runs predict, and the stack answers",
    )
    parser.add_argument("photos", nargs="*", help="files, or folders of them")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="of a segmentation: where to write a mask for each photo",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="of a classifier: draw into --out where in each photo it saw its "
        "answer (Grad-CAM)",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="write those of the masks' pixels beside them, as .npz",
    )
    return parser


def find_photos(names: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yields the photos that are named, and those in the named folders.

    Of a kind that cannot be decoded, too: they are reported. Beside each
    photo what its files are called: its name inside the named folder, without
    the ending.

    Raises:
      UserError: a name leads to nothing, or a folder has no photo.
    """
    from input_pipeline.sources.listing import Folder, stem

    for name in names:
        if "://" in name:
            raise UserError(
                f"{name} is not on a disk; copy the photos here, and name "
                "their folder"
            )
        path = Path(name)
        if path.is_dir():
            folder = Folder(path, "photos")
            found = [path / photo for photo in folder.image_names()]
            found += [
                Path(file.path)
                for file in folder.left_out("test")
                if file.problem == "no decoder"
            ]
            if not found:
                raise UserError(f"{path} holds no photo; name another folder")
            for photo in found:
                yield photo, stem(photo.relative_to(path).as_posix())
        elif path.exists():
            yield path, stem(path.name)
        else:
            raise UserError(f"{path} does not exist; correct the name")


def check_names(
    named: Sequence[str], photos: Mapping[Path, str], out: Path
) -> None:
    """Refuses photos whose files would have the same name, or be photos.

    Args:
      named: files and folders, as the command names them.
      photos: what the files of each photo are called.
      out: folder of the files.

    Raises:
      UserError: two photos have one name, a photo would be overwritten, or
        a mask taken for a photo the next time.
    """
    first: dict[str, Path] = {}
    for path, name in photos.items():
        # Many disks do not tell capitals apart.
        other = first.setdefault(name.casefold(), path)
        if other != path:
            raise UserError(
                f"{other} and {path} would both become {out / name}.png; "
                "predict them one after the other, with another --out"
            )
    if paths.is_remote(out):
        return
    place = Path(os.path.realpath(out))
    for folder in map(Path, named):
        if folder.is_dir() and place.is_relative_to(os.path.realpath(folder)):
            raise UserError(
                f"--out {out} lies in {folder}, where the masks would be "
                "photos the next time; choose another --out"
            )
    taken = {os.path.realpath(path) for path in photos}
    for path, name in photos.items():
        target = out / f"{name}.png"
        if os.path.realpath(target) in taken:
            raise UserError(
                f"{target} is one of the photos, and the mask of {path} would "
                "replace it; choose another --out"
            )


def predict(
    run_folder: Path,
    photos: Mapping[Path, str],
    out: Path | None = None,
    probabilities: bool = False,
    explain: bool = False,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields (photo, record) for each photo, in order.

    Args:
      run_folder: of a run with an evaluated checkpoint.
      photos: their paths, with what their files are called in `out`.
      out: where to write files about photos; None writes none.
      probabilities: whether to write those of pixels, too.
      explain: whether the files are pictures of what it looked at.

    Raises:
      UserError: it is no such folder, its task predicts no photos, or writes
        no files.
    """
    from configs import common
    from training import runtime, saved_run
    from training.multihost import sharding
    from training.photos import PhotoFiles, Photos

    # The run may come from a machine whose cache folder does not exist here.
    runtime.start(common.CACHE_DIR)
    mesh = sharding.make_mesh()
    run = saved_run.open_run(run_folder, mesh)
    task = run.task
    if explain and not task.explains:
        raise UserError(
            f"the {task.name} task has no picture of where it looked; leave "
            "--explain away"
        )
    if out is not None and not (task.predicts_files or explain):
        raise UserError(
            f"the {task.name} task writes no files about photos; leave --out "
            "away, and it tells what it predicts"
        )
    for start in range(0, len(photos), PHOTOS_AT_ONCE):
        chunk = dict(islice(photos.items(), start, start + PHOTOS_AT_ONCE))
        given = Photos(
            [str(path.absolute()) for path in chunk],
            task.config.eval.batch_size,
            mesh,
            shrinks=len(photos) <= PHOTOS_AT_ONCE,
            config=task.config,
        )
        files = None
        if out is not None:
            files = PhotoFiles(out, list(chunk.values()), probabilities)
        records = task.predict(given, *run.weights, files)
        yield from zip(chunk, records, strict=True)


def predict_stack(
    folder: Path, photos: Mapping[Path, str]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields (photo, record) for each photo, as a stack of runs answers.

    Args:
      folder: of the stack.
      photos: as for `predict`.

    Raises:
      UserError: it is no stack, or a run of it is gone.
    """
    import numpy as np

    from stacking import members, pipeline, serialization

    saved = serialization.load(folder)
    classes = saved.description["classes"]
    # All models at once, each reading the same photos on its own.
    streams = [
        [predict(run, photos) for run in runs]
        for runs in members.member_runs(folder)
    ]
    names = iter(photos)
    while chunk := list(islice(names, PHOTOS_AT_ONCE)):
        logits = np.zeros((len(streams), len(chunk), len(classes)), np.float32)
        bad = np.zeros(len(chunk), bool)
        for member, runs in enumerate(streams):
            for stream in runs:
                for row, (_, record) in enumerate(islice(stream, len(chunk))):
                    told = record["probabilities"]
                    shares = np.array([told[name] for name in classes])
                    logs = np.log(np.maximum(shares, members.LEAST))
                    logits[member, row] += logs / len(runs)
                    bad[row] |= record["bad"]
        answers, probabilities = pipeline.predict_rows(saved.stack, logits, 2)
        for row, path in enumerate(chunk):
            shares = probabilities[row].tolist()
            yield (
                path,
                {
                    "class": classes[answers[row]],
                    "probability": shares[answers[row]],
                    "probabilities": dict(zip(classes, shares, strict=True)),
                    "bad": bool(bad[row]),
                },
            )


def write(records: Iterator[tuple[Path, dict[str, Any]]], form: str) -> int:
    """Writes records to stdout as they come.

    Args:
      records: from `predict`.
      form: one of `FORMATS`.

    Returns:
      How many photos could not be read.
    """
    bad, writer, begun = 0, None, False
    for path, record in records:
        bad += record.get("bad", False)
        if form == "json":
            print(json.dumps({"photo": str(path), **record}), flush=True)
            continue
        flat = {"photo": str(path)}
        for name, value in record.items():
            if isinstance(value, dict):
                flat |= {f"{name}.{key}": one for key, one in value.items()}
            else:
                flat[name] = value
        if form == "csv":
            if writer is None:
                writer = csv.DictWriter(sys.stdout, flat, lineterminator="\n")
                writer.writeheader()
            writer.writerow(flat)
            continue
        unread = flat.pop("bad", False)
        cells = {k: _cell(v) for k, v in flat.items() if "." not in k}
        if not begun:
            print("  ".join(cells))
            begun = True
        print(
            f"{path}  cannot be read" if unread else "  ".join(cells.values())
        )
    return bad


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
