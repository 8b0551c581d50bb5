"""The controls: what a reviewer would ask for, fitted on the same training times and judged on the same test times.

Arrives: a reader of standardised anomalies, issue steps and leads. Leaves: objects whose `predict(steps)` gives, for
each lead, standardised anomalies (len(steps), V * places), like a probe's. Missing values at the issue time count as
climatology.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg

from sciJEPA.archive import Archive
from sciJEPA.errors import UserError
from sciJEPA.forecasting.labelling import valid_times
from sciJEPA.loader import WindowReader
from sciJEPA.probes import BLOCK_ROWS, Ridge, Rows
from sciJEPA.probing.principal import principal_axes
from sciJEPA.tokenizers.base import Tokenizer

EOF_NUMBERS = (10, 20, 40, 80, 160)
LARGEST_GRAM, LARGEST_ROWS = 4096, 2**27
"""Functions come from a Gram matrix no larger than this, and from rows in memory of no more values than this."""
PATCHES = 2**16
"""Principal axes of patches come from at most about so many, evenly spaced in time."""


class Forecaster(Protocol):
    """Anything that forecasts: a control or a fitted probe."""

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """For each lead, standardised anomalies (len(times), V * places) forecast at these issue steps."""
        ...


def fields(reader: WindowReader, shift: int = 0) -> Rows:
    """Standardised anomalies `shift` steps after each issue step, flattened to (V * places)."""

    def read(steps: np.ndarray) -> np.ndarray:
        return reader.read(steps + shift, 1).values.numpy().reshape(len(steps), -1)

    return Rows(read, _points(reader))


def windows(reader: WindowReader, context: int) -> Rows:
    """Standardised anomalies of the whole issue window, flattened."""

    def read(steps: np.ndarray) -> np.ndarray:
        return reader.read(steps - context + 1, context).values.numpy().reshape(len(steps), -1)

    return Rows(read, _points(reader) * context)


def _points(reader: WindowReader) -> int:
    archive = reader.archive
    return len(archive.channels) * math.prod(archive.shape)


@dataclass(frozen=True)
class Persistence:
    """The field at the issue time, unchanged: x(t + lead) = x(t)."""

    reader: WindowReader
    leads: Sequence[int]

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """The anomaly of the issue time's field against the climatology of the valid time."""
        normalizer, archive = self.reader.normalizer, self.reader.archive
        now = fields(self.reader).read(times)
        spread = normalizer.spread.reshape(-1, *(1,) * len(archive.shape))
        forecasts = []
        for lead in self.leads:
            season = normalizer.centre(archive.time[times])
            season -= normalizer.centre(valid_times(archive, times, lead))
            forecasts.append(now + (season / spread).reshape(len(times), -1))
        return forecasts


@dataclass(frozen=True)
class Climatology:
    """The climatology of the training split: an anomaly of zero."""

    reader: WindowReader
    leads: Sequence[int]

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Zeros."""
        return [np.zeros((len(times), _points(self.reader)), dtype=np.float32) for _ in self.leads]


@dataclass(frozen=True)
class DampedPersistence:
    """The issue time's anomaly times a factor, fitted at every grid point and lead on the training times.

    The factor is sum(a(t) a(t + lead)) / sum(a(t)^2) over the times t whose outcome was observed: a first-order
    autoregressive process.
    """

    reader: WindowReader
    factors: Sequence[np.ndarray]

    @classmethod
    def fit(cls, reader: WindowReader, leads: Sequence[int], train: np.ndarray) -> "DampedPersistence":
        """Fit the factors."""
        squares, products = np.zeros((2, len(leads), _points(reader)))
        for first in range(0, len(train), BLOCK_ROWS):
            steps = train[first : first + BLOCK_ROWS]
            now = fields(reader).read(steps).astype(np.float64)
            for number, lead in enumerate(leads):
                outcome = reader.read(steps + lead, 1)
                seen = 1.0 if outcome.observed is None else outcome.observed.numpy().reshape(now.shape)
                squares[number] += (now**2 * seen).sum(axis=0)
                products[number] += (now * outcome.values.numpy().reshape(now.shape)).sum(axis=0)
        return cls(reader, list((products / np.where(squares > 0, squares, 1)).astype(np.float32)))

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Factor times anomaly."""
        now = fields(self.reader).read(times)
        return [now * factor for factor in self.factors]


def cycle_steps(archive: Archive) -> int | None:
    """Steps of the cycle that the calendar promises: a day where steps are shorter than that, else a year.

    None without a calendar, or where no whole number of steps makes a cycle.
    """
    if archive.calendar == "none":
        return None
    day, year = 24 / archive.cadence, 365.25 * 24 / archive.cadence
    if day >= 2:
        return round(day) if abs(day - round(day)) < 1e-6 else None
    # The 25 hundredths of a day are let go; a month's cadence is not exact either.
    return round(year) if year >= 2 and abs(year - round(year)) < 0.05 * round(year) else None


