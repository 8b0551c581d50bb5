"""Tables of sensors: which columns are found, which times they mean, and what is refused with which sentence."""

import builtins
import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.storage import table_channels, table_times, tables
from sciJEPA.storage.tables import is_table, open_table, table_to_dataset


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def opened(text: str, **options: Any) -> xr.Dataset:
    Path("table.csv").write_text(text, encoding="utf-8")
    return open_table("table.csv", **options)


def refused(text: str, *phrases: str, **options: Any) -> None:
    """Opening must fail with a UserError that is one line, names the table and holds every phrase."""
    with pytest.raises(UserError) as caught:
        opened(text, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and "table.csv" in message, message
    for phrase in phrases:
        assert phrase in message, message


def hours(ds: xr.Dataset) -> list[str]:
    return [str(time)[:16] for time in ds.time.values]


# --- shapes of tables

LONG = """station_id,date,lat,lon,elev (ft),temp (degC),hum [%],note
0071,2000-01-01 00:00,60,10.5,12,1,80,fine
0072,2000-01-01 00:00,61,11.5,30,2,,fine
0071,2000-01-01 01:00,60,10.5,12,3,70,rain
0072,2000-01-01 03:00,61,11.5,,4,60,
"""


def test_a_column_of_times_and_one_of_numbers() -> None:
    ds = opened("time,depth\n2000-01-01,1.5\n2000-01-02,2.5\n")
    assert ds.depth.dims == ("time",) and ds.depth.values.tolist() == [1.5, 2.5]


def test_a_long_table_becomes_time_by_station() -> None:
    ds = opened(LONG)
    temperature = ds["temp (degC)"]
    assert temperature.dims == ("time", "station") and ds.station.values.tolist() == ["0071", "0072"]
    nan = np.nan
    np.testing.assert_array_equal(temperature.values, [[1, 2], [3, nan], [nan, nan], [nan, 4]])
    np.testing.assert_array_equal(ds["hum [%]"].values, [[80, nan], [70, nan], [nan, nan], [nan, 60]])
    assert list(ds.data_vars) == ["temp (degC)", "hum [%]"]
    assert temperature.attrs["units"] == "degC" and ds["hum [%]"].attrs["units"] == "%"


def test_places_become_coordinates_of_the_stations() -> None:
    ds = opened(LONG)
    assert ds.lat.dims == ds.lon.dims == ("station",) and ds.lat.values.tolist() == [60, 61]
    assert ds.lat.attrs == {"standard_name": "latitude", "units": "degrees_north"}
    assert ds["elev (ft)"].values.tolist() == [12, 30] and ds["elev (ft)"].attrs["units"] == "ft"


def test_places_that_change_stay_variables() -> None:
    ds = opened("time,lat,t\n2000-01-01,1,2\n2000-01-02,3,4\n")
    assert list(ds.data_vars) == ["lat", "t"]


def test_what_is_left_out_is_named() -> None:
    ds = opened(LONG)
    assert ds.attrs["left_out"] == "note: text"
    json.dumps(ds.attrs)


def test_a_tall_table_has_a_variable_for_each_name() -> None:
    ds = opened(
        "site,time,parameter,value,unit,lat\na,2000-01-01,pm10,1,ug m-3,5\na,2000-01-01,o3,2,ppb,5\n"
        "b,2000-01-01,o3,3,ppb,6\na,2000-01-02,o3,4,ppb,5\n"
    )
    nan = np.nan
    np.testing.assert_array_equal(ds.pm10.values, [[1, nan], [nan, nan]])
    np.testing.assert_array_equal(ds.o3.values, [[2, 3], [4, nan]])
    assert ds.o3.attrs["units"] == "ppb" and ds.lat.values.tolist() == [5, 6]


def test_a_repeated_value_of_a_tall_table_is_refused() -> None:
    refused("time,variable,value\n2000-01-01,t,1\n2000-01-01,t,2\n2000-01-02,t,2\n", "t on 2000-01-01", "is 1 and 2")


def test_the_order_of_rows_is_of_no_account() -> None:
    lines = LONG.splitlines(keepends=True)
    shuffled = opened(lines[0] + "".join(lines[i] for i in (3, 2, 1, 4)))
    xr.testing.assert_identical(shuffled.sel(station=["0071", "0072"]), opened(LONG))


def test_readings_and_counters_are_no_stations() -> None:
    rows = "".join(f"{i},2000-01-{i:02d},{20 + i % 3}\n" for i in range(1, 10))
    ds = opened("id,time,sensor\n" + rows)
    assert dict(ds.sizes) == {"time": 9}


def test_a_counter_that_starts_again_at_each_station_is_no_variable() -> None:
    ds = opened("No,date,site,t\n1,2000-01-01,a,1\n2,2000-01-02,a,2\n1,2000-01-01,b,3\n")
    assert list(ds.data_vars) == ["t"] and ds.attrs["left_out"] == "No: counts the rows"


def test_a_column_may_be_named_by_the_user() -> None:
    text = "when,who,t\n2000-01-01,1,5\n2000-01-01,2,6\n2000-01-02,1,7\n"
    ds = opened(text, time="when", station="who")
    assert ds.station.values.tolist() == ["1", "2"] and ds.t.values[0].tolist() == [5, 6]
    refused(text, "no column 'site'", "when, who, t", station="site")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_and_comments_before_the_header(mark: str) -> None:
    ds = opened("# made by a logger, version 2\ntime,a,b\n2000-01-01,1,2\n2000-01-02,3,4\n".replace(",", mark))
    assert ds.b.values.tolist() == [2, 4]


def test_marks_of_missing_values_are_told_apart_by_the_user() -> None:
    text = "time,t,p\n2000-01-01,1,M\n2000-01-02,-9999,5\n2000-01-03,2,6\n2000-01-04,2,6\n"
    assert "1 of 4 values are no numbers, such as 'M'" in opened(text).attrs["left_out"]
    ds = opened(text, missing=["M", -9999])
    np.testing.assert_array_equal(ds.t.values, [1, np.nan, 2, 2])
    np.testing.assert_array_equal(ds.p.values, [np.nan, 5, 6, 6])


def test_a_name_with_a_slash_can_be_stored() -> None:
    ds = opened("time,wind (m/s),a/b\n2000-01-01,1,2\n2000-01-02,3,4\n")
    assert list(ds.data_vars) == ["wind", "a_b"]
    assert ds.wind.attrs == {"units": "m/s", "long_name": "wind (m/s)"}
    ds.to_netcdf("table.nc")


# --- times


@pytest.mark.parametrize(
    ("header", "first", "second", "options"),
    [
        ("Date Time", "2000-01-31T23:00", "2000-02-01 00:00:00", {}),
        ("date,time", "2000-01-31,23:00", "2000-02-01,00:00", {}),
        ("date,hour", "2000-01-31,23", "2000-01-31,24", {}),
        ("year,month,day,hour", "2000,1,31,23", "2000,2,1,0", {}),
        ("date", "31.01.2000 23:00", "01.02.2000 00:00", {}),
        ("date", "31/01/2000 23:00:00", "01/02/2000 00:00:00", {}),
        ("date", "2000/1/31 23:00", "2000/2/1 0:00", {}),
        ("Unnamed: 0", "2000-01-31 23:00", "2000-02-01 00:00", {}),
        ("date", "01/31/2000 11:00 PM", "02/01/2000 12:00 AM", {}),
        ("date", "31 Jan 2000 23h", "01 Feb 2000 00h", {"time_format": "%d %b %Y %Hh"}),
        ("timestamp", "949359600", "949363200", {"time_format": "seconds since 1970-01-01"}),
        ("time [hours since 2000-01-31]", "23", "24", {}),
        ("stamp", "2000013123", "2000020100", {"time": "stamp", "time_format": "%Y%m%d%H"}),
        ("timestamp,time_utc", "949359600,2000-01-31 23:00Z", "949363200,2000-02-01 00:00Z", {}),
        ("time", "2000-02-01T01:00+02:00", "2000-02-01T01:00+01:00", {}),
    ],
)
def test_times_are_read_as_they_are_written(header: str, first: str, second: str, options: dict[str, Any]) -> None:
    # The last: clocks were put back by an hour, and in UTC an hour has passed.
    ds = opened(f"{header},t\n{first},1\n{second},2\n", **options)
    assert hours(ds) == ["2000-01-31T23:00", "2000-02-01T00:00"] and ds.t.values.tolist() == [1, 2]
    assert list(ds.data_vars) == ["t"]


def test_time_zones_become_utc_and_the_attributes_say_so() -> None:
    assert opened("time,t\n2000-01-01T00:00Z,1\n2000-01-02T00:00Z,1\n").attrs["time_zone"].startswith("UTC")
    assert opened("time,t\n2000-01-01T00:00,1\n2000-01-02T00:00,1\n").attrs["time_zone"].startswith("none stated")
    local = pd.date_range("2000-07-01", periods=2, tz="America/New_York")
    ds = table_to_dataset(pd.DataFrame({"t": [1.0, 2.0]}, index=local))
    assert hours(ds)[0] == "2000-07-01T04:00" and "America/New_York" in ds.attrs["time_zone"]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("time,t\n01/02/2000,1\n02/02/2000,2\n", ("the day or the month first", "time_format=")),
        ("time,t\n949359600,1\n949363200,2\n", ("949359600", "since 1970-01-01")),
        ("time,t\n2000-01-01,1\nyesterday,2\n", ("1 of 2", "'yesterday'", "row 1")),
        ("time,t\n2000-01-01,1\n,2\n", ("1 of 2 rows", "no time", "row 1")),
        ("time,t\n2000-01-01 00:00Z,1\n2000-01-01 01:00,2\n", ("1 of 2", "time zone")),
        ("year,month,day,t\n2000,2,29,1\n2001,2,29,2\n", ("day 29 of month 2 of 2001",)),
        ("year,month,day,t\n2000,2,29,1\n2001,13,29,2\n", ("from 1 to 12", "row 1 holds")),
        ("a,b\n1,2\n3,4\n", ("no column of times", "a, b", "time=")),
        ("time,t\n", ("without rows",)),
        ("", ("empty",)),
        ("time,t\n2000-01-01,wet\n2000-01-02,dry\n", ("no column with a channel of numbers", "t: text")),
        ("time;t\n2000-01-01;1,5\n2000-01-02;2,5\n", ("decimal comma",)),
        ("time,site,t\n2000-01-01,a,1\n2000-01-02,,2\n", ("1 of 2 rows", "no station in column 'site'")),
    ],
)
def test_what_cannot_be_told_is_refused(text: str, phrases: tuple[str, ...]) -> None:
    refused(text, *phrases)


