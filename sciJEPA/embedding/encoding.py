"""Part of encoder -> latents: latents of ranges of issue windows, with the same bits wherever they are computed.

Arrives: a model, and where its archive is. Leaves: arrays without labels. Windows are numbered from the first of the
archive; those of a batch are encoded together whatever range is asked for, by one thread, so that neither ranges nor
threads nor processes change a bit. An `Encoding` travels as the folder of the model and the path of the archive; each
worker opens them once. We decided against sending weights with every task, and against several ranges at a time in
one process: torch fills its cores with one, and memory would grow with them.
"""

import copy
import dataclasses
import math
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import torch
import xarray as xr

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.hub import Domain, Model, load, saved_id
from sciJEPA.loader import WindowReader
from sciJEPA.samples import window_starts

RANGE_BYTES = 2**26
"""Latents of about this size are computed and written at once."""
BATCH_BYTES, MOST_WINDOWS = 2**25, 64
"""Windows that are encoded together have about this much values and activations, and this number at most."""
CHUNK_BYTES = 2**22
"""Chunks of a store hold about this much."""
MOST_THREADS = 8
"""Batches that one process encodes at the same time."""

_one_range = threading.Lock()


@dataclass(frozen=True, eq=False)
class Opened:
    """What an encoding needs of the machine that it is on."""

    model: Model
    archive: Archive
    domain: Domain
    starts: np.ndarray
    reader: WindowReader


