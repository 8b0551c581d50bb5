"""Part of arrow 1: from a table of sensors (CSV, Parquet) to one ``xr.Dataset`` on (time, station).

What arrives: a path or a data frame with one row per time, per time and station, or per time, station and variable.
What leaves: the columns of numbers as variables with their own names, order and units; time is UTC where the table
names a time zone. A table without stations has the dimension time alone. ``table_times.py`` finds the times,
``table_channels.py`` the channels, and ``observations.py`` puts them on one axis.
What we decided against: filling or interpolating what is absent, turning text into numbers, guessing whether 01/02 is
January or February, and choosing between two different values for one time and station.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.storage.observations import grid_observations
from sciJEPA.storage.table_channels import (
    STATION_NAMES,
    channels_of,
    one_row_each,
    split_places,
    storable_variables,
)
from sciJEPA.storage.table_times import plain_name, table_times

CSV_ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zip", ".csv.bz2", ".csv.xz")
PARQUET_ENDINGS = (".parquet", ".pq", ".parq")
VAGUE_NAMES = ("sensor", "device", "platform", "node", "location", "origin", "id")
DUPLICATES = ("refuse", "mean", "first", "last")


def is_table(path: str | os.PathLike) -> bool:
    """Whether the name of a file or URL says that it is a table.

    Examples
    --------
    >>> is_table("stations.csv.gz"), is_table("s3://bucket/stations.parquet"), is_table("era5.zarr")
    (True, True, False)
    """
    return os.fspath(path).lower().partition("?")[0].rstrip("/").endswith(CSV_ENDINGS + PARQUET_ENDINGS)


def open_table(
    path: str | os.PathLike,
    *,
    time: str | None = None,
    station: str | None = None,
    cadence: str | None = None,
    time_format: str | None = None,
    duplicates: str = "refuse",
    missing: Sequence[str | float] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Read a CSV or Parquet table into a dataset on (time, station), or on time where it has no stations.

    Parameters
    ----------
    path : a file, compressed or not, a folder of Parquet files, or a URL.
    time, station : columns of the times and of the names of the stations; found by name when left out.
    cadence : step of the time axis, such as ``"1h"``; the most common step of the table when left out.
    time_format : how times are written: ``"%d/%m/%Y %H:%M"``, or ``"seconds since 1970-01-01"`` for numbers.
    duplicates : different values for one time and station: ``refuse``, or take the ``mean``, ``first`` or ``last``.
    missing : marks that stand for a missing value, such as ``-9999`` or ``"M"``, besides empty fields, NA and NaN.
    storage_options : for URLs, handed to fsspec.

    Raises
    ------
    UserError : one sentence saying what is wrong with the table and what to do about it.
    """
    source = os.path.expanduser(os.fspath(path))
    options = dict(storage_options or {})
    parquet = source.lower().rstrip("/").endswith(PARQUET_ENDINGS) or _begins_with(source, b"PAR1")
    read = _read_parquet if parquet else _read_csv
    try:
        frame = read(source, station, list(missing), options)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist; give a CSV or Parquet file.") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
        raise UserError(f"{source} cannot be read as a table: {reason}; fetch or write it again.") from error
    return table_to_dataset(
        frame,
        source=source,
        time=time,
        station=station,
        cadence=cadence,
        time_format=time_format,
        duplicates=duplicates,
    )


def table_to_dataset(
    frame: pd.DataFrame,
    *,
    source: str = "<memory>",
    time: str | None = None,
    station: str | None = None,
    cadence: str | None = None,
    time_format: str | None = None,
    duplicates: str = "refuse",
) -> xr.Dataset:
    """Do as `open_table` does, for a data frame in memory.

    Examples
    --------
    >>> frame = pd.DataFrame({"date": ["2000-01-01", "2000-01-02"], "site": ["a", "a"], "temp (K)": [280.0, 281.0]})
    >>> ds = table_to_dataset(frame)
    >>> dict(ds.sizes), ds["temp (K)"].attrs["units"]
    ({'time': 2, 'station': 1}, 'K')
    """
    if duplicates not in DUPLICATES:
        raise UserError(f"duplicates={duplicates!r} is unknown; choose from {', '.join(DUPLICATES)}.")
    frame = _plain_columns(frame, source)
    for option, name in (("time", time), ("station", station)):
        if name is not None and name not in frame.columns:
            columns = ", ".join(frame.columns[:20])
            raise UserError(f"{source} has no column {name!r} for {option}; its columns are {columns}.")
    times, used, zone = table_times(frame, source, time, time_format)
    rest = frame.drop(columns=used)
    station = station or _station_column(rest, len(np.unique(times)) < len(times))
    rest = rest if station else _as_readings(rest)
    codes, ids = _stations(rest, station, source)
    rows = pd.DataFrame({"time": times, "station": codes})
    table = channels_of(rest.drop(columns=[station] if station else []), rows, station is not None)
    rows, values, dropped = one_row_each(table.rows, table.channels, ids, source, duplicates)
    places, values = split_places(values, rows["station"].to_numpy(), len(ids))
    if not values.columns.size:
        found = "; ".join(f"{name}: {reason}" for name, reason in list(table.left_out.items())[:6]) or "no other column"
        raise UserError(f"{source} has no column with a channel of numbers ({found}); convert one of them to numbers.")
    ds = grid_observations(
        pd.DatetimeIndex(rows["time"]),
        rows["station"].to_numpy(),
        ids,
        storable_variables(values, table.units),
        source=source,
        cadence=cadence,
    ).assign_coords(places)
    left_out = {name: "part of the time" for name in used[1:]} | dict(table.left_out)
    ds.attrs |= {"time_zone": zone, "dropped_duplicates": dropped}
    if left_out:
        ds.attrs["left_out"] = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    if used:
        ds["time"].attrs["long_name"] = used[0]
    if station is None:
        return ds.isel(station=0).drop_vars("station")
    ds["station"].attrs["long_name"] = station
    return ds


