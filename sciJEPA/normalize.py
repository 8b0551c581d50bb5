"""Samples -> normalised samples: climatology and spread from the training split, applied and inverted.

Arrives: an archive and the steps of the training split. Leaves: a `Normalizer` that turns fields into standardised
anomalies, zero where missing, and back into physical units. It is saved with the model. We decided against statistics
of the whole archive (they leak the test split) and against a spread for every grid point (it would make quiet places as
loud as storm tracks).
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.moments import Moments, flat_product, scratch, tiles
from sciJEPA.samples import Ranges, contiguous, series_named
from sciJEPA.storage.chunks import ChunkReader, Reading, in_archive_order, places_of

ANNUAL_HARMONICS = 3
DAILY_HARMONICS = 2
BLOCK_VALUES = 8 * 2**20
"""Values read at once, twice: 64 MB of float32."""
MODES = ("anomaly", "zscore", "spread", "log1p", "asinh", "none")
CURVES: Mapping[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "log1p": (lambda x: np.log1p(np.maximum(x, 0)), np.expm1),  # the sign of packed zeros is rounding
    "asinh": (np.arcsinh, np.sinh),
}
"""Modes whose f is a curve: f and its inverse, both of values in units of r."""
TWO_YEARS = 2 * 360 * 24
"""Hours of the shortest two years that a calendar has."""


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


def read_blocks(
    reader: ChunkReader, start: int, stop: int, begin: Callable[[int, int, np.ndarray], Reading] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """First step and fields (V, T, *space) of blocks of bounded memory, aligned to the chunks of the storage.

    Space is in the order of the storage. While a block is in use the next one is being read, and the one after it takes
    its memory. `begin` may read steps into memory in another way.
    """
    archive, order = reader.archive, reader.space_order
    begin = begin or (lambda start, stop, fields: reader.begin(start, stop, in_archive_order(fields, order)))
    space = tuple(archive.shape[axis] for axis in order)
    chunk, per_step = archive.chunk_steps, len(archive.channels) * math.prod(space)
    steps = max(chunk, BLOCK_VALUES // per_step // chunk * chunk, 1)
    bounds = [start, *range((start // steps + 1) * steps, stop, steps), stop]
    shape = (len(archive.channels), min(steps, stop - start), *space)
    memory = [np.empty(shape, dtype=np.float32) for _ in range(2)]
    ahead: deque[tuple[int, np.ndarray, Reading]] = deque()
    try:
        for number, (first, end) in enumerate(itertools.pairwise(bounds)):
            fields = memory[number % 2][:, : end - first]
            ahead.append((first, fields, begin(first, end, fields)))
            if len(ahead) == 2:
                yield _read(*ahead.popleft())
        yield _read(*ahead.popleft())
    finally:  # nobody writes into memory that is gone
        for _, _, reading in ahead:
            reading.cancel()


def _read(first: int, fields: np.ndarray, reading: Reading) -> tuple[int, np.ndarray]:
    reading.result()
    return first, fields


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Values x to z = (f(x) - c(t)) / s, by channel in one of these modes, and back.

    =======  =====================  ==================================  =======================
    mode     f                      c                                   s
    =======  =====================  ==================================  =======================
    anomaly  x                      climatology of each place           spread of the anomalies
    zscore   x                      mean of the channel                 its standard deviation
    spread   x                      0, so that zero (no rain) stays 0   standard deviation
    log1p    log(1 + x / r)         mean of f                           standard deviation of f
    asinh    asinh(x / r)           mean of f                           standard deviation of f
    none     x                      0                                   1
    =======  =====================  ==================================  =======================

    A climatology is a mean with `annual` harmonics of the year and `daily` harmonics of the day, fitted by least
    squares; r is the root mean square of x.

    Attributes
    ----------
    coefficients
        Shape (K, V, *space), units of f; K = 1 + 2 annual + 2 daily.
    spread
        Shape (V,), units of f: s, not weighted by area.
    missing_share
        Shape (V,): share of missing values in the training split.
    annual, daily
        Numbers of harmonics.
    trained_on
        First and last training time, as text.
    modes
        One of `MODES` for each channel; all are anomalies if not given.
    unit
        Shape (V,), physical units: r; 1 for modes without it. All are 1 if not given.
    tendency
        Shape (V,), units of f: root mean square of the changes from one step to the next; for reading, not for use.
    seasonal
        Whether training spans two years, so that the time of the year can be told from a trend; where it does not,
        tokens do not know it.
    series
        Parameters of the trajectories that training has, see `samples.series_named`; empty where they have none.
    """

    coefficients: np.ndarray
    spread: np.ndarray
    missing_share: np.ndarray
    annual: int
    daily: int
    trained_on: tuple[str, str]
    modes: tuple[str, ...] = ()
    unit: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    tendency: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    seasonal: bool = True
    series: tuple[str, ...] = ()

    def calendar(self, time: pd.Index) -> np.ndarray:
        """`calendar_features`, with zeros for the year where training cannot tell it from a trend; shape (T, 4)."""
        return calendar_features(time) * np.array([self.seasonal, self.seasonal, True, True], dtype=np.float32)

    def centre(self, time: pd.Index) -> np.ndarray:
        """c(t): shape (T, V, *space), float32, units of f."""
        basis = harmonic_basis(time, self.annual, self.daily)
        return np.tensordot(basis, self.coefficients, axes=1).astype(np.float32)

    def climatology(self, time: pd.Index) -> np.ndarray:
        """What z = 0 stands for: shape (T, V, *space), float32, physical units."""
        return self._undo(self.centre(time))

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
        values, target = fields.reshape(len(fields), -1), out.reshape(len(out), -1)
        assert np.may_share_memory(target, out)  # no copy
        if self.modes and self.modes[channel] == "none":
            return _only_flags(values, target, fields.shape)
        if channel in self._curved:
            values = CURVES[self.modes[channel]][0](values / self.unit[channel])
        scale, observed = 1 / self.spread[channel], None
        for tile in tiles(*values.shape):
            # (x - mean) - cycles: float32 keeps the digits of a small cycle on a large mean.
            anomaly, wave = scratch(values[tile].shape)
            if target[tile].flags.c_contiguous:  # in place, it stays in the caches
                anomaly = target[tile]
            np.subtract(values[tile], mean[tile[1]], out=anomaly)
            if len(cycles):
                anomaly -= flat_product(basis[tile[0]], cycles[:, tile[1]], wave)
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
            modes=tuple(self.modes[number] for number in chosen) if self.modes else (),
            unit=self.unit[chosen] if len(self.unit) else self.unit,
            tendency=self.tendency[chosen] if len(self.tendency) else self.tendency,
        )

    def onto(self, shape: tuple[int, ...]) -> "Normalizer":
        """The same statistics for other places; refused where they belong to places."""
        if self.coefficients.shape[2:] == shape:
            return self
        if not self.modes or "anomaly" in self.modes:
            raise UserError(
                f"the statistics of the model are a climatology of {self.coefficients.shape[2:]} places, and the "
                f"archive has {shape}; train with data.normalize set to {{default: zscore}} for a model of any places."
            )
        one = self.coefficients.reshape(*self.coefficients.shape[:2], -1)[:, :, 0]
        whole = np.broadcast_to(one.reshape(*one.shape, *(1,) * len(shape)), (*one.shape, *shape))
        return replace(self, coefficients=np.ascontiguousarray(whole))

    def invert(self, anomalies: np.ndarray, time: pd.Index) -> np.ndarray:
        """Physical units from z of shape (T, V, *space)."""
        return self._undo(anomalies * self.spread.reshape(-1, *(1,) * (anomalies.ndim - 2)) + self.centre(time))

    def _undo(self, values: np.ndarray) -> np.ndarray:
        """Physical units from those of f."""
        for channel in self._curved:
            values[:, channel] = CURVES[self.modes[channel]][1](values[:, channel]) * self.unit[channel]
        return values

    @property
    def _curved(self) -> list[int]:
        """Channels whose f is a curve."""
        return [number for number, mode in enumerate(self.modes) if mode in CURVES]

    def in_order(self, order: Sequence[int]) -> "Normalizer":
        """The same for fields whose dimensions of space come in this order."""
        axes = (0, 1, *(2 + axis for axis in order))
        return replace(self, coefficients=np.ascontiguousarray(self.coefficients.transpose(axes)))


