"""Latents -> forecasts: probes that are fitted on frozen features.

Arrives: features of each issue time (latents, or a control's) and the fields that followed. Leaves: predictions of the
fields. All hyperparameters are chosen on the validation split. Ridge is solved in closed form through the smaller of
the two Gram matrices, decomposed in float64; we decided against gradient descent, whose result depends on when one
stops.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from sciJEPA.errors import UserError

STRENGTHS = tuple(10.0**power for power in np.arange(-5, 3.01, 0.5))
"""Ridge strengths, relative to the mean square of the features times their number."""
BLOCK_ROWS, BLOCK_COLUMNS = 512, 2048
SCALE_ROWS = 512
"""At most so many training times tell the scale of a kind of features."""
BASIS_VALUES = 2**27
"""Training features in the eigenbasis are kept between leads where they are no more values than this: 512 MB."""
PRODUCT_VALUES = 2**24
"""Products of features and targets are summed in double precision where they are no more than this: 128 MB."""
CHOICE_TARGETS = 512
"""A strength is chosen on at most so many targets of a group, evenly spaced."""


@dataclass(frozen=True)
class Rows:
    """Features of issue times, read when needed: `read(indices)` gives (len(indices), width)."""

    read: Callable[[np.ndarray], np.ndarray]
    width: int


def rows_of(array: np.ndarray) -> Rows:
    """Rows of an array (time, ...) in memory, flattened."""
    flat = array.reshape(len(array), -1)
    return Rows(lambda indices: flat[indices], flat.shape[1])


@dataclass
class Ridge:
    """Ridge regression from rows of features to many targets at several leads, with one strength a lead and group.

    Minimises |Y - X W|^2 + s |W|^2 with centred X and Y. Features are not standardised one by one: their relative size
    is part of the representation.

    Parameters
    ----------
    strengths
        Candidates, relative to the mean square of the features times their number.
    intercept
        Centre X and Y on their training means; without, zero features forecast zero.

    Attributes after `fit`
    ----------------------
    features_
        Rows that `predict` reads; those of other samples may be put in their place.
    strength_
        Chosen strength, shape (leads, groups).
    error_
        Weighted mean squared error on the validation times with that strength, shape (leads, groups).
    """

    strengths: Sequence[float] = STRENGTHS
    intercept: bool = True
    features_: Rows = field(init=False, repr=False)
    strength_: np.ndarray = field(init=False)
    error_: np.ndarray = field(init=False)

    def fit(
        self,
        features: Rows,
        targets: Sequence[Rows],
        train: np.ndarray,
        validation: np.ndarray,
        *,
        weights: np.ndarray,
        groups: int = 1,
    ) -> "Ridge":
        """Fit on `train`, choose the strength on `validation`. A missing target counts as its climatology.

        Parameters
        ----------
        features
            Features of each issue time.
        targets
            For each lead, the targets of each issue time.
        train, validation
            Numbers of issue times.
        weights
            Weight of each target in the choice of the strength, shape (targets,).
        groups
            Targets fall into so many equal, consecutive groups (variables) with a strength of their own.
        """
        self.features_ = features
        self._mean = self._centre(features, train)
        self._primal = features.width <= len(train)
        gram = self._gram(train)
        trace = float(np.trace(gram))
        if not trace > 0:
            raise UserError("the features do not vary over the training times, so no probe can be fitted on them.")
        eigenvalues, self._vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False, driver="evd")
        self._eigenvalues = np.maximum(eigenvalues, 0)
        unit = trace / len(train)
        shrink = [(1 / (self._eigenvalues + strength * unit)).astype(np.float32) for strength in self.strengths]
        weights = np.asarray(weights, dtype=np.float64)
        self.strength_, self.error_ = np.empty((2, len(targets), groups))
        self._solutions, self._target_means = [], []
        validation_basis = self._project(validation)
        small = self._primal and len(train) * len(self._eigenvalues) <= BASIS_VALUES
        train_basis = self._project(train) if small else None
        for lead, target in enumerate(targets):
            mean = self._centre(target, train)
            solution = self._correlate(target, mean, train, train_basis)
            truth = target.read(validation) - mean
            for group, part in enumerate(np.split(np.arange(target.width), groups)):
                some = part[:: -(-len(part) // CHOICE_TARGETS)]
                own, wanted = solution[:, some], truth[:, some]
                errors = [
                    float(((validation_basis @ (factor[:, None] * own) - wanted) ** 2 @ weights[some]).mean())
                    for factor in shrink
                ]
                best = int(np.argmin(errors))
                self.strength_[lead, group], self.error_[lead, group] = self.strengths[best], errors[best] / len(some)
                solution[:, part] *= shrink[best][:, None]
            self._solutions.append(solution)
            self._target_means.append(mean)
        return self

    def predict(self, times: np.ndarray) -> list[np.ndarray]:
        """Predictions of each lead for these issue times, each (len(times), targets)."""
        basis = self._project(times)
        return [
            (basis @ solution + mean).astype(np.float32)
            for solution, mean in zip(self._solutions, self._target_means, strict=True)
        ]

    def _centre(self, rows: Rows, train: np.ndarray) -> np.ndarray:
        return _mean(rows, train) if self.intercept else np.zeros(rows.width)

    def _centred(self, indices: np.ndarray) -> np.ndarray:
        return self.features_.read(indices).astype(np.float64) - self._mean

    def _gram(self, train: np.ndarray) -> np.ndarray:
        if self._primal:
            gram = np.zeros((self.features_.width, self.features_.width))
            for block in row_blocks(train):
                part = self._centred(block)
                gram += part.T @ part
            return gram
        self._train_features = np.empty((len(train), self.features_.width), dtype=np.float32)
        for first in range(0, len(train), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            self._train_features[rows] = self.features_.read(train[rows]) - self._mean.astype(np.float32)
        return _inner(self._train_features, self._train_features)

    def _project(self, times: np.ndarray) -> np.ndarray:
        """Features in the eigenbasis: X V (primal) or X X_train^T U (dual)."""
        parts = []
        for block in row_blocks(times):
            part = self._centred(block)
            part = part if self._primal else _inner(part, self._train_features)
            parts.append((part @ self._vectors).astype(np.float32))
        return np.concatenate(parts)

    def _correlate(self, target: Rows, mean: np.ndarray, train: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
        """Targets in the eigenbasis: V^T X^T Y (primal; X V may be at hand) or U^T Y (dual)."""
        if self._primal and basis is None and self.features_.width * target.width <= PRODUCT_VALUES:
            # In double precision, since V undoes what the largest of X have in common; it spares X V.
            product = sum(self._centred(block).T @ (target.read(block) - mean) for block in row_blocks(train))
            return (self._vectors.T @ product).astype(np.float32)
        total = np.zeros((len(self._eigenvalues), target.width), dtype=np.float32)
        vectors = self._vectors.astype(np.float32)
        for first in range(0, len(train), BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            wanted = (target.read(train[rows]) - mean).astype(np.float32)
            if not self._primal:
                total += vectors[rows].T @ wanted
            else:
                total += (self._project(train[rows]) if basis is None else basis[rows]).T @ wanted
        return total


def side_by_side(parts: Sequence[Rows], train: np.ndarray, *, places: int = 1) -> Rows:
    """Features of several kinds in one row, each kind with a summed variance of 1 over training times.

    So a ridge shrinks each by its share, whatever its units; some of the times, evenly spaced, tell the variance. Rows
    of one vector a place have all kinds of a place next to each other.
    """
    some, scales = train[:: -(-len(train) // SCALE_ROWS)], []
    for part in parts:
        spread = part.read(some).astype(np.float64).var(axis=0).sum() ** 0.5
        scales.append(np.float32(1 / spread if spread > 0 else 0))

    def read(indices: np.ndarray) -> np.ndarray:
        kinds = [part.read(indices) * scale for part, scale in zip(parts, scales, strict=True)]
        return np.concatenate([kind.reshape(len(indices), places, -1) for kind in kinds], axis=2).reshape(
            len(indices), -1
        )

    return Rows(read, sum(part.width for part in parts))


def row_blocks(indices: np.ndarray) -> list[np.ndarray]:
    """The indices in blocks of `BLOCK_ROWS`, so that features are never read all at once."""
    return [indices[first : first + BLOCK_ROWS] for first in range(0, len(indices), BLOCK_ROWS)]


def _inner(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Product one @ other.T in double precision, in parts of the columns: no array is copied whole."""
    total = np.zeros((len(one), len(other)))
    for first in range(0, one.shape[1], BLOCK_COLUMNS):
        part = slice(first, first + BLOCK_COLUMNS)
        total += one[:, part].astype(np.float64) @ other[:, part].astype(np.float64).T
    return total


def _mean(rows: Rows, indices: np.ndarray) -> np.ndarray:
    total = np.zeros(rows.width)
    for block in row_blocks(indices):
        total += rows.read(block).sum(axis=0, dtype=np.float64)
    return total / len(indices)
