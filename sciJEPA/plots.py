"""Pictures: skill against lead, a mask over its field, training curves, principal components of latents.

What arrives: labelled arrays and tidy tables. What leaves: a matplotlib Figure, saved when a path is given. Figures are
built as objects; we decided against pyplot, whose hidden current figure leaks between notebooks, threads and reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.score_table import lead_days, method_title, ordered_methods, sorted_leads

try:
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import Normalize
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MultipleLocator
except ImportError as error:  # pragma: no cover - tested in a process without matplotlib
    raise UserError('Pictures need matplotlib, which is not installed; run: pip install "scijepa[plot]".') from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    "supervised": ("#F0E442", "h", "--"),
    "jepa_online": ("#009E73", "o", "-"),
    "jepa_target": ("#0072B2", "o", "-"),
    "latent_rollout": ("#D55E00", "*", "-"),
}
OTHER_LOOKS = ("#000000", "d", "-.")
OUR_METHODS = ("jepa_online", "jepa_target", "latent_rollout")
HIGHEST_DRAWN = 1.6  # RMSE / climatology; persistence at long leads would squeeze all others together
LEAD_UNITS = {"hours": 1 / 24, "days": 1.0, "months": 365.25 / 12, "years": 365.25}


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


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
    columns = min(3, len(variables))
    lines = -(-len(variables) // columns)
    height = 3.0 if lines <= 2 else 2.4
    figure = Figure(figsize=(3.6 * columns + 2.2, height * lines + 0.4), layout="constrained")
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
    return _finish(figure, path)


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
    _tidy(axes)


TARGET_INK = "#444444"  # grey: colours belong to the field


def plot_mask(fields: xr.DataArray, role: xr.DataArray, path: str | Path | None = None) -> Figure:
    """A mask over the fields it hides: context in full colour, unused parts washed out, targets outlined and hatched.

    Parameters
    ----------
    fields
        Dims (time, latitude, longitude) under any names, in that order; physical units.
    role
        Same dims; 0 hidden and unused, 1 context (the encoder sees it), 2 target (its latents are predicted).
    path
        Where to save the picture.

    Examples
    --------
    >>> field = xr.DataArray(np.zeros((1, 4, 8)), dims=("time", "latitude", "longitude"), name="t2m")
    >>> figure = plot_mask(field, (field + 1).astype(int))
    >>> len(figure.axes)  # one panel and the colour bar
    2
    """
    if fields.ndim != 3 or role.dims != fields.dims or role.shape != fields.shape:
        raise UserError(
            "plot_mask needs fields and role with the same three dimensions (time, latitude, longitude), "
            f"got {dict(fields.sizes)} and {dict(role.sizes)}."
        )
    time, latitude, longitude = (str(name) for name in fields.dims)
    steps, rows, columns = fields.shape
    across = min(4, steps)
    lines = -(-steps // across)
    size = 3.4 if across > 1 else 6.0
    figure = Figure(
        figsize=(size * across + 1.0, (size * min(1.2, max(0.5, rows / columns)) + 0.4) * lines + 0.7),
        layout="constrained",
    )
    grid = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    values = fields.to_numpy()
    low, high = np.nanpercentile(values, [1, 99])
    # Anomalies have a zero that means something; fields of one sign do not.
    signed = low < 0 < high
    shared = Normalize(*((-max(-low, high), max(-low, high)) if signed else (low, high)))
    colours = "RdBu_r" if signed else "viridis"
    x, y = (_cell_edges(fields, name) for name in (longitude, latitude))
    for step, axes in enumerate(grid.flat):
        if step >= steps:
            axes.set_axis_off()
            continue
        kind = role.to_numpy()[step]
        axes.pcolormesh(x, y, values[step], norm=shared, cmap=colours, rasterized=True)
        # White on top, denser over unused parts than over targets, where the hatching hides some more.
        for which, veil in ((0, 0.85), (2, 0.35)):
            axes.pcolormesh(x, y, np.where(kind == which, 1.0, np.nan), cmap="gray", vmin=0, vmax=1, alpha=veil)
        _outline_targets(axes, x, y, kind == 2)
        axes.set_title(_time_text(fields, time, step), fontsize=9)
        if x.max() - x.min() > 180 and longitude.startswith("lon"):
            axes.xaxis.set_major_locator(MultipleLocator(90))
            axes.yaxis.set_major_locator(MultipleLocator(30))
        if step % across == 0:
            axes.set_ylabel(_axis_label(fields, latitude))
        if step + across >= steps:
            axes.set_xlabel(_axis_label(fields, longitude))
            axes.tick_params(labelbottom=True)
    unit = fields.attrs.get("units")
    name = str(fields.attrs.get("long_name", fields.name or "value"))
    label = f"{name} ({unit})" if unit else name
    figure.colorbar(ScalarMappable(shared, colours), ax=list(grid.flat), label=label, extend="both", pad=0.01)
    _mask_legend(figure)
    return _finish(figure, path)


def _cell_edges(fields: xr.DataArray, name: str) -> np.ndarray:
    centres = fields[name].to_numpy().astype(float)  # the index counts where a dimension has no coordinate
    if centres.size == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _outline_targets(axes: Axes, x: np.ndarray, y: np.ndarray, target: np.ndarray) -> None:
    """Hatch target cells and draw the border between target and anything else, along cell edges."""
    padded = np.pad(target, 1)
    lines = []
    for row, column in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1]), strict=True):
        lines.append([(x[column], y[row]), (x[column + 1], y[row])])
    for row, column in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1]), strict=True):
        lines.append([(x[column], y[row]), (x[column], y[row + 1])])
    axes.add_collection(LineCollection(lines, colors=TARGET_INK, linewidths=1.4, capstyle="round"))
    cells = [
        [(x[column], y[row]), (x[column + 1], y[row]), (x[column + 1], y[row + 1]), (x[column], y[row + 1])]
        for row, column in zip(*np.nonzero(target), strict=True)
    ]
    axes.add_collection(PolyCollection(cells, facecolor="none", edgecolor=TARGET_INK, hatch="////", linewidth=0))


def _mask_legend(figure: Figure) -> None:
    patches = {
        "context: the encoder sees it": Patch(facecolor="0.6"),
        "target: its latents are predicted": Patch(facecolor="white", edgecolor=TARGET_INK, hatch="////"),
        "unused": Patch(facecolor="0.94", edgecolor="0.8"),
    }
    figure.legend(list(patches.values()), list(patches), loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _time_text(fields: xr.DataArray, time: str, step: int) -> str:
    if time not in fields.coords:
        return f"{time} {step}"
    stamp = fields[time].to_numpy()[step]
    if np.issubdtype(fields[time].dtype, np.datetime64):
        return f"{pd.Timestamp(stamp):%Y-%m-%d %H:%M}"
    return str(stamp)


def _axis_label(fields: xr.DataArray, name: str) -> str:
    degrees = {"latitude": "°N", "lat": "°N", "longitude": "°E", "lon": "°E"}
    unit = degrees.get(name) or fields[name].attrs.get("units")
    return f"{name} ({unit})" if unit else name


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
        _tidy(axes)
    return _finish(figure, path)


def plot_components(scores: xr.DataArray, path: str | Path | None = None) -> Figure:
    """Principal components of latents: the first two against each other by season, and the first three over time.

    Parameters
    ----------
    scores
        Dims (time, component), at least two components; time as dates. Any units.
    path
        Where to save the picture.

    Examples
    --------
    >>> time = np.datetime64("2001-01-01") + np.arange(4)
    >>> scores = xr.DataArray(np.eye(4)[:, :2], dims=("time", "component"), coords={"time": time})
    >>> plot_components(scores).axes[0].get_xlabel()
    'component 1'
    """
    if scores.ndim != 2 or scores.shape[1] < 2 or "time" not in scores.coords:
        raise UserError(f"plot_components needs dates along (time, component >= 2), got {dict(scores.sizes)}.")
    values, time = scores.to_numpy(), scores["time"]
    day, ticks = _drawable_time(time)
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.5])
    season: Any = left.scatter(
        values[:, 0],
        values[:, 1],
        c=time.dt.dayofyear,
        cmap="twilight",
        vmin=1,
        vmax=366,
        s=11,
        edgecolors="0.35",
        linewidths=0.2,
        rasterized=True,
    )
    bar = figure.colorbar(season, ax=left, label="time of year")
    bar.set_ticks([1, 91, 182, 274, 366], labels=["Jan", "Apr", "Jul", "Oct", "Jan"])
    left.set(xlabel="component 1", ylabel="component 2")
    for number, colour in zip(range(min(3, values.shape[1])), ("#0072B2", "#D55E00", "#009E73"), strict=False):
        right.plot(day, values[:, number], color=colour, linewidth=1.0, label=f"component {number + 1}")
    right.set(xlabel=ticks, ylabel="score")
    if np.issubdtype(day.dtype, np.datetime64):
        locator = AutoDateLocator()
        right.xaxis.set_major_locator(locator)
        right.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    right.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _tidy(right)
    return _finish(figure, path)


def _drawable_time(time: xr.DataArray) -> tuple[np.ndarray, str]:
    """Dates as matplotlib draws them; other calendars (360 days, no leap years) as decimal years."""
    if np.issubdtype(time.dtype, np.datetime64):
        return time.to_numpy(), "time"
    year = time.dt.year + (time.dt.dayofyear - 1) / (360 if time.dt.calendar == "360_day" else 365.25)
    return year.to_numpy(), f"year ({time.dt.calendar} calendar)"
