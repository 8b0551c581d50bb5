"""Part of arrow 1: from a path to a lazily indexed ``xr.Dataset``, or to one sentence that says why not.

What arrives: a path, URL or glob pattern, or xarray objects in memory. What leaves: a dataset, the name of its source
and its format. Addresses, virtual stores, groups and failing storage have modules of their own.
What we decided against: dask for Zarr and single files (it costs more than the read), joining files whose grids differ
(``join="exact"``), and trying every engine in turn (the first bytes of a file say what it is).
"""

import glob
import math
import os
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.storage.faults import AbsentChunks
from sciJEPA.storage.groups import choose_node, group_path, holds_fields, inherited, nodes_of
from sciJEPA.storage.remote import Options, local_copy, zarr_store
from sciJEPA.storage.sampling_geometry import is_sampling_geometry, to_stations
from sciJEPA.storage.tables import is_table, open_table, table_to_dataset
from sciJEPA.storage.the_well import is_the_well, open_the_well
from sciJEPA.storage.virtual import (
    icechunk_store,
    is_icechunk,
    is_reference_file,
    is_reference_folder,
    is_remote_icechunk,
    reference_store,
)

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

WHAT_OPENS = "a Zarr store, a NetCDF or HDF5 file, a folder of NetCDF files, or a table (CSV or Parquet)"
NETCDF_ENDINGS = (".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")
# What else people try to open, by the first bytes.
OTHER_KINDS = {
    b"GRIB": "a GRIB file (convert it with cfgrib or cdo -f nc copy)",
    b"PK\x03\x04": "a zip file (unpack it first)",
    b"\x1f\x8b": "a gzip file (unpack it first)",
    b"\x93NUMPY": "a NumPy file (put its array into an xr.Dataset with time, latitude and longitude)",
    b"\x0e\x03\x13\x01": "an HDF4 file (convert it with ncks or h4toh5)",
}


# Of contiguous NetCDF files in a folder, dask reads pieces of about this size; a window costs at least one of them.
BYTES_PER_PIECE = 16_000_000


class Store(NamedTuple):
    """A dataset, the name of its source, its format, the files behind it with their bytes when opened, its gaps."""

    ds: xr.Dataset
    name: str
    format: str
    files: Mapping[str, int] = {}
    absent: AbsentChunks | None = None


class _Way(NamedTuple):
    """How the user wants a source to be opened."""

    options: Options
    group: str | None
    allow_absent: bool
    cadence: str | None = None
    duplicates: str = "refuse"


def open_store(
    source: str | os.PathLike | xr.Dataset | xr.DataArray | xr.DataTree | pd.DataFrame,
    *,
    storage_options: Options | None = None,
    group: str | None = None,
    missing_chunks: str = "refuse",
    cadence: str | None = None,
    duplicates: str = "refuse",
) -> Store:
    """The dataset behind ``source``, opened lazily.

    Parameters
    ----------
    source : path, URL of any file system that fsspec knows, glob pattern, or xarray objects.
    storage_options : for fsspec, such as ``{"anon": True}`` or ``{"endpoint_url": ...}``; for Icechunk also ``branch``,
        ``tag`` or ``snapshot_id``.
    group : path of a group within the source.
    missing_chunks : ``refuse`` or ``fill``: whether a fill value that is a number may stand for a chunk of a Zarr store
        that is absent; NaN may always, since it is known to be missing.
    cadence : step of the time axis of a table or of ragged observations, such as ``1h``; the most common if not given.
    duplicates : ``refuse``, ``mean``, ``first`` or ``last``: rows of a table with the same time and station.
    """
    if missing_chunks not in ("refuse", "fill"):
        raise UserError(f"missing_chunks must be refuse or fill, got '{missing_chunks}'.")
    way = _Way(storage_options or {}, group, missing_chunks == "fill", cadence, duplicates)
    store = _open_any(source, way)
    if is_sampling_geometry(store.ds):
        return store._replace(ds=to_stations(store.ds, cadence=cadence, source=store.name), format="stations")
    return store


