"""Everything a person looks at: scores, curves, pages."""

from __future__ import annotations

from reports.ensemble import ensemble_report
from reports.page import Figure, Section
from reports.plan import plan_report
from reports.run import run_report

__all__ = [
    "Figure",
    "Section",
    "ensemble_report",
    "plan_report",
    "run_report",
]
