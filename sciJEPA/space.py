"""Part of arrow 1: where the values of an archive lie: on the sphere, in a box, or at stations.

What arrives: a dataset and the axes that were found. What leaves: a :class:`Space`: the dimensions of space under the
user's names, coordinates, the area of every place, and what happens at each side.
What we decided against: one class for each kind (they differ in a few arrays, and code that loops over dimensions
serves them all), and cos(latitude) as an area, which gives the poles nothing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import numpy as np
import xarray as xr

from sciJEPA.axes import Axis, latitude_of, longitude_of, station_names
from sciJEPA.errors import UserError

Kind = Literal["grid", "box", "stations"]
Sides = tuple[str, str]
BOUNDARIES = ("periodic", "wall", "open")


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """The places of an archive.

    Attributes
    ----------
    kind : ``grid`` on the sphere, rectilinear or curvilinear; ``box``: one to three Cartesian dimensions; ``stations``:
        places without an order, or, without any dimension, a single place.
    dims : the user's dimensions of space, in the order in which values are read.
    shape : their sizes.
    latitude, longitude : degrees, shapes (H,) and (W,), or (H, W) on a curvilinear grid, or (S,) at stations; empty
        where unknown.
    coordinates : values along each dimension of a box, in its own units; 0, 1, ... where it has none.
    sides : what lies at the lower and the upper end of each dimension: ``periodic``, ``wall`` or ``open``.
    names : station names, shape (S,); empty elsewhere.
    """

    kind: Kind
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    latitude: np.ndarray = field(default_factory=lambda: np.empty(0))
    longitude: np.ndarray = field(default_factory=lambda: np.empty(0))
    coordinates: tuple[np.ndarray, ...] = ()
    sides: tuple[Sides, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each dimension closes a circle."""
        return tuple(sides == ("periodic", "periodic") for sides in self.sides)

    @property
    def curvilinear(self) -> bool:
        """Latitude and longitude vary along both dimensions."""
        return self.latitude.ndim == 2

    @property
    def weights(self) -> np.ndarray:
        """Area (length, volume) of every place, of this `shape`, normalised to mean 1; all alike at stations."""
        if self.kind == "grid":
            if self.curvilinear:
                return _curvilinear_area(self.latitude, self.longitude)
            return np.repeat(latitude_weights(self.latitude)[:, None], self.shape[1], axis=1)
        weights = np.ones(self.shape)
        for axis, values in enumerate(self.coordinates):
            widths = np.abs(np.gradient(values)) if len(values) > 1 else np.ones(1)
            weights *= np.expand_dims(widths, [other for other in range(len(self.shape)) if other != axis])
        return weights / weights.mean()

    def describe(self) -> str:
        """The size in words: ``32 x 64 grid``, ``3 stations``."""
        if not self.shape:
            return "one place"
        size = " x ".join(map(str, self.shape))
        if self.kind == "stations" and self.shape == (1,):
            return "one station"
        return f"{size} stations" if self.kind == "stations" else f"{size} {self.kind}"


def find_space(ds: xr.Dataset, source: str, found: Mapping[str, Axis], rest: Sequence[str]) -> Space:
    """The space of a dataset: `found` has the axes by role, `rest` are the dimensions without one."""
    if "latitude" in found and "longitude" in found:
        north, east = found["latitude"], found["longitude"]
        if ds[north.coordinate].ndim == 2:
            return _curvilinear(ds, source, north, east)
        if north.dim == east.dim:
            return _stations(ds, north.dim, ds[north.coordinate].values, ds[east.coordinate].values)
        latitude, (longitude, periodic) = latitude_of(ds, source, north), longitude_of(ds, source, east)
        around: Sides = ("periodic", "periodic") if periodic else ("open", "open")
        poles: Sides = ("wall", "wall")
        shape = (len(latitude), len(longitude))
        dims, sides = (north.dim, east.dim), (poles, around)
        return Space(kind="grid", dims=dims, shape=shape, latitude=latitude, longitude=longitude, sides=sides)
    if "station" in found:
        return _stations(ds, found["station"].dim, np.empty(0), np.empty(0))
    if not rest:
        return Space(kind="stations", dims=(), shape=())
    return _box(ds, source, rest)


