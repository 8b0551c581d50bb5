import doctest

import numpy as np
import pytest
import xarray as xr

import sciJEPA.scoring.regions as home
from sciJEPA.errors import UserError
from sciJEPA.scores import anomaly_correlation, latitude_weights, rmse, squared_error
from sciJEPA.scoring.regions import REGIONS, Region, regional, season_of, seasonal

LATITUDE, LONGITUDE = np.arange(-75.0, 90, 30), np.arange(0.0, 360, 60)


def field(seed: int, times: int = 8) -> xr.DataArray:
    return xr.DataArray(
        np.random.default_rng(seed).normal(size=(times, len(LATITUDE), len(LONGITUDE))),
        dims=("init_time", "latitude", "longitude"),
        coords={"init_time": np.arange(times), "latitude": LATITUDE, "longitude": LONGITUDE},
        name="z",
    )


def test_a_region_scores_as_the_cut_array_does() -> None:
    forecast, truth = field(0), field(1)
    weights = latitude_weights(truth["latitude"])
    box = {"box": Region((-50, 0), (50, 190))}
    cut = {"latitude": slice(-50, 0), "longitude": slice(50, 190)}
    for score in (squared_error, rmse):
        found = regional(score, forecast, truth, weights=weights, regions=box).sel(region="box", drop=True)
        wanted = score(forecast.sel(cut), truth.sel(cut), weights.sel(latitude=slice(-50, 0)))
        xr.testing.assert_allclose(found, wanted)


def test_regions_of_the_globe_add_up_to_it() -> None:
    forecast, truth = field(0), field(1)
    weights = latitude_weights(truth["latitude"])
    found = regional(squared_error, forecast, truth, weights=weights)
    assert found.dims == ("region", "init_time")
    assert found["region"].values.tolist() == list(REGIONS)
    shares = {"tropics": [-15, 15], "northern_extratropics": [45, 75], "southern_extratropics": [-45, -75]}
    total = sum(found.sel(region=name) * weights.sel(latitude=rows).sum() for name, rows in shares.items())
    np.testing.assert_allclose(found.sel(region="globe"), total / weights.sum(), rtol=1e-12)


def test_scores_with_a_climatology_have_regions_too() -> None:
    forecast, truth = field(0), field(1)
    weights = latitude_weights(truth["latitude"])
    found = regional(anomaly_correlation, forecast, truth, xr.zeros_like(truth), weights=weights)
    np.testing.assert_allclose(
        found.sel(region="globe"), anomaly_correlation(forecast, truth, xr.zeros_like(truth), weights)
    )


@pytest.mark.parametrize("longitudes", [(330, 30), (-30, 30), (-30.0, 390.0 - 360)])
@pytest.mark.parametrize("shift", [0, -180])
def test_a_box_may_cross_the_seam(longitudes: tuple[float, float], shift: float) -> None:
    degrees = xr.DataArray(np.arange(0.0, 360, 30) + shift, dims="longitude")
    inside = Region(longitude=longitudes).contains(xr.DataArray(0.0), degrees)
    assert sorted(degrees.values[inside.values] % 360) == [0, 30, 330]


def test_a_box_may_go_all_around() -> None:
    degrees = xr.DataArray(np.arange(0.0, 360, 30), dims="longitude")
    assert Region(longitude=(0, 360)).contains(xr.DataArray(0.0), degrees).all()


def test_a_region_without_points_is_refused() -> None:
    with pytest.raises(UserError, match="the region 'pole'"):
        regional(
            rmse, field(0), field(1), weights=latitude_weights(field(0).latitude), regions={"pole": Region((80, 90))}
        )
    with pytest.raises(UserError, match="from south to north"):
        Region((20, -20))


def test_seasons_of_both_calendars() -> None:
    months = [f"2001-{month:02d}-28" for month in range(1, 13)]
    wanted = ["DJF"] * 2 + ["MAM"] * 3 + ["JJA"] * 3 + ["SON"] * 3 + ["DJF"]
    plain = xr.DataArray(np.array(months, dtype="datetime64[ns]"), dims="time")
    years_of_360 = xr.DataArray(
        xr.date_range("2001-01-30", periods=12, freq="ME", calendar="360_day", use_cftime=True), dims="time"
    )
    assert season_of(plain).values.tolist() == season_of(years_of_360).values.tolist() == wanted
    with pytest.raises(UserError, match="have no calendar"):
        season_of(xr.DataArray(np.arange(3), dims="time"))


def test_the_season_is_that_of_the_valid_time() -> None:
    issue = np.array(["2001-02-27", "2001-02-28", "2001-05-31"], dtype="datetime64[ns]")
    leads = np.array([1, 2], dtype="timedelta64[D]").astype("timedelta64[ns]")
    statistic = xr.DataArray(
        [[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]],
        dims=("init_time", "lead_time"),
        coords={"init_time": issue, "lead_time": leads},
    )
    valid = statistic["init_time"] + statistic["lead_time"]
    found = seasonal(statistic, valid)
    assert found.dims == ("season", "lead_time")
    # one day ahead: 28 Feb | 1 Mar | 1 Jun; two days ahead: 1 Mar, 2 Mar | 2 Jun
    np.testing.assert_array_equal(found.sel(season="DJF"), [1.0, np.nan])
    np.testing.assert_array_equal(found.sel(season="MAM"), [4.0, 5.0])
    np.testing.assert_array_equal(found.sel(season="JJA"), [16.0, 32.0])
    np.testing.assert_array_equal(found["n"], [[1, 0], [1, 2], [1, 1], [0, 0]])


def test_seasons_of_squares_add_up_and_missing_times_are_not_skipped() -> None:
    times = xr.DataArray(np.datetime64("2001-01-01", "ns") + np.arange(365) * np.timedelta64(1, "D"), dims="init_time")
    squares = xr.DataArray(np.random.default_rng(0).random(365), dims="init_time")
    found = seasonal(squares, times, np.sqrt)
    assert float((found**2 * found["n"]).sum() / 365) == pytest.approx(float(squares.mean()))
    squares[100] = np.nan
    assert seasonal(squares, times).isnull().values.tolist() == [False, True, False, False]


def test_the_examples_run() -> None:
    assert doctest.testmod(home).failed == 0
