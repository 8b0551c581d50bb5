"""Dataset -> Zarr store chunked for training, region by region: resumable, in bounded memory, complete or not there.

Arrives: a dataset that is read lazily. Leaves: a Zarr 3 store with whole maps of some steps in a chunk. Until the last
region is written the store lacks the metadata of its root, so that nothing opens it; a journal beside it says which
regions are done. Dask reads and writes one region at a time, in threads or on a cluster. We decided against one graph
of the whole copy (a killed run would begin again, and its memory is Dask's guess), and against appending (a killed
append leaves an archive that opens and is short).
"""

import itertools
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from sciJEPA.archive import Archive, storage_steps
from sciJEPA.errors import UserError

BYTES_PER_CHUNK = 4_000_000
MOST_STEPS, LEAST_BYTES = 32, 250_000
"""Steps in a chunk at most, as a window of a few steps decodes all of its chunks; more where chunks would be tiny."""
MOST_FILES = 10_000
"""With more chunks than this, several share a file."""
HIDDEN = "root.json"
"""Name of the root's metadata while the store is incomplete."""
CLUSTER_SECONDS = 900
"""The longest that a region may take on a cluster."""
ATTEMPTS = 4
"""Reads of a region from a remote store before giving up; the waits between them are 1, 2 and 4 seconds."""


@dataclass(frozen=True)
class Layout:
    """How one variable is stored: its chunks, and the chunks that share a file."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None

    @property
    def unit(self) -> tuple[int, ...]:
        """What is written at once: a file."""
        return self.shards or self.chunks


@dataclass(frozen=True)
class Region:
    """Some steps of one series of one variable."""

    variable: str
    where: tuple[slice, ...]

    @property
    def key(self) -> str:
        """As text, for the journal."""
        return f"{self.variable} " + " ".join(f"{part.start}:{part.stop}" for part in self.where)


def layouts(archive: Archive, ds: xr.Dataset, chunk_steps: int | None = None) -> dict[str, Layout]:
    """Chunks of whole maps and all levels, of one series each, of about 4 MB and, unless tiny, at most 32 steps."""
    time = archive.axes["time"]
    found = {}
    for name in archive.variables:
        dims, shape = tuple(map(str, ds[name].dims)), ds[name].shape
        whole = {dim: 1 if dim in archive.series else size for dim, size in zip(dims, shape, strict=True)}
        in_step = 4 * math.prod(size for dim, size in whole.items() if dim != time)
        steps = chunk_steps or min(max(MOST_STEPS, LEAST_BYTES // in_step), BYTES_PER_CHUNK // in_step)
        whole[time] = max(1, min(steps, ds.sizes[time]))
        found[name] = Layout(dims, shape, tuple(whole.values()), None)
    files = sum(math.prod(-(-n // c) for n, c in zip(a.shape, a.chunks, strict=True)) for a in found.values())
    together = -(-files // MOST_FILES)
    if together == 1:
        return found
    sharded = {}
    for name, plain in found.items():
        axis = plain.dims.index(time)
        count = min(together, -(-plain.shape[axis] // plain.chunks[axis]))
        shards = tuple(c * (count if i == axis else 1) for i, c in enumerate(plain.chunks))
        sharded[name] = Layout(plain.dims, plain.shape, plain.chunks, shards)
    return sharded


def lay_out(ds: xr.Dataset, plan: Mapping[str, Layout], store: Path) -> None:
    """Write coordinates, static variables and the metadata of the variables of `plan`, whose values come later."""
    static = [str(name) for name in ds.data_vars if name not in plan]
    with dask.config.set(scheduler="synchronous"):
        template = ds.drop_vars(list(plan)).compute()
    for name, variable in template.variables.items():
        units = {key: variable.encoding[key] for key in ("units", "calendar") if key in variable.encoding}
        variable.encoding = units if variable.dtype.kind in "MO" else {}
        if name in static and variable.dtype == np.float64:
            template[name] = template[name].astype(np.float32)
    codec = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", typesize=4)
    encoding: dict[str, dict[str, Any]] = {}
    for name, layout in plan.items():
        attributes = {key: value for key, value in ds[name].attrs.items() if key not in ("_FillValue", "missing_value")}
        unwritten = dask.array.empty(layout.shape, dtype=np.float32, chunks=-1)
        template[name] = xr.Variable(layout.dims, unwritten, attributes)
        # A chunk that gets lost reads as missing, not as zeros.
        encoding[name] = {"chunks": layout.chunks, "compressors": [codec], "fill_value": np.float32("nan")}
        encoding[name] |= {"shards": layout.shards} if layout.shards else {}
    template.attrs = dict(ds.attrs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # text has no data type in the specification of Zarr 3 yet
        template.to_zarr(store, mode="w", zarr_format=3, consolidated=False, compute=False, encoding=encoding)
    os.replace(store / "zarr.json", store / HIDDEN)


def reveal(store: Path) -> None:
    """Give a store whose regions are all written the metadata that it opens by."""
    shutil.copyfile(store / HIDDEN, store / "zarr.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata are an extension of Zarr 3
        zarr.consolidate_metadata(store)
    (store / HIDDEN).unlink()


def regions(plan: Mapping[str, Layout], time: str, region_bytes: float) -> Iterator[Region]:
    """All regions, variable by variable, each of whole files and of about `region_bytes` if a file is not larger."""
    for name, layout in plan.items():
        axis = layout.dims.index(time)
        files = max(1, int(region_bytes // (4 * math.prod(layout.unit))))
        steps = [files * size if i == axis else size for i, size in enumerate(layout.unit)]
        parts = [
            [slice(first, min(first + step, size)) for first in range(0, size, step)]
            for size, step in zip(layout.shape, steps, strict=True)
        ]
        for where in itertools.product(*parts):
            yield Region(name, where)


class Journal:
    """Which regions of a task are written; survives a kill between any two bytes."""

    def __init__(self, path: Path, task: str) -> None:
        self.path = path
        self.done: set[str] = set()
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line.rstrip("\n") for line in lines if line.endswith("\n")]  # the last one may be torn
        self.begun = bool(whole)
        self.fits = not whole or json.loads(whole[0])["task"] == task
        if self.fits:
            self.done = set(whole[1:])
            text = "".join(f"{line}\n" for line in whole or [json.dumps({"task": task})])
            new = path.with_suffix(".new")
            new.write_text(text, encoding="utf-8")
            os.replace(new, path)

    def add(self, region: Region) -> None:
        """Note that a region is written."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{region.key}\n")
        self.done.add(region.key)


