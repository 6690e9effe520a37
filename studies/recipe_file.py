"""Writes a recipe that train.py takes: another one with other values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import loading
from core.atomic_files import write_text

_TEMPLATE = '''"""{docstring}

    python train.py --config={path} --workdir=runs/NAME
"""

from configs import loading


def get_config(variant: str = ""):
    """Returns the recipe; it has no variants."""
    config = loading.load({recipe!r})
{lines}
    return config
'''


def write(
    path: Path,
    docstring: str,
    recipe: str,
    overrides: Sequence[str] = (),
    assignments: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a recipe file.

    Args:
      path: of the file.
      docstring: a sentence or more on where it is from.
      recipe: path and variant of the one that it starts from.
      overrides: `--config.a=b`, applied first.
      assignments: code by the field that it is assigned to, such as
        `stages: config.stages[:1]`.

    Returns:
      `path`.
    """
    file, colon, variant = recipe.partition(":")
    if Path(file).is_file() and not _is_below_here(file):
        file = str(Path(file).absolute())
    lines = []
    if overrides:
        words = "".join(f"        {word!r},\n" for word in overrides)
        lines.append(
            f"    problems = loading.apply_overrides(config, [\n{words}    ])\n"
            "    if problems:\n"
            '        raise ValueError("; ".join(problems))'
        )
    for name, code in (assignments or {}).items():
        lines.append(f"    config.{name} = {code}")
    text = _TEMPLATE.format(
        docstring=re.sub(r'["\\]', "'", docstring),
        path=path,
        recipe=file + colon + variant,
        lines="\n".join(lines),
    )
    write_text(path, text)
    loading.load(str(path))  # Fails here rather than there.
    return path


def _is_below_here(file: str) -> bool:
    return not Path(file).is_absolute() and ".." not in Path(file).parts
