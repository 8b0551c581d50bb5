"""Part of arrow 1: from single observations, each with its time and station, to arrays on (time, station).

What arrives: the time, the number of the station and the values of every observation, in any order. What leaves: one
``xr.Dataset`` with a regular time axis; where a station was silent it holds NaN. Nothing is ever interpolated.

The step of the axis is the most common step between observations of one station. Where all times lie on such an axis,
no value is touched. Where they do not, an observation counts for the bin (label - cadence, label] that it falls in: the
label is the END of the bin, so that everything under a label was known at that time. Values of one station in one bin
are averaged, and the attributes of the dataset say how many observations were moved and how many averaged.
What we decided against: bins labelled by their start or middle (a forecast issued there would know the future), and
rounding to the nearest step (it moves half of the observations into the past).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cftime
import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.axes import describe_hours
from sciJEPA.errors import UserError

# What may be held in memory; beyond it a table or a ragged array has to be split or thinned first.
LARGEST_BYTES = 2_000_000_000
# Steps that instruments are set to, in seconds. Only for clocks that tick too unevenly to have a most common step.
USUAL_STEPS = np.array([1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200])
DAY = 86400
SHORTEST_MONTH = 27 * DAY
MOSTLY = 0.75  # share of the observations that must agree on the moment of the cycle to fix the axis


class Clock(NamedTuple):
    """Times as whole numbers, so that one arithmetic serves every calendar."""

    ticks: np.ndarray  # int64, one per observation
    second: int  # ticks in a second
    months: np.ndarray  # int64, 12 year + month, one per observation
    labels: Callable[[np.ndarray], pd.Index]  # from ticks back to dates
    month_start: Callable[[np.ndarray], np.ndarray]  # from numbers of months to ticks


class TimeAxis(NamedTuple):
    """A regular axis, and where each observation lies on it."""

    labels: pd.Index
    step: np.ndarray  # int64, one per observation
    hours: float  # between two steps; NaN where there is only one
    moved: int


def grid_observations(
    times: pd.DatetimeIndex | xr.CFTimeIndex,
    station: np.ndarray,
    ids: Sequence[str],
    variables: Mapping[str, xr.Variable],
    *,
    source: str,
    cadence: str | None = None,
) -> xr.Dataset:
    """Put observations on (time, station), with NaN where there is none.

    Parameters
    ----------
    times : when each of the n observations was made.
    station : shape (n,), which of `ids` made it.
    variables : name -> values of shape (n,) with their attributes; float32 stays float32, all else becomes float64.
    cadence : step of the time axis, such as ``"1h"``; the most common step when left out.

    Examples
    --------
    >>> times = pd.DatetimeIndex(["2000-01-01 00:00", "2000-01-01 01:00", "2000-01-01 03:00"])
    >>> values = {"t": xr.Variable("row", [1.0, 2.0, 4.0])}
    >>> ds = grid_observations(times, np.array([0, 0, 0]), ["a"], values, source="<memory>")
    >>> ds.t.values[:, 0].tolist()
    [1.0, 2.0, nan, 4.0]
    """
    clock = _clock_of(times, source)
    _refuse_repeats(times, clock, station, ids, source)
    axis = _months_axis(clock) if cadence is None else None
    axis = axis or _ticks_axis(clock, station, cadence, source, _most_steps(variables, ids))
    cells = axis.step * len(ids) + station
    _, counts = np.unique(cells, return_counts=True)
    attrs = {
        "cadence": describe_hours(axis.hours) if np.isfinite(axis.hours) else "unknown",
        "moved_observations": axis.moved,
        "averaged_observations": int(counts[counts > 1].sum()),
    }
    if axis.moved:
        attrs["moved"] = (
            f"{axis.moved} of {len(cells)} observations were not on a step of the time axis and count for the "
            f"end of the {attrs['cadence']} in which they were made; values of one station there are averaged"
        )
    shape = (len(axis.labels), len(ids))
    shared = bool((counts > 1).any())
    filled = {
        name: xr.Variable(("time", "station"), _fill(values.values, cells, shape, shared), values.attrs)
        for name, values in variables.items()
    }
    coords = {
        "time": xr.Variable("time", axis.labels, {"standard_name": "time"}),
        "station": xr.Variable("station", np.asarray(ids, dtype=np.str_), {"cf_role": "timeseries_id"}),
    }
    return xr.Dataset(filled, coords, attrs)


def is_regular(times: pd.DatetimeIndex | xr.CFTimeIndex, source: str) -> bool:
    """Whether all times lie on an axis of equal steps, or of months, with or without gaps.

    Examples
    --------
    >>> is_regular(pd.DatetimeIndex(["2000-01-01", "2000-01-02", "2000-01-05"]), "<memory>")
    True
    """
    clock = _clock_of(times, source)
    if _months_axis(clock) is not None:
        return True
    station = np.zeros(len(times), dtype=np.int64)
    step = _most_common_step(clock, station)
    return step is None or len(np.unique(clock.ticks % step)) == 1


def _refuse_repeats(times: pd.Index, clock: Clock, station: np.ndarray, ids: Sequence[str], source: str) -> None:
    """Two values for one time and station: we do not choose."""
    order = np.lexsort((clock.ticks, station))
    again = (np.diff(clock.ticks[order]) == 0) & (np.diff(station[order]) == 0)
    if again.any():
        row = int(order[int(again.argmax())])
        raise UserError(
            f"{int(again.sum())} of {len(order)} observations of {source} have the time and station of another one, "
            f"for example {times[row]} at station {ids[int(station[row])]!r}; keep one of each."
        )


def _most_steps(variables: Mapping[str, xr.Variable], ids: Sequence[str]) -> int:
    in_step = len(ids) * sum(_kind(values.dtype).itemsize for values in variables.values())
    return LARGEST_BYTES // max(1, in_step)


def _kind(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype == np.float32 else np.dtype(np.float64)


def _fill(values: np.ndarray, cells: np.ndarray, shape: tuple[int, int], shared: bool) -> np.ndarray:
    """Values in their cells, the mean where several share one, NaN elsewhere."""
    out = np.full(shape[0] * shape[1], np.nan, dtype=_kind(values.dtype))
    if not shared:
        out[cells] = values
        return out.reshape(shape)
    present = ~np.isnan(values)
    where, known = cells[present], np.asarray(values[present], dtype=np.float64)
    occupied, position, counts = np.unique(where, return_inverse=True, return_counts=True)
    out[occupied] = np.bincount(position, weights=known, minlength=len(occupied)) / counts
    alone = counts[position] == 1
    out[where[alone]] = known[alone]  # untouched, to the last bit
    return out.reshape(shape)


def _clock_of(times: pd.DatetimeIndex | xr.CFTimeIndex, source: str) -> Clock:
    if isinstance(times, pd.DatetimeIndex):
        stamps = times.to_numpy().astype("datetime64[ns]")
        return Clock(
            ticks=stamps.astype(np.int64),
            second=10**9,
            months=stamps.astype("datetime64[M]").astype(np.int64),
            labels=lambda ticks: pd.DatetimeIndex(ticks.astype("datetime64[ns]")),
            month_start=lambda n: n.astype("datetime64[M]").astype("datetime64[ns]").astype(np.int64),
        )
    if not isinstance(times, xr.CFTimeIndex):
        raise UserError(f"the times of {source} are {times.dtype} numbers, but dates are needed; give them units.")
    coding: dict[str, Any] = {"units": "microseconds since 1970-01-01", "calendar": times.calendar}

    def month_start(months: np.ndarray) -> np.ndarray:
        # Plain months: the year 1970 + n is a date in every calendar.
        starts = [cftime.datetime(1970 + n // 12, n % 12 + 1, 1, calendar=times.calendar) for n in months.tolist()]
        return np.asarray(cftime.date2num(starts, **coding), dtype=np.int64)

    return Clock(
        ticks=np.asarray(cftime.date2num(np.asarray(times), **coding), dtype=np.int64),
        second=10**6,
        months=np.asarray((times.year - 1970) * 12 + times.month - 1, dtype=np.int64),
        labels=lambda ticks: xr.CFTimeIndex(cftime.num2date(ticks, only_use_cftime_datetimes=True, **coding)),
        month_start=month_start,
    )


def _months_axis(clock: Clock) -> TimeAxis | None:
    """An axis of months, seasons or years, which have no fixed length; None where the times are no such thing.

    Each time keeps its own stamp (first, middle or last day); a month without any gets the usual place of the others.
    """
    ticks, first = np.unique(clock.ticks, return_index=True)
    months, gaps = clock.months[first], np.diff(ticks)
    if len(gaps) < 2 or gaps.min() < SHORTEST_MONTH * clock.second or np.diff(months).min() < 1:
        return None
    sizes, counts = np.unique(np.diff(months), return_counts=True)
    size = int(sizes[counts.argmax()])
    if (np.diff(months) % size).any() or not (gaps % gaps.min()).any():
        return None
    axis = np.arange(months[0], months[-1] + 1, size)
    starts = clock.month_start(axis)
    known = (months - months[0]) // size
    stamps = starts + int(np.median(ticks - starts[known]))
    stamps[known] = ticks
    hours = float(np.median(np.diff(stamps))) / clock.second / 3600
    return TimeAxis(clock.labels(stamps), (clock.months - months[0]) // size, hours, 0)


def _ticks_axis(clock: Clock, station: np.ndarray, cadence: str | None, source: str, most: int) -> TimeAxis:
    """An axis of steps of equal length."""
    ticks = clock.ticks
    step = _most_common_step(clock, station) if cadence is None else _ticks_of(cadence, clock)
    if step is None:
        return TimeAxis(clock.labels(ticks[:1]), np.zeros(len(ticks), dtype=np.int64), float("nan"), 0)
    anchor = _anchor(clock, step)
    number = -((anchor - ticks) // step)  # rounded up: the first label that is not before the observation
    first, last = int(number.min()), int(number.max())
    hours = step / clock.second / 3600
    if last - first + 1 > most:
        raise UserError(
            f"{source} has {len(ticks)} observations, but one every {describe_hours(hours)} from its first to its last "
            f"time makes {last - first + 1} steps, and more than {most} exceed {LARGEST_BYTES / 1e9:g} GB; give a "
            f'longer step, such as cadence="1h", or open a shorter period, fewer stations or fewer variables.'
        )
    labels = clock.labels(anchor + step * np.arange(first, last + 1))
    moved = int((anchor + step * number != ticks).sum())
    return TimeAxis(labels, number - first, hours, moved)


def _ticks_of(cadence: str, clock: Clock) -> int:
    try:
        step = int(pd.Timedelta(cadence).as_unit("ns").value) * clock.second // 10**9
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f'cadence={cadence!r} is no span of time; write it as "10min", "1h" or "1D".') from error
    if step <= 0:
        raise UserError(f'cadence={cadence!r} must be longer than nothing; write it as "10min", "1h" or "1D".')
    return step


def _most_common_step(clock: Clock, station: np.ndarray) -> int | None:
    """The step between observations of one station that occurs most; None where all have one time.

    Where hardly any two steps are alike, the median, as the nearest step that instruments are set to.
    """
    order = np.lexsort((clock.ticks, station))
    steps = np.diff(clock.ticks[order])[np.diff(station[order]) == 0]
    steps = steps[steps > 0]
    if len(steps) == 0:
        steps = np.diff(np.unique(clock.ticks))
    if len(steps) == 0:
        return None
    sizes, counts = np.unique(steps, return_counts=True)
    common = int(sizes[counts.argmax()])
    if not (sizes % common).any() or counts.max() >= len(steps) / 2:
        return common
    seconds = float(np.median(steps)) / clock.second
    if seconds < 1:
        return max(1, round(float(np.median(steps))))
    if seconds >= DAY:
        return round(seconds / DAY) * DAY * clock.second
    usual = [*USUAL_STEPS, DAY]
    return int(usual[np.abs(np.log(np.array(usual) / seconds)).argmin()]) * clock.second


def _anchor(clock: Clock, step: int) -> int:
    """The moment of the cycle at which a step ends.

    Where (almost) all observations are made at one moment, that one. Else the end of the burst in which they come,
    where more than half of the cycle is silent: a jittering clock then keeps one observation to a step. Else midnight.
    """
    moments, counts = np.unique(clock.ticks % step, return_counts=True)
    if counts.max() >= MOSTLY * len(clock.ticks):
        return int(moments[counts.argmax()])
    pauses = np.diff(moments, append=moments[0] + step)
    longest = int(pauses.argmax())
    if pauses[longest] > step / 2:
        last, minute = int(moments[longest]), step // 60
        rounded = -(-last // minute) * minute if minute else last
        return rounded if rounded < last + pauses[longest] else last
    day = DAY * clock.second
    return int(clock.ticks.min()) // day * day
