"""1. archive -> samples: open an archive of fields or series, whatever its storage, and read time steps from it.

What arrives: a path or URL of a Zarr store, of NetCDF, of simulations in The Well's layout or of a table, or xarray
objects; axes are found by their CF attributes, then by their usual names.
What leaves: an :class:`Archive`, which knows its axes, places and channels and whose ``read`` gives ``(T, V, *space)``
float32. Members of an ensemble and trajectories of a simulation follow each other on one axis of steps.
What we decided against: dask between a training loop and a chunk (it costs far more than the read itself; only folders
of files use it, on one thread), and repairing a time axis (a sorted or deduplicated copy changes numbers, so we refuse
and print the call that does it).
"""

import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from html import escape
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from sciJEPA.axes import (
    Axes,
    check_time,
    decode_time,
    describe_hours,
    find_axes,
    hours_since_first,
    level_of,
    role_of_series,
    time_label,
)
from sciJEPA.errors import UserError
from sciJEPA.space import Space, find_space
from sciJEPA.storage.faults import AbsentChunks
from sciJEPA.storage.stores import open_store


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One field or series of an archive: a variable, or one level of it."""

    variable: str
    level: float | None = None
    units: str = ""

    @property
    def name(self) -> str:
        """``z`` for a variable without levels, ``z@500`` for one level: pressure in hPa, others in their own units."""
        return self.variable if self.level is None else f"{self.variable}@{self.level:g}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Archive:
    """An opened archive; made by :func:`open_archive`.

    Attributes
    ----------
    ds : the archive itself, with the user's own names, order and units, read lazily.
    source, format : path or ``<memory>``; ``zarr2``, ``zarr3``, ``netcdf``, ``netcdf folder``, ``memory``...
    files : NetCDF files behind the archive and their bytes when opened; a file that has changed since is not read.
    absent : what absent chunks of a Zarr store mean; None for other storage.
    axes : role (time, level, latitude, longitude, station, x, y, z, member...) -> the user's dimension name.
    space : the places: dimensions, coordinates, areas, what lies at the sides.
    series : dimensions of members or trajectories; their time series follow each other on the axis of steps.
    repeats : number of those series.
    variables, channels : numeric variables on time and all dimensions of space; each of their levels is one channel.
    static : numeric variables on the dimensions of space alone.
    time : dates (``pd.DatetimeIndex`` or ``xr.CFTimeIndex``), or plain numbers where the axis cannot be decoded; one
        entry a step, so that it begins anew with every series.
    hours : one entry a step, hours since the first step of its series. Numbers without known units count as days.
    cadence : median step in hours (months differ in length, so the mean would be nobody's step).
    calendar : ``standard``, ``noleap``, ``360_day``...; ``none`` where time is plain numbers.
    chunk_steps : time steps in one chunk (or shard) of the storage; reading fewer at once decodes chunks repeatedly.
    """

    ds: xr.Dataset
    source: str
    format: str
    files: Mapping[str, int]
    absent: AbsentChunks | None
    axes: Mapping[str, str]
    space: Space
    series: tuple[str, ...]
    repeats: int
    variables: tuple[str, ...]
    channels: tuple[Channel, ...]
    static: tuple[str, ...]
    time: pd.Index
    hours: np.ndarray
    cadence: float
    calendar: str
    chunk_steps: int

    def __len__(self) -> int:
        return len(self.time)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions of space, in the order in which `read` gives them."""
        return self.space.shape

    @property
    def latitude(self) -> np.ndarray:
        """Degrees north, (H,), or (H, W) on a curvilinear grid, in stored order; empty where there is none."""
        return self.space.latitude

    @property
    def longitude(self) -> np.ndarray:
        """Degrees east, (W,), or (H, W) on a curvilinear grid, in stored order; empty where there is none."""
        return self.space.longitude

    @property
    def periodic(self) -> bool:
        """The last dimension of space closes the circle; on a grid that is longitude."""
        return bool(self.space.periodic) and self.space.periodic[-1]

    @property
    def steps_per_series(self) -> int:
        """Time steps of one member or trajectory; all of them without such a dimension."""
        return len(self.time) // self.repeats

    def segments(self, start: int, stop: int) -> Iterator[tuple[tuple[int, ...], slice, slice]]:
        """Steps as pieces of single series: number along each dimension of `series`, its steps, places in the range."""
        length = self.steps_per_series
        shape = tuple(self.ds.sizes[dim] for dim in self.series)
        step = start
        while step < stop:
            number, first = divmod(step, length)
            last = min(length, first + stop - step)
            index = tuple(int(i) for i in np.unravel_index(number, shape)) if shape else ()
            yield index, slice(first, last), slice(step - start, step - start + last - first)
            step += last - first

    def step_of(self, times: pd.Index, series: np.ndarray | None = None) -> np.ndarray:
        """Steps with these times, of the series with these numbers (the first if not given); -1 where there is none."""
        step = np.asarray(self.time[: self.steps_per_series].get_indexer(times))
        return step if series is None else np.where(step < 0, -1, step + np.asarray(series) * self.steps_per_series)

    def __repr__(self) -> str:
        length = self.steps_per_series
        span = f"{time_label(self.time, 0)} to {time_label(self.time, length - 1)}"
        repeats = f" in each of {self.repeats} series" if self.series else ""
        name = os.path.basename(self.source.rstrip("/"))
        places = f"{len(self.channels)} channels on {self.space.describe()}"
        return f"<Archive {name}: {length} steps of {describe_hours(self.cadence)}{repeats}, {span}, {places}>"

    def _repr_html_(self) -> str:
        channels = ", ".join(channel.name for channel in self.channels)
        summary = f"<summary>{escape(repr(self))}</summary>"
        return f"<details>{summary}<p>{escape(channels)}</p>{self.ds._repr_html_()}</details>"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the time steps ``start`` to ``stop`` (exclusive), and nothing else.

        Returns shape (stop - start, V, *space), float32, C-contiguous, in the archive's units, NaN where missing; the
        order along each dimension is the stored one, the order of dimensions always this one.
        """
        start, stop = self.check_range(start, stop)
        out = np.empty((stop - start, len(self.channels), *self.shape), dtype=np.float32)
        for index, steps, place in self.segments(start, stop):
            first = 0
            for name in self.variables:
                try:
                    self.check_storage(name)
                    values = self._read_variable(name, index, steps)
                except MemoryError:
                    raise
                except Exception as error:
                    raise self.damaged(name, start, stop, error) from error
                with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which the statistics then report
                    out[place, first : first + values.shape[1]] = values
                first += values.shape[1]
        return out

    def read_static(self) -> np.ndarray:
        """The static variables, shape (len(static), *space), float32, NaN where missing."""
        fields = [self.ds[name].transpose(*self.space.dims).values for name in self.static]
        return np.stack(fields).astype(np.float32) if fields else np.empty((0, *self.shape), dtype=np.float32)

    def check_range(self, start: int, stop: int) -> tuple[int, int]:
        """The range as plain integers; refused where it is empty or reaches outside of the archive."""
        start, stop = operator.index(start), operator.index(stop)
        if not 0 <= start < stop <= len(self):
            message = f"cannot read time steps {start} to {stop} of {self.source}: it has steps 0 to {len(self)}, and"
            raise UserError(f"{message} start must come before stop; ask for 0 <= start < stop <= {len(self)}.")
        return start, stop

    def damaged(self, name: str, start: int, stop: int, error: Exception) -> UserError:
        """What to tell a user whose variable cannot be read at the steps ``start`` to ``stop``."""
        span = f"{start} to {stop - 1} ({time_label(self.time, start)} to {time_label(self.time, stop - 1)})"
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
        return UserError(
            f"cannot read {name} of {self.source} at time steps {span}: {reason}; the file is damaged, "
            f"incomplete or gone, so fetch or write it again, or leave {name} out with variables=[...]."
        )

    def check_storage(self, name: str) -> None:
        """Notice storage that vanished or changed under us, for which the libraries return fill values or zeros."""
        for file, size in self.files.items() if name == self.variables[0] else ():  # once a read is enough
            if os.path.getsize(file) != size:
                raise OSError(f"{file} had {size} bytes when it was opened and has {os.path.getsize(file)} now")
        if self.format.startswith("zarr") and "://" not in self.source:
            os.stat(os.path.join(self.source, name))

    def _read_variable(self, name: str, index: tuple[int, ...], steps: slice) -> np.ndarray:
        """Values of one variable in one series, shape (steps, levels or 1, *space), in the dtype that it decodes to."""
        variable = self.ds[name].variable
        wanted = [self.axes["time"], *([self.axes["level"]] if "level" in self.axes else []), *self.space.dims]
        indexers: dict[str, int | slice] = {str(dim): 0 for dim in variable.dims if dim not in wanted}
        indexers |= dict(zip(self.series, index, strict=True)) | {self.axes["time"]: steps}
        selected = variable.isel(indexers)
        # One thread for dask: netCDF4 crashes under several, even with a handle each.
        values = selected.values if selected.chunks is None else selected.data.compute(scheduler="synchronous")
        values = values.transpose([selected.dims.index(dim) for dim in wanted if dim in selected.dims])
        return values if values.ndim == 2 + len(self.shape) else values[:, None]


Source: TypeAlias = str | os.PathLike | xr.Dataset | xr.DataArray | xr.DataTree | pd.DataFrame | Archive
"""What can be opened."""


def open_archive(
    source: Source,
    *,
    variables: Sequence[str] | None = None,
    **how: Any,
) -> Archive:
    """Open an archive of fields on a grid or in a box, or of series at stations; only coordinates are read.

    Parameters
    ----------
    source : a Zarr store, a NetCDF or HDF5 file, a folder or glob pattern of NetCDF files that follow each other in
        time, the URL of a Zarr store or NetCDF file (http, s3, gs...), an Icechunk repository, virtual references, an
        ``xr.Dataset`` or ``xr.DataTree``, a named ``xr.DataArray``, or an archive that is open already.
    variables : which variables to use, in this order; all gridded ones when left out.
    how : further options, of which those that do not concern a source are passed over:

        - ``storage_options``, for sources on a network, as fsspec takes them: ``{"anon": True}``...
        - ``group`` of a Zarr store, NetCDF file or ``xr.DataTree``; the only one that holds fields when left out.
        - ``missing_chunks``: ``"refuse"`` makes a chunk of a Zarr store that is absent an error where its fill value is
          a number and would pass for data, ``"fill"`` fills it. NaN is missing data and needs no permission.
        - ``cadence``, the step of the time axis of tables and ragged observations, such as ``"1h"``.
        - ``duplicates``: ``"refuse"``, ``"mean"``, ``"first"`` or ``"last"`` of rows with the same time and station.

    Raises
    ------
    UserError : one sentence saying what is wrong with the archive and what to do about it.

    Examples
    --------
    >>> import numpy as np, pandas as pd, xarray as xr
    >>> coords = {"time": pd.date_range("2000", periods=3), "lat": [30.0, 0.0, -30.0], "lon": [0.0, 90.0, 180.0, 270.0]}
    >>> archive = open_archive(xr.DataArray(np.zeros((3, 3, 4)), coords, ("time", "lat", "lon"), name="z"))
    >>> archive.read(0, 2).shape, archive.cadence, archive.periodic
    ((2, 1, 3, 4), 24.0, True)
    """
    archive = open_in_any_order(source, variables, **how)
    if not isinstance(source, Archive):
        length = archive.steps_per_series
        check_time(archive.source, archive.axes["time"], archive.time[:length], archive.hours[:length])
    return archive if variables is None else _with_variables(archive, variables)


def open_in_any_order(source: Source, variables: Sequence[str] | None = None, **how: Any) -> Archive:
    """Open without a check of the times; only for ``inspect``, which reports what is wrong with them."""
    if isinstance(source, Archive):
        return source
    ds, name, storage, files, absent = open_store(source, **how)
    axes = find_axes(_relevant(ds, variables), name)
    ds, time, calendar = decode_time(ds, name, axes.found["time"])
    hours = hours_since_first(time, ds, axes.found["time"])
    space = find_space(ds, name, axes.found, axes.rest)
    repeats = math.prod(ds.sizes[dim] for dim in axes.series)
    archive = Archive(
        ds=ds,
        source=name,
        format=storage,
        files=files,
        absent=absent,
        axes=_dims_by_role(axes, space),
        space=space,
        series=axes.series,
        repeats=repeats,
        variables=(),
        channels=(),
        static=tuple(
            str(n) for n, f in ds.data_vars.items() if f.dtype.kind in "fiu" and set(f.dims) == set(space.dims)
        ),
        time=_repeated(time, repeats),
        hours=np.tile(hours, repeats),
        cadence=float(np.median(np.diff(hours))) if len(hours) > 1 else float("nan"),
        calendar=calendar,
        chunk_steps=len(time),
    )
    return _with_variables(archive, None)


def _relevant(ds: xr.Dataset, variables: Sequence[str] | None) -> xr.Dataset:
    """The dataset without variables that nobody asked for: they have no say in what its axes are."""
    wanted = [variables] if isinstance(variables, str) else variables
    if not wanted or any(name not in ds.data_vars for name in wanted):
        return ds
    return ds.drop_vars([name for name in ds.data_vars if name not in wanted])


def _dims_by_role(axes: Axes, space: Space) -> dict[str, str]:
    roles: dict[str, str] = {role: axes.found[role].dim for role in ("time", "level") if role in axes.found}
    if space.kind == "grid":
        roles |= dict(zip(("y", "x") if space.curvilinear else ("latitude", "longitude"), space.dims, strict=True))
    elif space.kind == "stations":
        roles |= dict(zip(("station",), space.dims, strict=False))  # a single place has no dimension
    else:
        roles |= {dim: dim for dim in space.dims}
    return roles | {role_of_series(dim): dim for dim in axes.series}


def _repeated(time: pd.Index, repeats: int) -> pd.Index:
    return time if repeats == 1 else time[np.tile(np.arange(len(time)), repeats)]


def _with_variables(archive: Archive, requested: Sequence[str] | None) -> Archive:
    """The archive restricted to the requested variables, or to all gridded ones."""
    ds, axes, source = archive.ds, archive.axes, archive.source
    reasons = {str(name): why_not_used(archive, str(name)) for name in ds.data_vars}
    gridded = [name for name, reason in reasons.items() if reason is None]
    if not gridded:
        found = "; ".join(f"{name} {reason}" for name, reason in list(reasons.items())[:4]) or "it holds no variables"
        needed = ", ".join((axes["time"], *archive.space.dims))
        raise UserError(
            f"no variable of {source} is numeric and lies on ({needed}): {found}; select one field, for example with "
            "ds.isel(...), or convert it to numbers."
        )
    if archive.format.startswith("zarr"):
        gridded.sort()  # a store lists its arrays in the order of the file system, which differs between machines
    if isinstance(requested, str):
        requested = [requested]
    names = gridded if requested is None else list(dict.fromkeys(requested))
    for name in names:
        if name not in reasons:
            close = get_close_matches(name, list(reasons), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}? It" if close else "it"
            raise UserError(f"{source} has no variable {name!r}; {hint} has {', '.join(gridded)}.")
        if reasons[name] is not None:
            raise UserError(f"{name} of {source} cannot be used: it {reasons[name]}; choose from {', '.join(gridded)}.")
    if not names:
        raise UserError(f"variables is empty, so nothing of {source} would be read; choose from {', '.join(gridded)}.")
    channels = tuple(channel for name in names for channel in _channels_of(ds, name, axes))
    steps = max(storage_steps(ds[name].variable, axes["time"]) for name in names)
    return replace(archive, variables=tuple(names), channels=channels, chunk_steps=max(1, steps))


def why_not_used(archive: Archive, name: str) -> str | None:
    """Why a variable is no field on time and all dimensions of space; None when it is one."""
    field = archive.ds[name]
    if field.dtype.kind not in "fiu":
        return f"has dtype {field.dtype}, not numbers"
    required = [archive.axes["time"], *archive.space.dims, *archive.series]
    absent = [dim for dim in required if dim not in field.dims]
    if absent:
        return f"lacks dimension {', '.join(absent)} (it has {', '.join(map(str, field.dims)) or 'none'})"
    # A dimension of length one (a surface level, an experiment version) carries nothing and is dropped on reading.
    known = {*required, archive.axes.get("level")}
    extra = [str(dim) for dim in field.dims if dim not in known and field.sizes[dim] != 1]
    if extra:
        return f"has the further dimension {extra[0]} of size {field.sizes[extra[0]]}: use ds.isel({extra[0]}=0)"
    return None


def _channels_of(ds: xr.Dataset, name: str, axes: Mapping[str, str]) -> list[Channel]:
    units = str(ds[name].attrs.get("units", ""))
    if "level" not in axes or axes["level"] not in ds[name].dims:
        return [Channel(variable=name, units=units)]
    return [Channel(variable=name, level=float(level), units=units) for level in level_of(ds)]


def storage_steps(variable: xr.Variable, dim: str) -> int:
    """Time steps that one read of the storage brings at least: its shard, else its chunk, else one step."""
    axis = variable.dims.index(dim)
    if variable._in_memory:
        return variable.sizes[dim]
    if variable.chunks is not None:
        return max(variable.chunks[axis])
    sizes = variable.encoding.get("shards") or variable.encoding.get("chunks") or variable.encoding.get("chunksizes")
    if sizes is None or len(sizes) != variable.ndim:
        return 1  # contiguous storage: any slice of time costs what it weighs
    return min(int(sizes[axis]), variable.sizes[dim])