# --- rows for one time and station

TWICE = "site,time,t\na,2000-01-01,1\na,2000-01-01,1\na,2000-01-02,3\na,2000-01-02,5\n"


def test_equal_rows_are_dropped_and_different_ones_refused() -> None:
    ds = opened("".join(TWICE.splitlines(keepends=True)[:4]))
    assert ds.t.values.tolist() == [[1], [3]] and ds.attrs["dropped_duplicates"] == 1
    refused(TWICE, "1 row repeats", "2000-01-02 00:00:00 at station a is 3 and 5", 'duplicates="mean"')


@pytest.mark.parametrize(("how", "value"), [("mean", 4), ("first", 3), ("last", 5)])
def test_the_user_decides_between_different_values(how: str, value: float) -> None:
    assert opened(TWICE, duplicates=how).t.values.tolist() == [[1], [value]]


def test_a_longer_step_is_no_permission_to_choose() -> None:
    refused(TWICE, "1 row repeats", cadence="2D")


def test_a_table_of_several_stations_without_their_column_says_so() -> None:
    refused("time,mast,t\n2000-01-01,1,5\n2000-01-01,2,6\n", "mast", "pass station=")


# --- files


def test_parquet_and_csv_give_the_same() -> None:
    expected = opened(LONG)
    frame = pd.read_csv("table.csv", dtype={"station_id": str}).assign(date=lambda f: pd.to_datetime(f["date"]))
    frame.to_parquet("table.parquet")
    xr.testing.assert_identical(open_table("table.parquet"), expected)
    frame.set_index(["date", "station_id"]).to_parquet("indexed.parquet")
    xr.testing.assert_identical(open_table("indexed.parquet"), expected)


