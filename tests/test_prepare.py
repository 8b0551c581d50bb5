"""Preparing an archive: same values, whole or not there, resumable to the same bytes, in bounded memory."""

import contextlib
import functools
import hashlib
import http.server
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from safetensors.numpy import load_file

from sciJEPA import cli
from sciJEPA import prepare as prepare_
from sciJEPA.archive import open_archive
from sciJEPA.cards import load_card
from sciJEPA.errors import UserError
from sciJEPA.normalize import fit_normalizer
from sciJEPA.prepare import PrepareWarning
from sciJEPA.resources import datasets_folder
from sciJEPA.storage import chunked_copy
from sciJEPA.storage.chunked_copy import Journal, Region
from sciJEPA.synthetic import travelling_waves

prepare = functools.partial(prepare_, progress=False)


def waves(steps: int = 200, **options: Any) -> xr.Dataset:
    """Two variables on two levels, longitude before latitude as in WeatherBench 2, and two static fields."""
    ds = travelling_waves(steps, variables=("z", "q"), levels=(500, 850), **options)
    ds = ds.transpose("time", "level", "longitude", "latitude")
    ds["land"] = (("longitude", "latitude"), np.linspace(0, 1, 128).reshape(16, 8).astype(np.float32))
    ds["kind"] = (("longitude", "latitude"), np.arange(128).reshape(16, 8))
    return ds


