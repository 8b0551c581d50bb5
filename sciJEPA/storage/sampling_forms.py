"""Part of arrow 1: in which of CF's four forms the series of stations are stored.

What arrives: a dataset with the attributes of CF 1.11, chapter 9. What leaves: a `Geometry`, that says which dimension
and which variable play which part, or one sentence that says why it is no set of series at fixed stations.
What we decided against: names. Only featureType, cf_role, sample_dimension, instance_dimension and the standard names
of time, latitude and longitude count.
"""

from typing import Any, NamedTuple

import xarray as xr

from sciJEPA.errors import UserError

FEATURES = ("timeseries", "point", "trajectory", "profile", "timeseriesprofile", "trajectoryprofile")
ROLES = ("timeseries_id", "trajectory_id", "profile_id")


class Geometry(NamedTuple):
    """How a dataset tells which observation belongs to which station and time."""

    form: str  # orthogonal, incomplete, contiguous or indexed
    station: str | None  # dimension; None where there is one station and it has no dimension
    sample: str  # dimension of the observations of one or of all stations
    time: str  # variable
    link: str | None  # variable that counts (contiguous) or numbers (indexed) the stations


def attributes_of(variable: xr.DataArray) -> dict[str, Any]:
    """Attributes of a variable, those that xarray took aside when it decoded them too."""
    return {**variable.encoding, **variable.attrs}


def feature_of(ds: xr.Dataset) -> str:
    """The featureType of a dataset in lower case; empty where it has none."""
    named = {str(name).lower().replace("cf:", ""): str(value) for name, value in ds.attrs.items()}
    return named.get("featuretype", named.get("feature_type", "")).lower()


def refuse_other_features(ds: xr.Dataset, source: str) -> None:
    """Trajectories, profiles and single points are no time series at a fixed place."""
    roles = {str(attributes_of(ds[name]).get("cf_role")) for name in ds.variables} & set(ROLES)
    feature = feature_of(ds) if feature_of(ds) in FEATURES else ""
    other = feature if feature not in ("", "timeseries") else next(iter(roles - {"timeseries_id"}), None)
    if other is not None:
        raise UserError(
            f"{source} holds {_words(other)}, but sciJEPA needs time series at fixed stations (featureType "
            f"timeSeries); select one level of profiles with ds.isel(...), or grid what moves onto fixed places first."
        )


def _words(feature: str) -> str:
    words = {"point": "single points", "trajectory": "trajectories", "profile": "profiles"}
    words |= {"timeseriesprofile": "time series of profiles", "trajectoryprofile": "profiles along trajectories"}
    return words.get(feature.removesuffix("_id"), feature)


def geometry_of(ds: xr.Dataset, source: str) -> Geometry:
    """Which of the four forms it is."""
    links = {
        kind: [(str(name), str(found[kind])) for name in ds.variables if kind in (found := attributes_of(ds[name]))]
        for kind in ("sample_dimension", "instance_dimension")
    }
    if links["sample_dimension"]:
        link, sample = links["sample_dimension"][0]
        _require_one_dim(ds, link, source)
        return Geometry("contiguous", str(ds[link].dims[0]), sample, _time_of(ds, (sample,), source), link)
    if links["instance_dimension"]:
        link, station = links["instance_dimension"][0]
        _require_one_dim(ds, link, source)
        sample = str(ds[link].dims[0])
        return Geometry("indexed", station, sample, _time_of(ds, (sample,), source), link)
    station_dim = _station_dim(ds)
    both = [name for name in _times(ds) if station_dim in ds[name].dims and ds[name].ndim == 2]
    if both and station_dim is not None:
        (sample,) = (str(dim) for dim in ds[both[0]].dims if dim != station_dim)
        return Geometry("incomplete", station_dim, sample, both[0], None)
    time = _time_of(ds, (), source)
    return Geometry("orthogonal", station_dim, str(ds[time].dims[0]), time, None)


def _require_one_dim(ds: xr.Dataset, name: str, source: str) -> None:
    if ds[name].ndim != 1:
        raise UserError(
            f"{name} of {source} links stations and observations, so it needs one dimension, not {ds[name].ndim}."
        )


def _times(ds: xr.Dataset) -> list[str]:
    """Variables that are times by their attributes or by their type, the attributes first; bounds are none."""
    bounds = {str(attributes_of(ds[name]).get(key)) for name in ds.variables for key in ("bounds", "climatology")}
    names = [str(name) for name in ds.variables if str(name) not in bounds]
    said = [n for n in names if ds[n].attrs.get("standard_name") == "time" or ds[n].attrs.get("axis") == "T"]
    return list(dict.fromkeys([*said, *(name for name in names if is_date(ds[name]))]))


def is_date(variable: xr.DataArray) -> bool:
    """Whether a variable holds dates, of NumPy or of cftime."""
    if variable.dtype != object or variable.size == 0:
        return variable.dtype.kind == "M"
    return any(hasattr(value, "calendar") for value in variable.values.ravel()[:100].tolist())


def _time_of(ds: xr.Dataset, dims: tuple[str, ...], source: str) -> str:
    for name in _times(ds):
        if ds[name].ndim == 1 and (not dims or ds[name].dims == dims):
            return name
    along = f" along {dims[0]}" if dims else ""
    raise UserError(f"{source} has no variable of times{along}; give it one with standard_name='time' and units.")


def id_name(ds: xr.Dataset) -> str | None:
    """The variable that names the stations."""
    return next((str(name) for name in ds.variables if attributes_of(ds[name]).get("cf_role") == "timeseries_id"), None)


def _station_dim(ds: xr.Dataset) -> str | None:
    """The dimension of the stations: that of their names, else the one that variables have besides time."""
    name = id_name(ds)
    if name is not None:
        return str(ds[name].dims[0]) if ds[name].ndim else None
    time = next((ds[name].dims for name in _times(ds)), ())
    positions = [n for n in ds.variables if ds[n].attrs.get("standard_name") in ("latitude", "longitude")]
    dims = [str(ds[n].dims[0]) for n in positions if ds[n].ndim == 1 and ds[n].dims != time]
    return dims[0] if dims else None
