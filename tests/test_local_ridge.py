from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from test_channel_attention import stations
from test_protocols import pretrain_of
from test_protocols import simulated as simulated

import sciJEPA.judging.local_ridge
from sciJEPA.archive import open_archive
from sciJEPA.errors import UserError
from sciJEPA.judging.baselines import Persistence
from sciJEPA.judging.local_ridge import LocalRidge, Places, local_windows
from sciJEPA.judging.protocols import vrmse_of
from sciJEPA.panel import opened_problem
from sciJEPA.panel import probe as panel
from sciJEPA.probes import Rows, side_by_side


def test_joining_undoes_cutting() -> None:
    fields = np.random.default_rng(0).normal(size=(3, 2, 8, 6))
    places = Places((8, 6), (4, 2), (True, True))
    cut = places.cut(fields)
    assert cut.shape == (3, 8, 2 * 6)
    np.testing.assert_array_equal(places.join(cut, 2), fields)
    np.testing.assert_array_equal(cut[0, 1].reshape(2, 2, 3), fields[0, :, :2, 3:])  # first row, second column


def test_neighbours_lie_beside_a_place_and_nothing_beyond_a_wall() -> None:
    numbers = np.arange(1, 7).reshape(1, 6, 1)  # two rows of three
    around = Places((2, 3), (2, 3), (False, True)).with_neighbours(numbers)[0]
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


def test_places_may_reach_beyond_the_field() -> None:
    fields = np.random.default_rng(0).normal(size=(3, 2, 7, 5))
    places = Places((7, 5), (4, 2), (False, False))
    cut = places.cut(fields)
    assert (places.patch, cut.shape) == ((2, 3), (3, 8, 2 * 6))
    assert (cut[:, -1].reshape(3, 2, 2, 3)[:, :, 1] == 0).all()  # the eighth row
    np.testing.assert_array_equal(places.join(cut, 2), fields)


def test_stations_have_no_neighbours() -> None:
    with pytest.raises(UserError, match=r"stations without an order; use probes='ridge'"):
        Places.of(open_archive(stations()), (3,))


def test_changes_of_what_lasts_are_predicted_and_values_of_what_does_not(simulated: Path) -> None:
    model, ds = pretrain_of(simulated), xr.open_zarr(simulated / "waves.zarr", consolidated=False).load()
    noise = ds.map(lambda field: field.copy(data=np.random.default_rng(0).normal(size=field.shape)))
    nothing = Rows(lambda steps: np.repeat(steps[:, None] % 2 * 1e-3, 4, axis=1).astype(np.float32), 4)
    waves, scattered = (opened_problem(model, one, None, ["1"]) for one in (ds, noise))
    assert not LocalRidge.fit(waves, nothing, (2, 2)).value.any()
    assert LocalRidge.fit(scattered, nothing, (2, 2)).value.all()


def test_wide_vectors_are_narrowed(simulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = opened_problem(pretrain_of(simulated), simulated / "waves.zarr", None, ["1"])
    windows = local_windows(problem, (2, 2))
    whole = LocalRidge.fit(problem, windows, (2, 2)).predict(problem.test)[0]
    monkeypatch.setattr(sciJEPA.judging.local_ridge, "NARROWED", 5 * 12)  # twelve components a place
    narrow = LocalRidge.fit(problem, windows, (2, 2))
    assert narrow.ridge.features_.width == 5 * 4 < 5 * windows.width // 4  # the waves have four numbers
    np.testing.assert_allclose(narrow.predict(problem.test)[0], whole, atol=0.05)


def test_each_place_reads_its_own_vectors_first(simulated: Path) -> None:
    """Two kinds of features of places, side by side, keep to their places."""
    counted = Rows(lambda steps: np.tile(np.arange(4.0), (len(steps), 1)) * (1 + steps[:, None]), 4)
    doubled = Rows(lambda steps: np.repeat(counted.read(steps), 2, axis=1), 8)
    both = side_by_side([counted, doubled], np.arange(50), places=4)
    rows = both.read(np.array([0, 7])).reshape(2, 4, 3)
    assert (rows[:, 0] == 0).all()
    np.testing.assert_allclose(rows[:, 2] / rows[:, 1], 2)


def test_a_local_probe_is_beside_its_control_in_the_panel(simulated: Path) -> None:
    rows = panel(pretrain_of(simulated), simulated / "waves.zarr", lead=["1"], controls="quick", progress=False)
    errors = rows[rows["metric"] == "rmse"].set_index(["method", "probe"])["value"]
    local = {method for method, kind in errors.index if kind == "local"}
    assert local == {"raw_ridge", "random_init", "jepa_online", "jepa_target", "jepa_predicted"}
    assert all((errors[method, "local"] < errors["persistence", "none"]).all() for method in local)
    with pytest.raises(UserError, match="there is no probe 'forest'; choose from ridge, knn, mlp, attentive, local"):
        panel(pretrain_of(simulated), simulated / "waves.zarr", lead=["1"], probes="forest", progress=False)
