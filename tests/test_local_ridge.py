from pathlib import Path

import numpy as np
import pytest
from test_protocols import pretrain_of
from test_protocols import simulated as simulated

from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.judging.baselines import Persistence
from sciJEPA.judging.local_ridge import LocalRidge, Places, local_windows
from sciJEPA.judging.protocols import vrmse_of
from sciJEPA.panel import opened_problem
from sciJEPA.probes import Rows
from sciJEPA.synthetic import travelling_waves


def test_joining_undoes_cutting() -> None:
    fields = np.random.default_rng(0).normal(size=(3, 2, 8, 6))
    places = Places((4, 2), (2, 3), (True, True))
    cut = places.cut(fields)
    assert cut.shape == (3, 8, 2 * 6)
    np.testing.assert_array_equal(places.join(cut, 2), fields)
    np.testing.assert_array_equal(cut[0, 1].reshape(2, 2, 3), fields[0, :, :2, 3:])  # first row, second column


def test_neighbours_lie_beside_a_place_and_nothing_beyond_a_wall() -> None:
    numbers = np.arange(1, 7).reshape(1, 6, 1)  # two rows of three
    around = Places((2, 3), (1, 1), (False, True)).with_neighbours(numbers)[0]
    # itself, above, below, left, right; the first row has nothing above, and its left end closes with its right
    assert around[0].tolist() == [1, 0, 4, 3, 2]
    assert around[5].tolist() == [6, 3, 0, 5, 4]


def test_features_without_meaning_give_persistence_or_better(simulated: Path) -> None:
    problem = opened_problem(pretrain_of(simulated), simulated / "waves.zarr", None, ["1"])
    constant = Rows(lambda steps: np.repeat(steps[:, None] % 2 * 1e-3, 4, axis=1).astype(np.float32), 4)
    still = LocalRidge.fit(problem, constant, (2, 2)).predict(problem.test)[0]
    persistence = Persistence(problem.reader, problem.leads).predict(problem.test)[0]
    assert np.abs(still - persistence).mean() < 0.1 * np.abs(persistence).mean()


def test_a_ridge_on_the_window_sees_waves_move(simulated: Path) -> None:
    problem = opened_problem(pretrain_of(simulated), simulated / "waves.zarr", None, ["1", "3"])
    local = LocalRidge.fit(problem, local_windows(problem, (2, 2)), (2, 2))
    mine, theirs = (vrmse_of(problem, one).mean() for one in (local, Persistence(problem.reader, problem.leads)))
    assert mine < 0.5 * theirs


def test_places_must_divide_the_field() -> None:
    with pytest.raises(UserError, match=r"\[8, 16\] cells for \[3, 4\] tokens"):
        Places.of(open_archive(travelling_waves(20)), (3, 4))