@dataclass(frozen=True, kw_only=True)
class Copier:
    """Copies regions of a source into a store that `lay_out` made.

    Attributes
    ----------
    first : step of the source at which the copy begins.
    scheduler : what Dask computes with: "threads", "synchronous" or a client of a cluster.
    worker_bytes : memory for the pieces that are read at the same time.
    """

    archive: Archive
    ds: xr.Dataset
    first: int
    store: Path
    scheduler: Any
    worker_bytes: float

    def copy(self, region: Region, layout: Layout) -> None:
        """Read, convert and write one region; reads from a network are tried again."""
        remote = "://" in self.archive.source
        for attempt in range(ATTEMPTS if remote else 1):
            try:
                return self._copy(region, layout)
            except (MemoryError, UserError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (27, 28, 122):  # EFBIG, ENOSPC, EDQUOT
                    raise
                if remote and attempt < ATTEMPTS - 1:
                    time.sleep(2**attempt)
                    continue
                steps = region.where[layout.dims.index(self.archive.axes["time"])]
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
                raise UserError(
                    f"cannot copy {region.variable} of {self.archive.source} at steps {self.first + steps.start} to "
                    f"{self.first + steps.stop - 1}: {reason}; what is copied stays, and the same command goes on."
                ) from error

    def _copy(self, region: Region, layout: Layout) -> None:
        variable = self.ds[region.variable].variable[region.where]
        time_axis = layout.dims.index(self.archive.axes["time"])
        steps = region.where[time_axis]
        if variable.chunks is None:
            pieces = self._pieces(region.variable, steps, layout.unit[time_axis])
            variable = variable.chunk({layout.dims[time_axis]: pieces})
        largest = max(math.prod(sizes) for sizes in itertools.product(*variable.data.chunks)) * 8
        values = variable.data.astype(np.float32).rechunk(layout.unit)
        array = zarr.open_array(self.store / region.variable, mode="r+", config={"write_empty_chunks": True})
        workers = max(1, min(os.cpu_count() or 1, int(self.worker_bytes // largest)))
        with np.errstate(over="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # No lock: no two tasks share a file.
            store: Any = dask.array.store
            written = store(values, array, regions=region.where, lock=False, compute=False)
            if isinstance(self.scheduler, str):
                dask.compute(written, scheduler=self.scheduler, num_workers=workers)
            else:
                self._on_cluster(written, region)

    def _on_cluster(self, written: Any, region: Region) -> None:
        """Compute on the cluster, and do not wait forever for workers that hang or went away."""
        future = self.scheduler.compute(written)
        try:
            future.result(timeout=CLUSTER_SECONDS)
        except TimeoutError as error:
            future.cancel()
            raise UserError(
                f"the cluster has not finished {region.key} in {CLUSTER_SECONDS} seconds; look after its workers, or "
                "lower memory_mb. What is copied stays, and the same command goes on."
            ) from error

    def _pieces(self, name: str, steps: slice, unit: int) -> tuple[int, ...]:
        """Steps to read at once: what is written at once, or a chunk of the source where that is longer."""
        stored = storage_steps(self.ds[name].variable, self.archive.axes["time"])
        if stored <= unit or stored >= steps.stop - steps.start:
            size, offset = max(unit, 1), 0
            if stored > unit:
                return (steps.stop - steps.start,)
        else:
            size, offset = stored, self.first
        begin, end = steps.start + offset, steps.stop + offset
        cuts = [begin, *range((begin // size + 1) * size, end, size), end]
        return tuple(b - a for a, b in itertools.pairwise(cuts))
