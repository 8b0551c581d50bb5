"""Part of arrow 1: which columns of a table are channels, and one row for each time and station.

What arrives: the columns of a table besides its times and stations. What leaves: columns of numbers with their units,
the places of the stations, and for every other column the reason why it is left out.
What we decided against: turning text into numbers, and choosing between different values for one time and station
unless told how.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.storage.table_times import TIME_NAMES, plain_name, split_units

STATION_NAMES = (
    *("station_id", "station", "stationid", "station_code", "stid", "site_id", "site", "site_code", "siteid"),
    *("sensor_id", "sensor", "sensorid", "device_id", "device", "platform", "buoy", "mooring", "node", "moteid"),
    *("location_id", "location", "origin", "station_name", "site_name", "id"),
)
# What a column that never changes at a station says about where it is: names, and the CF attributes of their meaning.
PLACES = (
    (("latitude", "lat"), {"standard_name": "latitude", "units": "degrees_north"}),
    (("longitude", "lon", "long", "lng"), {"standard_name": "longitude", "units": "degrees_east"}),
    (("altitude", "alt", "elevation", "elev"), {"standard_name": "altitude", "positive": "up"}),
)
VARIABLE_NAMES = ("variable", "parameter", "quantity", "metric", "element", "datatype")
VALUE_NAMES = ("value", "val", "data_value", "reading")
UNIT_NAMES = ("unit", "units")
COUNTER_NAMES = ("", "index", "rownames", "row", "rowid", "row_id", "unnamed:_0", "id", "no", "nr")
DIMENSIONS = ("time", "station")


class Channels(NamedTuple):
    """Rows with the columns ``time`` and ``station``, and beside them the numbers that they hold."""

    rows: pd.DataFrame
    channels: pd.DataFrame
    units: Mapping[str, str]
    left_out: Mapping[str, str]


def channels_of(frame: pd.DataFrame, rows: pd.DataFrame, stations: bool) -> Channels:
    """The columns of numbers; of a table with a column of names and one of values, a channel for each name."""
    columns: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for name in map(str, frame.columns):
        reason = _why_left_out(name, frame[name], stations)
        if reason is None:
            columns[name] = _numbers(frame[name])
        else:
            left_out[name] = reason
    channels = pd.DataFrame(columns, index=rows.index)
    names = [name for name in left_out if plain_name(name) in VARIABLE_NAMES and _is_text(frame[name])]
    values = [name for name in columns if plain_name(name) in VALUE_NAMES]
    if len(names) == len(values) == 1:
        return _by_name(frame, rows, channels, names[0], values[0], left_out)
    units = {name: found for name in columns if (found := split_units(name)[1])}
    return Channels(rows, channels, units, left_out)


def _is_text(values: pd.Series) -> bool:
    return pd.api.types.is_string_dtype(values) and not pd.api.types.is_numeric_dtype(values)


def _why_left_out(name: str, values: pd.Series, stations: bool) -> str | None:
    """Why a column is no channel; None when it is one."""
    plain = plain_name(name)
    if pd.api.types.is_bool_dtype(values):
        return "true or false"
    if values.dtype.kind in "Mm":
        return "another time"
    if not pd.api.types.is_numeric_dtype(values):
        return _why_no_numbers(values)
    if values.dtype.kind == "c":
        return "complex numbers"
    whole = pd.api.types.is_integer_dtype(values)
    # Up by one in each row, and back to the first number perhaps where the next station begins.
    if plain in COUNTER_NAMES and whole and bool(((values.diff() == 1) | (values == values.iloc[0])).all()):
        return "counts the rows"
    if (plain in TIME_NAMES and whole) or name in DIMENSIONS:
        return "another time" if plain != "station" else "another name of the station"
    return "another name of the station" if stations and plain in STATION_NAMES else None


def _why_no_numbers(values: pd.Series) -> str:
    known = values.dropna()
    marks = known[pd.to_numeric(known, errors="coerce").isna().to_numpy()]
    if 0 < len(marks) < len(known) / 2:
        mark = str(marks.iloc[0])[:20]
        count = f"{len(marks)} of {len(known)} values are no numbers, such as {mark!r}"
        return f"{count}; if that stands for a missing value, pass missing=[{mark!r}]"
    if _is_text(known) and len(known) and bool(known.head(100).str.strip().str.fullmatch(r"[+-]?\d+,\d+").all()):
        return "numbers with a decimal comma; write them with a point"
    return "text"


def _numbers(values: pd.Series) -> np.ndarray:
    single = str(values.dtype).lower() in ("float32", "float[pyarrow]")
    return np.asarray(values.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan))


def _by_name(
    frame: pd.DataFrame, rows: pd.DataFrame, channels: pd.DataFrame, name: str, value: str, left_out: dict[str, str]
) -> Channels:
    """One channel for each name in the column `name`, from the column `value`; the rows are then (time, station).

    A second value for the same time, station and name stays a row of its own, so that `one_row_each` sees it.
    """
    codes, labels = pd.factorize(frame[name].astype(str).str.strip())
    nth = rows.assign(code=codes).groupby(["time", "station", "code"], sort=False).cumcount()
    group = rows.assign(nth=nth).groupby(["time", "station", "nth"], sort=False).ngroup().to_numpy()
    _, first = np.unique(group, return_index=True)
    matrix = np.full((len(first), len(labels)), np.nan, dtype=channels[value].dtype)
    matrix[group, codes] = channels[value].to_numpy()
    wide = pd.DataFrame(matrix, columns=[str(label) for label in labels])
    beside = channels.drop(columns=value).iloc[first].reset_index(drop=True)
    units: dict[str, str] = {}
    for column in (column for column in left_out if plain_name(column) in UNIT_NAMES):
        pairs = frame[column].groupby(codes).agg(["nunique", "first"])
        units = {str(labels[code]): str(unit) for code, (count, unit) in pairs.iterrows() if count == 1}
    left_out = {column: reason for column, reason in left_out.items() if column != name}
    places = [column for column in beside.columns if any(plain_name(column) in names for names, _ in PLACES)]
    left_out |= {str(column): "beside the values" for column in beside.columns if column not in places}
    return Channels(rows.iloc[first].reset_index(drop=True), pd.concat([wide, beside[places]], axis=1), units, left_out)


def one_row_each(
    rows: pd.DataFrame, channels: pd.DataFrame, ids: Sequence[str], source: str, duplicates: str
) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """One row for each time and station, and how many equal rows were dropped on the way."""
    keys, columns = list(DIMENSIONS), list(channels.columns)
    again = rows.duplicated(keys, keep=False)
    if not again.any():
        return rows, channels, 0
    both = pd.concat([rows, channels.set_axis(range(len(columns)), axis=1)], axis=1)
    equal = both.duplicated()
    both = both[~equal]
    again = both.duplicated(keys, keep=False)
    if again.any() and duplicates == "refuse":
        raise UserError(_repeated(both[again], columns, ids, source))
    if again.any() and duplicates == "mean":
        both = both.groupby(keys, sort=False, as_index=False).mean()
    elif again.any():
        both = both.drop_duplicates(keys, keep="first" if duplicates == "first" else "last")
    both = both.reset_index(drop=True)
    return both[keys], both.drop(columns=keys).set_axis(columns, axis=1), int(equal.sum())


def _repeated(again: pd.DataFrame, columns: Sequence[str], ids: Sequence[str], source: str) -> str:
    """The sentence about different values for one time and station."""
    first = again.iloc[0]
    second = again[(again["time"] == first["time"]) & (again["station"] == first["station"])].iloc[1]
    pairs = [(name, first[i], second[i]) for i, name in enumerate(columns) if not _same(first[i], second[i])]
    name, one, two = pairs[0]
    place = f" at station {ids[int(first['station'])]}" if ids != [""] else ""
    count = int(again.duplicated(list(DIMENSIONS)).sum())
    several = "row repeats" if count == 1 else "rows repeat"
    remedy = 'pass duplicates="mean", "first" or "last"'
    if not place:
        remedy = f"if the table holds several stations, pass station=; else {remedy}, or correct the table"
    return (
        f"{count} {several} the time of another row of {source} with different values, for example {name} on "
        f"{first['time']}{place} is {one:g} and {two:g}; {remedy}."
    )


def _same(one: float, two: float) -> bool:
    return bool(one == two or (np.isnan(one) and np.isnan(two)))


def split_places(
    channels: pd.DataFrame, codes: np.ndarray, stations: int
) -> tuple[dict[str, xr.Variable], pd.DataFrame]:
    """Latitude, longitude and altitude as coordinates of the stations, where they never change at any of them."""
    places = {}
    for names, attrs in PLACES:
        for name in (name for name in channels.columns if plain_name(name) in names):
            by_station = channels[name].groupby(codes)
            least, most = by_station.min(), by_station.max()
            if ((least == most) | most.isna()).all():
                values = by_station.first().reindex(range(stations)).to_numpy()
                units = split_units(name)[1]
                places[str(name)] = xr.Variable("station", values, attrs | ({"units": units} if units else {}))
    return places, channels.drop(columns=list(places))


def storable_variables(channels: pd.DataFrame, units: Mapping[str, str]) -> dict[str, xr.Variable]:
    """Variables under the names of the columns.

    No store can hold a name with a slash: ``wind (m/s)`` becomes ``wind``, and keeps its header as long_name.
    """
    variables: dict[str, xr.Variable] = {}
    for name in map(str, channels.columns):
        attrs = {"units": units[name]} if name in units else {}
        stored = name
        if "/" in name:
            attrs["long_name"] = name
            stored = split_units(name)[0].replace("/", "_")
            stored = name.replace("/", "_") if stored in channels.columns or stored in variables else stored
        variables[stored] = xr.Variable("row", channels[name].to_numpy(), attrs)
    return variables
