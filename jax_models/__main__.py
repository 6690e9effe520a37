"""`python -m jax_models` prints every model with its size and its work."""

from __future__ import annotations

import argparse

import jax_models

if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m jax_models",
        description="Prints every model's parameters and multiply-adds.",
    ).parse_args()
    print(jax_models.list_models())
    names = ", ".join(jax_models.list_segmentation_models())
    print(f"For segmentation, over any of these: {names}")
