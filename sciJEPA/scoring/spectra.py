"""Fields -> power at each zonal wavenumber, which shows whether a forecast keeps its small scales or blurs them.

Arrives: labelled fields. Leaves: labelled power, whose sum over wavenumbers is the mean square of the field. A probe
that minimises squared error smooths; RMSE rewards that and a spectrum shows it. We decided against filling missing
values: a filled field has another spectrum.
"""

import numpy as np
import xarray as xr

from sciJEPA.errors import UserError

EARTH_RADIUS = 6371.0  # km


def zonal_spectrum(
    field: xr.DataArray, dim: str = "longitude", *, period: float = 360.0, window: str | None = None
) -> xr.DataArray:
    """Power at each wavenumber along a periodic dimension.

        P_0 = |F_0|^2,   P_k = 2 |F_k|^2 (once at k = n/2),   F_k = 1/n sum_j x_j exp(-2 pi i j k / n)

    A cosine of amplitude A at wavenumber k has A^2 / 2 there; the sum over k is the mean square (Parseval). The length
    of the circle of latitude carries no weight.

    Source: WeatherBench 2 (Rasp et al. 2024), https://doi.org/10.1029/2023MS004019, there as density.

    Parameters
    ----------
    field
        Any dimensions that include `dim`, evenly spaced along it, without missing values.
    period
        Length after which the dimension repeats, in its units: 360 for longitude, the side of a periodic box.
    window
        "hann" for a region, which does not close: its mean is removed and its ends are tapered, with the power kept on
        average. Without, the points must cover the period.

    Returns
    -------
    xarray.DataArray
        `wavenumber` (waves a period) in place of `dim`; units squared.

    Examples
    --------
    >>> longitude = np.arange(0, 360, 30.0)
    >>> wave = xr.DataArray(4 * np.cos(np.deg2rad(3 * longitude)), dims="longitude", coords={"longitude": longitude})
    >>> zonal_spectrum(wave).round(6).values.tolist()
    [0.0, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0]
    """
    extent = _extent(field, dim, period, window)
    n = field.sizes[dim]
    values = field.transpose(..., dim).to_numpy().astype(np.float64)
    missing = int(np.isnan(values).sum())
    if missing:
        raise UserError(
            f"{missing} of {values.size} values of {field.name or 'the field'} are missing, and a spectrum needs all; "
            "select latitudes or variables without gaps."
        )
    if window is not None:
        taper = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)
        values = (values - values.mean(axis=-1, keepdims=True)) * taper / np.sqrt((taper**2).mean())
    power = 2 * np.abs(np.fft.rfft(values, axis=-1) / n) ** 2
    power[..., 0] /= 2
    if n % 2 == 0:
        power[..., -1] /= 2
    dims = [str(name) for name in field.dims if name != dim]
    coords = {name: c for name, c in field.coords.items() if dim not in c.dims}
    waves = ("wavenumber", np.arange(power.shape[-1]) * period / extent, {"long_name": "waves a period", "units": "1"})
    units = field.attrs.get("units")
    attributes = {"long_name": "power", **({"units": f"({units})^2"} if units else {})}
    return xr.DataArray(power, dims=[*dims, "wavenumber"], coords={**coords, "wavenumber": waves}, attrs=attributes)


def compare_spectra(
    forecast: xr.DataArray,
    truth: xr.DataArray,
    weights: xr.DataArray | None = None,
    *,
    dim: str = "longitude",
    over: tuple[str, ...] = ("latitude", "init_time"),
    period: float = 360.0,
    window: str | None = None,
) -> xr.Dataset:
    """Mean power of forecast and truth at each wavenumber (and lead), and their ratio: below 1 where a forecast blurs.

    Parameters
    ----------
    forecast, truth
        Same coordinates, physical units; for example dims (init_time, lead_time, latitude, longitude).
    weights
        Weights along some of `over`, for example `latitude_weights(truth.latitude)`; equal without.
    over
        Dimensions to average over, after the power is taken.

    Returns
    -------
    xarray.Dataset
        `forecast` and `truth` (units squared) and `ratio`, dims (..., wavenumber). The ratio is NaN where the truth has
        no power.

    Examples
    --------
    >>> longitude = np.arange(0, 360, 90.0)
    >>> truth = xr.DataArray([[1.0, 0.0, -1.0, 0.0]], dims=("latitude", "longitude"), coords={"longitude": longitude})
    >>> float(compare_spectra(truth / 2, truth, over=("latitude",))["ratio"].sel(wavenumber=1))
    0.25
    """
    try:
        xr.align(forecast, truth, join="exact", copy=False)
    except ValueError as error:
        raise UserError(f"forecast and truth must share their coordinates exactly ({error}); select one.") from error
    powers = {}
    for name, field in (("forecast", forecast), ("truth", truth)):
        power = zonal_spectrum(field, dim, period=period, window=window)
        averaged = power if weights is None else power.weighted(weights)
        powers[name] = averaged.mean(over, keep_attrs=True)
    # Rounding leaves some 1e-32 of the total at wavenumbers without power.
    floor = 1e-20 * powers["truth"].sum("wavenumber")
    ratio = powers["forecast"] / powers["truth"].where(powers["truth"] > floor)
    return xr.Dataset({**powers, "ratio": ratio.assign_attrs(units="1", long_name="power of forecast over truth")})


def wavelength(wavenumber: xr.DataArray, latitude: xr.DataArray) -> xr.DataArray:
    """Length of a zonal wave in km, circumference of the circle of latitude over wavenumber; infinite at 0.

    Examples
    --------
    >>> float(wavelength(xr.DataArray(4.0), xr.DataArray(60.0)).round())
    5004.0
    """
    equator = 2 * np.pi * EARTH_RADIUS / wavenumber.where(wavenumber > 0)
    return (equator * np.cos(np.deg2rad(latitude))).fillna(np.inf).assign_attrs(units="km")


def _extent(field: xr.DataArray, dim: str, period: float, window: str | None) -> float:
    """Length that the points cover, each with the space around it."""
    if window not in (None, "hann"):
        raise UserError(f"window must be 'hann' or nothing, got '{window}'.")
    if dim not in field.dims or dim not in field.coords or field.sizes[dim] < 2:
        raise UserError(f"a spectrum along '{dim}' needs that dimension with a coordinate, found {dict(field.sizes)}.")
    points = field[dim].to_numpy().astype(np.float64)
    steps = np.diff(points)
    if np.ptp(steps) > 1e-3 * abs(steps[0]):
        raise UserError(f"the points along '{dim}' are not evenly spaced: steps of {steps.min():g} to {steps.max():g}.")
    extent = float(abs(steps.mean()) * len(points))
    if window is None and abs(extent - period) > 1e-3 * period:
        raise UserError(
            f"'{dim}' covers {extent:g} of a period of {period:g} and does not close; pass window='hann', or the "
            f"period, as in period={extent:g} for a periodic box."
        )
    return extent
