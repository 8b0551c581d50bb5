"""Pictures of latents: components over time, a scatter of states, transitions of regimes; and spectra of forecasts.

What arrives: what the functions of `explore` and `spectra` return. What leaves: a matplotlib Figure, saved when a path
is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.plots.looks import COLOURS, MARKERS, Figure, date_axis, drawable_time, finish, length_text, quantity, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_GROUPS = len(COLOURS)


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
    day, ticks = drawable_time(time)
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
    date_axis(right, day)
    right.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    tidy(right)
    return finish(figure, path)


def plot_embedding(placed: xr.DataArray, colour: xr.DataArray | None = None, path: str | Path | None = None) -> Figure:
    """Every time as a point, coloured by season or by something known: an index, a parameter, a regime.

    Parameters
    ----------
    placed
        Dims (time or sample, and a second with at least two entries): UMAP, or scores of principal components.
    colour
        Along the first dimension. Up to 8 different whole numbers or names are groups, told apart by marker too;
        anything else is a scale. Season if not given.
    path
        Where to save the picture.

    Examples
    --------
    >>> time = np.datetime64("2001-01-01") + np.arange(4)
    >>> placed = xr.DataArray(np.eye(4)[:, :2], dims=("time", "component"), coords={"time": time}, name="scores")
    >>> group = xr.DataArray([1, 1, 2, 2], dims="time", name="regime")
    >>> [text.get_text() for text in plot_embedding(placed, group).axes[0].get_legend().get_texts()]
    ['1 (2)', '2 (2)']
    """
    if placed.ndim != 2 or placed.shape[1] < 2:
        raise UserError(f"plot_embedding needs two dimensions with at least 2 coordinates, got {dict(placed.sizes)}.")
    if colour is not None and colour.shape != placed.shape[:1]:
        raise UserError(f"the colour has shape {colour.shape}, but there are {len(placed)} points; give one each.")
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.subplots()
    values = placed.to_numpy()
    if colour is None:
        _by_season(axes, values, placed)
    elif colour.dtype.kind in "iubUSO" and len(pd.unique(colour.to_numpy())) <= MOST_GROUPS:
        _by_group(axes, values, colour)
    else:
        x, y = values[:, 0], values[:, 1]
        points = axes.scatter(x, y, c=colour.to_numpy(), cmap="viridis", s=11, linewidths=0, rasterized=True)
        figure.colorbar(points, ax=axes, label=quantity(colour))
    dim = str(placed.dims[1])
    name = str(placed.attrs.get("long_name", dim))
    stem = name if name != "score" else dim
    labels = placed[dim].to_numpy() if dim in placed.coords else np.arange(1, placed.shape[1] + 1)
    axes.set(xlabel=f"{stem} {labels[0]}", ylabel=f"{stem} {labels[1]}")
    axes.spines[["top", "right"]].set_visible(False)
    return finish(figure, path)


def _by_season(axes: Axes, values: np.ndarray, placed: xr.DataArray) -> None:
    if "time" not in placed.coords or not hasattr(placed["time"], "dt") or placed["time"].dtype.kind in "iuf":
        raise UserError("there are no dates along these points to colour them by season; pass colour=.")
    day: Any = placed["time"].dt.dayofyear
    points = axes.scatter(
        values[:, 0],
        values[:, 1],
        c=day,
        cmap="twilight",
        vmin=1,
        vmax=366,
        s=12,
        edgecolors="0.35",
        linewidths=0.2,
        rasterized=True,
    )
    assert axes.figure is not None
    bar = axes.figure.colorbar(points, ax=axes, label="time of year")
    bar.set_ticks([1, 91, 182, 274, 366], labels=["Jan", "Apr", "Jul", "Oct", "Jan"])


def _by_group(axes: Axes, values: np.ndarray, colour: xr.DataArray) -> None:
    for number, group in enumerate(np.unique(colour.to_numpy())):
        own = colour.to_numpy() == group
        look: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "label": f"{group} ({own.sum()})"}
        axes.scatter(values[own, 0], values[own, 1], s=13, alpha=0.75, linewidths=0, **look)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(title=str(colour.name or "group"), frameon=False, fontsize=9, markerscale=1.6, **place)


def plot_transitions(found: xr.Dataset, path: str | Path | None = None) -> Figure:
    """Which regime follows which: probability as colour, probability and count as text.

    Parameters
    ----------
    found
        From `explore.regimes` or `explore.transitions`.
    path
        Where to save the picture.

    Examples
    --------
    >>> from sciJEPA.explore import transitions
    >>> chain = xr.DataArray([1, 1, 2, 1], dims="time", coords={"time": np.arange(4)}, name="regime")
    >>> plot_transitions(transitions(chain)).axes[0].get_xlabel()
    'next regime'
    """
    chance, count = found["probability"], found["count"]
    name, names = str(chance.dims[0]), chance[chance.dims[0]].to_numpy()
    figure = Figure(figsize=(1.6 + 0.95 * len(names), 1.0 + 0.75 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(chance.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(len(names)):
        for column in range(len(names)):
            value = float(chance[row, column])
            text = "none" if np.isnan(value) else f"{value:.2f}\n({int(count[row, column])})"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black"
            )
    stays = found["persistence"].to_numpy()
    axes.set_xticks(range(len(names)), [str(each) for each in names])
    axes.set_yticks(range(len(names)), [f"{each} (stays {stay:.3g})" for each, stay in zip(names, stays, strict=True)])
    axes.set(xlabel=f"next {name}", ylabel=f"{name} (expected stay in steps)")
    figure.colorbar(image, ax=axes, label="probability (count)")
    return finish(figure, path)


def plot_spectra(spectra: xr.Dataset, path: str | Path | None = None) -> Figure:
    """Power of forecasts and truth at each wavenumber, and their ratio: below 1 where a forecast blurs.

    Parameters
    ----------
    spectra
        From `spectra.compare_spectra`: `forecast`, `truth` and `ratio` with dims (wavenumber,) or (lead_time,
        wavenumber). Wavenumber 0, the mean, is not drawn.
    path
        Where to save the picture.

    Examples
    --------
    >>> power = xr.DataArray([9.0, 4.0, 1.0], {"wavenumber": [0, 1, 2]}, ("wavenumber",), attrs={"units": "(K)^2"})
    >>> spectra = xr.Dataset({"forecast": power / 2, "truth": power, "ratio": power / power / 2})
    >>> plot_spectra(spectra).axes[0].get_ylabel()
    'power ((K)^2)'
    """
    absent = [name for name in ("forecast", "truth", "ratio") if name not in spectra]
    if absent:
        raise UserError(f"plot_spectra needs what compare_spectra returns; '{absent[0]}' is missing.")
    spectra = spectra.sel(wavenumber=spectra["wavenumber"] > 0)
    over = [str(name) for name in spectra["ratio"].dims if name != "wavenumber"]
    if len(over) > 1:
        raise UserError(f"plot_spectra draws one line a lead, found the dimensions {over}; select one of the others.")
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    waves = spectra["wavenumber"].to_numpy()
    lines = [None] if not over else list(range(spectra.sizes[over[0]]))[:MOST_GROUPS]
    truth = spectra["truth"] if not over else spectra["truth"].mean(over[0])
    left.plot(waves, truth, color="black", linewidth=2.2, label="truth", zorder=3)
    for number, line in enumerate(lines):
        part = spectra if line is None else spectra.isel({over[0]: line})
        label = "forecast" if line is None else f"forecast, {length_text(part[over[0]].to_numpy()[()])}"
        look: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4, "linewidth": 1.2}
        left.plot(waves, part["forecast"], label=label, **look)
        right.plot(waves, part["ratio"], **look)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("zonal wavenumber")
        ticks = [wave for wave in (1, 2, 3, 5, 10, 20, 50, 100) if waves[0] <= wave <= waves[-1]]
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.xaxis.minorticks_off()
        tidy(axes)
    left.set_yscale("log")
    left.set_ylabel(quantity(spectra["truth"].assign_attrs(long_name="power")))
    left.legend(frameon=False, fontsize=8)
    right.axhline(1, color="0.35", linewidth=1)
    right.set_ylim(0, max(1.1, 1.05 * float(spectra["ratio"].max())))
    right.set_ylabel("power of forecast / truth")
    return finish(figure, path)