@dataclass(frozen=True)
class SeasonalNaive:
    """The value of the valid time, one cycle (or as few as reach back to the issue time) earlier.

    Where that lies before the series begins, or was missing, it counts as climatology.
    """

    reader: WindowReader
    leads: Sequence[int]
    cycle: int

    @classmethod
    def of(cls, reader: WindowReader, leads: Sequence[int]) -> "SeasonalNaive":
        """With the cycle that the calendar promises.

        Raises
        ------
        UserError
            If the calendar promises none.
        """
        cycle = cycle_steps(reader.archive)
        if cycle is None:
            raise UserError(
                f"{reader.archive.source} has no daily or yearly cycle in whole steps of {reader.archive.cadence:g} "
                "hours, so there is no seasonal naive forecast; leave seasonal_naive out."
            )
        return cls(reader, leads, cycle)

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """The anomaly of the earlier field against the climatology of the valid time."""
        normalizer, archive = self.reader.normalizer, self.reader.archive
        spread = normalizer.spread.reshape(-1, *(1,) * len(archive.shape))
        forecasts = []
        for lead in self.leads:
            back = -(-lead // self.cycle) * self.cycle - lead
            known = times % archive.steps_per_series >= back
            then = np.where(known, times - back, times)
            season = normalizer.centre(archive.time[then])
            season -= normalizer.centre(valid_times(archive, times, lead))
            anomaly = fields(self.reader).read(then) + (season / spread).reshape(len(times), -1)
            forecasts.append(np.where(known[:, None], anomaly, 0).astype(np.float32))
        return forecasts


@dataclass(frozen=True)
class EOFRidge:
    """Leading empirical orthogonal functions of the issue time's field, then ridge: a linear inverse model.

    Their number is chosen for each lead on the validation times, like the strength of the ridge. Penland and Magorian
    1993, https://doi.org/10.1175/1520-0442(1993)006<1067:PONSST>2.0.CO;2.
    """

    candidates: Sequence[Ridge]
    chosen: Sequence[int]

    @classmethod
    def fit(
        cls,
        reader: WindowReader,
        leads: Sequence[int],
        train: np.ndarray,
        validation: np.ndarray,
        weights: np.ndarray,
        *,
        unlabelled: np.ndarray | None = None,
    ) -> "EOFRidge":
        """Fit one ridge for each number of functions and keep the best for each lead.

        The functions need no outcomes: they come from the times `unlabelled`, where these are more than `train`.
        """
        now, unlabelled = fields(reader), train if unlabelled is None else unlabelled
        numbers = [n for n in EOF_NUMBERS if n <= min(now.width, len(train)) // 2] or [1]
        patterns = leading_patterns(now, unlabelled, np.sqrt(weights), max(numbers))
        targets = [fields(reader, lead) for lead in leads]
        groups = len(reader.archive.channels)
        candidates = []
        for number in numbers:
            basis = patterns[:, :number]
            features = Rows(lambda steps, basis=basis: now.read(steps) @ basis, number)  # type: ignore[misc]
            candidates.append(Ridge().fit(features, targets, train, validation, weights=weights, groups=groups))
        errors = np.stack([candidate.error_.sum(axis=1) for candidate in candidates])
        return cls(candidates, errors.argmin(axis=0).tolist())

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Each lead from its own number of functions."""
        forecasts = {number: self.candidates[number].predict(times) for number in set(self.chosen)}
        return [forecasts[number][lead] for lead, number in enumerate(self.chosen)]


def leading_patterns(rows: Rows, train: np.ndarray, scale: np.ndarray, count: int) -> np.ndarray:
    """Leading principal axes of rows times `scale`, multiplied by `scale` again: rows @ result gives the components.

    Shape (width, count). Solved through the smaller Gram matrix, or by subspace iteration where that, or the rows,
    would be too large for memory.
    """
    in_memory = rows.width <= len(train) or len(train) * rows.width <= LARGEST_ROWS
    if min(rows.width, len(train)) > LARGEST_GRAM or not in_memory:
        return principal_axes(rows, train, count, scale=scale).axes * scale[:, None]
    mean = np.zeros(rows.width)
    for first in range(0, len(train), BLOCK_ROWS):
        mean += rows.read(train[first : first + BLOCK_ROWS]).sum(axis=0, dtype=np.float64) / len(train)

    def block(first: int) -> np.ndarray:
        return (rows.read(train[first : first + BLOCK_ROWS]) - mean) * scale

    size = min(rows.width, len(train))
    top = [size - count, size - 1]
    if rows.width <= len(train):
        gram = sum(part.T @ part for part in map(block, range(0, len(train), BLOCK_ROWS)))
        axes = scipy.linalg.eigh(gram, subset_by_index=top)[1]
    else:
        data = np.concatenate([block(first) for first in range(0, len(train), BLOCK_ROWS)])
        values, vectors = scipy.linalg.eigh(data @ data.T, subset_by_index=top)
        axes = data.T @ (vectors / np.sqrt(np.maximum(values, 1e-12 * values.max())))
    return axes[:, ::-1] * scale[:, None]


def patch_components(reader: WindowReader, tokenizer: Tokenizer, context: int, train: np.ndarray, count: int) -> Rows:
    """Principal components of what the encoder sees at each place: its patches of the issue window, one after another.

    As many components as a latent has numbers, or as there are values; the axes are shared by all places, as the
    weights of an encoder are.

    Parameters
    ----------
    train
        Issue steps from which the axes come; they need no outcomes.
    count
        Width of a latent.
    """
    places = tokenizer.grid.per_time

    def patches(steps: np.ndarray) -> np.ndarray:
        batch = reader.read(steps - context + 1, context)
        values = tokenizer.patchify(batch.values).flatten(2).numpy()
        return values.reshape(len(steps), -1, places, values.shape[-1]).swapaxes(1, 2).reshape(len(steps), places, -1)

    def of_places(numbers: np.ndarray) -> np.ndarray:
        steps, where = np.unique(numbers // places, return_inverse=True)
        return patches(steps)[where, numbers % places]

    few = train[:: max(1, len(train) * places // PATCHES)]
    width = patches(few[:1]).shape[-1]
    axes = principal_axes(Rows(of_places, width), (few[:, None] * places + np.arange(places)).ravel(), count)
    kept = axes.axes.shape[1]

    def read(steps: np.ndarray) -> np.ndarray:
        return axes.components(patches(steps).reshape(-1, width)).reshape(len(steps), places * kept)

    return Rows(read, places * kept)
