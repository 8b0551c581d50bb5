"""Pieces of a report -> one HTML page that needs nothing but itself.

Arrives: titles, tables, figures and text. Leaves: HTML with the images inside, styles for light, dark and paper, and a
few lines of script that sort tables. The page forbids itself the network (Content-Security-Policy). We decided against
a template engine: it would be a dependency for four functions.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GENERATOR = "sciJEPA report"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #5b6470; --line: #d5dae0; --head: #f2f4f7;
  --link: #0059b3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #14171b; --faint: #9aa4b0; --line: #353c45;
  --head: #1f242a; --link: #7ab8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
a { color: var(--link); } nav ul { padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; }
.faint, figcaption, caption { color: var(--faint); }
.scroll { overflow-x: auto; } summary { cursor: pointer; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr:has(td.number) td:first-child { white-space: nowrap; }
thead th { background: var(--head); }
thead button { all: unset; cursor: pointer; font-weight: 600; }
thead button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
thead button::after { content: " \\2195"; opacity: .45; }
th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
tr.best td, tr.best th { font-weight: 700; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: #fff; padding: .5rem;
  border-radius: 4px; }
pre { background: var(--head); padding: .8rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
.missing { border-left: 4px solid #d55e00; padding: .4rem .9rem; background: var(--head); }
@media print { :root { --ink: #000; --paper: #fff; --faint: #333; --line: #999; --head: #eee; }
  body { max-width: none; font-size: 10pt; padding: 0; } nav, thead button::after { display: none; }
  figure, table { break-inside: avoid; } details::details-content { content-visibility: visible; } }
"""

SCRIPT = """
document.querySelectorAll("thead button").forEach(function (button) {
  button.addEventListener("click", function () {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = Array.from(head.parentNode.children).indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = function (row) { return row.children[column].dataset.sort; };
    Array.from(body.rows).sort(function (a, b) {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // what is not defined comes last
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    }).forEach(function (row) { body.appendChild(row); });
  });
});
"""


class Cell:
    """A cell of a table: what is shown, and the value to sort by."""

    def __init__(self, text: str, value: float | str | None = None) -> None:
        self.text, self.value = text, text if value is None else value

    @property
    def number(self) -> bool:
        """Whether it sorts as a number."""
        return isinstance(self.value, float | int)


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell | str]], best: Sequence[int] = ()) -> str:
    """A table whose columns sort at a click on their heading; rows numbered in `best` are bold.

    >>> made = table("errors", ["method", "RMSE"], [["ours", Cell("2 K", 2.0)]])
    >>> '<td data-sort="2.0" class="number">2 K</td>' in made
    True
    """
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    numeric = [bool(cells) and all(row[column].number for row in cells) for column in range(len(header))]
    heads = "".join(
        f'<th scope="col"{_numeric(right)}><button type="button">{escape(name)}</button></th>'
        for name, right in zip(header, numeric, strict=True)
    )
    lines = []
    for number, row in enumerate(cells):
        inside = "".join(
            f'<td data-sort="{escape(_key(cell.value))}"{_numeric(right)}>{escape(cell.text)}</td>'
            for cell, right in zip(row, numeric, strict=True)
        )
        mark = ' class="best"' if number in best else ""
        lines.append(f"<tr{mark}>{inside}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def picture(figure: Figure, alternative: str, caption: str) -> str:
    """A figure as an image inside the page, with the text for those who do not see it."""
    memory = io.BytesIO()
    figure.savefig(memory, dpi=110, bbox_inches="tight", format="png", metadata={"Software": None})
    data = base64.b64encode(memory.getvalue()).decode("ascii")
    return (
        f'<figure><img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{escape(words)}</p>"


def missing(what: str, command: str = "") -> str:
    """What a run does not have, and the command that adds it."""
    how = f": <code>{escape(command)}</code>" if command else "."
    return f'<p class="missing">{escape(what.rstrip("."))}{how}</p>'


def folded(title: str, words: str) -> str:
    """Long plain text behind its title."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(words)}</pre></details>"


def folded_part(title: str, inside: str) -> str:
    """Tables or pictures behind their title."""
    return f"<details><summary>{escape(title)}</summary>\n{inside}\n</details>"


def part(heading: str, inside: str) -> str:
    """A part of a section, such as what it says of one domain."""
    return f"<section><h3>{escape(heading)}</h3>\n{inside}\n</section>"


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page: (heading, HTML) one after the other, with a list of contents."""
    contents = "".join(
        f'<li><a href="#section-{number}">{escape(heading)}</a></li>' for number, (heading, _) in enumerate(sections)
    )
    body = "\n".join(
        f'<section id="section-{number}"><h2>{escape(heading)}</h2>\n{inside}\n</section>'
        for number, (heading, inside) in enumerate(sections)
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f'<header><h1>{escape(title)}</h1><p class="faint">{escape(subtitle)}</p></header>\n'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n<main>\n{body}\n</main>\n'
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _key(value: float | str) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def _numeric(right: bool) -> str:
    return ' class="number"' if right else ""
