"""Part of arrow 1: which dimensions of a dataset are time, latitude, longitude and level, and what their values mean.

What arrives: an ``xr.Dataset`` as its author named it. What leaves: the role of each dimension, a decoded and checked
time axis, degrees of latitude and longitude.
What we decided against: renaming (people get their own names back), and sorting or deduplicating times.
"""

import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError

ROLES = ("time", "latitude", "longitude", "level")
USUAL_NAMES = {
    "time": ("time", "valid_time", "datetime", "date", "times", "t"),
    "latitude": ("latitude", "lat", "lats"),
    "longitude": ("longitude", "lon", "long", "lons"),
    "level": (
        *("level", "lev", "plev", "pressure_level", "isobaricinhpa", "isobaric", "pressure", "plevel", "levels"),
        *("model_level", "hybrid", "height", "altitude", "depth"),
    ),
}
MEMBER_NAMES = ("member", "members", "number", "realization", "realisation", "ensemble", "ens", "ensemble_member")
SERIES_NAMES = (*MEMBER_NAMES, "trajectory", "trajectories", "simulation", "sample", "run", "case", "episode")
STATION_NAMES = ("station", "stations", "site", "sites", "sensor", "sensors", "location", "point", "points", "buoy")
# CF attributes are found by cf_xarray. A plain "axis: Y" may be a projected coordinate in metres, so for latitude and
# longitude only the meaning of a coordinate counts (standard_name, units), not its axis.
CF_KEYS = {"time": ("time", "T"), "latitude": ("latitude",), "longitude": ("longitude",), "level": ("vertical", "Z")}
# A calendar month and year have no fixed length; for an axis that counts them we take the mean Gregorian ones.
HOURS_PER_UNIT = {"second": 1 / 3600, "minute": 1 / 60, "hour": 1.0, "day": 24.0, "month": 730.5, "year": 8766.0}
UNIT_SYNONYMS = {"sec": "second", "min": "minute", "h": "hour", "hr": "hour", "d": "day"}
HOUR = pd.Timedelta(hours=1)


class Axis(NamedTuple):
    """A dimension and the variable that holds its values (the dimension itself where there is none)."""

    dim: str
    coordinate: str


def find_axis(ds: xr.Dataset, role: str) -> Axis | None:
    """The axis that plays a role. CF attributes decide before names; the axis most variables use wins."""
    import cf_xarray  # noqa: F401  (gives ds.cf; imported here because the import is slow)

    described = [name for key in CF_KEYS[role] for name in (*ds.cf.coordinates.get(key, []), *ds.cf.axes.get(key, []))]
    names = {str(name) for name in (*ds.variables, *ds.dims) if str(name).lower() in USUAL_NAMES[role]}
    usual = sorted(names, key=lambda name: (USUAL_NAMES[role].index(name.lower()), name))
    best: Axis | None = None
    most = (0, False) if role == "level" else (-1, False)  # a level that no variable uses is no axis of the archive
    for name in dict.fromkeys(map(str, (*described, *usual))):
        dims = ds[name].dims if name in ds.variables else (name,)
        if len(dims) == 1:
            used = sum(dims[0] in ds[variable].dims for variable in ds.data_vars)
            if (used, dims[0] == name) > most:
                best, most = Axis(str(dims[0]), name), (used, dims[0] == name)
    return best


def role_of_series(dim: str) -> str:
    """``member`` for a dimension of an ensemble, its own name for others."""
    return "member" if dim.lower() in MEMBER_NAMES else dim


class Axes(NamedTuple):
    """Axes by role, dimensions that count repetitions (members, trajectories), and dimensions without a role."""

    found: dict[str, Axis]
    series: tuple[str, ...]
    rest: tuple[str, ...]


