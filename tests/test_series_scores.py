import doctest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scoringrules import crps_ensemble
from sklearn.metrics import mean_absolute_error, mean_squared_error, root_mean_squared_error
from sklearn.preprocessing import StandardScaler

import sciJEPA.scoring.series_scores as home
from sciJEPA.errors import UserError
from sciJEPA.scores import fair_crps, mae, rmse
from sciJEPA.scoring.series_scores import mase, standardised_mae, standardised_mse, training_scatter

DIMS = ("init_time", "lead_time", "station")


def random(seed: int, shape: tuple[int, ...] = (30, 4, 3), dims: tuple[str, ...] = DIMS) -> xr.DataArray:
    return xr.DataArray(np.random.default_rng(seed).normal(size=shape) * [1, 5, 20], dims=dims)


def test_errors_of_one_and_three_units_have_mse_5_and_mae_2() -> None:
    # errors of 1 and 6 in units of 1 and 2: (1 + 9) / 2 and (1 + 3) / 2
    truth = xr.DataArray([[10.0, 20.0]], dims=("init_time", "station"))
    forecast, scatter = truth + xr.DataArray([1.0, -6.0], dims="station"), xr.DataArray([1.0, 2.0], dims="station")
    assert float(standardised_mse(forecast, truth, scatter)) == pytest.approx(5)
    assert float(standardised_mae(forecast, truth, scatter)) == pytest.approx(2)


def test_errors_are_those_of_series_that_scikit_learn_standardises() -> None:
    train = random(0, (100, 3), ("time", "station")) + 40
    forecast, truth = random(1) + 40, random(2) + 40
    scaler = StandardScaler().fit(train.values)
    ours, theirs = (scaler.transform(field.values.reshape(-1, 3)) for field in (forecast, truth))
    scatter = training_scatter(train)
    assert float(standardised_mse(forecast, truth, scatter).mean()) == pytest.approx(mean_squared_error(theirs, ours))
    assert float(standardised_mae(forecast, truth, scatter).mean()) == pytest.approx(mean_absolute_error(theirs, ours))
    assert standardised_mse(forecast, truth, scatter).dims == ("lead_time",)


def test_mase_of_a_naive_forecast_is_one() -> None:
    # A series that goes on as it went in training: repeating the last value scores 1 at the first lead.
    steps = np.random.default_rng(0).choice([-1.0, 1.0], 400) * 3
    series = xr.DataArray(np.cumsum(steps), dims="time")
    forecast, truth = (
        series[300:399].rename(time="init_time"),
        series[301:400].rename(time="init_time"),
    )
    assert float(mase(forecast, truth, series[:300])) == pytest.approx(1)


def test_mase_by_hand_with_a_season() -> None:
    # differences over 2 steps: |4-1|, |2-3|, |7-4| = 3, 1, 3, mean 7/3; absolute errors 2 and 5, mean 7/2; 3/2
    train = xr.DataArray([1.0, 3.0, 4.0, 2.0, 7.0], dims="time", coords={"time": np.arange(5)})
    truth = xr.DataArray([0.0, 0.0], dims="init_time")
    forecast = xr.DataArray([2.0, -5.0], dims="init_time")
    assert float(mase(forecast, truth, train, season=2)) == pytest.approx(1.5)


def test_mase_has_no_unit() -> None:
    train, forecast, truth = random(0, (100, 3), ("time", "station")), random(1), random(2)
    one, two = mase(forecast, truth, train), mase(1000 * forecast, 1000 * truth, 1000 * train)
    assert one.dims == ("lead_time", "station")
    xr.testing.assert_allclose(one, two)


def test_series_without_a_scale_are_refused() -> None:
    flat = xr.DataArray([2.0, 2.0, 2.0], dims="time")
    with pytest.raises(UserError, match="1 of 1 training series do not vary"):
        training_scatter(flat)
    with pytest.raises(UserError, match="repeat themselves every 1 steps"):
        mase(flat, flat, flat)
    with pytest.raises(UserError, match="a season of 3 steps needs more"):
        mase(flat, flat, flat, season=3)


def test_repeating_the_last_value_of_etth1(shared_data: Path) -> None:
    path = shared_data / "sensors" / "ETTh1.csv"
    if not path.exists():
        pytest.skip("ETTh1 is not there")
    values = pd.read_csv(path).drop(columns="date").to_numpy()
    train = xr.DataArray(values[:8640], dims=("time", "station"))
    issue = np.arange(11520 - 1, 14400 - 96)  # the last row of the look-back; all 96 rows after it are test rows
    assert len(issue) == 2785
    truth = xr.DataArray(np.stack([values[issue + lead] for lead in range(1, 97)], axis=1), dims=DIMS)
    forecast = xr.DataArray(values[issue][:, None], dims=DIMS).isel(lead_time=0).broadcast_like(truth).transpose(*DIMS)
    scatter = training_scatter(train)
    assert round(float(standardised_mse(forecast, truth, scatter).mean()), 3) == 1.294
    assert round(float(standardised_mae(forecast, truth, scatter).mean()), 3) == 0.713


# --- scores of `scores` beside a second library


def test_rmse_and_mae_are_those_of_scikit_learn() -> None:
    forecast, truth = random(1), random(2)
    flat = [field.transpose("lead_time", "init_time", "station").values.reshape(4, -1) for field in (truth, forecast)]
    weights = np.tile([0.5, 1.0, 1.5], 30)
    for ours, theirs in ((rmse, root_mean_squared_error), (mae, mean_absolute_error)):
        found = ours(forecast, truth, xr.DataArray([0.5, 1.0, 1.5], dims="station"), over=("station",))
        wanted = [theirs(o, f, sample_weight=weights) for o, f in zip(*flat, strict=True)]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("members", [2, 5, 20])
def test_the_fair_crps_is_that_of_scoringrules(members: int) -> None:
    ensemble, truth = random(1, (members, 40, 3), ("member", "init_time", "station")), random(2)[:, 0]
    truth = random(2, (40, 3), ("init_time", "station"))
    wanted = crps_ensemble(truth.values, np.moveaxis(ensemble.values, 0, -1), estimator="fair", backend="numpy")
    np.testing.assert_allclose(fair_crps(ensemble, truth), wanted, rtol=1e-9)


def test_the_examples_run() -> None:
    assert doctest.testmod(home).failed == 0
