"""Archives: what opens, what is read, and what is refused with which sentence."""

import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from sciJEPA.archive import Archive, Channel, open_archive
from sciJEPA.errors import UserError

SHARED = Path(os.environ.get("SCIJEPA_SHARED", Path(__file__).parents[2] / "shared" / "data"))
STEPS, ROWS, COLUMNS = 10, 4, 8


def small_dataset(steps: int = STEPS, levels: tuple[float, ...] = ()) -> xr.Dataset:
    """A field z whose value at (t, l, i, j) is 1000 t + 100 l + 10 i + j, and a static mask."""
    t, i, j = np.arange(steps), np.arange(ROWS), np.arange(COLUMNS)
    values = (1000.0 * t[:, None, None] + 10.0 * i[:, None] + j).astype(np.float32)
    coords = {"time": pd.date_range("2000-01-01", periods=steps), "lat": 60.0 - 40.0 * i, "lon": 45.0 * j}
    dims = ("time", "lat", "lon")
    if levels:
        values = values[:, None] + 100.0 * np.arange(len(levels), dtype=np.float32)[:, None, None]
        coords["level"], dims = np.array(levels), ("time", "level", "lat", "lon")
    mask = xr.DataArray(np.ones((ROWS, COLUMNS)), dims=("lat", "lon"))
    return xr.Dataset({"z": (dims, values, {"units": "m"}), "land": mask}, coords)


def write_zarr(ds: xr.Dataset, path: Path, chunks: int = 4, **options: Any) -> str:
    chunking = {"chunks": [chunks if dim == "time" else ds.sizes[dim] for dim in ds.z.dims]} | options.pop("z", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.to_zarr(path, mode="w", encoding={"z": chunking}, **options)
    return str(path)


def refused(source: Any, *phrases: str, **options: Any) -> UserError:
    """Opening must fail with a UserError that is one line and holds every phrase."""
    with pytest.raises(UserError) as caught:
        open_archive(source, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for phrase in phrases:
        assert phrase in message, message
    return caught.value


def test_read_returns_the_requested_steps() -> None:
    # z(t=3, i=2, j=5) = 3000 + 20 + 5
    assert open_archive(small_dataset()).read(3, 4)[0, 0, 2, 5] == 3025.0


def test_attributes_of_a_small_archive() -> None:
    archive = open_archive(small_dataset())
    assert archive.axes == {"time": "time", "latitude": "lat", "longitude": "lon"}
    assert archive.variables == ("z",) and archive.channels == (Channel(variable="z", units="m"),)
    assert len(archive) == STEPS and archive.cadence == 24.0 and archive.calendar == "standard"
    assert archive.hours.tolist() == [24.0 * step for step in range(STEPS)]
    assert archive.latitude.tolist() == [60.0, 20.0, -20.0, -60.0] and archive.periodic
    assert archive.source == "<memory>" and archive.chunk_steps == STEPS
    assert isinstance(archive.time, pd.DatetimeIndex)


def test_repr_names_steps_span_and_channels() -> None:
    archive = open_archive(small_dataset())
    assert repr(archive) == "<Archive <memory>: 10 steps of 1 day, 2000-01-01 to 2000-01-10, 1 channels on 4 x 8 grid>"
    assert archive._repr_html_().startswith("<details><summary>&lt;Archive")


def test_channel_names() -> None:
    assert Channel(variable="z").name == "z"
    assert Channel(variable="z", level=500.0).name == "z@500"
    assert Channel(variable="z", level=92.5).name == "z@92.5"


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2, "consolidated": True},
        {"zarr_format": 2, "consolidated": False},
        {"zarr_format": 3, "consolidated": True},
        {"zarr_format": 3, "consolidated": False},
        {"zarr_format": 3, "consolidated": False, "z": {"chunks": (2, ROWS, COLUMNS), "shards": (4, ROWS, COLUMNS)}},
    ],
    ids=["v2", "v2-unconsolidated", "v3", "v3-unconsolidated", "v3-sharded"],
)
def test_every_zarr_reads_like_memory(tmp_path: Path, options: dict) -> None:
    ds = small_dataset()
    archive = open_archive(write_zarr(ds, tmp_path / "a.zarr", **options))
    assert archive.format == f"zarr{options['zarr_format']}"
    assert archive.chunk_steps == 4  # the shard where there is one, else the chunk
    assert archive.ds.z.chunks is None  # no dask
    np.testing.assert_array_equal(archive.read(3, 9), open_archive(ds).read(3, 9))