def write(ds: xr.Dataset, path: Path, steps: int = 7) -> Path:
    encoding = {name: {"chunks": (steps, *ds[name].shape[1:])} for name in ("z", "q") if name in ds}
    ds.to_zarr(path, encoding=encoding, consolidated=False)
    return path


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, and its SHA-256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def card(tmp_path: Path, name: str = "qg-channel", **source: Any) -> Path:
    """A shipped card with another source."""
    content = yaml.safe_load((datasets_folder() / name / "dataset.yaml").read_text())
    for key in ("zarr", "files", "function", "arguments"):
        content["source"].pop(key, None)
    content["source"] |= source
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Address of a server of the files in `tmp_path / "web"`."""
    (tmp_path / "web").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


# --- the archive


def test_a_prepared_archive_holds_the_same_as_its_source(tmp_path: Path) -> None:
    source = write(waves(), tmp_path / "a.zarr")
    archive = prepare(source, tmp_path / "out")
    np.testing.assert_array_equal(archive.read(0, 200), open_archive(source).read(0, 200))


def test_names_units_order_and_static_fields_stay(tmp_path: Path) -> None:
    ds = waves(50, calendar="noleap", cadence="6h")
    ds["z"].attrs["units"] = "m**2 s**-2"
    prepare(write(ds.assign(land=ds.land.astype(np.float64)), tmp_path / "a.zarr"), tmp_path / "out")
    with xr.open_zarr(tmp_path / "out") as out:
        xr.testing.assert_identical(out.load().drop_encoding(), ds)
        assert (out.land.dtype, out.kind.dtype) == (np.float32, np.int64)
    assert open_archive(tmp_path / "out").calendar == "noleap"


def test_packed_and_coarse_values_become_float32(tmp_path: Path) -> None:
    ds = waves(40).astype(np.float64)
    packing = {"dtype": "int16", "scale_factor": 0.001, "add_offset": 1.5, "_FillValue": -32767}
    ds["z"][3, 0, 2] = np.nan
    ds.to_netcdf(tmp_path / "a.nc", encoding={"z": packing})
    archive = prepare(tmp_path / "a.nc", tmp_path / "out")
    np.testing.assert_array_equal(
        archive.read(0, 40), open_archive(tmp_path / "a.nc", variables=["q", "z"]).read(0, 40)
    )
    assert np.isnan(archive.read(3, 4)).any()
    assert {archive.ds[name].encoding["dtype"] for name in ("z", "q")} == {np.dtype("float32")}


def test_a_folder_of_netcdf_files(tmp_path: Path) -> None:
    ds = waves(90)
    (tmp_path / "files").mkdir()
    for number in range(3):
        part = ds.isel(time=slice(30 * number, 30 * number + 30))
        part.to_netcdf(tmp_path / "files" / f"{number}.nc")
    archive = prepare(tmp_path / "files", tmp_path / "out", memory_mb=1)
    np.testing.assert_array_equal(archive.ds.z.values, ds.z.values)


@pytest.mark.parametrize(
    ("start", "stop", "first", "last"), [("2001-02", "2001-03", 31, 89), (None, "2001-01-05", 0, 4)]
)
def test_dates_are_taken_with_the_last_one(tmp_path: Path, start: str | None, stop: str, first: int, last: int) -> None:
    # 2001 begins with 31 days of January; March ends with day 31 + 28 + 31 = 90, which is step 89.
    source = write(waves(), tmp_path / "a.zarr", steps=50)
    archive = prepare(source, tmp_path / "out", start=start, stop=stop, chunk_steps=8, variables=["z"])
    expected = open_archive(source, variables=["z"]).read(first, last + 1)
    np.testing.assert_array_equal(archive.read(0, len(archive)), expected)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["origin"]["first_step"] == first


def test_dates_that_are_not_there(tmp_path: Path) -> None:
    source = write(waves(20), tmp_path / "a.zarr")
    with pytest.raises(UserError, match="0 steps from 2010"):
        prepare(source, tmp_path / "out", start="2010")
    with pytest.raises(UserError, match="no dates"):
        prepare(source, tmp_path / "out", start="spring")


def test_chunks_are_whole_maps_of_about_4_mb(tmp_path: Path) -> None:
    # 100 x 200 points of 4 bytes are 80 kB: 50 steps would have 4 MB, and 32 are the most.
    ds = xr.Dataset(
        {"z": (("time", "lat", "lon"), np.zeros((70, 100, 200), np.float32))},
        {"time": np.arange(70), "lat": np.linspace(-80, 80, 100), "lon": np.arange(200) * 1.8},
    )
    ds["fine"] = (("time", "level", "lat", "lon"), np.zeros((70, 10, 100, 200), np.float32))  # 800 kB: 5 steps
    plan = chunked_copy.layouts(open_archive(ds), ds)
    assert {name: (layout.chunks, layout.shards) for name, layout in plan.items()} == {
        "z": ((32, 100, 200), None),
        "fine": ((5, 10, 100, 200), None),
    }
    assert chunked_copy.layouts(open_archive(ds), ds, 4)["z"].chunks == (4, 100, 200)
    # 10 x 20 points are 800 bytes: 312 steps make 250 kB, and there are 70.
    small = ds[["z"]].isel(lat=slice(0, 10), lon=slice(0, 20))
    assert chunked_copy.layouts(open_archive(small), small)["z"].chunks == (70, 10, 20)


def test_many_chunks_share_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 x 200 / 2 = 200 chunks in at most 50 files: 4 in each, so 8 steps in a file.
    monkeypatch.setattr(chunked_copy, "MOST_FILES", 50)
    ds = waves()
    archive = prepare(write(ds, tmp_path / "a.zarr"), tmp_path / "out", chunk_steps=2, memory_mb=1)
    assert archive.ds.z.encoding["chunks"] == (2, 2, 16, 8)
    assert archive.ds.z.encoding["shards"] == (8, 2, 16, 8)
    np.testing.assert_array_equal(archive.ds.z.values, ds.z.values)
    assert len(list((tmp_path / "out/z/c").rglob("0"))) > 0
    assert sum(path.is_file() for path in (tmp_path / "out/z/c").rglob("*")) == 25


def test_a_lost_chunk_reads_as_missing(tmp_path: Path) -> None:
    ds = waves()
    ds["z"][:] = 0  # of zeros, zarr would write nothing at all
    archive = prepare(write(ds, tmp_path / "a.zarr"), tmp_path / "out", variables=["q", "z"], chunk_steps=32)
    assert not np.isnan(archive.ds.z.values).any()
    (tmp_path / "out/z/c/1/0/0/0").unlink()
    assert np.isnan(open_archive(tmp_path / "out").ds.z.isel(time=slice(32, 64)).values).all()


def test_trajectories_lie_in_chunks_of_their_own(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, 20, 4, 5)).astype(np.float32)
    split = np.array(["train"] * 4 + ["valid", "test"])
    ds = xr.Dataset(
        {"A": (("trajectory", "time", "x", "y"), values)},
        {"time": np.arange(20.0), "x": np.arange(4.0), "y": np.arange(5.0), "split": ("trajectory", split)},
    )
    archive = prepare(ds, tmp_path / "out")
    assert archive.ds.A.encoding["chunks"] == (1, 20, 4, 5)
    np.testing.assert_array_equal(archive.ds.A.values, values)
    described = json.loads((tmp_path / "out/dataset.json").read_text())
    assert described["statistics"]["steps"] == [[0, 20], [20, 40], [40, 60], [60, 80]]


# --- statistics and description


def test_statistics_come_from_the_training_split_alone(tmp_path: Path) -> None:
    ds = waves()
    loud = ds.copy(deep=True)
    loud["z"][140:] *= 1000  # 0.7 of 200 steps train
    prepare(write(ds, tmp_path / "a.zarr"), tmp_path / "a")
    prepare(write(loud, tmp_path / "b.zarr"), tmp_path / "b")
    quiet, other = (load_file(tmp_path / name / "statistics.safetensors") for name in ("a", "b"))
    expected = fit_normalizer(open_archive(tmp_path / "a"), ((0, 140),))
    for name in ("coefficients", "spread", "missing_share"):
        np.testing.assert_array_equal(quiet[name], other[name])
        np.testing.assert_array_equal(quiet[name], getattr(expected, name))


def test_an_archive_without_statistics_says_why(tmp_path: Path) -> None:
    ds = waves()
    ds["z"][:] = 5
    with pytest.warns(PrepareWarning, match="does not vary"):
        prepare(write(ds, tmp_path / "a.zarr"), tmp_path / "out")
    described = json.loads((tmp_path / "out/dataset.json").read_text())
    assert "does not vary" in described["statistics"]["missing_because"]
    assert not (tmp_path / "out/statistics.safetensors").exists()


def test_the_description_says_what_it_is(tmp_path: Path) -> None:
    path = card(tmp_path, "travelling-waves", function="travelling_waves", arguments={"days": 60})
    prepare(path, tmp_path / "out")
    described = json.loads((tmp_path / "out/dataset.json").read_text())
    assert described["card"]["licence"] == "Apache-2.0"
    assert described["origin"]["function"] == "sciJEPA.synthetic.travelling_waves"
    assert described["channels"] == [{"name": "z", "units": "m"}]
    assert described["statistics"]["steps"] == [[0, 42]]  # 0.7 of 60
    digest = hashlib.sha256((tmp_path / "out/statistics.safetensors").read_bytes()).hexdigest()
    assert described["statistics"]["sha256"] == digest
    assert set(described["made_with"]) >= {"sciJEPA", "xarray", "zarr"}


def test_a_card_with_dates_trains_before_validation(tmp_path: Path) -> None:
    content = yaml.safe_load(card(tmp_path, function="qg_channel", arguments={"days": 20}).read_text())
    dates = {"method": "chronological", "validation_start": "2001-01-11", "test_start": "2001-01-16"}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content | {"splits": dates}))
    prepare(tmp_path / "dataset.yaml", tmp_path / "out")
    assert json.loads((tmp_path / "out/dataset.json").read_text())["statistics"]["steps"] == [[0, 10]]
    with pytest.raises(UserError, match="0 steps of the training split"):
        prepare(tmp_path / "dataset.yaml", tmp_path / "late", start="2001-01-12")
    assert not (tmp_path / ".late.partial").exists()


# --- remote sources


def test_a_remote_store_in_the_layout_of_weatherbench(tmp_path: Path, server: str) -> None:
    pytest.importorskip("aiohttp")
    names = {"z": "geopotential", "q": "specific_humidity"}
    ds = waves(60).rename(names)
    ds.to_zarr(tmp_path / "web/era5.zarr", zarr_format=2, consolidated=True)
    content = yaml.safe_load(card(tmp_path, "era5-64x32", zarr=f"{server}/era5.zarr").read_text())
    content["variables"] = {name: content["variables"][name] for name in names.values()}
    content["splits"] = {"method": "chronological", "train": 0.7, "validation": 0.1, "test": 0.2}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    archive = prepare(tmp_path / "dataset.yaml", tmp_path / "out", memory_mb=1)
    assert archive.ds.geopotential.dims == ("time", "level", "longitude", "latitude")
    np.testing.assert_array_equal(archive.ds.geopotential.values, ds.geopotential.values)
    assert "land" in archive.ds


def test_downloads_are_checked_kept_and_joined(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("SCIJEPA_CACHE", str(tmp_path / "cache"))
    ds = travelling_waves(90).rename(z="z_upper").assign(z_lower=lambda ds: ds.z_upper * 2)
    for number in (0, 1, 2):
        ds.isel(time=slice(30 * number, 30 * number + 30)).to_netcdf(tmp_path / f"web/{number}.nc")
    files = [{"url": server + "/{n}.nc", "each": {"n": [0, 1, 2]}}]
    path = card(tmp_path, files=files)
    np.testing.assert_array_equal(prepare(path, tmp_path / "out").ds.z_lower.values, ds.z_lower.values)
    origin = json.loads((tmp_path / "out/dataset.json").read_text())["origin"]["files"]
    assert [file["sha256"] for file in origin] == list(contents(tmp_path / "web").values())
    for file in (tmp_path / "web").iterdir():
        file.unlink()
    prepare(path, tmp_path / "again")  # from the cache
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_a_file_with_another_digest_is_refused(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("SCIJEPA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web/a.nc").write_bytes(b"CDF something else")
    path = card(tmp_path, files=[{"url": f"{server}/a.nc", "sha256": "0" * 64}])
    with pytest.raises(UserError, match=r"a\.nc is not the file of the card: its SHA-256 should be 0000"):
        prepare(path, tmp_path / "out")
    assert [*tmp_path.glob("out*"), *(tmp_path / "cache").rglob("*.nc")] == []


def test_a_network_that_is_absent_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pooch")
    monkeypatch.setenv("SCIJEPA_CACHE", str(tmp_path / "cache"))
    path = card(tmp_path, files=[{"url": "http://127.0.0.1:9/a.nc"}])  # nobody listens at port 9
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1:9/a.nc \(ConnectionError\); check the netw"):
        prepare(path, tmp_path / "out")


def test_a_copy_of_ones_own_takes_the_place_of_the_source(tmp_path: Path) -> None:
    ds = travelling_waves(30).rename(z="z_upper").assign(z_lower=lambda ds: ds.z_upper * 2, other=lambda ds: ds.z_upper)
    ds.to_netcdf(tmp_path / "mine.nc")
    archive = prepare("qg-channel", tmp_path / "out", archive=tmp_path / "mine.nc")
    assert archive.variables == ("z_lower", "z_upper")  # those of the card
    with pytest.raises(UserError, match="no card was named"):
        prepare(tmp_path / "mine.nc", tmp_path / "out2", archive=tmp_path / "mine.nc")


def test_a_read_that_fails_for_a_moment_is_tried_again(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    waves(20).to_zarr(tmp_path / "web/a.zarr", zarr_format=2, consolidated=True)
    slept: list[float] = []
    monkeypatch.setattr(chunked_copy.time, "sleep", slept.append)
    whole, failures = chunked_copy.Copier._copy, [OSError("503"), OSError("503")]

    def sometimes(self: Any, *rest: Any) -> None:
        if failures:
            raise failures.pop()
        whole(self, *rest)

    monkeypatch.setattr(chunked_copy.Copier, "_copy", sometimes)
    archive = prepare(f"{server}/a.zarr", tmp_path / "out")
    assert slept == [1, 2]
    np.testing.assert_array_equal(archive.ds.z.values, waves(20).z.values)
    failures += [OSError("503")] * 4
    with pytest.raises(UserError, match=r"cannot copy q of http.* at steps 0 to 19: OSError: 503; .*goes on"):
        prepare(f"{server}/a.zarr", tmp_path / "out2")


# --- whole or not there

KILLED = textwrap.dedent(
    """
    import os, signal, sys
    import sciJEPA.storage.chunked_copy as home
    from importlib import import_module

    verb = import_module("sciJEPA.prepare")

    moment, source, out = sys.argv[1:]
    die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    if moment == "layout":
        home.os.replace = die
    elif moment == "region":
        add = home.Journal.add
        home.Journal.add = lambda self, region: die() if len(self.done) == 3 else add(self, region)
    elif moment == "chunk":
        import zarr.storage._local as local
        replace, count = local.Path.replace, [60]
        def torn(path, target):
            count[0] -= 1
            if count[0] < 0:
                die()
            return replace(path, target)
        local.Path.replace = torn
    elif moment == "reveal":
        home.zarr.consolidate_metadata = die
    elif moment == "statistics":
        verb.fit_normalizer = die
    elif moment == "rename":
        replace = os.replace
        os.replace = lambda a, b: die() if os.path.basename(b) == os.path.basename(out) else replace(a, b)
    verb.prepare(source, out, memory_mb=1, chunk_steps=4, progress=False)
    """
)


@pytest.mark.parametrize("moment", ["layout", "chunk", "region", "reveal", "statistics", "rename"])
def test_a_killed_run_leaves_nothing_that_opens_and_goes_on_to_the_same_bytes(tmp_path: Path, moment: str) -> None:
    # A region of memory_mb=1 has 0.25 MB, so 244 steps of 1 kB: 600 steps of two variables are 6 regions.
    source, out = write(waves(600), tmp_path / "a.zarr", steps=50), tmp_path / "out"
    prepare(source, tmp_path / "whole", memory_mb=1, chunk_steps=4)
    done = subprocess.run([sys.executable, "-c", KILLED, moment, str(source), str(out)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    with pytest.raises(UserError):
        open_archive(out)
    if moment in ("layout", "chunk", "region"):
        with pytest.raises(UserError):
            open_archive(tmp_path / ".out.partial" / "archive")
    prepare(source, out, memory_mb=1, chunk_steps=4)
    assert contents(out) == contents(tmp_path / "whole")
    assert not (tmp_path / ".out.partial").exists()


def test_regions_that_are_done_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(waves(600), tmp_path / "a.zarr", steps=50)
    whole, copied = chunked_copy.Copier._copy, []

    def counted(self: Any, region: Region, layout: Any) -> None:
        if len(copied) == 4:
            raise KeyboardInterrupt
        copied.append(region.key)
        whole(self, region, layout)

    monkeypatch.setattr(chunked_copy.Copier, "_copy", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "out", memory_mb=1)
    monkeypatch.setattr(chunked_copy.Copier, "_copy", whole)
    rest = []
    monkeypatch.setattr(Journal, "add", lambda self, region: rest.append(region.key))
    prepare(source, tmp_path / "out", memory_mb=1)
    assert (len(copied), len(rest), set(copied) & set(rest)) == (4, 2, set())


def test_an_unfinished_copy_of_something_else_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(waves(100), tmp_path / "a.zarr")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chunked_copy.Copier, "_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"unfinished copy of another source or with other options.*--restart"):
        prepare(source, tmp_path / "out", chunk_steps=3)
    assert prepare(source, tmp_path / "out", chunk_steps=3, restart=True).chunk_steps == 3


def test_a_torn_line_of_the_journal_counts_as_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", "task")
    regions = [Region("z", (slice(k, k + 1), slice(0, 2))) for k in range(3)]
    for region in regions:
        journal.add(region)
    path = tmp_path / "journal"
    path.write_text(path.read_text()[:-2])
    again = Journal(path, "task")
    assert again.done == {regions[0].key, regions[1].key}
    again.add(regions[2])
    assert Journal(path, "task").done == {region.key for region in regions}
    assert not Journal(path, "another").fits


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        prepare(write(waves(20), tmp_path / "a.zarr"), tmp_path / "out")


# --- memory and clusters

MEASURED = textwrap.dedent(
    """
    import resource, sys
    import numpy as np, xarray as xr
    import sciJEPA.normalize
    from importlib import import_module

    verb = import_module("sciJEPA.prepare")

    source, out = sys.argv[1:]
    sciJEPA.normalize.BLOCK_VALUES = 2**21  # 8 MB
    small = xr.open_zarr(source, consolidated=False).isel(time=slice(0, 40))
    verb.prepare(small, out + "-small", memory_mb=64, progress=False)  # loads what is loaded on first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verb.prepare(source, out, memory_mb=64, progress=False)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    # 4000 steps of 96 x 192 points are 295 MB, of which 64 MB may be under way.
    field = np.random.default_rng(0).standard_normal((96, 192)).astype(np.float32)
    coords = {"lat": np.linspace(-80, 80, 96), "lon": np.arange(192) * 1.875}
    for first in range(0, 4000, 500):
        values = field * np.arange(1 + first, 501 + first, dtype=np.float32)[:, None, None]
        ds = xr.Dataset({"z": (("time", "lat", "lon"), values)}, {"time": np.arange(first, first + 500), **coords})
        options: Any = {"append_dim": "time"} if first else {"encoding": {"z": {"chunks": (50, 96, 192)}}}
        ds.to_zarr(tmp_path / "a.zarr", consolidated=False, **options)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "a.zarr"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 120
    np.testing.assert_array_equal(open_archive(tmp_path / "out").read(3999, 4000)[0, 0], field * np.float32(4000))


