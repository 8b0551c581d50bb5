"""Scores, part 1: from forecasts and truth to statistics and scores (parts 2 to 4 are re-exported here).

What arrives: forecasts and truth as labelled arrays in physical units. What leaves: a mean over time of a per-time
statistic, followed by a formula, so that scores of chunks of time add up exactly.

Missing truth gets weight zero and `observed_share` says how much was left; a forecast missing where truth was observed
is an error. Coordinates must match exactly: we decided against xarray's quiet inner join, which drops grid points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.scoring.comparison import MethodErrors, score_rows, skill_score
from sciJEPA.scoring.intervals import block_bootstrap, block_length
from sciJEPA.scoring.score_table import format_markdown, format_table
from sciJEPA.space import latitude_weights

__all__ = [
    "MethodErrors",
    "absolute_error",
    "anomaly_correlation",
    "area_mean",
    "bias",
    "block_bootstrap",
    "block_length",
    "fair_crps",
    "format_markdown",
    "format_table",
    "latitude_weights",
    "mae",
    "observed_share",
    "rmse",
    "score_rows",
    "signed_error",
    "skill_score",
    "spread_skill_ratio",
    "squared_error",
    "vrmse",
]

AREA = ("latitude", "longitude")


def _matching(*arrays: xr.DataArray) -> tuple[xr.DataArray, ...]:
    try:
        return tuple(array.astype(float) for array in xr.align(*arrays, join="exact", copy=False))
    except ValueError as error:
        shapes = ", ".join(str(dict(array.sizes)) for array in arrays)
        raise UserError(
            f"Forecast, truth and weights must share their coordinates exactly, found {shapes} ({error}); "
            "select or regrid one to match the other."
        ) from error


def _checked(forecast: xr.DataArray, truth: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    forecast, truth = _matching(forecast, truth)
    missing = int((forecast.isnull() & truth.notnull()).sum())
    if missing:
        raise UserError(
            f"The forecast of {forecast.name or 'the variable'} is missing at {missing} of {forecast.size} values "
            "where the truth was observed; a score over the rest would flatter it. Fill the forecast or mask the truth."
        )
    return forecast, truth


def area_mean(field: xr.DataArray, weights: xr.DataArray | None = None, *, over: Sequence[str] = AREA) -> xr.DataArray:
    """Weighted mean over the observed (not NaN) points: sum(w x) / sum(w). NaN where nothing was observed.

    Parameters
    ----------
    field
        Any dimensions that include `over`, any units.
    weights
        Weights along some or all of `over`, for example `latitude_weights(field.latitude)`; equal without.
    over
        Names of the dimensions to average; for stations ("station",).

    Examples
    --------
    >>> field = xr.DataArray([[1.0, 1.0], [4.0, np.nan]], dims=("latitude", "longitude"))
    >>> float(area_mean(field))
    2.0
    """
    absent = [name for name in over if name not in field.dims]
    if absent:
        raise UserError(f"Cannot average over {absent}: the dimensions are {list(field.dims)}; pass over=(...).")
    field, weights = _matching(field, xr.DataArray(1.0) if weights is None else weights)
    observed = field.notnull()
    total = (weights * observed).sum(over)
    return (weights * field.where(observed, 0.0)).sum(over) / total.where(total > 0)


def observed_share(
    truth: xr.DataArray, weights: xr.DataArray | None = None, *, over: Sequence[str] = AREA
) -> xr.DataArray:
    """Share of the weight whose truth was observed, 0 to 1: print it beside every score of an archive with gaps.

    Examples
    --------
    >>> float(observed_share(xr.DataArray([1.0, np.nan], dims="station"), over=["station"]))
    0.5
    """
    return area_mean(truth.notnull().astype(float), weights, over=over)


def squared_error(
    forecast: xr.DataArray, truth: xr.DataArray, weights: xr.DataArray | None = None, *, over: Sequence[str] = AREA
) -> xr.DataArray:
    """Area-weighted mean squared error of each time (and lead, ...): the statistic behind `rmse`.

    Parameters
    ----------
    forecast, truth
        Same coordinates; dimensions include `over`, for example (init_time, lead_time, latitude, longitude).
    weights, over
        As in `area_mean`.

    Returns
    -------
    xarray.DataArray
        The dimensions that remain, units squared. NaN where no truth was observed.

    Examples
    --------
    >>> truth = xr.DataArray([[0.0, 0.0]], dims=("init_time", "station"))
    >>> squared_error(truth + xr.DataArray([3.0, 4.0], dims="station"), truth, over=["station"]).values
    array([12.5])
    """
    forecast, truth = _checked(forecast, truth)
    return area_mean((forecast - truth) ** 2, weights, over=over)


def absolute_error(
    forecast: xr.DataArray, truth: xr.DataArray, weights: xr.DataArray | None = None, *, over: Sequence[str] = AREA
) -> xr.DataArray:
    """Area-weighted mean absolute error of each time: the statistic behind `mae`. Arguments as in `squared_error`."""
    forecast, truth = _checked(forecast, truth)
    return area_mean(abs(forecast - truth), weights, over=over)


def signed_error(
    forecast: xr.DataArray, truth: xr.DataArray, weights: xr.DataArray | None = None, *, over: Sequence[str] = AREA
) -> xr.DataArray:
    """Area-weighted mean of forecast minus truth, each time: the statistic behind `bias`."""
    forecast, truth = _checked(forecast, truth)
    return area_mean(forecast - truth, weights, over=over)


def rmse(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray | None = None,
    *,
    over: Sequence[str] = AREA,
    time: str = "init_time",
) -> xr.DataArray:
    """Root mean squared error, sqrt(mean over time of `squared_error`): the root comes after the mean over time.

    Source: WeatherBench 2 (Rasp et al. 2024), https://doi.org/10.1029/2023MS004019.

    Examples
    --------
    >>> truth = xr.DataArray(np.zeros((2, 1)), dims=("init_time", "station"))
    >>> forecast = xr.DataArray([[1.0], [7.0]], dims=("init_time", "station"))
    >>> float(rmse(forecast, truth, over=["station"]))
    5.0
    """
    return squared_error(forecast, truth, weights, over=over).mean(time, skipna=False) ** 0.5


def mae(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray | None = None,
    *,
    over: Sequence[str] = AREA,
    time: str = "init_time",
) -> xr.DataArray:
    """Mean absolute error, units of the variable. Arguments as in `rmse`."""
    return absolute_error(forecast, truth, weights, over=over).mean(time, skipna=False)


def bias(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray | None = None,
    *,
    over: Sequence[str] = AREA,
    time: str = "init_time",
) -> xr.DataArray:
    """Mean of forecast minus truth, units of the variable. Arguments as in `rmse`."""
    return signed_error(forecast, truth, weights, over=over).mean(time, skipna=False)


def anomaly_correlation(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    climatology: xr.DataArray,
    weights: xr.DataArray | None = None,
    *,
    over: Sequence[str] = AREA,
) -> xr.DataArray:
    """Anomaly correlation of each time, uncentred: the mean over time of these ratios is the ACC of WeatherBench 2.

        ACC_t = sum w f' o' / sqrt(sum w f'^2  sum w o'^2),   f' = forecast - climatology,   o' = truth - climatology

    Uncentred: the area mean of the anomalies is not removed. NaN where an anomaly is zero everywhere, as it is for a
    forecast of climatology itself.

    Source: WeatherBench 2 (Rasp et al. 2024), https://doi.org/10.1029/2023MS004019.

    Parameters
    ----------
    forecast, truth, climatology
        Same units; climatology broadcasts against the others (and must not look at the test period).

    Examples
    --------
    >>> truth = xr.DataArray([1.0, -2.0], dims="station")
    >>> float(anomaly_correlation(3 * truth, truth, xr.zeros_like(truth), over=["station"]))
    1.0
    """
    forecast, truth = _checked(forecast, truth)
    climatology, truth = _checked(climatology, truth)
    observed = truth.notnull()
    ours, theirs = (forecast - climatology).where(observed), (truth - climatology).where(observed)
    product = area_mean(ours * theirs, weights, over=over)
    size = (area_mean(ours**2, weights, over=over) * area_mean(theirs**2, weights, over=over)) ** 0.5
    return product / size.where(size > 0)


def vrmse(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray | None = None,
    *,
    over: Sequence[str] = ("y", "x"),
) -> xr.DataArray:
    """Root of squared error over spatial variance, each time: forecasting the spatial mean of the truth scores 1.

        VRMSE_t = sqrt(mean (f - o)^2 / (mean (o - mean o)^2 + 1e-7))

    The variance divides by the number of points. Average over times afterwards. The constant is in units squared:
    apply it to standardised fields or to fields of order one.

    Source: The Well (Ohana et al. 2024), https://arxiv.org/abs/2412.00568.

    Examples
    --------
    >>> truth = xr.DataArray([[0.0, 2.0], [2.0, 0.0]], dims=("y", "x"))
    >>> round(float(vrmse(xr.ones_like(truth), truth)), 6)
    1.0
    """
    error = squared_error(forecast, truth, weights, over=over)
    variance = area_mean((truth - area_mean(truth, weights, over=over)) ** 2, weights, over=over)
    return (error / (variance + 1e-7)) ** 0.5


def _member_count(ensemble: xr.DataArray, dim: str) -> int:
    members = ensemble.sizes.get(dim, 0)
    if members < 2:
        raise UserError(f"An ensemble score needs at least 2 along {dim!r}, found sizes {dict(ensemble.sizes)}.")
    return members


def fair_crps(ensemble: xr.DataArray, truth: xr.DataArray, dim: str = "member") -> xr.DataArray:
    """Continuous ranked probability score at each point, fair estimator: unbiased for any number of members M.

        CRPS = 1/M sum_i |x_i - y| - 1/(2 M (M - 1)) sum_ij |x_i - x_j|

    The double sum comes from sorted members, 2 sum_i (2 i - M - 1) x_(i). Average with `area_mean`, then over time.

    Source: Zamo & Naveau 2018, https://doi.org/10.1007/s11004-017-9709-7; WeatherBench 2 uses the same estimator.

    Parameters
    ----------
    ensemble, truth
        Physical units; the ensemble has the dimension `dim` in addition, with M >= 2.

    Examples
    --------
    >>> float(fair_crps(xr.DataArray([0.0, 2.0], dims="member"), xr.DataArray(1.0)))
    0.0
    """
    members = _member_count(ensemble, dim)
    ensemble, truth = _checked(ensemble, truth)
    rank = 2.0 * np.arange(1, members + 1) - members - 1
    spread = xr.apply_ufunc(
        lambda x: np.sort(x, axis=-1) @ rank,
        ensemble,
        input_core_dims=[[dim]],
        dask="parallelized",
        output_dtypes=[float],
    )
    return abs(ensemble - truth).mean(dim, skipna=False) - spread / (members * (members - 1))


def spread_skill_ratio(
    ensemble: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray | None = None,
    *,
    dim: str = "member",
    over: Sequence[str] = AREA,
    time: str = "init_time",
) -> xr.DataArray:
    """Spread over error of the ensemble mean; 1 for a perfectly reliable ensemble, below 1 when overconfident.

        sqrt((M + 1) / M  mean of the members' unbiased variance) / RMSE of the ensemble mean

    The factor makes a finite ensemble comparable to its error.

    Source: Fortin et al. 2014, "Why should ensemble spread match the RMSE of the ensemble mean?",
    https://doi.org/10.1175/JHM-D-14-0008.1.

    Examples
    --------
    >>> members = xr.DataArray([[[-1.0], [1.0]]], dims=("init_time", "member", "station"))
    >>> truth = xr.DataArray([[3.0]], dims=("init_time", "station"))
    >>> round(float(spread_skill_ratio(members, truth, over=["station"])), 6)  # sqrt(3/2 * 2) / 3
    0.57735
    """
    members = _member_count(ensemble, dim)
    ensemble, truth = _checked(ensemble, truth)
    variance = ensemble.var(dim, ddof=1, skipna=False).where(truth.notnull())
    spread = area_mean(variance, weights, over=over).mean(time, skipna=False) * (members + 1) / members
    return spread**0.5 / rmse(ensemble.mean(dim, skipna=False), truth, weights, over=over, time=time)
