import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.archive import open_archive
from sciJEPA.scoring.comparison import COLUMNS, MethodErrors
from sciJEPA.scoring.parts import Parts, of_the_whole, power_rows, region_rows, season_rows, seasons_of
from sciJEPA.space import Space
from sciJEPA.synthetic import travelling_waves


def globe(rows: int = 18, columns: int = 36) -> Space:
    """Points in the middle of cells of 10 degrees."""
    latitude = -90 + 180 / rows * (np.arange(rows) + 0.5)
    longitude = 360 / columns * np.arange(columns)
    return open_archive(
        xr.Dataset(
            {"z": (("time", "latitude", "longitude"), np.random.default_rng(0).normal(size=(4, rows, columns)))},
            {"time": pd.date_range("2001", periods=4), "latitude": latitude, "longitude": longitude},
        )
    ).space


def field(space: Space, values: np.ndarray | float, times: int = 3) -> xr.DataArray:
    return xr.DataArray(np.broadcast_to(values, (times, 1, *space.shape)), dims=("init_time", "channel", *space.dims))


def entry(values: np.ndarray, method: str = "mine", lead: str = "1D") -> MethodErrors:
    return MethodErrors(method=method, variable="z", lead=lead, probe="none", squared_error=values)


def test_the_globe_has_three_regions_and_a_box_within_one_has_none() -> None:
    assert list(Parts(globe()).regions) == ["tropics", "northern_extratropics", "southern_extratropics"]
    assert Parts(open_archive(travelling_waves(10)).space).regions == {}  # from 30 to 60 degrees north


def test_the_error_of_a_region_is_that_of_its_places() -> None:
    space = globe()
    # an error of 2 from the equator to 20 degrees north, none elsewhere
    error = np.where((space.latitude > 0) & (space.latitude < 20), 2.0, 0.0)[:, None]
    found = Parts(space).squared_error(field(space, error), field(space, 0.0))
    assert found.shape == (3, 3, 1)  # regions, times, channels
    # half of the tropics: 4 / 2
    np.testing.assert_allclose(found[:, 0, 0], [2.0, 0.0, 0.0], atol=1e-12)


def test_regions_weighted_by_their_area_add_up_to_the_whole() -> None:
    space, rng = globe(), np.random.default_rng(0)
    parts, error = Parts(space), rng.normal(size=(3, 1, *space.shape))
    share = np.array([float(weights.mean()) for weights in parts.regions.values()])
    found = parts.squared_error(field(space, error), field(space, 0.0))[:, :, 0]
    np.testing.assert_allclose(share @ found, (error**2 * space.weights).mean(axis=(1, 2, 3)), rtol=1e-9)


def test_stations_lie_in_regions_and_have_no_scales() -> None:
    space = Space(
        kind="stations", dims=("station",), shape=(3,), latitude=np.array([0.0, 5.0, 50.0]),
        longitude=np.zeros(3), sides=(("open", "open"),),
    )  # fmt: skip
    assert list(Parts(space).regions) == ["tropics", "northern_extratropics"]
    assert Parts(space).power(field(space, 1.0), field(space, 1.0)).shape == (2, 0, 3, 1)


# --- scales


def test_scales_are_thirds_of_the_wavenumbers_in_logarithm() -> None:
    # 48 wavenumbers: cuts at 48^(1/3) = 3.6 and 48^(2/3) = 13.2; the mean belongs to none
    waves = Parts(globe(columns=96)).waves
    assert waves is not None and waves[0] == -1
    assert [np.flatnonzero(waves == scale)[[0, -1]].tolist() for scale in range(3)] == [[1, 3], [4, 13], [14, 48]]
    assert Parts(globe(columns=6)).waves is None


