"""Samples -> normalised samples: climatology and spread from the training split, applied and inverted.

Arrives: an archive and the steps of the training split. Leaves: a `Normalizer` that turns fields into standardised
anomalies, zero where missing, and back into physical units. It is saved with the model. We decided against statistics
of the whole archive (they leak the test split) and against a spread for every grid point (it would make quiet places as
loud as storm tracks).
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from sciJEPA.archive import Archive
from sciJEPA.chunks import ChunkReader, in_archive_order
from sciJEPA.errors import UserError
from sciJEPA.samples import Ranges

ANNUAL_HARMONICS = 3
DAILY_HARMONICS = 2
BLOCK_VALUES = 8 * 2**20
"""Values read at once: 32 MB of float32, which the cache that cores share may hold."""
TILE_VALUES, TILE_STEPS = 2**17, 16
"""Values worked on at once, 0.5 MB of float32, which a core's own cache holds; steps of such a tile, or more where
there are few points."""
SHORT_SUM = 64
"""Steps summed in float32; sums of more are of float64."""
_thread = threading.local()
TWO_YEARS = 2 * 360 * 24
"""Hours of the shortest two years that a calendar has."""
GAP_RIDGE = 1e-3
"""Weight of a missing step as an observation of "no cycle here"; see `_Moments`."""


def progress(time: pd.Index) -> np.ndarray:
    """How far each time is through its year and its day, in its own calendar.

    Returns
    -------
    Array of shape (T, 2) with values in [0, 1): year and day. Plain numbers have neither and give zeros.

    Examples
    --------
    >>> progress(pd.DatetimeIndex(["2001-01-01", "2001-07-02 12:00"])).tolist()
    [[0.0, 0.0], [0.5, 0.5]]
    """
    if not hasattr(time, "day_of_year"):
        return np.zeros((len(time), 2))
    day = (np.asarray(time.hour) + np.asarray(time.minute) / 60) / 24
    year_length = _days_in_year(np.asarray(time.year), str(getattr(time, "calendar", "standard")))
    return np.stack([(np.asarray(time.day_of_year) - 1 + day) / year_length, day], axis=1)


def _days_in_year(year: np.ndarray, calendar: str) -> np.ndarray:
    fixed = {"360_day": 360, "noleap": 365, "365_day": 365, "all_leap": 366, "366_day": 366}
    if calendar in fixed:
        return np.full(year.shape, fixed[calendar])
    every_fourth = year % 4 == 0
    if calendar == "julian":
        return np.where(every_fourth, 366, 365)
    return np.where(every_fourth & ((year % 100 != 0) | (year % 400 == 0)), 366, 365)


def calendar_features(time: pd.Index) -> np.ndarray:
    """Sine and cosine of the year's progress, then of the day's; shape (T, 4), float32."""
    angle = 2 * np.pi * progress(time)
    return np.stack([np.sin(angle[:, 0]), np.cos(angle[:, 0]), np.sin(angle[:, 1]), np.cos(angle[:, 1])], 1).astype(
        np.float32
    )


def read_blocks(reader: ChunkReader, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    """First step and fields (V, T, *space) of blocks of bounded memory, aligned to the chunks of the storage.

    Space is in the order of the storage. The next block is read into the same memory.
    """
    archive = reader.archive
    space = tuple(archive.shape[axis] for axis in reader.space_order)
    chunk, per_step = archive.chunk_steps, len(archive.channels) * math.prod(space)
    steps = max(chunk, BLOCK_VALUES // per_step // chunk * chunk, 1)
    memory = np.empty((len(archive.channels), min(steps, stop - start), *space), dtype=np.float32)
    while start < stop:
        end = min(stop, (start // steps + 1) * steps)
        fields = memory[:, : end - start]
        reader.read(start, end, out=in_archive_order(fields, reader.space_order))
        yield start, fields
        start = end


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Climatology c(t) of every grid point and spread s of every channel: z = (x - c(t)) / s.

    c(t) is a mean with `annual` harmonics of the year and `daily` harmonics of the day, fitted by least squares.

    Attributes
    ----------
    coefficients
        Shape (K, V, H, W), physical units; K = 1 + 2 annual + 2 daily.
    spread
        Shape (V,), physical units: area-unweighted standard deviation of the anomalies.
    missing_share
        Shape (V,): share of missing values in the training split.
    trained_on
        First and last training time, as text.
    """

    coefficients: np.ndarray
    spread: np.ndarray
    missing_share: np.ndarray
    annual: int
    daily: int
    trained_on: tuple[str, str]

    def climatology(self, time: pd.Index) -> np.ndarray:
        """c(t): shape (T, V, H, W), float32, physical units."""
        basis = harmonic_basis(time, self.annual, self.daily)
        return np.tensordot(basis, self.coefficients, axes=1).astype(np.float32)

    def apply(
        self, fields: np.ndarray, time: pd.Index, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Standardised anomalies of fields (T, V, H, W), and where they were observed (None if everywhere).

        Missing values become zero, the climatology; the mask says so. `out` takes the anomalies and may be `fields`.
        """
        if out is None:
            out = np.empty(fields.shape, dtype=np.result_type(fields, np.float32))
        basis = self.cycle_basis(time)
        flags = [
            self.apply_channel(number, fields[:, number], basis, out[:, number]) for number in range(fields.shape[1])
        ]
        if all(flag is None for flag in flags):
            return out, None
        complete = np.ones(fields.shape[:1] + fields.shape[2:], dtype=bool)
        return out, np.stack([complete if flag is None else flag for flag in flags], axis=1)

    def cycle_basis(self, time: pd.Index) -> np.ndarray:
        """Harmonics at these times, shape (T, K - 1), float32: what `apply_channel` needs of them."""
        return harmonic_basis(time, self.annual, self.daily)[:, 1:].astype(np.float32)

    def apply_channel(self, channel: int, fields: np.ndarray, basis: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        """`apply` for one channel: fields (T, *space) and the `cycle_basis` of their times.

        Both `fields` and `out`, which may be the same, have the values of each step one after the other.
        """
        coefficients = self.coefficients[:, channel].reshape(len(self.coefficients), -1)
        mean, cycles = coefficients[0], coefficients[1:]
        values, target = fields.reshape(len(fields), -1), out.view()
        target.shape = values.shape  # never a copy
        scale, observed = 1 / self.spread[channel], None
        for tile in _tiles(*values.shape):
            # (x - mean) - cycles: float32 keeps the digits of a small cycle on a large mean.
            anomaly, wave = _scratch(values[tile].shape)
            np.subtract(values[tile], mean[tile[1]], out=anomaly)
            if len(cycles):
                anomaly -= np.matmul(basis[tile[0]], cycles[:, tile[1]], out=wave)
            flat = anomaly.reshape(-1)
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(anomaly, scale, out=target[tile])
                if np.isfinite(np.dot(flat, flat)):  # finite only if all values are
                    continue
            there = np.isfinite(target[tile])
            if not there.all():  # else only the product was beyond float32
                observed = np.ones(values.shape, dtype=bool) if observed is None else observed
                observed[tile] = there
                np.copyto(target[tile], 0, where=~there)
        return None if observed is None else observed.reshape(fields.shape)

    def select(self, channels: Sequence[int]) -> "Normalizer":
        """The statistics of some of the channels, in this order."""
        chosen = list(channels)
        return replace(
            self,
            coefficients=self.coefficients[:, chosen],
            spread=self.spread[chosen],
            missing_share=self.missing_share[chosen],
        )

    def invert(self, anomalies: np.ndarray, time: pd.Index) -> np.ndarray:
        """Physical units from standardised anomalies of shape (T, V, *space)."""
        return anomalies * self.spread.reshape(-1, *(1,) * (anomalies.ndim - 2)) + self.climatology(time)

    def in_order(self, order: Sequence[int]) -> "Normalizer":
        """The same for fields whose dimensions of space come in this order."""
        axes = (0, 1, *(2 + axis for axis in order))
        return replace(self, coefficients=np.ascontiguousarray(self.coefficients.transpose(axes)))


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Two tiles of memory of this thread: fresh memory costs more than filling it."""
    count = 2 * math.prod(shape)
    if len(getattr(_thread, "values", ())) < count:
        _thread.values = np.empty(count, dtype=np.float32)
    return _thread.values[:count].reshape(2, *shape)


def _tiles(steps: int, points: int) -> Iterator[tuple[slice, slice]]:
    """Parts of an array (steps, points) that a core's cache holds, all steps of some points after each other."""
    width = max(1, min(points, TILE_VALUES // min(steps, TILE_STEPS)))
    rows = max(1, TILE_VALUES // width)
    for low in range(0, points, width):
        for first in range(0, steps, rows):
            yield slice(first, first + rows), slice(low, low + width)


def harmonic_basis(time: pd.Index, annual: int, daily: int) -> np.ndarray:
    """Columns 1, sin and cos of the harmonics of year and day: shape (T, 1 + 2 annual + 2 daily), float64."""
    year, day = progress(time).T
    angles = [2 * np.pi * k * year for k in range(1, annual + 1)] + [2 * np.pi * k * day for k in range(1, daily + 1)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.stack([np.ones(len(time)), *waves], axis=1)


def fit_normalizer(archive: Archive, split: Ranges) -> Normalizer:
    """Climatology and spread of the ranges of steps in `split` (training), in one pass over them.

    The seasonal cycle is fitted where the steps span two years or more, the daily cycle where the cadence is below 12
    hours.

    Raises
    ------
    UserError
        For a variable that is missing everywhere, constant, or not finite.
    """
    seasonal = archive.calendar != "none"
    span = max(archive.hours[stop - 1] - archive.hours[start] for start, stop in split) + archive.cadence
    annual = ANNUAL_HARMONICS if seasonal and span >= TWO_YEARS else 0
    daily = DAILY_HARMONICS if seasonal and archive.cadence < 12 else 0
    shape = (len(archive.channels), *archive.shape)
    reader = ChunkReader(archive)
    order = reader.space_order
    moments = _Moments(1 + 2 * annual + 2 * daily, (shape[0], *(archive.shape[axis] for axis in order)))
    for first, fields in (block for start, stop in split for block in read_blocks(reader, start, stop)):
        basis = harmonic_basis(archive.time[first : first + fields.shape[1]], annual, daily)
        infinite = moments.add(basis, fields, reader.submit)
        if infinite is not None:
            raise UserError(
                f"{archive.channels[infinite].name} of {archive.source} has infinite values in the training split; "
                "mask them, for example with ds.where(np.isfinite(ds))."
            )
    coefficients, variance, count = moments.solve()
    back = (0, 1, *(2 + int(axis) for axis in np.argsort(order)))
    coefficients = np.ascontiguousarray(coefficients.transpose(back))
    total = count.reshape(len(count), -1).sum(axis=1)
    steps = sum(stop - start for start, stop in split)
    for channel, seen, squares in zip(archive.channels, total, variance, strict=True):
        if seen == 0:
            raise UserError(
                f"{channel.name} of {archive.source} has no value in the {steps} training steps: all are NaN; leave it "
                "out with data.variables or choose another split."
            )
        if not squares > 0:
            raise UserError(
                f"{channel.name} of {archive.source} does not vary in time in the {steps} training steps, so it cannot "
                "be standardised or forecast; leave it out with data.variables."
            )
    labels = (str(archive.time[split[0][0]]), str(archive.time[split[-1][1] - 1]))
    missing = 1 - total / (steps * math.prod(archive.shape))
    return Normalizer(coefficients, np.sqrt(variance).astype(np.float32), missing, annual, daily, labels)


class _Moments:
    """Sums of the least-squares fit of K basis functions at every grid point; NaN are left out, point by point.

    Where values are missing the harmonics are shrunk by a ridge of `GAP_RIDGE` times the number of missing steps:
    a point seen in one season alone would otherwise have a climatology hundreds of degrees off in the others.
    """

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        places = (shape[0], math.prod(shape[1:]))
        self.gram = np.zeros((width, width))
        self.absent_gram: np.ndarray | None = None
        self.absent = np.zeros(places)
        self.projection = np.zeros((width, *places))
        self.squares = np.zeros(places)
        self.offset = np.full(places, np.nan, dtype=np.float32)
        self.steps = 0
        self.lock = threading.Lock()

    def add(self, basis: np.ndarray, fields: np.ndarray, submit: Callable[..., "Future[bool]"]) -> int | None:
        """Add fields (V, T, *space), by the threads that `submit` gives work to.

        Returns the number of a channel that has infinite values.
        """
        values = fields.reshape(*fields.shape[:2], -1)
        single = basis.astype(np.float32)
        basis = single.astype(np.float64)  # what the sums are made with
        points = {tile[1].start: tile[1] for tile in _tiles(*values.shape[1:])}.values()
        tasks = [
            (channel, submit(self._add_points, channel, some, basis, single, values[channel, :, some]))
            for channel in range(len(values))
            for some in points
        ]
        finite = [task.result() for _, task in tasks]
        self.gram += basis.T @ basis
        self.steps += len(basis)
        return None if all(finite) else tasks[finite.index(False)][0]

    def _add_points(
        self, channel: int, points: slice, basis: np.ndarray, single: np.ndarray, values: np.ndarray
    ) -> bool:
        """Sums over a few steps in float32, and over those in float64; False where a value is infinite."""
        # Around a value of the point itself, sums of squares keep their digits: pressure varies by 1 % of itself.
        offset = self.offset[channel, points]
        if np.isnan(offset).any():
            first = np.isfinite(values).argmax(axis=0)
            np.copyto(offset, values[first, np.arange(len(first))], where=np.isnan(offset))
        for first in range(0, len(values), SHORT_SUM):
            steps = slice(first, first + SHORT_SUM)
            tile = np.subtract(values[steps], offset, out=_scratch(values[steps].shape)[0])
            squares = np.einsum("tp,tp->p", tile, tile)
            if not np.isfinite(squares).all():
                if np.isinf(values[steps]).any():
                    return False
                absent = np.isnan(tile)
                tile[absent] = 0
                squares = np.einsum("tp,tp->p", tile, tile, dtype=np.float64)
                if absent.any():
                    self._add_absent(channel, points, basis[steps], absent)
            self.projection[:, channel, points] += single[steps].T @ tile
            self.squares[channel, points] += squares
        return True

    def _add_absent(self, channel: int, points: slice, basis: np.ndarray, absent: np.ndarray) -> None:
        with self.lock:
            if self.absent_gram is None:
                self.absent_gram = np.zeros((*self.absent.shape, *self.gram.shape))
        self.absent[channel, points] += absent.sum(axis=0)
        products = basis[:, :, None] * basis[:, None, :]
        self.absent_gram[channel, points] += np.tensordot(absent.astype(np.float64), products, axes=(0, 0))

    def solve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients (K, V, *space), variance of the residual of every channel (V,), and counts (V, *space)."""
        width, absent = len(self.gram), self.absent.reshape(-1)
        projection, squares = self.projection.reshape(width, -1), self.squares.reshape(-1)
        ridge = np.full((width, len(absent)), 1e-9 * self.steps)  # for bases that are not independent
        ridge[1:] += GAP_RIDGE * absent
        if self.absent_gram is None:
            coefficients = np.linalg.solve(self.gram + np.diag(ridge[:, 0]), projection)
        else:
            grams = self.gram - self.absent_gram.reshape(-1, width, width)
            diagonal = np.arange(width)
            grams[:, diagonal, diagonal] += ridge.T
            coefficients = np.linalg.solve(grams, projection.T[..., None])[..., 0].T
        # |x - Bc|^2 = x.x - c.p - c.Rc for p = B'x, ridge R and (B'B + R) c = p
        residual = squares - (coefficients * (projection + ridge * coefficients)).sum(axis=0)
        count, offset = self.steps - absent, np.nan_to_num(self.offset.reshape(-1)).astype(np.float64)
        # Rounding leaves some 1e-14 of the squares of a constant field, and float32 cannot show variations below 1e-7
        # of the value; under both there is no variation to speak of.
        residual = np.where(residual > 1e-12 * squares + 1e-14 * count * offset**2, residual, 0)
        total = count.reshape(self.shape[0], -1).sum(axis=1)
        variance = residual.reshape(self.shape[0], -1).sum(axis=1) / np.maximum(total, 1)
        coefficients[0] += offset
        return coefficients.reshape(-1, *self.shape).astype(np.float32), variance, count.reshape(self.shape)
