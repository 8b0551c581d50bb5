"""Storage that fails: a pause or one clear sentence, never wrong numbers, never a hang."""

import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from remote_servers import Server, serving

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.storage.chunks import ChunkReader
from sciJEPA.storage.faults import AbsentChunks, may_pass, with_retries

STEPS, ROWS, COLUMNS = 12, 4, 8


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sciJEPA.storage.faults.FIRST_PAUSE", 0.01)


def lose_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a server that hangs, and only from there on: on a busy machine a healthy request may take this long."""
    monkeypatch.setattr("sciJEPA.storage.faults.TRY_SECONDS", 0.3)
    monkeypatch.setattr("sciJEPA.storage.faults.TOTAL_SECONDS", 1.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("aiohttp")
    with serving(tmp_path) as running:
        yield running


def dataset(fill: float | None = None) -> xr.Dataset:
    """z(t, i, j) = 1 + t; `fill` is what stands for missing values."""
    values = np.broadcast_to(1 + np.arange(STEPS, dtype="f4")[:, None, None], (STEPS, ROWS, COLUMNS))
    coords = {
        "time": pd.date_range("2000-01-01", periods=STEPS),
        "lat": 60.0 - 40.0 * np.arange(ROWS),
        "lon": 45.0 * np.arange(COLUMNS),
    }
    ds = xr.Dataset({"z": (("time", "lat", "lon"), values)}, coords)
    ds.z.encoding["_FillValue"] = fill
    return ds


def write(path: Path, version: int = 3, ds: xr.Dataset | None = None, **encoding: Any) -> str:
    """Chunks (or shards) of 4 steps; absent ones of Zarr 3 are filled with 0."""
    ds = dataset() if ds is None else ds
    encoding = {"chunks": (4, ROWS, COLUMNS), "_FillValue": ds.z.encoding.get("_FillValue")} | encoding
    encoding |= {"fill_value": 0.0} if version == 3 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.to_zarr(path, mode="w", zarr_format=version, encoding={"z": encoding})
    return str(path)


SHARDS = {"chunks": (2, ROWS, COLUMNS), "shards": (4, ROWS, COLUMNS)}


# Trying again ---------------------------------------------------------------------------------------------------------


def test_what_passes_is_tried_again() -> None:
    answers = iter([TimeoutError(), ConnectionResetError(), 42])

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert with_retries(ask, "the answer") == 42


def test_what_does_not_pass_is_not_tried_again() -> None:
    calls = []

    def ask() -> None:
        calls.append(1)
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError):
        with_retries(ask, "the answer")
    assert len(calls) == 1


def test_tries_are_bounded_and_counted() -> None:
    def ask() -> None:
        raise ConnectionResetError("reset by peer")

    with pytest.raises(OSError, match=r"the answer failed 5 times in 0 s .*reset by peer"):
        with_retries(ask, "the answer")


@pytest.mark.parametrize(("status", "passes"), [(500, True), (503, True), (429, True), (403, False), (416, False)])
def test_status_codes_that_pass(status: int, passes: bool) -> None:
    error = RuntimeError()
    error.status = status  # type: ignore[attr-defined]
    assert may_pass(error) is passes


def test_http_503_that_passes_is_not_noticed(tmp_path: Path, server: Server) -> None:
    write(tmp_path / "a.zarr")
    server.failures |= {"/zarr.json": 2, "/c/1/0/0": 3}
    archive = open_archive(f"{server.url}/a.zarr")
    assert archive.read(0, STEPS)[:, 0, 0, 0].tolist() == list(range(1, 13))
    assert server.requests["/a.zarr/z/c/1/0/0"] == 4


def test_http_503_that_stays_names_the_chunk(tmp_path: Path, server: Server) -> None:
    write(tmp_path / "a.zarr")
    archive = open_archive(f"{server.url}/a.zarr")
    server.failures["/c/1/0/0"] = 99
    with pytest.raises(UserError, match=r"cannot read z of .* time steps 3 to 4 .*a\.zarr/z/c/1/0/0 failed 5 times"):
        archive.read(3, 5)
    assert archive.read(0, 2)[1, 0, 0, 0] == 2


def test_http_503_that_passes_is_not_noticed_for_netcdf(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCIJEPA_CACHE", str(tmp_path / "cache"))
    dataset().to_netcdf(tmp_path / "a.nc")
    server.failures["/a.nc"] = 3
    assert open_archive(f"{server.url}/a.nc").read(0, 2)[1, 0, 0, 0] == 2
    assert server.failures["/a.nc"] == 0


def test_a_server_that_hangs_does_not_hang_a_download(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCIJEPA_CACHE", str(tmp_path / "cache"))
    dataset().to_netcdf(tmp_path / "a.nc")
    server.hanging.add("/a.nc")
    lose_patience(monkeypatch)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"a\.nc failed \d times in \d s \(no answer\)"):
        open_archive(f"{server.url}/a.nc")
    assert time.monotonic() - begun < server.seconds_of_hanging  # then it would close the connection


@pytest.mark.parametrize("end", ["/c/1/0/0", "/zarr.json"])
def test_a_server_that_hangs_does_not_hang_us(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    write(tmp_path / "a.zarr")
    archive = open_archive(f"{server.url}/a.zarr")
    server.hanging.add(end)
    lose_patience(monkeypatch)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"a\.zarr.* failed \d times in \d s \(no answer\)"):
        archive.read(4, 5) if end.startswith("/c") else open_archive(f"{server.url}/a.zarr")
    assert time.monotonic() - begun < server.seconds_of_hanging  # then it would close the connection


def test_a_server_that_goes_away(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    write(tmp_path / "a.zarr")
    with serving(tmp_path) as server:
        archive = open_archive(f"{server.url}/a.zarr")
        archive.read(0, 1)
    with pytest.raises(UserError, match=r"cannot read z of .* failed 5 times"):
        archive.read(4, 5)


def test_a_server_without_byte_ranges_gives_no_wrong_numbers(tmp_path: Path, server: Server) -> None:
    write(tmp_path / "a.zarr", **SHARDS)
    archive = open_archive(f"{server.url}/a.zarr")
    server.ranges = False
    with pytest.raises(UserError, match="may ignore byte ranges"):
        archive.read(0, 1)  # one inner chunk of a shard


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("encoding", [{}, {"compressors": None}, SHARDS], ids=["plain", "raw", "shards"])
def test_truncated_chunk(tmp_path: Path, server: Server, encoding: dict[str, Any], remote: bool) -> None:
    path = write(tmp_path / "a.zarr", **encoding)
    archive = open_archive(f"{server.url}/a.zarr" if remote else path)
    chunk = tmp_path / "a.zarr/z/c/1/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"cannot read z of .* at time steps 4 to 7 "):
        archive.read(4, 8)
    assert archive.read(0, 4)[3, 0, 0, 0] == 4


# Absence --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("encoding", [{}, SHARDS], ids=["chunk", "shard"])
def test_an_absent_chunk_does_not_read_as_zeros(
    tmp_path: Path, server: Server, encoding: dict[str, Any], remote: bool
) -> None:
    path = write(tmp_path / "a.zarr", **encoding)
    (tmp_path / "a.zarr/z/c/1/0/0").unlink()
    source = f"{server.url}/a.zarr" if remote else path
    for reader in (open_archive(source), ChunkReader(open_archive(source))):
        with pytest.raises(UserError, match=r"chunk z/c/1/0/0 is not stored.*fill value 0 .*missing_chunks='fill'"):
            reader.read(2, 5)
    # With permission it does.
    allowed = open_archive(source, missing_chunks="fill")
    assert allowed.read(3, 6)[:, 0, 0, 0].tolist() == [4, 0, 0]
    assert ChunkReader(allowed).read(3, 6)[:, 0, 0, 0].tolist() == [4, 0, 0]


@pytest.mark.parametrize("remote", [False, True])
def test_an_absent_chunk_of_zarr_2_is_missing_data(tmp_path: Path, server: Server, remote: bool) -> None:
    path = write(tmp_path / "a.zarr", 2, dataset(float("nan")))
    (tmp_path / "a.zarr/z/1.0.0").unlink()
    values = open_archive(f"{server.url}/a.zarr" if remote else path).read(2, 9)[:, 0, 0, 0]
    np.testing.assert_array_equal(values, [3, 4, np.nan, np.nan, np.nan, np.nan, 9])


def test_packed_integers_whose_fill_is_missing_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", 2, dtype="i2", scale_factor=0.5, _FillValue=-999)
    (tmp_path / "a.zarr/z/1.0.0").unlink()
    assert np.isnan(open_archive(path).read(4, 5)).all()


def test_a_chunk_that_vanishes_is_noticed_even_where_nan_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", 2, dataset(float("nan")))
    archive = open_archive(path)
    archive.read(0, STEPS)
    time.sleep(0.05)  # clocks of file systems tick a few milliseconds late
    (tmp_path / "a.zarr/z/1.0.0").unlink()
    for reader in (archive, ChunkReader(archive)):
        with pytest.raises(UserError, match=r"chunk z/1\.0\.0 is not stored, and its folder has changed"):
            reader.read(4, 5)


def test_a_folder_of_chunks_that_vanishes(tmp_path: Path) -> None:
    archive = open_archive(write(tmp_path / "a.zarr"), missing_chunks="fill")
    time.sleep(0.05)
    shutil.rmtree(tmp_path / "a.zarr/z/c/1")
    with pytest.raises(UserError, match="chunk z/c/1/0/0 is not stored, and its folder has changed"):
        archive.read(4, 5)


def test_a_chunk_that_its_shard_leaves_out_is_filled(tmp_path: Path) -> None:
    ds = dataset()
    ds["z"] = ds.z.where(ds.time < ds.time[6], 0)  # steps 6 and 7: the second half of a shard
    path = write(tmp_path / "a.zarr", ds=ds.isel(time=slice(8)), **SHARDS)
    for reader in (open_archive(path), ChunkReader(open_archive(path))):
        assert reader.read(0, 8)[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 0, 0]


def test_a_variable_without_any_chunk_is_what_it_was_declared_to_be(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", ds=dataset() * 0)
    assert not (tmp_path / "a.zarr/z/c").exists()
    assert (open_archive(path).read(0, STEPS) == 0).all()


def test_a_single_absent_chunk_says_so() -> None:
    remote = AbsentChunks()
    remote.check("z", "z/c/0", float("nan"), 4)
    remote.check("z", "z/c/0", 0.0, 1)
    with pytest.raises(FileNotFoundError, match="chunk z/c/0 is not stored"):
        remote.check("z", "z/c/0", 0.0, 4)


def test_missing_chunks_has_two_values(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing_chunks must be refuse or fill, got 'ignore'"):
        open_archive(dataset(), missing_chunks="ignore")
