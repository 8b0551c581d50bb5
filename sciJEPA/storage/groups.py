"""Part of arrow 1: a tree of groups -> the one dataset in it that holds fields.

What arrives: an ``xr.DataTree``, or the groups of a Zarr store or NetCDF file. What leaves: one dataset, with the
coordinates that it inherits from the groups above.
What we decided against: joining groups (two resolutions are two archives) and taking the largest one.
"""

from collections.abc import Mapping

import xarray as xr

from sciJEPA.axes import find_axis
from sciJEPA.errors import UserError


def nodes_of(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    """Path -> dataset, without the coordinates inherited from above."""
    return {node.path: node.to_dataset(inherit=False) for node in tree.subtree}


def choose_node(nodes: Mapping[str, xr.Dataset], name: str, choice: str) -> str:
    """Path of the group that holds fields: the root where it does, else the only one.

    `choice` is the call by which the user names a group, with ``{}`` in the place of its path.
    """
    holding = [path for path in nodes if holds_fields(inherited(nodes, path))]
    if "/" in holding or len(holding) == 1:
        return "/" if "/" in holding else holding[0]
    if not holding:
        found = _listed([path for path in nodes if path != "/"]) or "no groups"
        raise UserError(f"no group of {name} holds fields on a time axis; it has {found}.")
    raise UserError(
        f"{name} has {len(holding)} groups that hold fields ({_listed(holding)}); choose one with "
        f"{choice.format(holding[0])}."
    )


def inherited(nodes: Mapping[str, xr.Dataset], path: str) -> xr.Dataset:
    """The dataset at `path` with the coordinates of the groups above that fit its dimensions."""
    ds = nodes[path]
    parts = path.strip("/").split("/")
    for count in range(len(parts) - 1, -1, -1):
        above = nodes.get("/" + "/".join(parts[:count]))
        if above is not None and path != "/":
            missing = {name: coord for name, coord in above.coords.items() if name not in ds.variables}
            ds = ds.assign_coords({name: coord for name, coord in missing.items() if _fits(coord, ds)})
    return ds


def group_path(nodes: Mapping[str, xr.Dataset], group: str, name: str) -> str:
    """The group as it is called among the nodes."""
    path = "/" + group.strip("/")
    if path not in nodes:
        raise UserError(f"{name} has no group {path}; it has {_listed(list(nodes))}.")
    return path


def holds_fields(ds: xr.Dataset) -> bool:
    """Whether a numeric variable lies on a time axis and a further dimension."""
    time = find_axis(ds, "time")
    fields = (ds[name] for name in ds.data_vars)
    return time is not None and any(f.dtype.kind in "fiu" and f.ndim > 1 and time.dim in f.dims for f in fields)


def _fits(coord: xr.DataArray, ds: xr.Dataset) -> bool:
    return all(ds.sizes.get(dim) == size for dim, size in coord.sizes.items())


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - 6} more" if len(paths) > 6 else ""
    return ", ".join(paths[:6]) + more
