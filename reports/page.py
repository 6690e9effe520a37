"""The page that every report is: one html file that asks nobody for anything.

Styles and pictures are inside, there is no script, and the colours follow
the reader's light or dark setting.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from core.atomic_files import write_text

_STYLE = """
:root {
  --page: #f7f7f5; --card: #ffffff; --ink: #1d2126; --soft: #646b75;
  --line: #e4e4df; --grid: #ecece8; --accent: #0e7c74; --second: #b4690e;
  --faint: #9aa3ad; --wrong: #c4431d; --track: #ededea;
  --shadow: 0 1px 2px rgb(30 40 50 / .05), 0 4px 16px rgb(30 40 50 / .04);
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1c2024; --ink: #e7e9ea; --soft: #9aa2ab;
    --line: #2d3238; --grid: #282d32; --accent: #3cc4b6; --second: #e5a550;
    --faint: #6d7680; --wrong: #ff8a5f; --track: #2a2f35;
    --shadow: none;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1080px; margin: 0 auto; padding: 56px 24px 80px; }
header { margin-bottom: 36px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.02em;
  margin: 0 0 8px; font-weight: 680; text-wrap: balance; }
h2 { font-size: 21px; letter-spacing: -.01em; margin: 56px 0 4px;
  font-weight: 640; }
h3 { font-size: 15px; margin: 0 0 2px; font-weight: 620; }
p { margin: 0; max-width: 68ch; text-wrap: pretty; }
.soft { color: var(--soft); }
.small { font-size: 13.5px; line-height: 1.45; }
.lead { font-size: 17px; color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line);
  border-radius: 14px; padding: 20px 22px; box-shadow: var(--shadow);
  margin-top: 16px; min-width: 0; }
.scroll { overflow-x: auto; }
.figures { display: grid; gap: 16px; margin-top: 28px;
  grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.figures .card { margin: 0; padding: 16px 20px; }
.figure { font-size: 32px; font-weight: 660; letter-spacing: -.02em;
  line-height: 1.25; }
.figures .first .figure { color: var(--accent); }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th { font-weight: 500; color: var(--soft); font-size: 13px;
  text-align: right; padding: 4px 10px 8px; white-space: nowrap; }
td { padding: 7px 10px; text-align: right; border-top: 1px solid var(--line);
  white-space: nowrap; }
th.middle { text-align: center; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tr.break td { border-top: 1px solid var(--faint); }
tr.strong td { font-weight: 640; }
td.best { color: var(--accent); font-weight: 640; }
td.plot { width: 34%; min-width: 180px; padding-top: 0; padding-bottom: 0; }
.grid { display: grid; gap: 16px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); }
.grid .card, .split .card { margin: 0; }
.split { display: flex; flex-wrap: wrap; gap: 16px; margin-top: 16px; }
.split > :first-child { flex: 3 1 400px; }
.split > :last-child { flex: 2 1 280px; }
.weights td { padding-right: 6px; }
.weights td:first-child { max-width: 170px; overflow: hidden;
  text-overflow: ellipsis; }
.weights td.plot { min-width: 60px; width: 40%; }
.wide { grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); }
.pair { display: grid; gap: 12px; margin-top: 10px;
  grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", sans-serif; fill: var(--soft); }
.key { display: inline-flex; align-items: center; gap: 6px;
  margin-right: 14px; font-size: 12.5px; color: var(--soft); }
.key i { width: 14px; display: inline-block; border-top: 3px solid; }
.key i.dashed { width: 16px; border-top: 3px dashed; }
.mistakes { display: grid; gap: 14px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); }
.mistake { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; overflow: hidden; box-shadow: var(--shadow); }
.mistake img { display: block; width: 100%; aspect-ratio: 1;
  object-fit: cover; background: var(--track); }
.mistake img.tiny { image-rendering: pixelated; }
.mistake .none { aspect-ratio: 1; background: var(--track); display: grid;
  place-items: center; color: var(--faint); font-size: 12.5px; }
.mistake figcaption { padding: 9px 11px 11px; font-size: 13px;
  line-height: 1.4; }
.mistake b { font-weight: 640; }
.said { color: var(--wrong); }
.sure { float: right; color: var(--soft); }
.name { color: var(--soft); font-size: 11.5px; line-height: 1.3;
  overflow-wrap: anywhere; margin-top: 5px; }
.bar { height: 4px; border-radius: 2px; background: var(--track);
  margin: 6px 0 3px; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--wrong); }
details { margin-top: 16px; }
summary { cursor: pointer; color: var(--soft); font-size: 14.5px; }
pre { font-size: 12.5px; line-height: 1.5; overflow-x: auto; margin: 12px 0 0;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
footer { margin-top: 64px; padding-top: 18px; color: var(--faint);
  border-top: 1px solid var(--line); font-size: 13px; }
@media (max-width: 560px) {
  main { padding: 32px 16px 56px; }
  h1 { font-size: 27px; }
  h2 { margin-top: 44px; }
  .card { padding: 16px; border-radius: 12px; }
  .figures { grid-template-columns: 1fr 1fr; gap: 10px; }
  .figures .card { padding: 12px 14px; }
  .figure { font-size: 25px; }
  .grid, .wide { grid-template-columns: minmax(0, 1fr); }
  .mistakes { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr));
    gap: 10px; }
}
@media print {
  body { background: none; } .card, .mistake { break-inside: avoid; }
}
"""

# An empty icon: without one, browsers ask the server for /favicon.ico.
_ICON = '<link rel="icon" href="data:,">'


def escape(text: object) -> str:
    """Text made safe for html, quotes included."""
    return html.escape(str(text))


def section(title: str, body: str, note: str = "") -> str:
    """A heading, an optional sentence below it, and the html `body`."""
    below = f'<p class="soft">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{below}{body}</section>"


def figures(items: Sequence[tuple[str, str, str]]) -> str:
    """A row of large numbers: (label, number, small print) each."""
    cards = [
        f'<div class="card{" first" if index == 0 else ""}">'
        f'<div class="small soft">{escape(label)}</div>'
        f'<div class="figure">{escape(number)}</div>'
        f'<div class="small soft">{escape(small)}</div></div>'
        for index, (label, number, small) in enumerate(items)
    ]
    return f'<div class="figures">{"".join(cards)}</div>'


def write_page(
    path: Path, title: str, lead: str, sections: Sequence[str]
) -> Path:
    """Writes the page, whole or not at all.

    Args:
      path: of the html file.
      title: plain text.
      lead: html of the sentence below the title.
      sections: html, in order.

    Returns:
      `path`.
    """
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title>{_ICON}<style>{_STYLE}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1>"
        f'<p class="lead">{lead}</p></header>{"".join(sections)}'
        "<footer>Made by Sextet. This page is one file and loads nothing "
        "else.</footer></main></body></html>\n",
    )
    return path
