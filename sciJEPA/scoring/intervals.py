"""Scores, part 3: how sure a mean over test times is.

What arrives: per-time statistics, one row a method. What leaves: percentile intervals from a paired block bootstrap.
Errors of neighbouring start times resemble each other, so single times are not resampled on their own; and all methods
share one weather, so they share the resampled blocks. We decided against blocks that stop at the ends of the series:
they draw the first and last times too rarely, which shifts the interval away from the printed value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sciJEPA.errors import UserError

SHORTEST_SERIES_FOR_AUTOCORRELATION = 10


def block_length(statistics: np.ndarray) -> int:
    """Block length from the autocorrelation of the statistic: the automatic rule of Politis & White.

    With autocovariances R(k) and the flat-top window w(k) = min(1, 2 (1 - k / M)),

        block = (3/2 (G / g)^2 n)^(1/3),   G = sum_k w |k| R(k),   g = sum_k w R(k),   k = -M ... M,

    where M is twice the first lag after which five correlations in a row are insignificant. For an AR(1) series with
    coefficient a this is (6 n)^(1/3) (a / (1 - a^2))^(2/3). Capped at min(3 sqrt(n), n / 3), at least 1.

    Source: Politis & White 2004, "Automatic block-length selection for the dependent bootstrap",
    https://doi.org/10.1081/ETC-120028836 (circular blocks; correction of 2009: https://doi.org/10.1080/07474930802459016).

    Parameters
    ----------
    statistics
        Shape (n,) or (methods, n). With several methods the longest of their block lengths is returned.

    Examples
    --------
    >>> block_length(np.random.default_rng(0).normal(size=1000)) <= 3
    True
    """
    rows = np.atleast_2d(np.asarray(statistics, dtype=float))
    return max(_block_length_of_one(row) for row in rows)


def _block_length_of_one(series: np.ndarray) -> int:
    n = series.size
    if n < SHORTEST_SERIES_FOR_AUTOCORRELATION:
        return max(1, round(n ** (1 / 3)))
    anomaly = series - series.mean()
    variance = float(anomaly @ anomaly) / n
    # A constant series (a control against itself) has no autocorrelation, only rounding.
    if variance <= 1e-20 * max(float(series @ series) / n, np.finfo(float).tiny):
        return 1
    quiet_run = max(5, int(np.ceil(np.sqrt(np.log10(n)))))
    longest = min(n - 1, int(np.ceil(np.sqrt(n))) + quiet_run)
    covariance = np.array([float(anomaly[: n - k] @ anomaly[k:]) / n for k in range(longest + 1)])
    significant = np.abs(covariance[1:] / variance) >= 2 * np.sqrt(np.log10(n) / n)
    last = longest
    for lag in range(longest):
        if not significant[lag : lag + quiet_run].any():
            last = lag
            break
    window = min(2 * max(last, 1), longest)
    lags = np.arange(1, window + 1)
    taper = np.minimum(1.0, 2 * (1 - lags / window)) * covariance[1 : window + 1]
    slope, spectrum = 2 * float(lags @ taper), variance + 2 * float(taper.sum())
    largest = int(np.ceil(min(3 * np.sqrt(n), n / 3)))
    if spectrum <= 0:
        return largest
    return int(np.clip(np.ceil((1.5 * (slope / spectrum) ** 2 * n) ** (1 / 3)), 1, largest))


def resampled_means(statistics: np.ndarray, *, block: int, resamples: int, seed: int) -> np.ndarray:
    """Means of the statistic over resampled series: circular moving blocks, the same blocks for every row.

    Blocks of `block` neighbouring times start anywhere with equal chance and wrap from the last time to the first, so
    every time is drawn equally often and the resampled means scatter around the mean itself. The last block is cut so
    that each resample has exactly n times. Block sums are taken once; a resample only adds them up.

    Source: Politis & Romano 1992, "A circular block-resampling procedure for stationary data" (circular); Kuensch 1989,
    https://doi.org/10.1214/aos/1176347265 (moving blocks).

    Parameters
    ----------
    statistics
        Shape (n,) or (methods, n), finite.
    block
        Number of neighbouring times drawn together, 1 to n.

    Returns
    -------
    numpy.ndarray
        Shape (resamples,) or (methods, resamples), units of the statistic.

    Examples
    --------
    >>> resampled_means(np.array([2.0, 2.0, 2.0]), block=2, resamples=4, seed=0)
    array([2., 2., 2., 2.])
    """
    values = np.asarray(statistics, dtype=float)
    n = values.shape[-1]
    if values.ndim not in (1, 2) or n == 0:
        raise UserError(f"The bootstrap needs statistics of shape (n,) or (methods, n) with n > 0, got {values.shape}.")
    if not np.isfinite(values).all():
        found = int((~np.isfinite(values)).sum())
        raise UserError(f"The bootstrap needs finite statistics, found {found} that are not; drop those times first.")
    if not 1 <= block <= n:
        raise UserError(f"The block length must lie between 1 and the number of times ({n}), got {block}.")
    if resamples < 1:
        raise UserError(f"The bootstrap needs at least one resample, got {resamples}.")
    whole, remainder = divmod(n, block)
    starts = np.random.default_rng(seed).integers(0, n, size=(resamples, whole + (remainder > 0)))

    def mean_of(row: np.ndarray) -> np.ndarray:
        # Sums of deviations: the cumulative sum then stays small and loses no digits; equal rows stay exactly equal.
        centre = row.mean()
        total = np.concatenate([[0.0], np.cumsum(np.concatenate([row, row[:block]]) - centre)])
        first = np.arange(n)
        sums = (total[first + block] - total[first])[starts[:, :whole]].sum(axis=1)
        if remainder:
            sums += (total[first + remainder] - total[first])[starts[:, whole]]
        return centre + sums / n

    return mean_of(values) if values.ndim == 1 else np.stack([mean_of(row) for row in values])


def block_bootstrap(
    statistics: np.ndarray,
    formula: Callable[[np.ndarray], np.ndarray] = lambda means: means,
    *,
    block: int,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a formula of mean statistics, from a paired block bootstrap.

    Times need not be evenly spaced: they count as an index, in order.

    Source: Wilks 1997, "Resampling hypothesis tests for autocorrelated fields",
    https://doi.org/10.1175/1520-0442(1997)010<0065:RHTFAF>2.0.CO;2; blocks as in `resampled_means`.

    Parameters
    ----------
    statistics
        Shape (n,) or (methods, n): one value per test time, finite. All methods are resampled with the same blocks.
    formula
        Maps means of shape (resamples,) or (methods, resamples) to scores of shape (..., resamples); for an RMSE,
        `np.sqrt`. The default leaves the mean as it is.
    block
        Neighbouring times drawn together; `block_length(statistics)` proposes one.
    confidence
        Share of resamples inside the interval, in (0, 1).

    Returns
    -------
    tuple of numpy.ndarray
        (low, high), each with the formula's shape without its last axis.

    Examples
    --------
    >>> errors = np.array([[1.0, 4.0, 9.0, 16.0], [1.0, 4.0, 9.0, 16.0]])
    >>> low, high = block_bootstrap(errors, lambda mean: np.sqrt(mean[0]) - np.sqrt(mean[1]), block=2)
    >>> float(low), float(high)
    (0.0, 0.0)
    """
    if not 0 < confidence < 1:
        raise UserError(f"The confidence must lie between 0 and 1, got {confidence}; use 0.95 for 95 %.")
    scores = np.asarray(formula(resampled_means(statistics, block=block, resamples=resamples, seed=seed)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(scores, [tail, 1 - tail], axis=-1)
    return low, high
