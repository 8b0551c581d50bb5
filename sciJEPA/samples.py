"""1. Archive -> samples: which windows exist, which split they belong to, and in which order an epoch visits them.

Arrives: an `Archive`. Leaves: the first steps of windows that cross neither a gap nor a split. We decided against
random splits: neighbouring windows share most of their weather, so a random test set is half a training set.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which archive, which variables, how long the windows are, and how time is split."""

    archive: str = ""
    """Path or URL of a Zarr store, NetCDF, simulations in the layout of The Well, or a table (CSV, Parquet)."""
    storage_options: dict[str, Any] = field(default_factory=dict)
    """For an archive on a network, as fsspec takes them; they are saved with the run, so name a profile, not a key."""
    group: str | None = None
    """Group of the archive; the only one that holds fields if not given."""
    missing_chunks: str = "refuse"
    """What absent chunks of a Zarr store are where their fill value is a number: refuse (an error) or fill."""
    cadence: str | None = None
    """Step of the time axis of a table or of ragged observations, such as 1h; their most common step if not given."""
    duplicates: str = "refuse"
    """Rows of a table with one time and station: refuse, mean, first or last."""
    variables: tuple[str, ...] | None = None
    """Variables to use; all numeric ones on time and space if not given."""
    forcings: tuple[str, ...] = ()
    """Variables that are known ahead, such as insolation: inputs of the context encoder, never targets nor scored."""
    normalize: dict[str, str] = field(default_factory=dict)
    """Mode of normalisation by variable, and under default that of the others: anomaly, zscore, spread, log1p, asinh or
    none; anomalies on grids and zscores elsewhere if not given."""
    window: int = 8
    """Steps of a training sample."""
    context: int = 4
    """Steps of the issue window: what the encoder sees when a forecast is made."""
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of training, validation and test."""
    split_by: str = "auto"
    """time: chronological, the same dates of every member; series: whole trajectories, those with equal parameters
    together; auto: series for trajectories, time for everything else, members of an ensemble included."""
    validation_start: str | None = None
    """First validation time; with test_start it replaces `split`."""
    test_start: str | None = None
    """First test time."""
    gap: int = 0
    """Steps left out before the validation and before the test split."""
    memory_mb: int = 512
    """Memory for decoded blocks; an archive that fits is shuffled as a whole."""

    def __post_init__(self) -> None:
        if not 1 <= self.context <= self.window:
            raise UserError(
                f"data.context must lie between 1 and data.window, got {self.context} and {self.window}; usual values "
                "are 4 and 8."
            )
        if self.split_by not in ("auto", "time", "series"):
            raise UserError(f"data.split_by must be auto, time or series, got '{self.split_by}'.")
        if min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise UserError(f"data.split needs three positive shares that sum to 1, got {list(self.split)}.")
        if (self.validation_start is None) != (self.test_start is None):
            raise UserError("data.validation_start and data.test_start belong together: give both or neither.")
        if self.duplicates not in ("refuse", "mean", "first", "last"):
            raise UserError(f"data.duplicates must be refuse, mean, first or last, got '{self.duplicates}'.")
        if self.gap < 0 or self.memory_mb < 1:
            raise UserError(f"data.gap and data.memory_mb must not be negative, got {self.gap} and {self.memory_mb}.")

    @property
    def how(self) -> dict[str, Any]:
        """How the archive is opened: the options of `open_archive`."""
        names = ("storage_options", "group", "missing_chunks", "cadence", "duplicates")
        return {name: getattr(self, name) for name in names}

    @property
    def inputs(self) -> tuple[str, ...] | None:
        """Variables that are read: the chosen ones and the forcings; all if none are chosen."""
        return None if self.variables is None else tuple(dict.fromkeys((*self.variables, *self.forcings)))


WALKS = 16
"""Places in time from which an epoch's windows come together, where memory holds enough blocks."""
Ranges = tuple[tuple[int, int], ...]
"""Ranges of steps (start, stop), in order, each within one series."""


@dataclass(frozen=True)
class Splits:
    """Step ranges of the three splits; they share no step."""

    train: Ranges
    validation: Ranges
    test: Ranges


