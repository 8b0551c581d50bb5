"""Inspection: what the report says about axes, values and chunks, and that the command it gives works."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA import inspection
from sciJEPA.archive import open_archive
from sciJEPA.cli import main
from sciJEPA.errors import UserError
from sciJEPA.inspection import format_inspection, inspect

SHARED = Path(os.environ.get("SCIJEPA_SHARED", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "SECONDS_OF_TIMING", 0.02)


def dataset(steps: int = 40, rows: int = 4, columns: int = 8) -> xr.Dataset:
    coords = {
        "time": pd.date_range("2000-01-01", periods=steps),
        "lat": np.linspace(60.0, -60.0, rows),
        "lon": 360.0 / columns * np.arange(columns),
    }
    values = np.random.default_rng(0).normal(size=(steps, rows, columns)).astype(np.float32)
    land = xr.DataArray(np.ones((rows, columns), dtype=np.float32), dims=("lat", "lon"))
    return xr.Dataset({"z": (("time", "lat", "lon"), values, {"units": "m"}), "land": land}, coords)


def write(ds: xr.Dataset, path: Path, **encoding: object) -> str:
    ds.to_zarr(path, consolidated=False, encoding={"z": encoding})
    return str(path)


def test_report_is_plain_json() -> None:
    report = inspect(dataset())
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_axes() -> None:
    axes = inspect(dataset())["axes"]
    assert axes["time"] == {
        "name": "time",
        "size": 40,
        "calendar": "standard",
        "cadence": "1 day",
        "cadence_hours": 24.0,
        "first": "2000-01-01",
        "last": "2000-02-09",
        "gaps": 0,
        "largest_gap_hours": 24.0,
        "duplicates": 0,
        "missing": 0,
        "sorted": True,
    }
    assert axes["latitude"] == {"name": "lat", "size": 4, "first": 60.0, "last": -60.0, "order": "descending"}
    assert axes["longitude"] == {"name": "lon", "size": 8, "first": 0.0, "last": 315.0, "periodic": True}
    assert set(axes) == {"time", "latitude", "longitude"}


def test_level_and_other_axes_as_found() -> None:
    ds = dataset()
    levels = xr.DataArray([500.0, 850.0], dims="level", attrs={"units": "hPa"})
    ds["z"] = ds.z.expand_dims(level=levels)
    ds["ensemble"] = ds.land.expand_dims(number=3)
    axes = inspect(ds)["axes"]
    assert axes["level"]["name"] == "level" and axes["level"]["values"] == [500.0, 850.0]
    assert axes["member"] == {"name": "number", "size": 3}


def test_variables_and_what_is_left_out() -> None:
    ds = dataset()
    ds["z"][:, 0, :] = np.nan  # one row of four
    ds["z"][0, 1, 0], ds["z"][39, 1, 0] = -50.0, 50.0  # the first and the last step are always in the sample
    report = inspect(ds)
    described = report["variables"]["z"]
    assert described["nan_share"] == 0.25 and (described["minimum"], described["maximum"]) == (-50.0, 50.0)
    assert described["units"] == "m" and described["shape"] == [40, 4, 8] and described["dtype"] == "float32"
    assert report["static"] == ["land"] and "lacks dimension time" in report["left_out"]["land"]
    assert report["sampled_steps"] == 40 and "z is missing in 25.0% of the sample." in report["verdict"]
    # z: 40 x 4 x 8 x 4 bytes, land: 4 x 8 x 4 bytes, coordinates: (40 + 4 + 8) x 8 bytes
    assert report["bytes"] == 5120 + 128 + 416


def test_sample_is_at_most_64_steps() -> None:
    assert inspect(dataset(steps=100))["sampled_steps"] == 64


def test_chunks_shards_and_codec(tmp_path: Path) -> None:
    report = inspect(write(dataset(), tmp_path / "a.zarr", chunks=(5, 4, 8), shards=(10, 4, 8)))
    described = report["variables"]["z"]
    assert report["format"] == "zarr3" and described["chunks"] == [5, 4, 8] and described["shards"] == [10, 4, 8]
    assert "Zstd" in described["codec"] or "zstd" in described["codec"]
    dataset().to_netcdf(tmp_path / "a.nc", encoding={"z": {"zlib": True, "chunksizes": (10, 4, 8), "dtype": "i2"}})
    described = inspect(tmp_path / "a.nc")["variables"]["z"]
    assert described["chunks"] == [10, 4, 8] and described["codec"].startswith("zlib(level=4")
    assert described["dtype"] == "int16" and described["shards"] is None


def test_chunks_per_window(tmp_path: Path) -> None:
    # 12 steps in chunks of 4, windows of 4 start at 0..8: starts 0, 4, 8 touch one chunk, the other six touch two:
    # (3 x 1 + 6 x 2) / 9 = 15 / 9. Longitude is cut in two, so twice that: 30 / 9 = 3.33.
    path = write(dataset(steps=12), tmp_path / "a.zarr", chunks=(4, 4, 4))
    assert inspect(path, window=4)["chunks_per_window"] == 3.33
    assert inspect(dataset())["chunks_per_window"] == 0  # memory has no chunks


def test_gaps() -> None:
    # Days 0..39 without days 10 to 14: one step of 6 days = 144 hours.
    report = inspect(dataset().isel(time=[*range(10), *range(15, 40)]))
    assert report["axes"]["time"]["gaps"] == 1 and report["axes"]["time"]["largest_gap_hours"] == 144.0
    assert "1 steps are gaps, the largest of 6 days" in report["verdict"]


def test_times_out_of_order_are_reported_and_not_refused() -> None:
    ds = dataset().isel(time=[3, 1, 1, 2, 0])
    time = (report := inspect(ds))["axes"]["time"]
    assert not time["sorted"] and time["duplicates"] == 1 and time["gaps"] == 0 and time["cadence"] == "1 day"
    assert 'ds.sortby("time")' in report["verdict"] and 'ds.drop_duplicates("time")' in report["verdict"]


def test_missing_times_and_a_single_step_are_reported() -> None:
    ds = dataset()
    times = ds.time.values.copy()
    times[0] = np.datetime64("NaT")
    assert inspect(ds.assign_coords(time=times))["axes"]["time"]["missing"] == 1
    single = inspect(dataset(steps=1))
    assert single["axes"]["time"]["cadence_hours"] is None and "at least 2 are needed" in single["verdict"]
    json.dumps(single, allow_nan=False)


def test_numeric_times_say_so() -> None:
    report = inspect(dataset().assign_coords(time=np.arange(40)))
    assert report["axes"]["time"]["unit"] == "unknown, taken as day" and report["axes"]["time"]["calendar"] == "none"
    assert "plain numbers (unit: unknown, taken as day)" in report["verdict"]


def test_suspicious_values() -> None:
    ds = dataset()
    ds["z"][3] = 1e20
    ds["flat"] = ds.z * 0 + 7
    verdict = inspect(ds)["verdict"]
    assert "z reaches 1e+20, probably a fill value" in verdict and "flat is 7 everywhere" in verdict


def test_verdict_is_fine(tmp_path: Path) -> None:
    assert inspect(dataset())["verdict"].startswith("Fine")
    assert inspect(write(dataset(), tmp_path / "a.zarr", chunks=(8, 4, 8)))["verdict"].startswith("Fine")


def prepare(verdict: str) -> None:
    """Run the command that a verdict ends with."""
    program, *arguments = shlex.split(verdict.split("Rechunk once with: ")[1])
    assert program == "scijepa" and main(arguments) == 0


@pytest.mark.parametrize(
    ("steps", "grid", "chunks", "phrase"),
    [
        # 400 x 32 x 64 x 4 bytes = 3.3 MB in one chunk, of which a window of 8 uses 2 %.
        (400, (32, 64), (400, 32, 64), "chunks hold the whole time series (400 steps)"),
        # One chunk is 8 x 8 x 4 bytes; a window of 8 gathers 8 x 4 x 8 of them.
        (16, (32, 64), (1, 8, 8), "chunks are too small, a window of 8 gathers 256 of them"),
    ],
)
def test_the_command_for_rechunking_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, grid: tuple, chunks: tuple, phrase: str
) -> None:
    path = write(dataset(steps, *grid), tmp_path / "a.zarr", chunks=chunks)
    verdict = inspect(path)["verdict"]
    assert phrase in verdict
    monkeypatch.chdir(tmp_path)
    prepare(verdict)
    rechunked = tmp_path / "a_prepared.zarr"
    assert inspect(rechunked)["verdict"].startswith("Fine")
    np.testing.assert_array_equal(open_archive(rechunked).read(0, steps), open_archive(path).read(0, steps))


def test_the_command_for_netcdf_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = dataset(400, 32, 64)
    whole = {"z": {"zlib": True, "complevel": 1, "chunksizes": (400, 32, 64)}}
    ds.to_netcdf(tmp_path / "a.nc", encoding=whole)
    monkeypatch.chdir(tmp_path)
    for source in ("a.nc", "../" + tmp_path.name):
        prepare(inspect(source)["verdict"])
    assert open_archive(f"{tmp_path.name}_prepared.zarr").chunk_steps == open_archive("a_prepared.zarr").chunk_steps


def test_chunks_that_are_not_stored_are_counted(tmp_path: Path) -> None:
    path = Path(write(dataset(), tmp_path / "a.zarr", chunks=(8, 4, 8)))
    assert inspect(path)["variables"]["z"]["chunks_absent"] == 0
    stored = [file for file in (path / "z").rglob("*") if file.is_file() and file.name not in ("zarr.json", ".zarray")]
    stored = [file for file in stored if file.name != ".zattrs"]
    stored[-1].unlink()  # one of five
    report = inspect(path, missing_chunks="fill")
    assert report["variables"]["z"]["chunks_absent"] == pytest.approx(0.2)
    assert "20.0% of the chunks of z are not stored." in report["verdict"]


def test_a_window_needs_a_step() -> None:
    with pytest.raises(UserError, match="window=0"):
        inspect(dataset(), window=0)
    assert inspect(dataset(steps=5), window=8)["window"] == 5


def test_text_is_aligned() -> None:
    ds = dataset().assign(temperature=lambda ds: ds.z + 1)
    lines = format_inspection(inspect(ds)).splitlines()
    assert lines[0] == "<memory>  (memory, 10.8 kB uncompressed)"  # 2 x 5120 + 128 + 416 bytes
    assert (
        "  time       time  40  2000-01-01 to 2000-02-09, every 1 day, calendar standard, 0 gaps, 0 duplicates" in lines
    )
    rows = [line for line in lines if line.startswith(("  name", "  z ", "  temperature"))]
    assert len({line.index(cell) for line, cell in zip(rows, ("shape", "40x4x8", "40x4x8"), strict=True)}) == 1
    assert lines[-1].startswith("verdict: Fine")


def test_real_archive() -> None:
    path = SHARED / "climate" / "speedy_t31_daily.zarr"
    if not path.exists():
        pytest.skip(f"{path} is not at hand; set SCIJEPA_SHARED to the folder of shared data")
    report = inspect(path)
    assert len(report["variables"]) == 9 and report["axes"]["time"]["cadence"] == "1 day"
    assert report["variables"]["z500"]["chunks"] == [15, 48, 96] and report["verdict"].startswith("Fine")