def test_types_of_parquet_that_know_missing_values() -> None:
    frame = pd.DataFrame({"time": pd.date_range("2000", periods=3)})
    frame["count"] = pd.array([1, None, 3], dtype="Int64")
    frame["single"] = np.array([1, np.nan, 3], np.float32)
    frame["flag"] = [True, False, True]
    frame.to_parquet("table.parquet")
    ds = open_table("table.parquet")
    np.testing.assert_array_equal(ds["count"].values, [1, np.nan, 3])
    assert ds.single.dtype == np.float32 and ds.attrs["left_out"] == "flag: true or false"


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, *args: Any, _import: Any = builtins.__import__, **kwargs: Any) -> Any:
        if name == "pyarrow":
            raise ImportError(name)
        return _import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "sciJEPA\[tables\]"'):
        open_table("table.parquet")


def test_compressed_tables_open() -> None:
    pd.DataFrame({"time": ["2000-01-01", "2000-01-02"], "t": [1.0, 2.0]}).to_csv("table.csv.gz", index=False)
    assert is_table("table.csv.gz") and open_table("table.csv.gz").t.values.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "phrase"), [(None, "does not exist"), (b"PAR1 and nothing more", "cannot be read")]
)
def test_files_that_are_not_there_or_damaged(content: bytes | None, phrase: str) -> None:
    if content is not None:
        Path("table.parquet").write_bytes(content)
    with pytest.raises(UserError, match=phrase):
        open_table("table.parquet")


