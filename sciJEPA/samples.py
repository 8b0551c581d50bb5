"""1. Archive -> samples: which windows exist, which split they belong to, and in which order an epoch visits them.

Arrives: an `Archive`. Leaves: the first steps of windows that cross neither a gap nor a split. We decided against
random splits: neighbouring windows share most of their weather, so a random test set is half a training set.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which archive, which variables, how long the windows are, and how time is split."""

    archive: str = ""
    """Path of a Zarr store, a NetCDF file, or a folder of NetCDF files."""
    variables: tuple[str, ...] | None = None
    """Variables to use; all gridded ones if not given."""
    window: int = 8
    """Steps of a training sample."""
    context: int = 4
    """Steps of the issue window: what the encoder sees when a forecast is made."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Chronological shares of training, validation and test."""
    validation_start: str | None = None
    """First validation time; with test_start it replaces `split`."""
    test_start: str | None = None
    """First test time."""
    gap: int = 0
    """Steps left out before the validation and before the test split."""
    memory_mb: int = 1024
    """Memory for decoded blocks; an archive that fits is shuffled as a whole."""

    def __post_init__(self) -> None:
        if not 1 <= self.context <= self.window:
            raise UserError(
                f"data.context must lie between 1 and data.window, got {self.context} and {self.window}; usual values "
                "are 4 and 8."
            )
        if min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise UserError(f"data.split needs three positive shares that sum to 1, got {list(self.split)}.")
        if (self.validation_start is None) != (self.test_start is None):
            raise UserError("data.validation_start and data.test_start belong together: give both or neither.")
        if self.gap < 0 or self.memory_mb < 1:
            raise UserError(f"data.gap and data.memory_mb must not be negative, got {self.gap} and {self.memory_mb}.")


@dataclass(frozen=True)
class Splits:
    """Step ranges (start, stop) of the three splits; they share no step."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]


def split_steps(archive: Archive, config: DataConfig) -> Splits:
    """Chronological splits by share or by date, with a gap before validation and test.

    Raises
    ------
    UserError
        If the dates are out of order or outside of the archive, or a split is shorter than a window.
    """
    steps = len(archive)
    if config.validation_start is None:
        # Rounded, since 0.7 + 0.1 is not 0.8 in binary and must not move a boundary by a step.
        cuts = [int(round(share * steps, 6)) for share in (config.split[0], config.split[0] + config.split[1])]
    else:
        cuts = [_first_step_from(archive, date) for date in (config.validation_start, str(config.test_start))]
    splits = Splits((0, cuts[0]), (cuts[0] + config.gap, cuts[1]), (cuts[1] + config.gap, steps))
    for name in ("train", "validation", "test"):
        start, stop = getattr(splits, name)
        if stop - start < config.window:
            raise UserError(
                f"the {name} split of {archive.source} has {max(stop - start, 0)} steps, fewer than data.window of "
                f"{config.window}; use a longer archive, a shorter window or another data.split."
            )
    return splits


def _first_step_from(archive: Archive, date: str) -> int:
    if not hasattr(archive.time, "year"):
        raise UserError(f"{archive.source} has no calendar, so '{date}' names no time; use data.split.")
    try:
        if isinstance(archive.time, pd.DatetimeIndex):
            return int(archive.time.searchsorted(pd.Timestamp(date)))
        return int(archive.time.get_slice_bound(date, "left"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{date}' is no date of the {archive.calendar} calendar of {archive.source}; write it as 2008-01-31."
        ) from error


def contiguous(archive: Archive) -> np.ndarray:
    """Whether step t follows step t - 1 without a gap, shape (T,); months of 28 to 31 days do follow each other."""
    steps = np.diff(archive.hours, prepend=archive.hours[0] - archive.cadence)
    return np.abs(steps - archive.cadence) <= 0.5 * archive.cadence


def window_starts(archive: Archive, split: tuple[int, int], length: int) -> np.ndarray:
    """First steps of all windows of `length` steps inside the split that cross no gap."""
    start, stop = split
    if stop - start < length:
        return np.empty(0, dtype=np.int64)
    breaks = np.cumsum(~contiguous(archive))
    first = np.arange(start, stop - length + 1)
    return first[breaks[first + length - 1] == breaks[first]]


def epoch_order(starts: np.ndarray, *, seed: int, epoch: int, block: int, mixed: int) -> np.ndarray:
    """All window starts once, shuffled so that only `mixed` blocks of `block` steps are needed at a time.

    The windows of a group of at most `mixed` blocks are served in random order before those of the next group. Each
    group has one block, drawn at random, from each of as many spans of the time axis: a group of early blocks followed
    by one of late ones would make training drift through the archive.
    """
    rng = np.random.default_rng([seed, 0, epoch])
    number = starts // block
    blocks = np.unique(number)
    groups = -(-len(blocks) // max(mixed, 1))
    spans = -(-len(blocks) // groups)
    group_of_block = rng.permutation(spans * groups).reshape(spans, groups).argsort(axis=1).ravel()
    shuffled = rng.permutation(len(starts))
    group = group_of_block[np.searchsorted(blocks, number[shuffled])]
    return starts[shuffled[np.argsort(group, kind="stable")]]


def require_batch(windows: int, archive: Archive, batch_size: int, length: int) -> None:
    """Refuse a training split that does not fill one batch."""
    if windows < batch_size:
        raise UserError(
            f"the training split of {archive.source} has {windows} windows of {length} steps without a gap, fewer than "
            f"one batch of {batch_size}; lower training.batch_size or data.window."
        )