def _only_flags(values: np.ndarray, target: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Values as they are, zero where missing; and where they are there, None if everywhere."""
    if target.ctypes.data != values.ctypes.data:
        target[...] = values
    with np.errstate(over="ignore", invalid="ignore"):
        flat = target.reshape(-1) if target.flags.c_contiguous else None
        squares = np.dot(flat, flat) if flat is not None else sum(np.dot(step, step) for step in target)
        if np.isfinite(squares):  # only if all are, and none is huge
            return None
    there = np.isfinite(target)
    np.copyto(target, 0, where=~there)
    return None if there.all() else there.reshape(shape)


def harmonic_basis(time: pd.Index, annual: int, daily: int) -> np.ndarray:
    """Columns 1, sin and cos of the harmonics of year and day: shape (T, 1 + 2 annual + 2 daily), float64."""
    year, day = progress(time).T
    angles = [2 * np.pi * k * year for k in range(1, annual + 1)] + [2 * np.pi * k * day for k in range(1, daily + 1)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.stack([np.ones(len(time)), *waves], axis=1)


def fit_normalizer(archive: Archive, split: Ranges, modes: Mapping[str, str] | None = None) -> Normalizer:
    """Statistics of the ranges of steps in `split` (training), in one pass over them.

    The seasonal cycle is fitted, and the time of the year told to tokens, where the steps span two years or more; the
    daily cycle where the cadence is below 12 hours.

    Parameters
    ----------
    modes
        Mode by name of the variable, and under ``default`` that of the others: anomaly on grids, zscore elsewhere, if
        not given.

    Raises
    ------
    UserError
        For a variable that is missing everywhere, constant, or not finite, and for an unknown mode or variable.
    """
    chosen = channel_modes(archive, modes or {})
    cyclic = archive.calendar != "none" and "anomaly" in chosen
    span = max(archive.hours[stop - 1] - archive.hours[start] for start, stop in split) + archive.cadence
    seasonal = bool(span >= TWO_YEARS)
    annual = ANNUAL_HARMONICS if cyclic and seasonal else 0
    daily = DAILY_HARMONICS if cyclic and archive.cadence < 12 else 0
    reader = ChunkReader(archive)
    order = reader.space_order
    unit = _units(archive, split, chosen)
    curves = {n: CURVES[mode][0] for n, mode in enumerate(chosen) if mode in CURVES}
    shape = (len(archive.channels), *(archive.shape[axis] for axis in order))
    moments, together = Moments(1 + 2 * annual + 2 * daily, shape), contiguous(archive)
    basis = harmonic_basis(archive.time, annual, daily)

    def begin(start: int, stop: int, fields: np.ndarray) -> Reading:
        add = moments.add(basis[start:stop], together[start:stop])

        def add_channels(channels: Sequence[int]) -> None:  # by the thread that has decoded them
            for number in channels:
                if number in curves:
                    fields[number] = curves[number](fields[number] / unit[number])
                add(number, fields[number])

        return reader.begin(start, stop, in_archive_order(fields, order), add_channels)

    for _ in (block for start, stop in split for block in read_blocks(reader, start, stop, begin)):
        if moments.infinite:
            raise UserError(
                f"{archive.channels[min(moments.infinite)].name} of {archive.source} has infinite values in the "
                "training split; mask them, for example with ds.where(np.isfinite(ds))."
            )
    solved = _solved(archive, split, moments, order, chosen, unit, (annual, daily))
    return replace(solved, seasonal=seasonal, series=series_named(archive, split))


def channel_modes(archive: Archive, modes: Mapping[str, str]) -> tuple[str, ...]:
    """The mode of every channel."""
    default = modes.get("default", "anomaly" if archive.space.kind == "grid" else "zscore")
    for name, mode in modes.items():
        if name != "default" and name not in archive.variables:
            known = ", ".join(archive.variables)
            raise UserError(f"data.normalize names {name}, which {archive.source} does not have; it has {known}.")
        if mode not in MODES:
            raise UserError(f"data.normalize of {name} must be one of {', '.join(MODES)}, got '{mode}'.")
    return tuple(modes.get(channel.variable, default) for channel in archive.channels)


def _units(archive: Archive, split: Ranges, modes: Sequence[str]) -> np.ndarray:
    """Root mean square of the channels whose mode is a curve, from a pass over them alone; 1 for the others."""
    unit = np.ones(len(modes), dtype=np.float32)
    names = dict.fromkeys(c.variable for c, mode in zip(archive.channels, modes, strict=True) if mode in CURVES)
    if not names:
        return unit
    part = open_archive(archive, variables=list(names))
    squares, count, least = (np.zeros(len(part.channels)) for _ in range(3))
    reader = ChunkReader(part)
    for _, fields in (block for start, stop in split for block in read_blocks(reader, start, stop)):
        values = fields.reshape(len(fields), -1)
        squares += np.nansum(values.astype(np.float64) ** 2, axis=1)
        count += np.isfinite(values).sum(axis=1)
        least = np.fmin(least, np.nanmin(values, axis=1, initial=0))
    found = np.sqrt(squares / np.maximum(count, 1))
    for channel, size, low in zip(part.channels, found, least, strict=True):
        number = archive.channels.index(channel)
        unit[number] = size if size > 0 else 1
        if modes[number] == "log1p" and low < -0.01 * size:
            raise UserError(
                f"{channel.name} of {archive.source} reaches {low:g}, and log1p is for values of 0 and above; set its "
                "data.normalize to asinh."
            )
    return unit


def _solved(
    archive: Archive,
    split: Ranges,
    moments: Moments,
    order: Sequence[int],
    modes: tuple[str, ...],
    unit: np.ndarray,
    harmonics: tuple[int, int],
) -> Normalizer:
    """Statistics from sums, channel by channel in its mode; refused for channels without values or variation."""
    coefficients, variance, count = moments.solve()
    back = (0, 1, *(2 + axis for axis in places_of(order)))
    coefficients = np.ascontiguousarray(coefficients.transpose(back))
    mean, pooled = moments.pooled()
    for number, mode in enumerate(modes):
        if mode != "anomaly":
            coefficients[:, number] = 0
            coefficients[0, number] = 0 if mode in ("spread", "none") else mean[number]
            variance[number] = pooled[number]
    total, steps = count.reshape(len(count), -1).sum(axis=1), sum(stop - start for start, stop in split)
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
    spread = np.where([mode == "none" for mode in modes], 1, np.sqrt(variance)).astype(np.float32)
    labels = (str(archive.time[split[0][0]]), str(archive.time[split[-1][1] - 1]))
    missing = 1 - total / (steps * math.prod(archive.shape))
    return Normalizer(coefficients, spread, missing, *harmonics, labels, modes, unit, moments.tendency)
