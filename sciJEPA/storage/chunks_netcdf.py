"""Part of arrow 1: the chunks of a NetCDF-4 or HDF5 file, which h5py finds once and plain file reads fetch after that.

What arrives: a file and the names of its variables. What leaves: a :class:`StoredArray` for each variable that is
contiguous or compressed with deflate, with or without shuffle. h5py is optional: without it there are none, and the
netCDF4 library reads every variable, under its lock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sciJEPA.storage.chunk_storage import (
    Codec,
    Scratch,
    StoredArray,
    Unsupported,
    decode,
    decode_deflate,
    read_at,
    unshuffle,
)

DEFLATE, SHUFFLE = 1, 2
"""Numbers of the HDF5 filters that are undone here."""
CONTIGUOUS_BYTES = 2**20
"""A contiguous array is read in pieces of about this size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkedDataset(StoredArray):
    """Chunks anywhere in the file; `places` has the offset and the length of each, -1 where none is stored."""

    codecs: tuple[Codec, ...]
    places: np.ndarray

    def load(self, index: tuple[int, ...], out: np.ndarray, scratch: Scratch) -> bool:
        """Decode one chunk."""
        offset, length = map(int, self.places[index])
        if offset < 0:
            return False
        decode(read_at(self.path, offset, length, scratch), self.codecs, out)
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class ContiguousDataset(StoredArray):
    """One run of bytes from `offset` on, cut along its first dimension into pieces that we call chunks."""

    offset: int

    def load(self, index: tuple[int, ...], out: np.ndarray, scratch: Scratch) -> bool:
        """Read one piece; the last one may fill a part of `out` only, the part inside of the array."""
        first = index[0] * self.chunks[0]
        rows = min(self.chunks[0], self.shape[0] - first)
        in_row = math.prod(self.shape[1:]) * self.dtype.itemsize
        decode(read_at(self.path, self.offset + first * in_row, rows * in_row, scratch), (), out[:rows])
        return True


def netcdf_arrays(path: str, names: Sequence[str]) -> dict[str, StoredArray]:
    """Those variables of a file whose chunks can be decoded directly; none without h5py."""
    try:
        import h5py
    except ImportError:
        return {}
    try:
        file = h5py.File(path, mode="r")
    except OSError:  # NetCDF 3
        return {}
    found: dict[str, StoredArray] = {}
    with file:
        for name in names:
            try:
                found[name] = _array(path, file[name])
            except Exception:  # renamed by netCDF, an HDF5 too old, or not for us: netCDF4 reads it, or explains
                continue
    return found


def _array(path: str, dataset: Any) -> StoredArray:
    dtype = dataset.dtype
    if dtype.kind not in "fiu" or dtype.metadata or not dataset.size or dataset.external or dataset.is_virtual:
        raise Unsupported("no plain numbers")
    common: dict[str, Any] = {"path": path, "shape": dataset.shape, "dtype": dtype}
    common |= {"fill": np.asarray(dataset.fillvalue, dtype=dtype)}
    if dataset.chunks is not None:
        return ChunkedDataset(chunks=dataset.chunks, codecs=_codecs(dataset), places=_places(dataset), **common)
    offset = dataset.id.get_offset()
    if offset is None:
        raise Unsupported("compact, or never written")
    in_row = math.prod(dataset.shape[1:]) * dtype.itemsize
    rows = min(dataset.shape[0], 2 ** int(math.log2(max(1, CONTIGUOUS_BYTES // in_row))))
    return ContiguousDataset(chunks=(rows, *dataset.shape[1:]), offset=offset, **common)


def _codecs(dataset: Any) -> tuple[Codec, ...]:
    """Decoders in the order of decoding, which is the reverse of that of the filters."""
    plist = dataset.id.get_create_plist()
    inflate = partial(decode_deflate, size=math.prod(dataset.chunks) * dataset.dtype.itemsize)  # shuffling keeps sizes
    codecs: list[Codec] = []
    for number in range(plist.get_nfilters()):
        kind = plist.get_filter(number)[0]
        if kind not in (DEFLATE, SHUFFLE):
            raise Unsupported(f"HDF5 filter {kind}")
        codecs.insert(0, inflate if kind == DEFLATE else unshuffle(dataset.dtype.itemsize))
    return tuple(codecs)


def _places(dataset: Any) -> np.ndarray:
    """Offset and length of every chunk, shape (chunks along each dimension..., 2)."""
    from h5py import h5d

    counts = [-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
    places = np.full((*counts, 2), -1, dtype=np.int64)
    masks = set()

    def remember(chunk: Any) -> None:
        index = tuple(first // size for first, size in zip(chunk.chunk_offset, dataset.chunks, strict=True))
        places[index] = chunk.byte_offset, chunk.size
        masks.add(chunk.filter_mask)

    dataset.id.chunk_iter(remember)
    if masks - {0}:
        raise Unsupported("a chunk without some of the filters")
    undefined = dataset.id.get_create_plist().fill_value_defined() == h5d.FILL_VALUE_UNDEFINED
    if undefined and (places < 0).any():
        raise Unsupported("missing chunks without a fill value")
    return places
