"""The page of every report: one html file that loads nothing else.

Styles and pictures are inside, there is no script, and the colours follow
the reader's light or dark setting. The html is in `templates/`; Jinja2 escapes
whatever is put into it, unless it is `Markup` already.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from core.atomic_files import write_text

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Figure:
    """A number at the top of a page.

    Attributes:
      label: above the number, a few words.
      number: as text.
      note: below it, a few words.
    """

    label: str
    number: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
      title: its heading; "" for none.
      body: html, as `Markup`; plain text is escaped.
      note: a sentence below the heading; `Markup` or plain text.
      figures: shown at the top of the page.
    """

    title: str
    body: str = ""
    note: str = ""
    figures: tuple[Figure, ...] = ()


@functools.cache
def template(name: str) -> Any:
    """Returns a file of `templates/`: its macros are functions to Markup."""
    return _environment().get_template(name).module


def write_page(
    path: Path,
    title: str,
    lead: str,
    sections: Sequence[Section],
    figures: Sequence[Figure] = (),
) -> Path:
    """Writes the page, whole or not at all.

    Args:
      path: of the html file.
      title: plain text.
      lead: the sentence below the title, plain text.
      sections: in order.
      figures: shown after those of the sections.

    Returns:
      `path`.
    """
    page = _environment().get_template("page.html")
    figures = [*(f for part in sections for f in part.figures), *figures]
    write_text(
        path,
        page.render(title=title, lead=lead, figures=figures, sections=sections),
    )
    return path


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