@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT"])
def test_every_netcdf_reads_like_memory(tmp_path: Path, kind: str) -> None:
    ds, path = small_dataset(), tmp_path / "a.nc"
    ds.to_netcdf(path, format=kind)
    archive = open_archive(path)
    assert archive.format == "netcdf" and archive.chunk_steps == 1 and archive.ds.z.chunks is None
    np.testing.assert_array_equal(archive.read(0, STEPS), open_archive(ds).read(0, STEPS))


@pytest.mark.parametrize("pattern", ["", "/part_*.nc"])
def test_folder_of_files_is_joined_in_time(tmp_path: Path, pattern: str) -> None:
    ds = small_dataset()
    # Names in the opposite order of the times: the times decide.
    ds.isel(time=slice(0, 4)).to_netcdf(tmp_path / "part_b.nc")
    ds.isel(time=slice(4, None)).to_netcdf(tmp_path / "part_a.nc")
    archive = open_archive(f"{tmp_path}{pattern}")
    assert archive.format == "netcdf folder" and len(archive) == STEPS
    np.testing.assert_array_equal(archive.read(2, 7), open_archive(ds).read(2, 7))


def test_folder_reads_pieces_and_not_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One step of z is 4 x 8 x 4 bytes = 128 bytes, so pieces of 400 bytes hold three steps.
    monkeypatch.setattr("sciJEPA.storage.stores.BYTES_PER_PIECE", 400)
    small_dataset().to_netcdf(tmp_path / "a.nc", unlimited_dims=[])
    assert open_archive(tmp_path).chunk_steps == 3


def test_dask_reads_on_the_calling_thread() -> None:
    threads: set[int] = set()

    def remember(block: xr.DataArray) -> xr.DataArray:
        threads.add(threading.get_ident())
        return block

    ds = small_dataset()
    lazy = ds.chunk({"time": 3})
    lazy["z"] = lazy.z.map_blocks(remember, template=lazy.z)
    threads.clear()
    np.testing.assert_array_equal(open_archive(lazy).read(2, 5), open_archive(ds).read(2, 5))
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("storage", ["zarr", "netcdf", "folder"])
def test_threads_may_read_at_once(tmp_path: Path, storage: str) -> None:
    ds = small_dataset(steps=40)
    path = tmp_path / {"zarr": "a.zarr", "netcdf": "a.nc", "folder": "a.nc"}[storage]
    if storage == "zarr":
        write_zarr(ds, path)
    else:
        ds.to_netcdf(path)
    archive = open_archive(tmp_path if storage == "folder" else path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: archive.read(start, start + 3), range(30)))
    # z(t, 0, 0) = 1000 t
    assert [values[0, 0, 0, 0] for values in found] == [1000.0 * start for start in range(30)]


def test_dataarray_opens_by_its_name() -> None:
    assert open_archive(small_dataset().z).variables == ("z",)
    refused(small_dataset().z.rename(None), "no name", "da.rename")


def test_archive_passes_through_and_can_be_narrowed() -> None:
    ds = small_dataset().assign(q=lambda ds: ds.z + 1)
    archive = open_archive(ds)
    assert open_archive(archive) is archive
    # The order of the request is the order of the channels.
    assert open_archive(archive, variables=["q", "z"]).variables == ("q", "z")
    narrow = open_archive(archive, variables=["q"])
    np.testing.assert_array_equal(narrow.read(0, 2), archive.read(0, 2)[:, 1:])


@pytest.mark.parametrize("order", [("time", "lon", "lat"), ("lon", "lat", "time"), ("lat", "time", "lon")])
def test_storage_order_is_invisible(tmp_path: Path, order: tuple[str, ...]) -> None:
    ds = small_dataset()
    path = tmp_path / "a.zarr"
    write_zarr(ds.transpose(*order), path)
    values = open_archive(path).read(1, 3)
    np.testing.assert_array_equal(values, open_archive(ds).read(1, 3))
    assert values.flags.c_contiguous and values.dtype == np.float32


