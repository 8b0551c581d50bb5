import numpy as np
import pytest

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.hub import Model
from sciJEPA.judging.baselines import Persistence, fields
from sciJEPA.judging.problem import LEAST_TIMES, Problem, narrowing, remembered, thinned
from sciJEPA.probes import Ridge, Rows
from sciJEPA.synthetic import travelling_waves


@pytest.fixture(scope="module")
def problem(model: Model) -> Problem:
    archive, domain = model.open(travelling_waves(200))
    return Problem.of(domain, archive, [1, 3], ["1D", "3D"])


def test_every_split_has_whole_windows_and_outcomes(problem: Problem) -> None:
    # training: steps 0 to 139, windows of 2, leads of up to 3: issue steps 1 to 136
    assert (problem.train[0], problem.train[-1]) == (1, 136)
    assert (problem.test[0], problem.test[-1]) == (161, 196)
    np.testing.assert_array_equal(problem.unlabelled, problem.train)


def test_the_truth_of_test_times_cannot_be_fitted_on(problem: Problem) -> None:
    assert problem.targets[0].read(problem.validation).shape == (len(problem.validation), 128)
    with pytest.raises(UserError, match="nothing may be fitted or chosen on test times"):
        problem.targets[0].read(problem.test[:1])


def test_errors_are_those_by_hand(problem: Problem) -> None:
    errors = problem.judge(Persistence(problem.reader, problem.leads))
    assert errors.squared_error.shape == (2, 1, len(problem.test))
    truth = open_archive(travelling_waves(200)).read(0, 200)[:, 0]
    step = int(problem.test[5])
    by_hand = ((truth[step] - truth[step + 3]) ** 2 * problem.archive.space.weights).mean()
    assert errors.squared_error[1, 0, 5] == pytest.approx(by_hand, rel=1e-4)


def test_wide_features_are_narrowed_to_what_varies(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    features = fields(problem.reader)
    whole = problem.judge(problem.fit(Ridge(), features)).squared_error
    monkeypatch.setattr("sciJEPA.judging.problem.WIDEST", 100)  # of 128 values and 136 training times
    assert narrowing(features, problem.train).width == 128
    np.testing.assert_allclose(problem.judge(problem.fit(Ridge(), features)).squared_error, whole, rtol=1e-2)


def test_rows_that_are_remembered_are_read_once_and_others_as_before() -> None:
    values, asked = np.arange(12, dtype=np.float32).reshape(6, 2), []

    def read(steps: np.ndarray) -> np.ndarray:
        asked.extend(steps.tolist())
        return values[steps]

    rows = remembered(Rows(read, 2), np.array([1, 3, 5]))
    for steps in ([3, 1], [3], [5, 3]):
        np.testing.assert_array_equal(rows.read(np.array(steps)), values[steps])
    assert asked == [1, 3, 5]
    np.testing.assert_array_equal(rows.read(np.array([0, 3])), values[[0, 3]])


def test_blocks_are_invisible(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Persistence(problem.reader, problem.leads)
    whole = problem.judge(method)
    monkeypatch.setattr("sciJEPA.judging.problem.JUDGED_VALUES", 256 * 7)  # two leads of 128 values, so 7 times
    assert [len(block) for block in problem.blocks(problem.test)] == [7, 7, 7, 7, 7, 1]
    np.testing.assert_array_equal(problem.judge(method).squared_error, whole.squared_error)


def test_a_share_of_the_labels_is_spread_over_the_training_times() -> None:
    steps = np.arange(1000, 3000)
    few = thinned(steps, 0.1, seed=0)
    assert abs(len(few) - 200) <= 16
    assert np.isin(few, steps).all()
    # blocks of 16 in 12 or 13 places: no gap is longer than the spacing
    assert np.diff(few).max() < 2000 / 12
    np.testing.assert_array_equal(few, thinned(steps, 0.1, seed=0))
    assert not np.array_equal(few, thinned(steps, 0.1, seed=1))
    assert thinned(steps, 1, seed=0) is steps


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(UserError, match=rf"are 1, at least {LEAST_TIMES} are needed"):
        thinned(np.arange(100), 0.01, seed=0)
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match="a share of labels"):
            thinned(np.arange(100), share, seed=0)


def test_thinned_labels_leave_the_other_splits_alone(model: Model, problem: Problem) -> None:
    archive, domain = model.open(travelling_waves(200))
    few = Problem.of(domain, archive, [1, 3], ["1D", "3D"], share=0.2)
    assert len(few.train) < 0.3 * len(problem.train)
    for name in ("validation", "test", "unlabelled"):
        np.testing.assert_array_equal(getattr(few, name), getattr(problem, name))
    assert few.digest() != problem.digest()
    with pytest.raises(UserError, match="nothing may be fitted"):
        few.targets[0].read(np.setdiff1d(problem.train, few.train)[:1])
    assert fields(few.reader).read(problem.train[:1]).shape == (1, 128)
