"""Windows of series -> one linear map for each horizon, from a single pass over their features.

Arrives: features of issue times, in parts, and the course that followed. Leaves: maps that all series share; how strong
the ridge is was chosen on validation windows, for each part on its own. Windows overlap, so there are many of them and
their features are wide (on ETTh1 57,000 rows of 2,112 numbers), but products of features are small. The windows of a
long horizon are the first ones of a short one's: so products are added up in order of time, and handed out whenever the
windows of a horizon end. We decided against keeping features on disk, and against a map for each series: on the
validation rows of ETTh1 it is worse at look-back 512.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.linalg

from sciJEPA.errors import UserError

STRENGTHS = tuple(10.0**power for power in np.arange(3, -4.1, -0.5))
"""Ridge strengths of a part from strong to weak, relative to the mean square of its features times their number."""
START = 1.0
"""The strength of the parts whose turn has not come yet."""
REACH = 10.0
"""Where all parts have had their turn, each gets another one among strengths closer than this factor."""
PATIENCE = 2
"""Weaker strengths that are tried after the best."""
BLOCK = 64
"""Issue times whose features are held at once."""
CHOICE_ROWS = 48
"""A strength is chosen on at most so many rows ahead, evenly spaced."""

Features = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Parts of the features of issue times, each (issues, series, width)."""
Course = Callable[[np.ndarray, int], np.ndarray]
"""What followed issue times: (issues, series, horizon)."""


@dataclass(frozen=True)
class Products:
    """Sums over the windows of a horizon.

    Attributes
    ----------
    gram, cross : X^T X and X^T Y of features X and courses Y.
    squares : sums of Y squared, for each row ahead.
    count : rows of X: windows times series.
    widths : columns of X in each part.
    """

    gram: np.ndarray
    cross: np.ndarray
    squares: np.ndarray
    count: int
    widths: tuple[int, ...]

    def take(self, parts: Sequence[int]) -> "Products":
        """Those of some of the parts, in this order."""
        ends = np.cumsum((0, *self.widths))
        columns = np.concatenate([np.arange(ends[part], ends[part + 1]) for part in parts])
        widths = tuple(self.widths[part] for part in parts)
        return Products(self.gram[np.ix_(columns, columns)], self.cross[columns], self.squares, self.count, widths)

    def error(self, weights: np.ndarray, ahead: np.ndarray) -> float:
        """Mean squared error of a map (features, rows ahead) at these rows ahead."""
        explained = 2 * (weights * self.cross[:, ahead]).sum() - (weights * (self.gram @ weights)).sum()
        return float(self.squares[ahead].sum() - explained) / self.count / len(ahead)


def products(issues: Mapping[int, np.ndarray], features: Features, course: Course) -> Iterator[tuple[int, Products]]:
    """Horizons, the longest first, with the products of their windows.

    Parameters
    ----------
    issues
        Issue times of each horizon, in order; those of a longer horizon are the first of a shorter one's.
    features, course
        What is read of them, once.
    """
    done, count, squares = 0, 0, np.zeros(max(issues))
    gram = cross = np.empty((0, 0))
    widths: tuple[int, ...] = ()
    for horizon in sorted(issues, reverse=True):
        squares, cross = squares[:horizon], cross[:, :horizon]
        for block in blocks(issues[horizon][done:]):
            parts = features(block)
            widths = tuple(part.shape[2] for part in parts)
            rows = np.concatenate(parts, axis=2, dtype=np.float64).reshape(-1, sum(widths))
            wanted = course(block, horizon).reshape(-1, horizon)
            if not count:
                gram, cross = np.zeros((rows.shape[1],) * 2), np.zeros((rows.shape[1], horizon))
            gram += rows.T @ rows
            cross = cross + rows.T @ wanted
            squares = squares + (wanted**2).sum(axis=0)
            count += len(rows)
        done = len(issues[horizon])
        if count:
            yield horizon, Products(gram.copy(), cross, squares, count, widths)


def blocks(issues: np.ndarray) -> list[np.ndarray]:
    """The issue times in blocks of `BLOCK`."""
    return [issues[first : first + BLOCK] for first in range(0, len(issues), BLOCK)]


@dataclass(frozen=True)
class LinearMap:
    """A map from features to a course, its ridge strength for each part, and its error on the validation windows."""

    weights: np.ndarray
    strengths: tuple[float, ...]
    error: float


def fit_map(train: Products, validation: Products) -> LinearMap:
    """The map W that minimises |Y - X W|^2 + sum_p s_p u_p |W_p|^2, u_p the mean square of part p's features.

    Strengths s_p are those of the least error on validation, chosen for one part after the other, twice where there are
    several: two kinds of features have two scales. There is no intercept: over long horizons it would carry the trend
    of the training rows on.
    """
    units = [trace / train.count for trace in _traces(train)]
    if not min(units) > 0:
        raise UserError("the features do not vary over the training windows, so no map can be fitted on them.")

    def solve(strengths: Sequence[float], ahead: np.ndarray) -> np.ndarray:
        penalty = np.repeat(np.multiply(strengths, units), train.widths)
        penalised = train.gram + np.diag(penalty)
        factor = scipy.linalg.cho_factor(penalised, overwrite_a=True, check_finite=False)
        return scipy.linalg.cho_solve(factor, train.cross[:, ahead], check_finite=False)

    everything = np.arange(train.cross.shape[1])
    some = everything[:: -(-len(everything) // CHOICE_ROWS)]
    chosen = [START] * len(units)
    turns = [(part, np.inf) for part in range(len(units))]
    for part, reach in turns + [(part, REACH) for part, _ in turns if len(turns) > 1]:
        near = [strength for strength in STRENGTHS if chosen[part] / reach < strength < chosen[part] * reach]
        best, waited, tried = np.inf, 0, list(chosen)
        for strength in near:
            tried[part] = strength
            error = validation.error(solve(tried, some), some)
            waited = 0 if error < best else waited + 1
            if error < best:
                best, chosen[part] = error, strength
            if waited == PATIENCE:
                break
    weights = solve(chosen, everything)
    return LinearMap(weights, tuple(chosen), validation.error(weights, everything))


def _traces(found: Products) -> list[float]:
    """Sum of squares of each part's features."""
    ends = np.cumsum((0, *found.widths))
    return [float(np.trace(found.gram[a:b, a:b])) for a, b in pairwise(ends)]