def test_weatherbench_layout_with_levels() -> None:
    # WeatherBench 2: time, level, longitude, latitude; levels become channels, one-level variables follow.
    ds = small_dataset(levels=(500.0, 850.0)).transpose("time", "level", "lon", "lat")
    ds["t2m"] = ds.z.isel(level=0, drop=True) + 7
    archive = open_archive(ds)
    assert [channel.name for channel in archive.channels] == ["z@500", "z@850", "t2m"]
    # z(t=2, l=1, i=3, j=6) = 2000 + 100 + 30 + 6, and t2m there is z at level 0, plus 7: 2000 + 30 + 6 + 7
    assert archive.read(2, 3)[0, :, 3, 6].tolist() == [2036.0, 2136.0, 2043.0]


def test_dimensions_of_length_one_are_dropped() -> None:
    ds = small_dataset()
    ds["z"] = ds.z.expand_dims(expver=[1], axis=1)
    np.testing.assert_array_equal(open_archive(ds).read(0, 2), open_archive(small_dataset()).read(0, 2))


@pytest.mark.parametrize(
    "names", [("Time", "LAT", "LON"), ("valid_time", "latitude", "longitude"), ("t", "lats", "long")]
)
def test_usual_names_in_any_case(names: tuple[str, str, str]) -> None:
    ds = small_dataset().rename(dict(zip(("time", "lat", "lon"), names, strict=True)))
    assert tuple(open_archive(ds).axes.values()) == names


def test_cf_attributes_go_before_names() -> None:
    ds = small_dataset().rename(time="when", lat="phi", lon="lam")
    ds.when.attrs["axis"], ds.phi.attrs["standard_name"] = "T", "latitude"
    ds.lam.attrs["units"] = "degrees_east"
    assert open_archive(ds).axes == {"time": "when", "latitude": "phi", "longitude": "lam"}


def test_coordinates_named_unlike_their_dimension() -> None:
    ds = small_dataset().rename_dims(lat="y", lon="x")
    archive = open_archive(ds)
    assert archive.axes["latitude"] == "y" and archive.latitude[0] == 60.0
    assert archive.read(0, 1).shape == (1, 1, ROWS, COLUMNS)


@pytest.mark.parametrize(
    ("longitude", "periodic"),
    [
        (np.arange(0.0, 360.0, 3.75), True),
        (np.arange(-180.0, 180.0, 2.5), True),
        ((np.arange(0.0, 360.0, 45.0) + 200.0) % 360.0, True),  # the seam lies inside the array
        (np.round(np.arange(0.0, 360.0, 3.75), 1), True),  # coordinates with one decimal
        (np.arange(0.0, 359.0, 0.5), False),  # 718 of 720 columns: within half a percent, yet two are missing
        (np.arange(-70.0, 12.5, 2.5), False),
        (np.array([10.0]), False),
    ],
)
def test_periodic(longitude: np.ndarray, periodic: bool) -> None:
    coords = {"time": pd.date_range("2000", periods=2), "lat": [0.0, 1.0], "lon": longitude}
    field = xr.DataArray(np.zeros((2, 2, len(longitude))), coords, ("time", "lat", "lon"), name="z")
    assert open_archive(field).periodic is periodic


def test_packed_integers_and_missing_values(tmp_path: Path) -> None:
    ds = small_dataset()
    ds["z"][2, 1, 3] = np.nan
    packing = {"dtype": "int16", "scale_factor": 0.5, "add_offset": 100.0, "_FillValue": -32768}
    ds.to_netcdf(tmp_path / "a.nc", encoding={"z": packing})
    values = open_archive(tmp_path / "a.nc").read(0, STEPS)
    assert np.isnan(values[2, 0, 1, 3]) and np.isnan(values).sum() == 1
    # Whole numbers are multiples of the scale 0.5, so packing loses nothing.
    np.testing.assert_array_equal(values, open_archive(ds).read(0, STEPS))


