"""1b. Samples -> batches: windows read, normalised and shuffled at close to the speed of decompression.

Arrives: an `Archive` and the windows that exist. Leaves: a stream of batches in an order that is a pure function of
seed and epoch, so that a run resumes at any batch and workers change nothing. We decided against a generic data loader:
it decodes a chunk again for each of its windows; here blocks of chunks are decoded once and serve all their windows.
"""

import itertools
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from sciJEPA.archive import Archive
from sciJEPA.masking import Masker, MaskPlan
from sciJEPA.normalize import Normalizer
from sciJEPA.samples import epoch_order, require_batch
from sciJEPA.storage.chunks import ChunkReader, Reading, in_archive_order, places_of
from sciJEPA.tokenizers.base import Batch

BLOCKS = 64
"""Blocks that fit into memory, where a chunk is short enough."""
BLOCK_BYTES = 2**23
"""Blocks of small fields have about this size and not more, so that their decoding is shared among threads."""
SPARE_BLOCKS = 16
"""One in so many blocks is not shuffled: its windows are served, or about to be."""
AHEAD = 3
"""Batches that are being read, or wait, while one is in training."""
KEPT_ARRAYS = 2 * (AHEAD + 2)
"""Values and flags of batches: those ahead, the one in training, and the one before it, which may still have a name."""


def decoded_together(archive: Archive) -> int:
    """Time steps that cannot be decoded apart: a chunk, also where chunks are gathered in shards."""
    time = archive.axes["time"]
    steps = [1]
    for name in archive.variables:
        variable = archive.ds[name].variable
        chunks = variable.encoding.get("chunks") if variable.encoding.get("shards") else None
        steps.append(
            min(archive.chunk_steps, int(chunks[variable.dims.index(time)]) if chunks else archive.chunk_steps)
        )
    return max(steps)


