import dataclasses
from functools import partial

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA import moments, normalize
from sciJEPA.archive import Archive, open_archive
from sciJEPA.errors import UserError
from sciJEPA.loader import WindowReader
from sciJEPA.moments import GAP_RIDGE
from sciJEPA.normalize import (
    MODES,
    Normalizer,
    calendar_features,
    fit_normalizer,
    harmonic_basis,
    progress,
    read_blocks,
)
from sciJEPA.storage.chunks import ChunkReader
from sciJEPA.synthetic import travelling_waves


def on(time: pd.Index, field: np.ndarray, **variables: np.ndarray) -> Archive:
    """An archive with the variable z = `field` of shape (T, 3, 4), and others."""
    coords = {"time": time, "latitude": [30.0, 0.0, -30.0], "longitude": [0.0, 90.0, 180.0, 270.0]}
    dims = ("time", "latitude", "longitude")
    return open_archive(xr.Dataset({k: (dims, v) for k, v in {"z": field, **variables}.items()}, coords))


def noise(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, 3, 4))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def days(steps: int, calendar: str = "standard") -> pd.Index:
    return xr.date_range("2001-01-01", periods=steps, freq="D", calendar=calendar, use_cftime=calendar != "standard")


def assert_same(first: Normalizer, second: Normalizer, rtol: float = 1e-5) -> None:
    for name in ("coefficients", "spread", "missing_share"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=rtol, atol=1e-6, err_msg=name)


# --- where in the year and in the day ---------------------------------------------------------------------------------


def test_a_year_begins_at_zero():
    assert progress(pd.DatetimeIndex(["2003-01-01"])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    "calendar, date, whole_days, length",
    [
        ("standard", (2001, 3, 1), 59, 365),
        ("standard", (2004, 3, 1), 60, 366),
        ("standard", (1900, 3, 1), 59, 365),
        ("standard", (2000, 12, 31), 365, 366),
        ("proleptic_gregorian", (2004, 3, 1), 60, 366),
        ("noleap", (2004, 3, 1), 59, 365),
        ("all_leap", (2001, 3, 1), 60, 366),
        ("julian", (1900, 3, 1), 60, 366),
        ("360_day", (2001, 2, 30), 59, 360),
        ("360_day", (2001, 12, 30), 359, 360),
    ],
)
def test_progress_follows_the_calendar(calendar, date, whole_days, length):
    # whole_days are those since the first of January, length those of the year.
    year, month, day = date
    time = xr.date_range(
        f"{year}-{month:02}-{day:02}T18:00", periods=1, freq="D", calendar=calendar, use_cftime=calendar != "standard"
    )
    np.testing.assert_allclose(progress(time), [[(whole_days + 0.75) / length, 0.75]])


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "julian"])
def test_progress_rises_evenly_through_each_year_and_starts_again(calendar):
    time = xr.date_range("2003-01-01", periods=4 * 1500, freq="6h", calendar=calendar, use_cftime=True)
    year, day = progress(time).T
    assert year.min() == 0 and year.max() < 1 and day.max() == 0.75
    steps = np.diff(year)
    assert np.allclose(steps[steps > 0], 1 / 4 / 365, rtol=0.02)
    assert (steps < 0).sum() == np.asarray(time.year).max() - 2003


def test_plain_numbers_have_neither_year_nor_day():
    assert not progress(pd.RangeIndex(3)).any()
    np.testing.assert_array_equal(calendar_features(pd.RangeIndex(2)), [[0, 1, 0, 1]] * 2)