def split_steps(archive: Archive, config: DataConfig) -> Splits:
    """Splits by share or by date, with a gap before validation and test; or of whole series.

    Raises
    ------
    UserError
        If the dates are out of order or outside of the archive, or a split is shorter than a window.
    """
    splits = _split_series(archive, config) if splits_series(archive, config) else _split_time(archive, config)
    for name in ("train", "validation", "test"):
        longest = max((stop - start for start, stop in getattr(splits, name)), default=0)
        if longest < config.window:
            raise UserError(
                f"the {name} split of {archive.source} has {max(longest, 0)} steps, fewer than data.window of "
                f"{config.window}; use a longer archive, a shorter window or another data.split."
            )
    return splits


def splits_series(archive: Archive, config: DataConfig) -> bool:
    """Whether whole series, and not spans of time, make up the splits."""
    if config.split_by == "auto":
        return archive.repeats > 1 and "member" not in archive.axes
    if config.split_by == "series" and archive.repeats == 1:
        raise UserError(
            f"data.split_by is series, but {archive.source} has a single series; leave it out to split in time."
        )
    return config.split_by == "series"


def _split_time(archive: Archive, config: DataConfig) -> Splits:
    steps = archive.steps_per_series
    if config.validation_start is None:
        # Rounded, since 0.7 + 0.1 is not 0.8 in binary and must not move a boundary by a step.
        cuts = [int(round(share * steps, 6)) for share in (config.split[0], config.split[0] + config.split[1])]
    else:
        cuts = [_first_step_from(archive, date) for date in (config.validation_start, str(config.test_start))]
    bounds = [(0, cuts[0]), (cuts[0] + config.gap, cuts[1]), (cuts[1] + config.gap, steps)]
    first = range(0, len(archive), steps)
    return Splits(*(tuple((begin + start, begin + stop) for begin in first) for start, stop in bounds))


def _split_series(archive: Archive, config: DataConfig) -> Splits:
    """Series by the archive's own coordinate ``split``, or by shares of shuffled groups with equal parameters."""
    own = _own_split(archive)
    if own is None:
        group = _parameter_groups(archive)
        count = int(group.max()) + 1
        if count < 3:
            raise UserError(
                f"{archive.source} has {count} different series, but training, validation and test need one each; set "
                "data.split_by to time."
            )
        cuts = [round(share * count) for share in (config.split[0], config.split[0] + config.split[1])]
        cuts = [min(max(cuts[0], 1), count - 2), min(max(cuts[1], cuts[0] + 1, 2), count - 1)]
        # Archives are often sorted by parameter; in that order the test would be an extrapolation.
        place = np.random.default_rng(0).permutation(count)[group]
        own = np.digitize(place, cuts)
    length = archive.steps_per_series
    parts = (np.flatnonzero(own == number).tolist() for number in range(3))
    return Splits(*(tuple((number * length, (number + 1) * length) for number in part) for part in parts))


def _own_split(archive: Archive) -> np.ndarray | None:
    """0, 1 or 2 (training, validation, test) for every series where the archive has a coordinate that says so."""
    if len(archive.series) != 1 or "split" not in archive.ds.coords or archive.ds["split"].dims != archive.series:
        return None
    names = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "test": 2}
    numbers = np.array([names.get(str(name).lower(), -1) for name in archive.ds["split"].values])
    return numbers if set(numbers.tolist()) >= {0, 1, 2} else None