def test_missing_value_attribute_becomes_nan(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, values in (("time", [0.0, 1.0]), ("lat", [0.0, 1.0]), ("lon", [0.0, 1.0, 2.0])):
            file.createDimension(name, len(values))
            file.createVariable(name, "f8", (name,))[:] = values
        file["time"].units = "days since 2001-01-01"
        z = file.createVariable("z", "f4", ("time", "lat", "lon"))
        z.missing_value = np.float32(-999)
        z[:] = -999.0
        z[1, 1, 1] = 4.0
    values = open_archive(tmp_path / "a.nc").read(0, 2)
    assert np.isnan(values).sum() == 11 and values[1, 0, 1, 1] == 4.0


@pytest.mark.parametrize("calendar", ["360_day", "noleap", "standard"])
def test_calendars(tmp_path: Path, calendar: str) -> None:
    ds = small_dataset(steps=4)
    ds["time"] = xr.date_range("2000-02-27", periods=4, calendar=calendar, use_cftime=True)
    ds.to_netcdf(tmp_path / "a.nc")
    archive = open_archive(tmp_path / "a.nc")
    assert archive.calendar == calendar and archive.cadence == 24.0
    assert isinstance(archive.time, pd.DatetimeIndex if calendar == "standard" else xr.CFTimeIndex)
    # The day after the 28th: February has 30 days, 28 days or (leap year) 29 days.
    assert (
        str(archive.time[2])[:10]
        == {"360_day": "2000-02-29", "noleap": "2000-03-01", "standard": "2000-02-29"}[calendar]
    )


def test_a_thousand_years_do_not_overflow() -> None:
    ds = small_dataset(steps=2)
    ds["time"] = xr.date_range("0001-01-01", periods=2, freq="1000YS", calendar="noleap", use_cftime=True)
    assert open_archive(ds).hours[1] == 1000 * 365 * 24.0


def test_monthly_cadence_is_the_median() -> None:
    ds = small_dataset(steps=12)
    ds["time"] = pd.date_range("2001-01-01", periods=12, freq="MS")
    # Steps in 2001: 31 28 31 30 31 30 31 31 30 31 30 days, the median is 31 days = 744 hours.
    assert open_archive(ds).cadence == 744.0 and "1 month" in repr(open_archive(ds))


@pytest.mark.parametrize(
    ("attributes", "cadence"),
    [({}, 48.0), ({"units": "hours"}, 2.0), ({"units": "days"}, 48.0), ({"units": "months since 1979-01-01"}, 1461.0)],
)
def test_numeric_time(tmp_path: Path, attributes: dict[str, str], cadence: float) -> None:
    # Steps of 2: without known units they count as days (48 hours); a mean month has 730.5 hours.
    ds = small_dataset()
    ds["time"] = ("time", 2 * np.arange(STEPS), attributes)
    ds.to_netcdf(tmp_path / "a.nc")
    for archive in (open_archive(ds), open_archive(tmp_path / "a.nc")):
        assert archive.calendar == "none" and archive.cadence == cadence
        assert archive.time.tolist() == list(range(0, 20, 2))


def test_undecoded_dates_in_memory_are_decoded() -> None:
    ds = small_dataset()
    ds["time"] = ("time", np.arange(STEPS), {"units": "days since 1979-01-01"})
    archive = open_archive(ds)
    assert archive.time[1] == pd.Timestamp("1979-01-02") and archive.calendar == "standard"
    assert archive.ds.time.dtype.kind == "M"  # the dataset agrees with the index


def test_time_without_values_counts_steps() -> None:
    archive = open_archive(small_dataset().drop_vars("time"))
    assert archive.calendar == "none" and archive.time.tolist() == list(range(STEPS))


def test_lead_times_count_in_hours() -> None:
    ds = small_dataset()
    ds["time"] = pd.timedelta_range("0h", periods=STEPS, freq="6h")
    assert open_archive(ds).cadence == 6.0 and open_archive(ds).calendar == "none"


def test_reading_is_bounded_to_the_requested_steps(tmp_path: Path) -> None:
    path = write_zarr(small_dataset(steps=12), tmp_path / "a.zarr")
    archive = open_archive(path)
    # Chunks of 4 steps: with chunks 0 and 2 spoiled, chunk 1 (steps 4 to 7) must still read.
    for chunk in (0, 2):
        (tmp_path / "a.zarr" / "z" / "c" / str(chunk) / "0" / "0").write_bytes(b"garbage")
    assert archive.read(4, 8)[0, 0, 0, 0] == 4000.0


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 1), (0, STEPS + 1)])
def test_read_checks_bounds(start: int, stop: int) -> None:
    with pytest.raises(UserError, match=rf"steps {start} to {stop} of <memory>.*0 <= start < stop <= 10"):
        open_archive(small_dataset()).read(start, stop)


