"""Part of arrow 1: simulations in the layout of The Well as one lazily read ``xr.Dataset``.

What arrives: HDF5 files with the groups t0_fields, t1_fields and t2_fields (scalar, vector and tensor fields), scalars,
dimensions and boundary_conditions; one file, a list of them, or a folder, perhaps with train, valid and test in it.
What leaves: a dataset with the dimensions trajectory, time and those of space under their own names. Vectors and
tensors are taken apart (``velocity_x``, ``D_xy``); parameters are coordinates of the trajectories; the boundary
conditions are JSON in ``attrs["boundary_conditions"]``: ``{"x": ["periodic", "periodic"], "y": ["wall", "open"]}``.
What we decided against: repeating static fields along dimensions that they lack, joining files of different lengths
(one of them would have to be cut or padded), and renaming.

The layout: Ohana et al. 2024, https://arxiv.org/abs/2412.00568.
"""

import glob
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from sciJEPA.errors import UserError
from sciJEPA.storage.hdf5_fields import SLAB_BYTES, FieldArray, Files
from sciJEPA.storage.the_well_layout import Field, Layout, read_layout, spread

SPLITS = ("train", "valid", "test")
ENDINGS = (".hdf5", ".h5")


def is_the_well(path: str | os.PathLike) -> bool:
    """Whether a file, or the first HDF5 file of a folder, has the layout of The Well."""
    path = os.path.expanduser(os.fspath(path))
    files = _files_in(path) if os.path.isdir(path) else [path]
    if not files or not os.path.isfile(files[0]):
        return False
    with open(files[0], "rb") as start:
        if start.read(4) != b"\x89HDF":
            return False
    try:
        try:
            import h5py

            with h5py.File(files[0], mode="r") as file:
                groups, attributes = set(file), set(file.attrs)
        except ImportError:  # netCDF4 can tell as well; only reading needs h5py
            import netCDF4

            with netCDF4.Dataset(files[0]) as file:
                groups, attributes = set(file.groups), set(file.ncattrs())
    except (OSError, RuntimeError):  # damaged: whoever opens it will say so
        return False
    return {"t0_fields", "dimensions"} <= groups and {"n_trajectories", "dataset_name"} <= attributes


def open_the_well(source: str | os.PathLike | Sequence[str | os.PathLike]) -> xr.Dataset:
    """Open simulations in the layout of The Well; fields are read where they are indexed, and only there.

    Parameters
    ----------
    source : a file, a list of files, a glob pattern, or a folder. A folder may have train, valid and test in it, or in
        its folder data; they become the coordinate ``split``.

    Returns
    -------
    Dimensions (trajectory, time, the file's own dimensions of space). All files are joined along ``trajectory``, whose
    coordinates are ``file``, ``split`` where the folders tell it, and the parameters of each simulation. A component
    says in its attributes which ``tensor`` and ``component`` it is, its ``rank``, and 1 or 0 for ``symmetric`` and
    ``antisymmetric``. Where the times differ between trajectories, ``time`` counts steps and
    ``time_of_trajectory`` (trajectory, time) has the values. A field that is constant in each file, but not the same in
    all, comes on ``trajectory``. The attributes are dataset_name, grid_type and boundary_conditions.

    Raises
    ------
    UserError : a file is damaged or incomplete, or does not fit to the others.
    """
    paths = _paths(source)
    layouts = [read_layout(path) for path in paths]
    _require_one_length(layouts)
    for layout in layouts[1:]:
        _require_same(layouts[0], layout)
    first, files = layouts[0], Files(paths)
    variables: dict[str, xr.Variable] = {}
    for place, field in first.fields.items():
        for name, variable in _field_variables(files, layouts, place, field).items():
            _require_new(name, variables, first)
            variables[name] = variable
    coords = {**first.space, **_times(layouts), **_origins(layouts)}
    for name in first.scalars:
        _require_new(name, {**variables, **coords}, first)
        scalar = _join([layout.scalars[name] for layout in layouts], [layout.trajectories for layout in layouts])
        (variables if "time" in scalar.dims else coords)[name] = scalar
    attrs: dict[str, Any] = {"dataset_name": first.name, "grid_type": first.grid_type}
    if first.boundaries is not None:
        attrs["boundary_conditions"] = json.dumps(first.boundaries)
    ds = xr.Dataset(variables, coords, attrs)
    ds.set_close(files.close)
    return ds


