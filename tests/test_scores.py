"""Scores against hand-worked numbers, and the properties that make a comparison fair."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciJEPA.errors import UserError
from sciJEPA.scores import (
    MethodErrors,
    anomaly_correlation,
    area_mean,
    bias,
    block_bootstrap,
    block_length,
    fair_crps,
    format_markdown,
    format_table,
    latitude_weights,
    mae,
    observed_share,
    rmse,
    score_rows,
    skill_score,
    spread_skill_ratio,
    squared_error,
    vrmse,
)
from sciJEPA.scoring.score_table import lead_days, method_title, ordered_methods

GRID = {"latitude": [-60.0, 0.0, 60.0], "longitude": [0.0, 180.0]}


def field(values: np.ndarray, times: int = 1) -> xr.DataArray:
    shape = (times, 3, 2)
    return xr.DataArray(
        np.broadcast_to(np.asarray(values, dtype=float), shape).copy(),
        dims=("init_time", "latitude", "longitude"),
        coords={"init_time": np.arange(times), **GRID},
        name="t2m",
    )


def random_field(times: int = 20, seed: int = 0) -> xr.DataArray:
    return field(np.random.default_rng(seed).normal(size=(times, 3, 2)), times)


def ar1(n: int, coefficient: float, seed: int, series: int = 1) -> np.ndarray:
    """Stationary AR(1) with mean zero and unit variance, shape (series, n)."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(series, n))
    out = np.empty_like(noise)
    out[:, 0] = noise[:, 0]
    for t in range(1, n):
        out[:, t] = coefficient * out[:, t - 1] + np.sqrt(1 - coefficient**2) * noise[:, t]
    return out