def _open_any(source: Any, way: _Way) -> Store:
    if isinstance(source, xr.DataTree):
        return _open_tree(nodes_of(source), way)
    if isinstance(source, xr.DataArray):
        if source.name is None:
            raise UserError("the xr.DataArray has no name, so its channel would have none; use da.rename(...).")
        return Store(source.to_dataset(), "<memory>", "memory")
    if isinstance(source, xr.Dataset):
        return Store(source, "<memory>", "memory")
    if isinstance(source, pd.DataFrame):
        ds = table_to_dataset(source, cadence=way.cadence, duplicates=way.duplicates)
        return Store(ds, "<memory>", "memory")
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"cannot open a {type(source).__name__}; give a path, an xr.Dataset or a pd.DataFrame.")
    path = os.path.expanduser(os.fspath(source))
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    if is_table(path) and ("://" in path or os.path.exists(path)) and not is_reference_folder(path):
        return _open_table(path, way)
    if "://" in path:
        return _open_address(path, way)
    if any(letter in path for letter in "*?[") and not os.path.exists(path):
        files = sorted(glob.glob(path))
        if not files:
            raise UserError(f"no file matches {path}; check the pattern, or give {WHAT_OPENS}.")
        if is_the_well(files[0]):
            return _open_well(files, path)
        return _open_folder(files, path)
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist{_close_names(path)}; give {WHAT_OPENS}.")
    return _open_directory(path, way) if os.path.isdir(path) else _open_file(path, way)


_PLAIN = _Way({}, None, False)


def _open_table(path: str, way: _Way) -> Store:
    ds = open_table(path, cadence=way.cadence, duplicates=way.duplicates, storage_options=way.options or None)
    return Store(ds, path, "table", {path: os.path.getsize(path)} if os.path.isfile(path) else {})


def _open_well(source: str | list[str], name: str) -> Store:
    """Simulations in the layout of The Well; their files are those that the trajectories name."""
    ds = open_the_well(source)
    files = np.unique(ds["file"].values).tolist() if "file" in ds.coords else [name]
    return Store(ds, name, "the well", {file: os.path.getsize(file) for file in files if os.path.isfile(file)})


def _open_tree(nodes: Mapping[str, xr.Dataset], way: _Way) -> Store:
    name = "the xr.DataTree"
    if way.group is None:
        path = choose_node(nodes, name, 'open_archive(tree["{}"])')
    else:
        path = group_path(nodes, way.group, name)
    return Store(inherited(nodes, path), "<memory>", "memory")


def _open_address(url: str, way: _Way) -> Store:
    """Zarr, unless the address says otherwise."""
    ending = url.split("::")[0].split("?")[0].rstrip("/").lower()
    if url.startswith("reference://"):
        references = str(way.options.get("fo") or url.removeprefix("reference://").removeprefix("::"))
        return _open_zarr(url, reference_store(references, way.options), way, "virtual")
    if ending.endswith(NETCDF_ENDINGS):
        return _open_file(_reachable(local_copy, url, way), way)._replace(name=url)
    if ending.endswith((".json", ".parq")):
        return _open_zarr(url, reference_store(url, way.options), way, "virtual")
    if _reachable(is_remote_icechunk, url, way):
        return _open_zarr(url, icechunk_store(url, way.options), way, "icechunk")
    from sciJEPA.storage.steady_store import SteadyStore

    store = _open_zarr(url, SteadyStore(zarr_store(url, way.options), AbsentChunks(allowed=way.allow_absent)), way)
    if not store.ds.variables:
        raise UserError(
            f"{url} shows no arrays: it is empty, or its server does not list folders; write its metadata in one piece "
            "with zarr.consolidate_metadata(...)."
        )
    return store


def _reachable(ask: Callable[[str, Options], Any], url: str, way: _Way) -> Any:
    try:
        return ask(url, way.options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{url} cannot be opened: {_first_line(error)}; {_advice(url)}.") from error


def _close_names(path: str) -> str:
    """A hint at what may have been meant: names like it in its folder, or the part of the path that exists."""
    wanted = Path(path).absolute()
    if not wanted.parent.is_dir():
        existing = next(parent for parent in wanted.parents if parent.is_dir())
        return f" ({existing} exists, but has no {wanted.relative_to(existing).parts[0]})"
    close = get_close_matches(wanted.name, sorted(os.listdir(wanted.parent)), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(str(Path(path).parent / name) for name in close)}?)" if close else ""


