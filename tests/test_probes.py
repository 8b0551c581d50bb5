import numpy as np
import pytest

import sciJEPA.probes as home
from sciJEPA.errors import UserError
from sciJEPA.probes import Ridge, Rows, rows_of, side_by_side

TRAIN, VALIDATION, TEST = np.arange(60), np.arange(60, 80), np.arange(80, 100)


def data(width: int, targets: int = 3, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (100, width) with means and scales of their own, and targets (100, targets) that depend on them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(100, width)) * rng.uniform(0.5, 2, width) + rng.normal(size=width)
    truth = features @ rng.normal(size=(width, targets)) / width**0.5 + 4 + noise * rng.normal(size=(100, targets))
    return features, truth


def textbook(features: np.ndarray, targets: np.ndarray, strength: float) -> np.ndarray:
    """(X'X + s I)^-1 X'Y with centred X and Y, solved as it is written; predictions for all times."""
    x_mean, y_mean = features[TRAIN].mean(0), targets[TRAIN].mean(0)
    x, y = features - x_mean, targets[TRAIN] - y_mean
    # strengths are relative to the mean square of the features times their number
    penalty = strength * (x[TRAIN] ** 2).sum() / len(TRAIN)
    weights = np.linalg.solve(x[TRAIN].T @ x[TRAIN] + penalty * np.eye(x.shape[1]), x[TRAIN].T @ y)
    return x @ weights + y_mean


def test_one_feature_and_one_target_by_hand() -> None:
    # x = -1, 1 and y = -2, 2 with strength 0.5: the penalty is 0.5 x 2 / 2 = 0.5, the slope 4 / (2 + 0.5) = 1.6
    x, y = np.array([[-1.0], [1.0], [3.0]]), np.array([[-2.0], [2.0], [0.0]])
    ridge = Ridge((0.5,)).fit(rows_of(x), [rows_of(y)], np.arange(2), np.array([2]), weights=np.ones(1))
    np.testing.assert_allclose(ridge.predict(np.arange(3))[0].ravel(), [-1.6, 1.6, 4.8], rtol=1e-6)
    np.testing.assert_allclose(ridge.error_, [[4.8**2]], rtol=1e-5)


@pytest.mark.parametrize("width", [5, 59, 60, 61, 200], ids=lambda width: f"width {width}")
@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_more_or_fewer_features_than_times_give_the_textbook_formula(width: int, strength: float) -> None:
    features, targets = data(width)
    ridge = Ridge((strength,)).fit(
        rows_of(features), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(3), groups=1
    )
    assert ridge._primal == (width <= 60)
    wanted = textbook(features, targets, strength)
    np.testing.assert_allclose(ridge.predict(TEST)[0], wanted[TEST], atol=2e-4)
    error = ((wanted - targets)[VALIDATION] ** 2).mean()
    assert ridge.error_[0, 0] == pytest.approx(error, rel=1e-3)


def test_both_ways_to_solve_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = data(50)
    primal = Ridge().fit(rows_of(features), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(3))
    # 50 more features that are always zero change nothing, except that there are now more features than times
    padded = np.concatenate([features, np.zeros((100, 50))], axis=1)
    dual = Ridge().fit(rows_of(padded), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(3))
    assert (primal._primal, dual._primal) == (True, False)
    np.testing.assert_array_equal(primal.strength_, dual.strength_)
    np.testing.assert_allclose(primal.predict(TEST)[0], dual.predict(TEST)[0], atol=2e-4)


def test_the_strength_is_the_best_on_validation() -> None:
    features, targets = data(40, noise=1.0)
    strengths = (1e-5, 1e-2, 1.0, 1e4)
    weights = np.array([1.0, 2.0, 0.5])
    ridge = Ridge(strengths).fit(rows_of(features), [rows_of(targets)], TRAIN, VALIDATION, weights=weights)
    errors = [
        ((textbook(features, targets, strength) - targets)[VALIDATION] ** 2 @ weights).mean() for strength in strengths
    ]
    assert ridge.strength_[0, 0] == strengths[int(np.argmin(errors))]
    assert 0 < int(np.argmin(errors)) < 3  # neither end: the choice is one


def test_noise_is_forecast_as_the_mean() -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(100, 30)), 3 + rng.normal(size=(100, 2))
    ridge = Ridge().fit(rows_of(features), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(2))
    assert ridge.strength_[0, 0] >= 10
    np.testing.assert_allclose(ridge.predict(TEST)[0], targets[TRAIN].mean(0) + np.zeros((20, 2)), atol=0.3)


def watched(array: np.ndarray, seen: set) -> Rows:
    rows = rows_of(array)

    def read(indices: np.ndarray) -> np.ndarray:
        seen.update(indices.tolist())
        return rows.read(indices)

    return Rows(read, rows.width)


