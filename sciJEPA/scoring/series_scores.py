"""Forecasts of series -> scores as the literature on sensors prints them.

Arrives: forecasts and truth of stations as labelled arrays, and the training series. Leaves: MSE and MAE in units of
the training scatter, and MASE. Every scale comes from the training series: one that comes from the test series makes a
quiet test look hard. We decided against percentage errors, which explode near zero.
"""

from collections.abc import Sequence

import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.scores import absolute_error, squared_error

OVER = ("station",)


def training_scatter(train: xr.DataArray, dim: str = "time") -> xr.DataArray:
    """Standard deviation of each series over the training times, divided by n: one unit of a standardised error.

    Missing values are left out; their number is the caller's to print. A series that does not vary is refused.

    Examples
    --------
    >>> float(training_scatter(xr.DataArray([1.0, 3.0], dims="time")))
    1.0
    """
    scatter = train.astype(float).std(dim, skipna=True)
    if not bool((scatter > 0).all()):
        raise UserError(
            f"{int((~(scatter > 0)).sum())} of {scatter.size} training series do not vary, so errors have no unit; "
            "leave them out."
        )
    return scatter


def standardised_mse(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    scatter: xr.DataArray,
    *,
    over: Sequence[str] = OVER,
    time: str = "init_time",
) -> xr.DataArray:
    """Mean squared error in units of the training scatter: the MSE of the long-horizon benchmarks.

        mean over times and stations of ((f - o) / s)^2

    The mean of standardised series cancels. The benchmarks also average over leads 1 to the horizon:
    `.mean("lead_time")`.

    Source: Zhou et al. 2021 (Informer), https://arxiv.org/abs/2012.07436.

    Parameters
    ----------
    forecast, truth
        Same coordinates and units, for example dims (init_time, lead_time, station).
    scatter
        From `training_scatter`, dims (station,).

    Examples
    --------
    >>> truth = xr.DataArray([[0.0, 0.0]], dims=("init_time", "station"))
    >>> scatter = xr.DataArray([1.0, 2.0], dims="station")
    >>> float(standardised_mse(truth + xr.DataArray([1.0, 6.0], dims="station"), truth, scatter))  # (1 + 9) / 2
    5.0
    """
    return squared_error(forecast / scatter, truth / scatter, over=over).mean(time, skipna=False)


def standardised_mae(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    scatter: xr.DataArray,
    *,
    over: Sequence[str] = OVER,
    time: str = "init_time",
) -> xr.DataArray:
    """Mean absolute error in units of the training scatter. Arguments as in `standardised_mse`."""
    return absolute_error(forecast / scatter, truth / scatter, over=over).mean(time, skipna=False)


def mase(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    train: xr.DataArray,
    *,
    season: int = 1,
    dim: str = "time",
    time: str = "init_time",
) -> xr.DataArray:
    """Mean absolute scaled error of each series: below 1 is better than the seasonal naive forecast was in training.

        MASE = mean |f - o| / mean over training times |y_t - y_(t - m)|

    Source: Hyndman & Koehler 2006, "Another look at measures of forecast accuracy",
    https://doi.org/10.1016/j.ijforecast.2006.03.001.

    Parameters
    ----------
    forecast, truth
        Same coordinates and units; the mean is over `time`.
    train
        Training series along `dim`, in steps without a gap; differences with a missing value are left out.
    season
        Steps m of a season, 24 for hourly series with a daily cycle.

    Examples
    --------
    >>> train = xr.DataArray([0.0, 2.0, 0.0, 2.0], dims="time")
    >>> truth = xr.DataArray([1.0, 1.0], dims="init_time")
    >>> float(mase(truth + 1, truth, train)), float(mase(truth, truth, train))
    (0.5, 0.0)
    """
    if not 1 <= season < train.sizes[dim]:
        raise UserError(
            f"a season of {season} steps needs more training steps than that, found {train.sizes[dim]} along '{dim}'."
        )
    values = train.astype(float)
    later, earlier = values.isel({dim: slice(season, None)}), values.isel({dim: slice(None, -season)})
    naive = abs(later.drop_vars(dim, errors="ignore") - earlier.drop_vars(dim, errors="ignore")).mean(dim, skipna=True)
    if not bool((naive > 0).all()):
        raise UserError(
            f"{int((~(naive > 0)).sum())} of {naive.size} training series repeat themselves every {season} steps, so "
            "MASE has no scale; choose another season."
        )
    return absolute_error(forecast, truth, over=()).mean(time, skipna=False) / naive
