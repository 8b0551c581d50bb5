import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.explore import analogs, followed
from sciJEPA.synthetic import travelling_waves


def circle(steps: int = 100, period: int = 20) -> xr.DataArray:
    """A state that comes back every `period` days."""
    angle = 2 * np.pi * np.arange(steps) / period
    time = pd.date_range("2001-01-01", periods=steps)
    return xr.DataArray(np.stack([np.cos(angle), np.sin(angle)], axis=1), {"time": time}, ("time", "latent"))


def test_what_comes_back_is_found_where_it_comes_back() -> None:
    found = analogs(circle(), "2001-01-06", 4)  # day 5; the same state on days 25, 45, 65, 85
    days = (pd.DatetimeIndex(found["time"].values) - pd.Timestamp("2001-01-01")).days
    assert sorted(days) == [25, 45, 65, 85]
    np.testing.assert_allclose(found["distance"], 0, atol=1e-12)
    assert found.attrs["date"] == "2001-01-06 00:00:00"


def test_near_days_of_the_date_and_of_analogs_do_not_count() -> None:
    found = analogs(circle(), "2001-01-06", 50, exclude="3D")
    days = np.sort((pd.DatetimeIndex(found["time"].values) - pd.Timestamp("2001-01-01")).days.to_numpy())
    assert np.abs(days - 5).min() == 4  # more than 3 days away
    assert np.diff(days).min() >= 3
    close = analogs(circle(), "2001-01-06", 50, exclude="3D", apart="1D")
    assert close.sizes["analog"] == 50


def test_distance_is_relative_to_that_of_any_other_day() -> None:
    # Chords of a circle of radius 1 have the median sqrt(2); excluding days near the date leaves it about there.
    found = analogs(circle(), "2001-01-06", 1, exclude="0D")
    assert float(found["relative"][0]) < 1e-6
    farthest = analogs(circle(), "2001-01-06", 100, exclude="0D", apart="0D")["relative"].max()
    assert farthest == pytest.approx(2**0.5, rel=0.1)  # 2 over sqrt(2)


def test_what_followed_is_the_mean_and_the_spread_of_the_fields() -> None:
    waves = travelling_waves(100)
    chosen = [10, 40, 70]
    found = xr.Dataset(coords={"time": ("analog", waves["time"].values[chosen]), "analog": [1, 2, 3]})
    after = followed(found, waves, lead=["1D", "3D"], anomaly=False)
    assert (after["lead_time"] / np.timedelta64(1, "D")).values.tolist() == [0, 1, 3]
    for number, lead in enumerate((0, 1, 3)):
        fields = waves["z"].values[np.array(chosen) + lead]
        np.testing.assert_allclose(after["z"][number], fields.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(after["z_spread"][number], fields.std(axis=0, ddof=1), atol=1e-4)
    assert after["z"].attrs["units"] == "m"
    assert after.attrs["analogs"] == 3


def test_anomalies_are_departures_from_the_mean_of_the_archive() -> None:
    waves = travelling_waves(100)
    found = xr.Dataset(coords={"time": ("analog", waves["time"].values[[10, 40]])})
    difference = followed(found, waves, "1D", anomaly=False)["z"] - followed(found, waves, "1D")["z"]
    mean = waves["z"].mean("time")  # 100 days: no seasonal cycle is fitted
    np.testing.assert_allclose(difference.isel(lead_time=0), mean, atol=1e-4)


def test_analogs_without_an_outcome_are_left_out() -> None:
    waves = travelling_waves(30)
    found = xr.Dataset(coords={"time": ("analog", waves["time"].values[[3, 9, 28]])})
    assert followed(found, waves, "5D").attrs["analogs"] == 2
    with pytest.raises(UserError, match="1 of 3 analogs are followed by 22 steps"):
        followed(found, waves, "22D")


def test_no_day_far_enough_is_refused() -> None:
    with pytest.raises(UserError, match="no time is more than 100D"):
        analogs(circle(50), "2001-01-06", exclude="100D")