@pytest.mark.parametrize("width", [20, 200])
def test_fitting_reads_neither_features_nor_truth_of_test_times(width: int) -> None:
    features, targets = data(width)
    seen: tuple[set, set] = (set(), set())
    ridge = Ridge().fit(watched(features, seen[0]), [watched(targets, seen[1])], TRAIN, VALIDATION, weights=np.ones(3))
    assert seen == (set(range(80)), set(range(80)))
    ridge.predict(TEST)
    assert seen[1] == set(range(80))


@pytest.mark.parametrize("width", [20, 200])
def test_validation_decides_on_the_strength_and_on_nothing_else(width: int) -> None:
    features, targets = data(width)
    other_targets = targets.copy()
    other_targets[VALIDATION] += 100
    fits = [
        Ridge((0.1,)).fit(rows_of(features), [rows_of(t)], TRAIN, VALIDATION, weights=np.ones(3))
        for t in (targets, other_targets)
    ]
    np.testing.assert_array_equal(fits[0].predict(TEST)[0], fits[1].predict(TEST)[0])


def test_groups_and_leads_are_independent() -> None:
    features, clear = data(40, targets=4, noise=0.01)
    noisy = np.random.default_rng(5).normal(size=(100, 4))
    both = np.concatenate([clear, noisy], axis=1)
    together = Ridge().fit(
        rows_of(features), [rows_of(both), rows_of(both[::-1])], TRAIN, VALIDATION, weights=np.ones(8), groups=2
    )
    assert together.strength_.shape == together.error_.shape == (2, 2)
    assert together.strength_[0, 0] < together.strength_[0, 1]
    for group, part in enumerate((clear, noisy)):
        alone = Ridge().fit(rows_of(features), [rows_of(part)], TRAIN, VALIDATION, weights=np.ones(4))
        assert alone.strength_[0, 0] == together.strength_[0, group]
        columns = slice(4 * group, 4 * group + 4)
        np.testing.assert_allclose(alone.predict(TEST)[0], together.predict(TEST)[0][:, columns], atol=1e-5)


@pytest.mark.parametrize("products", [0, 2**24])
@pytest.mark.parametrize("width", [20, 200])
def test_blocks_are_invisible(width: int, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = data(width)
    one = Ridge().fit(rows_of(features), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(3))
    whole = one.predict(TEST)[0]
    monkeypatch.setattr(home, "BLOCK_ROWS", 7)
    monkeypatch.setattr(home, "BLOCK_COLUMNS", 3)
    monkeypatch.setattr(home, "BASIS_VALUES", 0)  # nothing is kept between leads
    monkeypatch.setattr(home, "PRODUCT_VALUES", products)
    two = Ridge().fit(rows_of(features), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(3))
    np.testing.assert_allclose(two.predict(TEST)[0], whole, atol=1e-4)


def test_a_large_mean_and_a_large_scale_cost_no_digits() -> None:
    features, targets = data(40)
    plain = Ridge().fit(rows_of(features), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(3))
    shifted = Ridge().fit(rows_of(1000 * (features + 100)), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(3))
    np.testing.assert_allclose(shifted.predict(TEST)[0], plain.predict(TEST)[0], atol=1e-3)


def test_features_that_do_not_vary_are_refused() -> None:
    constant = rows_of(np.ones((100, 4)))
    with pytest.raises(UserError, match="do not vary over the training times"):
        Ridge().fit(constant, [rows_of(data(4)[1])], TRAIN, VALIDATION, weights=np.ones(3))


def test_rows_of_flattens_all_but_time() -> None:
    array = np.arange(24).reshape(4, 2, 3)
    rows = rows_of(array)
    assert rows.width == 6
    np.testing.assert_array_equal(rows.read(np.array([3, 0])), array[[3, 0]].reshape(2, 6))


def test_kinds_of_features_side_by_side_weigh_the_same_in_any_units() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(100, 3)), 5 + rng.normal(size=(100, 8))
    truth = rows_of(one[:, :1] + other[:, :1])
    train, validation = np.arange(60), np.arange(60, 80)
    found = []
    for unit in (1, 1000):
        rows = side_by_side([rows_of(one), rows_of(unit * other), rows_of(np.ones((100, 2)))], train)
        values = rows.read(train).astype(np.float64)
        assert rows.width == values.shape[1] == 13
        for part in (values[:, :3], values[:, 3:11]):
            assert part.var(axis=0).sum() == pytest.approx(1, rel=1e-5)
        assert not values[:, 11:].any()  # what never varies tells nothing
        probe = Ridge().fit(rows, [truth], train, validation, weights=np.ones(1))
        found.append(probe.predict(np.arange(80, 100))[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    np.testing.assert_allclose(found[0], truth.read(np.arange(80, 100)), atol=0.05)
