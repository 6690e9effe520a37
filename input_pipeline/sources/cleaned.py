"""A source without impulse noise, in training and in prediction."""

from __future__ import annotations

import dataclasses

import numpy as np

from input_pipeline import impulses
from input_pipeline.decoding import decode
from input_pipeline.sources.base import Examples, Source
from input_pipeline.sources.wrapped import WrappedExamples


class CleanedExamples(WrappedExamples):
    """Examples whose images are read without impulse noise."""

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
