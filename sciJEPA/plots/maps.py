"""Pictures on the map: a mask over its field, fields and latents side by side, surprise in time and place.

What arrives: labelled fields. What leaves: a matplotlib Figure, saved when a path is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Patch

from sciJEPA.errors import UserError
from sciJEPA.plots.coast import draw_coast
from sciJEPA.plots.looks import (
    Figure,
    axis_label,
    cell_edges,
    colour_scale,
    date_axis,
    drawable_time,
    finish,
    globe_ticks,
    length_text,
    map_height,
    offset_text,
    quantity,
    tidy,
    time_text,
    upright,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET_INK = "#444444"  # grey: colours belong to the field


def plot_mask(
    fields: xr.DataArray, role: xr.DataArray, path: str | Path | None = None, *, coast: bool = True
) -> Figure:
    """A mask over the fields it hides: context in full colour, unused parts washed out, targets outlined and hatched.

    Parameters
    ----------
    fields
        Dims (time, latitude, longitude) under any names, in that order; physical units.
    role
        Same dims; 0 hidden and unused, 1 context (the encoder sees it), 2 target (its latents are predicted).
    path
        Where to save the picture.
    coast
        Coastlines on maps in degrees; needs `pip install "scijepa[maps]"`.

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
    fields, role = upright(fields), upright(role)
    time, latitude, longitude = (str(name) for name in fields.dims)
    steps = len(fields)
    across = min(4, steps)
    lines = -(-steps // across)
    size = 3.4 if across > 1 else 6.0
    figure = Figure(
        figsize=(size * across + 1.0, (size * map_height(fields) + 0.4) * lines + 0.7),
        layout="constrained",
    )
    grid = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    values = fields.to_numpy()
    low, high = np.nanpercentile(values, [1, 99])
    # Anomalies have a zero that means something; fields of one sign do not.
    signed = low < 0 < high
    shared = Normalize(*((-max(-low, high), max(-low, high)) if signed else (low, high)))
    colours = "RdBu_r" if signed else "viridis"
    x, y = (cell_edges(fields, name) for name in (longitude, latitude))
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
        if coast:
            draw_coast(axes, fields)
        axes.set_title(time_text(fields, time, step), fontsize=9)
        globe_ticks(axes, x, longitude)
        if step % across == 0:
            axes.set_ylabel(axis_label(fields, latitude))
        if step + across >= steps:
            axes.set_xlabel(axis_label(fields, longitude))
            axes.tick_params(labelbottom=True)
    unit = fields.attrs.get("units")
    name = str(fields.attrs.get("long_name", fields.name or "value"))
    label = f"{name} ({unit})" if unit else name
    figure.colorbar(ScalarMappable(shared, colours), ax=list(grid.flat), label=label, extend="both", pad=0.01)
    _mask_legend(figure)
    return finish(figure, path)


def _outline_targets(axes: Axes, x: np.ndarray, y: np.ndarray, target: np.ndarray) -> None:
    """Hatch target cells and draw the border between target and anything else."""
    draw_border(axes, x, y, target, TARGET_INK)
    cells = [
        [(x[column], y[row]), (x[column + 1], y[row]), (x[column + 1], y[row + 1]), (x[column], y[row + 1])]
        for row, column in zip(*np.nonzero(target), strict=True)
    ]
    axes.add_collection(PolyCollection(cells, facecolor="none", edgecolor=TARGET_INK, hatch="////", linewidth=0))


def draw_border(axes: Axes, x: np.ndarray, y: np.ndarray, inside: np.ndarray, colour: str, width: float = 1.4) -> None:
    """The border of the cells inside, along cell edges."""
    padded = np.pad(inside, 1)
    lines = []
    for row, column in zip(*np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1]), strict=True):
        lines.append([(x[column], y[row]), (x[column + 1], y[row])])
    for row, column in zip(*np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1]), strict=True):
        lines.append([(x[column], y[row]), (x[column], y[row + 1])])
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="round"))


