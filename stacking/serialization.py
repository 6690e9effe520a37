"""The fitted stack on disk: all that is needed to predict again.

    stack.json            classes, models, weights, versions, hashes
    stack.npz             temperatures, weights, regression
    boosters/*.cbm, *.txt the boosters, in their libraries' own formats

Nothing is pickled. `stack.json` is written last and names the SHA-256 of the
other files, so a folder that was written by halves is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from core.atomic_files import atomic_write, write_text
from core.errors import UserError
from stacking.align import Table
from stacking.boosters import Booster, Fit
from stacking.logistic import Logistic
from stacking.meta_learners import Boosted, Regression, Vote
from stacking.stack_model import Settings, StackModel

FORMAT = 3
_SUFFIX = {"catboost": "cbm", "lightgbm": "txt"}
_LIBRARIES = ("numpy", "scipy", "optuna", "catboost", "lightgbm")


@dataclasses.dataclass(frozen=True)
class SavedStack:
    """A stack, and what it was made for.

    Attributes:
      stack: fitted on all validation rows.
      description: the content of stack.json.
    """

    stack: StackModel
    description: dict[str, Any]


def save(
    folder: str | os.PathLike,
    stack: StackModel,
    table: Table,
    settings: Settings,
    submission: dict[str, Any],
) -> None:
    """Writes the stack to `folder`.

    Args:
      folder: is made if absent.
      stack: fitted on all rows.
      table: what it was fitted on.
      settings: how.
      submission: columns and sample, for `python -m stacking predict`.
    """
    folder = Path(folder)
    (folder / "stack.json").unlink(missing_ok=True)
    arrays: dict[str, np.ndarray] = {
        "temperatures": stack.temperatures,
        "multipliers": stack.multipliers,
    }
    meta_learners: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    for name, learner in stack.meta_learners.items():
        entry: dict[str, Any] = {
            "name": name,
            "temperature": stack.meta_learner_temperatures[name],
        }
        if isinstance(learner, Vote):
            entry["kind"] = "vote"
            arrays[f"{name}/weights"] = learner.weights
        elif isinstance(learner, Regression):
            entry["kind"] = "regression"
            for part in dataclasses.fields(Logistic):
                arrays[f"{name}/{part.name}"] = getattr(
                    learner.model, part.name
                )
        else:
            entry["kind"] = "booster"
            entry["fits"] = []
            for index, fit in enumerate(learner.model.fits):
                path = f"boosters/{name}_{index}.{_SUFFIX[fit.kind]}"
                files[path] = fit.model
                arrays[f"{name}/{index}/present"] = fit.present
                entry["fits"].append(
                    {
                        "kind": fit.kind,
                        "file": path,
                        "temperature": fit.temperature,
                    }
                )
        meta_learners.append(entry)
    for path, content in files.items():
        with atomic_write(folder / path) as temporary:
            temporary.write_bytes(content)
    with (
        atomic_write(folder / "stack.npz") as temporary,
        open(temporary, "wb") as file,
    ):
        np.savez(file, **arrays)
    description = {
        "format": FORMAT,
        "classes": table.classes.tolist(),
        "folds_hash": table.folds_hash,
        "families": [
            {
                "name": family.name,
                "model": family.model,
                "config_hashes": family.config_hashes,
                "runs": [str(run.path) for run in family.runs],
            }
            for family in table.families
        ],
        "settings": settings.described(),
        "meta_learners": meta_learners,
        "blend_weights": dict(stack.blend_weights),
        "blend_temperature": stack.blend_temperature,
        "booster_parameters": stack.booster_parameters,
        "submission": submission,
        "versions": versions(),
        "sha256": {
            path: _sha256(folder / path) for path in [*files, "stack.npz"]
        },
    }
    write_text(folder / "stack.json", json.dumps(description, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Of Python and of the libraries that the answers depend on."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
    }


def load(folder: str | os.PathLike) -> SavedStack:
    """Reads a stack and checks its hashes.

    Raises:
      UserError: it is missing, of another format, or a file has changed.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / "stack.json").read_text("utf-8"))
        if not isinstance(description, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} holds no stack (no stack.json); make one with "
            f"python -m stacking --runs … --out {folder}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'stack.json'} cannot be read ({error}); stack again"
        ) from error
    if description.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {description.get('format')}, this program "
            f"reads {FORMAT}; stack again"
        )
    expected = description["sha256"]
    read = {
        fit["file"]
        for entry in description["meta_learners"]
        for fit in entry.get("fits", ())
    }
    for path in [*expected, *read]:
        if (
            not (folder / path).resolve().is_relative_to(folder.resolve())
            or not (folder / path).exists()
            or _sha256(folder / path) != expected.get(path)
        ):
            raise UserError(
                f"{folder / path} is not the file that stack.json describes; "
                "restore it or stack again"
            )
    with np.load(folder / "stack.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    meta_learners = {
        entry["name"]: _meta_learner(entry, arrays, folder)
        for entry in description["meta_learners"]
    }
    stack = StackModel(
        temperatures=arrays["temperatures"],
        meta_learners=meta_learners,
        meta_learner_temperatures={
            entry["name"]: entry["temperature"]
            for entry in description["meta_learners"]
        },
        blend_weights=description["blend_weights"],
        blend_temperature=description["blend_temperature"],
        multipliers=arrays["multipliers"],
        booster_parameters=description["booster_parameters"],
    )
    return SavedStack(stack, description)


def _meta_learner(entry: dict[str, Any], arrays, folder: Path):
    name = entry["name"]
    if entry["kind"] == "vote":
        return Vote(arrays[f"{name}/weights"])
    if entry["kind"] == "regression":
        parts = {
            part.name: arrays[f"{name}/{part.name}"]
            for part in dataclasses.fields(Logistic)
        }
        return Regression(Logistic(**parts))
    fits = [
        Fit(
            fit["kind"],
            (folder / fit["file"]).read_bytes(),
            arrays[f"{name}/{index}/present"],
            fit["temperature"],
        )
        for index, fit in enumerate(entry["fits"])
    ]
    return Boosted(Booster(tuple(fits)))


def matched(saved: SavedStack, table: Table) -> np.ndarray:
    """Where the table has each model of the stack, int [M].

    Raises:
      UserError: the classes differ, or a model is missing, another one, or
        one too many.
    """
    classes = saved.description["classes"]
    if table.classes.tolist() != classes:
        odd = sorted(set(classes) ^ set(table.classes.tolist()))
        detail = f"class {odd[0]!r} is in only one" if odd else "other order"
        raise UserError(
            f"the stack was made for {len(classes)} classes and these runs "
            f"have {len(table.classes)} ({detail}); stack these runs anew"
        )
    # The recipe is the model: one config hash in common is enough, so that
    # a stack of five folds can predict from the logits of one.
    found = []
    for family in saved.description["families"]:
        hashes = set(family["config_hashes"])
        places = [
            index
            for index, own in enumerate(table.families)
            if own.model == family["model"] and hashes & set(own.config_hashes)
        ]
        if not places:
            raise UserError(
                f"the stack was made with the model {family['name']} "
                f"({family['model']}, config "
                f"{', '.join(family['config_hashes'])}), which is not among "
                "these runs; give the runs it was made with or stack anew"
            )
        found.append(places[0])
    extra = set(range(len(table.families))) - set(found)
    if extra:
        raise UserError(
            f"the stack was made without {table.families[min(extra)].name}; "
            "leave that run out of --runs or stack anew"
        )
    return np.array(found)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
