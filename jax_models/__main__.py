"""`python -m jax_models` prints models with their size and their work."""

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
    parser = argparse.ArgumentParser(
        prog="python -m jax_models",
        description="Prints parameters and multiply-adds of models.",
    )
    parser.add_argument(
        "models",
        nargs="*",
        default=["*"],
        help="names or patterns such as 'resnet*'; all when left out, which "
        "takes most of a minute",
    )
    names = parser.parse_args().models
    for line in jax_models.list_models().matching(names).table():
        print(line, flush=True)
    names = ", ".join(jax_models.list_segmentation_models())
    print(f"For segmentation, over any of these: {names}")
    print("For verification, over any of these: embedding")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