def test_a_cluster_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_copy, "CLUSTER_SECONDS", 60)
    distributed = pytest.importorskip("distributed")
    source = write(waves(600), tmp_path / "a.zarr", steps=50)
    prepare(source, tmp_path / "threads", chunk_steps=4)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster:
        prepare(source, tmp_path / "cluster", chunk_steps=4, memory_mb=1, scheduler=cluster.scheduler_address)
        ds = waves(20)
        ds.to_netcdf(tmp_path / "a.nc")
        with pytest.warns(PrepareWarning, match="one thread of this process"):
            prepare(tmp_path / "a.nc", tmp_path / "netcdf", scheduler=cluster.scheduler_address)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "threads")


def test_a_cluster_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = []

    class Hanging:
        def compute(self, _: Any) -> "Hanging":
            return self

        def result(self, timeout: float) -> None:
            raise TimeoutError(timeout)

        def cancel(self) -> None:
            cancelled.append(True)

    source = write(waves(20), tmp_path / "a.zarr")
    cluster = contextlib.nullcontext((Hanging(), 2))
    monkeypatch.setattr(sys.modules["sciJEPA.prepare"], "_cluster", lambda *_: cluster)
    with pytest.raises(UserError, match=r"has not finished q 0:20 .* in 900 seconds"):
        prepare(source, tmp_path / "out", scheduler="tcp://somewhere:1")
    assert cancelled and not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match="no cluster answers at nowhere://1"):
        prepare(write(waves(20), tmp_path / "a.zarr"), tmp_path / "out", scheduler="nowhere://1")


# --- the command line


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(waves(60), tmp_path / "a.zarr"), tmp_path / "out"
    assert cli.main(["prepare", str(source), "--out", str(out), "--variables", "z", "--stop", "2001-02-09"]) == 0
    assert capsys.readouterr().out == f"{out}: {open_archive(out)!r}\n"
    assert (open_archive(out).variables, len(open_archive(out))) == (("z",), 40)
    assert cli.main(["prepare", "travelling-waves", "--out", str(tmp_path / "waves"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["name"] == "travelling-waves"
    assert cli.main(["prepare", "era5", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "'era5' is no dataset card and no archive" in error
    assert all(name in error for name in ("era5-64x32", "ett", load_card("ncep-slp-global").name))


def test_an_interrupted_command_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chunked_copy.Copier, "_copy", interrupt)
    source = write(waves(60), tmp_path / "a.zarr")
    assert cli.main(["prepare", str(source), "--out", str(tmp_path / "out")]) == 130
    assert "the same command goes on where this one stopped" in capsys.readouterr().err