def _stations(ds: xr.Dataset, dim: str, latitude: np.ndarray, longitude: np.ndarray) -> Space:
    names = station_names(ds, dim)
    return Space(
        kind="stations",
        dims=(dim,),
        shape=(ds.sizes[dim],),
        latitude=latitude.astype(float),
        longitude=longitude.astype(float),
        sides=(("open", "open"),),
        names=names,
    )


def _curvilinear(ds: xr.Dataset, source: str, north: Axis, east: Axis) -> Space:
    first, second = ds[north.coordinate], ds[east.coordinate]
    if set(first.dims) != set(second.dims):
        raise UserError(
            f"{north.coordinate} and {east.coordinate} of {source} lie on different dimensions ({first.dims} and "
            f"{second.dims}); a curvilinear grid needs both on the same two."
        )
    rows, columns = (str(dim) for dim in first.dims)
    latitude, longitude = first.values.astype(float), second.transpose(rows, columns).values.astype(float)
    if not (np.isfinite(latitude).all() and np.isfinite(longitude).all() and np.abs(latitude).max() <= 90.01):
        raise UserError(
            f"{north.coordinate} and {east.coordinate} of {source} must hold finite degrees everywhere; fill the "
            "coordinates of masked cells."
        )
    closing = _arc(latitude[:, -1], longitude[:, -1], latitude[:, 0], longitude[:, 0])
    usual = _arc(latitude[:, 1:], longitude[:, 1:], latitude[:, :-1], longitude[:, :-1]).mean(axis=1)
    around = bool(np.median(closing / np.maximum(usual, 1e-12)) < 1.5)
    sides: tuple[Sides, ...] = (("open", "open"), ("periodic", "periodic") if around else ("open", "open"))
    dims, shape = (rows, columns), (latitude.shape[0], latitude.shape[1])
    return Space(kind="grid", dims=dims, shape=shape, latitude=latitude, longitude=longitude, sides=sides)


def _box(ds: xr.Dataset, source: str, dims: Sequence[str]) -> Space:
    if len(dims) > 3:
        found = ", ".join(f"{dim} ({ds.sizes[dim]})" for dim in dims)
        raise UserError(
            f"{source} has {len(dims)} dimensions beside time: {found}; a field has up to 3 dimensions of space, so "
            "select one entry of the others with ds.isel(...)."
        )
    stated = _stated_sides(ds, source)
    coordinates = []
    for dim in dims:
        values = ds[dim].values if dim in ds.coords else np.arange(ds.sizes[dim])
        numeric = values.dtype.kind in "fiu" and np.isfinite(values).all() and (np.diff(values) != 0).all()
        coordinates.append(values.astype(float) if numeric else np.arange(ds.sizes[dim], dtype=float))
    shape = tuple(ds.sizes[dim] for dim in dims)
    sides = tuple(stated.get(dim, ("open", "open")) for dim in dims)
    return Space(kind="box", dims=tuple(dims), shape=shape, coordinates=tuple(coordinates), sides=sides)