@pytest.mark.parametrize("name", ["scoring.intervals", "scoring.comparison", "scoring.score_table", "scores"])
def test_the_examples_in_the_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(f"sciJEPA.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


# --- latitude weights


def test_weights_of_three_cells():
    # Edges -90, -30, 30, 90: sines -1, -1/2, 1/2, 1; areas 1/2, 1, 1/2; mean 2/3; weights 3/4, 3/2, 3/4.
    np.testing.assert_allclose(latitude_weights([-60.0, 0.0, 60.0]), [0.75, 1.5, 0.75], rtol=1e-12)


def test_points_on_the_poles_keep_the_area_of_half_a_cell():
    # Edges -135 -> clipped to -90, -45, 45, 90: areas 1 - r, 2 r, 1 - r with r = sqrt(1/2); their mean is 2/3.
    r = np.sqrt(0.5)
    expected = np.array([1 - r, 2 * r, 1 - r]) * 1.5
    np.testing.assert_allclose(latitude_weights([-90.0, 0.0, 90.0]), expected, rtol=1e-12)
    assert latitude_weights(np.linspace(-90, 90, 181))[0] > 0


def test_a_regional_grid_does_not_reach_for_the_poles():
    # Edges -15, 15, 45, 75: sines -s, s, r, c with s = sin 15, c = cos 15.
    s, r, c = np.sin(np.pi / 12), np.sqrt(0.5), np.cos(np.pi / 12)
    area = np.array([2 * s, r - s, c - r])
    np.testing.assert_allclose(latitude_weights([0.0, 30.0, 60.0]), area / area.mean(), rtol=1e-12)


def test_uneven_spacing_uses_the_midpoints():
    # Edges -15, 15, 60, 90 (outer: 30 + 60 over 2 past 90 -> 120 clipped): sines -s, s, sqrt(3)/2, 1.
    s = np.sin(np.pi / 12)
    area = np.array([2 * s, np.sqrt(3) / 2 - s, 1 - np.sqrt(3) / 2])
    np.testing.assert_allclose(latitude_weights([0.0, 30.0, 90.0]), area / area.mean(), rtol=1e-12)


def test_a_grid_of_one_row_and_labels():
    assert latitude_weights([45.0]).tolist() == [1.0]
    latitude = xr.DataArray([60.0, 0.0, -60.0], dims="lat", coords={"lat": [60.0, 0.0, -60.0]}, attrs={"units": "deg"})
    weights = latitude_weights(latitude)
    assert weights.dims == ("lat",)
    assert weights.attrs == {}
    np.testing.assert_allclose(weights.sel(lat=0.0), 1.5)


def test_reversed_latitudes_give_reversed_weights_with_mean_one():
    latitude = np.sort(np.random.default_rng(1).uniform(-90, 90, 40))
    weights = latitude_weights(latitude)
    np.testing.assert_allclose(latitude_weights(latitude[::-1]), weights[::-1], rtol=1e-10)
    assert weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("wrong", [[0.0, 0.0], [0.0, 2.0, 1.0], [95.0], [np.nan, 1.0], []])
def test_latitudes_that_cannot_be_right_are_refused(wrong):
    with pytest.raises(UserError, match="Latitudes must be"):
        latitude_weights(wrong)


# --- deterministic scores


def test_a_perfect_forecast_has_no_error():
    truth = random_field()
    weights = latitude_weights(truth.latitude)
    for score in (rmse, mae, bias):
        assert float(score(truth, truth, weights)) == 0


def test_errors_are_weighted_by_area():
    # Error 2 in the middle row, 0 elsewhere: weights 3/4, 3/2, 3/4 sum to 3, so the middle row has share 1/2.
    truth = field(0.0)
    forecast = field(np.array([0.0, 2.0, 0.0])[:, None])
    weights = latitude_weights(truth.latitude)
    np.testing.assert_allclose(squared_error(forecast, truth, weights), [2.0])  # 1/2 x 4
    np.testing.assert_allclose(mae(forecast, truth, weights), 1.0)  # 1/2 x 2
    np.testing.assert_allclose(bias(-forecast, truth, weights), -1.0)
    np.testing.assert_allclose(squared_error(forecast, truth), [4 / 3])  # unweighted: one row of three


def test_the_root_comes_after_the_mean_over_time():
    # Errors 1 and 7: sqrt((1 + 49) / 2) = 5; the mean of roots would be 4.
    truth = field(0.0, times=2)
    assert float(rmse(field(np.array([1.0, 7.0])[:, None, None], 2), truth)) == pytest.approx(5)


def test_statistics_of_chunks_are_the_statistics_of_the_whole():
    truth, forecast = random_field(20), random_field(20, seed=1)
    weights = latitude_weights(truth.latitude)
    whole = squared_error(forecast, truth, weights)
    pieces = [slice(0, 7), slice(7, 8), slice(8, 20)]
    parts = [squared_error(forecast[part], truth[part], weights) for part in pieces]
    np.testing.assert_array_equal(xr.concat(parts, "init_time"), whole)
    total = sum(float(part.sum()) for part in parts) / 20
    assert np.sqrt(total) == pytest.approx(float(rmse(forecast, truth, weights)))


def test_rolling_longitude_or_reversing_latitude_changes_no_score():
    truth, forecast = random_field(), random_field(seed=1)
    score = rmse(forecast, truth, latitude_weights(truth.latitude))
    rolled = rmse(
        forecast.roll(longitude=1, roll_coords=True),
        truth.roll(longitude=1, roll_coords=True),
        latitude_weights(truth.latitude),
    )
    upside = truth.isel(latitude=slice(None, None, -1))
    reversed_ = rmse(forecast.isel(latitude=slice(None, None, -1)), upside, latitude_weights(upside.latitude))
    np.testing.assert_allclose([rolled, reversed_], score, rtol=1e-12)


def test_missing_truth_has_no_weight_and_is_reported():
    # Middle row missing: the rest has weights 3/4 and 3/4 of 3, so half is observed; errors 1 and 3 -> mean square 5.
    truth = field(np.array([0.0, np.nan, 0.0])[:, None])
    forecast = field(np.array([1.0, 100.0, 3.0])[:, None])
    weights = latitude_weights(truth.latitude)
    np.testing.assert_allclose(squared_error(forecast, truth, weights), [5.0])
    np.testing.assert_allclose(observed_share(truth, weights), [0.5])
    assert np.isnan(squared_error(forecast, truth * np.nan, weights)).all()
    assert np.isnan(rmse(forecast, truth * np.nan, weights))


def test_a_forecast_missing_where_truth_was_observed_is_refused():
    forecast = field(0.0)
    forecast[0, 1, 1] = np.nan
    with pytest.raises(UserError, match=r"t2m is missing at 1 of 6 values"):
        squared_error(forecast, field(0.0))


def test_coordinates_that_differ_are_refused_not_joined():
    truth = field(0.0)
    shifted = truth.assign_coords(latitude=truth.latitude + 1e-6)
    with pytest.raises(UserError, match="share their coordinates exactly"):
        squared_error(shifted, truth)
    with pytest.raises(UserError, match=r"pass over="):
        area_mean(truth.rename(latitude="lat"))


def test_other_names_of_dimensions_and_lead_times():
    truth = random_field(4).rename(latitude="lat", longitude="lon").expand_dims(lead_time=[1, 3])
    forecast = truth + xr.DataArray([1.0, 2.0], dims="lead_time")
    np.testing.assert_allclose(rmse(forecast, truth, over=("lat", "lon")), [1.0, 2.0])


def test_single_precision_is_summed_in_double():
    truth = field(0.0).astype("float32")
    assert squared_error(truth, truth).dtype == np.float64


# --- anomaly correlation, VRMSE


def test_anomaly_correlation_by_hand():
    # f' = (1, 1), o' = (1, 0): 1 / sqrt(2 x 1) = 0.7071. Centred correlation would be undefined.
    truth = xr.DataArray([[6.0, 5.0]], dims=("init_time", "station"))
    forecast = xr.DataArray([[6.0, 6.0]], dims=("init_time", "station"))
    climatology = xr.DataArray([5.0, 5.0], dims="station")
    ratio = anomaly_correlation(forecast, truth, climatology, over=["station"])
    np.testing.assert_allclose(ratio, [np.sqrt(0.5)])


def test_anomaly_correlation_knows_size_sign_and_the_undefined():
    truth, zero = random_field(), field(0.0, 20)
    weights = latitude_weights(truth.latitude)
    np.testing.assert_allclose(anomaly_correlation(5 * truth, truth, zero, weights), 1.0)
    np.testing.assert_allclose(anomaly_correlation(-truth, truth, zero, weights), -1.0)
    assert np.isnan(anomaly_correlation(zero, truth, zero, weights)).all()


def test_anomaly_correlation_leaves_out_missing_truth_in_all_three_sums():
    truth, forecast, zero = random_field(), random_field(seed=1), field(0.0, 20)
    gap = truth.where(truth.latitude < 50)
    kept = slice(0, 2)
    expected = anomaly_correlation(forecast[:, kept], truth[:, kept], zero[:, kept])
    np.testing.assert_allclose(anomaly_correlation(forecast, gap, zero), expected)


def test_forecasting_the_spatial_mean_has_vrmse_one():
    truth = random_field() * 10
    over = ("latitude", "longitude")
    np.testing.assert_allclose(vrmse(area_mean(truth) + 0 * truth, truth, over=over), 1.0, atol=1e-6)
    np.testing.assert_allclose(vrmse(truth, truth, over=over), 0.0)
    # A constant truth leaves only the constant: error 1, variance 0 -> sqrt(1 / 1e-7).
    np.testing.assert_allclose(vrmse(field(1.0), field(0.0), over=over), np.sqrt(1e7))


# --- ensembles


def test_fair_crps_by_hand():
    # Members 0, 1, 5 and truth 2: mean |x - y| = (2 + 1 + 3) / 3 = 2; pairs |1| + |5| + |4| = 10, over 3 x 2 -> 5/3.
    ensemble = xr.DataArray([5.0, 0.0, 1.0], dims="member")
    assert float(fair_crps(ensemble, xr.DataArray(2.0))) == pytest.approx(2 - 10 / 6)


def test_fair_crps_equals_its_double_sum():
    generator = np.random.default_rng(0)
    ensemble = xr.DataArray(generator.normal(size=(7, 4)), dims=("member", "station"))
    truth = xr.DataArray(generator.normal(size=4), dims="station")
    pairs = abs(ensemble - ensemble.rename(member="other")).sum(("member", "other")) / (2 * 7 * 6)
    np.testing.assert_allclose(fair_crps(ensemble, truth), abs(ensemble - truth).mean("member") - pairs)


def test_fair_crps_does_not_depend_on_the_number_of_members():
    # Truth and members from N(0, 1): the expected score is E|x - y| - E|x - x'| / 2 = 1 / sqrt(pi), for any M.
    generator = np.random.default_rng(0)
    for members in (2, 10):
        ensemble = xr.DataArray(generator.normal(size=(members, 40_000)), dims=("member", "station"))
        truth = xr.DataArray(generator.normal(size=40_000), dims="station")
        assert float(fair_crps(ensemble, truth).mean()) == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)


