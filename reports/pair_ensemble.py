"""The report of several verifications together: ways to fuse them, pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.page import Section, template, write_page
from reports.thumbnails import Pictures
from reports.verification import verification_sections
from run_folder import layout


def pair_ensemble_report(
    workdir: Path,
    results: Mapping[str, Any],
    pictures: Pictures | None = None,
) -> Path:
    """Writes the report of fused verifications.

    Args:
      workdir: their folder, with `pairs/val.npz`.
      results: the content of scores.json.
      pictures: reads images by id; None shows none.

    Returns:
      The path of the html file.
    """
    count = len(results["runs"])
    if results["nested"]:
        fitted = "each by what was fitted without either of its identities"
        expect = (
            "What to expect of it is 'chosen': fit and choice were made anew "
            "without the pairs that it scores, and so are all sections below."
        )
    else:
        fitted = "too few to hold any out"
        expect = (
            "The runs' own similarities were fitted to these pairs: expect "
            "lower scores of others."
        )
    return write_page(
        workdir / layout.REPORT,
        "Pairs of several models" if count > 1 else "Pairs of a model",
        f"{count} model{'s' * (count > 1)}, one similarity per pair. Scores "
        f"are of {results['pairs']:,} validation pairs of "
        f"{results['identities']:,} identities, {fitted}.",
        [
            Section(
                "Ways to fuse",
                template("pair_ensemble.html").ways(
                    results["scores"], results["choice"]
                ),
                f"The submission is of '{results['choice']}'. {expect}",
            ),
            *verification_sections(workdir, pictures),
        ],
    )