def _open_directory(path: str, way: _Way) -> Store:
    entries = sorted(os.listdir(path))
    if is_icechunk(path):
        return _open_zarr(path, icechunk_store(path, way.options), way, "icechunk")
    if is_reference_folder(path):
        return _open_zarr(path, reference_store(path, way.options), way, "virtual")
    if {"zarr.json", ".zgroup", ".zmetadata"} & set(entries):
        return _open_local_zarr(path, way)
    if ".zarray" in entries:
        raise UserError(
            f"{path} is a single Zarr array, not a group with coordinates; open its parent {Path(path).parent}."
        )
    if is_the_well(path):
        return _open_well(path, path)
    files = [os.path.join(path, name) for name in entries if name.lower().endswith(NETCDF_ENDINGS)]
    if files:
        return _open_folder(files, path)
    if path.rstrip("/").endswith(".zarr"):
        raise UserError(
            f"{path} is damaged or incomplete: it has neither zarr.json nor .zgroup; fetch or write it again."
        )
    stores = [name for name in entries if name.endswith(".zarr")]
    inside = f"did you mean {os.path.join(path, stores[0])}?" if stores else f"it has {len(entries)} other entries"
    raise UserError(f"{path} is a folder without NetCDF files ({inside}); give {WHAT_OPENS}.")


def _open_local_zarr(path: str, way: _Way) -> Store:
    """A Zarr store in a folder."""
    from zarr.storage import LocalStore

    from sciJEPA.storage.steady_store import SteadyStore

    absent = AbsentChunks(root=path, allowed=way.allow_absent)
    return _open_zarr(path, SteadyStore(LocalStore(path, read_only=True), absent), way)


def _open_zarr(path: str, store: "ZarrStore", way: _Way, format: str | None = None) -> Store:
    from sciJEPA.storage.steady_store import SteadyStore

    ds, group = _open_group(path, way, filename_or_obj=store, engine="zarr", consolidated=None)
    absent = None
    if isinstance(store, SteadyStore):
        store.guard(ds, group)
        absent = store.absent
    if format is None:
        encodings = [ds[name].encoding for name in ds.variables]
        # Only Zarr 3 arrays have a serializer; the format of the store is that of its arrays.
        format = "zarr3" if any("serializer" in encoding for encoding in encodings) else "zarr2"
    inside = f"{path.rstrip('/')}/{group}" if group else path
    return Store(ds, inside, format, {}, absent)


def _open_group(path: str, way: _Way, **options: Any) -> tuple[xr.Dataset, str]:
    """The dataset of the wanted group, or of the only one that holds fields, and the path of that group."""
    if way.group is None:
        ds = _open_with_xarray(path, **options)
        if ds.data_vars and holds_fields(ds):
            return ds, ""
        nodes = _open_nodes(path, ds, **options)
        if len(nodes) == 1:
            return ds, ""
        chosen = choose_node(nodes, path, f'open_archive("{path}", group="{{}}")')
    else:
        nodes = _open_nodes(path, None, **options)
        chosen = group_path(nodes, way.group, path)
    return inherited(nodes, chosen), chosen.strip("/")