def test_a_reliable_ensemble_has_spread_skill_ratio_one_even_when_small():
    generator = np.random.default_rng(0)
    ensemble = xr.DataArray(generator.normal(size=(500, 3, 50)), dims=("init_time", "member", "station"))
    truth = xr.DataArray(generator.normal(size=(500, 50)), dims=("init_time", "station"))
    assert float(spread_skill_ratio(ensemble, truth, over=["station"])) == pytest.approx(1, abs=0.02)
    with pytest.raises(UserError, match="at least 2"):
        fair_crps(ensemble.isel(member=[0]), truth)


# --- intervals


def test_block_length_follows_the_memory_of_the_series():
    # AR(1), a = 0.7, n = 4000: (6 x 4000)^(1/3) (0.7 / 0.51)^(2/3) = 28.8 x 1.235 = 35.6.
    lengths = [block_length(series) for series in ar1(4000, 0.7, seed=0, series=20)]
    assert 25 < np.median(lengths) < 50
    assert np.median([block_length(series) for series in ar1(4000, 0.0, seed=0, series=20)]) <= 4


def test_block_length_of_odd_series():
    assert block_length(np.full(50, 3.3)) == 1
    assert block_length(np.array([1.0])) == 1
    assert block_length(np.arange(8.0)) == 2  # too short to see: 8^(1/3)
    assert block_length(np.arange(300.0)) <= 52  # a trend: the cap, 3 sqrt(300)
    short, long = ar1(500, 0.0, seed=3)[0], ar1(500, 0.8, seed=3)[0]
    assert block_length(np.stack([short, long])) == max(block_length(short), block_length(long))


