import numpy as np
import pytest
import xarray as xr

import sciJEPA.judging.baselines as home
from sciJEPA.archive import Archive, open_archive
from sciJEPA.forecast import target_weights
from sciJEPA.judging.baselines import (
    Climatology,
    DampedPersistence,
    EOFRidge,
    Persistence,
    fields,
    leading_patterns,
    windows,
)
from sciJEPA.loader import WindowReader
from sciJEPA.normalize import fit_normalizer
from sciJEPA.probes import rows_of
from sciJEPA.synthetic import travelling_waves

LEADS = (1, 3, 10)


def seasonal(days: int = 1200, amplitude: float = 20.0) -> xr.Dataset:
    """Waves on top of a seasonal cycle that differs from row to row; three years and more."""
    ds = travelling_waves(days, variables=("z", "t"))
    year = 2 * np.pi * np.arange(days) / 365.25
    rows = xr.DataArray(np.linspace(1, 2, 8), dims="latitude")
    cycle = amplitude * xr.DataArray(np.sin(year), dims="time", coords={"time": ds.time}) * rows
    for name in ("z", "t"):
        ds[name] = (ds[name] + cycle + 280).astype("float32").assign_attrs(ds[name].attrs)
    return ds


def reader_of(ds: xr.Dataset, stop: int) -> WindowReader:
    archive = open_archive(ds)
    return WindowReader(archive, fit_normalizer(archive, ((0, stop),)))


def physical(reader: WindowReader, forecast: np.ndarray, steps: np.ndarray) -> np.ndarray:
    archive: Archive = reader.archive
    shape = (len(steps), len(archive.channels), len(archive.latitude), len(archive.longitude))
    return reader.normalizer.invert(forecast.reshape(shape), archive.time[steps])


def test_climatology_is_an_anomaly_of_zero() -> None:
    reader = reader_of(travelling_waves(50), 40)
    forecasts = Climatology(reader, LEADS).predict(np.arange(5))
    assert [forecast.shape for forecast in forecasts] == [(5, 128)] * 3
    assert not np.any(forecasts)


def test_climatology_in_physical_units_is_that_of_the_valid_time() -> None:
    reader = reader_of(seasonal(), 1000)
    steps = np.array([1000, 1100])
    forecast = physical(reader, Climatology(reader, [10]).predict(steps)[0], steps + 10)
    np.testing.assert_array_equal(forecast, reader.normalizer.climatology(reader.archive.time[steps + 10]))


def test_persistence_in_physical_units_is_the_field_of_the_issue_time() -> None:
    # also where the season moves on: anomalies are against the climatology of the valid time
    reader = reader_of(seasonal(), 1000)
    assert reader.normalizer.annual > 0
    steps = np.array([1000, 1050, 1100])
    now = np.concatenate([reader.archive.read(step, step + 1) for step in steps])
    for lead, forecast in zip(LEADS, Persistence(reader, LEADS).predict(steps), strict=True):
        np.testing.assert_allclose(physical(reader, forecast, steps + lead), now, atol=1e-3)
    season = reader.normalizer.climatology(reader.archive.time[[1100, 1110]])
    assert abs(season[1] - season[0]).max() > 1  # the shift that was accounted for


def test_rows_are_fields_and_windows() -> None:
    reader = reader_of(travelling_waves(50, variables=("z", "t")), 40)
    steps = np.array([7, 20])
    np.testing.assert_array_equal(
        fields(reader, 2).read(steps), reader.read(steps + 2, 1).values.numpy().reshape(2, -1)
    )
    whole = windows(reader, 3)
    assert (fields(reader).width, whole.width) == (256, 768)
    # a window ends at its issue step
    last = whole.read(steps).reshape(2, 2, 3, 8, 16)[:, :, -1].reshape(2, -1)
    np.testing.assert_array_equal(last, fields(reader).read(steps))


def autoregressive(phi: float, steps: int, missing: float = 0.0) -> xr.Dataset:
    """x(t) = phi x(t - 1) + noise at every point of a grid."""
    rng = np.random.default_rng(0)
    ds = travelling_waves(steps)
    noise = rng.normal(size=(steps, 8, 16))
    x = np.zeros((steps, 8, 16))
    x[0] = noise[0] / np.sqrt(1 - phi**2)
    for t in range(1, steps):
        x[t] = phi * x[t - 1] + noise[t]
    x[rng.random(x.shape) < missing] = np.nan
    ds["z"] = (ds["z"].dims, x.astype("float32"), ds["z"].attrs)
    return ds


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_damped_persistence_recovers_the_coefficient_of_an_ar1_process(missing: float) -> None:
    # The factor at lead k is phi^k. One point's estimate scatters by sqrt((1 - phi^2) / n) = 0.03 for phi = 0.8 and
    # n = 500, the mean of 128 points by 0.003; that the mean over time is removed first lowers it by 0.02 at lead 4
    # (Kendall 1954). A value that is missing at the issue time counts in neither sum, nor does one whose outcome is.
    reader = reader_of(autoregressive(0.8, 560, missing), 500)
    damped = DampedPersistence.fit(reader, [1, 2, 4], np.arange(490))
    for lead, factor in zip((1, 2, 4), damped.factors, strict=True):
        assert factor.mean() == pytest.approx(0.8**lead, abs=0.03)


