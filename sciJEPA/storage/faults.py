"""Part of arrow 1: storage that fails, so that it costs a pause or one clear sentence, and never wrong numbers.

What arrives: a request that may fail, or a chunk that is absent. What leaves: the answer, later if need be; or an error
that names the object.
What we decided against: trusting that an absent chunk stands for its fill value, as Zarr defines it (a lost file then
reads as zeros), a census of all chunks at opening (archives have millions), and retrying for ever.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

TRIES = 5
"""How often a remote object is asked for."""
FIRST_PAUSE = 0.5
"""Seconds before the second try; each further pause is twice as long, plus up to a quarter at random."""
TRY_SECONDS = 120.0
"""A try that takes longer has failed: the server hangs."""
TOTAL_SECONDS = 300.0
"""No further try begins or goes on later than this."""

PASSING_STATUS = (408, 425, 429, *range(500, 600))
FINAL = (FileNotFoundError, PermissionError, NotImplementedError, TypeError, ValueError, ImportError, MemoryError)
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")

Value = TypeVar("Value")


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: timeouts, lost connections, HTTP 408, 425, 429 and 5xx."""
    status = getattr(error, "status", None)
    return status in PASSING_STATUS if isinstance(status, int) and status else not isinstance(error, FINAL)


class _Attempts:
    """Counts the tries at one object, and says how long to pause before the next one."""

    def __init__(self, what: str) -> None:
        self._what, self._begun, self.count = what, time.monotonic(), 0

    @property
    def seconds_left(self) -> float:
        return min(TRY_SECONDS, self._begun + TOTAL_SECONDS - time.monotonic())

    def pause_after(self, error: Exception) -> float:
        """Seconds to wait; raises where another try is of no use."""
        self.count += 1
        if not may_pass(error):
            raise error
        pause = FIRST_PAUSE * 2 ** (self.count - 1) * random.uniform(1, 1.25)
        if self.count >= TRIES or pause >= self.seconds_left:
            seconds = time.monotonic() - self._begun
            found = "no answer" if isinstance(error, TimeoutError) else f"{type(error).__name__} {error}".strip()[:90]
            raise OSError(f"{self._what} failed {self.count} times in {seconds:.0f} s ({found})") from error
        return pause


def with_retries(work: Callable[[], Value], what: str) -> Value:
    """The result of `work`, tried again with growing pauses where its error may pass.

    At most `TRIES` tries are made, and none begins later than `TOTAL_SECONDS` after the first; `work` sees to it that a
    single try ends.

    Examples
    --------
    >>> with_retries(lambda: 42, "the answer")
    42
    """
    attempts = _Attempts(what)
    while True:
        try:
            return work()
        except Exception as error:
            time.sleep(attempts.pause_after(error))


async def with_retries_async(work: Callable[[], Awaitable[Value]], what: str) -> Value:
    """As `with_retries`; a single try ends after `TRY_SECONDS`."""
    attempts = _Attempts(what)
    while True:
        try:
            return await asyncio.wait_for(work(), attempts.seconds_left)
        except Exception as error:
            await asyncio.sleep(attempts.pause_after(error))


@dataclass(frozen=True)
class AbsentChunks:
    """What an absent chunk of a Zarr store means.

    To Zarr it means the fill value. Where that decodes to NaN, it is missing data and travels as such. Where it is a
    number it would pass for data, so we refuse, unless nothing of the variable is stored or the user has allowed it.
    In a local store, a chunk is also refused, with any fill value, where its folder has changed since the store was
    opened: the chunk may have been there. A chunk that its shard leaves out is absent on purpose, and filled.

    Attributes
    ----------
    root : folder of a local store; empty for a remote one, which can neither be listed nor watched.
    allowed : the user says that numbers may be filled in.
    opened : when, in nanoseconds.
    """

    root: str = ""
    allowed: bool = False
    opened: int = field(default_factory=time.time_ns)

    def check(self, name: str, key: str, fill: float, chunks: int | None = None) -> None:
        """Raise where the chunk at `key` of the array `name`, which has so many, must not be replaced by `fill`."""
        if self.root:
            self._check_unchanged(key)
        if np.isnan(fill) or self.allowed or chunks == 1:
            return
        if self.root and not _any_chunk(os.path.join(self.root, name)):
            return
        raise FileNotFoundError(
            f"chunk {key} is not stored, and its fill value {fill:g} would pass for data (if chunks are left out on "
            "purpose, use missing_chunks='fill')"
        )

    def check_file(self, folder: str, file: str, fill: float) -> None:
        """As `check`, for a file of the array in `folder`; one that exists leaves the chunk out on purpose."""
        if self.root and not os.path.exists(file):
            self.check(os.path.relpath(folder, self.root), os.path.relpath(file, self.root), fill)

    def _check_unchanged(self, key: str) -> None:
        folder = os.path.dirname(os.path.join(self.root, key))
        while not os.path.isdir(folder) and len(folder) > len(self.root):
            folder = os.path.dirname(folder)
        if os.stat(folder).st_mtime_ns > self.opened:
            raise FileNotFoundError(f"chunk {key} is not stored, and its folder has changed since the store was opened")


def _any_chunk(folder: str) -> bool:
    return any(name not in METADATA for _, _, files in os.walk(folder) for name in files)
