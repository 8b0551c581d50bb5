"""Part of arrow 1: one stored chunk -> its values, in the dtype in which they are stored.

What arrives: a file, the place of a chunk in it and its codecs. What leaves: the chunk, decoded into an array that the
caller owns, by one thread and without the GIL where the time goes.
What we decided against: trusting a decoder about sizes. Most of them accept a buffer that is too large and leave its
end as it was, so every size is compared before or after.
"""

import contextlib
import math
import os
import struct
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numcodecs import blosc as numcodecs_blosc
from numcodecs import lz4 as numcodecs_lz4
from numcodecs import zstd as numcodecs_zstd

try:  # inflates two to three times as fast as zlib
    import deflate as libdeflate
except ImportError:
    libdeflate = None  # type: ignore[assignment]
try:  # zarr depends on it; without it, checksummed chunks are left to zarr
    from google_crc32c import value as crc32c_of
except ImportError:
    crc32c_of = None

BLOSC_SHUFFLED, BLOSC_ONE_STREAM = 0x1, 0x10
"""Flags in the header of a Blosc frame."""

GZIP_MAGIC = b"\x1f\x8b"

Codec = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Decodes bytes into all of `out`, or into bytes of its own where `out` is None; both are flat arrays of uint8."""


class Unsupported(Exception):
    """A storage that is not decoded here; the archive reads it in its usual way."""


class Scratch(threading.local):
    """Buffers of one thread, kept from chunk to chunk: fresh memory costs more than filling it.

    So is the last file that was opened, until `close`: chunks of a task often lie in the same one.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}
        self._file: tuple[str, int, os.stat_result] | None = None

    def take(self, purpose: str, count: int) -> np.ndarray:
        """`count` bytes, which hold until the same thread takes some for the same purpose again."""
        buffer = self._buffers.get(purpose)
        if buffer is None or len(buffer) < count:
            buffer = self._buffers[purpose] = np.empty(count, dtype=np.uint8)
        return buffer[:count]

    def open(self, path: str) -> tuple[int, os.stat_result]:
        """A descriptor of the file and its status; Python's file objects cost twice as much."""
        if self._file is None or self._file[0] != path:
            self.close()
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._file = path, descriptor, os.fstat(descriptor)
        return self._file[1:]

    def close(self) -> None:
        """Close the file, if one is open."""
        if self._file is not None:
            os.close(self._file[1])
            self._file = None


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredArray(ABC):
    """An array on disk that is cut into chunks of one shape; it holds no open file.

    Attributes
    ----------
    path : the file or folder that holds it.
    shape, chunks : sizes along its dimensions, in the order in which they are stored.
    dtype, fill : stored dtype with its byte order, and the stored value of chunks that were never written.
    """

    path: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    fill: np.ndarray

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return math.prod(self.chunks) * self.dtype.itemsize

    def file_of(self, index: tuple[int, ...]) -> str:
        """The file that holds a chunk."""
        return self.path

    @abstractmethod
    def load(self, index: tuple[int, ...], out: np.ndarray, scratch: Scratch) -> bool:
        """Decode one chunk into `out` (C-contiguous, of the chunk's full shape); False where none is stored."""


