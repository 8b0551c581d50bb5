import json

import numpy as np
import pytest
import xarray as xr

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.judging.field_statistics import FLOOR, MOMENTS, log_spectrum, moments, moments_and_spectrum, wavenumbers
from sciJEPA.loader import WindowReader
from sciJEPA.normalize import fit_normalizer
from sciJEPA.probing.index import RegressionProbe
from sciJEPA.space import Space
from sciJEPA.synthetic import travelling_waves

PERIODIC = ("periodic", "periodic")


def box(*shape: int, lengths: tuple[float, ...] | None = None, sides: tuple[str, str] = PERIODIC) -> Space:
    lengths = tuple(map(float, shape)) if lengths is None else lengths
    coordinates = tuple(np.arange(size) * length / size for size, length in zip(shape, lengths, strict=True))
    dims = ("x", "y", "z")[: len(shape)]
    return Space(kind="box", dims=dims, shape=shape, coordinates=coordinates, sides=(sides,) * len(shape))


def decaying(trajectories: int = 60, steps: int = 6, cells: int = 16) -> xr.Dataset:
    """Noise of 8 waves or fewer along each side that decays with a viscosity: |k|^2 times it, in each step."""
    rng = np.random.default_rng(0)
    viscosity = np.exp(rng.uniform(np.log(0.002), np.log(0.02), trajectories))
    waves = np.fft.fftfreq(cells, 1 / cells)
    squares = waves[:, None] ** 2 + waves**2
    start = np.fft.fft2(rng.normal(size=(trajectories, cells, cells)))
    decay = np.exp(-viscosity[:, None, None, None] * squares * (1 + np.arange(steps))[:, None, None])
    u = np.fft.ifft2(start[:, None] * decay).real.astype(np.float32)
    coords = {"viscosity": ("trajectory", viscosity), "time": np.arange(steps), "x": np.arange(cells)}
    conditions = {dim: ["periodic", "periodic"] for dim in ("x", "y")}
    attrs = {"boundary_conditions": json.dumps(conditions)}
    return xr.Dataset({"u": (("trajectory", "time", "x", "y"), u)}, {**coords, "y": np.arange(cells)}, attrs)


def test_a_wave_has_its_power_in_its_shell() -> None:
    # cos(3 x) over two sides: |F|^2 is 1/4 at k = 3 and at -3, the shell of radius 3 holds them and others
    space = box(16, 16)
    numbers = wavenumbers(space, "waves")
    wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16)[:, None] * np.ones(16)
    power = 10 ** log_spectrum(wave[None], numbers)[0] - FLOOR
    assert power[2] * (numbers == 3).sum() == pytest.approx(0.5)
    assert np.delete(power, 2).max() < 1e-12


def test_all_power_but_that_of_the_mean_is_somewhere() -> None:
    field = np.random.default_rng(0).normal(size=(3, 12, 8)) + 5
    numbers = wavenumbers(box(12, 8), "noise")
    power = 10 ** log_spectrum(field, numbers) - FLOOR
    shells = np.bincount(numbers.ravel())[1:]
    np.testing.assert_allclose((power * shells).sum(axis=1), field.var(axis=(1, 2)), rtol=1e-6)  # Parseval


def test_shells_count_waves_of_the_longest_side() -> None:
    # the second side is half as long, so its first wave is the second of the first side
    numbers = wavenumbers(box(8, 4, lengths=(2.0, 1.0)), "oblong")
    assert numbers[:5, 0].tolist() == [0, 1, 2, 3, 4] and numbers[0, :3].tolist() == [0, 2, 4]


def test_moments_of_skewed_and_of_constant_fields() -> None:
    # three zeros and a four: mean 1, variance 3, third moment (3 * -1 + 27) / 4 = 6, fourth (3 + 81) / 4 = 21
    found = moments(np.array([[0.0, 0.0, 0.0, 4.0], [7.0, 7.0, 7.0, 7.0 + 1e-9]]))
    np.testing.assert_allclose(found[0], [1, 3**0.5, 6 / 3**1.5, 21 / 9 - 3])
    assert found[1, 2:].tolist() == [0, 0]


def test_steps_are_tokens_and_depend_on_their_own_field_alone() -> None:
    archive = open_archive(decaying(4))
    reader = WindowReader(archive, fit_normalizer(archive, ((0, len(archive)),)))
    rows = moments_and_spectrum(reader, 3)
    assert rows.width == 3 * (MOMENTS + 8)  # shells 1 to 8
    both = rows.read(np.array([4, 5])).reshape(2, 3, -1)
    np.testing.assert_array_equal(both[0, 1:], both[1, :2])  # the same steps, one issue time later


def test_the_control_tells_a_viscosity() -> None:
    ds = decaying()
    archive = open_archive(ds)
    reader = WindowReader(archive, fit_normalizer(archive, ((0, 40 * 6),)))
    rows = moments_and_spectrum(reader, 2)
    ends = np.arange(60) * 6 + 1
    values = xr.DataArray(rows.read(ends).reshape(60, 2, -1), dims=("sample", "token", "latent"))
    target = np.log(ds["viscosity"]).rename(trajectory="sample")
    fitted, test = slice(0, 45), slice(45, None)
    probe = RegressionProbe(pool="flatten", standardise=True).fit(values[fitted], target[fitted], dim="sample")
    assert probe.score(values[test], target[test]) > 0.9


def test_sides_that_do_not_close_are_tapered() -> None:
    # a ramp jumps at the seam of a circle, which spreads its power over all waves
    ramp = decaying(3)
    ramp["u"] = ramp["u"] * 0 + ramp["x"].astype(np.float32) + np.arange(3)[:, None, None, None].astype(np.float32)
    spectra = []
    for attrs in (ramp.attrs, {}):
        archive = open_archive(ramp.assign_attrs(attrs) if attrs else ramp.drop_attrs())
        reader = WindowReader(archive, fit_normalizer(archive, ((0, len(archive)),)))
        spectra.append(moments_and_spectrum(reader, 1).read(np.array([0]))[0, MOMENTS:])
    assert spectra[1][-1] < spectra[0][-1] - 1


def test_other_spaces_are_refused() -> None:
    archive = open_archive(travelling_waves(30))
    reader = WindowReader(archive, fit_normalizer(archive, ((0, 30),)))
    with pytest.raises(UserError, match="evenly spaced cells of a box"):
        moments_and_spectrum(reader, 2)
