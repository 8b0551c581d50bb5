"""Small archives with known answers, for the demo, the documentation and the tests.

Nothing arrives; an ``xr.Dataset`` leaves. Two sources, both simulated and both repeatable from a seed:

- `qg_channel`: two-layer quasi-geostrophic turbulence in a mid-latitude channel, a real small solver. A jet, eddies and
  a storm track; daily maps that behave like surface pressure (lower layer) and 500 hPa height, without any download.
- `travelling_waves`: a few zonal waves with known phase speeds, ready in milliseconds, with levels, gaps and calendars.

Decided against: a grid-point (Arakawa) Jacobian, because a Galerkin expansion conserves energy and enstrophy as exactly
and carries no phase error at this resolution; a doubly periodic domain, because a latitude that wraps around misleads
anyone who weights by area; torch, because an archive exists before anything is learned from it.
"""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.folders import complete_folder

GRAVITY = 9.80665  # m s-2
EARTH_RADIUS = 6.371e6  # m
DAY = 86400.0  # s
REFERENCES = (
    "Phillips (1956), Q. J. R. Meteorol. Soc. 82, 123-164, https://doi.org/10.1002/qj.49708235202; "
    "Cressman (1958), Mon. Weather Rev. 86, 293-297, "
    "https://doi.org/10.1175/1520-0493(1958)086<0293:BDAVLA>2.0.CO;2; "
    "Reinhold and Pierrehumbert (1982), Mon. Weather Rev. 110, 1105-1145, "
    "https://doi.org/10.1175/1520-0493(1982)110<1105:DOWRQS>2.0.CO;2; "
    "Lee and Held (1993), J. Atmos. Sci. 50, 1413-1428, "
    "https://doi.org/10.1175/1520-0469(1993)050<1413:BWPIMA>2.0.CO;2"
)


def _require_integer(name: str, value: float, least: int) -> None:
    if value != int(value) or value < least:
        raise UserError(f"{name} must be an integer of at least {least}; got {value}.")