def test_blocks_as_long_as_the_series_leave_nothing_to_vary():
    # Wrapped blocks of length n hold every time once, so every resample has the same mean.
    series = np.random.default_rng(0).normal(size=30)
    np.testing.assert_allclose(block_bootstrap(series, block=30), series.mean())


def test_single_times_give_the_textbook_interval():
    series = np.random.default_rng(0).normal(size=400)
    low, high = block_bootstrap(series, block=1, resamples=4000)
    error = series.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], series.mean() + 1.96 * error * np.array([-1, 1]), atol=0.15 * error)


@pytest.mark.parametrize("block", [1, 7, 50])
def test_resampled_means_scatter_around_the_mean(block):
    series = np.arange(50.0) ** 2  # blocks that stop at the ends would draw the large last values too rarely
    low, high = block_bootstrap(series, lambda means: means.mean(keepdims=True), block=block, resamples=20_000)
    assert low == pytest.approx(series.mean(), rel=0.01)
    assert high == low


def test_intervals_of_an_autocorrelated_mean_cover_it():
    # 95 % wanted; a little less is expected of blocks at this length. Single times would cover about 67 %.
    series = ar1(300, 0.6, seed=1, series=300)
    inside, naive = 0, 0
    for row in series:
        low, high = block_bootstrap(row, block=block_length(row), resamples=300)
        inside += bool(low <= 0 <= high)
        low, high = block_bootstrap(row, block=1, resamples=300)
        naive += bool(low <= 0 <= high)
    assert 0.85 < inside / 300 < 0.99
    assert naive / 300 < 0.8


def test_pairing_removes_what_the_methods_share():
    shared = ar1(300, 0.9, seed=0)[0] * 10
    pair = np.stack([shared, shared + 0.5])
    low, high = block_bootstrap(pair, lambda mean: mean[1] - mean[0], block=20)
    np.testing.assert_allclose([low, high], 0.5, atol=1e-9)


