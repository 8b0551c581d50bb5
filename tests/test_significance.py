import doctest

import numpy as np
import pytest
import scipy.stats

import sciJEPA.scoring.significance as home
from sciJEPA.errors import UserError
from sciJEPA.scoring.comparison import COLUMNS, MethodErrors
from sciJEPA.scoring.significance import adjusted, bootstrap_p_value, p_value_rows


def errors(count: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of two methods under one weather; the second has `shift` more."""
    rng = np.random.default_rng(seed)
    weather = rng.gamma(4, 1, count)
    return weather * rng.uniform(0.8, 1.2, count), weather * rng.uniform(0.8, 1.2, count) + shift


def test_equal_errors_are_no_surprise_and_large_differences_the_largest() -> None:
    ours, theirs = errors(200, 0)
    assert bootstrap_p_value(ours, ours, block=5) == 1
    assert bootstrap_p_value(ours, theirs + 3, block=5, resamples=999) == 0.001


def test_the_p_value_is_about_that_of_a_paired_t_test() -> None:
    # independent times and a small difference: the difference of roots is nearly linear in the difference of means
    for seed, shift in ((1, 0.05), (2, 0.1), (3, 0.0)):
        ours, theirs = errors(500, seed, shift)
        wanted = scipy.stats.ttest_rel(ours, theirs).pvalue
        assert bootstrap_p_value(ours, theirs, block=1) == pytest.approx(wanted, abs=0.02)


def test_without_a_difference_five_in_a_hundred_are_below_five_percent() -> None:
    found = np.array([bootstrap_p_value(*errors(150, seed), block=1, resamples=199) for seed in range(300)])
    # 300 trials: 15 expected, standard deviation 3.8
    assert 5 <= (found <= 0.05).sum() <= 27
    assert 0.4 < found.mean() < 0.6


def test_holm_by_hand() -> None:
    # sorted 0.005 0.01 0.03 0.04 times 4 3 2 1: 0.02 0.03 0.06 0.04, never falling: 0.02 0.03 0.06 0.06
    np.testing.assert_allclose(adjusted([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(adjusted([0.6, 0.7]), [1, 1])


def test_benjamini_and_hochberg_by_hand_and_by_scipy() -> None:
    # sorted 0.005 0.01 0.03 0.04 times 4/1 4/2 4/3 4/4: 0.02 0.02 0.04 0.04
    np.testing.assert_allclose(adjusted([0.01, 0.04, 0.03, 0.005], "bh"), [0.02, 0.04, 0.04, 0.02])
    values = np.random.default_rng(0).random(30)
    for method in ("bh", "by"):
        np.testing.assert_allclose(adjusted(values, method), scipy.stats.false_discovery_control(values, method=method))


@pytest.mark.parametrize("method", ["holm", "bh", "by"])
def test_what_is_not_given_counts_as_no_cell(method: str) -> None:
    found = adjusted([0.02, np.nan, 0.3], method)
    np.testing.assert_allclose(found[[0, 2]], adjusted([0.02, 0.3], method))
    assert np.isnan(found[1])
    assert adjusted([], method).shape == (0,)


def test_adjustment_refuses_what_is_no_p_value() -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        adjusted([0.5, 1.5])
    with pytest.raises(UserError, match="holm, bh or by"):
        adjusted([0.5], "bonferroni")


def test_rows_for_the_table() -> None:
    better, control = errors(200, 0, shift=1.0)
    table = {"persistence": control + 1, "climatology": control, "jepa_target": better, "jepa_online": control}
    given = [
        MethodErrors(method=method, variable="t2m", lead=lead, probe="none", squared_error=values)
        for lead in ("1D", "2D")
        for method, values in table.items()
    ]
    rows = p_value_rows(given, archive="toy", seed=0, controls=["persistence", "climatology"], resamples=999)
    assert list(rows.columns) == COLUMNS
    assert len(rows) == 2 * 4
    values = rows.set_index(["metric", "lead", "method"])["value"]
    # the best control is climatology, to which jepa_online is equal here
    assert values["p_value", "1D", "jepa_target"] == 0.001
    assert values["p_value", "1D", "jepa_online"] == 1
    # four cells, two of them at 0.001: 4 x 0.001, and 3 x 0.001 raised to the same
    assert values["p_value_adjusted", "1D", "jepa_target"] == pytest.approx(0.004)
    assert values["p_value_adjusted", "2D", "jepa_target"] == pytest.approx(0.004)
    assert set(rows["n"]) == {200}
    wide = p_value_rows(given, archive="toy", seed=0, controls=["climatology"], judged=["jepa_target"], resamples=99)
    assert set(wide["method"]) == {"jepa_target"}
    with pytest.raises(UserError, match="none of the controls"):
        p_value_rows(given, archive="toy", seed=0, controls=["eof_ridge"])


def test_the_examples_run() -> None:
    assert doctest.testmod(home).failed == 0