def _stated_sides(ds: xr.Dataset, source: str) -> dict[str, Sides]:
    """Sides from the attribute ``boundary_conditions``, JSON such as {"x": ["periodic", "periodic"]}.

    Without it, from the words of the attribute ``boundary``: "periodic", or "periodic in x and y".
    """
    if "boundary_conditions" not in ds.attrs:
        return _sides_in_words(str(ds.attrs.get("boundary", "")).lower(), [str(dim) for dim in ds.dims])
    text = ds.attrs["boundary_conditions"]
    try:
        stated = {str(dim): (str(low).lower(), str(high).lower()) for dim, (low, high) in json.loads(text).items()}
    except (TypeError, ValueError, AttributeError):
        stated = {"": (str(text)[:60], "")}
    for dim, sides in stated.items():
        if not set(sides) <= set(BOUNDARIES) or (("periodic" in sides) and len(set(sides)) > 1):
            raise UserError(
                f'boundary_conditions of {source} must be JSON like {{"x": ["periodic", "periodic"], "y": '
                f'["wall", "open"]}}, found {dim!r}: {list(sides)}; correct ds.attrs[\'boundary_conditions\'].'
            )
    return stated


def _sides_in_words(words: str, dims: Sequence[str]) -> dict[str, Sides]:
    """Dimensions that a text calls periodic: those that it names, or all where it names none."""
    if "periodic" not in words or re.search(r"\b(non|not|a)[ -]?periodic", words):
        return {}
    named = [dim for dim in dims if re.search(rf"\b{re.escape(dim.lower())}\b", words)]
    return dict.fromkeys(named or dims, ("periodic", "periodic"))


def unit_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Points on the unit sphere, shape (..., 3), from degrees."""
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def _arc(latitude: np.ndarray, longitude: np.ndarray, latitude_2: np.ndarray, longitude_2: np.ndarray) -> np.ndarray:
    """Chord between points of the unit sphere."""
    return np.linalg.norm(unit_vectors(latitude, longitude) - unit_vectors(latitude_2, longitude_2), axis=-1)


def _curvilinear_area(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Area of the cells of a curvilinear grid, mean 1: |dr/di x dr/dj| for points r of the unit sphere."""
    points = unit_vectors(latitude, longitude)
    down, across = (np.gradient(points, axis=axis) for axis in (0, 1))
    area = np.linalg.norm(np.cross(down, across), axis=-1)
    return area / area.mean()


@overload
def latitude_weights(latitude: xr.DataArray) -> xr.DataArray: ...
@overload
def latitude_weights(latitude: np.ndarray | Sequence[float]) -> np.ndarray: ...
def latitude_weights(latitude: xr.DataArray | np.ndarray | Sequence[float]) -> xr.DataArray | np.ndarray:
    """Share of the sphere in each row of grid cells: sin(upper edge) - sin(lower edge), normalised to mean 1.

    Edges lie midway between points; the outer edges half a spacing outside, but never past a pole. A row of points on
    a pole thus keeps the area of its half cell, where cos(latitude) would give zero. Ascending, descending and regional
    grids are fine.

    Source: WeatherBench 2 (Rasp et al. 2024), https://doi.org/10.1029/2023MS004019.

    Parameters
    ----------
    latitude
        Shape (latitude,), degrees north, strictly monotonic.

    Returns
    -------
    xarray.DataArray or numpy.ndarray
        Weights with the shape and labels of `latitude`, dimensionless.

    Examples
    --------
    >>> latitude_weights([-60.0, 0.0, 60.0])
    array([0.75, 1.5 , 0.75])
    """
    if isinstance(latitude, xr.DataArray):
        return latitude.copy(data=latitude_weights(latitude.to_numpy())).rename("weight").drop_attrs()
    points = np.asarray(latitude, dtype=float)
    if points.ndim != 1 or points.size == 0 or not (np.abs(points) <= 90).all():
        raise UserError(f"Latitudes must be a 1-d array within -90 to 90 degrees, got shape {points.shape}: {points}.")
    steps = np.diff(points)
    if points.size == 1:
        return np.ones(1)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise UserError("Latitudes must be strictly ascending or descending; sort the archive along latitude first.")
    middle = points[:-1] + steps / 2
    edges = np.concatenate([[points[0] - steps[0] / 2], middle, [points[-1] + steps[-1] / 2]])
    area = np.abs(np.diff(np.sin(np.deg2rad(np.clip(edges, -90, 90)))))
    return area / area.mean()