def test_calendar_features_are_on_two_circles():
    features = calendar_features(pd.date_range("2001", periods=900, freq="7h"))
    assert features.dtype == np.float32 and features.shape == (900, 4)
    np.testing.assert_allclose((features.reshape(900, 2, 2) ** 2).sum(axis=2), 1, atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_progress_warns_of_nothing():
    progress(pd.date_range("2001", periods=3))
    progress(days(3, "360_day"))


# --- statistics -------------------------------------------------------------------------------------------------------


def test_mean_and_spread_of_a_short_archive_are_worked_by_hand():
    # Below two years there is no seasonal cycle: the climatology is the mean, 2, and the anomalies are -1, 0, 1, 0.
    field = np.broadcast_to(np.array([1.0, 2.0, 3.0, 2.0])[:, None, None], (4, 3, 4))
    normalizer = fit_normalizer(on(days(4), field), ((0, 4),))
    assert normalizer.coefficients.shape == (1, 1, 3, 4)
    np.testing.assert_allclose(normalizer.coefficients, 2)
    np.testing.assert_allclose(normalizer.spread, np.sqrt(2 / 4))
    assert normalizer.missing_share.tolist() == [0.0]
    assert normalizer.trained_on[0].startswith("2001-01-01") and normalizer.trained_on[1].startswith("2001-01-04")


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_data_outside_of_the_training_steps_change_nothing(missing):
    field = noise(1000)
    field[np.random.default_rng(1).random(field.shape) < missing] = np.nan
    other = field.copy()
    other[:20], other[800:] = 1e6, np.nan
    first, second = (fit_normalizer(on(days(1000), f), ((20, 800),)) for f in (field, other))
    for name in ("coefficients", "spread", "missing_share"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.trained_on == second.trained_on


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
@pytest.mark.parametrize("steps", [720, 1600])
def test_a_seasonal_cycle_is_recovered(calendar, steps):
    if calendar != "360_day" and steps == 720:
        steps = 730
    time = days(steps, calendar)
    angle = 2 * np.pi * progress(time)[:, 0, None, None]
    cycle = 280 + 10 * np.cos(angle) + 3 * np.sin(2 * angle) - 2 * np.cos(3 * angle)
    normalizer = fit_normalizer(on(time, cycle + 0.5 * noise(steps)), ((0, steps),))
    assert (normalizer.annual, normalizer.daily) == (3, 0)
    # Standard error of a coefficient: 0.5 sqrt(2 / steps) = 0.026 at most; 84 are compared.
    expected = np.zeros(7)
    expected[[0, 2, 3, 6]] = 280, 10, 3, -2
    np.testing.assert_allclose(normalizer.coefficients[:, 0], np.tile(expected[:, None, None], (3, 4)), atol=0.12)
    np.testing.assert_allclose(normalizer.spread, 0.5, rtol=0.05)
    np.testing.assert_allclose(normalizer.climatology(time)[:, 0], np.broadcast_to(cycle, (steps, 3, 4)), atol=0.2)


def test_one_year_has_no_seasonal_cycle():
    assert fit_normalizer(on(days(400), noise(400)), ((0, 400),)).annual == 0


@pytest.mark.parametrize("modes", [{"default": "anomaly"}, {"default": "zscore"}])
@pytest.mark.parametrize("steps, seasonal", [(700, False), (740, True)])
def test_tokens_know_the_time_of_the_year_from_two_years_of_training_on(modes, steps, seasonal):
    archive = on(days(900), noise(900))
    normalizer = fit_normalizer(archive, ((0, steps),), modes)
    features = WindowReader(archive, normalizer).read([5], 4).calendar.numpy()[0]
    assert normalizer.seasonal is seasonal
    np.testing.assert_array_equal(features[:, 2:], calendar_features(archive.time[5:9])[:, 2:])
    np.testing.assert_array_equal(features[:, :2], calendar_features(archive.time[5:9])[:, :2] * seasonal)


def test_a_daily_cycle_is_recovered_from_sub_daily_steps():
    time = pd.date_range("2001", periods=8 * 60, freq="3h")
    angle = 2 * np.pi * progress(time)[:, 1, None, None]
    cycle = 5 + 4 * np.sin(angle) + np.cos(2 * angle)
    normalizer = fit_normalizer(on(time, cycle + 0.1 * noise(len(time))), ((0, len(time)),))
    assert (normalizer.annual, normalizer.daily) == (0, 2)
    # Standard error 0.1 sqrt(2 / 480) = 0.0065
    np.testing.assert_allclose(normalizer.coefficients[:, 0].mean(axis=(1, 2)), [5, 4, 0, 0, 1], atol=0.03)


@pytest.mark.parametrize("freq", ["6h", "8h"])
def test_harmonics_that_the_cadence_cannot_tell_apart_do_no_harm(freq):
    # Four times a day sin(2 * 2 pi t) is zero, three times a day the second harmonic looks like the first.
    time = pd.date_range("2001", periods=600, freq=freq)
    field = 300 + 4 * np.sin(2 * np.pi * progress(time)[:, 1, None, None]) + 0.1 * noise(600)
    normalizer = fit_normalizer(on(time, field), ((0, 300),))
    later, _ = normalizer.apply(field[300:, None].astype(np.float32), time[300:])
    assert np.abs(normalizer.coefficients[1:]).max() < 5
    np.testing.assert_allclose(later.std(), 1, rtol=0.05)


@pytest.mark.parametrize("freq, steps", [("MS", 240), ("QS", 80), ("YS", 40)])
def test_long_steps_have_a_climatology_too(freq, steps):
    time = xr.date_range("2000-01-01", periods=steps, freq=freq, calendar="noleap", use_cftime=True)
    cycle = 280 + 10 * np.cos(2 * np.pi * progress(time)[:, 0, None, None])
    field = (cycle + 0.5 * noise(steps)).astype(np.float32)
    normalizer = fit_normalizer(on(time, field), ((0, steps // 2),))
    later, _ = normalizer.apply(field[steps // 2 :, None], time[steps // 2 :])
    # Half of the steps fit up to 7 coefficients a point, for 20 steps that is much.
    assert 0.8 < later.std() < 1.4 and abs(later.mean()) < 0.3


# --- missing values ---------------------------------------------------------------------------------------------------


def test_missing_values_leave_complete_points_alone():
    time, field = days(1100), 280 + noise(1100)
    gaps = field.copy()
    gaps[:400, 0, 0], gaps[5, 1, 1], gaps[:, 2, 3] = np.nan, np.nan, np.nan
    dense, sparse = (fit_normalizer(on(time, f), ((0, 1100),)) for f in (field, gaps))
    complete = np.ones((3, 4), dtype=bool)
    complete[[0, 1, 2], [0, 1, 3]] = False
    np.testing.assert_allclose(sparse.coefficients[:, 0, complete], dense.coefficients[:, 0, complete], rtol=1e-5)
    np.testing.assert_allclose(sparse.missing_share, (400 + 1 + 1100) / (1100 * 12))


def test_a_point_with_gaps_has_the_least_squares_fit_of_what_is_there():
    # Minimises |x - B c|^2 + GAP_RIDGE * missing * |harmonics|^2: solved here with the ridge as extra rows.
    time, field = days(1100), noise(1100) + 3 * np.sin(np.arange(1100) / 58)[:, None, None]
    field[np.random.default_rng(2).random(field.shape) < 0.3] = np.nan
    normalizer = fit_normalizer(on(time, field), ((0, 1100),))
    basis = harmonic_basis(time, 3, 0)
    squares = 0.0
    for i, j in np.ndindex(3, 4):
        there = np.isfinite(field[:, i, j])
        penalty = np.sqrt(GAP_RIDGE * (~there).sum()) * np.eye(7)[1:]
        rows, values = np.vstack([basis[there], penalty]), np.append(field[there, i, j], np.zeros(6))
        expected = np.linalg.lstsq(rows, values, rcond=None)[0]
        np.testing.assert_allclose(normalizer.coefficients[:, 0, i, j], expected, atol=1e-4)
        squares += ((field[there, i, j] - basis[there] @ expected) ** 2).sum()
    np.testing.assert_allclose(normalizer.spread, np.sqrt(squares / np.isfinite(field).sum()), rtol=1e-5)


@pytest.mark.parametrize("months", [(1, 2, 3), (6,)])
def test_a_point_seen_in_one_season_stays_sane_in_the_others(months):
    # Without the ridge, a point seen from January to March had a climatology of 580 K in October.
    time = days(5 * 365)
    field = 280 + 10 * np.cos(2 * np.pi * (progress(time)[:, 0, None, None] - 0.55)) + noise(len(time))
    field[~np.isin(time.month, months), 0, 0] = np.nan
    climatology = fit_normalizer(on(time, field), ((0, len(time)),)).climatology(time)
    assert climatology.min() > 265 and climatology.max() < 300


def test_points_that_are_never_seen_are_zero_and_flagged():
    time, field = days(50), noise(50)
    field[:, 1, 2] = np.nan
    normalizer = fit_normalizer(on(time, field), ((0, 50),))
    values, observed = normalizer.apply(field[:, None].astype(np.float32), time)
    assert observed is not None and not observed[:, 0, 1, 2].any() and observed.sum() == 50 * 11
    assert (values[:, 0, 1, 2] == 0).all() and np.isfinite(values).all()
    assert np.isfinite(normalizer.coefficients).all()


def test_a_first_block_without_any_value_does_no_harm(monkeypatch):
    time, field = days(90), 1e5 + noise(90)
    field[:40] = np.nan
    monkeypatch.setattr(normalize, "BLOCK_VALUES", 12 * 30)
    archive = dataclasses.replace(on(time, field), chunk_steps=1)
    assert len(list(read_blocks(ChunkReader(archive), 0, 90))) == 3
    normalizer = fit_normalizer(archive, ((0, 90),))
    np.testing.assert_allclose(normalizer.spread, rms(np.nanstd(field, axis=0)), rtol=1e-3)


# --- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk, values", [(1, 1), (7, 12 * 100), (365, 1)])
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_in_blocks_is_as_all_at_once(monkeypatch, chunk, values, missing):
    archive = open_archive(travelling_waves(900, nlat=3, nlon=8, variables=("z", "t"), missing=missing))
    whole = fit_normalizer(archive, ((30, 850),))
    monkeypatch.setattr(normalize, "BLOCK_VALUES", values)
    assert_same(fit_normalizer(dataclasses.replace(archive, chunk_steps=chunk), ((30, 850),)), whole)


@pytest.mark.parametrize("start, stop, chunk", [(0, 50, 7), (3, 50, 7), (13, 15, 7), (0, 50, 50), (5, 6, 1)])
def test_blocks_follow_each_other_and_the_chunks(monkeypatch, start, stop, chunk):
    monkeypatch.setattr(normalize, "BLOCK_VALUES", 12 * 15)
    archive = dataclasses.replace(on(days(50), noise(50)), chunk_steps=chunk)
    reader = ChunkReader(archive)
    blocks = [(first, fields.swapaxes(0, 1).copy()) for first, fields in read_blocks(reader, start, stop)]
    np.testing.assert_array_equal(np.concatenate([fields for _, fields in blocks]), archive.read(start, stop))
    assert [first for first, _ in blocks][1:] == [first + len(fields) for first, fields in blocks][:-1]
    assert all(first % chunk == 0 for first, _ in blocks[1:])


@pytest.mark.parametrize("chunks", [1, 8, 200])
def test_statistics_of_chunks_on_disk_are_those_in_memory(tmp_path, monkeypatch, chunks):
    # Blocks of 16 steps, in which some places have no value yet: what is measured from what must not depend on threads.
    ds = travelling_waves(200, nlat=4, nlon=8, variables=("z", "t"), missing=0.1)
    ds["z"] = 1e5 + ds["z"].where(ds["time"] > ds["time"][60])
    ds["t"][:, 1, 2] = np.nan
    ds.to_zarr(tmp_path / "a.zarr", encoding={name: {"chunks": (chunks, 4, 8)} for name in ("z", "t")})
    monkeypatch.setattr(normalize, "BLOCK_VALUES", 16 * 32)
    archive = open_archive(tmp_path / "a.zarr")
    found = fit_normalizer(archive, ((0, 200),))
    assert len(ChunkReader(archive).direct) == 2
    assert_same(found, fit_normalizer(open_archive(ds[["t", "z"]]), ((0, 200),)))
    for threads in (1, 3, 8):
        monkeypatch.setattr(normalize, "ChunkReader", partial(ChunkReader, threads=threads))
        for _ in range(5):
            again = fit_normalizer(archive, ((0, 200),))
            assert again.coefficients.tobytes() == found.coefficients.tobytes()
            assert again.spread.tobytes() == found.spread.tobytes()


def test_infinite_values_are_named_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(normalize, "BLOCK_VALUES", 16 * 32)
    for step in (0, 20, 150):
        ds = travelling_waves(200, nlat=4, nlon=8, variables=("z", "t"))
        ds["t"][:, 1, 2] = np.nan  # a place without any other value
        ds["t"][step, 1, 2] = -np.inf
        ds.to_zarr(tmp_path / f"{step}.zarr", encoding={name: {"chunks": (8, 4, 8)} for name in ("z", "t")})
        with pytest.raises(UserError, match=r"^t of .* has infinite values in the training split"):
            fit_normalizer(open_archive(tmp_path / f"{step}.zarr"), ((0, 200),))


# --- apply and invert -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_invert_undoes_apply(calendar):
    archive = open_archive(travelling_waves(900, variables=("z", "t"), calendar=calendar))
    normalizer = fit_normalizer(archive, ((0, 800),))
    fields, time = archive.read(780, 900), archive.time[780:900]
    anomalies, observed = normalizer.apply(fields, time)
    assert observed is None and anomalies.dtype == np.float32
    np.testing.assert_allclose(normalizer.invert(anomalies, time), fields, atol=1e-5)


def test_anomalies_of_the_training_steps_have_mean_zero_and_spread_one():
    archive = open_archive(travelling_waves(900, variables=("z", "t")))
    anomalies, _ = fit_normalizer(archive, ((0, 900),)).apply(archive.read(0, 900), archive.time)
    np.testing.assert_allclose(anomalies.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose((anomalies.astype(float) ** 2).mean(axis=(0, 2, 3)), 1, rtol=1e-5)


def test_small_variations_of_large_values_keep_their_spread():
    # Sums of squares of 1e5 in single precision would lose variations of 10; so would those around zero of 1e8.
    field = 1e5 + 10 * noise(400)
    spread = fit_normalizer(on(days(400), field), ((0, 400),)).spread
    np.testing.assert_allclose(spread, rms(field.std(axis=0)), rtol=1e-4)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize("pattern", [0.0, 1.0])
@pytest.mark.parametrize("level", [0.0, 7.3, 1e5])
@pytest.mark.parametrize("gap", [False, True])
def test_a_variable_that_does_not_vary_in_time_is_refused(steps, pattern, level, gap):
    constant = np.repeat(level + pattern * (1 + level) * noise(1, seed=3), steps, axis=0)
    if gap:
        constant[: steps // 3, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"^still of <memory> does not vary in time in the \d+ training steps"):
        fit_normalizer(on(days(steps), noise(steps), still=constant), ((0, steps),))


def test_variations_of_a_millionth_are_variations():
    # Density of sea water: 1045 kg m-3, give or take 0.005. Float32 resolves 1e-4 there.
    field = 1045 + 0.005 * noise(400)
    np.testing.assert_allclose(fit_normalizer(on(days(400), field), ((0, 400),)).spread, 0.005, rtol=0.05)


def test_a_variable_without_values_is_refused():
    empty = noise(60)
    empty[:40] = np.nan
    archive = on(days(60), noise(60), empty=empty)
    with pytest.raises(UserError, match=r"^empty of <memory> has no value in the 40 training steps: all are NaN"):
        fit_normalizer(archive, ((0, 40),))
    fit_normalizer(archive, ((0, 60),))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_refused(value):
    wild = noise(60)
    wild[50, 1, 1] = value
    with pytest.raises(UserError, match=r"^wild of <memory> has infinite values in the training split"):
        fit_normalizer(on(days(60), noise(60), wild=wild), ((0, 60),))
    fit_normalizer(on(days(60), noise(60), wild=wild), ((0, 40),))


def test_a_large_cycle_leaves_digits_to_the_spread():
    # Squares are ten thousand times those of the anomalies: float32 over a whole tile would be off by a thousandth.
    time, coords = days(4 * 365), {"lat": np.linspace(-80.0, 80.0, 16), "lon": np.arange(0, 360, 11.25)}
    field = 1e5 + 100 * np.cos(2 * np.pi * progress(time)[:, 0])[:, None, None]
    field = (field + np.random.default_rng(0).standard_normal((len(time), 16, 32))).astype(np.float32)
    archive = open_archive(xr.Dataset({"p": (("time", "lat", "lon"), field)}, {"time": time, **coords}))
    normalizer = fit_normalizer(archive, ((0, len(time)),))
    basis, flat = harmonic_basis(time, normalizer.annual, normalizer.daily), field.reshape(len(field), -1) - 1e5
    rest = flat - basis @ np.linalg.lstsq(basis, flat, rcond=None)[0]
    np.testing.assert_allclose(normalizer.spread, rms(rest), rtol=3e-4)


# --- speed that changes nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.02])
@pytest.mark.parametrize("tile", [1, 50, 2**18])
def test_normalising_in_tiles_and_in_place_is_the_formula(monkeypatch, missing, tile):
    time = days(800)
    field = 1e5 + 500 * noise(800)
    field[np.random.default_rng(1).random(field.shape) < missing] = np.nan
    archive = on(time, field, q=np.nan_to_num(field) / 1e7)
    normalizer, fields = fit_normalizer(archive, ((0, 800),)), archive.read(0, 800)
    monkeypatch.setattr(moments, "TILE_VALUES", tile)
    exact = fields.astype(float) - np.tensordot(
        harmonic_basis(time, normalizer.annual, normalizer.daily), normalizer.coefficients.astype(float), axes=1
    )
    exact /= normalizer.spread[:, None, None]
    kept = fields.copy()
    values, observed = normalizer.apply(fields, time)
    np.testing.assert_array_equal(fields, kept)
    np.testing.assert_allclose(values, np.nan_to_num(exact), atol=1e-6 * np.nanmax(np.abs(exact)))
    again, flags = normalizer.apply(fields, time, out=fields)
    assert again is fields
    np.testing.assert_array_equal(again, values)
    assert (observed is None) == (flags is None) == (missing == 0)
    if observed is not None and flags is not None:
        np.testing.assert_array_equal(observed, np.isfinite(kept))
        np.testing.assert_array_equal(flags, observed)


def test_huge_values_are_observed():
    # Their squares are beyond float32.
    normalizer = fit_normalizer(on(days(40), noise(40)), ((0, 40),))
    values, observed = normalizer.apply(np.full((2, 1, 3, 4), 1e30, dtype=np.float32), days(2))
    assert observed is None and (values > 1e29).all()


@pytest.mark.parametrize("tile, steps", [(64, 64), (64, 13), (2**18, 4)])
def test_sums_in_tiles_are_the_sums(monkeypatch, tile, steps):
    field = 280 + noise(500)
    field[np.random.default_rng(2).random(field.shape) < 0.05] = np.nan
    whole = fit_normalizer(on(days(500), field), ((0, 500),))
    monkeypatch.setattr(moments, "TILE_VALUES", tile)
    monkeypatch.setattr(moments, "TILE_STEPS", steps)
    assert_same(whole, fit_normalizer(on(days(500), field), ((0, 500),)))


@pytest.mark.parametrize("columns", [5, 64, 100, 5000])
@pytest.mark.parametrize("shape", [(11, 64), (64, 10), (1, 7), (3, 2000)])
def test_a_product_in_parts_is_the_product(columns: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal(shape), rng.standard_normal((shape[1], columns))
    left, right = left.astype(np.float32), right.astype(np.float32)
    wide = np.full((shape[0], columns + 3), 7, dtype=np.float32)
    moments.flat_product(left, right, wide[:, :columns])
    np.testing.assert_allclose(wide[:, :columns], left @ right, rtol=1e-4, atol=1e-4)
    assert (wide[:, columns:] == 7).all()
    np.testing.assert_array_equal(moments.flat_product(left, right), wide[:, :columns])


# Modes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_comes_back(mode: str) -> None:
    field = np.abs(noise(400)) * 3 + 0.5
    archive = on(days(400), field)
    normalizer = fit_normalizer(archive, ((0, 300),), {"default": mode})
    values = archive.read(0, 400)
    z, observed = normalizer.apply(values.copy(), archive.time)
    assert observed is None and normalizer.modes == (mode,)
    np.testing.assert_allclose(normalizer.invert(z, archive.time), values, rtol=2e-5)


def test_zscore_is_of_the_channel() -> None:
    field = noise(400) + np.arange(3)[:, None] * 10  # rows differ far more than days
    archive = on(days(400), field)
    normalizer = fit_normalizer(archive, ((0, 300),), {"z": "zscore"})
    trained = archive.read(0, 300).astype(np.float64)
    np.testing.assert_allclose(normalizer.spread, trained.std(), rtol=1e-6)
    np.testing.assert_allclose(normalizer.climatology(archive.time[:1]), trained.mean(), rtol=1e-6)


def test_spread_leaves_zero_alone() -> None:
    rain = np.maximum(noise(400), 0)
    archive = on(days(400), rain)
    normalizer = fit_normalizer(archive, ((0, 400),), {"z": "spread"})
    z, _ = normalizer.apply(archive.read(0, 400), archive.time)
    np.testing.assert_array_equal(z == 0, archive.read(0, 400) == 0)
    np.testing.assert_allclose(normalizer.spread, rain.astype(np.float32).std(), rtol=1e-5)


def test_log1p_is_in_units_of_the_root_mean_square() -> None:
    rain = np.maximum(noise(400), 0) ** 3
    archive = on(days(400), rain)
    normalizer = fit_normalizer(archive, ((0, 400),), {"z": "log1p"})
    x = archive.read(0, 400).astype(np.float64)
    unit = np.sqrt((x**2).mean())
    logs = np.log1p(x / unit)
    np.testing.assert_allclose(normalizer.unit, unit, rtol=1e-5)
    z, _ = normalizer.apply(archive.read(0, 400), archive.time)
    np.testing.assert_allclose(z, (logs - logs.mean()) / logs.std(), atol=1e-4)
    with pytest.raises(UserError, match=r"z of <memory> reaches -.* set its data.normalize to asinh"):
        fit_normalizer(on(days(400), noise(400)), ((0, 400),), {"z": "log1p"})


def test_modes_by_variable() -> None:
    archive = on(days(400), noise(400), rain=np.abs(noise(400)))
    normalizer = fit_normalizer(archive, ((0, 400),), {"rain": "spread"})
    assert dict(zip(archive.variables, normalizer.modes, strict=True)) == {"z": "anomaly", "rain": "spread"}
    chosen = normalizer.select([1])
    assert chosen.modes == ("spread",) and chosen.coefficients.shape[1] == 1
    for modes, phrase in (({"snow": "spread"}, "names snow"), ({"z": "best"}, "must be one of anomaly, zscore")):
        with pytest.raises(UserError, match=phrase):
            fit_normalizer(archive, ((0, 400),), modes)


def test_statistics_of_the_channel_suit_other_places() -> None:
    archive = on(days(400), noise(400))
    normalizer = fit_normalizer(archive, ((0, 400),), {"default": "zscore"})
    other = normalizer.onto((2, 3, 5))
    assert other.coefficients.shape == (1, 1, 2, 3, 5)
    np.testing.assert_array_equal(other.coefficients, normalizer.coefficients.ravel()[0])
    with pytest.raises(UserError, match="default: zscore"):
        fit_normalizer(archive, ((0, 400),)).onto((2, 3, 5))


def test_spread_of_tendencies() -> None:
    # x(t) = t, but for a jump of a hundred at a gap in time, which is no tendency: every change is 1.
    time = days(200).delete(range(100, 103))
    field = np.arange(197.0)[:, None, None] + np.where(np.arange(197) >= 100, 100, 0)[:, None, None] + np.zeros((3, 4))
    normalizer = fit_normalizer(on(time, field), ((0, 197),))
    np.testing.assert_allclose(normalizer.tendency, 1, rtol=1e-6)