def _open_nodes(path: str, root: xr.Dataset | None, **options: Any) -> dict[str, xr.Dataset]:
    """All groups of a source; only the root where it has no others that open."""
    options |= {"chunks": None, "cache": False, "decode_timedelta": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(xr.open_groups(options.pop("filename_or_obj", path), **options))
        except Exception as error:
            if root is not None:
                return {"/": root}
            raise UserError(f"the groups of {path} cannot be opened: {_first_line(error)}; {_advice(path)}.") from error


def _open_file(path: str, way: _Way = _PLAIN) -> Store:
    with open(path, "rb") as file:
        magic = file.read(8)
    if not magic.startswith((b"\x89HDF", b"CDF")):
        if magic.startswith(b"PAR1"):
            return _open_table(path, way)
        if is_reference_file(path):
            return _open_zarr(path, reference_store(path, way.options), way, "virtual")
        kind = next((kind for start, kind in OTHER_KINDS.items() if magic.startswith(start)), None)
        if kind is None and path.lower().endswith(NETCDF_ENDINGS):
            found = f"begins with {magic!r}" if magic else "is empty"
            raise UserError(f"{path} is damaged: it {found}, not with the signature of NetCDF or HDF5; fetch it again.")
        raise UserError(f"{path} is {kind or 'no archive that we know'}; give {WHAT_OPENS}.")
    if is_the_well(path):
        return _open_well(path, path)
    size = os.path.getsize(path)
    ds, group = _open_group(path, way, engine="netcdf4")
    if magic.startswith(b"CDF"):
        # NetCDF 3 has no checksums, and its library reads zeros beyond the end of a truncated file.
        needed = sum(_stored_bytes(ds[name].variable) for name in ds.variables)
        if size < needed:
            raise UserError(f"{path} is truncated: it has {size} bytes, but its values need {needed}; fetch it again.")
    return Store(ds, path, "netcdf group" if group else "netcdf", {path: size})


def _stored_bytes(variable: xr.Variable) -> int:
    """Bytes of a variable in a NetCDF file, from the shape and the type that it has on disk."""
    shape = variable.encoding.get("original_shape", variable.shape)
    return math.prod(shape) * np.dtype(variable.encoding.get("dtype", variable.dtype)).itemsize


def _open_with_xarray(path: str, **options: Any) -> xr.Dataset:
    """Open lazily, without dask; a time axis that xarray cannot decode stays numbers."""
    # cache=False: values that were read once would otherwise stay in memory for as long as the archive.
    options |= {"chunks": None, "cache": False, "decode_timedelta": False}
    source = options.pop("filename_or_obj", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unconsolidated metadata, dates outside pandas: handled, and told by inspect
        try:
            try:
                return xr.open_dataset(source, **options)
            except (ValueError, OverflowError) as error:
                if "time" not in str(error):
                    raise
                return xr.open_dataset(source, **options, decode_times=False)
        except Exception as error:
            raise UserError(f"{path} cannot be opened: {_first_line(error)}; {_advice(path)}.") from error


def _open_folder(files: list[str], name: str) -> Store:
    """Join NetCDF files in time; their grids must agree exactly."""
    try:
        import dask
    except ImportError as error:
        raise UserError(f'{name} has {len(files)} files, and joining them needs dask: pip install "dask".') from error
    time, pieces = _time_pieces(files[0])
    options: dict[str, Any] = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "exact"}
    options |= {"engine": "netcdf4", "decode_timedelta": False, "chunks": pieces}
    sizes = {file: os.path.getsize(file) for file in files}
    with warnings.catch_warnings(), dask.config.set(scheduler="synchronous"):
        warnings.simplefilter("ignore")
        try:
            ds = xr.open_mfdataset(files, combine="by_coords", **options)
        except Exception as error:
            for file in files:
                _open_file(file).ds.close()  # if one of them is damaged, this names it
            reason = f"{name} has {len(files)} files that do not fit together: {_first_line(error)}"
            if "monotonic" not in str(error) or time is None:
                raise UserError(f"{reason}; make their grids and variables agree, or open them one by one.") from error
            # Times overlap. Joined in the order of the names, the check of the time axis can say where.
            ds = xr.open_mfdataset(files, combine="nested", concat_dim=time, **options)
    return Store(ds, name, "netcdf folder", sizes)


def _time_pieces(file: str) -> tuple[str | None, dict[str, int]]:
    """The time dimension of a file, and how many of its steps dask should read at once.

    Dask reads whole pieces, and by default a contiguous file is one: a window of eight days would cost a year.
    """
    from sciJEPA.axes import find_axis

    ds = _open_file(file).ds
    axis = find_axis(ds, "time")
    if axis is None:
        return None, {}
    steps = []
    for name in ds.data_vars:
        variable = ds[name].variable
        if axis.dim in variable.dims and variable.ndim > 1:
            stored = variable.encoding.get("chunksizes")
            in_step = max(1, variable.nbytes // max(1, variable.sizes[axis.dim]))
            contiguous = max(1, BYTES_PER_PIECE // in_step)
            steps.append(stored[variable.dims.index(axis.dim)] if stored else contiguous)
    ds.close()
    return axis.dim, {axis.dim: max(steps)} if steps else {}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")


def _advice(path: str) -> str:
    if "://" in path:
        return "check the address, your network and whether the store needs a login"
    return "its metadata is damaged or incomplete, so fetch or write it again"
