"""Observations on one time axis: what stays where it is, what moves, and never into the past."""

import doctest

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from sciJEPA.errors import UserError
from sciJEPA.storage import observations
from sciJEPA.storage.observations import grid_observations


def gridded(times: list[str] | pd.Index, stations: list[int] | None = None, cadence: str | None = None) -> xr.Dataset:
    """A variable v with the values 0, 1, 2... in the order of the times."""
    index = times if isinstance(times, pd.Index) else pd.DatetimeIndex(times)
    station = np.zeros(len(index), dtype=np.int64) if stations is None else np.array(stations)
    ids = [f"s{number}" for number in range(station.max() + 1)]
    values = {"v": xr.Variable("row", np.arange(len(index), dtype=np.float64))}
    return grid_observations(index, station, ids, values, source="memory", cadence=cadence)


def test_an_absent_hour_is_missing() -> None:
    ds = gridded(["2000-01-01 00", "2000-01-01 01", "2000-01-01 03"])
    np.testing.assert_array_equal(ds.v.values[:, 0], [0, 1, np.nan, 2])
    assert ds.attrs == {"cadence": "1 hour", "moved_observations": 0, "averaged_observations": 0}


def test_the_order_of_observations_is_of_no_account() -> None:
    ds = gridded(["2000-01-01 02", "2000-01-01 00", "2000-01-01 01"])
    np.testing.assert_array_equal(ds.v.values[:, 0], [1, 2, 0])


def test_three_quarters_of_the_steps_may_be_absent() -> None:
    # The most common step stays the hour: of 2000 hours a quarter is kept, and one step in four is one hour long.
    kept = np.sort(np.random.default_rng(0).choice(2000, 500, replace=False))
    ds = gridded(pd.date_range("2000-01-01", periods=2000, freq="h")[kept])
    assert ds.attrs["cadence"] == "1 hour" and ds.attrs["moved_observations"] == 0
    assert int(ds.v.notnull().sum()) == 500


def test_a_jittering_clock_keeps_one_observation_to_a_step() -> None:
    # Hourly, up to 10 minutes early or late: the longest pause follows minute 10, so bins end there.
    late = np.random.default_rng(0).integers(-600, 601, 200)
    late[0], late[1] = 600, -600
    times = pd.date_range("2000-01-01 05:00", periods=200, freq="h") + pd.to_timedelta(late, unit="s")
    ds = gridded(times)
    assert ds.attrs["cadence"] == "1 hour" and ds.attrs["averaged_observations"] == 0
    np.testing.assert_array_equal(ds.v.values[:, 0], np.arange(200))
    assert set(ds.time.dt.minute.values.tolist()) == {10}


def test_stations_that_report_at_different_minutes_meet_at_the_end_of_the_bin() -> None:
    times = ["2000-01-01 00:00", "2000-01-01 01:00", "2000-01-01 02:00", "2000-01-01 00:51", "2000-01-01 01:51"]
    ds = gridded(times, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(ds.v.values, [[0, np.nan], [1, 3], [2, 4]])
    assert ds.attrs["moved_observations"] == 2 and "2 of 5" in ds.attrs["moved"]


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=40, unique=True), st.sampled_from([None, "7min", "1h"]))
@settings(max_examples=60, deadline=None)
def test_nothing_is_known_before_it_was_observed(minutes: list[int], cadence: str | None) -> None:
    # Whatever stands under a label is the mean of observations not later than it and later than the label before; none
    # is lost: each mean times its count adds up to the sum of all values.
    times = pd.Timestamp("2000-01-01") + pd.to_timedelta(minutes, unit="min")
    ds = gridded(pd.DatetimeIndex(times), cadence=cadence)
    labels = ds.indexes["time"]
    assert len(np.unique(np.diff(labels))) <= 1
    position = labels.searchsorted(times)  # the first label that is not before the time
    expected = pd.Series(np.arange(len(times), dtype=float)).groupby(position).mean()
    np.testing.assert_allclose(ds.v.values[expected.index, 0], expected)
    assert int(ds.v.notnull().sum()) == len(expected)


def test_missing_values_do_not_count_in_an_average() -> None:
    times = pd.DatetimeIndex(["2000-01-01 00:10", "2000-01-01 00:20", "2000-01-01 00:30"])
    values = {"v": xr.Variable("row", [np.nan, 4.0, 6.0]), "w": xr.Variable("row", [np.nan] * 3)}
    ds = grid_observations(times, np.zeros(3, np.int64), ["a"], values, source="memory", cadence="1h")
    assert ds.v.values.tolist() == [[5.0]] and np.isnan(ds.w.values).all()


@pytest.mark.parametrize("stamps", ["MS", "ME", "YS"])
def test_months_have_no_fixed_length_and_need_none(stamps: str) -> None:
    times = pd.date_range("2000-01-01", periods=30, freq=stamps)
    ds = gridded(times.delete(7))
    assert ds.attrs["moved_observations"] == 0 and ds.sizes["time"] == 30
    known = np.delete(np.arange(30), 7)
    assert (ds.indexes["time"][known] == times[known]).all() and ds.indexes["time"].is_monotonic_increasing
    np.testing.assert_array_equal(ds.v.values[known, 0], np.arange(29))
    assert np.isnan(ds.v.values[7, 0]) and ds.indexes["time"][7].year == times[7].year


def test_months_of_other_calendars() -> None:
    times = xr.date_range("2000-01-16", periods=24, freq="MS", calendar="noleap", use_cftime=True)
    ds = gridded(times.delete(2))
    assert ds.attrs["moved_observations"] == 0 and ds.indexes["time"][2].month == times[2].month
    assert (ds.indexes["time"][[0, 1, 3]] == times[[0, 1, 3]]).all() and np.isnan(ds.v.values[2, 0])


def test_single_precision_stays_single_and_whole_numbers_become_double() -> None:
    times = pd.date_range("2000", periods=2)
    values = {"a": xr.Variable("row", np.float32([1, 2])), "b": xr.Variable("row", np.array([1, 2]))}
    ds = grid_observations(times, np.zeros(2, np.int64), ["a"], values, source="memory")
    assert ds.a.dtype == np.float32 and ds.b.dtype == np.float64


@pytest.mark.parametrize("cadence", ["soon", "-1h", "0h", "1ME"])
def test_a_cadence_must_be_a_span(cadence: str) -> None:
    with pytest.raises(UserError, match="cadence="):
        gridded(["2000-01-01", "2000-01-02"], cadence=cadence)


def test_one_time_alone_makes_one_step() -> None:
    ds = gridded(["2000-01-01", "2000-01-01"], [0, 1])
    assert ds.v.values.tolist() == [[0, 1]] and ds.attrs["cadence"] == "unknown"


def test_examples_in_docstrings_hold() -> None:
    result = doctest.testmod(observations)
    assert result.attempted > 0 and result.failed == 0
