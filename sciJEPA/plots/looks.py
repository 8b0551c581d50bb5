"""What pictures share: colours, axes, labels, and saving.

Arrives: a figure or labelled data. Leaves: the same figure, tidier. Colours are those of Okabe and Ito 2008
(https://jfly.uni-koeln.de/color/), told apart with every common kind of colour vision; scales are perceptually uniform.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError

try:
    from matplotlib import figure as plain
    from matplotlib.colors import Normalize
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.ticker import FuncFormatter, MultipleLocator
except ImportError as error:  # pragma: no cover - tested in a process without matplotlib
    raise UserError('Pictures need matplotlib, which is not installed; run: pip install "scijepa[plot]".') from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Figure(plain.Figure):
    """A figure that a notebook shows by itself: without pyplot, which would have to be told to."""

    def _repr_png_(self) -> bytes:
        memory = io.BytesIO()
        self.savefig(memory, dpi=100, bbox_inches="tight", format="png")
        return memory.getvalue()


def finish(figure: Figure, path: str | Path | None) -> Figure:
    """Save where a path is given."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
    return figure


def tidy(axes: Axes) -> None:
    """No box, faint lines behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def cell_edges(fields: xr.DataArray, name: str) -> np.ndarray:
    """Borders of cells halfway between their centres; latitudes end at the poles, longitudes go on past 360."""
    centres = fields[name].to_numpy().astype(float)  # the index counts where a dimension has no coordinate
    if name.startswith("lon"):
        centres = np.unwrap(centres, period=360)  # 350, 355, 0, 5 is no step back
    if centres.size == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    edges = np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
    return edges.clip(-90, 90) if name.startswith("lat") else edges


def length_text(value: object) -> str:
    """A lead time or an offset in hours: `3 days`, `6 hours`; numbers without a unit count steps."""
    if isinstance(value, np.timedelta64):
        value = float(value / np.timedelta64(1, "h"))
    elif not isinstance(value, float):
        return f"{value} step{'' if value == 1 else 's'}"
    number, unit = (value / 24, "day") if value % 24 == 0 else (value, "hour")
    return f"{number:g} {unit}{'' if abs(number) == 1 else 's'}"


def offset_text(hours: float) -> str:
    """How far from the issue time: `2 days before`, `after 6 hours`."""
    if not hours:
        return "at the issue time"
    return f"{length_text(-hours)} before" if hours < 0 else f"after {length_text(hours)}"


def time_text(fields: xr.DataArray, time: str, step: int) -> str:
    """A date to the minute, or what stands on the axis."""
    if time not in fields.coords:
        return f"{time} {step}"
    stamp = fields[time].to_numpy()[step]
    if np.issubdtype(fields[time].dtype, np.datetime64):
        return f"{pd.Timestamp(stamp):%Y-%m-%d %H:%M}"
    return f"{time} {stamp:g}" if fields[time].dtype.kind == "f" else str(stamp)


def upright(field: xr.DataArray) -> xr.DataArray:
    """The same field with x to the right, where it is the dimension before the last."""
    *before, rows, columns = field.dims
    return field.transpose(*before, columns, rows) if rows == "x" else field


def axis_label(fields: xr.DataArray, name: str) -> str:
    """Name and unit of an axis."""
    degrees = {"latitude": "°N", "lat": "°N", "longitude": "°E", "lon": "°E"}
    unit = degrees.get(name) or fields[name].attrs.get("units")
    return f"{name} ({unit})" if unit else name


def quantity(field: xr.DataArray) -> str:
    """Name and unit of a field, for a colour bar or an axis."""
    name = str(field.attrs.get("long_name", field.name or "value"))
    unit = field.attrs.get("units")
    return textwrap.fill(f"{name} ({unit})" if unit and unit != "1" else name, 26)


def colour_scale(values: np.ndarray) -> tuple[Normalize, str]:
    """A diverging scale around zero where values have both signs, else a sequential one; from the middle 98 %."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    if low < 0 < high:
        limit = max(-low, high)
        return Normalize(-limit, limit), "RdBu_r"
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5, high + 0.5
    return Normalize(low, high), "viridis"


def date_axis(axes: Axes, values: np.ndarray) -> None:
    """Short dates along x, where there are dates."""
    if np.issubdtype(values.dtype, np.datetime64):
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def globe_ticks(axes: Axes, x: np.ndarray, longitude: str) -> None:
    """Round degrees on maps that go around the globe, and none past 360."""
    if not longitude.startswith("lon"):
        return
    width = x.max() - x.min()
    if width > 180:
        axes.xaxis.set_major_locator(MultipleLocator(90))
        axes.yaxis.set_major_locator(MultipleLocator(30))
    elif x.max() > 361:
        axes.xaxis.set_major_locator(MultipleLocator(next(step for step in (5, 10, 20, 30, 60) if width <= 6 * step)))
    if x.max() > 361:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda degrees, _: f"{degrees % 360:g}"))


def map_height(field: xr.DataArray) -> float:
    """Height of a map over its width: as on the ground for degrees and lengths, within 0.45 to 1.2 to be drawable."""
    rows, columns = (str(dim) for dim in field.dims[-2:])
    height, width = (float(np.ptp(cell_edges(field, name))) for name in (rows, columns))
    if columns.startswith("lon"):
        width *= np.cos(np.deg2rad(float(cell_edges(field, rows).mean())))
    elif any(field[name].attrs.get("units") != field[columns].attrs.get("units") for name in (rows, columns)):
        height, width = field.shape[-2:]
    return min(1.2, max(0.45, height / max(width, 1e-9)))


def drawable_time(time: xr.DataArray) -> tuple[np.ndarray, str]:
    """Dates as matplotlib draws them; other calendars (360 days, no leap years) as decimal years; numbers as such."""
    if np.issubdtype(time.dtype, np.datetime64):
        return time.to_numpy(), "time"
    if time.dtype.kind in "iuf":
        unit = time.attrs.get("units")
        return time.to_numpy(), f"time ({unit})" if unit else "time"
    year = time.dt.year + (time.dt.dayofyear - 1) / (360 if time.dt.calendar == "360_day" else 365.25)
    return year.to_numpy(), f"year ({time.dt.calendar} calendar)"
