"""What an audit has found: kinds of problems, the csv and the summary."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from core import atomic_files
from input_pipeline.sources.base import LEFT_OUT

# A side so many times longer or shorter than the split's median is unusual.
SIZE_FACTOR = 4.0

# Of a longer image, a crop shows less than a quarter.
LONGEST_RATIO = 4.0

# Problems that lose something, and what each means for a run.
LOSSES = {
    "bad training image": "cannot be read: left out of training",
    "bad test image": "cannot be read: keeps its row with the class prior, "
    "its pairs with cosine 0, or gets no mask",
    "class too small": "cannot be divided into folds: training refuses",
    **LEFT_OUT,
}
_IGNORED = {"no image": LOSSES.pop("no image")}

# Problems to check by eye, and what they mean.
DOUBTS = {
    "copy": "has the same pixels as another image of its split",
    "copy across splits": "has the same pixels as an image of another split",
    "near copy": "looks like another image, which may be in another fold: "
    "give both one group",
    "near copy across splits": "looks like an image of another split: scores "
    "may be too high",
    "two labels": "has the same pixels as an image of another class",
    "two identities": "has the same pixels as a picture of another identity",
    "two flags": "has the same pixels as a picture flagged otherwise",
    "two masks": "has the same pixels as an image with another mask",
    "unusual size": f"has a side {SIZE_FACTOR:g} times off the median",
    "long and narrow": f"is more than {LONGEST_RATIO:g} times longer than wide",
    "sizes differ": "medians of training and test images are far apart",
    "impulse noise": "has single pixels that are exactly black or white: "
    "--config.data.clean_impulses=True fills them",
    "class misses folds": "has fewer images than there are folds",
    "class in no mask": "is listed, but no pixel has it: cannot be learned",
    "class not validated": "is in no validation mask: has no score",
    "empty mask": "holds nothing but the first class, or ignored pixels",
    "one-class mask": "holds one class alone, which is not the first",
    "turned photo": "is turned by its EXIF entry: its mask must be turned",
    "transparent": "is wholly transparent: taken as white",
    "labels alike": "differs from another class only in case or spaces",
    "missing label": "is how a missing value is written",
    "repaired": "is damaged, but all of its pixels are read",
    **_IGNORED,
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
      split: `train`, `val` (where the data say what validates) or `test`.
      id: of the image; empty for a finding about a class or a split.
      file: its path, where it has one.
      problem: a key of `LOSSES` or `DOUBTS`.
      detail: the reason, or which other image.
      other: (split, id) of that image; not in the csv, where `detail` has it.
    """

    split: str
    id: str
    file: str
    problem: str
    detail: str
    other: tuple[str, str] | None = None


def write_findings(path: str | Path, findings: Iterable[Finding]) -> None:
    """Writes the findings as a csv, one row each, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Finding)]
    names.remove("other")
    writer.writerow(names)
    for finding in findings:
        writer.writerow([getattr(finding, name) for name in names])
    atomic_files.write_text(path, text.getvalue())


def lines(findings: Iterable[Finding]) -> list[str]:
    """Returns one line for each kind of problem, losses first."""
    by_problem = defaultdict(list)
    for finding in findings:
        by_problem[finding.problem].append(finding)
    return [
        f"  {len(found):,} × {problem}: {meaning} (first: {_first(found[0])})"
        for problem, meaning in (LOSSES | DOUBTS).items()
        if (found := by_problem[problem])
    ]


def _first(finding: Finding) -> str:
    where = finding.file or finding.id
    return f"{where}: {finding.detail}" if where else finding.detail


def loses(findings: Iterable[Finding]) -> bool:
    """Whether something would be left out."""
    return any(finding.problem in LOSSES for finding in findings)
