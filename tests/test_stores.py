"""Groups, trees, Icechunk and virtual references: each is written by the library that owns the format."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError

STEPS, ROWS, COLUMNS = 10, 4, 8


def dataset(first: float = 1.0) -> xr.Dataset:
    """z(t, i, j) = first + 1000 t + 10 i + j."""
    t, i, j = np.arange(STEPS), np.arange(ROWS), np.arange(COLUMNS)
    values = (first + 1000.0 * t[:, None, None] + 10.0 * i[:, None] + j).astype(np.float32)
    coords = {"time": pd.date_range("2000-01-01", periods=STEPS), "lat": 60.0 - 40.0 * i, "lon": 45.0 * j}
    return xr.Dataset({"z": (("time", "lat", "lon"), values, {"units": "m"})}, coords)


def reads_like_memory(archive: Archive, first: float = 1.0) -> None:
    np.testing.assert_array_equal(archive.read(0, STEPS), dataset(first).z.values[:, None])


def refused(source: Any, *phrases: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        open_archive(source, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for phrase in phrases:
        assert phrase in message, message


def write_tree(tree: xr.DataTree, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree.to_netcdf(path) if path.suffix == ".nc" else tree.to_zarr(path)
    return str(path)


# Trees ----------------------------------------------------------------------------------------------------------------

KINDS = ["memory", "a.zarr", "a.nc"]


def as_kind(tree: xr.DataTree, kind: str, folder: Path) -> Any:
    return tree if kind == "memory" else write_tree(tree, folder / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_group_with_fields_is_opened(tmp_path: Path, kind: str) -> None:
    notes = xr.Dataset({"station_height": ("station", [1.0, 2.0])})
    tree = xr.DataTree.from_dict({"/": xr.Dataset(), "/era/daily": dataset(), "/notes": notes})
    reads_like_memory(open_archive(as_kind(tree, kind, tmp_path)))


@pytest.mark.parametrize("kind", KINDS)
def test_two_groups_with_fields_must_be_chosen_from(tmp_path: Path, kind: str) -> None:
    source = as_kind(xr.DataTree.from_dict({"/coarse": dataset(), "/fine": dataset(5.0)}), kind, tmp_path)
    call = 'open_archive(tree["/coarse"])' if kind == "memory" else f'open_archive("{source}", group="/coarse")'
    refused(source, "2 groups that hold fields (/coarse, /fine)", call)
    reads_like_memory(open_archive(source, group="fine"), first=5.0)
    reads_like_memory(open_archive(source, group="/coarse/"))
    refused(source, "has no group /medium; it has /, /coarse, /fine", group="medium")


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_are_inherited(tmp_path: Path, kind: str) -> None:
    whole = dataset()
    tree = xr.DataTree.from_dict({"/": whole[["lat", "lon"]], "/daily": whole.drop_vars(["lat", "lon"])})
    reads_like_memory(open_archive(as_kind(tree, kind, tmp_path)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_root_goes_first(tmp_path: Path, kind: str) -> None:
    tree = xr.DataTree.from_dict({"/": dataset(), "/again": xr.Dataset({"w": dataset(5.0).z})})
    source = as_kind(tree, kind, tmp_path)
    reads_like_memory(open_archive(source))
    assert open_archive(source).variables == ("z",)


def test_a_node_is_a_tree() -> None:
    tree = xr.DataTree.from_dict({"/coarse": dataset(), "/fine": dataset(5.0)})
    reads_like_memory(open_archive(tree["/fine"]), first=5.0)


def test_a_tree_without_fields() -> None:
    refused(xr.DataTree.from_dict({"/a": xr.Dataset({"x": 1.0})}), "no group of the xr.DataTree holds fields", "/a")


def test_a_group_of_zarr_is_watched_and_decoded_directly(tmp_path: Path) -> None:
    from sciJEPA.storage.chunks import ChunkReader

    source = write_tree(xr.DataTree.from_dict({"/coarse": dataset(), "/fine": dataset(5.0)}), tmp_path / "a.zarr")
    archive = open_archive(source, group="fine")
    assert archive.source == f"{source}/fine" and archive.format == "zarr3"
    reader = ChunkReader(archive)
    assert reader.direct == ("z",)
    np.testing.assert_array_equal(reader.read(2, 5), archive.read(2, 5))


def test_a_group_of_netcdf_is_not_mistaken_for_the_root(tmp_path: Path) -> None:
    # Both have a variable z of one shape; the direct reader looks at the root alone.
    from sciJEPA.storage.chunks import ChunkReader

    source = write_tree(xr.DataTree.from_dict({"/": dataset(), "/fine": dataset(5.0)}), tmp_path / "a.nc")
    assert ChunkReader(open_archive(source, group="fine")).read(0, 1)[0, 0, 0, 0] == 5


# Icechunk -------------------------------------------------------------------------------------------------------------


def write_icechunk(storage: Any) -> Any:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(storage)
    for first, tag in ((1.0, "one"), (5.0, "two")):
        session = repository.writable_session("main")
        encoding = {"z": {"chunks": (5, ROWS, COLUMNS), "compressors": None}}  # 640 bytes; 512 would lie in a manifest
        dataset(first).to_zarr(session.store, mode="w", consolidated=False, encoding=encoding)
        repository.create_tag(tag, snapshot_id=session.commit(tag))
    return repository


@pytest.fixture
def icechunk_folder(tmp_path: Path) -> Path:
    icechunk = pytest.importorskip("icechunk")
    write_icechunk(icechunk.local_filesystem_storage(str(tmp_path / "repository")))
    return tmp_path / "repository"


def test_icechunk_opens_at_the_tip_of_main(icechunk_folder: Path) -> None:
    archive = open_archive(icechunk_folder)
    assert archive.format == "icechunk"
    reads_like_memory(archive, first=5.0)


def test_icechunk_opens_at_a_tag(icechunk_folder: Path) -> None:
    reads_like_memory(open_archive(icechunk_folder, storage_options={"tag": "one"}))
    refused(
        icechunk_folder, "cannot be opened as an Icechunk repository at tag three", storage_options={"tag": "three"}
    )


def test_a_lost_chunk_of_icechunk_is_an_error(icechunk_folder: Path) -> None:
    archive = open_archive(icechunk_folder)
    for chunk in (icechunk_folder / "chunks").iterdir():
        chunk.unlink()
    with pytest.raises(UserError, match="cannot read z of"):
        archive.read(0, STEPS)


def test_icechunk_on_s3(tmp_path: Path) -> None:
    icechunk, server = pytest.importorskip("icechunk"), pytest.importorskip("moto.server")
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        options = {"key": "testing", "secret": "testing", "endpoint_url": f"http://{host}:{port}"}
        fsspec.filesystem("s3", **options).mkdir("ice")
        where = {"bucket": "ice", "prefix": "a", "region": "us-east-1", "endpoint_url": f"http://{host}:{port}"}
        keys = {"access_key_id": "testing", "secret_access_key": "testing"}
        write_icechunk(icechunk.s3_storage(**where, **keys, allow_http=True, force_path_style=True))
        reads_like_memory(open_archive("s3://ice/a", storage_options=options), first=5.0)
    finally:
        running.stop()


def test_icechunk_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("refs", "snapshots"):
        os.mkdir(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, "icechunk", None)
    refused(tmp_path, 'pip install "sciJEPA[icechunk]"')


# Virtual references ---------------------------------------------------------------------------------------------------


@pytest.fixture
def netcdf(tmp_path: Path) -> Path:
    path = tmp_path / "a.nc"
    dataset().to_netcdf(path, encoding={"z": {"zlib": True, "shuffle": True, "chunksizes": (4, ROWS, COLUMNS)}})
    return path


def kerchunked(netcdf: Path) -> dict[str, Any]:
    hdf = pytest.importorskip("kerchunk.hdf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hdf.SingleHdf5ToZarr(str(netcdf), inline_threshold=0).translate()


def test_kerchunk_json(netcdf: Path, tmp_path: Path) -> None:
    (tmp_path / "refs.json").write_text(json.dumps(kerchunked(netcdf)))
    archive = open_archive(tmp_path / "refs.json")
    assert archive.format == "virtual"
    reads_like_memory(archive)
    reads_like_memory(open_archive("reference://", storage_options={"fo": str(tmp_path / "refs.json")}))


def test_kerchunk_parquet(netcdf: Path, tmp_path: Path) -> None:
    df = pytest.importorskip("kerchunk.df")
    pytest.importorskip("fastparquet")
    df.refs_to_dataframe(kerchunked(netcdf), str(tmp_path / "refs.parq"))
    reads_like_memory(open_archive(tmp_path / "refs.parq"))


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_virtualizarr(netcdf: Path, tmp_path: Path, format: Any) -> None:
    virtualizarr = pytest.importorskip("virtualizarr")
    obstore, registry = pytest.importorskip("obstore.store"), pytest.importorskip("obspec_utils.registry")
    where = registry.ObjectStoreRegistry({"file://": obstore.LocalStore()})
    parser = virtualizarr.parsers.HDFParser()
    with virtualizarr.open_virtual_dataset(f"file://{netcdf}", registry=where, parser=parser) as virtual:
        virtual.vz.to_kerchunk(str(tmp_path / f"refs.{format}"), format=format)
    archive = open_archive(tmp_path / f"refs.{format}")
    assert archive.format == "virtual"
    reads_like_memory(archive)


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_references_into_a_damaged_file(netcdf: Path, tmp_path: Path, damage: str) -> None:
    (tmp_path / "refs.json").write_text(json.dumps(kerchunked(netcdf)))
    archive = open_archive(tmp_path / "refs.json")
    os.remove(netcdf) if damage == "gone" else os.truncate(netcdf, 600)
    with pytest.raises(UserError, match="cannot read z of"):
        archive.read(0, STEPS)


def test_json_that_holds_no_references(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"title": "no archive"}')
    refused(tmp_path / "a.json", "is no archive that we know")