def test_the_seed_decides_the_resamples():
    series = np.random.default_rng(0).normal(size=40)
    assert block_bootstrap(series, block=4, seed=1) == block_bootstrap(series, block=4, seed=1)
    assert block_bootstrap(series, block=4, seed=1) != block_bootstrap(series, block=4, seed=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block": 0}, "between 1 and the number of times"),
        ({"block": 9}, "between 1 and the number of times"),
        ({"block": 1, "confidence": 95}, "use 0.95"),
        ({"block": 1, "resamples": 0}, "at least one"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        block_bootstrap(np.ones(5), **wrong)
    with pytest.raises(UserError, match="1 that are not"):
        block_bootstrap(np.array([1.0, np.nan]), block=1)


# --- the table


def entry(method: str, errors: np.ndarray, lead: str = "1D", **more) -> MethodErrors:
    probe = "none" if method in ("persistence", "climatology") else "ridge"
    given = {"method": method, "variable": "t2m", "lead": lead, "probe": probe, "squared_error": errors}
    return MethodErrors(**(given | more))


def value(rows: pd.DataFrame, method: str, metric: str, column: str = "value") -> float:
    return rows.query("method == @method and metric == @metric")[column].item()


CONTROLS = ["persistence", "climatology", "eof_ridge"]


def example_errors(leads: tuple[str, ...] = ("1D", "3D")) -> list[MethodErrors]:
    """Squared errors with a shared weather; JEPA clearly better and the random encoder clearly worse than EOF."""
    out = []
    for number, lead in enumerate(leads):
        weather = np.exp(0.3 * ar1(200, 0.7, seed=number)[0])
        noise = np.random.default_rng(number)
        sizes = {"persistence": 1.5, "climatology": 1.0, "eof_ridge": 0.6, "random_init": 0.8, "jepa_target": 0.4}
        for method, size in sizes.items():
            acc = np.full(200, np.nan) if method == "climatology" else np.full(200, 1 - size / 2)
            errors = (number + 1) * size * weather * np.exp(0.05 * noise.normal(size=200))
            out.append(entry(method, errors, lead, anomaly_correlation=acc))
    return out


def test_rows_by_hand():
    # RMSE: persistence 4, climatology 2, EOF 1.5, JEPA sqrt((1 + 4 + 4 + 0) / 4) = 1.5 -> of errors 1, 4, 4, 0.
    errors = [
        entry("persistence", np.full(4, 16.0)),
        entry("climatology", np.full(4, 4.0)),
        entry("eof_ridge", np.full(4, 2.25)),
        entry("jepa_target", np.array([1.0, 4.0, 4.0, 0.0]), anomaly_correlation=np.array([0.5, 0.7, np.nan, 0.9])),
    ]
    rows = score_rows(errors, archive="toy", seed=3, controls=CONTROLS)
    expected = "archive variable lead method probe metric value low high n seed"
    assert list(rows.columns) == expected.split()
    assert value(rows, "jepa_target", "rmse") == pytest.approx(1.5)
    assert value(rows, "jepa_target", "rmse_over_climatology") == pytest.approx(0.75)
    assert value(rows, "jepa_target", "skill") == pytest.approx(0.25)  # best simple: climatology, 2
    assert value(rows, "jepa_target", "acc") == pytest.approx(0.7)  # (0.5 + 0.7 + 0.9) / 3
    assert value(rows, "jepa_target", "acc", "n") == 3
    assert value(rows, "jepa_target", "difference_to_best_control") == pytest.approx(0.0)  # 1.5 - 1.5
    assert value(rows, "persistence", "skill") == pytest.approx(-1.0)
    assert value(rows, "persistence", "difference_to_best_control") == pytest.approx(2.5)
    assert np.isnan(value(rows, "climatology", "acc"))
    assert value(rows, "climatology", "acc", "n") == 0
    assert set(rows["n"]) == {0, 3, 4}
    assert set(rows["seed"]) == {3}
    assert len(rows) == 4 * 5


def test_values_lie_inside_their_intervals():
    rows = score_rows(example_errors(), archive="toy", seed=0, controls=CONTROLS)
    defined = rows.dropna(subset="value")
    slack = 1e-9
    assert ((defined.low <= defined.value + slack) & (defined.value <= defined.high + slack)).all()
    assert (defined.query("metric == 'rmse'").eval("high - low") > 0).all()


def test_references_compare_to_themselves_without_scatter():
    rows = score_rows(example_errors(("1D",)), archive="toy", seed=0, controls=CONTROLS)
    same = rows.query("method == 'eof_ridge' and metric == 'difference_to_best_control'")
    assert same[["value", "low", "high"]].values.tolist() == [[0.0, 0.0, 0.0]]
    same = rows.query("method == 'climatology' and metric == 'rmse_over_climatology'")
    np.testing.assert_allclose(same[["value", "low", "high"]], 1.0)
    same = rows.query("method == 'climatology' and metric == 'skill'")
    np.testing.assert_allclose(same[["value", "low", "high"]], 0.0)


def test_equal_errors_differ_by_nothing():
    errors = np.exp(ar1(100, 0.5, seed=0)[0])
    rows = score_rows(
        [entry("eof_ridge", errors), entry("jepa_target", errors.copy())], archive="toy", seed=0, controls=["eof_ridge"]
    )
    differences = rows.query("metric == 'difference_to_best_control'")
    assert (differences[["value", "low", "high"]] == 0).all(axis=None)
    assert set(rows["metric"]) == {"rmse", "acc", "difference_to_best_control"}  # no climatology, no simple control


def test_times_without_truth_are_left_out_of_all_methods_and_counted():
    full = example_errors(("1D",))
    gaps = []
    for item in full:
        errors = item.squared_error.copy()
        errors[10:30] = np.nan
        gaps.append(entry(item.method, errors))
    rows = score_rows(gaps, archive="toy", seed=0, controls=CONTROLS)
    assert set(rows.query("metric == 'rmse'")["n"]) == {180}
    kept = np.delete(full[0].squared_error, np.s_[10:30])
    assert value(rows, "persistence", "rmse") == pytest.approx(np.sqrt(kept.mean()))


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([np.ones(4), np.ones(5)], "same times"),
        ([np.ones(2), np.array([1.0, np.nan])], "some methods lack an error"),
        ([np.full(2, np.nan), np.full(2, np.nan)], "no truth was observed"),
    ],
)
def test_methods_on_different_times_are_refused(errors, message):
    pair = [entry("persistence", errors[0]), entry("climatology", errors[1])]
    with pytest.raises(UserError, match=message):
        score_rows(pair, archive="toy", seed=0, controls=CONTROLS)