def test_damped_persistence_is_the_formula() -> None:
    reader = reader_of(travelling_waves(60), 50)
    train = np.arange(40)
    damped = DampedPersistence.fit(reader, [2], train)
    now, later = (reader.read(train + shift, 1).values.numpy().reshape(40, -1) for shift in (0, 2))
    wanted = (now * later).sum(0) / (now**2).sum(0)
    np.testing.assert_allclose(damped.factors[0], wanted, rtol=1e-5)
    steps = np.array([50, 55])
    np.testing.assert_allclose(damped.predict(steps)[0], fields(reader).read(steps) * wanted, atol=1e-5)


def test_a_point_that_is_never_observed_is_forecast_as_climatology() -> None:
    ds = travelling_waves(60)
    ds["z"][{"latitude": 0, "longitude": 0}] = np.nan
    reader = reader_of(ds, 50)
    damped = DampedPersistence.fit(reader, [1], np.arange(40))
    assert damped.predict(np.array([50]))[0][0, 0] == 0


@pytest.mark.parametrize("times", [40, 300], ids=["more points than times", "more times than points"])
def test_patterns_are_those_of_a_singular_value_decomposition(times: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(times + 10, 128)) * np.linspace(1, 3, 128) + 5
    scale = rng.uniform(0.5, 1.5, 128)
    train = np.arange(times)
    patterns = leading_patterns(rows_of(values), train, scale, 6)
    axes = np.linalg.svd((values[train] - values[train].mean(0)) * scale, full_matrices=False)[2][:6]
    found = patterns / scale[:, None]
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(abs(np.einsum("pc,cp->c", found, axes)), 1, atol=1e-6)  # same up to sign, same order
    assert patterns.shape == (128, 6)


def test_patterns_come_from_the_training_times_alone() -> None:
    values = np.random.default_rng(0).normal(size=(60, 20))
    changed = values.copy()
    changed[50:] = 1e6
    scale, train = np.ones(20), np.arange(50)
    one, two = (leading_patterns(rows_of(v), train, scale, 3) for v in (values, changed))
    np.testing.assert_array_equal(one, two)


def test_eofs_and_ridge_forecast_waves_that_travel() -> None:
    # Three waves are six patterns that turn into each other: a linear model knows their future up to the noise of 0.1.
    reader = reader_of(travelling_waves(300), 200)
    weights = target_weights(reader.archive)
    method = EOFRidge.fit(reader, [1, 5], np.arange(200), np.arange(200, 240), weights)
    steps = np.arange(240, 290)
    for lead, forecast in zip((1, 5), method.predict(steps), strict=True):
        truth = reader.read(steps + lead, 1).values.numpy().reshape(50, -1)
        error = np.sqrt(((forecast - truth) ** 2).mean()) * reader.normalizer.spread[0]
        assert error < 0.12


def test_every_lead_has_the_best_number_of_patterns() -> None:
    reader = reader_of(travelling_waves(200, noise=1.0), 120)
    weights = target_weights(reader.archive)
    method = EOFRidge.fit(reader, [1, 5], np.arange(115), np.arange(120, 150), weights)
    errors = np.array([candidate.error_.sum(axis=1) for candidate in method.candidates])
    assert len(method.candidates) == 3  # 10, 20 and 40 of at most 115 / 2
    assert list(method.chosen) == errors.argmin(axis=0).tolist()
    steps = np.arange(150, 160)
    for lead, number in enumerate(method.chosen):
        np.testing.assert_array_equal(method.predict(steps)[lead], method.candidates[number].predict(steps)[lead])


def test_few_points_or_times_leave_at_least_one_pattern() -> None:
    reader = reader_of(travelling_waves(40, nlat=2, nlon=8), 30)
    method = EOFRidge.fit(reader, [1], np.arange(12), np.arange(15, 25), target_weights(reader.archive))
    assert len(method.candidates) == 1
    assert np.isfinite(method.predict(np.array([30]))[0]).all()


def test_blocks_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(travelling_waves(120), 80)

    def forecasts() -> list[np.ndarray]:
        weights = target_weights(reader.archive)
        eof = EOFRidge.fit(reader, [1, 2], np.arange(60), np.arange(65, 80), weights)
        damped = DampedPersistence.fit(reader, [1, 2], np.arange(60))
        return [*eof.predict(np.arange(90, 100)), *damped.predict(np.arange(90, 100))]

    whole = forecasts()
    monkeypatch.setattr(home, "BLOCK_ROWS", 7)
    for one, two in zip(whole, forecasts(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)


def test_patterns_too_large_for_memory_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = rows_of(rng.normal(size=(60, 3)) @ rng.normal(size=(3, 40)) * 3 + 0.1 * rng.normal(size=(60, 40)))
    scale, train = np.linspace(0.5, 1.5, 40), np.arange(60)
    exact = leading_patterns(rows, train, scale, 3)
    monkeypatch.setattr(home, "LARGEST_GRAM", 10)
    other = leading_patterns(rows, train, scale, 3)
    np.testing.assert_allclose(abs(other), abs(exact), atol=1e-3)
