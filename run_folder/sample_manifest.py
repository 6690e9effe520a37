"""How the images of a generator's export were made, and are made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields of `config.generate` that the manifest of an export keeps.
FIELDS = (
    "sampler",
    "steps",
    "guidance",
    "sample_seed",
    "count",
    "filter",
    "judge",
)


def kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the manifest keeps of `config.generate`."""
    return {name: fields[name] for name in FIELDS}


def flags(manifest: Mapping[str, Any]) -> str:
    """Returns what makes the same images again, behind the training's command.

    Args:
      manifest: content of `samples/manifest.json`.
    """
    given = ((name, manifest.get(name, "")) for name in FIELDS)
    return " ".join(
        (
            "--export",
            *(
                f"--config.generate.{name}={value}"
                for name, value in given
                if value != ""
            ),
        )
    )
