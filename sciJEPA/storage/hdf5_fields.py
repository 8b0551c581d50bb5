"""Part of arrow 1: fields in HDF5 files as arrays that are read only where they are indexed.

What arrives: files of one layout, the name of a dataset in them, and perhaps one component of its trailing axes. What
leaves: a :class:`FieldArray` for xarray, joined over the files along its first dimension.
What we decided against: dask (one array that knows which file holds which trajectory costs nothing), one strided read
for each component (HDF5 fetches all of them anyway, several times slower), and handles that outlive a fork.
"""

import itertools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from xarray.backends import BackendArray, CachingFileManager
from xarray.core import indexing

from sciJEPA.errors import UserError

SLAB_BYTES = 128_000_000
"""At most about this much is read at once; of fields with components the last such slab is kept for the next of them.

Four steps of a vector on 128 x 128 x 128 points, in float32, are 101 MB.
"""
_lock = threading.RLock()


def _renew_lock() -> None:
    """In a forked process the lock may be held by a thread that does not exist there."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def require_h5py(path: str) -> Any:
    """The module h5py, or the sentence that says how to install it."""
    try:
        import h5py
    except ImportError as error:
        needed = 'reading it needs h5py: pip install "sciJEPA[netcdf]"'
        raise UserError(f"{path} is HDF5 in the layout of The Well, and {needed}.") from error
    return h5py


class Files:
    """HDF5 files whose handles are opened at the first read, and anew in every process that reads."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        self._managers: dict[tuple[int, int], CachingFileManager] = {}
        self._last: tuple[Any, np.ndarray] | None = None

    def __getstate__(self) -> tuple[str, ...]:
        return self.paths

    def __setstate__(self, paths: tuple[str, ...]) -> None:
        self.__init__(paths)  # type: ignore[misc]

    def close(self) -> None:
        """Close what is open; a later read opens it again."""
        with _lock:
            for manager in self._managers.values():
                manager.close()
            self._managers, self._last = {}, None

    def read(self, number: int, dataset: str, key: tuple, shape: tuple[int, ...], keep: bool = False) -> np.ndarray:
        """Values of a dataset, which must have the shape that it had when the file was opened first.

        With `keep` the values are remembered until the next such read, for the other components of the same field.
        """
        simple = keep and not any(isinstance(part, np.ndarray) for part in key)
        with _lock:
            wanted = (number, dataset, key)
            if simple and self._last is not None and self._last[0] == wanted:
                return self._last[1]
            self._last = None if keep else self._last  # before the next slab is there: one at a time
            values = self._read(number, dataset, key, shape)
            if simple and values.nbytes <= SLAB_BYTES:
                self._last = wanted, values
            return values

    def _read(self, number: int, dataset: str, key: tuple, shape: tuple[int, ...]) -> np.ndarray:
        path = self.paths[number]
        h5py = require_h5py(path)
        process = (os.getpid(), number)
        if process not in self._managers:
            self._managers[process] = CachingFileManager(h5py.File, path, mode="r")
        try:
            stored = self._managers[process].acquire()[dataset]
            if stored.shape == shape:
                return np.asarray(stored[key])
            reason = f"it has the shape {stored.shape} now and had {shape} when it was opened"
        except (OSError, KeyError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
        raise UserError(
            f"cannot read {dataset} of {path}: {reason}; the file is damaged, incomplete, changed or gone, so fetch it "
            "again, or open the archive without it."
        )


class FieldArray(BackendArray):
    """One field, or one component of it, over all files.

    Parameters
    ----------
    files, dataset : where the values are.
    stored : shape of the dataset in each file.
    component : index into the trailing axes of the dataset; empty where it has no components.
    counts : the array gets a first dimension that runs over the files, of which each brings so many entries; left out,
        the first file speaks for all.
    shared : the files lack that dimension, and the values of a file hold for all of its entries.
    """

    def __init__(
        self,
        files: Files,
        dataset: str,
        stored: Sequence[tuple[int, ...]],
        dtype: np.dtype,
        *,
        component: tuple[int, ...] = (),
        counts: Sequence[int] = (),
        shared: bool = False,
    ) -> None:
        self.files, self.dataset, self.stored, self.dtype = files, dataset, tuple(stored), dtype
        self.component, self.shared = component, shared
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.joined = len(counts) > 0
        shape = stored[0][: len(stored[0]) - len(component)]
        self.inner: tuple[int, ...] = shape[1:] if self.joined and not shared else shape
        self.shape = (int(self.starts[-1]), *self.inner) if self.joined else self.inner

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Read what the key selects; xarray does the rest of a selection that HDF5 cannot do."""
        support = indexing.IndexingSupport.OUTER_1VECTOR
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._select)

    def _select(self, key: tuple) -> np.ndarray:
        out = np.empty(_selected(key, self.shape), dtype=self.dtype)
        first, inner = (key[0], key[1:]) if self.joined else (None, key)
        if first is None:
            self._fill(out, 0, inner)
        elif isinstance(first, int | np.integer):
            file = int(np.searchsorted(self.starts, first, side="right")) - 1
            self._fill(out, file, inner if self.shared else (int(first - self.starts[file]), *inner))
        else:
            filled = 0
            for file, rows in _runs(np.arange(self.shape[0])[first], self.starts):
                count = rows.stop - rows.start
                self._fill(out[filled : filled + count], file, inner if self.shared else (rows, *inner))
                filled += count
        return out

    def _fill(self, out: np.ndarray, file: int, key: tuple) -> None:
        """Fill `out` with what a key selects in one file; where the file has fewer dimensions, they are repeated."""
        shape = self.stored[file]
        axes, ends = shape[: len(shape) - len(self.component)], shape[len(shape) - len(self.component) :]
        every: tuple[Any, ...] = (slice(None),) * len(ends)
        pick: tuple[Any, ...] = (Ellipsis, *self.component)
        for part, place in _pieces(key, axes, self.dtype.itemsize * math.prod(ends)):
            out[(Ellipsis, *place)] = self.files.read(file, self.dataset, (*part, *every), shape, keep=bool(ends))[pick]


def _selected(key: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what a key selects; whole numbers remove their axis."""
    pairs = [(part, size) for part, size in zip(key, shape, strict=True) if not isinstance(part, int | np.integer)]
    return tuple(len(range(*part.indices(size))) if isinstance(part, slice) else len(part) for part, size in pairs)


def _runs(entries: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Neighbouring entries of one file, in order: (file, its rows)."""
    files = np.searchsorted(starts, entries, side="right") - 1
    breaks = np.flatnonzero((np.diff(entries) != 1) | (np.diff(files) != 0)) + 1
    for run in np.split(np.arange(len(entries)), breaks):
        if len(run):
            file = int(files[run[0]])
            first = int(entries[run[0]] - starts[file])
            yield file, slice(first, first + len(run))


def _pieces(key: tuple, shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[tuple, tuple]]:
    """Cut a selection into pieces of at most about SLAB_BYTES, in the order of storage: (key, place in the result).

    Axes selected by a whole number have no place in the result.
    """
    sizes = _selected(key, shape)
    in_entry = [itemsize * math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    cut = next((axis for axis, size in enumerate(in_entry) if size <= SLAB_BYTES), None)
    if cut is None:  # a single value
        yield key, ()
        return
    rows = SLAB_BYTES // max(1, in_entry[cut])
    for before in itertools.product(*map(range, sizes[:cut])):
        for first in range(0, sizes[cut], rows):
            whole = (slice(None),) * (len(sizes) - cut - 1)
            place = (*(slice(entry, entry + 1) for entry in before), slice(first, first + rows), *whole)
            remaining = iter(place)
            yield (
                tuple(
                    part if isinstance(part, int | np.integer) else _part(part, size, next(remaining))
                    for part, size in zip(key, shape, strict=True)
                ),
                place,
            )


def _part(selected: slice | np.ndarray, size: int, some: slice) -> slice | np.ndarray:
    """Some entries of what a slice or an array selects from an axis."""
    if isinstance(selected, slice):
        numbers = range(*selected.indices(size))[some]
        return slice(numbers.start, numbers.stop, numbers.step)
    return selected[some]