@dataclass(frozen=True)
class _Saved:
    """A model that lies in a folder."""

    folder: Path
    id: str
    kinds: tuple[type, ...]
    """Configurations of its tokenizers: where they arrive, the module of a domain of one's own has been imported."""

    def load(self) -> Model:
        model = load(self.folder)
        if model.id != self.id:
            raise UserError(f"{self.folder} holds the model {model.id} by now, not {self.id}; begin again with one.")
        return model


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding:
    """How the windows of an archive are encoded.

    Attributes
    ----------
    model : the model, or where it is.
    source : what `Model.open` takes.
    domain : name of the domain; found from the archive if not given.
    encoder : "target" or "online".
    batch_size : windows encoded together; chosen by their size if not given.
    pooled : mean over the tokens of the issue time, as `explore.pool` has it.
    device : where the model computes; its own device if not given.
    """

    model: Model | _Saved
    source: Any
    domain: str | None
    encoder: str
    batch_size: int | None
    pooled: bool
    device: str = ""

    @cached_property
    def opened(self) -> Opened:
        """Model and archive; opened on first use, and once in a process."""
        model = self.model.load() if isinstance(self.model, _Saved) else self.model
        if self.device:
            model.jepa.to(self.device)
        archive, domain = model.open(self.source, self.domain)
        data = domain.config.data
        starts = window_starts(archive, ((0, len(archive)),), data.context)
        reader = WindowReader(archive, domain.normalizer, memory_mb=data.memory_mb)
        return Opened(model, archive, domain, starts, reader)

    def __getstate__(self) -> dict[str, Any]:
        """Names in place of what can be opened by name."""
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.model, _Saved):
            return state
        names = {"domain": self.opened.domain.name, "device": str(self._device)}
        return state | names | {"model": _by_name(self.model), "source": _absolute(self.source)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array, without the windows."""
        grid, width = self.opened.domain.tokenizer.grid, self.opened.model.jepa.encoder.latent_width
        tokens = grid.context_times * grid.per_time
        return {"latents": (width,)} if self.pooled else {"latents": (tokens, width), "observed": (tokens,)}

    @cached_property
    def batch(self) -> int:
        """Windows encoded together."""
        if self.batch_size is not None:
            return self.batch_size
        domain, archive = self.opened.domain, self.opened.archive
        values = domain.config.data.context * len(archive.channels) * math.prod(archive.shape)
        fitting = BATCH_BYTES // (4 * (values + 4 * self._latents_per_window))
        return min(MOST_WINDOWS, 2 ** max(0, fitting.bit_length() - 1))

    @property
    def bytes_per_window(self) -> int:
        """Latents of one window."""
        return 4 * int(np.prod(self.shapes["latents"]))

    @property
    def chunk(self) -> int:
        """Windows in a chunk of a store: some batches, or a part of one."""
        fitting, size = CHUNK_BYTES // self.bytes_per_window, self.batch
        if fitting >= size:
            return min(fitting // size * size, self._windows_at_once)
        return max(part for part in range(1, size + 1) if size % part == 0 and part <= max(1, fitting))

    def ranges(self, first: int = 0) -> list[tuple[int, int]]:
        """Ranges of windows from `first` on, each of whole batches and whole chunks."""
        step, stop = self._windows_at_once // self.chunk * self.chunk, len(self.opened.starts)
        return [(start, min(start + step, stop)) for start in range(first, stop, step)]

    @property
    def _windows_at_once(self) -> int:
        """A number of batches; tokens count although they are pooled, since they decide how long a range takes."""
        fitting = RANGE_BYTES // (4 * self._latents_per_window)
        return max(1, fitting // self.batch) * self.batch

    @property
    def _device(self) -> torch.device:
        return next(self.opened.model.jepa.parameters()).device

    @property
    def _latents_per_window(self) -> int:
        """Numbers in the latents of all tokens."""
        grid = self.opened.domain.tokenizer.grid
        return grid.context_times * grid.per_time * self.opened.model.jepa.encoder.latent_width

    def encode(self, first: int, last: int, advance: Callable[[int], object] = lambda _: None) -> dict[str, np.ndarray]:
        """Latents, and observed shares if they are not pooled, of the windows `first` to `last` (exclusive).

        `first` is the beginning of a batch; `advance` is told how many windows are ready.
        """
        with _one_range:
            arrays = {name: np.empty((last - first, *shape), np.float32) for name, shape in self.shapes.items()}

            def batch(begin: int) -> int:
                end = min(begin + self.batch, last)
                for name, values in self._batch(begin, end).items():
                    arrays[name][begin - first : end - first] = values
                return end - begin

            with _threads(MOST_THREADS if self._device.type == "cpu" else 2) as pool:
                for count in pool.map(batch, range(first, last, self.batch)):
                    advance(count)
            return arrays

    def at_once(self, advance: Callable[[int], object]) -> dict[str, np.ndarray]:
        """The arrays of all windows."""
        return self.encode(0, len(self.opened.starts), advance)

    def lazily(self) -> dict[str, Any]:
        """The arrays of all windows as Dask arrays, a task for each range; all tasks share one encoding."""
        shared = dask.delayed(self, traverse=False, name=f"encoding-{uuid.uuid4().hex}")
        task, parts = dask.delayed(Encoding.encode, name="embed"), []
        for first, last in self.ranges():
            found = task(shared, first, last)
            parts.append(
                {
                    name: dask.array.from_delayed(found[name], (last - first, *shape), np.float32)
                    for name, shape in self.shapes.items()
                }
            )
        return {name: dask.array.concatenate([part[name] for part in parts]) for name in self.shapes}

    def _batch(self, first: int, last: int) -> dict[str, np.ndarray]:
        model, domain = self.opened.model, self.opened.domain
        with torch.inference_mode():
            read = self.opened.reader.read(self.opened.starts[first:last], domain.config.data.context)
            batch = dataclasses.replace(read, domain=domain.name).to(self._device)
            values = model.jepa.encode(batch, encoder=self.encoder, tokenizer=domain.tokenizer).float().cpu().numpy()
            weight = model.jepa.tokens(batch, encoder=self.encoder, tokenizer=domain.tokenizer).weight
            observed = np.ones(values.shape[:2], np.float32) if weight is None else weight.cpu().numpy()
        return {"latents": self._pool(values, observed)} if self.pooled else {"latents": values, "observed": observed}

    def _pool(self, values: np.ndarray, observed: np.ndarray) -> np.ndarray:
        from sciJEPA.explore.states import pool

        geometry, count = self.opened.domain.tokenizer.geometry, values.shape[1]
        places = {f"token_{name}": ("token", getattr(geometry, name)[:count]) for name in ("area", "offset")}
        arrays = {"latents": (("time", "token", "latent"), values), "observed": (("time", "token"), observed)}
        return pool(xr.Dataset(arrays, coords=places))["latents"].values.astype(np.float32)


@contextmanager
def _threads(most: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute a batch each, with one thread of torch's: more would change bits with their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(min(threads, most), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _by_name(model: Model) -> Model | _Saved:
    """Where the model lies, if what lies there is this model; else the model, on the processor."""
    if model.folder is not None and saved_id(model.folder) == model.id:
        return _Saved(model.folder, model.id, tuple(type(part.config.tokenizer) for part in model.domains.values()))
    return dataclasses.replace(model, jepa=copy.deepcopy(model.jepa).cpu())


def _absolute(source: Any) -> Any:
    """Paths as another folder's process finds them; addresses and objects as they are."""
    if not isinstance(source, str | os.PathLike) or "://" in str(source):
        return source
    return os.path.abspath(os.path.expanduser(source))