def test_errors_that_cannot_be_right_are_refused():
    with pytest.raises(UserError, match="squared_error of mae"):
        entry("mae", np.array([-1.0]))
    with pytest.raises(UserError, match="squared_error of mae"):
        entry("mae", np.ones((2, 2)))
    with pytest.raises(UserError, match="anomaly_correlation of mae"):
        entry("mae", np.ones(3), anomaly_correlation=np.ones(2))
    twice = [entry("persistence", np.ones(3))] * 2
    with pytest.raises(UserError, match="more than once"):
        score_rows(twice, archive="toy", seed=0, controls=CONTROLS)


def test_skill_is_of_roots():
    np.testing.assert_allclose(skill_score(np.array([0.0, 1.0, 2.0, 4.0]), 2.0), [1.0, 0.5, 0.0, -1.0])
    assert np.isnan(skill_score(1.0, 0.0))


def test_the_terminal_table_marks_the_best_and_fits_the_screen():
    leads = ("6H", "1D", "3D", "5D", "7D", "1M")
    text = format_table(score_rows(example_errors(leads), archive="toy", seed=0, controls=CONTROLS), {"t2m": "K"})
    lines = text.splitlines()
    assert max(map(len, lines)) <= 150
    assert lines[0] == "t2m [K], archive toy, seed 0, 200 test times"
    jepa = next(line for line in lines if line.startswith("JEPA target + ridge"))
    assert "*+" in jepa
    random = next(line for line in lines if line.startswith("random init + ridge"))
    assert "]-" in random
    assert "*" not in random
    assert next(line for line in lines if line.startswith("best control")).count("EOF + ridge") >= 2
    assert sum(line.count("1M") for line in lines) == 2  # six leads wrap, none is lost


def test_the_markdown_table_is_bold_where_it_is_best():
    lines = format_markdown(score_rows(example_errors(), archive="toy", seed=0, controls=CONTROLS)).splitlines()
    assert lines[2] == "| method | 1D | 3D |"
    assert lines[3] == "| :-- | --: | --: |"
    assert {line.count("|") for line in lines[2:]} == {4}
    assert lines[-1].startswith("| JEPA target + ridge | **0.6")
    assert lines[-1].count("** +") == 2


def test_titles_order_and_leads():
    assert method_title("raw_ridge", "ridge") == "ridge on raw window"
    assert method_title("mae", "knn") == "masked autoencoder + k-NN"
    methods = pd.DataFrame({"method": ["jepa_target", "mine", "persistence"], "probe": ["ridge", "ridge", "none"]})
    assert [name for name, _ in ordered_methods(methods)] == ["persistence", "jepa_target", "mine"]
    assert lead_days("12H") == (0.5, "h")
    assert lead_days("96") == (96.0, "step")
    with pytest.raises(UserError, match="Cannot read the lead time 'soon'"):
        lead_days("soon")
