"""Part of arrow 1: from the discrete sampling geometries of CF to one ``xr.Dataset`` on (time, station).

What arrives: time series at fixed stations, in any of the four forms of CF 1.11, chapter 9 and appendix H
(https://cfconventions.org/cf-conventions/cf-conventions.html): orthogonal, incomplete, contiguous ragged and indexed
ragged; ``sampling_forms.py`` tells them apart. What leaves: the same variables with the dimensions time and station,
NaN where a station has no observation, and what is known of the stations as their coordinates. Arrays that share one
even time axis stay lazy, with its gaps; the others are read, and ``observations.py`` puts them on one axis.
What we decided against: stations that move (trajectories) and profiles, which are no series at a fixed place.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.storage.observations import LARGEST_BYTES, grid_observations, is_regular
from sciJEPA.storage.sampling_forms import (
    FEATURES,
    ROLES,
    Geometry,
    attributes_of,
    feature_of,
    geometry_of,
    id_name,
    is_date,
    refuse_other_features,
)


def is_sampling_geometry(ds: xr.Dataset) -> bool:
    """Whether a dataset says that it holds series at stations, or another discrete sampling geometry of CF.

    Examples
    --------
    >>> is_sampling_geometry(xr.Dataset(attrs={"featureType": "timeSeries"})), is_sampling_geometry(xr.Dataset())
    (True, False)
    """
    links = ("sample_dimension", "instance_dimension")
    attrs = [attributes_of(ds[name]) for name in ds.variables]
    told = any(link in found for found in attrs for link in links)
    return told or feature_of(ds) in FEATURES or any(found.get("cf_role") in ROLES for found in attrs)


def to_stations(ds: xr.Dataset, *, cadence: str | None = None, source: str = "<memory>") -> xr.Dataset:
    """Bring time series at stations into the form (time, station).

    Parameters
    ----------
    ds : opened by xarray, with times, packed integers and fill values decoded.
    cadence : step of the time axis, such as ``"1h"``; the most common step when left out.

    Raises
    ------
    UserError : for trajectories, profiles, and links between observations and stations that do not add up.

    Examples
    --------
    >>> times = pd.to_datetime(["2000-01-01", "2000-01-02", "2000-01-02"])
    >>> station = ("obs", [0, 0, 1], {"instance_dimension": "place"})
    >>> name = ("place", ["a", "b"], {"cf_role": "timeseries_id"})
    >>> ds = xr.Dataset({"t": ("obs", [1.0, 2.0, 3.0]), "which": station}, {"when": ("obs", times), "name": name})
    >>> to_stations(ds).t.values.tolist()
    [[1.0, nan], [2.0, 3.0]]
    """
    refuse_other_features(ds, source)
    geometry = geometry_of(ds, source)
    places = _places(ds, geometry)
    ids = _ids(ds, geometry, source)
    if geometry.form == "orthogonal" and cadence is None:
        times = _dates(ds, geometry)
        if times is None or is_regular(times, source):  # if it is no time axis at all, the checks of archives say so
            return _orthogonal(ds, geometry, ids, places, source)
    return _observed(ds, geometry, ids, places, cadence, source)


def _text(values: np.ndarray) -> list[str]:
    """Names of stations as text: bytes decoded, padding dropped, numbers written out."""
    plain = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values.tolist()]
    whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in plain]
    return [str(value).strip().strip("\x00") for value in whole]


def _ids(ds: xr.Dataset, geometry: Geometry, source: str) -> list[str]:
    """The names of the stations, or their numbers where they have none."""
    name = id_name(ds)
    if name is None and geometry.station in ds.variables:
        name = geometry.station
    if name is None:
        return [str(number) for number in range(ds.sizes[geometry.station] if geometry.station else 1)]
    ids = _text(np.atleast_1d(ds[name].values))
    repeated = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if repeated:
        fix = f'ds.assign_coords({name}=("{geometry.station}", [...]))'
        raise UserError(f"{source} has more than one station named {repeated[0]!r}; give each a name with {fix}.")
    return ids


def _places(ds: xr.Dataset, geometry: Geometry) -> dict[str, xr.Variable]:
    """What is known of the stations besides their names, as coordinates: where they are, and more."""
    dims = (geometry.station,) if geometry.station else ()
    places = {}
    for name in map(str, ds.variables):
        variable = ds[name].variable
        if variable.dims != dims or name in (id_name(ds), geometry.link, geometry.time, "station", "time"):
            continue
        if dims or name in ds.coords or "standard_name" in variable.attrs:
            values = np.atleast_1d(variable.values)
            kept = np.asarray(_text(values)) if values.dtype.kind in "SO" else values
            places[name] = xr.Variable("station", kept, _plain(variable.attrs))
    return places


def _plain(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in attrs.items() if key not in ("coordinates", "cf_role", "ancillary_variables")}


def _series(
    ds: xr.Dataset, geometry: Geometry, known: Mapping[str, Any], source: str
) -> tuple[list[str], dict[str, str]]:
    """The variables observed at the stations, in the user's order, and why others are left out."""
    wanted = {geometry.sample}
    if geometry.station is not None and geometry.form in ("orthogonal", "incomplete"):
        wanted.add(geometry.station)
    names, left_out = [], {}
    for name in map(str, ds.data_vars):
        if name in known or name in (id_name(ds), geometry.link, geometry.time):
            continue
        if set(ds[name].dims) != wanted:
            left_out[name] = f"has the dimensions {', '.join(map(str, ds[name].dims)) or 'none'}"
        elif ds[name].dtype.kind not in "fiu":
            left_out[name] = "holds no numbers"
        elif name in ("time", "station"):
            left_out[name] = "has the name of a dimension; rename it"
        else:
            names.append(name)
    if not names:
        found = "; ".join(f"{name} {reason}" for name, reason in list(left_out.items())[:4]) or "it has no variables"
        needed = f"({', '.join(sorted(wanted))})"
        raise UserError(
            f"no variable of {source} is numeric and lies on {needed}: {found}; select one with ds.isel(...)."
        )
    return names, left_out


