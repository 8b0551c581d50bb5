"""Part of arrow 1: when each row of a table was observed.

What arrives: the columns of a table. What leaves: one date a row, in UTC where the table names a time zone, and the
columns that were used up for it.
What we decided against: guessing the unit of numbers (seconds or milliseconds, since when?) and the order of day and
month; both change every time of the table, so we ask for ``time_format`` instead.
"""

import re

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError

TIME_NAMES = (
    *("datetime", "date_time", "timestamp", "time_stamp", "time_hour", "valid_time", "datetime_utc", "time_utc"),
    *("date_utc", "utc", "utc_time", "observation_time", "obs_time", "measurement_time", "time", "times", "date"),
    *("dates", "ts", "epoch", "unixtime", "unix_time"),
)
PARTS = {
    "year": ("year", "yr", "yyyy"),
    "month": ("month", "mon", "mo", "mnth"),
    "day": ("day", "dy"),
    "hour": ("hour", "hr"),
    "minute": ("minute", "minutes"),
    "second": ("second", "seconds"),
}
CLOCK = r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
ZONE = r":\d{2}(?:\.\d+)?\s*(?:Z|UTC|[+-]\d{2}(?::?\d{2})?)$"
DAY_AND_MONTH = r"(\d{1,2})([/.-])(\d{1,2})[/.-]\d{4}"
YEAR_FIRST = r"\d{4}([/.])\d{1,2}[/.]\d{1,2}"
TIMES_OF_DAY = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
AS_WRITTEN = "none stated: times are as written"
EXAMPLES = 'time_format="%d/%m/%Y %H:%M" (or "seconds since 1970-01-01" for numbers)'


def plain_name(name: str) -> str:
    """A header without its units, in lower case, with underscores.

    Examples
    --------
    >>> plain_name("Date Time"), plain_name("Temp (degC)")
    ('date_time', 'temp')
    """
    return re.sub(r"[\s-]+", "_", (split_units(name)[0]).strip().lower())


def split_units(name: str) -> tuple[str, str | None]:
    """A header and the units in brackets at its end.

    Examples
    --------
    >>> split_units("temp [K]"), split_units("temp")
    (('temp', 'K'), ('temp', None))
    """
    found = re.fullmatch(r"(.*?)\s*[(\[]([^()\[\]]+)[)\]]\s*", name)
    return (found[1], found[2]) if found and found[1] else (name, None)


def table_times(
    frame: pd.DataFrame, source: str, column: str | None = None, time_format: str | None = None
) -> tuple[np.ndarray, list[str], str]:
    """The time of each row (datetime64[ns]), the columns that tell it, and the time zone in words.

    The first of the columns is the main one; there may be none.
    """
    by_name = {plain_name(name): name for name in reversed(frame.columns)}
    parts = {part: by_name[name] for part, names in PARTS.items() for name in names if name in by_name}
    told = [column] if column else [by_name[name] for name in TIME_NAMES if name in by_name]
    written = [name for name in told if not _is_number(frame[name])]
    whole = [name for name in written if not _is_clock(frame[name])]
    if whole:
        times, used, zone = _dates(frame, whole[0], parts, source, time_format)
        clocks = [name for name in frame.columns if plain_name(name) in ("time", "hour") and _is_clock(frame[name])]
        if clocks and not zone and _at_midnight(times):
            together = _text(frame, whole[0], source) + " " + _text(frame, clocks[0], source)
            times, zone = _from_text(together, source, whole[0], time_format)
            used = [whole[0], clocks[0]]
    elif {"year", "month"} <= set(parts) and column is None:
        times, used, zone = _from_parts(frame, parts, source), [], None
    elif told and told[0] not in written:
        times, used, zone = _from_numbers(frame, told[0], source, time_format), told[:1], None
    else:
        first = _first_dates(frame)
        if first is None:
            raise UserError(
                f"{source} has no column of times: its columns are {', '.join(frame.columns[:20])}; name one of them "
                f"'time', or pass time=."
            )
        times, used, zone = _dates(frame, first, parts, source, time_format)
    if {"year", "month"} <= set(parts):
        used = list(dict.fromkeys([*used, *parts.values()]))
    return times, used, zone or AS_WRITTEN


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values)


