"""Archives on a network: whatever fsspec reaches reads like the same archive in memory."""

import contextlib
import importlib.util
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from remote_servers import Server, serving

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.storage.chunks import ChunkReader
from sciJEPA.storage.remote import local_copy

pytest.importorskip("aiohttp")
STEPS, ROWS, COLUMNS = 10, 4, 8
CREDENTIALS = {"key": "testing", "secret": "testing"}


def small_dataset() -> xr.Dataset:
    """A field z whose value at (t, i, j) is 1 + 1000 t + 10 i + j."""
    t, i, j = np.arange(STEPS), np.arange(ROWS), np.arange(COLUMNS)
    values = (1 + 1000.0 * t[:, None, None] + 10.0 * i[:, None] + j).astype(np.float32)
    coords = {"time": pd.date_range("2000-01-01", periods=STEPS), "lat": 60.0 - 40.0 * i, "lon": 45.0 * j}
    return xr.Dataset({"z": (("time", "lat", "lon"), values, {"units": "m"})}, coords)


def write_zarr(store: Any, version: int = 3, shards: bool = False, chunk: int = 4, **options: Any) -> None:
    encoding: dict[str, Any] = {"chunks": (2 if shards else chunk, ROWS, COLUMNS)}
    if shards:
        encoding["shards"] = (4, ROWS, COLUMNS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small_dataset().to_zarr(store, mode="w", encoding={"z": encoding}, zarr_format=version, **options)


def reads_like_memory(archive: Archive) -> None:
    np.testing.assert_array_equal(archive.read(0, STEPS), small_dataset().z.values[:, None])
    assert archive.read(3, 5)[1, 0, 0, 0] == 4001  # 1 + 1000 * 4
    assert archive.time[0] == pd.Timestamp("2000-01-01") and archive.cadence == 24.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCIJEPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fetched"


def test_zarr_opens_over_http(tmp_path: Path, server: Server) -> None:
    write_zarr(tmp_path / "a.zarr")
    archive = open_archive(f"{server.url}/a.zarr")
    assert (archive.source, archive.format) == (f"{server.url}/a.zarr", "zarr3")
    reads_like_memory(archive)


@pytest.mark.parametrize("options", [{"version": 2}, {"shards": True}])
def test_every_zarr_opens_over_http(tmp_path: Path, server: Server, options: dict) -> None:
    write_zarr(tmp_path / "a.zarr", consolidated=True, **options)
    reads_like_memory(open_archive(f"{server.url}/a.zarr/"))


def test_only_the_wanted_chunks_are_fetched(tmp_path: Path, server: Server) -> None:
    write_zarr(tmp_path / "a.zarr")
    archive = open_archive(f"{server.url}/a.zarr")
    server.requests.clear()
    archive.read(0, 4)  # chunks have 4 steps
    assert dict(server.requests) == {"/a.zarr/z/c/0/0/0": 1}


def test_chunks_are_fetched_concurrently(tmp_path: Path, server: Server) -> None:
    write_zarr(tmp_path / "a.zarr", chunk=1)
    archive = open_archive(f"{server.url}/a.zarr")
    server.delay = 0.05
    reads_like_memory(archive)
    assert server.most_busy >= 5  # of 10 chunks


def test_a_remote_archive_survives_pickling(tmp_path: Path, server: Server) -> None:
    write_zarr(tmp_path / "a.zarr")
    reads_like_memory(pickle.loads(pickle.dumps(open_archive(f"{server.url}/a.zarr"))))


@pytest.mark.parametrize("format", ["NETCDF4", "NETCDF3_64BIT"])
def test_netcdf_over_http_is_fetched_once(tmp_path: Path, server: Server, cache: Path, format: Any) -> None:
    small_dataset().to_netcdf(tmp_path / "a.nc", format=format)
    archive = open_archive(f"{server.url}/a.nc")
    assert (archive.source, archive.format) == (f"{server.url}/a.nc", "netcdf")
    reads_like_memory(archive)
    assert ChunkReader(archive).direct == (("z",) if format == "NETCDF4" else ())
    server.requests.clear()
    reads_like_memory(open_archive(f"{server.url}/a.nc"))
    assert sum(server.requests.values()) <= 2  # what is its size? The values are at hand.
    assert [path.suffix for path in cache.iterdir()] == [".nc"]


def test_a_download_that_ends_early_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/short.nc", b"CDF" + bytes(97))
    monkeypatch.setattr("sciJEPA.storage.faults.FIRST_PAUSE", 0.01)
    monkeypatch.setattr(type(fs), "get_file", lambda self, path, to, **_: Path(to).write_bytes(b"CDF"))
    with pytest.raises(OSError, match=r"short\.nc failed 5 times in .* 3 of 100 bytes arrived"):
        local_copy("memory://short.nc", {})
    assert list(cache.iterdir()) == []


def test_zarr_in_memory_of_fsspec() -> None:
    store = fsspec.filesystem("memory")
    write_zarr("memory://box/a.zarr")
    assert store.exists("/box/a.zarr/zarr.json")
    reads_like_memory(open_archive("memory://box/a.zarr"))


def test_file_address_is_a_path(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a.zarr")
    assert open_archive(f"file://{tmp_path}/a.zarr").source == str(tmp_path / "a.zarr")


def test_chains(tmp_path: Path, server: Server) -> None:
    write_zarr(tmp_path / "a.zarr")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for path in (tmp_path / "a.zarr").rglob("*"):
            packed.write(path, path.relative_to(tmp_path / "a.zarr"))
    reads_like_memory(open_archive(f"zip://::file://{tmp_path}/a.zip"))
    reads_like_memory(open_archive(f"zip://::{server.url}/a.zip"))
    kept = {"simplecache": {"cache_storage": str(tmp_path / "kept")}}
    reads_like_memory(open_archive(f"simplecache::{server.url}/a.zarr", storage_options=kept))
    assert any((tmp_path / "kept").iterdir())


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, Any]]:
    """Storage options of an S3 server with a bucket called `shelf`."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    options = {**CREDENTIALS, "endpoint_url": f"http://{host}:{port}"}
    with contextlib.suppress(FileExistsError):  # all servers of a process share their buckets
        fsspec.filesystem("s3", **options).mkdir("shelf")
    yield options
    running.stop()


@pytest.mark.parametrize("shards", [False, True])
def test_zarr_on_s3(bucket: dict[str, Any], shards: bool) -> None:
    write_zarr(f"s3://shelf/a{shards}.zarr", shards=shards, storage_options=bucket)
    reads_like_memory(open_archive(f"s3://shelf/a{shards}.zarr", storage_options=bucket))


def test_netcdf_on_s3(bucket: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    small_dataset().to_netcdf(tmp_path / "a.nc")
    fsspec.filesystem("s3", **bucket).put(str(tmp_path / "a.nc"), "shelf/a.nc")
    reads_like_memory(open_archive("s3://shelf/a.nc", storage_options=bucket))


def test_a_changed_file_on_s3_is_fetched_again(bucket: dict[str, Any], tmp_path: Path, cache: Path) -> None:
    fs = fsspec.filesystem("s3", **bucket)
    for factor in (1.0, 2.0):  # files of the same length
        (small_dataset() * factor).to_netcdf(tmp_path / f"{factor}.nc")
        fs.put(str(tmp_path / f"{factor}.nc"), "shelf/b.nc")
        fs.invalidate_cache()
        assert open_archive("s3://shelf/b.nc", storage_options=bucket).read(1, 2)[0, 0, 0, 0] == factor * 1001


@pytest.mark.parametrize(
    ("address", "phrase"),
    [
        ("{http}/absent.zarr", "check the address"),
        ("{http}/absent.nc", "check the address"),
        ("nowhere://a.zarr", "is no address that we can open"),
    ],
)
def test_addresses_that_do_not_open(server: Server, cache: Path, address: str, phrase: str) -> None:
    source = address.format(http=server.url)
    with pytest.raises(UserError, match=phrase) as caught:
        open_archive(source)
    assert source in str(caught.value) and "\n" not in str(caught.value)


def test_an_absent_package_is_named() -> None:
    if importlib.util.find_spec("adlfs"):
        pytest.skip("the package that this address needs is at hand")
    with pytest.raises(UserError, match=r'adlfs.*pip install "sciJEPA\[remote\]"'):
        open_archive("abfs://shelf/a.zarr")
