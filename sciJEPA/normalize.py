"""Samples -> normalised samples: climatology and spread from the training split, applied and inverted.

Arrives: an archive and the steps of the training split. Leaves: a `Normalizer` that turns fields into standardised
anomalies, zero where missing, and back into physical units. It is saved with the model. We decided against statistics
of the whole archive (they leak the test split) and against a spread for every grid point (it would make quiet places as
loud as storm tracks).
"""

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sciJEPA.archive import Archive
from sciJEPA.chunks import ChunkReader
from sciJEPA.errors import UserError
from sciJEPA.samples import Ranges

ANNUAL_HARMONICS = 3
DAILY_HARMONICS = 2
BLOCK_VALUES = 32 * 2**20
"""Values read at once: 128 MB of float32."""
TILE_VALUES, TILE_STEPS, TILE_POINTS = 2**18, 16, 2048
"""Values worked on at once, 1 MB of float32, which a core's cache holds; steps or points of such a tile."""
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


def read_blocks(archive: Archive, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Fields of the steps start to stop in blocks of bounded memory, aligned to the chunks of the storage."""
    per_step = len(archive.channels) * math.prod(archive.shape)
    chunk = archive.chunk_steps
    read = ChunkReader(archive).read
    steps = max(chunk, BLOCK_VALUES // per_step // chunk * chunk, 1)
    while start < stop:
        end = min(stop, (start // steps + 1) * steps)
        yield start, read(start, end)
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

        Missing values become zero, the climatology; the mask says so. `out`, C-contiguous, takes the anomalies; it may
        be `fields`.
        """
        if out is None:
            out = np.empty(fields.shape, dtype=np.result_type(fields, np.float32))
        # (x - mean) - cycles: float32 keeps the digits of a small cycle on a large mean. In tiles that stay in cache.
        basis = harmonic_basis(time, self.annual, self.daily)[:, 1:].astype(np.float32)
        channels, points = fields.shape[1], fields.shape[2] * fields.shape[3]
        cycles = self.coefficients[1:].reshape(-1, channels * points)
        width = max(1, TILE_VALUES // (TILE_STEPS * points))
        for low in range(0, channels, width):
            high = min(low + width, channels)
            wave = np.empty((TILE_STEPS, (high - low) * points), dtype=np.float32)
            for first in range(0, len(fields), TILE_STEPS):
                tile = (slice(first, first + TILE_STEPS), slice(low, high))
                target = out[tile]
                np.subtract(fields[tile], self.coefficients[0, low:high], out=target)
                if len(cycles):
                    np.matmul(basis[tile[0]], cycles[:, low * points : high * points], out=wave[: len(target)])
                    target -= wave[: len(target)].reshape(target.shape)
                target /= self.spread[low:high, None, None]
        flat = out.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(np.dot(flat, flat)):  # one pass without a temporary; finite only if all values are
                return out, None
        observed = np.isfinite(out)
        if observed.all():  # the product was beyond float32
            return out, None
        np.copyto(out, 0, where=~observed)
        return out, observed

    def invert(self, anomalies: np.ndarray, time: pd.Index) -> np.ndarray:
        """Physical units from standardised anomalies of shape (T, V, H, W)."""
        return anomalies * self.spread[:, None, None] + self.climatology(time)


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
    moments = _Moments(1 + 2 * annual + 2 * daily, shape)
    for first, fields in (block for start, stop in split for block in read_blocks(archive, start, stop)):
        flat = fields.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            doubtful = not np.isfinite(np.dot(flat, flat))  # one pass without a temporary
        if doubtful and np.isinf(fields).any():
            infinite = archive.channels[int(np.isinf(fields).any(axis=(0, 2, 3)).argmax())]
            raise UserError(
                f"{infinite.name} of {archive.source} has infinite values in the training split; mask them, for "
                "example with ds.where(np.isfinite(ds))."
            )
        moments.add(harmonic_basis(archive.time[first : first + len(fields)], annual, daily), fields)
    coefficients, variance, count = moments.solve()
    total = count.sum(axis=(1, 2))
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
    missing = 1 - total / (steps * shape[1] * shape[2])
    return Normalizer(coefficients, np.sqrt(variance).astype(np.float32), missing, annual, daily, labels)


class _Moments:
    """Sums of the least-squares fit of K basis functions at every grid point; NaN are left out, point by point.

    Where values are missing the harmonics are shrunk by a ridge of `GAP_RIDGE` times the number of missing steps:
    a point seen in one season alone would otherwise have a climatology hundreds of degrees off in the others.
    """

    def __init__(self, width: int, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        points = int(np.prod(shape))
        self.gram = np.zeros((width, width))
        self.absent_gram: np.ndarray | None = None
        self.absent = np.zeros(points)
        self.projection = np.zeros((width, points))
        self.squares = np.zeros(points)
        self.offset = np.full(shape[0], np.nan)
        self.steps = 0
        self.lock = threading.Lock()

    def add(self, basis: np.ndarray, fields: np.ndarray) -> None:
        # Sums of squares around a typical value keep their digits: pressure varies by 1 % of itself.
        for number in np.flatnonzero(np.isnan(self.offset)):
            for some in (
                fields[:8, number],
                fields[:, number],
            ):  # a few steps are typical enough, if they hold anything
                if np.isnan(self.offset[number]) and np.isfinite(some).any():
                    self.offset[number] = np.nanmean(some, dtype=np.float64)
        values = fields.reshape(len(fields), -1)
        offset = np.repeat(self.offset, values.shape[1] // self.shape[0])

        def add_points(low: int) -> None:
            """A few points in tiles of a few steps: float64 that stays in a core's cache."""
            points = slice(low, low + TILE_POINTS)
            for first in range(0, len(values), TILE_VALUES // TILE_POINTS):
                steps = slice(first, first + TILE_VALUES // TILE_POINTS)
                tile = values[steps, points] - offset[points]
                squares = np.einsum("tp,tp->p", tile, tile)
                if np.isnan(squares).any():
                    absent = np.isnan(tile)
                    tile[absent] = 0
                    squares = np.einsum("tp,tp->p", tile, tile)
                    self._add_absent(basis[steps], absent, points)
                self.projection[:, points] += basis[steps].T @ tile
                self.squares[points] += squares

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            for _ in pool.map(add_points, range(0, values.shape[1], TILE_POINTS)):
                pass
        self.gram += basis.T @ basis
        self.steps += len(values)

    def _add_absent(self, basis: np.ndarray, absent: np.ndarray, points: slice) -> None:
        with self.lock:
            if self.absent_gram is None:
                self.absent_gram = np.zeros((len(self.absent), *self.gram.shape))
        self.absent[points] += absent.sum(axis=0)
        products = basis[:, :, None] * basis[:, None, :]
        self.absent_gram[points] += np.tensordot(absent.astype(np.float64), products, axes=(0, 0))

    def solve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients (K, V, H, W), variance of the residual of every channel (V,), and counts (V, H, W)."""
        ridge = np.full((len(self.gram), len(self.absent)), 1e-9 * self.steps)  # for bases that are not independent
        ridge[1:] += GAP_RIDGE * self.absent
        if self.absent_gram is None:
            coefficients = np.linalg.solve(self.gram + np.diag(ridge[:, 0]), self.projection)
        else:
            grams = self.gram - self.absent_gram
            diagonal = np.arange(len(self.gram))
            grams[:, diagonal, diagonal] += ridge.T
            coefficients = np.linalg.solve(grams, self.projection.T[..., None])[..., 0].T
        # |x - Bc|^2 = x.x - c.p - c.Rc for p = B'x, ridge R and (B'B + R) c = p
        residual = self.squares - (coefficients * (self.projection + ridge * coefficients)).sum(axis=0)
        count = self.steps - self.absent
        offset = np.repeat(np.nan_to_num(self.offset), len(count) // self.shape[0])
        # Rounding leaves some 1e-14 of the squares of a constant field, and float32 cannot show variations below 1e-7
        # of the value; under both there is no variation to speak of.
        residual = np.where(residual > 1e-12 * self.squares + 1e-14 * count * offset**2, residual, 0)
        total = count.reshape(self.shape[0], -1).sum(axis=1)
        variance = residual.reshape(self.shape[0], -1).sum(axis=1) / np.maximum(total, 1)
        coefficients[0] += offset
        return coefficients.reshape(-1, *self.shape).astype(np.float32), variance, count.reshape(self.shape)