@pytest.mark.parametrize("kind", ["grid", "box"])
def test_the_power_of_a_wave_is_that_of_its_scale(kind: str) -> None:
    if kind == "grid":
        space = globe()
    else:
        sides = (("open", "open"), ("periodic", "periodic"))
        points = (np.arange(4.0), np.arange(36) * 0.1)
        space = Space(kind="box", dims=("y", "x"), shape=(4, 36), coordinates=points, sides=sides)
    phase = 2 * np.pi * np.arange(36) / 36
    # 18 wavenumbers: cuts at 2.6 and 6.9, so wave 2 is large and wave 10 small; a cosine of amplitude A has A^2 / 2
    truth, forecast = 2 * np.cos(2 * phase) + np.cos(10 * phase), 2 * np.cos(2 * phase) + 0.5 * np.cos(10 * phase)
    found = Parts(space).power(field(space, forecast), field(space, truth))
    assert found.shape == (2, 3, 3, 1)
    np.testing.assert_allclose(found[:, :, 0, 0], [[2.0, 0.0, 0.125], [2.0, 0.0, 0.5]], atol=1e-9)


def test_times_with_missing_truth_have_no_power() -> None:
    space = globe()
    truth = field(space, np.cos(np.deg2rad(space.longitude))).copy()
    truth[1, 0, 3, 4] = np.nan
    found = Parts(space).power(truth.fillna(0.0), truth)
    assert np.isnan(found[:, :, 1]).all() and np.isfinite(found[:, :, [0, 2]]).all()


# --- rows


def test_a_region_has_rows_of_its_own() -> None:
    whole = [entry(np.full(20, 4.0), "climatology"), entry(np.full(20, 1.0))]
    tropics = [np.full(20, 16.0), np.full(20, 4.0)]
    rows = region_rows(whole, {"tropics": tropics}, archive="toy", seed=0, controls=["climatology"])
    assert list(rows.columns) == COLUMNS
    values = rows.set_index(["method", "metric"])["value"]
    assert values["mine", "rmse@tropics"] == 2.0
    assert values["mine", "rmse_over_climatology@tropics"] == 0.5
    assert len(rows) == 4
    assert region_rows(whole, {}, archive="toy", seed=0, controls=["climatology"]).empty


def test_a_season_is_that_of_the_valid_time() -> None:
    times = pd.date_range("2001-02-01", periods=56)  # February with 28 days, then March
    seasons = {lead: seasons_of(times + pd.Timedelta(days=days)) for lead, days in (("1D", 1), ("5D", 5))}
    values = np.where(times + pd.Timedelta(days=1) < "2001-03-01", 9.0, 1.0)
    rows = season_rows(
        [entry(values, lead=lead) for lead in seasons], seasons, archive="toy", seed=0, controls=[]
    )  # fmt: skip
    numbers = rows.set_index(["lead", "metric"])
    assert numbers.loc[("1D", "rmse@DJF"), ["value", "n"]].tolist() == [3.0, 27]
    # four of the 33 spring days were issued, and by these values judged, as winter days: (4 * 9 + 29) / 33
    assert numbers.loc[("5D", "rmse@MAM"), "value"] == pytest.approx((65 / 33) ** 0.5)
    assert set(rows["metric"]) == {"rmse@DJF", "rmse@MAM"}


def test_without_a_calendar_or_with_one_season_alone_there_are_no_seasons() -> None:
    assert seasons_of(np.arange(20.0)) is None
    january = seasons_of(pd.date_range("2001-01-01", periods=20))
    for seasons in (None, january):
        assert season_rows([entry(np.ones(20))], {"1D": seasons}, archive="toy", seed=0, controls=[]).empty


def test_a_forecast_that_blurs_has_a_ratio_below_one() -> None:
    truth = np.random.default_rng(0).uniform(1, 2, size=(3, 30))
    power = np.stack([truth * [[1.0], [0.5], [0.25]], truth])
    power[:, :, 7] = np.nan  # missing truth
    rows = power_rows([entry(np.ones(30))], [power], archive="toy", seed=0)
    assert rows.set_index("metric")["value"].round(9).to_dict() == {
        "power_ratio@large": 1.0,
        "power_ratio@medium": 0.5,
        "power_ratio@small": 0.25,
    }
    assert (rows["n"] == 29).all()
    assert (rows["low"] <= rows["value"] + 1e-12).all() and (rows["value"] <= rows["high"] + 1e-12).all()
    assert len(of_the_whole(pd.concat([rows, rows.assign(metric="rmse")]))) == 3
