import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from sciJEPA import synthetic
from sciJEPA.errors import UserError
from sciJEPA.synthetic import ChannelFlow, qg_channel, travelling_waves, write_qg_channel

INFINITE = float("inf")
FREE = ChannelFlow(relaxation_days=INFINITE, drag_days=INFINITE, diffusion_days=INFINITE)
ROUND = ChannelFlow(ridge_height=0, jet_contrast=0)  # the same at all longitudes


def turbulence(flow: ChannelFlow, days: int = 3) -> np.ndarray:
    """A state with energy in all modes: waves that have met for some days, and a zonal wind."""
    vorticity = synthetic.initial_vorticity(flow, seed=1)
    vorticity[0, :4, 0], vorticity[1, :4, 0] = 1e-5, -5e-6
    for _ in range(days * flow.steps_per_day):
        vorticity = synthetic.step(vorticity, flow)
    return vorticity


@pytest.fixture(scope="module")
def channel() -> xr.Dataset:
    return qg_channel(200, spinup_days=70)


# --- the solver -------------------------------------------------------------------------------------------------------


def test_streamfunction_inverts_potential_vorticity():
    vorticity = turbulence(ROUND, days=0)
    there_and_back = synthetic.potential_vorticity(synthetic.streamfunction(vorticity, ROUND), ROUND)
    np.testing.assert_allclose(there_and_back, vorticity, atol=1e-13 * abs(vorticity).max())


def test_energy_of_one_wave_is_worked_by_hand():
    # psi_1 = psi_2 = A cos(k x) sin(l y): both layers alike, so E = mean(|grad psi|**2 + G psi**2) / 2
    # = (k**2 + l**2 + G) A**2 / 8. The Fourier mode of A cos(k x) is A / 2. Here k is mode 2 and l is mode 3.
    amplitude = 1e7
    psi = np.zeros((2, FREE.meridional_modes, FREE.zonal_modes + 1), complex)
    psi[:, 2, 2] = amplitude / 2
    k, l_ = 2 * 2 * np.pi / FREE.length, 3 * np.pi / FREE.width
    expected = (k**2 + l_**2 + FREE.external_radius**-2) * amplitude**2 / 8
    assert synthetic.energy(synthetic.potential_vorticity(psi, FREE), FREE) == pytest.approx(expected, rel=1e-12)


def test_advection_conserves_energy_and_enstrophy_to_quadrature_error():
    # On the projected modes both hold exactly if triple products are integrated exactly. These have 3 M / 2 waves in y
    # at worst, in modes that hold little; Gauss-Legendre needs more than pi / 2 points a wave, has 2. Measured: 2e-10
    # (energy) and 3e-9 (enstrophy) a day. A wrong sign or factor shows at order 1: eddies turn over in about a day.
    flow = dataclasses.replace(FREE, beta=0.0)
    vorticity = turbulence(flow)
    rate = synthetic.tendency(vorticity, flow) * synthetic.DAY
    total = vorticity + synthetic._operators(flow).ridge
    energy_rate = -synthetic._mean_product(synthetic.streamfunction(vorticity, flow), rate).sum() / 2
    assert abs(energy_rate) < 1e-7 * synthetic.energy(vorticity, flow)
    assert np.all(abs(synthetic._mean_product(total, rate)) < 1e-7 * synthetic.enstrophy(vorticity, flow))
    energy_rate = -synthetic._mean_product(
        synthetic.streamfunction(vorticity, FREE), synthetic.tendency(vorticity, FREE)
    ).sum()
    assert abs(energy_rate * synthetic.DAY / 2) < 1e-7 * synthetic.energy(vorticity, FREE)  # beta moves no energy


def test_energy_drift_is_that_of_the_time_step():
    # Fourth-order Runge-Kutta shrinks a wave of frequency w by (w dt)**6 / 144 a step, so the energy lost in a given
    # time falls with dt**5: 32 times for half the step. Ask for 16 to leave room for other terms.
    drifts = []
    for steps in (15, 30):
        flow = dataclasses.replace(FREE, steps_per_day=steps)
        start = turbulence(dataclasses.replace(FREE, steps_per_day=60), days=2)
        end = start
        for _ in range(5 * steps):
            end = synthetic.step(end, flow)
        drifts.append(abs(synthetic.energy(end, flow) / synthetic.energy(start, flow) - 1))
    assert drifts[0] < 1e-4
    assert drifts[1] < drifts[0] / 16


@pytest.mark.parametrize("baroclinic", [False, True])
def test_rossby_waves_travel_at_the_speed_of_theory(baroclinic):
    # At rest a single wave is an exact solution, since q is proportional to psi and J(psi, q) = 0. It moves at
    # c = -beta / (k**2 + l**2 + G) if the layers agree and -beta / (k**2 + l**2 + 2 F) if they are opposite.
    flow = dataclasses.replace(FREE, ridge_height=0)
    vorticity = np.zeros((2, flow.meridional_modes, flow.zonal_modes + 1), complex)
    vorticity[:, 1, 3] = 1e-5, -1e-5 if baroclinic else 1e-5
    k, l_ = 3 * 2 * np.pi / flow.length, 2 * np.pi / flow.width
    stretching = 2 * flow.deformation_radius**-2 if baroclinic else flow.external_radius**-2
    speed = -flow.beta / (k**2 + l_**2 + stretching)
    later = vorticity
    for _ in range(2 * flow.steps_per_day):
        later = synthetic.step(later, flow)
    expected = vorticity * np.exp(-1j * k * speed * 2 * synthetic.DAY)
    # The Runge-Kutta phase error is (w dt)**5 / 120 a step; w dt < 0.08 gives 3e-8 a step and 1e-6 in thirty.
    np.testing.assert_allclose(later, expected, atol=1e-6 * 1e-5)