def _is_text(values: pd.Series) -> bool:
    return pd.api.types.is_string_dtype(values) and not _is_number(values)


def _is_clock(values: pd.Series) -> bool:
    return _is_text(values) and bool(values.head(20).str.strip().str.fullmatch(CLOCK).fillna(False).all())


def _at_midnight(times: np.ndarray) -> bool:
    return bool((times == times.astype("datetime64[D]")).all())


def _first_dates(frame: pd.DataFrame) -> str | None:
    """A column of dates by another name: one of that type, or a first column of ISO text."""
    for name in frame.columns:
        if frame[name].dtype.kind == "M":
            return str(name)
    first = frame.columns[0]
    iso = r"\d{4}-\d{2}.*"
    return str(first) if _is_text(frame[first]) and frame[first].head(20).str.fullmatch(iso).all() else None


def _dates(
    frame: pd.DataFrame, name: str, parts: dict[str, str], source: str, time_format: str | None
) -> tuple[np.ndarray, list[str], str | None]:
    """Dates of one column; with a column of hours beside it where they are days only."""
    values = frame[name]
    if values.dtype.kind == "M":
        _refuse_missing(values.isna(), source, name)
        zone = f"UTC, converted from {values.dt.tz}" if values.dt.tz is not None else None
        times = values.dt.tz_convert("UTC").dt.tz_localize(None) if zone else values
        return _nanoseconds(times, source, name), [name], zone
    times, zone = _from_text(_text(frame, name, source), source, name, time_format)
    hour = parts.get("hour")
    if hour is not None and not zone and _is_number(frame[hour]) and _at_midnight(times):
        return times + _whole(frame, hour, source, 0, 24).astype("timedelta64[h]"), [name, hour], None
    return times, [name], zone


def _text(frame: pd.DataFrame, name: str, source: str) -> pd.Series:
    _refuse_missing(frame[name].isna(), source, name)
    return frame[name].astype(str).str.strip()


def _refuse_missing(absent: pd.Series, source: str, name: str) -> None:
    if absent.any():
        raise UserError(
            f"{int(absent.sum())} of {len(absent)} rows of {source} have no time in column {name!r}, the first is row "
            f"{int(absent.to_numpy().argmax())}; fill it in or drop these rows."
        )


def _from_text(
    values: pd.Series, source: str, name: str, time_format: str | None = None
) -> tuple[np.ndarray, str | None]:
    """Dates that were written as text; the same in UTC where all of them carry a time zone."""
    zoned = values.str.contains(ZONE, regex=True)
    if zoned.any() and not zoned.all():
        pair = f"{values[zoned].iloc[0]} and {values[~zoned].iloc[0]}"
        raise UserError(
            f"only {int(zoned.sum())} of {len(values)} times in column {name!r} of {source} carry a time zone "
            f"({pair}); write all with or all without one."
        )
    layout = time_format or _layout(values, source, name)
    times = pd.to_datetime(values, format=layout, utc=True, errors="coerce")
    bad = times.isna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"{int(bad.sum())} of {len(values)} times in column {name!r} of {source} cannot be read, the first is "
            f"{values.iloc[row]!r} in row {row}; correct them or pass {EXAMPLES}."
        )
    zone = "UTC, converted from the time zone in the table" if zoned.all() or "%z" in layout else None
    return _nanoseconds(times.dt.tz_localize(None), source, name), zone