def _parameter_groups(archive: Archive) -> np.ndarray:
    """A number for every series; series with the same values of all parameters share it."""
    parameters = list(_parameters(archive).values())
    if not parameters:
        return np.arange(archive.repeats)
    return np.unique(np.stack(parameters, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def _parameters(archive: Archive) -> dict[str, np.ndarray]:
    """Numbers that every series has of its own.

    They come in the order of their names: a copy of the archive that stores them in another one has the same splits.
    """
    ds = archive.ds
    return {
        str(name): ds[name].values.ravel()
        for name in sorted(ds.variables, key=str)
        if len(archive.series) == 1 and ds[name].dims == archive.series and name not in archive.series
        if ds[name].dtype.kind in "fiu"
    }


def series_named(archive: Archive, split: Ranges) -> tuple[str, ...]:
    """Parameters of the series of a split, as text to know them by in any other file, to six digits.

    Empty where series have none, or where the archive itself says which ones are for training: as its authors mean it,
    those of one split may have the parameters of another then.
    """
    parameters = _parameters(archive)
    if not parameters or _own_split(archive) is not None:
        return ()
    numbers = sorted({start // archive.steps_per_series for start, _ in split})
    names = (", ".join(f"{name} {values[number]:.6g}" for name, values in parameters.items()) for number in numbers)
    return tuple(dict.fromkeys(names))


def _first_step_from(archive: Archive, date: str) -> int:
    if not hasattr(archive.time, "year"):
        raise UserError(f"{archive.source} has no calendar, so '{date}' names no time; use data.split.")
    time = archive.time[: archive.steps_per_series]
    try:
        if isinstance(time, pd.DatetimeIndex):
            return int(time.searchsorted(pd.Timestamp(date)))
        return int(time.get_slice_bound(date, "left"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{date}' is no date of the {archive.calendar} calendar of {archive.source}; write it as 2008-01-31."
        ) from error


def contiguous(archive: Archive) -> np.ndarray:
    """Whether step t follows step t - 1 without a gap, shape (T,); months of 28 to 31 days do follow each other."""
    steps = np.diff(archive.hours, prepend=archive.hours[0] - archive.cadence)
    return np.abs(steps - archive.cadence) <= 0.5 * archive.cadence


def window_starts(archive: Archive, split: Ranges, length: int) -> np.ndarray:
    """First steps of all windows of `length` steps inside the ranges of a split that cross no gap."""
    breaks = np.cumsum(~contiguous(archive))
    parts = [np.empty(0, dtype=np.int64)]
    for start, stop in split:
        first = np.arange(start, max(start, stop - length + 1))
        parts.append(first[breaks[first + length - 1] == breaks[first]])
    return np.concatenate(parts)


def epoch_order(starts: np.ndarray, *, seed: int, epoch: int, block: int, mixed: int, length: int = 1) -> np.ndarray:
    """All window starts once, shuffled so that only `mixed` blocks of `block` steps are needed at a time.

    The time axis is walked through from several places at once, block by block, and windows are drawn from the `mixed`
    blocks that were reached last. Neighbouring walks go in opposite directions, and the second half of the axis mirrors
    the first: so the order does not drift through the archive, and where a window of `length` steps ends in another
    block than it begins in, that block is reached by the same walk next, or by another walk at the same time.
    """
    if not len(starts):
        return starts
    rng = np.random.default_rng([seed, 0, epoch])
    steps = np.array([*range(0, length - 1, block), length - 1])
    blocks, needed = np.unique((starts + steps[:, None]) // block, return_inverse=True)
    count, spill = len(blocks), -(-(length - 1) // block)
    # Each walk holds a block or more and what its windows reach into.
    walks = 2 * max(1, min(WALKS, mixed // (2 + spill)) // 2)
    centre = np.abs(np.arange(count) + 0.5 - count / 2) / count
    # Walks meet only where an even number of them shares each half of the axis, unless they begin at its ends.
    begin = rng.random() if walks % 4 == 0 else rng.integers(2) / 2
    turn = (centre * walks / 2 + begin) % 1  # where on the way there and back
    reached = (np.abs(turn - 0.5) + 1e-6 * rng.random(count)).argsort().argsort()
    needed = reached[needed.reshape(len(steps), len(starts))]
    # A block is held while `mixed` blocks are reached, half of them before itself; a window needs all of its blocks.
    half = mixed / 2 if mixed < count else count
    early = np.maximum(needed.max(axis=0) + 0.5 - half, 0)
    late = np.minimum(needed.min(axis=0) + 0.5 + half, count)
    return starts[np.argsort(early + rng.random(len(starts)) * np.maximum(late - early, 0))]


def require_batch(windows: int, archive: Archive, batch_size: int, length: int) -> None:
    """Refuse a training split that does not fill one batch."""
    if windows < batch_size:
        raise UserError(
            f"the training split of {archive.source} has {windows} windows of {length} steps without a gap, fewer than "
            f"one batch of {batch_size}; lower training.batch_size or data.window."
        )
