"""`python -m jax_models` prints every model with its size and its work."""

from __future__ import annotations

if __name__ == "__main__":
    from core import output, signals

    output.install(results=True)
    signals.install()  # First of all: the imports below take seconds.

import argparse

import jax_models
from core.errors import exit_on_user_error


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(
        prog="python -m jax_models",
        description="Prints every model's parameters and multiply-adds.",
    ).parse_args()
    print(jax_models.list_models())
    names = ", ".join(jax_models.list_segmentation_models())
    print(f"For segmentation, over any of these: {names}")
    print("For verification, over any of these: embedding")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
