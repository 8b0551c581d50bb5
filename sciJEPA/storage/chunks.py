"""Part of arrow 1: time ranges of an archive at the speed at which this machine decompresses them.

What arrives: an `Archive`. What leaves: the values that `Archive.read` gives, byte for byte, decoded chunk by chunk by
a pool of threads straight into one array. Variables in a storage that is not decoded here go through `Archive.read`.
What we decided against: processes (handing arrays over costs more than decoding them), dask and zarr-python's event
loop (they cost more than a small chunk), and our own reading of CF attributes (xarray's own decoder is called on each
chunk of packed values, so that the two cannot disagree).
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.storage.chunk_storage import Scratch, StoredArray, Unsupported

CF_ATTRIBUTES = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned")
TASK_BYTES = 2**21
"""A task of the pool decodes chunks of about this size together, so that handing it over costs little."""

Decode = Callable[[np.ndarray], np.ndarray]
Cut = tuple[int, slice, slice]
"""A chunk along one dimension: its number, its place in the output, and the part of it that goes there."""
Place = tuple[Cut, ...]
"""A chunk."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Field:
    """How a variable goes from its storage into channels `channels` of the output."""

    name: str
    stored: StoredArray
    channels: slice
    levels: bool
    order: tuple[int, ...]
    """Storage dimension -> its place among (time, level, *space), others left out."""
    extra: tuple[int, ...]
    """Storage dimensions that the output does not have: of size 1, or of members or trajectories."""
    series: tuple[int, ...]
    """Storage dimensions of members or trajectories, in the order of the archive."""
    time: int
    """Storage dimension of time."""
    decode: Decode | None
    fill: np.ndarray

    @property
    def space_order(self) -> tuple[int, ...]:
        """Dimensions of space as they are stored, the slowest one first, numbered as in `Archive.shape`."""
        first = 2 if self.levels else 1
        return tuple(place - first for place in self.order if place >= first)

    @cached_property
    def _whole(self) -> list[list[Cut]]:
        """All chunks along each dimension but that of time."""
        sizes = [1 if axis == self.time else size for axis, size in enumerate(self.stored.shape)]
        return [_cuts(chunk, 0, size) for size, chunk in zip(sizes, self.stored.chunks, strict=True)]

    def in_storage_order(self, out: np.ndarray) -> np.ndarray:
        """The channels of this variable within `out`, viewed with the dimensions of its storage."""
        view = out[:, self.channels] if self.levels else out[:, self.channels.start]
        view = view.transpose(self.order)
        return np.expand_dims(view, self.extra) if self.extra else view

    def tasks(self, index: tuple[int, ...], steps: slice) -> Iterator[list[Place]]:
        """Chunks that hold these steps of one series, in groups for the pool."""
        axes = list(self._whole)
        axes[self.time] = _cuts(self.stored.chunks[self.time], steps.start, steps.stop)
        for axis, number in zip(self.series, index, strict=True):
            axes[axis] = _cuts(self.stored.chunks[axis], number, number + 1)
        places = itertools.product(*axes)
        while group := list(itertools.islice(places, max(1, TASK_BYTES // self.stored.chunk_bytes))):
            yield group


def _cuts(chunk: int, low: int, high: int) -> list[Cut]:
    """The chunks of one dimension that have a part in the range low to high."""
    cuts = []
    for number in range(low // chunk, (high - 1) // chunk + 1):
        first, last = max(low, number * chunk), min(high, (number + 1) * chunk)
        cuts.append((number, slice(first - low, last - low), slice(first - number * chunk, last - number * chunk)))
    return cuts


class ChunkReader:
    """Time ranges of an archive, decoded chunk by chunk by a pool of threads straight into one array.

    It may be used from several threads, holds no open files and can be pickled; the copy opens a pool of its own.

    Parameters
    ----------
    archive : where to read from.
    threads : decoding threads; as many as there are cores, but at most 8, when left out.

    Attributes
    ----------
    direct : names of the variables whose chunks are decoded directly: local Zarr with the usual codecs, and, where h5py
        is installed, single NetCDF-4 or HDF5 files. The others go through `Archive.read`.

    Examples
    --------
    >>> import pandas as pd
    >>> coords = {"time": pd.date_range("2000", periods=3), "lat": [30.0, 0.0, -30.0], "lon": [0.0, 90.0, 180.0, 270.0]}
    >>> field = xr.DataArray(np.zeros((3, 3, 4)), coords, ("time", "lat", "lon"), name="z")
    >>> reader = ChunkReader(open_archive(field))
    >>> reader.read(0, 2).shape, reader.direct
    ((2, 1, 3, 4), ())
    """

    def __init__(self, archive: Archive, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}; leave it out to use all cores.")
        self.archive = archive
        self.threads = min(os.cpu_count() or 1, 8) if threads is None else threads
        self._fields = _direct_fields(archive)
        self.direct = tuple(field.name for field in self._fields)
        others = [name for name in archive.variables if name not in self.direct]
        self._others = open_archive(archive, variables=others) if others else None
        self._other_channels = [n for n, channel in enumerate(archive.channels) if channel.variable in others]
        self._scratch = Scratch()
        self._lock = threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    @cached_property
    def space_order(self) -> tuple[int, ...]:
        """Dimensions of space, numbered as in `Archive.shape`, in the order in which most variables are stored."""
        orders = [field.space_order for field in self._fields]
        return max(orders, key=orders.count, default=tuple(range(len(self.archive.shape))))

    def __repr__(self) -> str:
        return f"<ChunkReader {self.archive!r}: {len(self.direct)} of {len(self.archive.variables)} variables direct>"

    def __reduce__(self) -> tuple[Callable[..., "ChunkReader"], tuple[Archive, int]]:
        return _reopen, (self.archive, self.threads)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Read the time steps ``start`` to ``stop`` (exclusive), as `Archive.read` does.

        Parameters
        ----------
        start, stop : range of time steps.
        out : where to write; a new C-contiguous array when left out. It may have any memory layout: chunks of several
            steps are decoded in place, without a copy, where each channel's steps lie one after the other, as in
            ``slab.swapaxes(0, 1)`` of a slab of shape (V, stop - start, H, W).

        Returns
        -------
        shape (stop - start, V, H, W), float32, in the archive's units, NaN where missing.

        Raises
        ------
        UserError
            If the range lies outside of the archive, or a chunk is damaged; `out` then holds anything.
        """
        reading = self.begin(start, stop, out)
        try:
            reading.result()
        finally:  # nobody writes into `out` any more when the caller has it back
            reading.cancel()
        return reading.out

    def begin(
        self,
        start: int,
        stop: int,
        out: np.ndarray | None = None,
        finish: Callable[[Sequence[int]], None] | None = None,
    ) -> "Reading":
        """Begin to `read`, and come back at once.

        `finish` is called with the channels of a variable by the thread that has decoded the last of its chunks, so
        that what is done to the values finds them in that thread's cache.
        """
        start, stop = self.archive.check_range(start, stop)
        shape = (stop - start, len(self.archive.channels), *self.archive.shape)
        if out is None:
            out = np.empty(shape, dtype=np.float32)
        elif out.shape != shape or out.dtype != np.float32 or not out.flags.writeable:
            raise UserError(f"out must be a writeable float32 array of shape {shape}, got {out.dtype} {out.shape}.")
        running: list[tuple[str, Future[None]]] = []
        segments = list(self.archive.segments(start, stop))
        for field in self._fields:
            groups = []
            for index, steps, place in segments:
                target = field.in_storage_order(out[place])
                groups += [(group, target) for group in field.tasks(index, steps)]
            left = itertools.count(len(groups) - 1, -1)  # its `next` is atomic
            for number, (group, target) in enumerate(groups):
                task = self.submit(self._decode, field, group, target, number == 0, left, finish)
                running.append((field.name, task))
        if self._others is not None:
            task = self.submit(self._read_others, start, stop, out, finish)
            running.append((self._others.variables[0], task))
        return Reading(self.archive, start, stop, out, running)

    def submit(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> "Future[Any]":
        """Have the pool do something else, after all that it was given before."""
        return self._threads().submit(work, *arguments, **options)

    def _threads(self) -> ThreadPoolExecutor:
        """The pool of this process; the threads of a parent do not survive a fork."""
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                self._pool = os.getpid(), ThreadPoolExecutor(self.threads, thread_name_prefix="sciJEPA chunks")
            return self._pool[1]

    def _decode(
        self,
        field: _Field,
        places: list[Place],
        target: np.ndarray,
        check: bool,
        left: Iterator[int],
        finish: Callable[[Sequence[int]], None] | None,
    ) -> None:
        """Decode a group of chunks into `target`, which has the dimensions of the storage."""
        if check:
            self.archive.check_storage(field.name)
        try:
            self._load(field, places, target)
        finally:
            self._scratch.close()
        if next(left) == 0 and finish is not None:
            finish(range(field.channels.start, field.channels.stop))

    def _load(self, field: _Field, places: list[Place], target: np.ndarray) -> None:
        """Each chunk into its place in `target`."""
        stored = field.stored
        plain = field.decode is None and stored.dtype == np.dtype(np.float32)
        for place in places:
            index, inside, part = zip(*place, strict=True)
            region = target[inside]
            if plain and region.shape == stored.chunks and region.flags.c_contiguous:
                if not stored.load(index, region, self._scratch):
                    region[...] = self._fill(field, index)
                continue
            chunk = self._scratch.take("chunk", stored.chunk_bytes).view(stored.dtype).reshape(stored.chunks)
            if stored.load(index, chunk, self._scratch):
                values = chunk[part] if field.decode is None else field.decode(chunk[part])
                with np.errstate(over="ignore"):  # as in Archive.read: beyond float32 becomes inf
                    region[...] = values
            else:
                region[...] = self._fill(field, index)

    def _fill(self, field: _Field, index: tuple[int, ...]) -> np.ndarray:
        """What stands for a chunk that is not stored, where something may."""
        if self.archive.absent is not None:
            self.archive.absent.check_file(field.stored.path, field.stored.file_of(index), float(field.fill))
        return field.fill

    def _read_others(
        self, start: int, stop: int, out: np.ndarray, finish: Callable[[Sequence[int]], None] | None
    ) -> None:
        assert self._others is not None
        out[:, self._other_channels] = self._others.read(start, stop)
        if finish is not None:
            finish(self._other_channels)


class Reading:
    """Time steps on their way into `out`; made by `ChunkReader.begin`."""

    def __init__(
        self, archive: Archive, start: int, stop: int, out: np.ndarray, running: list[tuple[str, "Future[None]"]]
    ) -> None:
        self.archive, self.start, self.stop, self.out, self._running = archive, start, stop, out, running

    def result(self) -> np.ndarray:
        """`out` once all is there; raises what went wrong."""
        for name, future in self._running:
            try:
                future.result()
            except (MemoryError, UserError):
                raise
            except Exception as error:
                raise self.archive.damaged(name, self.start, self.stop, error) from error
        self._running = []  # asked again, it costs nothing
        return self.out

    @property
    def failed(self) -> bool:
        """Whether something has gone wrong so far."""
        return any(future.done() and future.exception() is not None for _, future in self._running)

    def cancel(self) -> None:
        """Leave out what has not begun, and come back when nothing is written into `out` any more."""
        for _, future in self._running:
            future.cancel()
        self.wait()

    def wait(self) -> None:
        """Come back when all has ended, well or not."""
        wait([future for _, future in self._running])


def in_archive_order(fields: np.ndarray, space_order: Sequence[int]) -> np.ndarray:
    """Fields (V, T, *space) in the order of a storage, viewed as `Archive.read` gives them: (T, V, *space)."""
    return fields.transpose(1, 0, *(2 + axis for axis in places_of(space_order)))


def places_of(order: Sequence[int]) -> list[int]:
    """Where each dimension is in this order; numpy's argsort of a few numbers costs ten times as much."""
    return sorted(range(len(order)), key=order.__getitem__)


def _reopen(archive: Archive, threads: int) -> ChunkReader:
    return ChunkReader(archive, threads=threads)


def _direct_fields(archive: Archive) -> tuple[_Field, ...]:
    """Variables whose storage we decode, in the order of the archive."""
    stored: dict[str, StoredArray] = {}
    if archive.format.startswith("zarr") and os.path.isdir(archive.source):
        from sciJEPA.storage.chunks_zarr import zarr_array

        for name in archive.variables:
            try:
                stored[name] = zarr_array(os.path.join(archive.source, name))
            except Exception:  # whatever we do not understand is zarr-python's to read, or to explain
                continue
    elif archive.format == "netcdf" and os.path.isfile(file := next(iter(archive.files), archive.source)):
        from sciJEPA.storage.chunks_netcdf import netcdf_arrays

        stored = netcdf_arrays(file, archive.variables)
    fields = []
    for name in archive.variables:
        try:
            fields += [_field(archive, name, stored[name])] if name in stored else []
        except Unsupported:
            continue
    return tuple(fields)


def _field(archive: Archive, name: str, stored: StoredArray) -> _Field:
    variable = archive.ds[name].variable
    level = archive.axes.get("level")
    levels = level in variable.dims
    wanted = [archive.axes["time"], *([level] if levels else []), *archive.space.dims]
    if variable.shape != stored.shape or variable.chunks is not None:
        raise Unsupported("the dataset is not what lies on disk")
    decode, fill = _cf_decoding(name, variable, stored)
    channels = [number for number, channel in enumerate(archive.channels) if channel.variable == name]
    return _Field(
        name=name,
        stored=stored,
        channels=slice(channels[0], channels[-1] + 1),
        levels=levels,
        order=tuple(wanted.index(str(dim)) for dim in variable.dims if dim in wanted),
        extra=tuple(axis for axis, dim in enumerate(variable.dims) if dim not in wanted),
        series=tuple(variable.dims.index(dim) for dim in archive.series),
        time=variable.dims.index(archive.axes["time"]),
        decode=decode,
        fill=fill,
    )


def _cf_decoding(name: str, variable: xr.Variable, stored: StoredArray) -> tuple[Decode | None, np.ndarray]:
    """What turns stored values into the variable's, None where they are the same; and its fill value as float32."""
    attributes = {key: variable.encoding[key] for key in CF_ATTRIBUTES if key in variable.encoding}
    fills = {np.asarray(attributes[key]).item() for key in CF_ATTRIBUTES[:2] if key in attributes}
    if len({fill for fill in fills if fill == fill}) > 1:
        raise Unsupported("several fill values")  # xarray warns about them, and should not do so for every chunk

    def decode(values: np.ndarray) -> np.ndarray:
        raw = xr.Variable([f"dim_{axis}" for axis in range(values.ndim)], values, attributes)
        return xr.conventions.decode_cf_variable(name, raw, decode_times=False).values

    unchanged = stored.dtype.kind == "f" and set(attributes) <= set(CF_ATTRIBUTES[:2]) and all(f != f for f in fills)
    decoded = decode(stored.fill.reshape(1))
    if decoded.dtype != variable.dtype:
        raise Unsupported(f"decodes to {decoded.dtype}, but is {variable.dtype} in the dataset")
    with np.errstate(over="ignore"):
        return (None if unchanged or not attributes else decode), decoded.astype(np.float32)[0]
