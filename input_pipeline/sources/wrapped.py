"""Examples whose images are changed on their way from the files."""

from __future__ import annotations

import dataclasses
from typing import Any

from input_pipeline.sources.base import Examples, Kind


@dataclasses.dataclass(frozen=True, eq=False)
class WrappedExamples(Examples):
    """The same examples, read otherwise.

    Attributes:
      raw: as the files have them, or another step makes them.
    """

    raw: Examples

    def __getattr__(self, name: str) -> Any:
        """What other examples have besides, such as masks and their format."""
        # Not while unpickling, when there is no `raw` yet.
        if name == "raw" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.raw, name)

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of every feature."""
        return self.raw.kinds

    def path(self, row: int) -> str:
        """The absolute path of a row's file."""
        return self.raw.path(row)