def test_archive_survives_pickling(tmp_path: Path) -> None:
    archive = open_archive(write_zarr(small_dataset(), tmp_path / "a.zarr"))
    copy = pickle.loads(pickle.dumps(archive))
    np.testing.assert_array_equal(copy.read(0, 2), archive.read(0, 2))


def test_import_is_light() -> None:
    slow = "('torch', 'dask', 'cf_xarray', 'zarr', 'matplotlib')"
    code = f"import sys, sciJEPA.archive; print([name for name in {slow} if name in sys.modules])"
    root = Path(__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True).strip() == "[]"


# What is refused ------------------------------------------------------------------------------------------------------


def test_path_missing_suggests_names_like_it(tmp_path: Path) -> None:
    write_zarr(small_dataset(), tmp_path / "era5.zarr")
    refused(tmp_path / "era6.zarr", "does not exist", "did you mean", "era5.zarr")
    refused(tmp_path / "nowhere" / "era5.zarr", f"{tmp_path} exists, but has no nowhere")
    refused(f"{tmp_path}/*.nc", "no file matches")


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("notes.txt", b"time,z\n", "no archive that we know"),
        ("a.grib", b"GRIB\x00\x00\x00\x02", "GRIB file"),
        ("a.nc", b"<html>404</html>", "is damaged: it begins with b'<html>40'"),
        ("empty.nc", b"", "is damaged: it is empty"),
    ],
)
def test_files_that_are_no_archive(tmp_path: Path, name: str, content: bytes, phrase: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, phrase)


