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

from sciJEPA.loader import WindowReader
from sciJEPA.probes import BLOCK_ROWS, Ridge, Rows

EOF_NUMBERS = (10, 20, 40, 80, 160)


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
        normalizer, time = self.reader.normalizer, self.reader.archive.time
        now = fields(self.reader).read(times)
        spread = normalizer.spread.reshape(-1, *(1,) * len(self.reader.archive.shape))
        forecasts = []
        for lead in self.leads:
            season = normalizer.climatology(time[times]) - normalizer.climatology(time[times + lead])
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
        cls, reader: WindowReader, leads: Sequence[int], train: np.ndarray, validation: np.ndarray, weights: np.ndarray
    ) -> "EOFRidge":
        """Fit one ridge for each number of functions and keep the best for each lead."""
        now = fields(reader)
        numbers = [n for n in EOF_NUMBERS if n <= min(now.width, len(train)) // 2] or [1]
        patterns = leading_patterns(now, train, np.sqrt(weights), max(numbers))
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

    Shape (width, count). Solved through the smaller Gram matrix.
    """
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