def _dates(ds: xr.Dataset, geometry: Geometry) -> pd.DatetimeIndex | xr.CFTimeIndex | None:
    """The one time axis of an orthogonal array; None where it holds missing times or no dates at all."""
    values = ds[geometry.time].values
    if not is_date(ds[geometry.time]) or pd.isna(values).any():
        return None
    return _index(values)


def _index(values: np.ndarray) -> pd.DatetimeIndex | xr.CFTimeIndex:
    return pd.DatetimeIndex(values) if values.dtype.kind == "M" else xr.CFTimeIndex(values)


def _orthogonal(
    ds: xr.Dataset, geometry: Geometry, ids: list[str], places: Mapping[str, xr.Variable], source: str
) -> xr.Dataset:
    """The same arrays under the names time and station, unread."""
    names, left_out = _series(ds, geometry, places, source)
    series = xr.Dataset({name: ds[name].variable for name in names})
    series = series.rename_dims({dim: new for dim, new in _new_dims(geometry).items() if dim != new})
    if geometry.station is None:
        series = series.expand_dims("station")
    for name in names:
        series[name].attrs = _plain(ds[name].attrs)
    time = ds[geometry.time].variable
    coords = {
        "time": xr.Variable("time", time.values, {"standard_name": "time"} | _plain(time.attrs), time.encoding),
        "station": xr.Variable("station", np.asarray(ids, dtype=np.str_), {"cf_role": "timeseries_id"}),
    }
    return _labelled(series.transpose("time", "station").assign_coords(coords), ds, places, left_out)


def _new_dims(geometry: Geometry) -> dict[str, str]:
    return {geometry.sample: "time"} | ({geometry.station: "station"} if geometry.station else {})


def _labelled(
    series: xr.Dataset, ds: xr.Dataset, places: Mapping[str, xr.Variable], left_out: Mapping[str, str]
) -> xr.Dataset:
    series = series.assign_coords(places)
    series.attrs = {**ds.attrs, **series.attrs}
    if left_out:
        series.attrs["left_out"] = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    return series