def test_folders_that_are_no_archive(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    refused(tmp_path / "empty.zarr", "has neither zarr.json nor .zgroup")
    write_zarr(small_dataset(), tmp_path / "data" / "era5.zarr")
    refused(tmp_path / "data", "folder without NetCDF files", "did you mean", "era5.zarr")
    refused(tmp_path / "data" / "era5.zarr" / "z", "cannot be opened")
    refused(42, "cannot open a int")


def test_damaged_metadata(tmp_path: Path) -> None:
    path = write_zarr(small_dataset(), tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "zarr.json").write_text("{ not json")
    assert refused(path, "cannot be opened", "damaged").__cause__ is not None


@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_CLASSIC"])
def test_truncated_netcdf(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.nc"
    small_dataset(steps=400).to_netcdf(path, format=kind)
    os.truncate(path, path.stat().st_size // 2)
    refused(path, str(path), "cannot be opened" if kind == "NETCDF4" else "is truncated")


def test_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    small_dataset().to_netcdf(tmp_path / "a.nc")
    (tmp_path / "b.nc").write_bytes(b"nothing")
    refused(tmp_path, str(tmp_path / "b.nc"), "is damaged")


def test_folder_whose_grids_differ(tmp_path: Path) -> None:
    ds = small_dataset()
    ds.isel(time=slice(0, 4)).to_netcdf(tmp_path / "a.nc")
    ds.isel(time=slice(4, None)).assign_coords(lon=ds.lon + 1).to_netcdf(tmp_path / "b.nc")
    refused(tmp_path, "2 files that do not fit together", "make their grids and variables agree")


def test_folder_whose_times_overlap(tmp_path: Path) -> None:
    ds = small_dataset()
    ds.isel(time=slice(0, 6)).to_netcdf(tmp_path / "a.nc")
    ds.isel(time=slice(4, None)).to_netcdf(tmp_path / "b.nc")
    # Step 5 is 6 January and ends the first file; step 6 is 5 January and begins the second.
    refused(tmp_path, "not sorted", "step 5 (2000-01-06) comes before step 6 (2000-01-05)")


def test_no_time_axis() -> None:
    refused(small_dataset().rename(time="run"), "no time axis", "run (10), lat (4), lon (8)")
    refused(small_dataset().isel(time=0), "no time axis", "ds.expand_dims")


def test_no_latitude_or_longitude() -> None:
    refused(small_dataset().rename(lat="y"), "no latitude axis", "y (4)", 'standard_name="latitude"')
    refused(small_dataset().drop_vars("lon"), "no longitude axis")


def test_curvilinear_grid() -> None:
    ds = small_dataset().rename(lat="y", lon="x").drop_vars(["y", "x"])
    north, east = np.meshgrid([0.0, 1.0, 2.0, 3.0], np.arange(8.0), indexing="ij")
    tilted = ds.assign_coords(lat=(("y", "x"), north + 0.1 * east), lon=(("y", "x"), east - 0.1 * north))
    archive = open_archive(tilted)
    assert archive.space.curvilinear and archive.latitude.shape == (ROWS, COLUMNS) and not archive.periodic
    np.testing.assert_array_equal(archive.read(0, 2)[:, 0], ds.z.values[:2])
    # Cells of 1 by 1 degree: their area falls with the cosine of latitude, by less than 1 % over 4 degrees.
    np.testing.assert_allclose(archive.space.weights, 1, atol=0.01)
    refused(ds.assign_coords(lat=(("y", "x"), np.full((ROWS, COLUMNS), np.nan)), lon=tilted.lon), "finite degrees")


def test_unsorted_times_name_the_first_pair() -> None:
    ds = small_dataset().isel(time=[0, 1, 4, 3, 2])
    refused(ds, "step 2 (2000-01-05) comes before step 3 (2000-01-04)", 'ds.sortby("time")')
    assert len(open_archive(ds.sortby("time"))) == 5  # the fix that the message gives


def test_duplicate_times_are_counted() -> None:
    ds = small_dataset().isel(time=[0, 1, 1, 2, 2, 2])
    refused(ds, "3 of 6 times", "the first of them 2000-01-02", 'ds.drop_duplicates("time")')
    assert len(open_archive(ds.drop_duplicates("time"))) == 3


def test_missing_times() -> None:
    ds = small_dataset()
    times = ds.time.values.copy()
    times[3] = np.datetime64("NaT")
    ds["time"] = times
    refused(ds, "1 of 10 times", "(NaT), the first at step 3", 'ds.isel(time=ds["time"].notnull())')
    assert len(open_archive(ds.isel(time=ds["time"].notnull()))) == STEPS - 1


def test_text_as_time() -> None:
    ds = small_dataset()
    ds["time"] = [str(day)[:10] for day in ds.time.values]
    refused(ds, "'2000-01-01'", "pd.to_datetime")


def test_fewer_than_two_steps() -> None:
    refused(small_dataset(steps=1), "has 1 time step along time, but at least 2 are needed")


def test_variable_absent() -> None:
    ds = small_dataset().assign(geopotential=lambda ds: ds.z)
    refused(ds, "no variable 'geopotental'", "did you mean geopotential?", "z, geopotential", variables=["geopotental"])
    refused(ds, "variables is empty", variables=[])


def test_variable_that_is_not_gridded() -> None:
    ds = small_dataset()
    ds["ensemble"] = ds.z.expand_dims(member=3)
    refused(ds, "land of <memory>", "lacks dimension time (it has lat, lon)", variables=["land"])
    refused(ds, "further dimension member of size 3: use ds.isel(member=0)", variables=["z", "ensemble"])


def test_no_gridded_variable() -> None:
    refused(small_dataset().drop_vars("z"), "no variable of <memory>", "land lacks dimension time")
    text = small_dataset().assign(z=lambda ds: ds.z.astype(str))
    refused(text, "z has dtype", "not numbers")


@pytest.mark.parametrize(
    ("coords", "phrase"),
    [
        ({"lat": [95.0, 60.0, 30.0, 0.0]}, "within -90 to 90"),
        ({"lat": [60.0, 0.0, 30.0, -30.0]}, "neither rises nor falls"),
        ({"lon": np.linspace(0.0, 360.0, COLUMNS)}, "ds.isel(lon=slice(0, -1))"),
        ({"lat": ("lat", [0.3, 0.2, 0.1, 0.0], {"units": "radians"})}, "np.rad2deg"),
        ({"lat": [np.nan, 60.0, 30.0, 0.0]}, "finite degrees"),
    ],
)
def test_grids_that_make_no_sense(coords: dict, phrase: str) -> None:
    refused(small_dataset().assign_coords(coords), "of <memory>", phrase)


# Damage that shows only on reading ------------------------------------------------------------------------------------


def test_garbage_in_a_chunk_names_variable_and_steps(tmp_path: Path) -> None:
    path = write_zarr(small_dataset(), tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "z" / "c" / "1" / "0" / "0").write_bytes(b"garbage")
    archive = open_archive(path)
    archive.read(0, 4)  # chunk 0 is fine
    with pytest.raises(
        UserError, match=r"cannot read z of .*a\.zarr at time steps 3 to 5 \(2000-01-04 to 2000-01-06\)"
    ) as caught:
        archive.read(3, 6)
    assert caught.value.__cause__ is not None and "\n" not in str(caught.value)


def test_garbage_in_a_netcdf_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    ds = small_dataset(steps=200)
    ds["z"] += np.random.default_rng(0).normal(size=ds.z.shape).astype("f4")
    ds.to_netcdf(path, encoding={"z": {"zlib": True, "fletcher32": True, "chunksizes": (50, ROWS, COLUMNS)}})
    content = bytearray(path.read_bytes())
    # The compressed chunks are nearly all of the file: a stretch in the middle lies inside one of them.
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    archive = open_archive(path)
    with pytest.raises(UserError, match="cannot read z of"):
        for start in range(0, 200, 50):
            archive.read(start, start + 50)


def test_vanished_zarr_does_not_read_as_missing_values(tmp_path: Path) -> None:
    # To Zarr an absent chunk means "all fill value": without a check a lost mount would train on nothing.
    archive = open_archive(write_zarr(small_dataset(), tmp_path / "a.zarr"))
    shutil.rmtree(tmp_path / "a.zarr")
    with pytest.raises(UserError, match="cannot read z of"):
        archive.read(0, 2)


@pytest.mark.parametrize("folder", [False, True])
def test_netcdf_truncated_after_opening_does_not_read_as_zeros(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "a.nc"
    small_dataset(steps=100).to_netcdf(path)
    archive = open_archive(tmp_path if folder else path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=r"cannot read z of .* bytes when it was opened"):
        archive.read(98, 100)


# Real archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "cadence", "shape", "periodic"),
    [
        ("speedy_t31_daily.zarr", 720, 24.0, (9, 48, 96), True),
        ("ncep_slp_natl_daily_2001_2010.nc", 3652, 24.0, (1, 17, 33), False),
        ("sst_anomaly_global_monthly_1979_2013.nc", 420, 744.0, (1, 48, 96), True),
    ],
)
def test_real_archives(name: str, steps: int, cadence: float, shape: tuple[int, ...], periodic: bool) -> None:
    path = SHARED / "climate" / name
    if not path.exists():
        pytest.skip(f"{path} is not at hand; set SCIJEPA_SHARED to the folder of shared data")
    archive = open_archive(path)
    assert isinstance(archive, Archive) and len(archive) == steps and archive.cadence == cadence
    assert archive.periodic is periodic and archive.calendar == "standard"
    values = archive.read(steps - 2, steps)
    assert values.shape == (2, *shape) and np.isfinite(values).all()
    expected = xr.open_dataset(path)[archive.variables[0]].isel(time=slice(-2, None)).values
    np.testing.assert_array_equal(values[:, 0], expected)


def test_zarr_written_without_xarray(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    for name, values in (("time", np.arange(3)), ("lat", np.array([1.0, 0.0])), ("lon", np.array([0.0, 180.0]))):
        group.create_array(name, data=values, dimension_names=(name,))
    group.create_array("z", data=np.arange(12.0).reshape(3, 2, 2), dimension_names=("time", "lat", "lon"))
    # z(t, i, j) = 4 t + 2 i + j
    assert open_archive(tmp_path / "a.zarr").read(2, 3).ravel().tolist() == [8.0, 9.0, 10.0, 11.0]


def test_variables_of_a_zarr_store_come_in_one_order_on_every_machine(tmp_path):
    grid = {"time": pd.date_range("2000", periods=3), "lat": [0.0, 1.0], "lon": [0.0, 1.0]}
    field = xr.DataArray(np.zeros((3, 2, 2)), grid, ("time", "lat", "lon"))
    # Written one by one: consolidated metadata and a folder listing may each have an order of their own.
    for number, name in enumerate(["u", "b", "z", "a"]):
        field.to_dataset(name=name).to_zarr(tmp_path / "x.zarr", mode="a" if number else "w", consolidated=False)
    assert open_archive(tmp_path / "x.zarr").variables == ("a", "b", "u", "z")
    assert open_archive(tmp_path / "x.zarr", variables=["z", "a"]).variables == ("z", "a")
