"""Scores, part 4: tables for people, from the tidy rows of `scores.score_rows`.

What arrives: one row a number. What leaves: text for the terminal or Markdown for a README. Nothing is computed here
except which number is the smallest; we decided against recomputing scores, so that every table agrees with scores.csv.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import pandas as pd

from sciJEPA.errors import UserError

# The fixed order of methods in every table and legend, simple controls first. {probe} is the kind of probe.
METHOD_TITLES: dict[str, str] = {
    "persistence": "persistence",
    "climatology": "climatology",
    "damped_persistence": "damped persistence",
    "seasonal_naive": "seasonal naive",
    "eof_ridge": "EOF + {probe}",
    "pca": "PCA + {probe}",
    "raw_ridge": "{probe} on raw window",
    "random_init": "random init + {probe}",
    "mae": "masked autoencoder + {probe}",
    "mae_predicted": "masked autoencoder, predicted + {probe}",
    "supervised": "supervised, end to end",
    "jepa_online": "JEPA online + {probe}",
    "jepa_target": "JEPA target + {probe}",
    "jepa_predicted": "JEPA, predicted + {probe}",
    "latent_rollout": "latent rollout + {probe}",
}
PROBE_TITLES = {"none": "ridge", "": "ridge", "local": "local ridge", "knn": "k-NN", "mlp": "MLP"}
LATENTS = "latents"
"""What stands in place of a variable where a number is about the latents themselves."""
DAYS_PER_UNIT = {
    **dict.fromkeys(("s", "second", "seconds"), 1 / 86400),
    **dict.fromkeys(("t", "min", "minute", "minutes"), 1 / 1440),
    **dict.fromkeys(("h", "hour", "hours"), 1 / 24),
    **dict.fromkeys(("d", "day", "days"), 1.0),
    **dict.fromkeys(("w", "week", "weeks"), 7.0),
    **dict.fromkeys(("m", "ms", "me", "month", "months"), 365.25 / 12),
    **dict.fromkeys(("y", "ys", "ye", "year", "years"), 365.25),
}
TABLE_WIDTH = 150


def method_title(method: str, probe: str = "none") -> str:
    """Human title of a method: `jepa_target`, `ridge` -> "JEPA target + ridge". Unknown methods keep their name.

    Examples
    --------
    >>> method_title("eof_ridge", "ridge"), method_title("persistence", "none"), method_title("mine", "attentive")
    ('EOF + ridge', 'persistence', 'mine + attentive')
    """
    if method in METHOD_TITLES:
        return METHOD_TITLES[method].format(probe=PROBE_TITLES.get(probe, probe))
    return method if probe in ("none", "") else f"{method} + {PROBE_TITLES.get(probe, probe)}"


def method_order(method: str) -> int:
    """Place of a method in every table and legend; unknown methods come last.

    Examples
    --------
    >>> method_order("persistence") < method_order("eof_ridge") < method_order("jepa_target") < method_order("mine")
    True
    """
    names = list(METHOD_TITLES)
    return names.index(method) if method in names else len(names)


def ordered_methods(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The (method, probe) pairs in the rows, in table order.

    Examples
    --------
    >>> ordered_methods(pd.DataFrame({"method": ["mae", "persistence"], "probe": ["ridge", "none"]}))
    [('persistence', 'none'), ('mae', 'ridge')]
    """
    found = dict.fromkeys(zip(rows["method"].astype(str), rows["probe"].astype(str), strict=True))
    return sorted(found, key=lambda pair: method_order(pair[0]))


