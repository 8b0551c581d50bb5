import numpy as np
import pytest
from sklearn.neighbors import KNeighborsRegressor

import sciJEPA.probes
from sciJEPA.probes import Ridge, Rows, rows_of
from sciJEPA.probing.analogs import Analogs

TRAIN, VALIDATION, TEST = np.arange(600), np.arange(600, 750), np.arange(750, 900)


def circle(count: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """States on a circle at random angles, and the angle's third harmonic: a map without noise that is not linear."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1), np.stack([np.cos(3 * angle), np.sin(3 * angle)], axis=1)


def fit(features: np.ndarray, targets: list[np.ndarray], probe: Analogs | None = None, groups: int = 1) -> Analogs:
    return (probe or Analogs()).fit(
        rows_of(features),
        [rows_of(target) for target in targets],
        TRAIN,
        VALIDATION,
        weights=np.ones(targets[0].shape[1]),
        groups=groups,
    )


def test_the_nearer_of_two_neighbours_weighs_more() -> None:
    # States 0 and 3 with targets 0 and 6; state 1 lies 1 and 2 away: weights 2/3 and 1/3, so the forecast is 2.
    features, targets = np.array([[0.0], [3.0], [1.0]]), np.array([[0.0], [6.0], [2.0]])
    probe = Analogs(neighbours=(2,)).fit(
        rows_of(features), [rows_of(targets)], np.arange(2), np.array([2]), weights=np.ones(1)
    )
    np.testing.assert_allclose(probe.predict(np.arange(3))[0].ravel(), [0.0, 6.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(probe.error_, [[0.0]], atol=1e-10)


def test_a_noiseless_map_is_found_where_a_linear_probe_finds_nothing() -> None:
    features, targets = circle()
    probe = fit(features, [targets])
    # 600 angles on a circle lie 0.01 apart; the harmonic turns three times as fast: errors of some hundredths
    assert np.sqrt(((probe.predict(TEST)[0] - targets[TEST]) ** 2).mean()) < 0.03
    ridge = Ridge().fit(rows_of(features), [rows_of(targets)], TRAIN, VALIDATION, weights=np.ones(2))
    assert np.sqrt(((ridge.predict(TEST)[0] - targets[TEST]) ** 2).mean()) > 0.6


@pytest.mark.parametrize(("count", "size"), [(1, 2), (5, 2), (600, 1)])
def test_the_forecasts_are_those_of_scikit_learn(count: int, size: int) -> None:
    rng = np.random.default_rng(1)
    features, targets = rng.normal(size=(900, 2)) * [2, 1], rng.normal(size=(900, 3))
    probe = fit(features, [targets], Analogs(neighbours=(count,), components=(size,)))
    centred = features - features[TRAIN].mean(axis=0)
    axes = np.linalg.svd(centred[TRAIN], full_matrices=False)[2][:size].T
    theirs = KNeighborsRegressor(count, weights="distance").fit(centred[TRAIN] @ axes, targets[TRAIN])
    np.testing.assert_allclose(probe.predict(TEST)[0], theirs.predict(centred[TEST] @ axes), atol=1e-5)


def test_choices_are_made_on_validation_for_each_lead_and_group() -> None:
    features, clear = circle()
    noise = np.random.default_rng(2).normal(size=(900, 2))
    both = np.concatenate([clear, noise], axis=1)
    probe = fit(features, [both, both[:, ::-1].copy()], groups=2)
    # noise is forecast best by the mean of many, the map by few
    assert probe.neighbours_.shape == probe.components_.shape == probe.error_.shape == (2, 2)
    assert probe.neighbours_[0, 0] < 8 < probe.neighbours_[0, 1] == 128
    np.testing.assert_array_equal(probe.neighbours_[0], probe.neighbours_[1, ::-1])
    found = probe.predict(VALIDATION)[0]
    np.testing.assert_allclose(probe.error_[0, 0], ((found - both[VALIDATION]) ** 2)[:, :2].mean(), rtol=1e-4)
    alone = fit(features, [clear])
    np.testing.assert_allclose(alone.predict(TEST)[0], probe.predict(TEST)[0][:, :2], atol=1e-6)


def test_directions_that_say_nothing_are_left_out_by_choice() -> None:
    features, targets = circle()
    noise = 0.4 * np.random.default_rng(3).normal(size=(900, 30))
    probe = fit(np.concatenate([features, noise], axis=1), [targets], Analogs(components=(2, 32)))
    assert probe.components_[0, 0] == 2


def test_whitening_makes_the_size_of_a_direction_irrelevant() -> None:
    features, targets = circle()
    narrow = features * [1.0, 1e-3]
    errors = {
        whiten: fit(narrow, [targets], Analogs(components=(2,), whiten=whiten)).error_[0, 0] for whiten in (True, False)
    }
    assert errors[True] < 0.01 < 0.1 < errors[False]


def test_blocks_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = circle()
    whole = fit(features, [targets]).predict(TEST)[0]
    monkeypatch.setattr(sciJEPA.probes, "BLOCK_ROWS", 7)
    np.testing.assert_allclose(fit(features, [targets]).predict(TEST)[0], whole, atol=1e-6)


def test_no_more_rows_are_read_at_once_than_a_block_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sciJEPA.probes, "BLOCK_ROWS", 50)
    features, targets = circle()
    seen: list[np.ndarray] = []

    def watched(array: np.ndarray) -> Rows:
        return Rows(lambda times: (seen.append(times), array[times])[1], array.shape[1])

    probe = Analogs().fit(watched(features), [watched(targets)], TRAIN, VALIDATION, weights=np.ones(2))
    assert max(len(times) for times in seen) == 50
    assert max(times.max() for times in seen) == VALIDATION[-1]  # nothing of the test times
    probe.predict(TEST)
    assert max(len(times) for times in seen) == 50
