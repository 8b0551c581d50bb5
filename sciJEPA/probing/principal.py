"""Leading principal axes of rows that need not fit in memory.

Arrives: `Rows` and the training times. Leaves: a basis in which neighbours are cheap to find and whole fields are a few
numbers. Narrow rows are solved exactly, wide ones by subspace iteration over blocks of rows. We decided against the
Gram matrix of the times for wide rows: it wants all of them in memory at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from sciJEPA.errors import UserError
from sciJEPA.probes import Rows, row_blocks

EXACT_WIDTH = 1024
"""Rows up to this width are solved through their covariance matrix."""
OVERSAMPLED = 16
PASSES = 4


@dataclass(frozen=True)
class PrincipalAxes:
    """Components of rows: ((row - mean) * scale) @ axes."""

    mean: np.ndarray  # (width,)
    scale: np.ndarray  # (width,)
    axes: np.ndarray  # (width, count), orthonormal columns, leading first
    deviation: np.ndarray  # (count,) standard deviation of each component over the training times

    def components(self, values: np.ndarray) -> np.ndarray:
        """Rows (n, width) -> components (n, count)."""
        return ((values - self.mean) * self.scale) @ self.axes

    def restore(self, components: np.ndarray) -> np.ndarray:
        """Components (n, count) -> rows (n, width); the mean where the scale is zero."""
        unscale = np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)
        return (components @ self.axes.T) * unscale + self.mean


def principal_axes(
    rows: Rows, train: np.ndarray, count: int, *, scale: np.ndarray | None = None, seed: int = 0, passes: int = PASSES
) -> PrincipalAxes:
    """At most `count` leading axes of the rows of the training times, each column times `scale`.

    Directions without variance are left out. Wide rows: `passes` steps of subspace iteration with `OVERSAMPLED` more
    directions than asked for; exact where the rows have no more directions than that.

    Source: Halko, Martinsson and Tropp 2011, "Finding structure with randomness", https://doi.org/10.1137/090771806.

    Examples
    --------
    >>> from sciJEPA.probes import rows_of
    >>> basis = principal_axes(rows_of(np.array([[0.0, 3.0], [0.0, 5.0]])), np.arange(2), 2)
    >>> basis.deviation.tolist(), abs(basis.axes).tolist()
    ([1.0], [[0.0], [1.0]])
    """
    scale = np.ones(rows.width) if scale is None else np.asarray(scale, dtype=np.float64)
    mean = sum(rows.read(block).sum(axis=0, dtype=np.float64) for block in row_blocks(train)) / len(train)
    count = min(count, rows.width, max(len(train) - 1, 1))
    exact = rows.width <= EXACT_WIDTH
    dtype = np.float64 if exact else np.float32  # wide blocks are large, and their leading axes need no more

    def product(right: np.ndarray, reduce: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        total = np.zeros(())
        for block in row_blocks(train):
            centred = ((rows.read(block) - mean) * scale).astype(dtype)
            total = total + reduce(centred, centred @ right.astype(dtype)).astype(np.float64)
        return total

    if exact:
        basis = np.eye(rows.width)
    else:
        size = min(count + OVERSAMPLED, rows.width, len(train))
        basis = np.random.default_rng(seed).normal(size=(rows.width, size))
        for _ in range(passes):
            basis = scipy.linalg.qr(product(basis, lambda x, y: x.T @ y), mode="economic", check_finite=False)[0]
    squares, vectors = scipy.linalg.eigh(product(basis, lambda _, y: y.T @ y) / len(train))
    squares, vectors = squares[::-1][:count], vectors[:, ::-1][:, :count]
    if not squares[0] > 0:
        raise UserError("the rows do not vary over the training times, so they have no principal axes.")
    kept = squares > (1e-12 if exact else 1e-9) * squares[0]
    return PrincipalAxes(mean, scale, basis @ vectors[:, kept], np.sqrt(squares[kept]))