def lead_days(lead: str) -> tuple[float, str]:
    """Length of a lead time in days, and its unit as written in lower case; a bare number counts steps.

    Months count as 365.25 / 12 days and years as 365.25: good for sorting and drawing, not for calendars.

    Examples
    --------
    >>> lead_days("6H"), lead_days("3D"), lead_days("10")
    ((0.25, 'h'), (3.0, 'd'), (10.0, 'step'))
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", lead)
    unit = match.group(2).lower() if match else ""
    if match and unit in ("", "step", "steps"):
        return float(match.group(1)), "step"
    if not match or unit not in DAYS_PER_UNIT:
        raise UserError(f"Cannot read the lead time {lead!r}: write a number and a unit, as in 6H, 3D, 2W, 1M, or 10.")
    return float(match.group(1)) * DAYS_PER_UNIT[unit], unit


def sorted_leads(leads: Iterable[str]) -> list[str]:
    """The different leads, shortest first.

    Examples
    --------
    >>> sorted_leads(["3D", "6H", "3D", "1M"])
    ['6H', '3D', '1M']
    """
    return sorted(dict.fromkeys(str(lead) for lead in leads), key=lambda lead: lead_days(lead)[0])


class _Cells:
    """Look-up of (value, low, high) in the rows of one archive, seed and variable."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.methods = ordered_methods(rows)
        self.leads = sorted_leads(rows["lead"])
        keys = zip(rows["method"].astype(str), rows["probe"].astype(str), rows["lead"], rows["metric"], strict=True)
        numbers = zip(rows["value"], rows["low"], rows["high"], strict=True)
        self._numbers = dict(zip(keys, numbers, strict=True))

    def get(self, method: tuple[str, str], lead: str, metric: str) -> tuple[float, float, float]:
        return self._numbers.get((*method, lead, metric), (math.nan, math.nan, math.nan))

    def best(self, lead: str) -> list[tuple[str, str]]:
        """Method or methods with the smallest RMSE."""
        errors = {method: self.get(method, lead, "rmse")[0] for method in self.methods}
        finite = [value for value in errors.values() if not math.isnan(value)]
        return [method for method, value in errors.items() if finite and value == min(finite)]

    def best_control(self, lead: str) -> str | None:
        """The control that differences are taken to: the only method with no difference and no scatter."""
        for method in self.methods:
            if self.get(method, lead, "difference_to_best_control") == (0.0, 0.0, 0.0):
                return method_title(*method)
        return None

    def mark(self, method: tuple[str, str], lead: str) -> str:
        _, low, high = self.get(method, lead, "difference_to_best_control")
        sign = "+" if high < 0 else "-" if low > 0 else ""
        return ("*" if method in self.best(lead) else "") + sign


def _number(value: float, pattern: str) -> str:
    return "." if math.isnan(value) else format(value, pattern).rstrip(".")  # 1034, not 1034.


def _interval(numbers: tuple[float, float, float], pattern: str) -> str:
    value, low, high = numbers
    if math.isnan(value):
        return "."
    if high - low < 1e-9:  # a reference against itself
        return format(value, pattern)
    return f"{value:{pattern}} [{low:{pattern}}, {high:{pattern}}]"


