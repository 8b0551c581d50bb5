"""Part of arrow 1: the chunks of a Zarr array in a local folder, formats 2 and 3, sharded or not.

What arrives: the folder of an array. What leaves: a :class:`StoredArray` that finds and decodes its chunks without
zarr-python, whose event loop costs more than a small chunk; or :class:`Unsupported`, and zarr-python reads it.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from sciJEPA.storage.chunk_storage import (
    Codec,
    Scratch,
    StoredArray,
    Unsupported,
    crc32c_of,
    decode,
    decode_blosc,
    decode_crc32c,
    decode_deflate,
    decode_lz4,
    decode_zstd,
    read_at,
    read_file,
)

CODECS_2: Mapping[str, Codec] = {
    "zlib": decode_deflate,
    "gzip": decode_deflate,
    "zstd": decode_zstd,
    "blosc": decode_blosc,
    "lz4": decode_lz4,
}
CODECS_3: Mapping[str, Codec] = {
    "gzip": decode_deflate,
    "zstd": decode_zstd,
    "blosc": decode_blosc,
    **({"crc32c": decode_crc32c} if crc32c_of else {}),
}
FRAME_BYTES = 1024
"""Headers and checksums of a chunk that does not compress have less."""
NOT_STORED = 2**64 - 1
"""Offset and length of a chunk that a shard leaves out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ZarrArray(StoredArray):
    """One file for each chunk."""

    codecs: tuple[Codec, ...]
    key: Callable[[tuple[int, ...]], str]

    def file_of(self, index: tuple[int, ...]) -> str:
        """The file that holds a chunk."""
        return f"{self.path}/{self.key(index)}"

    def load(self, index: tuple[int, ...], out: np.ndarray, scratch: Scratch) -> bool:
        """Decode one chunk; a file that does not exist stands for the fill value, as Zarr defines it."""
        try:
            data = read_file(f"{self.path}/{self.key(index)}", out.nbytes + FRAME_BYTES, scratch)
        except FileNotFoundError:
            return False
        decode(data, self.codecs, out)
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardedArray(StoredArray):
    """One file for each shard; chunks are the inner ones, found by the index at an end of the shard."""

    codecs: tuple[Codec, ...]
    key: Callable[[tuple[int, ...]], str]
    in_shard: tuple[int, ...]
    index_codecs: tuple[Codec, ...]
    index_first: bool
    _indices: dict[tuple[int, ...], tuple[tuple[int, int], np.ndarray]] = field(default_factory=dict)

    def file_of(self, index: tuple[int, ...]) -> str:
        """The shard that holds a chunk."""
        shard = tuple(number // count for number, count in zip(index, self.in_shard, strict=True))
        return f"{self.path}/{self.key(shard)}"

    def load(self, index: tuple[int, ...], out: np.ndarray, scratch: Scratch) -> bool:
        """Decode one inner chunk; a shard that does not exist stands for the fill value."""
        shard = tuple(number // count for number, count in zip(index, self.in_shard, strict=True))
        inside = tuple(number % count for number, count in zip(index, self.in_shard, strict=True))
        path = f"{self.path}/{self.key(shard)}"
        try:
            offset, length = map(int, self._index(path, shard, scratch)[inside])
        except FileNotFoundError:
            return False
        if (offset, length) == (NOT_STORED, NOT_STORED):
            return False
        decode(read_at(path, offset, length, scratch), self.codecs, out)
        return True

    def _index(self, path: str, shard: tuple[int, ...], scratch: Scratch) -> np.ndarray:
        """Offsets and lengths of the chunks of a shard, read once for as long as the file stays as it is."""
        status = scratch.open(path)[1]
        version = (status.st_size, status.st_mtime_ns)
        kept = self._indices.get(shard)
        if kept is None or kept[0] != version:
            places = np.empty((*self.in_shard, 2), dtype="<u8")
            size = places.nbytes + 4 * len(self.index_codecs)
            first = 0 if self.index_first else status.st_size - size
            data = read_at(path, first, size, scratch)
            decode(data, self.index_codecs, places)
            kept = self._indices[shard] = (version, places)
        return kept[1]


def zarr_array(path: str) -> StoredArray:
    """The chunks of the array in the folder `path`."""
    array = zarr.open_array(path, mode="r")
    if array.metadata.zarr_format == 2:
        return _version_2(path, array)
    with open(os.path.join(path, "zarr.json"), encoding="utf-8") as file:
        return _version_3(path, array, json.load(file))


def _version_2(path: str, array: zarr.Array) -> StoredArray:
    with open(os.path.join(path, ".zarray"), encoding="utf-8") as file:
        metadata = json.load(file)
    if metadata["filters"] or metadata["order"] != "C":
        raise Unsupported("filters or Fortran order")
    compressor = metadata["compressor"]
    return ZarrArray(
        path=path,
        shape=array.shape,
        chunks=tuple(metadata["chunks"]),
        dtype=np.dtype(metadata["dtype"]),
        fill=_fill_of(array, np.dtype(metadata["dtype"])),
        codecs=(_known(CODECS_2, compressor["id"]),) if compressor else (),
        key=array.metadata.encode_chunk_key,
    )


def _version_3(path: str, array: zarr.Array, metadata: dict[str, Any]) -> StoredArray:
    grid, codecs = metadata["chunk_grid"], metadata["codecs"]
    if grid["name"] != "regular" or metadata.get("storage_transformers"):
        raise Unsupported("another chunk grid, or storage transformers")
    outer = tuple(grid["configuration"]["chunk_shape"])
    sharding = codecs[0]["configuration"] if codecs[0]["name"] == "sharding_indexed" else None
    dtype, decoders = _pipeline(sharding["codecs"] if sharding else codecs, np.dtype(metadata["data_type"]))
    common: dict[str, Any] = {"path": path, "shape": array.shape, "dtype": dtype, "fill": _fill_of(array, dtype)}
    common |= {"codecs": decoders, "key": array.metadata.encode_chunk_key}
    if sharding is None:
        return ZarrArray(chunks=outer, **common)
    inner = tuple(sharding["chunk_shape"])
    little_endian, index_codecs = _pipeline(sharding["index_codecs"], np.dtype("<u8"))
    if len(codecs) > 1 or little_endian != np.dtype("<u8") or index_codecs not in ((), (decode_crc32c,)):
        raise Unsupported("a compressed shard or index")
    return ShardedArray(
        chunks=inner,
        in_shard=tuple(shard // chunk for shard, chunk in zip(outer, inner, strict=True)),
        index_codecs=index_codecs,
        index_first=sharding.get("index_location", "end") == "start",
        **common,
    )


def _pipeline(codecs: Sequence[Mapping[str, Any]], dtype: np.dtype) -> tuple[np.dtype, tuple[Codec, ...]]:
    """Stored dtype and decoders in the order of decoding, which is the reverse of the one in the metadata."""
    first, *compressors = codecs
    if first["name"] != "bytes":
        raise Unsupported(f"codec {first['name']}")
    big = first.get("configuration", {}).get("endian") == "big"
    return dtype.newbyteorder(">" if big else "<"), tuple(_known(CODECS_3, c["name"]) for c in reversed(compressors))


def _known(codecs: Mapping[str, Codec], name: str) -> Codec:
    if name not in codecs:
        raise Unsupported(f"codec {name}")
    return codecs[name]


def _fill_of(array: zarr.Array, dtype: np.dtype) -> np.ndarray:
    fill = array.metadata.fill_value
    if math.prod(array.shape) == 0 or dtype.kind not in "fiu":
        raise Unsupported("no numbers")
    return np.asarray(0 if fill is None else fill).astype(dtype)