def find_axes(ds: xr.Dataset, source: str) -> Axes:
    """Which dimensions of a dataset are time, level, places and series; refused without time."""
    found = {role: axis for role in ROLES if (axis := find_axis(ds, role)) is not None}
    if not {"latitude", "longitude"} <= set(found):
        curvilinear = {role: axis for role in ("latitude", "longitude") if (axis := _two_dimensional(ds, role))}
        found |= curvilinear if len(curvilinear) == 2 else {}
    _require_axes(ds, source, found)
    fields = [field for field in ds.data_vars.values() if found["time"].dim in field.dims]
    used = list(dict.fromkeys(str(dim) for field in sorted(fields, key=lambda f: -f.ndim) for dim in field.dims))
    repeated = {dim for dim in used if dim.lower() in SERIES_NAMES or _standard_name(ds, dim) == "realization"}
    repeated = {dim for dim in repeated if ds.sizes[dim] > 1}
    # Of variables with and without members, the majority decides.
    counted = Counter(tuple(str(dim) for dim in field.dims if dim in repeated) for field in fields)
    series = max(counted, key=lambda dims: (counted[dims], -len(dims)), default=())
    places = {dim for role in ("latitude", "longitude") if role in found for dim in ds[found[role].coordinate].dims}
    if "latitude" not in found and "level" in found and found["level"].dim.lower() == "z":
        del found["level"]  # the third dimension of a box
    if "level" in found and (found["level"].dim in places or _is_station(ds, found["level"].dim)):
        del found["level"]  # the heights of stations
    known = {axis.dim for axis in found.values()} | repeated | places
    rest = [dim for dim in used if dim not in known and ds.sizes[dim] > 1]
    if "latitude" not in found and len(rest) == 1 and _is_station(ds, rest[0]):
        found["station"] = Axis(rest.pop(), "")
    return Axes(found, series, tuple(rest))


def _two_dimensional(ds: xr.Dataset, role: str) -> Axis | None:
    """Latitude or longitude of a curvilinear grid."""
    described = [str(name) for name in ds.cf.coordinates.get(role, [])]
    usual = [str(name) for name in ds.variables if str(name).lower() in (*USUAL_NAMES[role], f"nav_{role[:3]}")]
    for name in (*described, *usual):
        if name in ds.variables and ds[name].ndim == 2:
            return Axis(str(ds[name].dims[0]), name)
    return None


def _is_station(ds: xr.Dataset, dim: str) -> bool:
    """Whether a dimension counts stations: by its name, by names along it, or by CF's ``cf_role``."""
    labelled = dim in ds.coords and ds[dim].dtype.kind in "OSU"
    roles = {str(field.attrs.get("cf_role")) for field in ds.variables.values() if dim in field.dims}
    return dim.lower() in STATION_NAMES or labelled or "timeseries_id" in roles


def station_names(ds: xr.Dataset, dim: str) -> tuple[str, ...]:
    """Names along a dimension: those with the role ``timeseries_id``, else the dimension's own labels, else numbers."""
    for name, field in ds.variables.items():
        if field.dims == (dim,) and (field.attrs.get("cf_role") == "timeseries_id" or name == dim):
            values = field.values
            return tuple(value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist())
    return tuple(map(str, range(ds.sizes[dim])))


def _standard_name(ds: xr.Dataset, dim: str) -> str:
    return str(ds[dim].attrs.get("standard_name", "")) if dim in ds.coords else ""


def _require_axes(ds: xr.Dataset, source: str, found: Mapping[str, Axis]) -> None:
    """Refuse a dataset without time, or with one of latitude and longitude, and say what it has instead."""
    dims = ", ".join(f"{dim} ({size})" for dim, size in ds.sizes.items()) or "none"
    places = [role for role in ("latitude", "longitude") if role in found]
    for role in ("time", *(("latitude", "longitude") if places else ())):
        axis = found.get(role)
        if axis is not None and (role == "time" or axis.coordinate in ds.variables):
            continue
        extra = ""
        if role == "time" and any(str(name).lower() in USUAL_NAMES["time"] for name in ds.variables):
            extra = " (its time is a single value; ds.expand_dims makes it a dimension)"
        raise UserError(
            f"{source} has no {role} axis: its dimensions are {dims}{extra}; name one of them {role!r} with "
            f'ds.rename(...) and give it values, or set its attribute standard_name="{role}".'
        )