def _grid(header: Sequence[str], subheader: str, lines: Sequence[tuple[str, Sequence[str]]], heading: str) -> list[str]:
    """Lay cells out in columns of equal width, wrapping to further blocks of leads past TABLE_WIDTH."""
    cell = max([len(subheader), *(len(text) for _, texts in lines for text in texts)]) + 2
    side = max([len(heading), *(len(title) for title, _ in lines)])
    per_block = max(1, (TABLE_WIDTH - side) // cell)
    out: list[str] = []
    for start in range(0, len(header), per_block):
        part = slice(start, start + per_block)
        out.append((heading.ljust(side) + "".join(f"  {lead}".ljust(cell) for lead in header[part])).rstrip())
        out.append((" " * side + "".join(f"  {subheader}".ljust(cell) for _ in header[part])).rstrip())
        for title, texts in lines:
            out.append((title.ljust(side) + "".join(f"  {text}".ljust(cell) for text in texts[part])).rstrip())
        out.append("")
    return out


def _tables(rows: pd.DataFrame, *, latents: bool = False) -> Iterator[tuple[str, str, str, str, pd.DataFrame]]:
    """Rows by archive, seed, variable and share of labels; those about the latents themselves, or all others."""
    keys = ["archive", "seed", "variable", *(["labels"] if "labels" in rows else [])]
    chosen = rows[(rows["variable"] == LATENTS) == latents]
    for names, part in chosen.groupby(keys, sort=False):
        share = f", {float(names[3]):.0%} of the labels" if len(names) > 3 else ""
        yield str(names[0]), str(names[1]), str(names[2]), share, part


def _further(cells: _Cells, metric: str, subheader: str, pattern: str, heading: str) -> list[str]:
    """A block of one number a cell, for the methods that have it."""
    lines = [
        (method_title(*method), [_number(cells.get(method, lead, metric)[0], pattern) for lead in cells.leads])
        for method in cells.methods
    ]
    found = [(title, texts) for title, texts in lines if any(text != "." for text in texts)]
    return _grid(cells.leads, subheader, found, heading) if found else []


def format_table(rows: pd.DataFrame, units: Mapping[str, str] | None = None) -> str:
    """The control panel for the terminal, at most 150 columns wide: two blocks of numbers for each variable.

    First RMSE in the variable's units beside RMSE / climatology with its interval, then skill with its interval beside
    the anomaly correlation. `*` marks the smallest RMSE of a lead, `+` and `-` the methods whose paired interval
    against the best control excludes zero (better, worse). A number that is not defined prints as a dot.

    Parameters
    ----------
    rows
        Tidy rows as `scores.score_rows` returns them; several archives, variables and seeds are printed in turn.
    units
        Units by variable name, for the headings.

    Examples
    --------
    >>> from sciJEPA.scores import MethodErrors, score_rows
    >>> import numpy as np
    >>> names = {"persistence": 2.0, "climatology": 1.0}
    >>> errors = [MethodErrors(method=m, variable="t2m", lead="1D", probe="none", squared_error=np.full(20, e**2))
    ...           for m, e in names.items()]
    >>> rows = score_rows(errors, archive="toy", seed=0, controls=["persistence", "climatology"])
    >>> print(format_table(rows, {"t2m": "K"}).splitlines()[0])
    t2m [K], archive toy, seed 0, 20 test times
    """
    out: list[str] = []
    for archive, seed, variable, share, part in _tables(rows):
        cells = _Cells(part)
        unit = (units or {}).get(variable)
        times = part.loc[part["metric"] == "rmse", "n"]
        counts = f"{times.min()}" if times.min() == times.max() else f"{times.min()} to {times.max()}"
        name = f"{variable} [{unit}]" if unit else variable
        out += [f"{name}, archive {archive}, seed {seed}, {counts} test times{share}", ""]
        errors: list[tuple[str, list[str]]] = []
        skills: list[tuple[str, list[str]]] = []
        wide = max(len(_number(cells.get(*key, "rmse")[0], "#.4g")) for key in product(cells.methods, cells.leads))
        for method in cells.methods:
            title = method_title(*method)
            rmse = [_number(cells.get(method, lead, "rmse")[0], "#.4g") for lead in cells.leads]
            ratio = [_interval(cells.get(method, lead, "rmse_over_climatology"), ".3f") for lead in cells.leads]
            marks = [cells.mark(method, lead) for lead in cells.leads]
            acc = [_number(cells.get(method, lead, "acc")[0], ".3f") for lead in cells.leads]
            skill = [_interval(cells.get(method, lead, "skill"), "+.3f") for lead in cells.leads]
            errors.append((title, [f"{a:<{wide}} {b:<20}{c}" for a, b, c in zip(rmse, ratio, marks, strict=True)]))
            skills.append((title, [f"{a:<23} {b}" for a, b in zip(skill, acc, strict=True)]))
        control = [(cells.best_control(lead) or ".") for lead in cells.leads]
        errors.append(("best control", control))
        out += _grid(cells.leads, f"{'RMSE':<{wide}} / climatology", errors, "error, by lead time")
        out += _grid(cells.leads, f"{'skill':<23} ACC", skills, "skill, by lead time")
        out += _further(cells, "p_value_adjusted", "p-value", ".4f", "adjusted for all cells")
    for *_, part in _tables(rows, latents=True):
        out += _further(_Cells(part), "rank", "rank", ".1f", "effective rank of latents")
    out.append("* smallest RMSE; + better, - worse than the best control (paired interval excludes zero).")
    out.append("skill = 1 - RMSE / RMSE of the best simple control; [low, high] from a paired block bootstrap.")
    return "\n".join(out)


def format_markdown(rows: pd.DataFrame) -> str:
    """RMSE / climatology as GitHub Markdown: one table for each variable, methods down, leads across.

    The smallest RMSE of a lead is bold; + and - mean better and worse than the best control, as in `format_table`.
    Without a climatology among the methods, the RMSE itself is printed.

    Examples
    --------
    >>> row = {"archive": "toy", "variable": "t2m", "lead": "1D", "method": "climatology", "probe": "none",
    ...        "metric": "rmse_over_climatology", "value": 1.0, "low": 1.0, "high": 1.0, "n": 9, "seed": 0}
    >>> print(format_markdown(pd.DataFrame([row, row | {"metric": "rmse", "value": 2.0}])))
    **t2m**, RMSE / climatology (archive toy, seed 0)
    <BLANKLINE>
    | method | 1D |
    | :-- | --: |
    | climatology | **1.000** |
    """
    tables: list[str] = []
    for archive, seed, variable, share, part in _tables(rows):
        cells = _Cells(part)
        relative = (part["metric"] == "rmse_over_climatology").any()
        metric, label = ("rmse_over_climatology", "RMSE / climatology") if relative else ("rmse", "RMSE")
        lines = [f"**{variable}**, {label} (archive {archive}, seed {seed}{share})", ""]
        lines.append(" | ".join(["| method", *cells.leads]) + " |")
        lines.append(" | ".join(["| :--", *("--:" for _ in cells.leads)]) + " |")
        for method in cells.methods:
            texts = []
            for lead in cells.leads:
                text = _number(cells.get(method, lead, metric)[0], ".3f" if relative else "#.4g")
                mark = cells.mark(method, lead)
                text = f"**{text}**" if "*" in mark else text
                texts.append(f"{text} {mark.strip('*')}".strip())
            lines.append(" | ".join([f"| {method_title(*method)}", *texts]) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)