@dataclass(eq=False)
class _Block:
    """Consecutive steps in memory, normalised, in the order of the storage: (V, steps, *space)."""

    values: np.ndarray
    observed: np.ndarray | None = None
    """Flags of the memory; they hold if `missing`."""
    missing: bool = False
    reading: Reading | None = None
    users: list[Future[None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def flag(self, channel: int, observed: np.ndarray) -> None:
        """Keep where a channel was observed."""
        with self.lock:
            if self.observed is None:
                self.observed = np.empty(self.values.shape, dtype=bool)
            if not self.missing:
                self.observed[...] = True
            self.missing = True
        self.observed[channel, : len(observed)] = observed

    def wait(self) -> None:
        """Come back when nobody reads or writes this memory any more."""
        if self.reading is not None:
            self.reading.wait()
        wait(self.users)


class _Windows:
    """A batch on its way: memory that threads copy windows into."""

    def __init__(self, shape: tuple[int, ...], empty: Callable[[tuple[int, ...], type], np.ndarray]) -> None:
        self.values = empty(shape, np.float32)
        self.observed: np.ndarray | None = None
        self.copies: list[Future[None]] = []
        self._empty, self._lock = empty, threading.Lock()

    def copy(self, places: list[tuple[_Block, tuple[int, int, int, int]]]) -> None:
        """Copy parts of windows: (row, step in the window, first and last step in the block)."""
        for block, (row, step, first, stop) in places:
            assert block.reading is not None
            block.reading.result()
            steps = slice(step, step + stop - first)
            self.values[row, :, steps] = block.values[:, first:stop]
            if block.missing:
                assert block.observed is not None
                self._flags()[row, :, steps] = block.observed[:, first:stop]

    def _flags(self) -> np.ndarray:
        with self._lock:
            if self.observed is None:
                self.observed = self._empty(self.values.shape, bool)
                self.observed[...] = True
            return self.observed


class WindowReader:
    """Reads normalised windows; decoded blocks of steps are kept, the oldest ones dropped at the memory limit.

    Memory holds space in the order of the storage, so that chunks are decoded in place; tensors show it in that of the
    archive, by their strides.

    Parameters
    ----------
    archive, normalizer
        What is read, and how it is normalised.
    memory_mb
        For decoded blocks; batches and what decoding needs for a moment come on top.
    threads
        Threads that decode, normalise and copy; as many as there are cores, but at most 8, when left out.
    """

    def __init__(
        self, archive: Archive, normalizer: Normalizer, *, memory_mb: int = 512, threads: int | None = None
    ) -> None:
        self.archive, self.normalizer = archive, normalizer
        self._chunks = ChunkReader(archive, threads=threads)
        order = self._chunks.space_order
        self._space = tuple(archive.shape[axis] for axis in order)
        self._stored = normalizer.in_order(order)
        per_step = 5 * len(archive.channels) * math.prod(archive.shape)  # values and observed flags
        chunk, steps = decoded_together(archive), memory_mb * 2**20 // per_step
        wanted = min(len(archive), steps // BLOCKS, max(1, BLOCK_BYTES // per_step))
        if wanted:
            wanted = 2 ** int(math.log2(wanted))  # which also divides most of what is not chunked
        self.block = max(chunk, wanted // chunk * chunk)
        self.capacity = max(2, steps // self.block)
        self._blocks: dict[int, _Block] = {}  # the oldest first
        self._done: dict[int, None] = {}  # those to be dropped before others
        self._spare: list[_Block] = []
        self._lock = threading.Lock()
        self.memory = _Memory()
        self._calendar = normalizer.calendar(archive.time)
        self._basis = normalizer.cycle_basis(archive.time)

    def read(self, starts: Sequence[int] | np.ndarray, length: int) -> Batch:
        """The windows of `length` steps that begin at `starts`, as a batch of its own memory."""
        return self.begin(starts, length)()

    def begin(
        self,
        starts: Sequence[int] | np.ndarray,
        length: int,
        empty: Callable[[tuple[int, ...], type], np.ndarray] = np.empty,
        done: Sequence[int] = (),
    ) -> Callable[[], Batch]:
        """Begin to `read`, into an array that `empty` gives, and come back with a function that waits for the batch.

        The blocks of the numbers `done` are not needed again soon, and dropped before others.
        """
        first = np.asarray(starts, dtype=np.int64)
        windows = _Windows((len(first), len(self.archive.channels), length, *self._space), empty)
        with self._lock:  # a stream's thread and its consumer may share a reader
            places = self._places(first.tolist(), length)
            # Those in memory first: making room for the others would drop some of them.
            numbers = sorted(places, key=lambda number: (number not in self._blocks, number))
            for low in range(0, len(numbers), self.capacity):
                group = numbers[low : low + self.capacity]
                blocks = {number: self._block(number, group) for number in group}
                self._copy(windows, [(blocks[number], place) for number in group for place in places[number]])
            self._done.update(dict.fromkeys(number for number in done if number in self._blocks))
        times = first[:, None] + np.arange(length)

        def batch() -> Batch:
            wait(windows.copies)
            for copy in windows.copies:
                copy.result()
            return Batch(
                values=self._tensor(windows.values),
                observed=None if windows.observed is None else self._tensor(windows.observed),
                calendar=torch.from_numpy(self._calendar[times]),
                samples=torch.from_numpy(first),
            )

        return batch

    def submit(self, work: Callable[..., Any], *arguments: Any, **options: Any) -> "Future[Any]":
        """Have the threads do something else, after all that they were given before."""
        return self._chunks.submit(work, *arguments, **options)

    def forget(self) -> None:
        """Forget all decoded blocks, but keep their memory for the next ones."""
        with self._lock:
            self._spare += self._blocks.values()
            self._blocks.clear()
            self._done.clear()

    def steps(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Standardised anomalies and observed flags of consecutive steps, both (steps, V, *space); not cached."""
        block = self._new_block(stop - start)
        self._decode(block, start, stop).result()
        flags = block.observed if block.missing else np.ones(block.values.shape, dtype=bool)
        assert flags is not None
        order = self._chunks.space_order
        return in_archive_order(block.values, order), in_archive_order(flags, order)

    def mixed(self, length: int) -> int:
        """Blocks whose windows of `length` steps can be shuffled together without decoding a block twice."""
        if self.capacity * self.block >= len(self.archive):
            return self.capacity
        return max(1, self.capacity - -(-self.capacity // SPARE_BLOCKS))

    def _tensor(self, windows: np.ndarray) -> torch.Tensor:
        """(B, V, T, *space), the latter as in the archive."""
        return torch.from_numpy(windows.transpose(0, 1, 2, *(3 + axis for axis in places_of(self._chunks.space_order))))

    def _places(self, starts: list[int], length: int) -> dict[int, list[tuple[int, int, int, int]]]:
        """For each block that is needed what is copied from there: (row, step in the window, first, last)."""
        places: dict[int, list[tuple[int, int, int, int]]] = {}
        for row, start in enumerate(starts):
            step = start
            while step < start + length:
                number, first = divmod(step, self.block)
                stop = min(self.block, first + start + length - step)
                places.setdefault(number, []).append((row, step - start, first, stop))
                step += stop - first
        return places

    def _copy(self, windows: _Windows, places: list[tuple[_Block, tuple[int, int, int, int]]]) -> None:
        """Have the threads copy parts of windows, each its share."""
        for share in range(self._chunks.threads):
            if mine := places[share :: self._chunks.threads]:
                copy = self._chunks.submit(windows.copy, mine)
                windows.copies.append(copy)
                for block in {id(block): block for block, _ in mine}.values():
                    block.users.append(copy)

    def _block(self, number: int, needed: list[int]) -> _Block:
        """The block of this number, its decoding begun; it takes the memory of the oldest that is not `needed`."""
        self._done.pop(number, None)
        block = self._blocks.get(number)
        if block is not None and block.reading is not None and not block.reading.failed:
            block.users = [user for user in block.users if not user.done()]
            return block
        self._blocks.pop(number, None)
        if len(self._blocks) + len(self._spare) < self.capacity:
            block = self._new_block(self.block)
        else:
            if not self._spare:
                oldest = next(old for old in (*self._done, *self._blocks) if old not in needed)
                self._done.pop(oldest, None)
                self._spare.append(self._blocks.pop(oldest))
            spare = self._spare.pop(0)
            spare.wait()
            block = _Block(spare.values, spare.observed)
        start = number * self.block
        block.reading = self._decode(block, start, min(start + self.block, len(self.archive)))
        self._blocks[number] = block
        return block

    def _new_block(self, steps: int) -> _Block:
        return _Block(np.empty((len(self.archive.channels), steps, *self._space), dtype=np.float32))

    def _decode(self, block: _Block, start: int, stop: int) -> Reading:
        """Begin to read and normalise; each channel is normalised by the thread that has decoded it."""
        values = block.values[:, : stop - start]

        def normalize(channels: Sequence[int]) -> None:
            for channel in channels:
                fields = values[channel]
                observed = self._stored.apply_channel(channel, fields, self._basis[start:stop], fields)
                if observed is not None:
                    block.flag(channel, observed)

        return self._chunks.begin(start, stop, in_archive_order(values, self._chunks.space_order), normalize)


class _Memory:
    """Arrays for batches, used again once nobody holds them: fresh memory costs more than filling it."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array of anything."""
        with self._lock:
            for number in range(len(self._arrays)):
                array = self._arrays[number]
                # A tensor holds its array; here the list, the name and the call do so.
                if array.shape == shape and array.dtype == dtype and sys.getrefcount(array) == 3:
                    del self._arrays[number]
                    break
            else:
                array = np.empty(shape, dtype=dtype)
            self._arrays = [array, *self._arrays][:KEPT_ARRAYS]
            return array


@dataclass
class BatchStream:
    """All batches of a run, from batch `first` on, prepared by the reader's threads ahead of the training.

    Batch k is a pure function of the seed and of k: epoch k // per_epoch, position k % per_epoch. An incomplete last
    batch of an epoch is left out; its windows are others in the next epoch.

    Parameters
    ----------
    reader, masker, starts
        Where windows come from, how they are masked, which ones there are.
    length
        Windows of how many steps.
    batches, batch_size
        Batches of the whole run, and windows in each over all ranks.
    rank, world
        This process and the number of processes; each takes its share of every batch.
    """

    reader: WindowReader
    masker: Masker
    starts: np.ndarray
    length: int
    batches: int
    batch_size: int
    seed: int = 0
    first: int = 0
    rank: int = 0
    world: int = 1
    _order: tuple[int, np.ndarray, list[list[int]]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        require_batch(len(self.starts), self.reader.archive, self.batch_size, self.length)

    def __len__(self) -> int:
        return self.batches

    @property
    def per_epoch(self) -> int:
        """Batches in one pass over the windows."""
        return len(self.starts) // self.batch_size

    def samples(self, batch: int) -> np.ndarray:
        """Window starts of one batch, over all ranks."""
        epoch, position = divmod(batch, self.per_epoch)
        return self._epoch(epoch)[0][position]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[list[int]]]:
        """Window starts of its batches, and for each batch the blocks that this rank needs no more after it."""
        if self._order is None or self._order[0] != epoch:
            block, count = self.reader.block, self.per_epoch
            mixed = self.reader.mixed(self.length)
            order = epoch_order(self.starts, seed=self.seed, epoch=epoch, block=block, mixed=mixed, length=self.length)
            batches = order[: count * self.batch_size].reshape(count, self.batch_size)
            mine = batches[:, self.rank :: self.world]
            last = np.full(len(self.reader.archive) // block + 1, -1)
            position = np.broadcast_to(np.arange(count)[:, None], mine.shape)
            for step in (*range(0, self.length - 1, block), self.length - 1):
                np.maximum.at(last, (mine + step) // block, position)
            done: list[list[int]] = [[] for _ in range(count)]
            for number in np.flatnonzero(last >= 0).tolist():
                done[last[number]].append(number)
            self._order = epoch, batches, done
        return self._order[1:]

    def __iter__(self) -> Generator[tuple[Batch, MaskPlan], None, None]:
        """Yields batches `first` to the last, while the pool reads the next ones."""
        numbers = iter(range(self.first, self.batches))
        begun = deque(map(self._begin, itertools.islice(numbers, AHEAD)))
        while begun:
            begun.extend(map(self._begin, itertools.islice(numbers, 1)))
            yield begun.popleft()()

    def _begin(self, number: int) -> Callable[[], tuple[Batch, MaskPlan]]:
        """Begin to read a batch, and come back with a function that waits for it."""
        epoch, position = divmod(number, self.per_epoch)
        batches, done = self._epoch(epoch)
        samples = batches[position, self.rank :: self.world]
        batch = self.reader.begin(samples, self.length, self.reader.memory.empty, done[position])
        plan = self.reader.submit(self.masker, samples.tolist(), epoch=epoch, step=number)
        return lambda: (self._thinned(batch(), epoch), plan.result())

    def _thinned(self, batch: Batch, epoch: int) -> Batch:
        """The batch without the single values that the masker hides: they are missing as any other."""
        hidden = self.masker.points(batch.values.shape, batch.samples.tolist(), epoch=epoch)
        if hidden is None:
            return batch
        observed = ~hidden if batch.observed is None else batch.observed & ~hidden
        return replace(batch, values=batch.values.masked_fill(hidden, 0), observed=observed)
