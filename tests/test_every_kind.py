"""Whatever opens is inspected and planned: each kind written by the library that owns its format."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cftime
import fsspec
import numpy as np
import pandas as pd
import pytest
import test_sampling_geometry
import test_stores
import test_the_well as well
import xarray as xr
from remote_servers import Server
from test_remote import bucket as bucket
from test_remote import cache as cache
from test_remote import server as server
from tiny import tiny_config

from sciJEPA.archive import open_archive
from sciJEPA.inspection import format_inspection, inspect
from sciJEPA.plan import describe_run

STEPS, ROWS, COLUMNS = 40, 4, 8
DAYS = pd.date_range("2001-01-01", periods=STEPS)
FIELD = np.random.default_rng(0).normal(size=(STEPS, ROWS, COLUMNS)).astype(np.float32)


def gridded(time: Any = DAYS, latitude: Any = None, longitude: Any = None) -> xr.Dataset:
    """One variable on a small grid."""
    latitude = np.linspace(60, -60, ROWS) if latitude is None else latitude
    longitude = np.arange(COLUMNS) * 45.0 if longitude is None else longitude
    coords = {"time": time, "lat": ("lat", latitude), "lon": ("lon", longitude)}
    return xr.Dataset({"z": (("time", "lat", "lon"), FIELD.copy(), {"units": "m"})}, coords)


def config_for(kind: str, archive: object, **data: Any) -> Any:
    """A small run for archives of this kind of space; `data` are options of the section of that name."""
    tokenizer: dict[str, Any] = {
        "grid": {"pad": True},
        "box": {"kind": "simulation", "patch": 2, "pad": True},
        "stations": {"kind": "sensors", "patch_time": 2},
    }[kind]
    section = {"archive": str(archive), "window": 4, "context": 2, **data}
    return tiny_config(data=section, tokenizer=tokenizer, training__batch_size=2)


def described(source: Any, **how: Any) -> dict[str, Any]:
    """What `inspect` and `--dry-run` say of a source; both must work, and agree."""
    report = inspect(source, window=4, **how)
    assert json.loads(json.dumps(report)) == report  # plain values
    assert report["verdict"] and format_inspection(report)
    archive = open_archive(source, **how)
    if isinstance(source, str | Path):
        plan = describe_run(config_for(archive.space.kind, source, **how))
        assert plan["channels"] == [channel.name for channel in archive.channels]
        assert plan["windows"]["train"] > 0 and plan["flops_total"] > 0
    return report


def zarr(folder: Path, ds: xr.Dataset | None = None, **options: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata in format 3
        (gridded() if ds is None else ds).to_zarr(folder / "a.zarr", **options)
    return str(folder / "a.zarr")


def files(folder: Path) -> str:
    for number, part in enumerate((slice(0, 15), slice(15, None))):
        gridded().isel(time=part).to_netcdf(folder / f"{number}.nc")
    return str(folder)


def netcdf(folder: Path, ds: xr.Dataset | None = None, **options: Any) -> str:
    (gridded() if ds is None else ds).to_netcdf(folder / "a.nc", **options)
    return str(folder / "a.nc")


SHARDS = {"z": {"chunks": (2, ROWS, COLUMNS), "shards": (8, ROWS, COLUMNS)}}
DEFLATE = {"z": {"zlib": True, "shuffle": True, "chunksizes": (4, ROWS, COLUMNS)}}
STORAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zarr 2": (lambda f: zarr(f, zarr_format=2, consolidated=False), "zarr2"),
    "zarr 2, consolidated": (lambda f: zarr(f, zarr_format=2, consolidated=True), "zarr2"),
    "zarr 3": (lambda f: zarr(f, zarr_format=3, consolidated=False), "zarr3"),
    "zarr 3, consolidated": (lambda f: zarr(f, zarr_format=3, consolidated=True), "zarr3"),
    "zarr 3, sharded": (lambda f: zarr(f, zarr_format=3, consolidated=False, encoding=SHARDS), "zarr3"),
    "netcdf 4": (lambda f: netcdf(f, encoding=DEFLATE), "netcdf"),
    "netcdf 3": (lambda f: netcdf(f, format="NETCDF3_64BIT"), "netcdf"),
    "folder": (files, "netcdf folder"),
    "glob": (lambda f: files(f) + "/*.nc", "netcdf folder"),
    "dataset": (lambda f: gridded(), "memory"),
    "tree": (lambda f: xr.DataTree.from_dict({"/": xr.Dataset(), "/fields": gridded()}), "memory"),
    "group": (lambda f: test_stores.write_tree(xr.DataTree.from_dict({"/fields": gridded()}), f / "a.zarr"), "zarr3"),
}


@pytest.mark.parametrize("name", STORAGES)
def test_storages(name: str, tmp_path: Path) -> None:
    write, storage = STORAGES[name]
    source = write(tmp_path)
    report = described(source)
    assert report["format"] == storage and report["axes"]["time"]["size"] == STEPS
    np.testing.assert_array_equal(open_archive(source).read(0, STEPS)[:, 0], FIELD)


def test_addresses(tmp_path: Path, server: Server, bucket: dict[str, Any], cache: Path) -> None:
    zarr(tmp_path, consolidated=True), netcdf(tmp_path, encoding=DEFLATE)
    for name in ("a.zarr", "a.nc"):
        assert described(f"{server.url}/{name}")["axes"]["time"]["size"] == STEPS
    gridded().to_zarr("s3://shelf/every.zarr", storage_options=bucket, consolidated=False)
    fsspec.filesystem("s3", **bucket).put(str(tmp_path / "a.nc"), "shelf/every.nc")
    for name in ("every.zarr", "every.nc"):
        report = described(f"s3://shelf/{name}", storage_options=bucket)
        assert report["variables"]["z"]["nan_share"] == 0


def test_icechunk(tmp_path: Path) -> None:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "ice")))
    session = repository.writable_session("main")
    gridded().to_zarr(session.store, consolidated=False)
    session.commit("written")
    assert described(tmp_path / "ice")["format"] == "icechunk"


def test_references(tmp_path: Path) -> None:
    path = Path(netcdf(tmp_path, encoding=DEFLATE))
    (tmp_path / "refs.json").write_text(json.dumps(test_stores.kerchunked(path)))
    assert described(tmp_path / "refs.json")["format"] == "virtual"


@pytest.mark.parametrize("space", [("x",), ("x", "y"), ("x", "y", "z")])
def test_the_well(space: tuple[str, ...], tmp_path: Path) -> None:
    for number in range(4):
        well.write(tmp_path / f"{number}.hdf5", space=space, steps=8, viscosity=0.1 + number, seed=number)
    report = described(tmp_path)
    assert set(space) <= set(report["axes"]) and report["axes"]["trajectory"]["size"] == 4 * well.TRAJECTORIES
    assert {"density", "velocity_x", "D_xx"} <= set(report["variables"])


def wide_table() -> pd.DataFrame:
    columns = {"date": DAYS, **{name: FIELD[:, 0, number] for number, name in enumerate("abc")}}
    return pd.DataFrame(columns)


def long_table() -> pd.DataFrame:
    parts = [wide_table().assign(station=name) for name in ("north", "south")]
    return pd.concat(parts).drop(index=[3, 17])  # two days are missing at both


@pytest.mark.parametrize("frame", [wide_table, long_table])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables(frame: Callable[[], pd.DataFrame], ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    frame().to_csv(path, index=False) if ending == "csv" else frame().to_parquet(path)
    report = described(path)
    assert report["axes"]["time"]["size"] == STEPS and list(report["variables"]) == ["a", "b", "c"]
    missing = 0.05 if frame is long_table else 0.0  # 2 days of 40
    assert report["variables"]["a"]["nan_share"] == pytest.approx(missing)
    assert described(frame())["axes"]["time"]["size"] == STEPS


@pytest.mark.parametrize("write", test_sampling_geometry.FORMS, ids=lambda form: form.__name__)
def test_sampling_geometries(write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_sampling_geometry, "HUMIDITY", np.random.default_rng(0).normal(size=(4, 3)))
    monkeypatch.setattr(test_sampling_geometry, "OBSERVED", [np.arange(4)] * 3)
    write(str(tmp_path / "a.nc"))
    report = inspect(tmp_path / "a.nc", window=2)
    assert report["axes"]["station"]["size"] == 3 and report["axes"]["station"]["placed"]
    assert report["axes"]["time"]["size"] == 4 and report["variables"]["wet"]["nan_share"] == 0


def curvilinear() -> xr.Dataset:
    north, east = np.meshgrid(np.linspace(0, 6, ROWS), np.linspace(0, 14, COLUMNS), indexing="ij")
    ds = gridded().drop_vars(["lat", "lon"]).rename(lat="j", lon="i")
    return ds.assign_coords(lat=(("j", "i"), north + 0.1 * east), lon=(("j", "i"), east - 0.1 * north))


def on_levels(units: str, values: list[float]) -> xr.Dataset:
    levels = ("plev", values, {"units": units, "standard_name": "air_pressure"})
    return gridded().expand_dims(plev=2).assign_coords(plev=levels).transpose("time", "plev", "lat", "lon")


def calendar(name: str) -> xr.Dataset:
    first = cftime.datetime(2001, 2, 20, calendar=name)
    return gridded(xr.date_range(first, periods=STEPS, freq="D", calendar=name, use_cftime=True))


def packed() -> xr.Dataset:
    ds = gridded()
    ds["z"][3, 1, 1] = np.nan
    ds["z"].encoding = {"dtype": "int16", "scale_factor": 0.001, "add_offset": 1.0, "_FillValue": -32768}
    return ds


GAUSSIAN = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(ROWS)[0]))
CONVENTIONS: dict[str, Callable[[], xr.Dataset]] = {
    "descending latitude": gridded,
    "ascending latitude": lambda: gridded(latitude=np.linspace(-60, 60, ROWS)),
    "poles": lambda: gridded(latitude=np.linspace(90, -90, ROWS)),
    "-180 to 180": lambda: gridded(longitude=np.arange(COLUMNS) * 45.0 - 180),
    "gaussian": lambda: gridded(latitude=GAUSSIAN),
    "curvilinear": curvilinear,
    "hPa": lambda: on_levels("hPa", [500.0, 850.0]),
    "Pa": lambda: on_levels("Pa", [50000.0, 85000.0]),
    "noleap": lambda: calendar("noleap"),
    "360_day": lambda: calendar("360_day"),
    "leap day": lambda: gridded(pd.date_range("2004-02-01", periods=STEPS)),
    "packed": packed,
    "integer time": lambda: gridded(np.arange(STEPS)),
    "fractional time": lambda: gridded(0.25 * np.arange(STEPS)),
    "members": lambda: xr.concat([gridded(), gridded() + 1], dim=pd.Index([0, 1], name="member")),
    "static fields": lambda: gridded().assign(land=(("lat", "lon"), (FIELD[0] > 0).astype(float))),
    "longitude first": lambda: gridded().transpose("time", "lon", "lat"),
}


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("store", [zarr, netcdf], ids=["zarr", "netcdf"])
def test_conventions(name: str, store: Callable[..., str], tmp_path: Path) -> None:
    ds = CONVENTIONS[name]()
    path = store(tmp_path, ds, **({"consolidated": False} if store is zarr else {}))
    report = described(path)
    archive = open_archive(path)
    names = [str(dim) for dim in ds["z"].dims]
    assert report["variables"]["z"]["dims"] == names and list(archive.ds["z"].dims) == names  # the user's own
    assert report["axes"]["time"]["size"] == STEPS and report["axes"]["time"]["gaps"] == 0
    expected = {"noleap": "noleap", "360_day": "360_day", "integer time": "none", "fractional time": "none"}
    assert report["axes"]["time"]["calendar"] == expected.get(name, "standard")
    assert (report["variables"]["z"]["nan_share"] > 0) == (name == "packed")
    if name in ("Pa", "hPa"):
        assert [channel.name for channel in archive.channels] == ["z@500", "z@850"]
        assert report["axes"]["level"]["units"] == name
    if name == "members":
        assert report["axes"]["member"]["size"] == 2 and len(archive) == 2 * STEPS
    if name == "static fields":
        assert archive.static == ("land",)


def test_memory_of_inspect_and_plan_is_bounded(tmp_path: Path) -> None:
    """An archive of 400 MB; what both add to the memory of a process is far less."""
    steps, shape = 1600, (256, 256)
    coords = {"time": pd.date_range("2001", periods=steps), "lat": np.linspace(60, -60, 256), "lon": np.arange(256.0)}
    part = np.random.default_rng(0).normal(size=(100, *shape)).astype(np.float32)
    for number in range(steps // 100):
        times = coords["time"][number * 100 : (number + 1) * 100]
        ds = xr.Dataset({"z": (("time", "lat", "lon"), part)}, {**coords, "time": times})
        options: dict[str, Any] = {"append_dim": "time"} if number else {"mode": "w", "encoding": {"z": ENCODING}}
        ds.to_zarr(tmp_path / "a.zarr", consolidated=False, **options)
    program = """
import resource, sys
from sciJEPA.config import config_from_dict
from sciJEPA.inspection import inspect
from sciJEPA.plan import describe_run
config = config_from_dict({"data": {"archive": sys.argv[1]}, "tokenizer": {"pad": True}})
import sciJEPA.pretrain
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
inspect(sys.argv[1]); describe_run(config)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "a.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 200  # MB: the archive has 420


ENCODING = {"chunks": (10, 256, 256), "compressors": None}