def read_file(path: str, expected: int, scratch: Scratch) -> np.ndarray:
    """All bytes of a file, of which there are probably at most `expected`."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        data = scratch.take("read", expected + 1)
        seen = _read_into(descriptor, data, 0)
        if seen <= expected:  # a regular file gives less than is asked for at its end only
            return data[:seen]
        size = os.fstat(descriptor).st_size
        return _exactly(descriptor, size, 0, size, scratch)
    finally:
        os.close(descriptor)


def read_at(path: str, offset: int, count: int, scratch: Scratch) -> np.ndarray:
    """Exactly `count` bytes of a file, which stays open."""
    descriptor, status = scratch.open(path)
    return _exactly(descriptor, status.st_size, offset, count, scratch)


def _exactly(descriptor: int, size: int, offset: int, count: int, scratch: Scratch) -> np.ndarray:
    if not 0 <= offset <= offset + count <= size:
        raise OSError(f"the file has {size} bytes, and bytes {offset} to {offset + count} are needed")
    data, seen = scratch.take("read", count), 0
    while seen < count:
        more = _read_into(descriptor, data[seen:], offset + seen)
        if not more:
            raise OSError(f"the file ended {count - seen} bytes early")
        seen += more
    return data


def _read_into(descriptor: int, data: np.ndarray, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [data.data], offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows
    read = os.read(descriptor, len(data))
    data[: len(read)] = np.frombuffer(read, dtype=np.uint8)
    return len(read)


def decode(data: np.ndarray, codecs: Sequence[Codec], out: np.ndarray) -> None:
    """Undo `codecs`, the first one first, so that `data` fills `out`."""
    flat = out.reshape(-1).view(np.uint8)
    for codec in codecs[:-1]:
        data = codec(data, None)
    if codecs:
        codecs[-1](data, flat)
    else:
        _fill(flat, data)


def _fill(out: np.ndarray | None, data: bytes | bytearray | np.ndarray) -> np.ndarray:
    values = np.frombuffer(data, dtype=np.uint8)
    if out is None:
        return values
    _require_size(len(values), out)
    out[:] = values
    return out


def _require_size(size: int, out: np.ndarray) -> None:
    if size != len(out):
        raise ValueError(f"a chunk decodes to {size} bytes instead of {len(out)}")


def decode_zstd(data: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """Zstandard; frames that do not tell their size (streams) cost one copy more."""
    size = _zstd_size(data)
    if out is None or size is None:
        return _fill(out, numcodecs_zstd.decompress(data.data))
    _require_size(size, out)
    numcodecs_zstd.decompress(data.data, out.data)
    return out


def _zstd_size(data: np.ndarray) -> int | None:
    """Content size in the header of a frame (RFC 8878, section 3.1.1), None where it is left out."""
    head = data[:18].tobytes()
    if len(head) < 5 or head[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("a chunk is no Zstandard frame")
    descriptor = head[4]
    single, kind = descriptor >> 5 & 1, descriptor >> 6
    width = (single, 2, 4, 8)[kind]
    first = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    if width == 0 or len(head) < first + width:
        return None
    return int.from_bytes(head[first : first + width], "little") + (256 if width == 2 else 0)


def decode_blosc(data: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """Blosc 1 with any of its compressors; on threads other than the main one it uses no global state."""
    if len(data) < 16:
        raise ValueError(f"a Blosc chunk has {len(data)} bytes, fewer than its header")
    size, _, stored = struct.unpack("<III", data[4:16].tobytes())
    if stored > len(data):  # the library would read beyond the end
        raise ValueError(f"a Blosc chunk is truncated: it has {len(data)} bytes instead of {stored}")
    if out is None:
        return _fill(None, numcodecs_blosc.decompress(data))
    _require_size(size, out)
    numcodecs_blosc.decompress(data.data, out.data)
    return out


def decode_lz4(data: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """LZ4 as numcodecs stores it: a block after its size in four bytes."""
    if out is None:
        return _fill(None, numcodecs_lz4.decompress(data))
    if len(data) < 4:
        raise ValueError(f"an LZ4 chunk has {len(data)} bytes, fewer than its header")
    _require_size(struct.unpack("<I", data[:4].tobytes())[0], out)
    numcodecs_lz4.decompress(data.data, out.data)
    return out


def decode_deflate(data: np.ndarray, out: np.ndarray | None, size: int | None = None) -> np.ndarray:
    """Deflate within a zlib or gzip envelope, whose checksum is checked; to `size` bytes, where there is no `out`."""
    size = len(out) if out is not None else size
    if libdeflate is not None and size is not None:
        inflate = libdeflate.gzip_decompress if data[:2].tobytes() == GZIP_MAGIC else libdeflate.zlib_decompress
        with contextlib.suppress(libdeflate.DeflateError):  # zlib tells what is wrong
            return _fill(out, inflate(data.data, size))
    return _fill(out, zlib.decompress(data.data, wbits=47, bufsize=size or 4 * len(data)))


def decode_crc32c(data: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """Check and take off the checksum in the last four bytes."""
    if len(data) < 4:
        raise ValueError(f"a chunk has {len(data)} bytes, fewer than its checksum")
    body, stored = data[:-4], int.from_bytes(data[-4:].tobytes(), "little")
    if crc32c_of(body) != stored:
        raise ValueError("the checksum of a chunk does not match its content")
    return _fill(out, body)


_frames = Scratch()


def unshuffle(item_size: int) -> Codec:
    """HDF5's shuffle filter: byte k of every value lies in plane k.

    Blosc's filter is the same within one of its blocks. So the bytes are handed to Blosc as a frame of one block that
    is stored as it is, which costs a copy and spares a loop over strided bytes.
    """

    def decode_shuffle(data: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        out = np.empty(len(data), dtype=np.uint8) if out is None else out
        size = len(data)
        _require_size(size, out)
        frame = _frames.take("frame", size + 24)
        # Versions 2 and 1; shuffled and one stream to a block; then the sizes of a value, all, a block, and the frame,
        # where the block lies, and its size, which tells that it is not compressed.
        flags = BLOSC_SHUFFLED | BLOSC_ONE_STREAM
        struct.pack_into("<4B5I", frame.data, 0, 2, 1, flags, item_size, size, size, size + 24, 20, size)
        frame[24:] = data
        numcodecs_blosc.decompress(frame, out.data)
        return out

    return decode_shuffle
