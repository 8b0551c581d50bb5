"""Discrete sampling geometries of CF: four forms on disk, one form in memory."""

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.storage import sampling_geometry
from sciJEPA.storage.sampling_geometry import is_sampling_geometry, to_stations

# Three stations, four hours. The humidity at (hour h, station s) is 10 h + s; NaN: no observation.
HUMIDITY = np.array([[0.0, 1.0, 2.0], [10.0, np.nan, 12.0], [20.0, 21.0, np.nan], [30.0, 31.0, 32.0]], np.float32)
NAMES = ["Oslo", "Rome", "Ürgüp"]
LATITUDES, LONGITUDES, HEIGHTS = [59.9, 41.9, 38.6], [10.8, 12.5, 34.9], [23.0, 21.0, 1050.0]
OBSERVED = [np.flatnonzero(~np.isnan(HUMIDITY[:, station])) for station in range(3)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stations_of(file: netCDF4.Dataset, dim: str = "place") -> None:
    """Names and positions of the stations, as in appendix H of the CF conventions; no variable has a usual name."""
    file.featureType, file.Conventions = "timeSeries", "CF-1.11"
    file.createDimension(dim, 3)
    file.createDimension("letters", 8)
    label = file.createVariable("label", "S1", (dim, "letters"))
    label.cf_role, label.long_name = "timeseries_id", "name of the place"
    encoded = [name.encode() for name in NAMES]
    label[:] = np.array(encoded, dtype="S8").view("S1").reshape(3, 8)
    for name, standard, units, values in (
        ("phi", "latitude", "degrees_north", LATITUDES),
        ("lam", "longitude", "degrees_east", LONGITUDES),
        ("height", "altitude", "m", HEIGHTS),
    ):
        variable = file.createVariable(name, "f4", (dim,))
        variable.standard_name, variable.units = standard, units
        variable[:] = values


def add_time(
    file: netCDF4.Dataset, dims: tuple[str, ...], values: Any, calendar: str = "standard", **more: Any
) -> None:
    time = file.createVariable("when", "f8", dims, **more)
    time.standard_name, time.units, time.calendar = "time", "hours since 2001-02-27 00:00:00", calendar
    time[:] = values


def add_humidity(file: netCDF4.Dataset, dims: tuple[str, ...], values: Any) -> None:
    humidity = file.createVariable("wet", "f4", dims, fill_value=-999.9)
    humidity.standard_name, humidity.units, humidity.coordinates = (
        "specific_humidity",
        "g kg-1",
        "when phi lam height label",
    )
    humidity[:] = np.nan_to_num(np.asarray(values), nan=-999.9)


def orthogonal(path: str, calendar: str = "standard") -> None:
    """H.2.1: all stations share their times."""
    with netCDF4.Dataset(path, "w") as file:
        stations_of(file)
        file.createDimension("hour", 4)
        add_time(file, ("hour",), range(4), calendar)
        add_humidity(file, ("place", "hour"), HUMIDITY.T)


def incomplete(path: str, calendar: str = "standard") -> None:
    """H.2.2: every station has its own times, padded to the longest."""
    with netCDF4.Dataset(path, "w") as file:
        stations_of(file)
        file.createDimension("slot", 5)
        times, values = np.full((3, 5), -1.0), np.full((3, 5), np.nan)
        for station, hours in enumerate(OBSERVED):
            times[station, : len(hours)], values[station, : len(hours)] = hours, HUMIDITY[hours, station]
        add_time(file, ("place", "slot"), times, calendar, fill_value=-1.0)
        add_humidity(file, ("place", "slot"), values)


def contiguous(path: str, calendar: str = "standard") -> None:
    """H.2.4: one station after the other; a variable counts the observations of each."""
    with netCDF4.Dataset(path, "w") as file:
        stations_of(file)
        file.createDimension("row", sum(map(len, OBSERVED)))
        counts = file.createVariable("how_many", "i4", ("place",))
        counts.sample_dimension = "row"
        counts[:] = [len(hours) for hours in OBSERVED]
        add_time(file, ("row",), np.concatenate(OBSERVED), calendar)
        add_humidity(file, ("row",), np.concatenate([HUMIDITY[hours, i] for i, hours in enumerate(OBSERVED)]))


def indexed(path: str, calendar: str = "standard") -> None:
    """H.2.5: observations as they came in; a variable numbers the station of each."""
    hours, stations = np.nonzero(~np.isnan(HUMIDITY))
    with netCDF4.Dataset(path, "w") as file:
        stations_of(file)
        file.createDimension("row", None)
        number = file.createVariable("whose", "i4", ("row",))
        number.instance_dimension = "place"
        number[:] = stations
        add_time(file, ("row",), hours, calendar)
        add_humidity(file, ("row",), HUMIDITY[hours, stations])


FORMS = [orthogonal, incomplete, contiguous, indexed]


def opened(write: Callable[..., None], **options: Any) -> xr.Dataset:
    write("series.nc", **options)
    return xr.open_dataset("series.nc", chunks=None, cache=False)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_same_series(form: Callable[..., None]) -> None:
    ds = opened(form)
    assert is_sampling_geometry(ds)
    series = to_stations(ds)
    assert series.wet.dims == ("time", "station") and series.wet.dtype == np.float32
    np.testing.assert_array_equal(series.wet.values, HUMIDITY)
    assert series.station.values.tolist() == NAMES
    assert series.time.values.tolist() == pd.date_range("2001-02-27", periods=4, freq="h").to_numpy("M8[ns]").tolist()
    assert series.wet.attrs["units"] == "g kg-1" and "coordinates" not in series.wet.attrs
    np.testing.assert_array_equal(series.phi.values, np.float32(LATITUDES))
    assert series.phi.dims == series.lam.dims == series.height.dims == ("station",)
    assert series.phi.attrs["standard_name"] == "latitude" and "phi" in series.coords


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_every_form_keeps_its_calendar(form: Callable[..., None], calendar: str) -> None:
    series = to_stations(opened(form, calendar=calendar))
    np.testing.assert_array_equal(series.wet.values, HUMIDITY)
    last = series.indexes["time"][-1]
    assert (last.calendar, last.month, last.day, last.hour) == (calendar, 2, 27, 3)


def test_what_comes_out_goes_in_again() -> None:
    series = to_stations(opened(indexed))
    assert is_sampling_geometry(series)
    xr.testing.assert_identical(to_stations(series).drop_attrs(), series.drop_attrs())


def test_orthogonal_series_are_not_read() -> None:
    series = to_stations(opened(orthogonal))
    assert not series.wet.variable._in_memory


def test_a_gap_in_shared_times_stays_a_gap() -> None:
    series = to_stations(opened(orthogonal).isel(hour=[0, 1, 3]))
    assert series.sizes["time"] == 3 and not series.wet.variable._in_memory


def test_stations_without_names_are_numbered() -> None:
    ds = opened(orthogonal).drop_vars("label")
    assert to_stations(ds).station.values.tolist() == ["0", "1", "2"]


def test_what_is_no_series_is_left_out_by_name() -> None:
    ds = opened(contiguous).load().assign(quality=("row", ["good"] * 10), bands=(("row", "band"), np.zeros((10, 2))))
    series = to_stations(ds)
    assert list(series.data_vars) == ["wet"]
    assert series.attrs["left_out"] == "quality: holds no numbers; bands: has the dimensions row, band"


def test_two_stations_of_one_name_are_refused() -> None:
    ds = opened(indexed).load()
    ds["label"] = ("place", ["a", "b", "a"], {"cf_role": "timeseries_id"})
    refused(ds, "more than one station named 'a'", "assign_coords(label=")


def test_times_first_or_stations_first_are_the_same() -> None:
    ds = opened(orthogonal).load()
    xr.testing.assert_identical(to_stations(ds.transpose("hour", "place", ...)), to_stations(ds))


def test_one_station_without_a_dimension() -> None:
    ds = opened(orthogonal).load().isel(place=1)
    series = to_stations(ds)
    assert series.wet.dims == ("time", "station") and series.station.values.tolist() == ["Rome"]
    np.testing.assert_array_equal(series.wet.values[:, 0], HUMIDITY[:, 1])
    assert series.phi.values.tolist() == [np.float32(41.9)]


def test_a_longer_step_averages_what_was_known_by_then() -> None:
    # Bins end at 00, 02 and 04 o'clock: Oslo has {0}, {10, 20}, {30}; Rome {1}, {21}, {31}; Ürgüp {2}, {12}, {32}.
    series = to_stations(opened(orthogonal), cadence="2h")
    assert series.wet.values.tolist() == [[0, 1, 2], [15, 21, 12], [30, 31, 32]]
    assert [str(hour)[11:13] for hour in series.time.values] == ["00", "02", "04"]


def test_uneven_shared_times_come_onto_an_even_axis() -> None:
    # Three quarters of the times are on the hour; 02:10 counts for 03:00, where (3 + 5) / 2 = 4.
    times = pd.DatetimeIndex(["2001-01-01 00:00", "2001-01-01 01:00", "2001-01-01 02:10", "2001-01-01 03:00"])
    ds = xr.Dataset(
        {"temp": (("site", "n"), [[1.0, 2.0, 3.0, 5.0]])},
        {"when": ("n", times), "site": ["a"]},
        {"featureType": "timeSeries"},
    )
    ds["when"].attrs["standard_name"] = "time"
    ds["site"].attrs["cf_role"] = "timeseries_id"
    series = to_stations(ds)
    np.testing.assert_array_equal(series.temp.values[:, 0], [1.0, 2.0, np.nan, 4.0])
    assert series.attrs["moved_observations"] == 1 and series.attrs["averaged_observations"] == 2


def test_packed_values_are_unpacked() -> None:
    with netCDF4.Dataset("series.nc", "w") as file:
        stations_of(file)
        file.createDimension("row", 2)
        number = file.createVariable("whose", "i4", ("row",))
        number.instance_dimension = "place"
        number[:] = [2, 0]
        add_time(file, ("row",), [0, 1])
        packed = file.createVariable("p", "i2", ("row",), fill_value=-1)
        packed.scale_factor, packed.add_offset = 0.5, 100.0
        packed.set_auto_maskandscale(False)
        packed[:] = [4, -1]  # 100 + 0.5 * 4 = 102, and a missing value
    series = to_stations(xr.open_dataset("series.nc"))
    np.testing.assert_array_equal(series.p.values, [[np.nan, np.nan, 102.0], [np.nan] * 3])


def refused(ds: xr.Dataset, *phrases: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        to_stations(ds, source="buoys.nc", **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and "buoys.nc" in message
    for phrase in phrases:
        assert phrase in message, message


@pytest.mark.parametrize(
    ("feature", "words"), [("trajectory", "trajectories"), ("timeSeriesProfile", "time series of profiles")]
)
def test_what_moves_or_goes_up_is_refused(feature: str, words: str) -> None:
    ds = opened(indexed).assign_attrs(featureType=feature)
    assert is_sampling_geometry(ds)
    refused(ds, words, "fixed stations")


def test_counts_that_do_not_add_up_are_refused() -> None:
    refused(opened(contiguous).isel(row=slice(0, 9)), "counts 10 observations", "has 9")


def test_numbers_of_no_station_are_refused() -> None:
    ds = opened(indexed).load()
    ds["whose"] = ds.whose + 1
    ds["whose"].attrs["instance_dimension"] = "place"
    refused(ds, "numbers a station 3", "there are 3", "subtract 1")


def test_an_observation_without_a_time_is_refused() -> None:
    ds = opened(indexed).load()
    ds["when"] = ds.when.where(np.arange(ds.sizes["row"]) != 4).assign_attrs(standard_name="time")
    refused(ds, "1 observations", "no time", "number 4")


def test_two_values_for_one_time_and_station_are_refused() -> None:
    ds = opened(indexed).load()
    refused(xr.concat([ds, ds.isel(row=[0])], "row", data_vars="minimal"), "1 of 11", "2001-02-27 00:00:00", "Oslo")


def test_more_than_fits_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 observations of 4 bytes are 40 bytes.
    monkeypatch.setattr(sampling_geometry, "LARGEST_BYTES", 39)
    refused(opened(contiguous), "are read into memory", "isel(row=slice(...))")


def test_a_time_far_from_the_others_is_refused_before_memory_runs_out() -> None:
    times = pd.DatetimeIndex(["1700-01-01 00:00:00", "1700-01-01 00:00:01", "2200-01-01"])
    whose = ("row", [0, 0, 0], {"instance_dimension": "site"})
    ds = xr.Dataset({"t": ("row", [1.0, 2.0, 3.0]), "whose": whose}, {"when": ("row", times), "site": ["a"]})
    refused(ds, "one every 1 second", "cadence=", cadence=None)


def test_a_grid_is_no_sampling_geometry() -> None:
    assert not is_sampling_geometry(xr.Dataset({"z": (("time", "lat", "lon"), np.zeros((2, 3, 4)))}))


def test_examples_in_docstrings_hold() -> None:
    result = doctest.testmod(sampling_geometry)
    assert result.attempted > 0 and result.failed == 0
