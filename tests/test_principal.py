import doctest

import numpy as np
import pytest
from sklearn.decomposition import PCA

import sciJEPA.probes
import sciJEPA.probing.principal as home
from sciJEPA.errors import UserError
from sciJEPA.probes import rows_of
from sciJEPA.probing.principal import principal_axes

TRAIN = np.arange(80)


def rows(width: int, rank: int, noise: float = 0.0) -> np.ndarray:
    """100 rows whose variance lies in `rank` directions, of falling size, around a mean that is not zero."""
    rng = np.random.default_rng(0)
    return 3 + (rng.normal(size=(100, rank)) * 0.7 ** np.arange(rank)) @ rng.normal(size=(rank, width)) + noise


def test_two_points_have_one_axis() -> None:
    # (0, 3) and (0, 5): the mean is (0, 4), the axis (0, 1), the components -1 and 1
    basis = principal_axes(rows_of(np.array([[0.0, 3.0], [0.0, 5.0]])), np.arange(2), 2)
    np.testing.assert_allclose(np.abs(basis.components(np.array([[0.0, 3.0], [7.0, 5.0]]))), [[1.0], [1.0]])


@pytest.mark.parametrize("exact", [True, False])
def test_the_axes_are_those_of_scikit_learn(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "EXACT_WIDTH", 1000 if exact else 1)
    monkeypatch.setattr(sciJEPA.probes, "BLOCK_ROWS", 7)
    values = rows(40, 12)
    basis, theirs = principal_axes(rows_of(values), TRAIN, 5), PCA(5).fit(values[TRAIN])
    # they divide by n - 1
    np.testing.assert_allclose(basis.deviation, np.sqrt(theirs.explained_variance_ * 79 / 80), rtol=1e-4)
    np.testing.assert_allclose(np.abs(basis.axes.T @ theirs.components_.T), np.eye(5), atol=1e-3)


def test_wide_rows_with_more_directions_than_are_kept_lose_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    values = (rng.normal(size=(300, 200)) * 0.95 ** np.arange(200)) @ np.linalg.qr(rng.normal(size=(200, 200)))[0]
    train = np.arange(300)
    exact = principal_axes(rows_of(values), train, 10)
    monkeypatch.setattr(home, "EXACT_WIDTH", 1)
    wide = principal_axes(rows_of(values), train, 10)
    np.testing.assert_allclose(wide.deviation, exact.deviation, rtol=0.01)


def test_what_lies_in_the_axes_is_restored_whatever_the_scale() -> None:
    values, scale = rows(20, 4), np.linspace(0.5, 2, 20)
    basis = principal_axes(rows_of(values), TRAIN, 4, scale=scale)
    np.testing.assert_allclose(basis.restore(basis.components(values)), values, atol=1e-9)


def test_directions_without_variance_are_left_out() -> None:
    assert len(principal_axes(rows_of(rows(20, 4)), TRAIN, 10).deviation) == 4


def test_a_column_of_weight_zero_is_restored_as_its_mean() -> None:
    values, scale = rows(3, 3), np.array([1.0, 0.0, 1.0])
    basis = principal_axes(rows_of(values), TRAIN, 3, scale=scale)
    restored = basis.restore(basis.components(values))
    np.testing.assert_allclose(restored[:, [0, 2]], values[:, [0, 2]], atol=1e-9)
    np.testing.assert_allclose(restored[:, 1], values[TRAIN, 1].mean())


def test_constant_rows_are_refused() -> None:
    with pytest.raises(UserError, match="do not vary"):
        principal_axes(rows_of(np.ones((100, 4))), TRAIN, 2)


def test_the_example_runs() -> None:
    assert doctest.testmod(home).failed == 0