def _observed(
    ds: xr.Dataset,
    geometry: Geometry,
    ids: list[str],
    places: Mapping[str, xr.Variable],
    cadence: str | None,
    source: str,
) -> xr.Dataset:
    """Read the observations and put them on one time axis."""
    names, left_out = _series(ds, geometry, places, source)
    size = sum(ds[name].nbytes for name in names)
    if size > LARGEST_BYTES:
        raise UserError(
            f"the {geometry.form} array of {source} holds {size / 1e9:.1f} GB of observations, but only "
            f"{LARGEST_BYTES / 1e9:g} GB of them are read into memory; keep fewer of them, with ds[[...]] or "
            f"ds.isel({geometry.sample}=slice(...)), or write it with the dimensions time and station first."
        )
    station = _stations(ds, geometry, len(ids), source)
    values = {name: _flat(ds[name].variable, geometry) for name in names}
    times = _flat(_spread(ds[geometry.time].variable, ds, geometry), geometry)
    dated, placed = ~pd.isna(times), station >= 0
    lost = np.logical_or.reduce([~np.isnan(found) for found in values.values()]) & ~(dated & placed)
    if lost.any():
        what = "time" if (lost & ~dated).any() else "station"
        raise UserError(
            f"{int(lost.sum())} observations of {source} have values but no {what}, the first is number "
            f"{int(lost.argmax())}; give it one, or set its values to missing."
        )
    kept = dated & placed
    if geometry.form == "incomplete" and times.dtype == object:
        # xarray decodes a missing time of a calendar such as noleap to the date that its units count from, so padding
        # is told by its values alone.
        kept &= ~np.logical_and.reduce([np.isnan(found) for found in values.values()])
    if not kept.any():
        raise UserError(f"{source} holds no observation that has a time; at least 2 are needed.")
    variables = {name: xr.Variable("row", found[kept], _plain(ds[name].attrs)) for name, found in values.items()}
    if not is_date(ds[geometry.time]):
        units = ds[geometry.time].attrs.get("units", "none")
        raise UserError(
            f"{geometry.time} of {source} holds no dates (units: {units}); give it units such as days since 2000-01-01."
        )
    series = grid_observations(_index(times[kept]), station[kept], ids, variables, source=source, cadence=cadence)
    return _labelled(series, ds, places, left_out)


def _spread(time: xr.Variable, ds: xr.Dataset, geometry: Geometry) -> xr.Variable:
    """Times of an orthogonal array, repeated for every station."""
    if geometry.form != "orthogonal" or geometry.station is None:
        return time
    return time.set_dims({geometry.station: ds.sizes[geometry.station], geometry.sample: ds.sizes[geometry.sample]})


def _flat(variable: xr.Variable, geometry: Geometry) -> np.ndarray:
    """Values one observation after the other, station by station where they have a dimension."""
    dims = [dim for dim in (geometry.station, geometry.sample) if dim in variable.dims]
    return np.asarray(variable.transpose(*dims).values).ravel()


def _stations(ds: xr.Dataset, geometry: Geometry, count: int, source: str) -> np.ndarray:
    """The number of the station of every observation; -1 where it has none."""
    samples = ds.sizes[geometry.sample]
    if geometry.link is None:
        return np.repeat(np.arange(count), samples)
    found = np.nan_to_num(ds[geometry.link].values.astype(np.float64), nan=-1.0).astype(np.int64)
    if geometry.form == "contiguous":
        counts = np.maximum(found, 0)
        if counts.sum() != samples:
            raise UserError(
                f"{geometry.link} of {source} counts {counts.sum()} observations, but its dimension {geometry.sample} "
                f"has {samples}; the file is incomplete or damaged, so write it again."
            )
        return np.repeat(np.arange(count), counts)
    outside = found >= count
    if outside.any():
        raise UserError(
            f"{geometry.link} of {source} numbers a station {found.max()}, but there are {count}, counted from 0; "
            f"subtract 1 if it counts from 1."
        )
    return np.where(found < 0, -1, found)
