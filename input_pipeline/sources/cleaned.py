"""A source without impulse noise, in training and in prediction."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from input_pipeline import impulses
from input_pipeline.decoding import decode
from input_pipeline.sources.base import Examples, Kind, Source


@dataclasses.dataclass(frozen=True, eq=False)
class CleanedExamples(Examples):
    """Examples whose images are read without impulse noise.

    Attributes:
      raw: the same examples with it.
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

    def read(self, row: int) -> dict[str, bytes | np.ndarray]:
        """Returns the features; `image` decoded and cleaned."""
        example = self.raw.read(row)
        return example | {"image": impulses.clean(decode(example["image"]))}


def cleaned(examples: Examples) -> CleanedExamples:
    """The examples without impulse noise."""
    return CleanedExamples(
        examples.ids, examples.labels, examples, columns=examples.columns
    )


def without_cleaning(examples: Examples) -> Examples:
    """The examples as the files have them."""
    return examples.raw if isinstance(examples, CleanedExamples) else examples


def cleaned_source(source: Source) -> Source:
    """The source without impulse noise, with a fingerprint of its own."""
    test = source.test
    return dataclasses.replace(
        source,
        labelled=cleaned(source.labelled),
        test=None if test is None else cleaned(test),
        fingerprint=f"{source.fingerprint}-cleaned",
        notes=(*source.notes, "images are cleaned of impulse noise"),
    )