def _begins_with(path: str, magic: bytes) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _read_parquet(path: str, station: str | None, missing: list[str | float], options: dict[str, Any]) -> pd.DataFrame:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        remedy = 'pip install "sciJEPA[tables]"'
        raise UserError(f"{path} is a Parquet table, and reading it needs pyarrow: {remedy}.") from error
    frame = pd.read_parquet(path, engine="pyarrow", storage_options=options or None)
    return frame.replace(missing, np.nan) if missing else frame


def _read_csv(path: str, station: str | None, missing: list[str | float], options: dict[str, Any]) -> pd.DataFrame:
    """Read text with commas, semicolons or tabs between its columns, after any lines that begin with #."""
    import fsspec

    def opened() -> Any:
        return fsspec.open(path, "rb", compression="infer", **options)

    with opened() as file:
        skipped, header = 0, file.readline()
        while header.startswith(b"#"):
            skipped, header = skipped + 1, file.readline()
    if not header.strip():
        raise UserError(f"{path} is empty where the names of its columns should be; give a table with a header.")
    separator = chr(max(b",;\t", key=header.count))
    layout: dict[str, Any] = {"sep": separator, "skiprows": skipped, "skipinitialspace": True}
    with opened() as file:
        top = pd.read_csv(file, nrows=1000, **layout)
    # As text, or the station 00123 would become 123; but a column of readings is no name.
    names = [name for name in map(str, top.columns) if name == station or plain_name(name) in STATION_NAMES]
    as_text = {name: str for name in names if top[name].dtype.kind != "f" or not (top[name].dropna() % 1).any()}
    with opened() as file:
        return pd.read_csv(file, dtype=as_text, na_values=missing or None, low_memory=False, **layout)


def _plain_columns(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """The frame with text as names of columns; an index that says something becomes columns."""
    if len(frame) == 0:
        raise UserError(f"{source} is a table without rows; at least 2 times are needed.")
    if isinstance(frame.index, pd.DatetimeIndex) and frame.index.name is None:
        frame = frame.rename_axis("time")
    frame = frame.reset_index(drop=all(name is None for name in frame.index.names))
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise UserError(f"{source} has more than one column {repeated[0]!r}; give every column a name of its own.")
    return frame


def _station_column(frame: pd.DataFrame, times_repeat: bool) -> str | None:
    """The column that names the station, by its name.

    What may as well be a reading or a counter, such as numbers below ``sensor`` or ``id``, must tell rows of one time
    apart.
    """
    by_name = {plain_name(name): str(name) for name in reversed(frame.columns)}
    for usual in STATION_NAMES:
        name = by_name.get(usual)
        if name is None or frame[name].dtype.kind == "f":
            continue
        words = frame[name].astype(str)
        if not words.str.fullmatch(r"[+-]?\d*\.\d+").any() and (
            times_repeat or usual not in VAGUE_NAMES or not words.str.fullmatch(r"\d+").any()
        ):
            return name
    return None


def _as_readings(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns that were read as text because they could have named stations, as numbers where they are."""
    columns = {}
    for name in (str(name) for name in frame.columns if plain_name(str(name)) in STATION_NAMES):
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if (numbers.isna() == frame[name].isna()).all():
            columns[name] = numbers
    return frame.assign(**columns)


def _stations(frame: pd.DataFrame, column: str | None, source: str) -> tuple[np.ndarray, list[str]]:
    """The number of the station in each row, and the names of the stations in the order in which they appear."""
    if column is None:
        return np.zeros(len(frame), dtype=np.int64), [""]
    text = pd.api.types.is_string_dtype(frame[column]) and not pd.api.types.is_numeric_dtype(frame[column])
    codes, ids = pd.factorize(frame[column].str.strip() if text else frame[column])
    absent = codes < 0
    if absent.any():
        raise UserError(
            f"{int(absent.sum())} of {len(frame)} rows of {source} have no station in column {column!r}, the first is "
            f"row {int(absent.argmax())}; name the station there or drop these rows."
        )
    names = [str(int(name)) if isinstance(name, float) and name.is_integer() else str(name) for name in ids]
    return codes.astype(np.int64), names