def _paths(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """The files behind a source."""
    if not isinstance(source, str | os.PathLike):
        paths = [os.path.expanduser(os.fspath(path)) for path in source]
        if not paths:
            raise UserError("the list of files is empty; give at least one HDF5 file in the layout of The Well.")
        return paths
    path = os.path.expanduser(os.fspath(source))
    if os.path.isdir(path):
        found = _files_in(path)
    elif any(letter in path for letter in "*?[") and not os.path.exists(path):
        found = sorted(glob.glob(path))
    else:
        found = [path]
    if not found:
        raise UserError(f"{path} has no HDF5 files; give a file, or a folder with files or with train, valid and test.")
    return found


def _files_in(folder: str) -> list[str]:
    """HDF5 files of a folder: those of its splits in their order, else its own."""
    for parent in (Path(folder), Path(folder, "data")):
        for places in ([parent / split for split in SPLITS], [parent]):
            found = [
                str(path)
                for place in places
                if place.is_dir()
                for path in sorted(place.iterdir())
                if path.suffix.lower() in ENDINGS and path.is_file()
            ]
            if found:
                return found
    return []


def _require_one_length(layouts: Sequence[Layout]) -> None:
    """Refuse files with different numbers of steps, and say which files have which."""
    lengths: dict[int, list[str]] = {}
    for layout in layouts:
        lengths.setdefault(layout.time.shape[-1], []).append(layout.path)
    if len(lengths) > 1:
        counts = "; ".join(
            f"{steps} in {len(paths)} file{'s' if len(paths) > 1 else ''}, such as {paths[0]}"
            for steps, paths in lengths.items()
        )
        raise UserError(
            "all trajectories of one dataset must have the same number of time steps, but these files have "
            f"{counts}; choose those of one length and give them as a list, open_the_well([...])."
        )


def _require_same(first: Layout, other: Layout) -> None:
    """Refuse to join files that differ in more than their values, parameters and number of trajectories."""
    sizes = [{dim: axis.size for dim, axis in layout.space.items()} for layout in (other, first)]
    facts: dict[str, tuple[Any, Any]] = {
        "dataset": (other.name, first.name),
        "grid type": (other.grid_type, first.grid_type),
        "grid": (sizes[0], sizes[1]),
        "boundary conditions": (other.boundaries, first.boundaries),
        "fields": (list(other.fields), list(first.fields)),
        "scalars": (sorted(other.scalars), sorted(first.scalars)),
    }
    for place in first.fields.keys() & other.fields.keys():
        both = other.fields[place], first.fields[place]
        facts[f"dimensions of {place}"] = both[0].dims, both[1].dims
        facts[f"type of {place}"] = str(both[0].dtype), str(both[1].dtype)
    for name in first.scalars.keys() & other.scalars.keys():
        facts[f"dimensions of scalars/{name}"] = other.scalars[name].dims, first.scalars[name].dims
    for what, (found, needed) in facts.items():
        if found != needed:
            raise UserError(
                f"{other.path} does not fit to {first.path}: its {what} is {found}, not {needed}; open them one by one."
            )
    for dim, axis in first.space.items():
        spacing = float(np.abs(np.diff(axis.values)).min()) if axis.size > 1 else 1.0
        apart = float(np.abs(other.space[dim].values - axis.values).max())
        if apart > 1e-3 * spacing:  # float32 coordinates that were computed twice differ in the last digits
            raise UserError(
                f"{other.path} does not fit to {first.path}: dimensions/{dim} differs by up to {apart:g}, and its "
                f"spacing is {spacing:g}; open them one by one, or interpolate to one grid."
            )


def _require_new(name: str, known: Mapping[str, Any], layout: Layout) -> None:
    if name in known or name in ("trajectory", "time", "time_of_trajectory", "file", "split", *layout.space):
        raise UserError(f"{layout.path} has {name} twice, as a field, component, scalar or axis; rename one of them.")


def _field_variables(files: Files, layouts: Sequence[Layout], place: str, field: Field) -> dict[str, xr.Variable]:
    """One lazily read variable for each component of a field."""
    counts = [layout.trajectories for layout in layouts]
    stored = [layout.fields[place].shape for layout in layouts]
    chunks = {layout.fields[place].chunks for layout in layouts}
    dims, shared = field.dims, False
    if "trajectory" not in dims:
        if _agree(files, layouts, place):
            counts = []
        else:
            dims, shared = ("trajectory", *dims), True
    space, name = list(layouts[0].space), place.rpartition("/")[2]
    joint = "" if all(len(dim) == 1 for dim in space) else "_"
    variables = {}
    for component in itertools.product(range(len(space)), repeat=field.rank):
        array = FieldArray(files, place, stored, field.dtype, component=component, counts=counts, shared=shared)
        label = joint.join(space[axis] for axis in component)
        attrs = dict(field.attrs) | ({"component": label} if component else {})
        encoding: dict[str, Any] = {"dataset": place, "component": component}
        if len(chunks) == 1 and field.chunks is not None and not shared:
            encoding["chunksizes"] = field.chunks[: len(dims)]
            encoding["preferred_chunks"] = dict(zip(dims, encoding["chunksizes"], strict=True))
        lazy = indexing.LazilyIndexedArray(array)
        variables[f"{name}_{label}" if component else name] = xr.Variable(dims, lazy, attrs, encoding)
    return variables


def _agree(files: Files, layouts: Sequence[Layout], place: str) -> bool:
    """Whether a field that does not vary with the trajectory is the same in all files; read piece by piece.

    One that varies with time may be as large as the archive, so it is not compared: each file keeps its own.
    """
    field = layouts[0].fields[place]
    if len(layouts) == 1 or "time" in field.dims:
        return len(layouts) == 1
    rows = max(1, SLAB_BYTES // max(1, field.dtype.itemsize * int(np.prod(field.shape[1:])))) if field.shape else 1
    keys: list[tuple] = (
        [(slice(start, start + rows),) for start in range(0, field.shape[0], rows)] if field.shape else [()]
    )
    for key in keys:
        first = files.read(0, place, key, field.shape)
        for number in range(1, len(layouts)):
            if not np.array_equal(first, files.read(number, place, key, field.shape), equal_nan=True):
                return False
    return True


def _times(layouts: Sequence[Layout]) -> dict[str, xr.Variable]:
    """The coordinate of time: one axis where all agree, else the times of each trajectory beside a count of steps."""
    first = layouts[0].time
    if first.ndim == 1:
        close = 1e-3 * (float(np.abs(np.diff(first.values)).min()) if first.size > 1 else 1.0)
        if all(
            layout.time.ndim == 1 and float(np.abs(layout.time.values - first.values).max()) <= close
            for layout in layouts
        ):
            return {"time": first}
    times = [spread(layout.time, layout.trajectories) if layout.time.ndim == 1 else layout.time for layout in layouts]
    steps = xr.Variable(("time",), np.arange(first.shape[-1]), {"long_name": "step"})
    return {"time": steps, "time_of_trajectory": xr.Variable.concat(times, "trajectory")}


def _origins(layouts: Sequence[Layout]) -> dict[str, xr.Variable]:
    """Which file, and which split, each trajectory comes from."""
    counts = [layout.trajectories for layout in layouts]
    parents = [Path(layout.path).absolute().parent.name for layout in layouts]
    origins = {"file": xr.Variable(("trajectory",), np.repeat([layout.path for layout in layouts], counts))}
    if set(parents) <= set(SPLITS):
        origins["split"] = xr.Variable(("trajectory",), np.repeat(parents, counts))
    return origins


def _join(values: Sequence[xr.Variable], counts: Sequence[int]) -> xr.Variable:
    """Scalars of all files: along the trajectories where they have them or differ, else as they are."""
    if "trajectory" not in values[0].dims:
        if all(value.equals(values[0]) for value in values):
            return values[0]
        values = [spread(value, count) for value, count in zip(values, counts, strict=True)]
    return xr.Variable.concat(values, "trajectory")
