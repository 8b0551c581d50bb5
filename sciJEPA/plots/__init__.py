"""Pictures: skill against lead and training curves here; maps, latents, attention and spectra in modules of their own.

What arrives: labelled arrays and tidy tables. What leaves: a matplotlib Figure, saved when a path is given. Figures are
built as objects; we decided against pyplot, whose hidden current figure leaks between notebooks, threads and reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sciJEPA.errors import UserError
from sciJEPA.plots import looks as looks  # first of these: says what to install where matplotlib is missing
from sciJEPA.plots.attention import plot_attention
from sciJEPA.plots.latents import plot_components, plot_embedding, plot_spectra, plot_transitions
from sciJEPA.plots.looks import Figure, finish, tidy
from sciJEPA.plots.maps import plot_maps, plot_mask, plot_surprise
from sciJEPA.scoring.score_table import lead_days, method_title, ordered_methods, sorted_leads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_attention",
    "plot_components",
    "plot_embedding",
    "plot_maps",
    "plot_mask",
    "plot_skill",
    "plot_spectra",
    "plot_surprise",
    "plot_training",
    "plot_transitions",
]

# Okabe & Ito 2008 (https://jfly.uni-koeln.de/color/): told apart with every common kind of colour vision. Simple
# controls are grey, strong controls light, JEPA dark and thick; markers differ as well, for print.
METHOD_LOOKS: dict[str, tuple[str, str, str]] = {
    "persistence": ("#999999", "s", ":"),
    "climatology": ("#666666", "_", ":"),
    "damped_persistence": ("#999999", "D", "--"),
    "seasonal_naive": ("#666666", "x", "--"),
    "eof_ridge": ("#E69F00", "^", "--"),
    "pca": ("#E69F00", "<", ":"),
    "raw_ridge": ("#56B4E9", "v", "--"),
    "random_init": ("#444444", "P", "--"),
    "mae": ("#CC79A7", "X", "--"),
    "mae_predicted": ("#CC79A7", ">", ":"),
    "supervised": ("#F0E442", "h", "--"),
    "jepa_online": ("#009E73", "o", "-"),
    "jepa_target": ("#0072B2", "o", "-"),
    "jepa_predicted": ("#D55E00", "o", "-"),
    "latent_rollout": ("#D55E00", "*", ":"),
}
OTHER_LOOKS = ("#000000", "d", "-.")
OUR_METHODS = ("jepa_online", "jepa_target", "jepa_predicted", "latent_rollout")
HIGHEST_DRAWN = 1.6  # RMSE / climatology; persistence at long leads would squeeze all others together
LEAD_UNITS = {"hours": 1 / 24, "days": 1.0, "months": 365.25 / 12, "years": 365.25}


def _lead_axis(leads: Sequence[str]) -> tuple[dict[str, float], str, dict[str, str]]:
    """Position of each lead on the axis, the axis label, and the text of each tick, in the unit that reads best."""
    days = {lead: lead_days(lead)[0] for lead in leads}
    written = {lead_days(lead)[1] for lead in leads}
    if written == {"step"}:
        return days, "lead time (steps)", {lead: f"{value:g}" for lead, value in days.items()}
    if "step" in written:
        raise UserError(f"Leads {list(leads)} mix steps and units of time; give all of them a unit, as in 6H.")
    longest = max(days.values())
    if all(unit.startswith("m") and not unit.startswith("mi") for unit in written):
        unit = "months"
    else:
        unit = "hours" if longest < 2 else "days" if longest < 400 else "years"
    scaled = {lead: value / LEAD_UNITS[unit] for lead, value in days.items()}
    return scaled, f"lead time ({unit})", {lead: f"{round(value, 2):g}" for lead, value in scaled.items()}


def plot_skill(rows: pd.DataFrame, path: str | Path | None = None) -> Figure:
    """RMSE / climatology against lead time, every method with its interval, one panel for each variable.

    Below the line at 1 a method knows more than climatology. Leads are drawn at equal distances, so that 6 hours and
    30 days both read. Within the band of a lead, methods stand beside each other, so that intervals do not hide one
    another; compare heights within a band, the faint lines only guide the eye. Values above 1.6 are written at the top.

    Parameters
    ----------
    rows
        Tidy rows of `scores.score_rows`, with the metric ``rmse_over_climatology``; one archive and seed.
    path
        Where to save the picture; the suffix decides the format.

    Examples
    --------
    >>> row = {"variable": "t2m", "method": "jepa_target", "probe": "ridge", "metric": "rmse_over_climatology"}
    >>> rows = pd.DataFrame([row | {"lead": "1D", "value": 0.5, "low": 0.4, "high": 0.6}])
    >>> plot_skill(rows).axes[0].get_xlabel()
    'lead time (hours)'
    """
    rows = rows[rows["metric"] == "rmse_over_climatology"]
    if rows.empty:
        raise UserError("No rows with metric 'rmse_over_climatology' to plot; score climatology among the methods.")
    for column in ("archive", "seed"):
        if column in rows and rows[column].nunique() > 1:
            raise UserError(f"plot_skill draws one {column}, found {sorted(rows[column].unique())}; select one first.")
    variables = list(dict.fromkeys(rows["variable"]))
    methods = [pair for pair in ordered_methods(rows) if pair[0] != "climatology"]
    leads = sorted_leads(rows["lead"])
    _, label, texts = _lead_axis(leads)
    # Many methods stand beside each other at each lead: they want width, and their legend height.
    width = float(np.clip(0.06 * len(methods) * len(leads), 3.6, 7.2))
    columns = min(len(variables), 3 if width < 4.8 else 2)
    lines = -(-len(variables) // columns)
    height = 3.0 if lines <= 2 else 2.4
    size = (width * columns + 2.2, max(height * lines, 0.19 * len(methods)) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number >= len(variables):
            axes.set_axis_off()
            continue
        part = rows[rows["variable"] == variables[number]]
        _skill_panel(axes, part, methods, leads)
        axes.set_title(str(variables[number]), fontsize=10)
        if number + columns >= len(variables):  # the lowest panel of its column
            axes.set_xlabel(label)
        axes.set_xticks(range(len(leads)), [texts[lead] for lead in leads])
    figure.supylabel("RMSE / climatology", fontsize=10)
    handles, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=9)
    return finish(figure, path)


def _skill_panel(axes: Axes, rows: pd.DataFrame, methods: Sequence[tuple[str, str]], leads: Sequence[str]) -> None:
    for band in range(0, len(leads), 2):
        axes.axvspan(band - 0.5, band + 0.5, color="0.955", zorder=0)
    dodge = np.linspace(-0.36, 0.36, len(methods)) if len(methods) != 1 else [0.0]
    seen: set[str] = set()
    for (method, probe), shift in zip(methods, dodge, strict=True):
        colour, marker, line = METHOD_LOOKS.get(method, OTHER_LOOKS)
        hollow = method in seen  # the same method under another probe keeps its colour
        seen.add(method)
        mine = rows[(rows["method"] == method) & (rows["probe"] == probe)].set_index("lead").reindex(leads)
        beyond = mine["value"] > HIGHEST_DRAWN
        numbers, mine = mine["value"], mine[["value", "low", "high"]].mask(beyond)
        below, above = mine["value"] - mine["low"], mine["high"] - mine["value"]
        places = np.arange(len(leads)) + shift
        ours = method in OUR_METHODS
        axes.plot(places, mine["value"], color=colour, linestyle=line, linewidth=1.0, alpha=0.4, zorder=1)
        axes.errorbar(
            places,
            mine["value"],
            yerr=np.maximum([below, above], 0),
            color=colour,
            marker=marker,
            linestyle="none",
            markersize=6 if ours else 4.5,
            markerfacecolor="white" if hollow else colour,
            elinewidth=2.0 if ours else 1.2,
            zorder=3 if ours else 2,
            label=method_title(method, probe),
        )
        for place, number in zip(places[beyond], numbers[beyond], strict=True):
            axes.annotate(
                f"{number:.3g}\u2191", (place, HIGHEST_DRAWN), color=colour, fontsize=8, ha="center", va="bottom"
            )
    if axes.texts:  # only now: a limit set earlier would stop the axis from growing with the later methods
        axes.set_ylim(top=1.08 * HIGHEST_DRAWN)
    axes.axhline(1.0, color="0.35", linewidth=1.0, label="climatology (= 1)", zorder=1)
    axes.set_xlim(-0.5, len(leads) - 0.5)
    tidy(axes)


TRAINING_PANELS: tuple[tuple[str, str, dict[str, tuple[str, str, str]]], ...] = (
    (
        "loss",
        "loss (normalised)",
        {
            "loss": ("total", "#000000", "-"),
            "loss_prediction": ("prediction, training", "#0072B2", "--"),
            "validation_loss": ("prediction, validation", "#D55E00", ":"),
        },
    ),
    (
        "effective rank",
        "directions in use",
        {"rank_target": ("target encoder", "#0072B2", "-"), "rank_online": ("online encoder", "#009E73", "--")},
    ),
    (
        "spread of each latent dimension",
        "standard deviation",
        {
            "std_target": ("target encoder", "#0072B2", "-"),
            "std_online": ("online encoder", "#009E73", "--"),
            "std_predicted": ("predicted", "#D55E00", ":"),
        },
    ),
)


def plot_training(metrics: pd.DataFrame, path: str | Path | None = None) -> Figure:
    """Training curves: the loss, and whether the latents collapse (effective rank, spread of each dimension).

    The loss is no measure of quality: a falling loss beside a falling rank is a collapse.

    Parameters
    ----------
    metrics
        Rows of metrics.csv: ``step`` and any of loss, loss_prediction, validation_loss, rank_target, rank_online,
        std_target, std_online, std_predicted. What is absent is not drawn; NaN (logged at other steps) is skipped.
    path
        Where to save the picture.

    Examples
    --------
    >>> len(plot_training(pd.DataFrame({"step": [0, 1], "loss": [1.0, 0.5]})).axes)
    1
    """
    panels = [
        (title, label, {name: look for name, look in curves.items() if name in metrics and metrics[name].notna().any()})
        for title, label, curves in TRAINING_PANELS
    ]
    panels = [panel for panel in panels if panel[2]]
    if "step" not in metrics or not panels:
        raise UserError(f"plot_training needs 'step' and one of the known metrics, found {list(metrics.columns)}.")
    figure = Figure(figsize=(3.9 * len(panels), 3.2), layout="constrained")
    for axes, (title, label, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (text, colour, line) in curves.items():
            kept = metrics[["step", name]].dropna()
            axes.plot(kept["step"], kept[name], color=colour, linestyle=line, linewidth=1.6, label=text)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0 if title != "loss" else None)
        axes.legend(frameon=False, fontsize=8)
        tidy(axes)
    return finish(figure, path)
