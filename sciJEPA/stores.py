"""Part of arrow 1: from a path to a lazily indexed ``xr.Dataset``, or to one sentence that says why not.

What arrives: a path, URL or glob pattern, or xarray objects in memory. What leaves: a dataset, the name of its source
and its format.
What we decided against: dask for Zarr and single files (it costs more than the read), joining files whose grids differ
(``join="exact"``), and trying every engine in turn (the first bytes of a file say what it is).
"""

import glob
import math
import os
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError

WHAT_OPENS = "a Zarr store, a NetCDF or HDF5 file, or a folder of NetCDF files"
NETCDF_ENDINGS = (".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")
# What else people try to open, by the first bytes.
OTHER_KINDS = {
    b"GRIB": "a GRIB file (convert it with cfgrib or cdo -f nc copy)",
    b"PK\x03\x04": "a zip file (unpack it first)",
    b"\x1f\x8b": "a gzip file (unpack it first)",
    b"\x93NUMPY": "a NumPy file (put its array into an xr.Dataset with time, latitude and longitude)",
    b"PAR1": "a Parquet table",
    b"\x0e\x03\x13\x01": "an HDF4 file (convert it with ncks or h4toh5)",
}


# Of contiguous NetCDF files in a folder, dask reads pieces of about this size; a window costs at least one of them.
BYTES_PER_PIECE = 16_000_000


class Store(NamedTuple):
    """A dataset, the name of its source, its format, and the files behind it with their bytes when opened."""

    ds: xr.Dataset
    name: str
    format: str
    files: Mapping[str, int] = {}


def open_store(source: str | os.PathLike | xr.Dataset | xr.DataArray) -> Store:
    """The dataset behind ``source``, opened lazily."""
    if isinstance(source, xr.DataArray):
        if source.name is None:
            raise UserError("the xr.DataArray has no name, so its channel would have none; use da.rename(...).")
        return Store(source.to_dataset(), "<memory>", "memory")
    if isinstance(source, xr.Dataset):
        return Store(source, "<memory>", "memory")
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"cannot open a {type(source).__name__}; give a path or an xr.Dataset.")
    path = os.path.expanduser(os.fspath(source))
    if "://" in path:
        kind = "netcdf" if path.lower().endswith(NETCDF_ENDINGS) else "zarr"
        return _open_zarr(path) if kind == "zarr" else Store(_open_with_xarray(path, engine="netcdf4"), path, kind)
    if any(letter in path for letter in "*?[") and not os.path.exists(path):
        files = sorted(glob.glob(path))
        if not files:
            raise UserError(f"no file matches {path}; check the pattern, or give {WHAT_OPENS}.")
        return _open_folder(files, path)
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist{_close_names(path)}; give {WHAT_OPENS}.")
    return _open_directory(path) if os.path.isdir(path) else _open_file(path)


def _close_names(path: str) -> str:
    """A hint at what may have been meant: names like it in its folder, or the part of the path that exists."""
    wanted = Path(path).absolute()
    if not wanted.parent.is_dir():
        existing = next(parent for parent in wanted.parents if parent.is_dir())
        return f" ({existing} exists, but has no {wanted.relative_to(existing).parts[0]})"
    close = get_close_matches(wanted.name, sorted(os.listdir(wanted.parent)), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(str(Path(path).parent / name) for name in close)}?)" if close else ""


def _open_directory(path: str) -> Store:
    entries = sorted(os.listdir(path))
    if {"zarr.json", ".zgroup", ".zmetadata"} & set(entries):
        return _open_zarr(path)
    if ".zarray" in entries:
        raise UserError(
            f"{path} is a single Zarr array, not a group with coordinates; open its parent {Path(path).parent}."
        )
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


def _open_zarr(path: str) -> Store:
    ds = _open_with_xarray(path, engine="zarr")
    encodings = [ds[name].encoding for name in ds.variables]
    # Only Zarr 3 arrays have a serializer; the format of the store is that of its arrays.
    version = "zarr3" if any("serializer" in encoding for encoding in encodings) else "zarr2"
    return Store(ds, path, version)


def _open_file(path: str) -> Store:
    with open(path, "rb") as file:
        magic = file.read(8)
    if not magic.startswith((b"\x89HDF", b"CDF")):
        kind = next((kind for start, kind in OTHER_KINDS.items() if magic.startswith(start)), None)
        if kind is None and path.lower().endswith(NETCDF_ENDINGS):
            found = f"begins with {magic!r}" if magic else "is empty"
            raise UserError(f"{path} is damaged: it {found}, not with the signature of NetCDF or HDF5; fetch it again.")
        raise UserError(f"{path} is {kind or 'no archive that we know'}; give {WHAT_OPENS}.")
    size = os.path.getsize(path)
    ds = _open_with_xarray(path, engine="netcdf4")
    if magic.startswith(b"CDF"):
        # NetCDF 3 has no checksums, and its library reads zeros beyond the end of a truncated file.
        needed = sum(_stored_bytes(ds[name].variable) for name in ds.variables)
        if size < needed:
            raise UserError(f"{path} is truncated: it has {size} bytes, but its values need {needed}; fetch it again.")
    return Store(ds, path, "netcdf", {path: size})


def _stored_bytes(variable: xr.Variable) -> int:
    """Bytes of a variable in a NetCDF file, from the shape and the type that it has on disk."""
    shape = variable.encoding.get("original_shape", variable.shape)
    return math.prod(shape) * np.dtype(variable.encoding.get("dtype", variable.dtype)).itemsize


def _open_with_xarray(path: str, **options: Any) -> xr.Dataset:
    """Open lazily, without dask; a time axis that xarray cannot decode stays numbers."""
    # cache=False: values that were read once would otherwise stay in memory for as long as the archive.
    options |= {"chunks": None, "cache": False, "decode_timedelta": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unconsolidated metadata, dates outside pandas: handled, and told by inspect
        try:
            try:
                return xr.open_dataset(path, **options)
            except (ValueError, OverflowError) as error:
                if "time" not in str(error):
                    raise
                return xr.open_dataset(path, **options, decode_times=False)
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
