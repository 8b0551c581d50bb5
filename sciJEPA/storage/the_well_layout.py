"""Part of arrow 1: what one file in the layout of The Well says about itself, without the values of its fields.

What arrives: an HDF5 file. What leaves: a :class:`Layout`, whose shapes are those that its attributes promise, or one
sentence that names the file and the dataset at fault.
What we decided against: believing shapes alone. The attributes sample_varying, time_varying and dim_varying say which
dimensions a field has, and a field whose shape disagrees is refused.
"""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.storage.hdf5_fields import require_h5py

# Attributes that describe the layout; all others of a field (units, a long name) are handed on.
LAYOUT = ("dim_varying", "sample_varying", "time_varying", "symmetric", "antisymmetric")


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """A field in one file: its dimensions without those of its components, and what is stored."""

    rank: int
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None
    attrs: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """All of one file but the values of its fields, which are listed by their place in it (``t0_fields/density``)."""

    path: str
    name: str
    grid_type: str
    trajectories: int
    space: Mapping[str, xr.Variable]
    time: xr.Variable
    fields: Mapping[str, Field]
    scalars: Mapping[str, xr.Variable]
    boundaries: Mapping[str, list[str]] | None


def read_layout(path: str) -> Layout:
    """Read all of a file but its fields."""
    h5py = require_h5py(path)
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist; give an HDF5 file in the layout of The Well.")
    try:
        with h5py.File(path, mode="r") as file:
            return _layout_of(path, file)
    except (OSError, KeyError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
        raise UserError(
            f"{path} cannot be opened: {reason}; it is damaged or incomplete, so fetch it again."
        ) from error


def _layout_of(path: str, file: Any) -> Layout:
    for group in ("dimensions", "t0_fields"):
        if group not in file:
            raise UserError(
                f"{path} is not in the layout of The Well: it lacks the group {group}; it has {_names(file)}."
            )
    for name in ("n_trajectories", "dataset_name"):
        if name not in file.attrs:
            raise UserError(f"{path} is not in the layout of The Well: it lacks the attribute {name}; write it again.")
    if "spatial_dims" not in file["dimensions"].attrs:
        raise UserError(
            f"dimensions of {path} lacks the attribute spatial_dims, the names of its axes; write it again."
        )
    trajectories = int(file.attrs["n_trajectories"])
    space = {dim: _axis(path, file["dimensions"], dim) for dim in _texts(file["dimensions"].attrs["spatial_dims"])}
    time = _time(path, file["dimensions"], trajectories)
    sizes = {"trajectory": trajectories, "time": time.shape[-1], **{dim: axis.size for dim, axis in space.items()}}
    fields = {
        f"{group}/{name}": _field(path, file[group][name], rank, sizes)
        for rank, group in enumerate(("t0_fields", "t1_fields", "t2_fields"))
        for name in _listed(path, file, group)
    }
    if not fields:
        raise UserError(f"{path} has no fields in t0_fields, t1_fields or t2_fields; fetch or write it again.")
    return Layout(
        path=path,
        name=_text(file.attrs["dataset_name"]),
        grid_type=_text(file.attrs.get("grid_type", "cartesian")).lower(),
        trajectories=trajectories,
        space=space,
        time=time,
        fields=fields,
        scalars=_scalars(path, file, sizes),
        boundaries=_boundaries(path, file, space) if "boundary_conditions" in file else None,
    )


def _text(value: Any) -> str:
    value = np.asarray(value).reshape(-1)[0] if np.size(value) == 1 else value
    return value.decode() if isinstance(value, bytes) else str(value)


def _texts(value: Any) -> list[str]:
    if getattr(value, "shape", ()) is None:  # h5py.Empty
        return []
    return [_text(entry) for entry in np.atleast_1d(np.asarray(value, dtype=object))]


def _names(group: Any) -> str:
    return ", ".join(group) or "nothing"


def _listed(path: str, file: Any, group: str) -> list[str]:
    """Names of the datasets in a group, in the order in which it lists them."""
    if group not in file:
        return []
    names = _texts(file[group].attrs.get("field_names", list(file[group])))
    for name in names:
        if name not in file[group]:
            raise UserError(
                f"{path} is incomplete: {group} lists {name}, but has {_names(file[group])}; fetch or write it again."
            )
    return names


def _varies(dataset: Any, along: str) -> bool:
    return bool(dataset.attrs.get(f"{along}_varying", False))


def _handed_on(dataset: Any) -> dict[str, Any]:
    """Attributes that are not about the layout, as netCDF and Zarr can write them."""
    return {
        name: _text(value) if np.asarray(value).dtype.kind in "OSU" else np.asarray(value).tolist()
        for name, value in dataset.attrs.items()
        if name not in LAYOUT
    }


def _axis(path: str, group: Any, dim: str) -> xr.Variable:
    """Coordinates along a dimension of space, which are those of all trajectories and times."""
    if dim not in group:
        raise UserError(f"{path} is incomplete: it lacks dimensions/{dim}; it has {_names(group)}.")
    values = group[dim][()]
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
    if (rows != rows[0]).any():
        raise UserError(
            f"dimensions/{dim} of {path} differs between trajectories or times, but one grid for all is needed; "
            "interpolate the fields to one grid, or split the file."
        )
    return xr.Variable((dim,), rows[0], _handed_on(group[dim]))


def _time(path: str, group: Any, trajectories: int) -> xr.Variable:
    """Times, on (time) or on (trajectory, time)."""
    if "time" not in group:
        raise UserError(f"{path} is incomplete: it lacks dimensions/time; it has {_names(group)}.")
    stored = group["time"]
    if stored.ndim not in (1, 2) or (stored.ndim == 2 and stored.shape[0] != trajectories):
        raise UserError(
            f"dimensions/time of {path} has the shape {stored.shape}, but (steps) or ({trajectories}, steps) is needed."
        )
    values, attrs = stored[()], _handed_on(stored)
    if values.ndim == 2 and (values == values[:1]).all():
        values = values[0]
    return xr.Variable(("trajectory", "time")[-values.ndim :], values, attrs)


def _field(path: str, stored: Any, rank: int, sizes: Mapping[str, int]) -> Field:
    """What is stored of a field, checked against the sizes of the file."""
    space = [dim for dim in sizes if dim not in ("trajectory", "time")]
    varies = dict(zip(space, stored.attrs.get("dim_varying", [True] * len(space)), strict=False))
    varies |= {"trajectory": _varies(stored, "sample"), "time": _varies(stored, "time")}
    dims = tuple(dim for dim in sizes if varies.get(dim, True))
    expected = (*(sizes[dim] for dim in dims), *(len(space),) * rank)
    if stored.shape != expected:
        meaning = ", ".join((*dims, *("component",) * rank))
        raise UserError(
            f"{stored.name[1:]} of {path} has the shape {stored.shape}, but {expected} is needed for ({meaning}); "
            "fetch or write the file again."
        )
    attrs = _handed_on(stored)
    if rank:
        flags = {name: int(bool(stored.attrs[name])) for name in ("symmetric", "antisymmetric") if name in stored.attrs}
        attrs |= {"tensor": stored.name.rpartition("/")[2], "rank": rank, **flags}
    return Field(rank=rank, dims=dims, shape=stored.shape, dtype=stored.dtype, chunks=stored.chunks, attrs=attrs)


def _scalars(path: str, file: Any, sizes: Mapping[str, int]) -> dict[str, xr.Variable]:
    """Scalars on (trajectory), (time), both or neither; parameters of the simulation always on (trajectory)."""
    scalars = {}
    for name in _listed(path, file, "scalars"):
        stored = file["scalars"][name]
        dims = [dim for dim, along in (("trajectory", "sample"), ("time", "time")) if _varies(stored, along)]
        expected = tuple(sizes[dim] for dim in dims)
        if stored.shape[: len(dims)] != expected:
            needed = f"{expected} is needed for ({', '.join(dims)})"
            raise UserError(f"scalars/{name} of {path} has the shape {stored.shape}, but {needed}; write it again.")
        scalars[name] = _with_entries(name, dims, stored[()], _handed_on(stored))
    for name in _texts(file.attrs.get("simulation_parameters", [])):
        if name not in scalars and name not in file.attrs:
            raise UserError(f"{path} lists the parameter {name}, but has no such attribute; fetch or write it again.")
        value = scalars[name] if name in scalars else _with_entries(name, [], file.attrs[name], {})
        scalars[name] = value if value.dims[:1] == ("trajectory",) else spread(value, sizes["trajectory"])
    return scalars


def _with_entries(name: str, dims: list[str], values: Any, attrs: dict[str, Any]) -> xr.Variable:
    """A variable; axes of length one beyond `dims` are dropped, longer ones are named after the variable."""
    values = np.asarray(values)
    if values.dtype.kind in "OS":
        values = np.asarray([_text(value) for value in values.reshape(-1)]).reshape(values.shape)
    extra = [size for size in values.shape[len(dims) :] if size != 1]
    names = [f"{name}_entry_{number}" for number in range(len(extra))]
    return xr.Variable((*dims, *names), values.reshape((*values.shape[: len(dims)], *extra)), attrs)


def spread(value: xr.Variable, trajectories: int) -> xr.Variable:
    """The same value for every trajectory."""
    values = np.repeat(value.values[None], trajectories, axis=0)
    return xr.Variable(("trajectory", *value.dims), values, value.attrs)


def _boundaries(path: str, file: Any, space: Mapping[str, xr.Variable]) -> dict[str, list[str]]:
    """For each dimension of space, the condition at its first and at its last row.

    A mask says where a condition holds. Of several on one side, that which covers most of it counts; a side that no
    mask covers is open, as the layout has it.
    """
    covered: dict[tuple[str, int], dict[str, float]] = {
        (dim, side): defaultdict(float) for dim in space for side in (0, -1)
    }
    for name, group in file["boundary_conditions"].items():
        if "mask" not in group or not {"bc_type", "associated_dims"} <= set(group.attrs):
            raise UserError(f"boundary_conditions/{name} of {path} lacks its mask, bc_type or associated_dims.")
        mask, kind = group["mask"], _text(group.attrs["bc_type"]).lower()
        dims = [dim for dim in space if dim in _texts(group.attrs["associated_dims"])]
        leading = mask.ndim - len(dims)  # the mask may vary with trajectory and time
        if mask.shape[max(0, leading) :] != tuple(space[dim].size for dim in dims):
            raise UserError(
                f"boundary_conditions/{name}/mask of {path} has the shape {mask.shape}, but "
                f"{tuple(space[dim].size for dim in dims)} is needed for ({', '.join(dims)}); write the file again."
            )
        for axis, dim in enumerate(dims, start=leading):
            for side in (0, -1):
                key: list[Any] = [slice(None)] * mask.ndim
                key[axis] = side if side == 0 else mask.shape[axis] - 1
                covered[dim, side][kind] += float(np.mean(mask[tuple(key)]))
    return {dim: [_most(covered[dim, side]) for side in (0, -1)] for dim in space}


def _most(shares: Mapping[str, float]) -> str:
    """The condition with the largest share of a side; what none covers counts as open."""
    shares = dict(shares)
    shares["open"] = shares.get("open", 0.0) + max(0.0, 1.0 - sum(shares.values()))
    return max(shares, key=lambda kind: shares[kind])