def test_unstable_waves_grow_as_phillips_found():
    # Uniform winds U_m + U_s over U_m - U_s, rigid lid, K2 = k**2 + l**2 (Pedlosky 1987, section 7.11):
    # c = U_m - beta (K2 + F) / (K2 (K2 + 2 F)) +- sqrt(beta**2 F**2 - U_s**2 K2**2 (4 F**2 - K2**2)) / (K2 (K2 + 2 F)).
    flow = dataclasses.replace(FREE, ridge_height=0, external_radius=INFINITE, uniform_wind=(30.0, 2.0))
    stretching, growing = flow.deformation_radius**-2, 0

    def order(speed: complex) -> tuple[float, float]:  # two growing and decaying waves share the real part
        return round(speed.real, 6), speed.imag

    for k_mode, l_mode in ((2, 1), (5, 1), (7, 2), (20, 6)):
        matrix = np.empty((2, 2), complex)
        for layer in (0, 1):  # the answer of this wave to itself is linear: products land in other wavenumbers
            vorticity = np.zeros((2, flow.meridional_modes, flow.zonal_modes + 1), complex)
            vorticity[layer, l_mode - 1, k_mode] = 1e-9
            matrix[:, layer] = synthetic.tendency(vorticity, flow)[:, l_mode - 1, k_mode] / 1e-9
        k = 2 * np.pi * k_mode / flow.length
        k2 = k**2 + (np.pi * l_mode / flow.width) ** 2
        root = np.sqrt(complex(flow.beta**2 * stretching**2 - 14**2 * k2**2 * (4 * stretching**2 - k2**2)))
        middle = 16 - flow.beta * (k2 + stretching) / (k2 * (k2 + 2 * stretching))
        expected = middle + np.array([root, -root]) / (k2 * (k2 + 2 * stretching))
        found = np.linalg.eigvals(matrix) * 1j / k
        np.testing.assert_allclose(sorted(found, key=order), sorted(expected, key=order), rtol=1e-9)
        growing += bool((k * expected.imag).max() * synthetic.DAY > 0.1)
    assert growing == 2  # the middle two; the first is too long and the last too short


def test_rolling_longitude_rolls_the_answer():
    vorticity = turbulence(ROUND)
    shift = np.exp(-1j * np.arange(ROUND.zonal_modes + 1) * 2 * np.pi * 5 / 64)  # five of 64 points to the east
    plain, rolled = vorticity, vorticity * shift
    for _ in range(2 * ROUND.steps_per_day):
        plain, rolled = synthetic.step(plain, ROUND), synthetic.step(rolled, ROUND)
    plain_map = synthetic.height_maps(plain, ROUND, 32, 64)
    rolled_map = synthetic.height_maps(rolled, ROUND, 32, 64)
    # rounding (1e-16) grows at most tenfold a day
    np.testing.assert_allclose(rolled_map, np.roll(plain_map, 5, axis=-1), atol=1e-11 * abs(plain_map).max())


def test_a_coarser_grid_shows_the_same_flow():
    # 96 latitudes have the centres of 32 among them (every third, from the second), 128 longitudes those of 64.
    vorticity = turbulence(ROUND)
    fine, coarse = (synthetic.height_maps(vorticity, ROUND, *shape) for shape in ((96, 128), (32, 64)))
    np.testing.assert_allclose(fine[:, 1::3, ::2], coarse, atol=1e-10 * abs(coarse).max())


# --- the archive ------------------------------------------------------------------------------------------------------


def test_channel_behaves_like_daily_weather(channel):
    # Daily mean-sea-level pressure: correlation 0.7 to 0.9 from one day to the next, none after ten.
    # 60 m of height near the ground are 7 hPa.
    for name, low, high in (("z_upper", 120, 230), ("z_lower", 40, 90)):
        anomaly = channel[name] - channel[name].mean("time")
        variance = float((anomaly**2).mean())
        lagged = [float((anomaly.values[lag:] * anomaly.values[:-lag]).mean()) / variance for lag in (1, 10)]
        assert low < variance**0.5 < high
        assert 0.7 < lagged[0] < 0.92
        assert abs(lagged[1]) < 0.3
        halves = [float((part**2).mean()) for part in (anomaly[:100], anomaly[100:])]
        assert 0.75 < halves[0] / halves[1] < 1.33


