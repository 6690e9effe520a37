"""The section on a pretraining: what its encoder knows of the classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import UserError
from reports.page import Figure, Section, template
from run_folder import layout

KINDS = {"linear": "linear probe", "knn": "kNN"}


def read_probe(workdir: Path) -> dict[str, Any] | None:
    """Returns what `training/tasks/probe.py` wrote; None where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = workdir / layout.PROBE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        # All that is asked of it.
        for name in KINDS:
            for score in ("accuracy", "macro_f1"):
                _ = float(found[name][score])
                _, _ = found[name][f"{score}_interval"]
        _ = found["fitted_on"], found["scored_on"], found["linear"]["C"]
        _ = found["knn"]["k"], found["most_frequent_class"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); run the training's command "
            "again with --export"
        ) from error
    return found


def probe_sections(workdir: Path) -> list[Section]:
    """Returns the scores of a linear probe and of kNN, or nothing.

    Args:
      workdir: the run folder.

    Raises:
      UserError: they are damaged.
    """
    found = read_probe(workdir)
    if found is None:
        return []
    rows = [{"name": title, **found[name]} for name, title in KINDS.items()]
    linear = found["linear"]
    low, high = linear["accuracy_interval"]
    return [
        Section(
            "What the frozen encoder knows",
            template("probe.html").scores(rows, found["most_frequent_class"]),
            f"Fitted on {found['fitted_on']:,} training photos and scored on "
            f"{found['scored_on']:,} that neither the pretraining nor the "
            f"probe has seen; with 95 % intervals. C {linear['C']:g} of the "
            "regression was chosen inside the training photos; "
            f"{found['knn']['k']} neighbours vote.",
            figures=(
                Figure(
                    "linear probe",
                    f"{linear['accuracy']:.1%}",
                    f"95 % interval {low:.1%} to {high:.1%}",
                ),
            ),
        )
    ]
