"""Part of arrow 1: a Zarr store, local or remote, whose failures cost a pause or one clear sentence.

What arrives: zarr's own store. What leaves: one that gives the same bytes, asks again, and judges absent chunks.
What we decided against: retries in each file system (they differ in what they retry, and few can be bounded in time).
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr
import zarr.api.asynchronous
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from sciJEPA.storage.faults import METADATA, AbsentChunks, with_retries_async

CF_ATTRIBUTES = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned")

Value = TypeVar("Value")


class SteadyStore(WrapperStore[Store]):
    """A Zarr store that is read with care.

    Remote objects are asked for again where an error may pass (timeouts, lost connections, HTTP 408, 425, 429 and 5xx):
    at most 5 tries of 120 seconds each, with pauses of 0.5, 1, 2 and 4 seconds, and 300 seconds in all. Absent chunks
    of the variables given to `guard` are judged by `AbsentChunks`. An answer of another length than asked for is
    refused: some servers ignore byte ranges.
    """

    def __init__(self, store: Store, absent: AbsentChunks | None = None) -> None:
        super().__init__(store)
        self.absent = AbsentChunks() if absent is None else absent
        self._coding: dict[str, Mapping[str, Any]] = {}
        self._fills: dict[str, tuple[float, int]] = {}

    def _with_store(self, store: Store) -> "SteadyStore":
        copy = SteadyStore(store, self.absent)
        copy._coding = self._coding
        return copy

    def guard(self, ds: xr.Dataset, group: str = "") -> None:
        """From now on, judge absent chunks of a group's variables; its coordinates are checked by their values."""
        for name in ds.data_vars:
            if ds[name].dtype.kind in "fiu":
                encoding = ds[name].encoding
                self._coding[f"{group}/{name}".strip("/")] = {
                    key: encoding[key] for key in CF_ATTRIBUTES if key in encoding
                }

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """One object or a part of it, None where it is absent and may be."""
        value = await self._steadily(lambda: self._store.get(key, prototype, byte_range), key)
        await self._check(key, value, byte_range)
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of objects, as `get` gives them."""
        wanted = list(key_ranges)
        first = wanted[0][0] if wanted else ""
        values = await self._steadily(lambda: self._store.get_partial_values(prototype, wanted), first)
        for (key, byte_range), value in zip(wanted, values, strict=True):
            await self._check(key, value, byte_range)
        return values

    async def _steadily(self, work: Callable[[], Awaitable[Value]], key: str) -> Value:
        return await (work() if self.absent.root else with_retries_async(work, f"{_address(self._store)}/{key}"))

    async def _check(self, key: str, value: Buffer | None, byte_range: ByteRequest | None) -> None:
        if value is None:
            name = next((name for name in self._coding if key.startswith(f"{name}/")), None)
            if name is not None and key.rsplit("/", 1)[-1] not in METADATA:
                await self._check_absent(name, key)
            return
        wanted = _length(byte_range)
        if wanted is not None and len(value) != wanted:
            more = "; the server may ignore byte ranges" if len(value) > wanted else ", so it is truncated"
            raise OSError(f"{key} gave {len(value)} bytes instead of {wanted}{more}")

    async def _check_absent(self, name: str, key: str) -> None:
        if name not in self._fills:
            array = await zarr.api.asynchronous.open_array(store=self._store, path=name, mode="r")
            stored = np.asarray(array.metadata.fill_value or 0).astype(array.dtype).reshape(1)
            variable = xr.Variable("chunk", stored, dict(self._coding[name]))
            decoded = xr.conventions.decode_cf_variable(name, variable, decode_times=False).values
            grid = [-(-size // chunk) for size, chunk in zip(array.shape, array.shards or array.chunks, strict=True)]
            self._fills[name] = float(decoded[0]), int(np.prod(grid))
        self.absent.check(name, key, *self._fills[name])


def _address(store: Store) -> str:
    """Where a store lies, for messages."""
    fs, path = getattr(store, "fs", None), getattr(store, "path", None)
    return str(store) if fs is None or path is None else str(fs.unstrip_protocol(path)).rstrip("/")


def _length(byte_range: ByteRequest | None) -> int | None:
    """Bytes that an answer must have, where that is known."""
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.end - byte_range.start
    return byte_range.suffix if isinstance(byte_range, SuffixByteRequest) else None