def test_channel_follows_the_conventions(channel):
    assert channel.z_upper.dims == channel.z_lower.dims == ("time", "latitude", "longitude")
    assert channel.z_upper.dtype == np.float32 and channel.z_upper.shape == (200, 32, 64)
    assert channel.z_upper.attrs["units"] == "m" and "standard_name" not in channel.z_upper.attrs
    assert channel.attrs["Conventions"] == "CF-1.11" and channel.attrs["source"].startswith("simulated")
    assert channel.latitude.attrs["units"] == "degrees_north" and channel.longitude.attrs["units"] == "degrees_east"
    assert channel.time.values[0] == np.datetime64("2001-01-01") and np.all(
        np.diff(channel.time) == np.timedelta64(1, "D")
    )
    # cell centres: half a cell from the walls at 45 -+ 22.48 degrees (5000 km), and evenly spaced around the circle
    half_width = np.rad2deg(5.0e6 / 6.371e6) / 2
    assert float(channel.latitude[0]) == pytest.approx(45 - half_width * 31 / 32)
    np.testing.assert_allclose(np.diff(channel.longitude), 360 / 64)
    # westerlies: the height falls towards the pole; and the mean over the channel is left out
    mean = channel.z_upper.mean(("time", "longitude"))
    assert mean[0] > 100 > -100 > mean[-1]
    assert abs(float(channel.z_upper.mean(("latitude", "longitude")).std())) < 25


def test_same_seed_same_bits_other_seed_other_weather():
    first, again, other = (qg_channel(3, seed=seed, spinup_days=5) for seed in (3, 3, 4))
    xr.testing.assert_identical(first, again)
    assert abs(first.z_upper - other.z_upper).max() > 10


def test_write_roundtrips_and_refuses_to_overwrite(tmp_path):
    shares: list[float] = []
    path = write_qg_channel(tmp_path / "new" / "qg.zarr", days=70, spinup_days=1, progress=shares.append)
    expected = qg_channel(70, spinup_days=1)
    with xr.open_zarr(path, chunks=None, consolidated=False) as stored:
        xr.testing.assert_identical(stored.load(), expected)
        assert stored.z_upper.encoding["chunks"] == (64, 32, 64)
    assert shares == sorted(shares) and shares[-1] == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["qg.zarr"]
    with pytest.raises(UserError, match="exists already"):
        write_qg_channel(path, days=1)


def test_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_qg_channel(tmp_path / "qg.zarr", days=3, progress=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: qg_channel(0), "days"),
        (lambda: qg_channel(5, nlon=2), "nlon"),
        (lambda: ChannelFlow(width=-1.0), "width"),
        (lambda: ChannelFlow(zonal_modes=0), "zonal_modes"),
        (lambda: qg_channel(60, flow=ChannelFlow(steps_per_day=4)), "steps_per_day"),
        (lambda: travelling_waves(missing=1.5), "missing"),
        (lambda: travelling_waves(calendar="mayan"), "mayan"),
        (lambda: travelling_waves(cadence="often"), "often"),
        (lambda: travelling_waves(0), "days"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


# --- travelling waves -------------------------------------------------------------------------------------------------


def test_waves_obey_the_formula_in_their_attributes():
    waves = travelling_waves(10, cadence="6h", noise=0, levels=(500, 850), variables=("z", "t"))
    for name in ("z", "t"):
        attributes = waves[name].attrs
        days, pressure = 31 / 4, 850
        expected = 0.0
        for m in range(3):
            k, speed = attributes["zonal_wavenumber"][m], attributes["phase_speed"][m]
            angle = k * np.deg2rad(waves.longitude.values - speed * days) - attributes["phase"][m] - pressure / 1000
            expected = expected + attributes["amplitude"][m] * np.cos(angle)
        expected = expected * np.sin(np.pi * 2.5 / 8)  # the third of eight latitudes
        np.testing.assert_allclose(waves[name][31, 1, 2], expected, atol=1e-5)


def test_noise_gaps_and_length_leave_the_waves_alone():
    clean = travelling_waves(60, seed=5, noise=0)
    rough = travelling_waves(30, seed=5, noise=0.2, missing=0.3)
    xr.testing.assert_identical(clean.isel(time=slice(30)), travelling_waves(30, seed=5, noise=0))
    error = (rough.z - clean.z).values  # 30 * 8 * 16 = 3840 values: the share is known to 0.007, the deviation to 1.4 %
    assert abs(np.isnan(error).mean() - 0.3) < 0.03
    assert np.nanstd(error) == pytest.approx(0.2, rel=0.06)


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_calendars_survive_the_file(calendar, tmp_path):
    waves = travelling_waves(400, calendar=calendar, missing=0.1)
    waves.to_netcdf(tmp_path / "waves.nc")
    with xr.open_dataset(tmp_path / "waves.nc") as stored:
        assert stored.time.dt.calendar == {"standard": "proleptic_gregorian"}.get(calendar, calendar)
        # 1 January 2002 is 365 days later, or 360
        assert stored.time.dt.year.values[{"360_day": 360}.get(calendar, 365)] == 2002
        np.testing.assert_array_equal(stored.z, waves.z)


def test_synthetic_needs_no_torch():
    code = "import sys, sciJEPA.synthetic; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