def decode_time(ds: xr.Dataset, source: str, axis: Axis) -> tuple[xr.Dataset, pd.Index, str]:
    """The time axis as dates where it can be decoded, else as numbers; and the name of its calendar.

    The dataset comes back with the decoded axis where xarray had left numbers, so that both always agree.
    """
    dim, name = axis
    if name not in ds.variables:
        return ds, pd.RangeIndex(ds.sizes[dim], name=dim), "none"
    values = ds[name]
    if values.dtype.kind in "fiu" and " since " in str(values.attrs.get("units", "")):
        # Units such as "months since" cannot be decoded: then we keep the numbers, and inspect says so.
        with suppress(ValueError, OverflowError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ds = ds.assign_coords({name: xr.decode_cf(xr.Dataset(coords={name: values}))[name].variable})
    values = ds[name]
    if values.dtype.kind == "m":  # lead times: kept in order, counted in hours
        hours = (values.values / np.timedelta64(1, "s")) / 3600
        ds = ds.assign_coords({name: (dim, hours, {"units": "hours"})})
        return ds, pd.Index(hours, name=dim), "none"
    if values.dtype.kind in "fiu":
        return ds, pd.Index(values.values, name=dim), "none"
    if values.dtype.kind == "M":
        return ds, pd.DatetimeIndex(values.values, name=dim), "standard"
    if values.dtype.kind == "O" and values.size and hasattr(values.values[0], "calendar"):
        index = xr.CFTimeIndex(values.values, name=dim)
        return ds, index, {"gregorian": "standard"}.get(str(index.calendar), str(index.calendar))
    example = str(values.values[:1].tolist())[:40]
    raise UserError(
        f"the time axis {name!r} of {source} holds {values.dtype} values such as {example}, "
        f'not dates or numbers; convert it with ds.assign_coords({name}=pd.to_datetime(ds["{name}"])).'
    )


def hours_per_number(ds: xr.Dataset, axis: Axis) -> tuple[float, str]:
    """Hours in one unit of a numeric time axis, and the unit; numbers of unknown unit count as days."""
    units = str(ds[axis.coordinate].attrs.get("units", "")) if axis.coordinate in ds.variables else ""
    word = (units.lower().split() or [""])[0]
    word = "sec" if word == "s" else word.rstrip("s")
    word = UNIT_SYNONYMS.get(word, word)
    return (HOURS_PER_UNIT[word], word) if word in HOURS_PER_UNIT else (24.0, "unknown, taken as day")


def hours_since_first(time: pd.Index, ds: xr.Dataset, axis: Axis) -> np.ndarray:
    """Hours since the first step, shape (T,), float64; NaN where a time is missing."""
    present = time[~np.asarray(pd.isna(time))]
    if len(present) == 0:
        return np.full(len(time), np.nan)
    if isinstance(time, pd.DatetimeIndex):
        return np.asarray((time - present[0]) / HOUR, dtype=np.float64)
    if isinstance(time, xr.CFTimeIndex):  # date by date: a span of more than 292 years overflows pandas
        return np.array([(date - present[0]).total_seconds() / 3600 for date in time], dtype=np.float64)
    return (time.to_numpy(dtype=np.float64) - float(present[0])) * hours_per_number(ds, axis)[0]


def check_time(source: str, dim: str, time: pd.Index, hours: np.ndarray) -> None:
    """Refuse a time axis that is too short, has missing values, runs backwards or repeats itself."""
    remedy = "open the archive with xarray, apply {} and pass the result"
    if len(time) < 2:
        raise UserError(f"{source} has {len(time)} time step along {dim}, but at least 2 are needed; add more steps.")
    missing = np.flatnonzero(pd.isna(time))
    if len(missing):
        fix = remedy.format(f'ds.isel({dim}=ds["{dim}"].notnull())')
        raise UserError(
            f"{len(missing)} of {len(time)} times along {dim} of {source} are missing (NaT), the first at step "
            f"{missing[0]}; {fix}."
        )
    backwards = np.flatnonzero(np.diff(hours) < 0)
    if len(backwards):
        first = int(backwards[0])
        pair = f"step {first} ({time_label(time, first)}) comes before step {first + 1} ({time_label(time, first + 1)})"
        fix = remedy.format(f'ds.sortby("{dim}")')
        raise UserError(f"the times along {dim} of {source} are not sorted: {pair}; {fix}.")
    repeats = np.flatnonzero(np.diff(hours) == 0)
    if len(repeats):
        fix = remedy.format(f'ds.drop_duplicates("{dim}")')
        count = f"{len(repeats)} of {len(time)} times along {dim} of {source} are duplicates"
        raise UserError(f"{count}, the first of them {time_label(time, int(repeats[0]))}; {fix}.")


def latitude_of(ds: xr.Dataset, source: str, axis: Axis) -> np.ndarray:
    """Degrees north, shape (H,), as stored; refused unless they run one way within -90 to 90."""
    latitude = _degrees(ds, source, axis)
    steps = np.diff(latitude)
    if np.abs(latitude).max() > 90.01:
        span = f"{latitude.min():g} to {latitude.max():g}"
        raise UserError(f"{axis.coordinate} of {source} runs from {span}, but latitude is degrees within -90 to 90.")
    if not (np.all(steps > 0) or np.all(steps < 0)):
        fix = f'ds.sortby("{axis.dim}")'
        raise UserError(f"{axis.coordinate} of {source} neither rises nor falls throughout; sort it with {fix}.")
    return latitude


def longitude_of(ds: xr.Dataset, source: str, axis: Axis) -> tuple[np.ndarray, bool]:
    """Degrees east, shape (W,), as stored, and whether they close the circle.

    They do when the step from the last column on to the first is like the others, to half a percent of the circle and
    half a step: of 720 columns two may be missing within half a percent.
    """
    longitude = _degrees(ds, source, axis)
    steps = (np.diff(longitude) + 180.0) % 360.0 - 180.0  # the seam (359 -> 0, or 179 -> -180) is a step like others
    if len(steps) == 0:
        return longitude, False
    if not (np.all(steps > 0) or np.all(steps < 0)):
        fix = f'ds.sortby("{axis.dim}")'
        raise UserError(f"{axis.coordinate} of {source} neither rises nor falls throughout; sort it with {fix}.")
    span = float(np.abs(steps).sum())
    spacing, closing = span / len(steps), 360.0 - span  # the mean: coordinates are often written with one decimal
    if closing < 0.01 * spacing:
        raise UserError(
            f"{axis.coordinate} of {source} comes full circle, from {longitude[0]:g} to {longitude[-1]:g}, so its last "
            f"column repeats an earlier one; drop it with ds.isel({axis.dim}=slice(0, -1))."
        )
    return longitude, abs(closing - spacing) <= min(0.005 * 360.0, 0.5 * spacing)


def _degrees(ds: xr.Dataset, source: str, axis: Axis) -> np.ndarray:
    coordinate = ds[axis.coordinate]
    if coordinate.dtype.kind not in "fiu" or coordinate.size == 0 or not np.isfinite(coordinate.values).all():
        raise UserError(f"{axis.coordinate} of {source} must hold finite degrees, but is {coordinate.dtype} with gaps.")
    if str(coordinate.attrs.get("units", "")).lower().startswith("rad"):
        fix = f"ds.assign_coords({axis.coordinate}=np.rad2deg(ds.{axis.coordinate}))"
        raise UserError(f"{axis.coordinate} of {source} is in radians, but degrees are needed: use {fix}.")
    return coordinate.values.astype(np.float64)


def level_of(ds: xr.Dataset) -> np.ndarray:
    """Values of the level axis, shape (levels,): pressure in hPa, else in own units; 0, 1, ... if no numbers."""
    axis = find_axis(ds, "level")
    if axis is None:
        return np.zeros(0)
    if axis.coordinate in ds.variables and ds[axis.coordinate].dtype.kind in "fiu":
        in_pascal = str(ds[axis.coordinate].attrs.get("units", "")).strip().lower() in ("pa", "pascal", "pascals")
        return ds[axis.coordinate].values.astype(np.float64) / (100.0 if in_pascal else 1.0)
    return np.arange(ds.sizes[axis.dim], dtype=np.float64)


def time_label(time: pd.Index, step: int) -> str:
    """A time as people write it: the date alone at midnight, and a number as a number."""
    if pd.isna(time[step]):
        return "NaT"
    if not isinstance(time, pd.DatetimeIndex | xr.CFTimeIndex):
        return f"{time[step]:g}"
    return str(time[step]).removesuffix(" 00:00:00")


def describe_hours(hours: float) -> str:
    """A span of hours in the unit that people would use: ``6 hours``, ``1 day``, ``1 month``."""
    days = hours / 24
    candidates = [(days / 365.25, "year", 0.02), (days / 30.4, "month", 0.08), (days, "day", 0), (hours, "hour", 0)]
    for count, unit, tolerance in [*candidates, (hours * 60, "minute", 0), (hours * 3600, "second", 0)]:
        whole = round(count) if np.isfinite(count) else 0
        # Months have 28 to 31 days, years 360 to 366: near a whole number of them is one of them. Others must be exact.
        if whole >= 1 and abs(count - whole) <= max(tolerance, 1e-6) and (unit != "month" or whole < 12):
            return f"{whole} {unit}{'' if whole == 1 else 's'}"
    return f"{hours:g} hours"