def test_five_hundred_stations() -> None:
    # 500 stations x 200 hours = 100,000 rows, in any order.
    times = np.tile(pd.date_range("2000", periods=200, freq="h"), 500)
    frame = pd.DataFrame({"time": times.astype(str), "station": np.repeat(np.arange(500), 200)})
    frame["t"], frame["p"] = np.arange(100_000.0), 1.0
    frame.sample(frac=1, random_state=0).to_csv("table.csv", index=False)
    ds = open_table("table.csv")
    assert dict(ds.sizes) == {"time": 200, "station": 500}
    # Station s has the values 200 s + hour.
    values = ds.t.sel(station=[str(number) for number in range(500)]).values
    np.testing.assert_array_equal(values, np.arange(100_000.0).reshape(500, 200).T)


# --- files that exist


def test_electricity_transformer(shared_data: Path) -> None:
    path = shared_data / "sensors/ETTh1.csv"
    ds, frame = open_table(path), pd.read_csv(path)
    assert dict(ds.sizes) == {"time": 17420} and ds.attrs["cadence"] == "1 hour"
    assert list(ds.data_vars) == frame.columns.tolist()[1:]
    for name in ds.data_vars:
        np.testing.assert_array_equal(ds[name].values, frame[name].to_numpy())


def test_weather_at_three_airports(shared_data: Path) -> None:
    path = shared_data / "sensors/nyc_weather2013.csv"
    ds, frame = open_table(path), pd.read_csv(path)
    # From 06 UTC on 1 January to 23 UTC on 30 December: 363 days of 24 hours and 18 hours.
    assert dict(ds.sizes) == {"time": 363 * 24 + 18, "station": 3} and ds.station.values.tolist() == [
        "EWR",
        "JFK",
        "LGA",
    ]
    assert ds.attrs["moved_observations"] == 0 and ds.attrs["time_zone"].startswith("UTC")
    expected = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
    assert list(ds.data_vars) == expected
    for name in expected:
        assert int(ds[name].notnull().sum()) == frame[name].notna().sum()
        assert float(ds[name].sum()) == pytest.approx(frame[name].sum(), rel=1e-12)
    row = frame.iloc[12345]
    assert float(ds.pressure.sel(time=row.time_hour.removesuffix("Z"), station=row.origin)) == row.pressure


def test_a_machine_with_an_hour_told_twice(shared_data: Path) -> None:
    path = shared_data / "sensors/nab_machine_temperature.csv"
    with pytest.raises(UserError, match="12 rows repeat the time"):
        open_table(path)
    ds = open_table(path, duplicates="first")
    assert ds.attrs["cadence"] == "5 minutes" and int(ds["value"].notnull().sum()) == 22695 - 12


@pytest.mark.parametrize("module", [tables, table_times, table_channels])
def test_examples_in_docstrings_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
