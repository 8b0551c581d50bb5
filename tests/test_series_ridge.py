"""One pass over features of windows, and the maps that come of their products."""

import numpy as np
import pytest

from sciJEPA.errors import UserError
from sciJEPA.judging.series_ridge import STRENGTHS, Products, fit_map, products
from sciJEPA.probes import Ridge, rows_of

SERIES, WIDTH = 2, 3


def features_of(seed: int, count: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, SERIES, width))


def of(x: np.ndarray, y: np.ndarray) -> Products:
    """Products of windows (issues, series, width) with courses (issues, series, horizon)."""
    given = {y.shape[2]: np.arange(len(x))}
    ((_, found),) = products(given, lambda issues: [x[issues]], lambda issues, rows: y[issues][..., :rows])
    return found


def test_products_are_sums_over_windows_and_series() -> None:
    x, y = features_of(0, 200), features_of(1, 200, 4)
    found = of(x, y)
    rows, courses = x.reshape(-1, WIDTH), y.reshape(-1, 4)
    np.testing.assert_allclose(found.gram, rows.T @ rows)
    np.testing.assert_allclose(found.cross, rows.T @ courses)
    np.testing.assert_allclose(found.squares, (courses**2).sum(axis=0))
    assert found.count == 400


def test_a_long_horizon_has_fewer_windows_and_features_are_read_once() -> None:
    x, y, read = features_of(0, 200), features_of(1, 200, 6), []

    def look(issues: np.ndarray) -> list[np.ndarray]:
        read.extend(issues.tolist())
        return [x[issues]]

    issues = {2: np.arange(200), 6: np.arange(150)}
    found = dict(products(issues, look, lambda numbers, rows: y[numbers][..., :rows]))
    assert read == list(range(200))
    for horizon, count in ((2, 200), (6, 150)):
        alone = of(x[:count], y[:count, :, :horizon])
        np.testing.assert_allclose(found[horizon].gram, alone.gram)
        np.testing.assert_allclose(found[horizon].cross, alone.cross)
        np.testing.assert_allclose(found[horizon].squares, alone.squares)


def test_the_error_from_products_is_that_of_predictions() -> None:
    x, y, weights = features_of(0, 50), features_of(1, 50, 5), features_of(2, 1, 5).reshape(-1)[: WIDTH * 2]
    weights, ahead = weights.reshape(WIDTH, 2), np.array([1, 4])
    by_hand = ((x @ weights - y[..., ahead]) ** 2).mean()
    assert of(x, y).error(weights, ahead) == pytest.approx(by_hand)


def test_a_map_is_the_ridge_of_the_other_probes() -> None:
    """The same equation, solved through an eigenbasis there."""
    x, noise = features_of(0, 120), features_of(1, 120, 2)
    y = x @ features_of(2, 1, 2).reshape(-1)[:WIDTH].reshape(WIDTH, 1) + 2 * noise
    rows, courses = x.reshape(-1, WIDTH), y.reshape(-1, 2)
    train, validation = np.arange(160), np.arange(160, 240)
    ridge = Ridge(strengths=STRENGTHS, intercept=False)
    ridge.fit(rows_of(rows), [rows_of(courses)], train, validation, weights=np.ones(2))
    fitted = fit_map(of(x[:80], y[:80]), of(x[80:], y[80:]))
    assert fitted.strengths[0] == pytest.approx(ridge.strength_[0, 0])
    assert fitted.error == pytest.approx(ridge.error_[0, 0], rel=1e-4)
    np.testing.assert_allclose(rows[validation] @ fitted.weights, ridge.predict(validation)[0], rtol=1e-3, atol=1e-4)


def test_a_part_that_only_misleads_gets_a_strong_ridge() -> None:
    x, noise = features_of(0, 60, 1), 0.1 * features_of(1, 60, 1)
    chance = features_of(2, 60, 40)  # as many features as there are training windows

    def some(which: slice) -> Products:
        issues, parts = {1: np.arange(60)[which]}, lambda numbers: [x[numbers], chance[numbers]]
        return dict(products(issues, parts, lambda numbers, _: (x + noise)[numbers]))[1]

    train, validation = some(slice(0, 20)), some(slice(20, 60))
    both = fit_map(train, validation)
    assert both.strengths[1] > 100 * both.strengths[0]
    # alone, the part that knows is what `take` leaves
    alone = fit_map(train.take([0]), validation.take([0]))
    assert alone.weights.shape == (1, 1)
    assert both.error == pytest.approx(alone.error, rel=0.05)


def test_features_that_are_all_zero_are_refused() -> None:
    y = features_of(1, 10, 1)
    with pytest.raises(UserError, match="do not vary over the training windows"):
        fit_map(of(np.zeros((10, SERIES, 1)), y), of(np.zeros((10, SERIES, 1)), y))
