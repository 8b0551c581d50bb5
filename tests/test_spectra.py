import doctest

import numpy as np
import pytest
import scipy.signal
import xarray as xr

import sciJEPA.scoring.spectra as home
from sciJEPA.errors import UserError
from sciJEPA.scores import latitude_weights
from sciJEPA.scoring.spectra import compare_spectra, wavelength, zonal_spectrum


def wave(amplitude: float, number: float, points: int = 48, phase: float = 0.3, extent: float = 360) -> xr.DataArray:
    longitude = np.arange(points) * extent / points
    values = amplitude * np.cos(np.deg2rad(number * longitude) + phase)
    return xr.DataArray(values, dims="longitude", coords={"longitude": longitude}, attrs={"units": "m"})


@pytest.mark.parametrize("points", [47, 48])
@pytest.mark.parametrize("number", [1, 5, 23])
def test_a_cosine_of_amplitude_4_has_power_8_at_its_wavenumber(number: int, points: int) -> None:
    power = zonal_spectrum(wave(4, number, points))
    np.testing.assert_allclose(power.sel(wavenumber=number), 8, rtol=1e-10)
    np.testing.assert_allclose(power.drop_sel(wavenumber=number), 0, atol=1e-20)


def test_the_mean_and_the_shortest_wave_count_once() -> None:
    # 3 + 2 (-1)^j: power 9 at 0 and 4 at n/2 = 4, and the mean square is 13
    field = xr.DataArray(3 + 2 * (-1.0) ** np.arange(8), dims="longitude", coords={"longitude": np.arange(8) * 45.0})
    np.testing.assert_allclose(zonal_spectrum(field), [9, 0, 0, 0, 4], atol=1e-12)


@pytest.mark.parametrize("points", [30, 31])
def test_the_power_adds_up_to_the_mean_square_and_is_that_of_scipy(points: int) -> None:
    values = np.random.default_rng(0).normal(size=(3, points)) + 2
    coords = {"longitude": np.arange(points) * 360 / points - 180, "latitude": [10.0, 20.0, 30.0]}
    field = xr.DataArray(values, dims=("latitude", "longitude"), coords=coords)
    power = zonal_spectrum(field)
    np.testing.assert_allclose(power.sum("wavenumber"), (values**2).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(power, scipy.signal.periodogram(values, scaling="spectrum", detrend=False)[1])
    rolled = field.roll(longitude=7, roll_coords=True).assign_coords(longitude=field.longitude)
    np.testing.assert_allclose(zonal_spectrum(rolled), power, rtol=1e-9)


def test_labels_stay_in_place_of_the_longitudes() -> None:
    field = wave(1, 2).expand_dims(lead_time=[1, 2], latitude=[0.0, 60.0]).transpose("longitude", ...)
    power = zonal_spectrum(field)
    assert power.dims == ("lead_time", "latitude", "wavenumber")
    assert power["latitude"].values.tolist() == [0, 60]
    assert power.attrs["units"] == "(m)^2"


def test_a_region_is_tapered_and_keeps_its_wavenumbers_and_its_power() -> None:
    # A quarter of the circle with 24 points: wavenumber 16 makes 4 waves in it.
    field = wave(4, 16, points=24, extent=90)
    with pytest.raises(UserError, match=r"covers 90 of a period of 360 and does not close; pass window='hann'"):
        zonal_spectrum(field)
    power = zonal_spectrum(field, window="hann")
    assert power["wavenumber"].values.tolist() == (4.0 * np.arange(13)).tolist()
    np.testing.assert_allclose(power.sum(), 8, rtol=1e-9)
    # A Hann taper spreads a line over itself and its neighbours as 1/2 : 1 : 1/2 in amplitude, 1 : 4 : 1 in power.
    np.testing.assert_allclose(power.sel(wavenumber=[12, 16, 20]), [8 / 6, 32 / 6, 8 / 6], rtol=1e-9)


def test_a_periodic_box_has_a_period_of_its_own() -> None:
    x = xr.DataArray(np.arange(16) / 16 + 1 / 32, dims="x")
    field = xr.DataArray(2 * np.sin(2 * np.pi * 3 * x), coords={"x": x})
    np.testing.assert_allclose(zonal_spectrum(field, "x", period=1).sel(wavenumber=3), 2)


def test_a_forecast_of_half_the_amplitude_has_a_quarter_of_the_power() -> None:
    latitude = xr.DataArray([-45.0, 45.0], dims="latitude", coords={"latitude": [-45.0, 45.0]})
    long, short = wave(2, 1), wave(2, 6)
    lead = xr.DataArray([1, 3], dims="lead_time", coords={"lead_time": [1, 3]})
    truth = (long + short) * xr.ones_like(latitude) * xr.ones_like(lead)
    forecast = (long + short / lead) * xr.ones_like(latitude)
    spectra = compare_spectra(forecast, truth, latitude_weights(latitude), over=("latitude",))
    ratio = spectra["ratio"].transpose("lead_time", "wavenumber")
    np.testing.assert_allclose(ratio.sel(wavenumber=1), [1, 1])
    np.testing.assert_allclose(ratio.sel(wavenumber=6), [1, 1 / 9])
    assert ratio.sel(wavenumber=4).isnull().all()


def test_rows_are_weighted_after_the_power_is_taken() -> None:
    scale = xr.DataArray([1.0, 3.0], dims="latitude")
    field = wave(1, 2) * scale
    found = compare_spectra(field, field, xr.DataArray([0.5, 1.5], dims="latitude"), over=("latitude",))
    # powers 1/2 and 9/2 with weights 1/4 and 3/4: 1/8 + 27/8
    np.testing.assert_allclose(found["truth"].sel(wavenumber=2), 3.5)


def test_wavelengths_shrink_towards_the_poles() -> None:
    # circumference 2 pi 6371 km = 40030 km; at 60 degrees half of it
    found = wavelength(xr.DataArray([0, 1, 4], dims="wavenumber"), xr.DataArray(60.0))
    np.testing.assert_allclose(found, [np.inf, 20015.1, 5003.8], rtol=1e-5)


def test_what_has_no_spectrum_is_refused() -> None:
    field = wave(1, 1)
    with pytest.raises(UserError, match="1 of 48 values of the field are missing"):
        zonal_spectrum(field.where(field.longitude > 0))
    with pytest.raises(UserError, match="not evenly spaced"):
        zonal_spectrum(field.isel(longitude=[0, 1, 3]))
    with pytest.raises(UserError, match="needs that dimension with a coordinate"):
        zonal_spectrum(field.rename(longitude="lon"))
    with pytest.raises(UserError, match="must share their coordinates"):
        compare_spectra(field, field.isel(longitude=slice(40)), over=())


def test_the_examples_run() -> None:
    assert doctest.testmod(home).failed == 0
