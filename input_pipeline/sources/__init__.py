"""Where examples come from: one file per format behind `open_source`."""

from input_pipeline.sources.registry import open_source

__all__ = ["open_source"]