def _mask_legend(figure: Figure) -> None:
    patches = {
        "context: the encoder sees it": Patch(facecolor="0.6"),
        "target: its latents are predicted": Patch(facecolor="white", edgecolor=TARGET_INK, hatch="////"),
        "unused": Patch(facecolor="0.94", edgecolor="0.8"),
    }
    figure.legend(list(patches.values()), list(patches), loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def plot_maps(field: xr.DataArray, path: str | Path | None = None, *, across: int = 4, coast: bool = True) -> Figure:
    """Maps side by side on one colour scale: composites of regimes, components of latents, R2, a receptive field.

    Parameters
    ----------
    field
        Dims (latitude, longitude) under any names, in that order, with at most one dimension before them: one map for
        each of its entries, named after them.
    path
        Where to save the picture.
    across
        Maps in a row.
    coast
        Coastlines on maps in degrees; needs `pip install "scijepa[maps]"`.

    Examples
    --------
    >>> field = xr.DataArray(np.zeros((3, 4, 8)), dims=("regime", "latitude", "longitude"), name="z")
    >>> [axes.get_title() for axes in plot_maps(field).axes[:3]]
    ['regime 0', 'regime 1', 'regime 2']
    """
    if field.ndim not in (2, 3) or not _is_plane(field):
        raise UserError(f"plot_maps needs dims (latitude, longitude) or one more before them, got {dict(field.sizes)}.")
    field = upright(field if field.ndim == 3 else field.expand_dims(""))
    panels = len(field)
    across = min(across, panels)
    lines = -(-panels // across)
    size = 3.4 if across > 1 else 6.0
    shape = (size * across + 1.0, (size * map_height(field) + 0.5) * lines + 0.4)
    figure = Figure(figsize=shape, layout="constrained")
    grid = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    scale, colours = colour_scale(field.to_numpy())
    for number, axes in enumerate(grid.flat):
        if number >= panels:
            axes.set_axis_off()
            continue
        draw_map(axes, field[number], scale, colours, coast)
        axes.set_title(panel_title(field, number), fontsize=9)
        if number % across:
            axes.set_ylabel("")
        if number + across < panels:
            axes.set_xlabel("")
        else:
            axes.tick_params(labelbottom=True)
    figure.colorbar(ScalarMappable(scale, colours), ax=list(grid.flat), label=quantity(field), extend="both", pad=0.01)
    return finish(figure, path)


def _is_plane(field: xr.DataArray) -> bool:
    """Whether the last two dimensions are distances or degrees, and not names of stations or channels."""
    return all(field[dim].dtype.kind in "iuf" for dim in field.dims[-2:])


def draw_map(axes: Axes, field: xr.DataArray, scale: Normalize, colours: str, coast: bool = True) -> None:
    """One map in its axes, with coastlines where it is in degrees; cells where a value is missing are grey."""
    latitude, longitude = (str(dim) for dim in field.dims)
    x, y = cell_edges(field, longitude), cell_edges(field, latitude)
    axes.set_facecolor("0.85")
    axes.pcolormesh(x, y, field.to_numpy(), norm=scale, cmap=colours, rasterized=True)
    globe_ticks(axes, x, longitude)
    if coast:
        draw_coast(axes, field)
    axes.set_xlabel(axis_label(field, longitude))
    axes.set_ylabel(axis_label(field, latitude))


def panel_title(field: xr.DataArray, number: int) -> str:
    """What one entry of the first dimension is called: a date, a lead, `regime 2`."""
    dim = str(field.dims[0])
    if dim in ("time", "init_time", "valid_time"):
        return time_text(field, dim, number)
    if not dim:
        return ""
    value = field[dim].to_numpy()[number] if dim in field.coords else number
    if dim == "offset":
        return offset_text(float(value))
    if isinstance(value, np.timedelta64) or dim == "lead_time":
        return f"after {length_text(value)}"
    return f"{dim.replace('_', ' ')} {value}"


def plot_surprise(found: xr.Dataset, path: str | Path | None = None, *, named: int = 3, coast: bool = True) -> Figure:
    """Prediction energy in time, with the most surprising times named, and beside or below it on the map.

    Parameters
    ----------
    found
        From `explore.surprise`.
    path
        Where to save the picture.
    named
        Peaks that get their date, at least a tenth of the record apart.
    coast
        Coastlines on maps in degrees; needs `pip install "scijepa[maps]"`.

    Examples
    --------
    >>> series = xr.DataArray(np.arange(9.0), dims="time", coords={"time": np.arange(9)})
    >>> place = xr.DataArray(np.zeros((2, 3)), dims=("latitude", "longitude"))
    >>> len(plot_surprise(xr.Dataset({"in_time": series, "on_map": place})).axes)  # series, map, colour bar
    3
    """
    field = found["on_map"]
    field = field if "offset" in field.dims else field.expand_dims("")
    mapped = field.ndim == 3 and _is_plane(field)  # stations and boxes of one or three dimensions have no map
    beside = mapped and len(field) == 1 and map_height(field) > 0.5  # a high map would be stretched below a series
    figure = Figure(figsize=(12.5, 3.8) if beside else (10.0, 6.2 if mapped else 3.2), layout="constrained")
    parts: Any = [figure]
    if beside:
        parts = figure.subfigures(1, 2, width_ratios=[1.5, 1])
    elif mapped:
        parts = figure.subfigures(2, 1, height_ratios=[1, 1.25])
    _series_with_peaks(parts[0].subplots(), found["in_time"], named)
    if mapped:
        below, shown = parts[1], upright(field[:4])
        grid = below.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        scale, colours = colour_scale(shown.to_numpy())
        for number, panel in enumerate(grid):
            draw_map(panel, shown[number], scale, colours, coast)
            panel.set_title(panel_title(shown, number), fontsize=9)
            if number:
                panel.set_ylabel("")
        mappable = ScalarMappable(scale, colours)
        below.colorbar(mappable, ax=list(grid), label="mean energy", extend="both", pad=0.01)
    return finish(figure, path)


def _series_with_peaks(axes: Axes, series: xr.DataArray, named: int) -> None:
    time: Any = series["time"]
    day, label = drawable_time(time)
    values = series.to_numpy()
    axes.plot(day, values, color="#0072B2", linewidth=0.8)
    apart = max(1, len(values) // 10)
    chosen: list[int] = []
    for step in np.argsort(-values):
        if len(chosen) < named and all(abs(step - other) >= apart for other in chosen):
            chosen.append(int(step))
    for step in chosen:
        axes.plot(day[step], values[step], marker="o", color="#D55E00", markersize=5)
        late = step > 0.8 * len(values)
        axes.annotate(
            time_text(series, "time", step).removesuffix(" 00:00"),
            (day[step], values[step]),
            xytext=(-6 if late else 6, 3),
            ha="right" if late else "left",
            textcoords="offset points",
            fontsize=8,
            color="#D55E00",
        )
    axes.margins(y=0.15)
    axes.set(xlabel=label.replace("time", "issue time"), ylabel="prediction energy")
    date_axis(axes, day)
    tidy(axes)