def _layout(values: pd.Series, source: str, name: str) -> str:
    """The layout of dates: ISO, or day and month in the order that one of them proves."""
    mark = re.match(YEAR_FIRST, values.iloc[0])
    if mark:
        return _with_clock(f"%Y{mark[1]}%m{mark[1]}%d", values)
    parts = values.str.extract("^" + DAY_AND_MONTH)
    if parts[0].isna().any():
        return "ISO8601"
    first, second = parts[0].astype(int).max(), parts[2].astype(int).max()
    sign = parts[1].iloc[0]
    if first <= 12 and second <= 12 and sign != ".":
        raise UserError(
            f"times such as {values.iloc[0]!r} in column {name!r} of {source} could have the day or the month first; "
            f'pass time_format="%d{sign}%m{sign}%Y ..." or time_format="%m{sign}%d{sign}%Y ...".'
        )
    day_first = first > 12 or sign == "."
    return _with_clock(f"%d{sign}%m{sign}%Y" if day_first else f"%m{sign}%d{sign}%Y", values)


def _with_clock(date: str, values: pd.Series) -> str:
    """The layout of a date, and of the time of day that follows it."""
    for clock in TIMES_OF_DAY:
        if pd.notna(pd.to_datetime(values.iloc[0], format=date + clock, errors="coerce")):
            return date + clock
    return date


def _from_parts(frame: pd.DataFrame, parts: dict[str, str], source: str) -> np.ndarray:
    """Dates from columns of years, months and smaller parts; an hour may be 24."""
    limits = {"month": (1, 12), "day": (1, 31), "hour": (0, 24), "minute": (0, 59), "second": (0, 60)}
    years = _whole(frame, parts["year"], source, 1678, 2261)
    number = {part: _whole(frame, parts[part], source, *span) for part, span in limits.items() if part in parts}
    months = (years - 1970) * 12 + number["month"] - 1
    starts = months.astype("datetime64[M]").astype("datetime64[D]")
    dates = starts + (number["day"] - 1) if "day" in number else starts
    outside = dates.astype("datetime64[M]").astype(np.int64) != months
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"row {row} of {source} is on day {number['day'][row]} of month {number['month'][row]} of {years[row]}, "
            f"which does not exist; correct it."
        )
    times = dates.astype("datetime64[ns]")
    for part, unit in (("hour", "h"), ("minute", "m"), ("second", "s")):
        if part in number:
            times = times + number[part].astype(f"timedelta64[{unit}]")
    return times


def _whole(frame: pd.DataFrame, name: str, source: str, low: int, high: int) -> np.ndarray:
    values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~((values >= low) & (values <= high) & (values == np.round(values)))
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"column {name!r} of {source} should hold whole numbers from {low} to {high} to tell the time, but row "
            f"{row} holds {frame[name].iloc[row]!r}; correct it or pass time=."
        )
    return values.astype(np.int64)


def _from_numbers(frame: pd.DataFrame, name: str, source: str, time_format: str | None) -> np.ndarray:
    """Numbers with stated units (``seconds since 1970-01-01``), or digits with a layout (``%Y%m%d``)."""
    _refuse_missing(frame[name].isna(), source, name)
    units = time_format or split_units(name)[1] or ""
    if " since " in units:
        raw = xr.Dataset(coords={"time": ("time", frame[name].to_numpy(), {"units": units, "calendar": "standard"})})
        try:
            return _nanoseconds(pd.Series(xr.decode_cf(raw)["time"].values), source, name)
        except (ValueError, OverflowError, TypeError) as error:
            raise UserError(f"column {name!r} of {source} holds no {units}: {error}; pass {EXAMPLES}.") from error
    if time_format is None:
        raise UserError(
            f"column {name!r} of {source} holds numbers such as {frame[name].iloc[0]}, and nothing says what they "
            f'count; pass time_format="seconds since 1970-01-01", or "%Y%m%d" for digits.'
        )
    return _from_text(_text(frame, name, source), source, name, time_format)[0]


def _nanoseconds(times: pd.Series, source: str, name: str) -> np.ndarray:
    try:
        return np.asarray(pd.DatetimeIndex(times).as_unit("ns").to_numpy())
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as error:
        raise UserError(
            f"the times in column {name!r} of {source} run from {times.min()} to {times.max()}, but must lie within "
            f"1678 to 2261; correct them."
        ) from error
