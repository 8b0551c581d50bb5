"""1b. Samples -> batches: windows read, normalised and shuffled at close to the speed of decompression.

Arrives: an `Archive` and the windows that exist. Leaves: a stream of batches in an order that is a pure function of
seed and epoch, so that a run resumes at any batch and workers change nothing. We decided against a generic data loader:
it decodes a chunk again for each of its windows; here blocks of chunks are decoded once and serve all their windows.
"""

import math
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from sciJEPA.archive import Archive
from sciJEPA.chunks import ChunkReader
from sciJEPA.masking import Masker, MaskPlan
from sciJEPA.normalize import Normalizer, calendar_features
from sciJEPA.samples import epoch_order, require_batch
from sciJEPA.tokenizers.base import Batch

MIXED_BLOCKS = 16
"""Blocks whose windows are shuffled together, where memory is scarce and a chunk is short enough."""
THREADED_BYTES = 2**20
"""Copies of less are not worth handing to a thread."""


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


Steps = tuple[int, int]
Block = tuple[np.ndarray, np.ndarray | None]


class WindowReader:
    """Reads normalised windows; decoded blocks are kept, the least recently used ones dropped at the memory limit.

    A window may reach beyond the block that it begins in. Where an archive does not fit into memory, the first steps
    of each block are therefore decoded and kept apart from its rest: only they are decoded twice in an epoch.

    Parameters
    ----------
    archive, normalizer
        What is read, and how it is normalised.
    memory_mb
        For decoded blocks; batches and what decoding needs for a moment come on top.
    threads
        Threads that normalise and copy; as many as there are cores, but at most 8, when left out.
    """

    def __init__(
        self, archive: Archive, normalizer: Normalizer, *, memory_mb: int = 1024, threads: int | None = None
    ) -> None:
        self.archive, self.normalizer = archive, normalizer
        self._read = ChunkReader(archive).read  # the one way to the storage: (start, stop) -> a new array (T, V, H, W)
        per_step = 5 * len(archive.channels) * math.prod(archive.shape)
        # Long blocks, since their first chunk is decoded twice; with that chunk `MIXED_BLOCKS` of them fit into memory.
        chunk = self._chunk = decoded_together(archive)
        room = memory_mb * 2**20 // per_step // MIXED_BLOCKS - chunk
        self.block = max(chunk, min(len(archive), room) // chunk * chunk)
        self.capacity = max(2, memory_mb * 2**20 // (self.block * per_step))
        self._blocks: OrderedDict[Steps, Block] = OrderedDict()
        self._lock = threading.Lock()
        self._calendar = calendar_features(archive.time)
        self._threads = min(os.cpu_count() or 1, 8) if threads is None else threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="sciJEPA windows")

    def read(self, starts: Sequence[int] | np.ndarray, length: int) -> Batch:
        """The windows of `length` steps that begin at `starts`, as a batch of its own memory."""
        first = np.asarray(starts, dtype=np.int64)
        shape = (
            len(first),
            len(self.archive.channels),
            length,
            *self.archive.shape,
        )
        values = np.empty(shape, dtype=np.float32)
        observed: np.ndarray | None = None
        with self._lock:  # a stream's thread and its consumer may share a reader
            wanted = self._pieces(first.tolist(), length)
            # Those in memory first: making room for the others would drop some of them.
            present = [steps for steps in wanted if steps in self._blocks]
            absent = sorted(steps for steps in wanted if steps not in self._blocks)
            for group in ([present] if present else []) + [[steps] for steps in absent]:
                copies = []
                for steps in group:
                    block_values, block_observed = self._load(steps)
                    copies += [(values, block_values, *place) for place in wanted[steps]]
                    if block_observed is not None:
                        observed = np.ones(shape, dtype=bool) if observed is None else observed
                        copies += [(observed, block_observed, *place) for place in wanted[steps]]
                self._in_threads(_copy, copies, values[0].nbytes * len(copies))
        return Batch(
            values=torch.from_numpy(values),
            observed=None if observed is None else torch.from_numpy(observed),
            calendar=torch.from_numpy(self._calendar[first[:, None] + np.arange(length)]),
            samples=torch.from_numpy(first),
        )

    def steps(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Standardised anomalies and observed flags of consecutive steps, both (stop - start, V, H, W); not cached."""
        values, observed = self._decode(start, stop)
        return values, np.ones(values.shape, dtype=bool) if observed is None else observed

    def _pieces(self, starts: list[int], length: int) -> dict[Steps, list[tuple[int, int, int, int]]]:
        """Which steps to have in memory, and for each the (row, step in the window, first, last) to copy from there."""
        head = 0 if self._fits else self._head(length)
        pieces: dict[Steps, list[tuple[int, int, int, int]]] = {}
        for row, start in enumerate(starts):
            step = start
            while step < start + length:
                begin = step // self.block * self.block
                cut = begin + head
                low, high = (begin, cut) if step < cut else (cut, begin + self.block)
                stop = min(high, start + length)
                piece = (low, min(high, len(self.archive)))
                pieces.setdefault(piece, []).append((row, step - start, step - low, stop - low))
                step = stop
        return pieces

    def _head(self, length: int) -> int:
        """First steps of a block that windows from the block before reach, in whole chunks."""
        return min(self.block, -(-(length - 1) // self._chunk) * self._chunk)

    @property
    def _fits(self) -> bool:
        return self.capacity * self.block >= len(self.archive)

    def _load(self, steps: Steps) -> Block:
        if steps in self._blocks:
            self._blocks.move_to_end(steps)
            return self._blocks[steps]
        room = self.capacity * self.block - (steps[1] - steps[0])
        held = sum(stop - start for start, stop in self._blocks)
        while self._blocks and held > room:
            (start, stop), _ = self._blocks.popitem(last=False)
            held -= stop - start
        block = self._blocks[steps] = self._decode(*steps)
        return block

    def _decode(self, start: int, stop: int) -> Block:
        """Read and normalise, the latter in pieces for the threads."""
        fields, time = self._read(start, stop), self.archive.time[start:stop]
        if fields.nbytes < THREADED_BYTES or self._threads == 1:
            return self.normalizer.apply(fields, time)
        cuts = np.linspace(0, len(fields), self._threads + 1).astype(int).tolist()
        parts = [(fields[a:b], time[a:b]) for a, b in pairwise(cuts) if a < b]

        def normalize(part: tuple[np.ndarray, pd.Index]) -> np.ndarray | None:
            return self.normalizer.apply(part[0], part[1], out=part[0])[1]

        flags = list(self._pool.map(normalize, parts))
        if all(flag is None for flag in flags):
            return fields, None
        complete = [np.ones(part.shape, bool) if f is None else f for f, (part, _) in zip(flags, parts, strict=True)]
        return fields, np.concatenate(complete)

    def _in_threads(self, work: Callable[..., None], tasks: list[tuple], size: int) -> None:
        """Do all tasks, on the threads where their bytes are worth it."""
        if size < THREADED_BYTES or self._threads == 1:
            for task in tasks:
                work(*task)
            return

        def share(first: int) -> None:
            for task in tasks[first :: self._threads]:
                work(*task)

        for _ in self._pool.map(share, range(self._threads)):
            pass

    def mixed(self, length: int) -> int:
        """Blocks whose windows of `length` steps can be shuffled together without decoding a block twice."""
        if self._fits:
            return self.capacity
        beyond = self._head(length) if length - 1 <= self.block else -(-(length - 1) // self.block) * self.block
        return max(1, self.capacity * self.block // (self.block + beyond))


def _copy(windows: np.ndarray, block: np.ndarray, row: int, step: int, first: int, stop: int) -> None:
    """One window's share of a block, (T, V, H, W) -> (V, T, H, W)."""
    windows[row, :, step : step + stop - first] = block[first:stop].swapaxes(0, 1)


@dataclass
class BatchStream:
    """All batches of a run, from batch `first` on, prepared by one thread ahead of the training.

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
    _order: tuple[int, np.ndarray] | None = field(default=None, init=False, repr=False)

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
        kept = self._order
        if kept is None or kept[0] != epoch:
            mixed = self.reader.mixed(self.length)
            order = epoch_order(self.starts, seed=self.seed, epoch=epoch, block=self.reader.block, mixed=mixed)
            self._order = kept = (epoch, order)
        return kept[1][position * self.batch_size : (position + 1) * self.batch_size]

    def __iter__(self) -> Iterator[tuple[Batch, MaskPlan]]:
        """Yields batches `first` to the last."""
        ready: queue.Queue = queue.Queue(maxsize=2)
        stopped = threading.Event()

        def hand_over(item: tuple[Batch, MaskPlan] | BaseException) -> None:
            while not stopped.is_set():  # a consumer that has stopped empties the queue no more
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for number in range(self.first, self.batches):
                    if stopped.is_set():
                        return
                    hand_over(self._batch(number))
            except BaseException as error:  # the training thread raises it
                hand_over(error)

        thread = threading.Thread(target=produce, daemon=True, name="sciJEPA batches")
        thread.start()
        try:
            for _ in range(self.first, self.batches):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def _batch(self, number: int) -> tuple[Batch, MaskPlan]:
        samples = self.samples(number)[self.rank :: self.world]
        plan = self.masker(samples.tolist(), epoch=number // self.per_epoch, step=number)
        return self.reader.read(samples, self.length), plan