@dataclass(frozen=True, kw_only=True)
class ChannelFlow:
    """Physical and numerical parameters of the two-layer channel; the defaults give a terrestrial storm track.

    Two layers of equal depth (1 upper, 2 lower) on a beta-plane between two walls (Phillips 1956), relaxed towards a
    baroclinic jet and rubbed at the ground (Lee and Held 1993). With F = 1 / deformation_radius**2,
    G = 1 / external_radius**2 (Cressman 1958), the ridge eta_2 = f0 height / depth, the upper sign in layer 1, and a
    uniform wind U_i that stays fixed, is normally 0 and is not part of psi::

        q_i = lap(psi_i) -+ F (psi_1 - psi_2) - G (psi_1 + psi_2) / 2
        dq_i/dt = -J(psi_i, q_i + eta_i) - U_i d(q_i + eta_i)/dx - (beta +- F (U_1 - U_2) + G (U_1 + U_2) / 2) dpsi_i/dx
                  +- F (psi_1 - psi_2 - psi_jet) / relaxation - [i = 2] lap(psi_2) / drag - lap**4(q_i) / diffusion
        -dpsi_jet/dy = jet_shear exp(-((y - width / 2) / jet_half_width)**2) + the jet_contrast wave

    Nothing crosses the walls: there the eddies vanish, and so does the acceleration of the zonal mean. So eddies are
    sines in y and the zonal mean of psi cosines (Reinhold and Pierrehumbert 1982). Projected on these modes, the first
    line without U_i conserves energy, and enstrophy too if beta is zero. Links: `REFERENCES`.
    """

    coriolis: float = 1.03e-4  # s-1, f0 at 45 degrees north
    beta: float = 1.62e-11  # m-1 s-1, df/dy there
    length: float = 28.3e6  # m, zonal period: the latitude circle there
    width: float = 5.0e6  # m, distance between the walls
    deformation_radius: float = 700e3  # m
    external_radius: float = 2.0e6  # m, slows down the longest waves (Cressman 1958); inf for a rigid lid
    layer_depth: float = 5000.0  # m, both layers
    jet_shear: float = 50.0  # m s-1, largest psi_jet wind, upper minus lower layer
    jet_half_width: float = 1.2e6  # m
    jet_contrast: float = 0.5  # at jet_longitude jet_shear is stronger by this share, and weaker opposite; 0 for none
    jet_longitude: float = 150.0  # degrees east
    uniform_wind: tuple[float, float] = (0.0, 0.0)  # m s-1, (U_1, U_2)
    relaxation_days: float = 20.0  # towards the jet; inf switches it off
    drag_days: float = 2.0  # Ekman drag on the lower layer; inf switches it off
    diffusion_days: float = 0.1  # decay time of the smallest wave under lap**4; inf switches it off
    ridge_height: float = 1500.0  # m, h of a ridge that fixes the storm track; 0 for none
    ridge_longitude: float = 90.0  # degrees east
    ridge_half_width: float = 12.0  # degrees of longitude
    zonal_modes: int = 21  # K, largest zonal wavenumber
    meridional_modes: int = 12  # M, largest number of half waves between the walls
    steps_per_day: int = 15  # of the Runge-Kutta scheme; winds times shortest waves set the limit

    def __post_init__(self) -> None:
        lengths = "length width deformation_radius external_radius layer_depth jet_half_width ridge_half_width"
        for name in (*lengths.split(), "coriolis", "relaxation_days", "drag_days", "diffusion_days"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive (inf switches a damping off); got {getattr(self, name)}.")
        for name, least in (("zonal_modes", 1), ("meridional_modes", 2), ("steps_per_day", 1)):
            _require_integer(name, getattr(self, name), least)


class _Operators(NamedTuple):
    """What follows from the parameters alone, for K + 1 Fourier modes in x, M modes in y and a grid of H x W points."""

    columns: int  # W > 3 K: no quadratic product is aliased
    d_dx: np.ndarray  # (K+1,) i k in m-1
    laplacian: np.ndarray  # (M, K+1) -(k**2 + l**2) in m-2
    sines: np.ndarray  # (H, M) modes to points
    cosines: np.ndarray  # (H, M)
    sines_dy: np.ndarray  # (H, M) modes to the y-derivative at points, in m-1
    cosines_dy: np.ndarray  # (H, M)
    weights: np.ndarray  # (H, 1) quadrature: their sum over y is twice the mean
    uniform_wind: np.ndarray  # (2, 1, 1) U_i in m s-1
    gradient: np.ndarray  # (2, 1, 1) of planetary vorticity and of the uniform winds, in m-1 s-1
    ridge: np.ndarray  # (2, M, K+1) modes of eta_i in s-1
    jet: np.ndarray  # (M, K+1) modes of psi_jet in m2 s-1
    diffusion: np.ndarray  # (M, K+1) decay rate in s-1


@functools.lru_cache(maxsize=8)
def _operators(flow: ChannelFlow) -> _Operators:
    zonal = 2 * np.pi / flow.length * np.arange(flow.zonal_modes + 1)
    wavenumber = np.pi / flow.width * np.arange(1, flow.meridional_modes + 1)
    laplacian = -(zonal**2 + wavenumber[:, None] ** 2)
    # Products of sines and cosines are no periodic functions of y: Gauss-Legendre points integrate them, equal steps do
    # not. Triple products (energy, enstrophy) have 3 M half waves and want pi / 4 of that many points, plus a margin.
    nodes, weights = np.polynomial.legendre.leggauss(3 * flow.meridional_modes)
    y = (nodes + 1) * flow.width / 2
    sines, cosines = np.sin(y[:, None] * wavenumber), np.cos(y[:, None] * wavenumber)
    columns = scipy.fft.next_fast_len(3 * flow.zonal_modes + 1, real=True)
    # exp(cos) is the periodic bell. Its zonal mean is left out: a half sine in y is not among the zonal-mean modes.
    angle = 2 * np.pi * np.arange(columns) / columns - np.deg2rad(flow.ridge_longitude)
    bell = np.exp(2 * (np.cos(angle) - 1) / np.deg2rad(flow.ridge_half_width) ** 2)
    ridge = np.zeros((2, flow.meridional_modes, flow.zonal_modes + 1), complex)
    ridge[1, 0, 1:] = flow.coriolis * flow.ridge_height / flow.layer_depth * _to_fourier(bell, flow.zonal_modes)[1:]
    wind = flow.jet_shear * np.exp(-(((y - flow.width / 2) / flow.jet_half_width) ** 2))
    jet = np.zeros_like(ridge[0])
    jet[:, 0] = sines.T @ (weights * wind) / wavenumber
    jet[1, 1] = flow.jet_contrast * flow.jet_shear / wavenumber[1] / 2 * np.exp(-1j * np.deg2rad(flow.jet_longitude))
    shear = (flow.uniform_wind[0] - flow.uniform_wind[1]) / flow.deformation_radius**2
    mean = flow.beta + sum(flow.uniform_wind) / (2 * flow.external_radius**2)
    return _Operators(
        columns=columns,
        d_dx=1j * zonal,
        laplacian=laplacian,
        sines=sines,
        cosines=cosines,
        sines_dy=cosines * wavenumber,
        cosines_dy=-sines * wavenumber,
        weights=weights[:, None],
        uniform_wind=np.reshape(flow.uniform_wind, (2, 1, 1)),
        gradient=np.array([mean + shear, mean - shear])[:, None, None],
        ridge=ridge,
        jet=jet,
        diffusion=(laplacian / laplacian.min()) ** 4 / (flow.diffusion_days * DAY),
    )


def _to_fourier(field: np.ndarray, zonal_modes: int) -> np.ndarray:
    return scipy.fft.rfft(field, axis=-1, norm="forward")[..., : zonal_modes + 1]


def streamfunction(vorticity: np.ndarray, flow: ChannelFlow) -> np.ndarray:
    """Invert potential vorticity modes q (2, M, K+1) in s-1 for streamfunction modes psi (2, M, K+1) in m2 s-1.

    The sum of the layers obeys (lap - G) s = q_1 + q_2, their difference (lap - 2 F) d = q_1 - q_2.
    """
    laplacian = _operators(flow).laplacian
    total = (vorticity[0] + vorticity[1]) / (laplacian - 1 / flow.external_radius**2)
    difference = (vorticity[0] - vorticity[1]) / (laplacian - 2 / flow.deformation_radius**2)
    return np.stack([total + difference, total - difference]) / 2


def potential_vorticity(psi: np.ndarray, flow: ChannelFlow) -> np.ndarray:
    """The inverse of `streamfunction`, shapes and units as there; the equation is in `ChannelFlow`."""
    stretching = (psi[0] - psi[1]) / flow.deformation_radius**2
    surface = (psi[0] + psi[1]) / (2 * flow.external_radius**2)
    return _operators(flow).laplacian * psi - np.stack([surface + stretching, surface - stretching])


def tendency(vorticity: np.ndarray, flow: ChannelFlow) -> np.ndarray:
    """dq/dt in s-2 for potential vorticity modes q (2, M, K+1) in s-1; the equations are in `ChannelFlow`."""
    op = _operators(flow)
    psi = streamfunction(vorticity, flow)
    total = vorticity + op.ridge
    modes = np.stack([psi, total])
    mean_dy = (modes[..., 0].real @ op.cosines_dy.T)[..., None]
    modes[..., 0] = 0  # what is left are eddies: sines
    rows = scipy.fft.irfft(np.stack([modes, op.d_dx * modes]), op.columns, axis=-1, norm="forward")
    psi_y, q_y = op.sines_dy @ rows[0] + mean_dy
    v, q_x = op.sines @ rows[1]
    advection = ((op.uniform_wind - psi_y) * q_x + v * (op.gradient + q_y)) * op.weights
    rate = -_to_fourier(op.sines.T @ advection, flow.zonal_modes)
    rate[..., 0] = -advection.mean(axis=-1) @ op.cosines
    rate -= op.diffusion * vorticity
    cooling = psi[0] - psi[1] - op.jet
    cooling /= flow.deformation_radius**2 * flow.relaxation_days * DAY
    rate[0] += cooling
    rate[1] -= cooling + op.laplacian * psi[1] / (flow.drag_days * DAY)
    return rate


def step(vorticity: np.ndarray, flow: ChannelFlow) -> np.ndarray:
    """One classical fourth-order Runge-Kutta step of 1 day / `steps_per_day`; shapes and units as in `tendency`."""
    seconds = DAY / flow.steps_per_day
    first = tendency(vorticity, flow)
    second = tendency(vorticity + seconds / 2 * first, flow)
    third = tendency(vorticity + seconds / 2 * second, flow)
    fourth = tendency(vorticity + seconds * third, flow)
    return vorticity + seconds / 6 * (first + 2 * (second + third) + fourth)


def _mean_product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Channel mean of a product of two fields from their modes: sin**2 averages 1/2, each k > 0 stands for -k too."""
    product = (left * right.conj()).real
    return (product.sum(axis=-1) - product[..., 0] / 2).sum(axis=-1)


def energy(vorticity: np.ndarray, flow: ChannelFlow) -> float:
    """Kinetic plus available potential energy of the perturbation, channel mean over both layers, in m2 s-2.

    E = mean(|grad psi_1|**2 + |grad psi_2|**2 + F (psi_1 - psi_2)**2 + G (psi_1 + psi_2)**2 / 2) / 4
      = -mean(psi_1 q_1 + psi_2 q_2) / 4.
    """
    return float(-_mean_product(streamfunction(vorticity, flow), vorticity).sum() / 4)


def enstrophy(vorticity: np.ndarray, flow: ChannelFlow) -> np.ndarray:
    """Half the mean square of potential vorticity q_i + eta_i in each layer, shape (2,), in s-2."""
    total = vorticity + _operators(flow).ridge
    return _mean_product(total, total) / 2


def initial_vorticity(flow: ChannelFlow, seed: int) -> np.ndarray:
    """Random planetary waves with winds of a few m s-1 at rest: modes q (2, M, K+1) in s-1 to start a run from."""
    random = np.random.default_rng(seed)
    psi = np.zeros((2, flow.meridional_modes, flow.zonal_modes + 1), complex)
    shape = psi[:, :4, 1:9].shape
    psi[:, :4, 1:9] = 5e5 * (random.standard_normal(shape) + 1j * random.standard_normal(shape))
    return potential_vorticity(psi, flow)


def height_maps(vorticity: np.ndarray, flow: ChannelFlow, latitude: int, longitude: int) -> np.ndarray:
    """Geopotential height z = f0 psi / g in m, shape (2, latitude, longitude), at cell centres in y, from modes q.

    psi leaves out the uniform wind. Waves too short for the grid are left out, not aliased.
    """
    rows = min(flow.meridional_modes, latitude)
    columns = min(flow.zonal_modes, (longitude - 1) // 2) + 1
    psi = streamfunction(vorticity, flow)[:, :rows, :columns]
    angle = np.pi * (np.arange(latitude)[:, None] + 0.5) / latitude * np.arange(1, rows + 1)
    eddies = psi.copy()
    eddies[..., 0] = 0
    field = np.sin(angle) @ scipy.fft.irfft(eddies, longitude, axis=-1, norm="forward")
    return flow.coriolis / GRAVITY * (field + (psi[..., 0].real @ np.cos(angle).T)[..., None])


def qg_channel(
    days: int = 4000,
    *,
    seed: int = 0,
    nlat: int = 32,
    nlon: int = 64,
    spinup_days: int = 150,
    flow: ChannelFlow | None = None,
    progress: Callable[[float], None] | None = None,
) -> xr.Dataset:
    """Simulate daily weather maps: two-layer quasi-geostrophic turbulence in a mid-latitude channel.

    Parameters
    ----------
    days : number of daily snapshots after the spin-up; about 6 ms each on one core.
    seed : of the random initial waves; the same seed gives the same numbers on the same machine.
    nlat, nlon : output grid; the resolution of the simulation itself is part of `flow`.
    spinup_days : simulated and thrown away; the turbulence needs about 60 days to forget its start.
    flow : physical parameters, `ChannelFlow()` if None.
    progress : called after each day with the share done, from 0 to 1.

    Returns
    -------
    `z_upper` and `z_lower`, float32 (time, latitude, longitude) in m: geopotential height f0 psi / g of each layer,
    less its channel mean, which is constant. The channel is a beta-plane laid on the longitude circle: longitude is
    periodic, a degree of it has one length everywhere, and latitude is a label for y. Follows the CF conventions.

    Examples
    --------
    >>> dict(qg_channel(3, spinup_days=0).sizes)
    {'time': 3, 'latitude': 32, 'longitude': 64}
    """
    flow = ChannelFlow() if flow is None else flow
    for name, value, least in (
        ("days", days, 1),
        ("nlat", nlat, 2),
        ("nlon", nlon, 3),
        ("spinup_days", spinup_days, 0),
    ):
        _require_integer(name, value, least)
    vorticity = initial_vorticity(flow, seed)
    heights = np.empty((2, days, nlat, nlon), np.float32)
    for day in range(spinup_days + days):
        with np.errstate(over="ignore", invalid="ignore"):  # the next line says it better
            for _ in range(flow.steps_per_day):
                vorticity = step(vorticity, flow)
        if not energy(vorticity, flow) < 1e5:  # winds of 600 m s-1, or NaN
            raise UserError(f"The flow blew up on day {day}: double steps_per_day, now {flow.steps_per_day}.")
        if day >= spinup_days:
            heights[:, day - spinup_days] = height_maps(vorticity, flow, nlat, nlon)
        if progress is not None:
            progress((day + 1) / (spinup_days + days))
    return _labelled(heights, flow, seed)


def _labelled(heights: np.ndarray, flow: ChannelFlow, seed: int) -> xr.Dataset:
    _, days, nlat, nlon = heights.shape
    half_width = np.rad2deg(flow.width / EARTH_RADIUS) / 2
    dims = ("time", "latitude", "longitude")
    variables = {
        f"z_{name}": (dims, heights[layer], {"units": "m", "long_name": f"geopotential height anomaly, {name} layer"})
        for layer, name in enumerate(("upper", "lower"))
    }
    dataset = xr.Dataset(
        variables,
        coords={
            "time": np.datetime64("2001-01-01", "ns") + np.arange(days) * np.timedelta64(1, "D"),
            "latitude": 45 + half_width * ((2 * np.arange(nlat) + 1) / nlat - 1),
            "longitude": np.arange(nlon) * 360 / nlon,
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "Daily maps of two-layer quasi-geostrophic turbulence in a mid-latitude channel",
            "source": f"simulated: no observations; sciJEPA.synthetic.qg_channel, {flow}",
            "references": REFERENCES,
            "seed": seed,
            "comment": "A beta-plane channel laid on the longitude circle: latitude is a label for the distance from "
            "the southern wall, a degree of longitude has one length everywhere. Anomalies are from the channel mean "
            "of each layer, which is constant. Dates are labels: there are no seasons.",
        },
    )
    return _with_cf_coordinates(dataset, "standard", "days since 2001-01-01")


def _with_cf_coordinates(dataset: xr.Dataset, calendar: str, units: str) -> xr.Dataset:
    dataset["time"].attrs = {"standard_name": "time", "long_name": "time", "axis": "T"}
    dataset["time"].encoding = {"units": units, "calendar": calendar}
    for name, axis in (("latitude", "Y"), ("longitude", "X")):
        unit = {"latitude": "degrees_north", "longitude": "degrees_east"}[name]
        dataset[name].attrs = {"units": unit, "standard_name": name, "long_name": name, "axis": axis}
    return dataset


def write_qg_channel(path: str | os.PathLike[str], *, days: int = 4000, seed: int = 0, **options: Any) -> Path:
    """Simulate with `qg_channel` (which takes the same options) and write a Zarr v3 store, 64 full maps a chunk.

    The store appears at `path` when it is complete, never before; an existing path is refused.
    """
    with complete_folder(path) as folder:
        dataset = qg_channel(days, seed=seed, **options)
        chunks = (min(64, days), dataset.sizes["latitude"], dataset.sizes["longitude"])
        encoding = {name: {"chunks": chunks} for name in dataset.data_vars}
        dataset.to_zarr(folder, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    return Path(path)


def travelling_waves(
    days: float = 200,
    *,
    nlat: int = 8,
    nlon: int = 16,
    seed: int = 0,
    cadence: str = "1D",
    variables: Sequence[str] = ("z",),
    levels: Sequence[float] | None = None,
    noise: float = 0.1,
    missing: float = 0.0,
    calendar: str = "standard",
) -> xr.Dataset:
    """Three random zonal waves per variable plus white noise: instant, with every awkwardness an archive can have.

    With t in days since the first time, p in hPa and y in [0, 1] across the latitudes::

        x = sum over m of amplitude[m] sin(pi y) cos(k[m] (longitude - speed[m] t) - phase[m] - p / 1000) + noise

    The waves depend only on `seed` and the position of the variable, so the exact forecast of any archive is the same
    call with ``noise=0, missing=0`` and more days. Each variable carries zonal_wavenumber k, phase_speed (degrees per
    day), amplitude and phase (radians) as attributes.

    Parameters
    ----------
    days, cadence : length and time step, any pandas offset of fixed length ("6h", "1D").
    levels : pressure levels in hPa; None for no level dimension.
    noise : standard deviation of the noise; the waves have amplitudes of 0.5 to 1.5 m.
    missing : share of values that are NaN, each drawn by itself.
    calendar : a CF calendar, such as "standard", "noleap" or "360_day".

    Examples
    --------
    >>> dict(travelling_waves(5, levels=(500, 850)).sizes)
    {'time': 5, 'level': 2, 'latitude': 8, 'longitude': 16}
    """
    if not 0 <= missing < 1:
        raise UserError(f"missing is a share and must be in [0, 1); got {missing}.")
    for name, value, least in (("nlat", nlat, 2), ("nlon", nlon, 8)):  # 8 longitudes resolve wavenumber 3
        _require_integer(name, value, least)
    times = _times(days, cadence, calendar)
    elapsed = np.asarray((times - times[0]) / np.timedelta64(1, "D"), dtype=float)[:, None, None, None]
    latitude = 30 + (np.arange(nlat) + 0.5) * 30 / nlat
    longitude = np.arange(nlon) * 360 / nlon
    pressure = np.array([0.0] if levels is None else levels, dtype=float)
    dims = ("time", "level", "latitude", "longitude")
    level = ("level", pressure, {"units": "hPa", "standard_name": "air_pressure", "positive": "down"})
    dataset = xr.Dataset(coords={"time": times, "level": level, "latitude": latitude, "longitude": longitude})
    for position, name in enumerate(variables):
        waves = np.random.default_rng([seed, position])
        k, speed = 1 + waves.permutation(3), waves.uniform(4, 16, 3) * waves.choice([-1, 1], 3)
        amplitude, phase = waves.uniform(0.5, 1.5, 3), waves.uniform(0, 2 * np.pi, 3)
        angle = np.deg2rad(longitude - speed[:, None, None, None, None] * elapsed)
        angle = k[:, None, None, None, None] * angle - phase[:, None, None, None, None] - pressure[:, None, None] / 1000
        field = np.tensordot(amplitude, np.cos(angle), 1) * np.sin(np.pi * (latitude[:, None] - 30) / 30)
        chance = np.random.default_rng([seed, position, 1])  # its own stream: noise and gaps leave the waves alone
        field += noise * chance.standard_normal(field.shape)
        field[chance.random(field.shape) < missing] = np.nan
        attributes = {"units": "m", "long_name": f"travelling waves {name}", "zonal_wavenumber": k.tolist()}
        attributes |= {"phase_speed": speed.tolist(), "amplitude": amplitude.tolist(), "phase": phase.tolist()}
        dataset[name] = (dims, field.astype(np.float32), attributes)
    if levels is None:
        dataset = dataset.isel(level=0, drop=True)
    dataset.attrs = {"Conventions": "CF-1.11", "title": "Travelling waves with known phase speeds", "seed": seed}
    dataset.attrs["source"] = "simulated: no observations; sciJEPA.synthetic.travelling_waves"
    return _with_cf_coordinates(dataset, calendar, "hours since 2001-01-01")


def _times(days: float, cadence: str, calendar: str) -> Any:
    try:
        pair = xr.date_range("2001-01-01", periods=2, freq=cadence, calendar=calendar)
    except (KeyError, ValueError) as error:  # xarray looks calendars up in a dictionary
        raise UserError(f"No time axis with cadence={cadence!r} and calendar={calendar!r}: {error}.") from error
    steps = round(days / float((pair[1] - pair[0]) / np.timedelta64(1, "D")))
    if steps < 1:
        raise UserError(f"days={days} at cadence={cadence!r} is no time step at all; ask for more days.")
    return xr.date_range("2001-01-01", periods=steps, freq=cadence, calendar=calendar)
