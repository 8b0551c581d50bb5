"""Chunks: whatever the storage, a ChunkReader gives what Archive.read gives, and refuses what it refuses."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import netCDF4
import numcodecs
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr import codecs as z3

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.storage import chunk_storage, chunks
from sciJEPA.storage.chunks import ChunkReader

STEPS, LEVELS, ROWS, COLUMNS = 21, 3, 6, 8
SIZES = {"time": STEPS, "level": LEVELS, "lat": ROWS, "lon": COLUMNS, "surface": 1}
RANGES = ((0, STEPS), (0, 4), (4, 12), (3, 11), (7, 8), (STEPS - 1, STEPS), (15, STEPS))
COORDS = {
    "time": pd.date_range("2000-01-01", periods=STEPS, freq="6h"),
    "level": [850.0, 500.0, 250.0],
    "lat": np.linspace(75.0, -75.0, ROWS),
    "lon": np.arange(COLUMNS) * 45.0,
}
COORD_ATTRIBUTES = {"level": {"units": "hPa", "positive": "down"}}
LAYOUTS = (
    ("time", "lat", "lon"),
    ("time", "lon", "lat"),
    ("time", "level", "lon", "lat"),
    ("lat", "level", "time", "lon"),
    ("time", "surface", "lat", "lon"),
)


def field(dims: tuple[str, ...], dtype: str = "f4", seed: int = 0) -> xr.DataArray:
    shape = tuple(SIZES[dim] for dim in dims)
    values = (np.random.default_rng(seed).normal(size=shape) * 100).astype(dtype)
    return xr.DataArray(values, dims=dims)


def dataset(**fields: xr.DataArray) -> xr.Dataset:
    used = {dim for array in fields.values() for dim in array.dims}
    ds = xr.Dataset(fields, {name: value for name, value in COORDS.items() if name in used})
    for name, attributes in COORD_ATTRIBUTES.items():
        if name in ds:
            ds[name].attrs |= attributes
    return ds


def chunk_shape(dims: tuple[str, ...], steps: int = 4) -> tuple[int, ...]:
    return tuple({"time": steps, "lat": 4, "lon": SIZES["lon"]}.get(dim, 1) for dim in dims)


def to_zarr(ds: xr.Dataset, path: Path, version: int = 3, **encoding: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.to_zarr(path, mode="w", zarr_format=version, encoding={name: encoding for name in ds.data_vars})
    return str(path)


def agrees(source: Any, direct: tuple[str, ...] | None = ("z",), ranges: Any = RANGES) -> ChunkReader:
    archive = open_archive(source)
    reader = ChunkReader(archive, threads=2)
    assert reader.direct == (archive.variables if direct is None else direct)
    for start, stop in ranges:
        values = reader.read(start, stop)
        assert values.dtype == np.float32 and values.flags.c_contiguous
        np.testing.assert_array_equal(values.view(np.int32), archive.read(start, stop).view(np.int32))
    return reader


def test_one_chunk_of_one_variable(tmp_path: Path) -> None:
    ds = dataset(z=field(("time", "lat", "lon")))
    reader = ChunkReader(open_archive(to_zarr(ds, tmp_path / "a.zarr", chunks=(4, ROWS, COLUMNS))))
    np.testing.assert_array_equal(reader.read(4, 8)[:, 0], ds.z[4:8])


VERSION_3: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "zstd": {"compressors": z3.ZstdCodec(level=3)},
    "zstd-checksum": {"compressors": z3.ZstdCodec(level=1, checksum=True)},
    "blosc-lz4": {"compressors": z3.BloscCodec(cname="lz4", shuffle="shuffle")},
    "blosc-zstd": {"compressors": z3.BloscCodec(cname="zstd", shuffle="bitshuffle")},
    "gzip": {"compressors": z3.GzipCodec(level=1)},
    "crc32c": {"compressors": [z3.Crc32cCodec()]},
    "zstd-crc32c": {"compressors": [z3.ZstdCodec(), z3.Crc32cCodec()]},
    "gzip-zstd": {"compressors": [z3.GzipCodec(), z3.ZstdCodec()]},
    "big-endian": {"serializer": z3.BytesCodec(endian="big")},
}
VERSION_2: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "zlib": {"compressors": numcodecs.Zlib(1)},
    "gzip": {"compressors": numcodecs.GZip(1)},
    "zstd": {"compressors": numcodecs.Zstd(1)},
    "blosc": {"compressors": numcodecs.Blosc("lz4")},
    "lz4": {"compressors": numcodecs.LZ4()},
}


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "u1"])
@pytest.mark.parametrize("codec", VERSION_3)
@pytest.mark.parametrize("dims", LAYOUTS[:3], ids="-".join)
def test_zarr_3(tmp_path: Path, dims: tuple[str, ...], codec: str, dtype: str) -> None:
    ds = dataset(z=field(dims, dtype))
    agrees(to_zarr(ds, tmp_path / "a.zarr", chunks=chunk_shape(dims), **VERSION_3[codec]))


@pytest.mark.parametrize("dtype", ["f4", ">f4", "i4", ">i2"])
@pytest.mark.parametrize("codec", VERSION_2)
@pytest.mark.parametrize("dims", LAYOUTS[:3], ids="-".join)
def test_zarr_2(tmp_path: Path, dims: tuple[str, ...], codec: str, dtype: str) -> None:
    ds = dataset(z=field(dims, dtype))
    agrees(to_zarr(ds, tmp_path / "a.zarr", 2, chunks=chunk_shape(dims), **VERSION_2[codec]))


@pytest.mark.parametrize("dims", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("steps", [1, 4, STEPS])
def test_layouts(tmp_path: Path, dims: tuple[str, ...], steps: int) -> None:
    agrees(to_zarr(dataset(z=field(dims)), tmp_path / "a.zarr", chunks=chunk_shape(dims, steps)))


@pytest.mark.parametrize("dims", LAYOUTS, ids="-".join)
@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("index_codecs", [None, [z3.BytesCodec()]], ids=["checked", "plain"])
def test_shards(tmp_path: Path, dims: tuple[str, ...], location: str, index_codecs: Any) -> None:
    path, values = tmp_path / "a.zarr", field(dims)
    to_zarr(dataset(z=values), path, chunks=chunk_shape(dims, 2))
    inner = chunk_shape(dims, 2)
    sharding = z3.ShardingCodec(
        chunk_shape=inner,
        codecs=[z3.BytesCodec(), z3.ZstdCodec()],
        index_location=location,
        **({"index_codecs": index_codecs} if index_codecs else {}),
    )
    shutil.rmtree(path / "z")
    shards = tuple(4 * size if dim == "time" else 2 * size for size, dim in zip(inner, dims, strict=True))
    array = zarr.create_array(
        str(path / "z"),
        shape=values.shape,
        chunks=shards,
        dtype="float32",
        fill_value=np.nan,
        dimension_names=dims,
        serializer=sharding,
        compressors=None,
    )
    array[:] = values.values
    zarr.consolidate_metadata(str(path))
    agrees(str(path))


def test_several_variables_and_levels_mixed_with_a_storage_that_is_not_direct(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    ds = dataset(
        a=field(("time", "lat", "lon")), z=field(("time", "level", "lat", "lon")), b=field(("time", "lon", "lat"))
    )
    encoding = {"a": {"chunks": (4, 6, 8)}, "b": {"chunks": (3, 8, 6), "filters": [z3.TransposeCodec(order=(0, 2, 1))]}}
    ds.to_zarr(path, encoding=encoding, zarr_format=3)
    agrees(str(path), direct=("a", "z"))
    chosen = open_archive(str(path), variables=["b", "z", "a"])
    np.testing.assert_array_equal(ChunkReader(chosen).read(2, 9), chosen.read(2, 9))


def test_memory_and_filters_and_folders_go_through_the_archive(tmp_path: Path) -> None:
    ds = dataset(z=field(("time", "lat", "lon")))
    agrees(ds, direct=())
    ds[{"time": slice(0, 10)}].to_netcdf(tmp_path / "a.nc")
    ds[{"time": slice(10, None)}].to_netcdf(tmp_path / "b.nc")
    agrees(str(tmp_path), direct=())
    path = tmp_path / "f.zarr"
    agrees(to_zarr(ds, path, 2, chunks=(4, 6, 8), filters=[numcodecs.Delta("f4")]), direct=())


PACKED: dict[str, dict[str, Any]] = {
    "int16": {"dtype": "i2", "scale_factor": 0.01, "add_offset": 3.0, "_FillValue": -32768},
    "int16-float32": {"dtype": "i2", "scale_factor": np.float32(0.01), "add_offset": np.float32(3), "_FillValue": -1},
    "int32": {"dtype": "i4", "scale_factor": 1e-6, "_FillValue": -(2**31)},
    "uint8-offset": {"dtype": "u1", "scale_factor": 2.0, "add_offset": -200.0, "_FillValue": 255},
    "float32-fill": {"dtype": "f4", "_FillValue": np.float32(1e20)},
    "float64-fill": {"dtype": "f8", "_FillValue": -999.0},
    "missing_value": {"dtype": "f4", "missing_value": np.float32(-999), "_FillValue": np.float32(-999)},
    "int-fill": {"dtype": "i2", "_FillValue": -99},
    "scale-only": {"dtype": "i2", "scale_factor": 0.1},
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("storage", ["zarr2", "zarr3", "netcdf"])
def test_packed_and_missing_values(tmp_path: Path, storage: str, kind: str) -> None:
    values = field(("time", "lon", "lat"))
    if "_FillValue" in PACKED[kind]:
        values = values.where(values < 60)
    ds = dataset(z=values)
    if storage == "netcdf":
        pytest.importorskip("h5py")
        encoding = PACKED[kind] | {"zlib": True, "chunksizes": (4, 3, 6)}
        ds.to_netcdf(tmp_path / "a.nc", engine="netcdf4", encoding={"z": encoding})
        agrees(str(tmp_path / "a.nc"))
    else:
        agrees(to_zarr(ds, tmp_path / "a.zarr", int(storage[-1]), chunks=(4, 3, 6), **PACKED[kind]))


def test_unsigned_attribute(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    encoding = {"dtype": "i1", "_Unsigned": "true", "_FillValue": -1, "scale_factor": 0.5, "chunksizes": (4, 6, 8)}
    ds = dataset(z=abs(field(("time", "lat", "lon"))).clip(0, 120))
    ds.to_netcdf(tmp_path / "a.nc", engine="netcdf4", encoding={"z": encoding})
    agrees(str(tmp_path / "a.nc"), direct=None)


def test_float64_beyond_float32_becomes_infinite(tmp_path: Path) -> None:
    ds = dataset(z=field(("time", "lat", "lon"), "f8"))
    ds.z[3, 2, 1] = 1e300
    reader = agrees(to_zarr(ds, tmp_path / "a.zarr", chunks=(4, 6, 8)))
    assert np.isinf(reader.read(3, 4)).sum() == 1


NETCDF: dict[str, dict[str, Any]] = {
    "contiguous": {"contiguous": True},
    "chunked": {"chunked": True},
    "deflate": {"zlib": True, "shuffle": False},
    "shuffle": {"zlib": True, "shuffle": True},
    "big-endian": {"endian": "big", "zlib": True},
    "big-endian-contiguous": {"endian": "big", "contiguous": True},
}


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
@pytest.mark.parametrize("kind", NETCDF)
@pytest.mark.parametrize("dims", LAYOUTS, ids="-".join)
def test_netcdf(tmp_path: Path, dims: tuple[str, ...], kind: str, dtype: str) -> None:
    pytest.importorskip("h5py")
    write_netcdf(tmp_path / "a.nc", dims, dtype, **NETCDF[kind])
    agrees(str(tmp_path / "a.nc"))


def write_netcdf(path: Path, dims: tuple[str, ...], dtype: str, unwritten: bool = False, **options: Any) -> None:
    chunksizes = None if options.pop("contiguous", False) else chunk_shape(dims)
    options.pop("chunked", None)
    with netCDF4.Dataset(path, "w") as file:
        for dim in dims:
            file.createDimension(dim, SIZES[dim])
        for name in [dim for dim in dims if dim in COORDS]:
            values = np.arange(STEPS) * 6 if name == "time" else COORDS[name]
            variable = file.createVariable(name, "f8", (name,))
            variable[:] = values
            units = {"time": "hours since 2000-01-01", "level": "hPa", "lat": "degrees_north", "lon": "degrees_east"}
            variable.units = units[name]
        z = file.createVariable("z", dtype, dims, contiguous=chunksizes is None, chunksizes=chunksizes, **options)
        if unwritten:
            z[tuple(slice(4, 8) if dim == "time" else slice(None) for dim in dims)] = 1.5
        else:
            z[:] = field(dims, dtype).values


def test_other_netcdf_filters_and_versions_go_through_the_archive(tmp_path: Path) -> None:
    dims = ("time", "lat", "lon")
    write_netcdf(tmp_path / "f.nc", dims, "f4", fletcher32=True)
    agrees(str(tmp_path / "f.nc"), direct=())
    dataset(z=field(dims)).to_netcdf(tmp_path / "3.nc", format="NETCDF3_64BIT")
    agrees(str(tmp_path / "3.nc"), direct=())


def test_netcdf_without_h5py_goes_through_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    dataset(z=field(("time", "lat", "lon"))).to_netcdf(tmp_path / "a.nc", engine="netcdf4")
    agrees(str(tmp_path / "a.nc"), direct=())


def test_netcdf_chunks_that_were_never_written(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    write_netcdf(tmp_path / "a.nc", ("time", "lat", "lon"), "f4", unwritten=True, zlib=True)
    agrees(str(tmp_path / "a.nc"))
    write_netcdf(tmp_path / "b.nc", ("time", "lat", "lon"), "f4", unwritten=True, zlib=True, fill_value=-7.0)
    reader = agrees(str(tmp_path / "b.nc"))
    assert np.isnan(reader.read(0, 4)).all() and (reader.read(4, 8) == 1.5).all()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("shards", [None, (8, 6, 8)])
@pytest.mark.parametrize("packed", [{}, PACKED["int16"]], ids=["float", "packed"])
def test_missing_chunks_are_missing_values(tmp_path: Path, version: int, shards: Any, packed: dict) -> None:
    if shards and version == 2:
        pytest.skip("format 2 has no shards")
    path = tmp_path / "a.zarr"
    options = {"shards": shards} if shards else {}
    if version == 3:
        options |= {"fill_value": packed.get("_FillValue", np.nan)}
    to_zarr(dataset(z=field(("time", "lat", "lon"))), path, version, chunks=(4, 6, 8), **packed, **options)
    os.remove(path / "z" / ("c/1/0/0" if version == 3 else "1.0.0"))
    reader = agrees(str(path))
    first = 8 if shards else 4
    assert np.isnan(reader.read(first, first + 4)).all() and not np.isnan(reader.read(0, first)).any()


def test_inner_chunks_that_a_shard_leaves_out(tmp_path: Path) -> None:
    values = field(("time", "lat", "lon"))
    values[4:8] = np.nan
    path = to_zarr(dataset(z=values), tmp_path / "a.zarr", chunks=(4, 6, 8), shards=(8, 6, 8))
    assert np.isnan(agrees(path).read(4, 8)).all()


def test_a_rewritten_shard_is_read_by_its_new_index(tmp_path: Path) -> None:
    path = to_zarr(dataset(z=field(("time", "lat", "lon"))), tmp_path / "a.zarr", chunks=(2, 6, 8), shards=(8, 6, 8))
    reader = agrees(path)
    zarr.open_array(f"{path}/z", mode="r+")[:8] = np.arange(8)[:, None, None]
    np.testing.assert_array_equal(reader.read(0, 8)[:, 0, 0, 0], np.arange(8))


def damaged(content: bytes, kind: str) -> bytes:
    middle = len(content) // 2
    return {
        "truncated": content[:middle],
        "empty": b"",
        "three": content[:3],
        "garbage": bytes(range(7)) * 50,
        "zeros": bytes(len(content)),
    }[kind]


@pytest.mark.parametrize("kind", ["truncated", "empty", "three", "garbage", "zeros"])
@pytest.mark.parametrize("codec", [f"3 {name}" for name in VERSION_3] + [f"2 {name}" for name in VERSION_2] + ["shard"])
def test_damaged_chunks(tmp_path: Path, codec: str, kind: str) -> None:
    version, _, name = codec.partition(" ")
    options = {"3": VERSION_3, "2": VERSION_2}.get(version, {}).get(name, {"shards": (8, 6, 8)})
    path = tmp_path / "a.zarr"
    to_zarr(dataset(z=field(("time", "lat", "lon"))), path, 2 if version == "2" else 3, chunks=(4, 6, 8), **options)
    file = path / "z" / ("1.0.0" if version == "2" else "c/1/0/0")
    if kind == "zeros" and name == "none":
        pytest.skip("raw zeros are values")
    file.write_bytes(damaged(file.read_bytes(), kind))
    archive = open_archive(str(path))
    reader = ChunkReader(archive)
    assert reader.direct == ("z",)
    first = 8 if codec == "shard" else 4
    with pytest.raises(UserError, match=rf"cannot read z of .* at time steps {first} to {first + 1} \(2000") as caught:
        reader.read(first, first + 2)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None
    np.testing.assert_array_equal(reader.read(0, 4), archive.read(0, 4))


@pytest.mark.parametrize("codec", ["zstd", "blosc", "lz4", "gzip", "none"])
@pytest.mark.parametrize("steps", [2, 8])
def test_a_chunk_of_the_wrong_size_is_an_error(tmp_path: Path, codec: str, steps: int) -> None:
    """A whole, well-formed chunk of another length; some decoders would fill a part of the buffer and say nothing."""
    path = tmp_path / "a.zarr"
    to_zarr(dataset(z=field(("time", "lat", "lon"))), path, 2, chunks=(4, 6, 8), **VERSION_2[codec])
    values = np.ones((steps, 6, 8), np.float32)
    compressor = VERSION_2[codec]["compressors"]
    (path / "z" / "1.0.0").write_bytes(values.tobytes() if compressor is None else bytes(compressor.encode(values)))
    with pytest.raises(UserError, match=f"decodes to {values.nbytes} bytes instead of 768"):
        ChunkReader(open_archive(str(path))).read(4, 8)


def test_zstandard_streams_without_their_size() -> None:
    # RFC 8878: magic, descriptor 0 (no size, a window byte), window, one raw last block of 4 bytes.
    block = (4 << 3 | 1).to_bytes(3, "little") + b"abcd"
    frame = np.frombuffer(b"\x28\xb5\x2f\xfd\x00\x00" + block, np.uint8)
    out = np.empty(4, np.uint8)
    assert chunk_storage.decode_zstd(frame, out).tobytes() == b"abcd"
    with pytest.raises(ValueError, match="decodes to 4 bytes instead of 5"):
        chunk_storage.decode_zstd(frame, np.empty(5, np.uint8))


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65791, 65792, 70000])
def test_zstandard_sizes_of_every_width(size: int) -> None:
    values = np.random.default_rng(0).integers(0, 9, size).astype(np.uint8)
    frame = np.frombuffer(numcodecs.Zstd(1).encode(values), np.uint8)
    np.testing.assert_array_equal(chunk_storage.decode_zstd(frame, np.empty(size, np.uint8)), values)
    with pytest.raises(ValueError, match=f"decodes to {size} bytes instead of {size + 1}"):
        chunk_storage.decode_zstd(frame, np.empty(size + 1, np.uint8))


def test_damaged_netcdf_chunk(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.nc"
    write_netcdf(path, ("time", "lat", "lon"), "f4", zlib=True)
    archive = open_archive(str(path))
    reader = ChunkReader(archive)
    with h5py.File(path) as file:
        place = file["z"].id.get_chunk_info_by_coord((4, 0, 0))
    with open(path, "r+b") as file:
        file.seek(place.byte_offset + 20)
        file.write(b"garbage")
    with pytest.raises(UserError, match=r"cannot read z of .* at time steps 5 to 6"):
        reader.read(5, 7)
    np.testing.assert_array_equal(reader.read(0, 4)[:, 0], field(("time", "lat", "lon"))[:4])


@pytest.mark.parametrize("storage", ["zarr", "netcdf"])
def test_storage_that_vanishes_while_it_is_read(tmp_path: Path, storage: str) -> None:
    ds = dataset(a=field(("time", "lat", "lon")), z=field(("time", "lat", "lon")))
    path = tmp_path / storage
    to_zarr(ds, path, chunks=(4, 6, 8)) if storage == "zarr" else write_netcdf(path, ("time", "lat", "lon"), "f4")
    reader = ChunkReader(open_archive(str(path)))
    reader.read(0, 4)
    shutil.rmtree(path / "z") if storage == "zarr" else os.truncate(path, 4000)
    with pytest.raises(UserError, match="cannot read z of"):
        reader.read(4, 8)


def test_ranges_and_buffers_are_checked(tmp_path: Path) -> None:
    reader = agrees(to_zarr(dataset(z=field(("time", "lat", "lon"))), tmp_path / "a.zarr", chunks=(4, 6, 8)))
    with pytest.raises(UserError, match="cannot read time steps 5 to 5 of"):
        reader.read(5, 5)
    with pytest.raises(UserError, match=r"out must be a writeable float32 array of shape \(2, 1, 6, 8\)"):
        reader.read(0, 2, np.empty((2, 1, 6, 8)))
    with pytest.raises(UserError, match="threads must be at least 1, got 0"):
        ChunkReader(reader.archive, threads=0)
    out = np.empty((2, 1, 6, 8), np.float32)
    assert reader.read(3, 5, out) is out
    np.testing.assert_array_equal(out, reader.archive.read(3, 5))


@pytest.mark.parametrize("dims", LAYOUTS, ids="-".join)
def test_output_of_any_memory_layout(tmp_path: Path, dims: tuple[str, ...]) -> None:
    encoding: dict = {"z": {"chunks": chunk_shape(dims)}, "a": {"chunks": chunk_shape(dims)}}
    encoding["a"]["filters"] = [numcodecs.Delta("f4")]
    ds = dataset(a=field(dims, seed=1), z=field(dims))
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding, zarr_format=2)
    archive = open_archive(str(tmp_path / "a.zarr"))
    reader = ChunkReader(archive)
    assert reader.direct == ("z",)
    for start, stop in RANGES:
        slab = np.full((len(archive.channels), stop - start, ROWS, COLUMNS), 7.0, np.float32)
        reader.read(start, stop, slab.swapaxes(0, 1))
        np.testing.assert_array_equal(slab.swapaxes(0, 1), archive.read(start, stop))


def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "TASK_BYTES", 1)
    dims = ("time", "level", "lat", "lon")
    ds = dataset(a=field(dims), z=field(dims, "f8", 1))
    archive = open_archive(to_zarr(ds, tmp_path / "a.zarr", chunks=(2, 1, 3, 8)))
    one, four = ChunkReader(archive, threads=1), ChunkReader(archive, threads=4)
    np.testing.assert_array_equal(one.read(1, 20), four.read(1, 20))


def test_several_threads_may_read_at_once(tmp_path: Path) -> None:
    archive = open_archive(to_zarr(dataset(z=field(("time", "lat", "lon"))), tmp_path / "a.zarr", chunks=(4, 6, 8)))
    reader = ChunkReader(archive, threads=3)
    starts = list(range(STEPS - 1)) * 5
    with ThreadPoolExecutor(4) as callers:
        for start, values in zip(starts, callers.map(lambda n: reader.read(n, n + 2), starts), strict=True):
            np.testing.assert_array_equal(values, archive.read(start, start + 2))


def test_pickled_readers_read_in_spawned_processes(tmp_path: Path) -> None:
    reader = agrees(to_zarr(dataset(z=field(("time", "lat", "lon"))), tmp_path / "a.zarr", chunks=(4, 6, 8)))
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.direct == reader.direct and copy.threads == reader.threads
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(reader.read, (2, 7)), reader.read(2, 7))


def test_a_reader_survives_a_fork(tmp_path: Path) -> None:
    """The pool's threads do not exist in a forked child, where its queue would be waited for without end."""
    path = to_zarr(dataset(z=field(("time", "lat", "lon"))), tmp_path / "a.zarr", chunks=(4, 6, 8))
    code = (
        "import os, sys; from sciJEPA.archive import open_archive; from sciJEPA.storage.chunks import ChunkReader\n"
        f"reader = ChunkReader(open_archive({path!r})); before = reader.read(0, 9)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if (reader.read(0, 9) == before).all() else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=300).returncode == 0


def test_no_global_state_of_blosc_is_changed() -> None:
    """zarr-python switches Blosc's own threads off when its codec is imported; we leave them as they are."""
    code = (
        "import numcodecs.blosc as b; import sciJEPA.storage.chunks, sciJEPA.storage.chunks_zarr, sys\n"
        "assert b.use_threads is None or 'zarr.codecs.blosc' in sys.modules, b.use_threads"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chunking_gives_the_same_values(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from(LAYOUTS))
    inner = tuple(data.draw(st.integers(1, SIZES[dim]), label=dim) for dim in dims)
    shards = tuple(size * data.draw(st.integers(1, 3)) for size in inner) if data.draw(st.booleans()) else None
    dtype = data.draw(st.sampled_from(["f4", "f8", "i2"]))
    start = data.draw(st.integers(0, STEPS - 1))
    stop = data.draw(st.integers(start + 1, STEPS))
    path = tmp_path_factory.mktemp("any") / "a.zarr"
    group = zarr.open_group(str(path), mode="w")
    shape, stored = tuple(SIZES[dim] for dim in dims), {"write_empty_chunks": True}  # a chunk may hold nothing but 0
    array = group.create_array(
        "z", shape=shape, chunks=inner, shards=shards, dtype=dtype, dimension_names=dims, config=stored
    )
    array[:] = field(dims, dtype).values
    for name in [dim for dim in dims if dim in COORDS]:
        values = np.arange(STEPS) * 6.0 if name == "time" else np.asarray(COORDS[name])
        coordinate = group.create_array(name, data=values, dimension_names=(name,))
        coordinate.attrs["units"] = {"time": "hours since 2000-01-01", "level": "hPa"}.get(name, "degrees")
    agrees(str(path), ranges=[(start, stop)])


def test_deflate_checksums_are_checked() -> None:
    frame = bytearray(zlib.compress(b"abcd"))
    frame[-1] ^= 1
    with pytest.raises(zlib.error):
        chunk_storage.decode_deflate(np.frombuffer(bytes(frame), np.uint8), np.empty(4, np.uint8))
